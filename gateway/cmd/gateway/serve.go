package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/gateway/internal/docker"
	"github.com/agentpod/agentpod/gateway/internal/httpapi"
	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/gateway/internal/uihost"
	"github.com/agentpod/agentpod/gateway/internal/webhook"
	"github.com/agentpod/agentpod/gateway/internal/workspace"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/seal"
	"github.com/agentpod/agentpod/shared/tracing"
)

// service is the gateway's name in traces.
const service = "agentpod-gateway"

// serve wires the parts together and serves until ctx ends.
func serve(ctx context.Context, cfg config.Config, stderr io.Writer) error {
	log, err := daemon.NewLogger(stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	defer profile(ctx, log)()
	traces, err := tracing.Start(ctx, os.Getenv, service, daemon.Version(), log)
	if err != nil {
		return err
	}
	defer traces.Close(context.WithoutCancel(ctx))
	token, err := openDataDir(&cfg, log)
	if err != nil {
		return err
	}
	kept, err := openStorage(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer kept.close(context.WithoutCancel(ctx))
	return kept.hold(ctx, func(ctx context.Context) error { return serveFrom(ctx, cfg, token, kept, traces.Tracer(), log) })
}

// As much garbage gathers before it is collected as garbagePercent of what is in
// use and of untouchedHeap, which is in bytes, together.
const (
	garbagePercent = 15
	untouchedHeap  = 64 << 20
)

// serveFrom serves what is in a store.
func serveFrom(ctx context.Context, cfg config.Config, token string, kept *storage, tracer trace.Tracer, log *slog.Logger) error {
	// Snapshots make garbage in pieces of megabytes. Collecting it several times as
	// often as usual costs little then, and keeps the memory near what is in use.
	// Requests make it in pieces of bytes, and the same would collect it dozens of
	// times a second. So the heap counts as larger by what is never touched, and takes
	// up no memory.
	debug.SetGCPercent(garbagePercent)
	untouched := make([]byte, untouchedHeap)
	defer runtime.KeepAlive(untouched)
	id, err := installation(cfg.DataDir)
	if err != nil {
		return err
	}
	engine, err := docker.New(engineSettings(cfg, id), log)
	if err != nil {
		return err
	}
	defer engine.Close()
	links := proxy.NewTransport(engine.Alive, proxy.TransportSettings{})
	defer links.Close()
	notices, err := webhook.New(webhook.Settings{URL: cfg.APIURL, Token: cfg.APIToken}, log)
	if err != nil {
		return fmt.Errorf("webhooks: %w", err)
	}
	workspaces := workspace.NewKeeper(
		snapshot.New(kept.store, kept.keyring, snapshot.Settings{Keep: cfg.SnapshotsKept, Log: log}),
		mirror.New(kept.store, kept.keyring, mirror.Settings{Exclude: cfg.MirrorExclude, Log: log}),
		cfg.PersistConcurrency, log)
	manager := lifecycle.New(lifecycleSettings(cfg), engine, kept.records, workspaces, links, notices, log)
	listener, err := daemon.Listen(ctx, "GATEWAY_ADDR", cfg.Addr)
	if err != nil {
		return err
	}
	ui, err := uiSettings(cfg, kept.keyring, listener.Addr())
	if err != nil {
		_ = listener.Close()
		return err
	}
	carrier := proxy.New(links, proxy.Settings{MaxBody: int64(cfg.MaxUpload), Logger: log})
	api, err := httpapi.New(httpapi.Settings{
		Token: token, Hosts: hosts(cfg), UI: ui, Address: cfg.Public(listener.Addr().String()).String(),
		MaxUpload: int64(cfg.MaxUpload), ExecTimeout: cfg.ExecTimeout,
	}, httpapi.Deps{
		Manager: manager, Log: log, Tracer: tracer,
		Proxy: carrier,
		Turns: &turn.Runner{Deadline: cfg.MessageTimeout, Policy: turn.Policy(cfg.PermissionPolicy), Logger: log},
	}, manager.Figures(), engine.Figures(), kept.store.Figures(), workspaces.Figures(), notices.Figures(), carrier.Figures())
	if err == nil {
		err = manager.Start(ctx)
	}
	if err != nil {
		_ = listener.Close()
		return err
	}
	announce(cfg, log, listener.Addr())
	go debug.FreeOSMemory() // reading the records made garbage as nothing does again
	served := daemon.Server{
		Listener: listener, Handler: http.Handler(api), Draining: api.Drain, DrainTimeout: cfg.DrainTimeout, Log: log,
	}.Run(ctx)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	return errors.Join(served, api.Close(last), manager.Close(last), notices.Close(last))
}

// hosts are the names by which the gateway itself is called.
func hosts(cfg config.Config) daemon.Hosts {
	more := cfg.AllowedHosts
	if cfg.PublicURL != "" {
		more = append([]string{cfg.Public(cfg.Addr).Host}, more...)
	}
	return daemon.NewHosts(cfg.Addr, more)
}

// uiSettings say where sandboxes have hosts of their own; nil if they have none.
func uiSettings(cfg config.Config, keyring *seal.Keyring, bound net.Addr) (*uihost.Settings, error) {
	if cfg.Domain() == "" {
		return nil, nil //nolint:nilnil // it is what it says
	}
	key, err := keyring.Key("cookies of sandboxes' hosts")
	if err != nil {
		return nil, err
	}
	return &uihost.Settings{Domain: cfg.Domain(), Public: cfg.Public(bound.String()), Key: key}, nil
}

func announce(cfg config.Config, log *slog.Logger, addr net.Addr) {
	for provider := range cfg.Providers {
		log.Info("sandboxes get a default credential from the environment; code in a sandbox can read it", "provider", provider)
	}
	log.Info("serving", "addr", addr.String(), "dataDir", cfg.DataDir, "image", cfg.Image)
}

func lifecycleSettings(cfg config.Config) lifecycle.Settings {
	s := lifecycle.DefaultSettings()
	s.Deadlines.Guest, s.Deadlines.Boot = cfg.GuestTimeout, cfg.BootTimeout
	s.Deadlines.Clone, s.Deadlines.Hold = cfg.CloneTimeout, cfg.HoldTimeout
	s.MaxRunning, s.MaxFrozen, s.BootConcurrency, s.MaxHeld = cfg.MaxRunning, cfg.MaxFrozen, cfg.BootConcurrency, cfg.MaxHeld
	s.Pool.Size = cfg.PoolSize
	s.Defaults, s.GitProtocols, s.NoProjectConfig = cfg.Defaults, cfg.GitProtocols, cfg.ProjectConfig == "off"
	s.Deadlines.Snapshot, s.Deadlines.Restore = cfg.SnapshotTimeout, cfg.RestoreTimeout
	s.PersistMost = cfg.StoreWithin
	s.Idle = lifecycle.Idle{
		Freeze: cfg.FreezeAfter, Shrink: cfg.ShrinkAfter, Stop: cfg.StopAfter, Archive: cfg.ArchiveAfter, Delete: cfg.DeleteAfter, MaxAwake: cfg.MaxAwake,
	}
	return s
}

// The files in DATA_DIR that the gateway makes if they are not there.
const (
	tokenFile        = "gateway.token"
	installationFile = "installation"
	sealingFile      = "sealing.key"
)

// openDataDir makes the data folder, readable by its owner only, and finds or
// makes the token in it.
func openDataDir(cfg *config.Config, log *slog.Logger) (token string, err error) {
	if err := daemon.MakeDataDir(cfg.DataDir); err != nil {
		return "", err
	}
	if cfg.Token != "" {
		return cfg.Token, nil
	}
	path := filepath.Join(cfg.DataDir, tokenFile)
	token, made, err := seal.LoadOrMakeSecret(path, func() string { return rand.Text() + rand.Text() })
	if err != nil {
		return "", err
	}
	if made {
		log.Info("a token was made", "file", path)
	}
	return token, nil
}

var installationPattern = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// installation is what tells this gateway's containers from those of others.
func installation(dataDir string) (string, error) {
	path := filepath.Join(dataDir, installationFile)
	id, _, err := seal.LoadOrMakeSecret(path, func() string { return strings.ToLower(rand.Text()[:8]) })
	if err != nil {
		return "", err
	}
	if !installationPattern.MatchString(id) {
		return "", fmt.Errorf("%s must hold 1 to 32 lower-case letters and digits, such as k3x9w2qd", path)
	}
	return id, nil
}

func engineSettings(cfg config.Config, installation string) docker.Settings {
	return docker.Settings{
		Installation: installation, Image: cfg.Image, Host: cfg.EngineHost, Reach: docker.Reach(cfg.Reach), Runtime: cfg.ContainerClass,
		Memory: int64(cfg.Memory), CPUs: cfg.CPUs, Pids: cfg.PIDs, NoFile: cfg.NoFile,
		TmpSize: int64(cfg.TmpSize), RunSize: int64(cfg.RunSize), LogMaxSize: int64(cfg.LogSize), LogMaxFiles: cfg.LogFiles,
	}
}

// printNetwork is for what must listen where sandboxes can reach it.
func printNetwork(ctx context.Context, cfg config.Config, stdout, stderr io.Writer) error {
	log, err := daemon.NewLogger(stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	if err := daemon.MakeDataDir(cfg.DataDir); err != nil {
		return err
	}
	id, err := installation(cfg.DataDir)
	if err != nil {
		return err
	}
	engine, err := docker.New(engineSettings(cfg, id), log)
	if err != nil {
		return err
	}
	defer engine.Close()
	addr, err := engine.EnsureNetwork(ctx)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, addr); err != nil {
		return fmt.Errorf("printing the address: %w", err)
	}
	return nil
}
