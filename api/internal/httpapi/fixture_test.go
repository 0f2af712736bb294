package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/api/internal/webhook"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

// server is the Postgres of all tests.
//
//nolint:gochecknoglobals // TestMain has no other way to hand it over
var server *storetest.Server

func TestMain(m *testing.M) {
	storetest.Main(m, func(s *storetest.Server) { server = s })
}

// frontend is the origin of the recordings.
const frontend = "http://localhost:5173"

// serviceToken is the service credential of the tests.
const serviceToken = "the-service-token-of-the-tests"

// hookTokens are the providers' webhook tokens of the tests.
func hookTokens() map[string]string {
	return map[string]string{"docker": "the-gateway's-webhook-token", "cloudflare": "the-worker's-webhook-token"}
}

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is an API on a store of its own.
type world struct {
	api   *API
	store *store.Store
	clock *clock
	// backends are those that it was made with.
	backends map[string]sandbox.Backend
}

// options change what a world is like.
type options struct {
	account func(*account.Settings)
	api     func(*Settings)
	log     io.Writer
	// visits is how often web UIs are closed whose sessions are over.
	visits time.Duration
	// backends are the providers; without them there are no sandboxes.
	backends map[string]sandbox.Backend
}

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

func newWorld(t testing.TB, s *store.Store, o options) world {
	t.Helper()
	c := &clock{now: time.Now()}
	set := account.Settings{
		Secret: []byte("a secret of the tests, 32 bytes+"), SignUp: true, APIToken: serviceToken,
		PerAccount: account.DefaultPerAccount(), PerAddress: account.DefaultPerAddress(), Now: c.Now,
	}
	if o.account != nil {
		o.account(&set)
	}
	accounts, err := account.New(t.Context(), set, s.Accounts())
	if err != nil {
		t.Fatal(err)
	}
	settings := Settings{Hosts: daemon.NewHosts("127.0.0.1:3001", []string{"example.com"}), Origins: []string{frontend}, Version: "test"}
	if o.api != nil {
		o.api(&settings)
	}
	log := slog.New(slog.DiscardHandler)
	if o.log != nil {
		log = slog.New(slog.NewJSONHandler(o.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	library, err := task.NewLibrary(s.Templates(), c.Now)
	if err != nil {
		t.Fatal(err)
	}
	hooks, err := webhook.New(webhook.Settings{Tokens: hookTokens(), Now: c.Now}, s.Sandboxes(), log)
	if err != nil {
		t.Fatal(err)
	}
	var places []provider.Provider
	for name, backend := range o.backends {
		places = append(places, provider.Provider{Name: name, Backend: backend})
	}
	registry, err := provider.New(provider.Settings{Now: c.Now}, places, log)
	must(t, err)
	credentials := newCredentials(t, s, log)
	boxes := sandboxes.New(sandboxes.Settings{VisitsEvery: o.visits, Now: c.Now}, sandboxes.Deps{
		Sandboxes: s.Sandboxes(), Visits: s.Visits(), Backends: registry, Config: credentials.Config, Log: log,
	})
	background, stop := context.WithCancel(context.Background())
	var beside sync.WaitGroup
	beside.Go(func() { boxes.EndVisits(background) })
	tasks := task.New(task.Settings{}, task.Deps{
		Tasks: s.Tasks(), Teams: s.Teams(), Sandboxes: s.Sandboxes(), Backends: registry, Raise: boxes.Raise, Log: log,
	})
	t.Cleanup(func() {
		stop()
		beside.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(tasks.Close(ctx), boxes.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	api, err := New(settings, Deps{
		Accounts: accounts, Providers: registry, Sandboxes: boxes, Tasks: tasks, Templates: library, Webhooks: hooks, Credentials: credentials,
		Ready: s.Ping, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return world{api: api, store: s, clock: c, backends: o.backends}
}

// newCredentials makes the service of credentials, with a key of one byte.
func newCredentials(t testing.TB, s *store.Store, log *slog.Logger) *credential.Service {
	t.Helper()
	keys, err := seal.NewKeyring([seal.KeySize]byte{1})
	must(t, err)
	catalogue, err := credential.NewCatalogue("", nil, log)
	must(t, err)
	return credential.New(credential.Settings{Keys: keys, Catalogue: catalogue, Log: log}, s.Credentials(), s.Configs())
}

// listen serves the API on a port of the loopback interface until the test ends.
func (w world) listen(t testing.TB) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- daemon.Server{Listener: listener, Handler: w.api, Draining: w.api.Drain, DrainTimeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + listener.Addr().String()
}

// do serves one request without a network.
func (w world) do(r *http.Request) *http.Response {
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, r)
	return rec.Result()
}
