package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/httpapi"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/api/internal/webhook"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/tracing"
)

// service is the API's name in traces.
const service = "agentpod-api"

// serve serves until ctx ends.
func serve(ctx context.Context, cfg config.Config, stderr io.Writer) error {
	return withStore(ctx, cfg, stderr, func(db *store.Store, log *slog.Logger) error {
		keys, err := openKeys(cfg, log)
		if err != nil {
			return err
		}
		traces, err := tracing.Start(ctx, os.Getenv, service, daemon.Version(), log)
		if err != nil {
			return err
		}
		defer traces.Close(context.WithoutCancel(ctx))
		return serveFrom(ctx, cfg, keys, db, traces.Tracer(), log)
	})
}

// migrate brings the database up to date.
func migrate(ctx context.Context, cfg config.Config, stderr io.Writer) error {
	return withStore(ctx, cfg, stderr, func(_ *store.Store, log *slog.Logger) error {
		log.InfoContext(ctx, "the database is up to date")
		return nil
	})
}

// withStore opens the database, which brings it up to date, and closes it when
// the work is done.
func withStore(ctx context.Context, cfg config.Config, stderr io.Writer, work func(*store.Store, *slog.Logger) error) error {
	log, err := daemon.NewLogger(stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	if err := daemon.MakeDataDir(cfg.DataDir); err != nil {
		return err
	}
	db, err := store.Open(ctx, databaseURL(cfg))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	return errors.Join(work(db, log), db.Close())
}

// serveFrom serves what is in a database.
func serveFrom(ctx context.Context, cfg config.Config, keys keys, db *store.Store, tracer trace.Tracer, log *slog.Logger) error {
	providers, err := openProviders(cfg, db, log)
	if err != nil {
		return err
	}
	accounts, err := account.New(ctx, account.Settings{
		Secret: keys.cookies, SignUp: cfg.SignUpOpen(), MayOpen: mayOpen(cfg, providers, log), APIToken: cfg.Token,
		PerAccount: account.DefaultPerAccount(), PerAddress: account.DefaultPerAddress(),
	}, db.Accounts())
	if err != nil {
		return fmt.Errorf("accounts: %w", err)
	}
	if err := makeAdmin(ctx, cfg, accounts, db.Accounts(), log); err != nil {
		return err
	}
	credentials, catalogue, err := openCredentials(ctx, cfg, keys, db, log)
	if err != nil {
		return err
	}
	boxes := sandboxes.New(sandboxes.Settings{}, sandboxes.Deps{
		Sandboxes: db.Sandboxes(), Visits: db.Visits(), Backends: providers, Config: credentials.Config, Log: log,
	})
	tasks := task.New(task.Settings{Timeout: cfg.TaskTimeout, Raising: cfg.TaskRaising, Concurrency: cfg.TaskConcurrency, TeamSize: cfg.TeamSize}, task.Deps{
		Tasks: db.Tasks(), Teams: db.Teams(), Sandboxes: db.Sandboxes(), Backends: providers, Raise: boxes.Raise, Config: credentials.Config, Log: log,
	})
	templates, err := task.NewLibrary(db.Templates(), time.Now)
	if err != nil {
		return fmt.Errorf("templates: %w", err)
	}
	hooks, err := webhook.New(webhook.Settings{Tokens: map[string]string{
		provider.Docker: cfg.WebhookTokenDocker, provider.Cloudflare: cfg.WebhookTokenCloudflare,
	}, Now: time.Now}, db.Sandboxes(), log)
	if err != nil {
		return fmt.Errorf("webhooks: %w", err)
	}
	stop := closeWith(ctx, cfg.DrainTimeout, tasks)
	served := serveWith(ctx, cfg, httpapi.Deps{
		Accounts: accounts, Providers: providers, Credentials: credentials, Sandboxes: boxes, Tasks: tasks, Templates: templates, Webhooks: hooks,
		Ready: db.Ping, Log: log, Tracer: tracer,
	}, providers.Watch, catalogue.Run, tasks.Recover, boxes.EndVisits, boxes.Measure)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	return errors.Join(served, stop(last), boxes.Close(last), providers.Close(last))
}

// closeWith closes the tasks when ctx ends, while the requests that wait for them
// are drained. What it returns waits for that, or does it now.
func closeWith(ctx context.Context, drain time.Duration, tasks *task.Service) func(context.Context) error {
	closed := make(chan error, 1)
	undo := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		closed <- tasks.Close(last)
	})
	return func(last context.Context) error {
		if undo() {
			return tasks.Close(last)
		}
		return <-closed
	}
}

// openCredentials opens what users give to their sandboxes, sealed with the
// newest key.
func openCredentials(ctx context.Context, cfg config.Config, keys keys, db *store.Store, log *slog.Logger) (*credential.Service, *credential.Catalogue, error) {
	catalogue, err := credential.NewCatalogue(cfg.Catalogue, nil, log)
	if err != nil {
		return nil, nil, fmt.Errorf("CATALOGUE: %w", err)
	}
	s := credential.New(credential.Settings{Keys: keys.credentials, Catalogue: catalogue, Log: log}, db.Credentials(), db.Configs())
	if err := s.Rotate(ctx); err != nil {
		return nil, nil, fmt.Errorf("ENCRYPTION_KEY: %w", err)
	}
	return s, catalogue, nil
}

// serveWith serves the routes, and runs beside them what goes on in the
// background; that ends after the last request did.
func serveWith(ctx context.Context, cfg config.Config, deps httpapi.Deps, beside ...func(context.Context)) error {
	api, err := httpapi.New(httpapi.Settings{ //nolint:contextcheck // handlers take their requests'
		Hosts: daemon.NewHosts(cfg.Addr, cfg.AllowedHosts), Origins: cfg.Origins, Secure: cfg.Secure, Proxies: cfg.Proxies, Version: daemon.Version(),
	}, deps)
	if err != nil {
		return fmt.Errorf("the routes: %w", err)
	}
	listener, err := daemon.Listen(ctx, "API_ADDR", cfg.Addr)
	if err != nil {
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	for _, run := range beside {
		running.Go(func() { run(background) })
	}
	deps.Log.InfoContext(ctx, "serving", "addr", listener.Addr().String(), "dataDir", cfg.DataDir)
	served := daemon.Server{Listener: listener, Handler: api, Draining: api.Drain, DrainTimeout: cfg.DrainTimeout, Log: deps.Log}.Run(ctx)
	stop()
	running.Wait()
	return served
}

// openProviders makes the clients of the providers that are configured. It asks
// nothing of them: one that is away is found so later, and does not stop the API.
func openProviders(cfg config.Config, db *store.Store, log *slog.Logger) (*provider.Registry, error) {
	var all []provider.Provider
	if cfg.GatewayURL != "" {
		set := cfg.Gateway()
		set.Log = log
		gateway, err := sandbox.NewGateway(set)
		if err != nil {
			return nil, fmt.Errorf("GATEWAY_URL: %w", err)
		}
		all = append(all, provider.Provider{Name: provider.Docker, Backend: gateway})
	}
	if cfg.Cloudflare {
		set := cfg.Worker()
		set.Log = log
		worker, err := sandbox.NewWorker(set, sandboxes.NewWorkerRecords(db.Sandboxes()))
		if err != nil {
			return nil, fmt.Errorf("CLOUDFLARE_WORKER_URL: %w", err)
		}
		all = append(all, provider.Provider{Name: provider.Cloudflare, Backend: worker})
	}
	return provider.New(provider.Settings{Default: cfg.DefaultProvider, AutoSelect: cfg.AutoSelect}, all, log)
}
