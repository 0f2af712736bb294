package httpapi

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
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
}

// options change what a world is like.
type options struct {
	account func(*account.Settings)
	api     func(*Settings)
	log     io.Writer
	// backends are the providers; without them there are no sandboxes.
	backends map[string]sandbox.Backend
}

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// providers are the backends by their names.
type providers map[string]sandbox.Backend

func (p providers) Backend(name string) (sandbox.Backend, error) {
	if b, ok := p[name]; ok {
		return b, nil
	}
	return nil, sandbox.Errorf(sandbox.CodeProviderMissing, "%s is not configured", name)
}

func (p providers) Select(asked string, _ provider.UseCase) (string, sandbox.Backend, error) {
	name := cmp.Or(asked, provider.Docker)
	b, err := p.Backend(name)
	return name, b, err
}

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
	boxes := sandboxes.New(sandboxes.Settings{}, sandboxes.Deps{Sandboxes: s.Sandboxes(), Backends: providers(o.backends), Log: log})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := boxes.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	api, err := New(settings, Deps{Accounts: accounts, Sandboxes: boxes, Ready: s.Ping, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return world{api: api, store: s, clock: c}
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
