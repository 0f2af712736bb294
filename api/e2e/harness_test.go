package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/processtest"
	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

// gateway is a running gateway, and the model and the repository that its
// sandboxes use.
type gateway struct {
	processtest.Process

	dir   string
	addr  string // "127.0.0.1:0" until it was started
	more  []string
	model *scriptedmodel.Server
	git   *scriptedmodel.GitServer
}

// sharedGateway is the gateway of all tests that do not stop it.
//
//nolint:gochecknoglobals // shared on purpose, closed by TestMain
var sharedGateway fixture

type fixture struct {
	once sync.Once
	gw   *gateway
	err  error
}

func (f *fixture) get(t testing.TB) *gateway {
	t.Helper()
	f.once.Do(func() { f.gw, f.err = newGateway() })
	if f.err != nil {
		t.Fatal(f.err)
	}
	return f.gw
}

func (f *fixture) close() error {
	if f.gw == nil {
		return nil
	}
	return f.gw.destroy()
}

func newGateway(env ...string) (*gateway, error) {
	dir, err := os.MkdirTemp("", "agentpod-api-e2e-gateway-")
	if err != nil {
		return nil, fmt.Errorf("making the gateway's folder: %w", err)
	}
	g := &gateway{dir: dir, addr: "127.0.0.1:0", more: env}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	network := exec.CommandContext(ctx, filepath.Join(binaries, "gateway"), "network") //nolint:gosec // our own
	network.Env = g.env("{}")
	host, err := network.Output()
	if err != nil {
		return nil, fmt.Errorf("making the sandboxes' network: %w", err)
	}
	at := strings.TrimSpace(string(host)) + ":0"
	g.model = scriptedmodel.New(scriptedmodel.Options{})
	if err := g.model.Start(context.Background(), at); err != nil {
		return nil, err
	}
	if g.git, err = scriptedmodel.StartGit(context.Background(), at, "", nil); err != nil {
		return nil, err
	}
	if err := g.up(); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *gateway) env(config string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "DOCKER_HOST=" + os.Getenv("DOCKER_HOST"), runEnv(),
		"GATEWAY_ADDR=" + g.addr, "DATA_DIR=" + g.dir, "SANDBOX_IMAGE=" + os.Getenv(imageEnv),
		"DEFAULT_CONFIG=" + config, "LOG_LEVEL=debug", "LOG_FORMAT=json", "DRAIN_TIMEOUT=3s", "MAX_RUNNING=40",
		"POOL_SIZE=0", // a container more, and seconds of two cores
	}, g.more...)
}

// runEnv marks a process as one of this run, for `make test`.
func runEnv() string { return "AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN") }

// up starts the gateway, at the address that it had before.
func (g *gateway) up() error {
	err := g.Start(g.env(string(g.model.Config())), filepath.Join(binaries, "gateway"), "serve")
	g.addr = g.Addr
	return err
}

func (g *gateway) url() string { return "http://" + g.addr }

func (g *gateway) token() string { return readSecret(g.dir, "gateway.token") }

func readSecret(dir, name string) string {
	raw, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(raw))
}

// destroy deletes every sandbox and what else there is of the gateway.
func (g *gateway) destroy() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var problems []error
	if g.Ended() {
		problems = append(problems, g.up())
	}
	problems = append(problems, g.empty(ctx, "/sandboxes?limit=100"), g.Stop(syscall.SIGTERM), g.model.Close(), g.git.Close(),
		processtest.RemoveNetwork(ctx, "agentpod-"+readSecret(g.dir, "installation")))
	return errors.Join(append(problems, os.RemoveAll(g.dir))...)
}

// empty deletes the sandboxes that a route lists.
func (g *gateway) empty(ctx context.Context, route string) error {
	c := g.caller()
	var list struct{ Sandboxes []struct{ SandboxID string } }
	for {
		if _, err := c.send(ctx, http.MethodGet, route, nil, &list); err != nil || len(list.Sandboxes) == 0 {
			return err
		}
		for _, s := range list.Sandboxes {
			if status, err := c.send(ctx, http.MethodDelete, "/sandbox/"+s.SandboxID, nil, nil); err != nil || status != http.StatusOK {
				return fmt.Errorf("deleting %s: %d %w", s.SandboxID, status, err)
			}
		}
	}
}

// caller asks the gateway itself.
func (g *gateway) caller() *caller { return &caller{url: g.url(), bearer: g.token()} }

// ownGateway gives a test a gateway that it may stop.
func ownGateway(t *testing.T, env ...string) *gateway {
	t.Helper()
	g, err := newGateway(env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.destroy(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", tail(g.Log()))
		}
	})
	return g
}

// tail is the end of a log.
func tail(log string) string { return log[max(0, len(log)-20_000):] }

// api is a running API.
type api struct {
	processtest.Process

	dir   string
	addr  string
	more  []string
	users []string
}

// The admin of every API of the tests.
const (
	adminEmail    = "admin@localhost.test"
	adminPassword = "a password of the tests"
)

// newAPI starts an API on SQLite, in front of a gateway unless that is nil; more
// lines override the environment.
func newAPI(t testing.TB, g *gateway, more ...string) *api {
	t.Helper()
	a := &api{dir: t.TempDir(), addr: "127.0.0.1:0"}
	if g != nil {
		a.more = append(a.more, "GATEWAY_URL="+g.url(), "GATEWAY_TOKEN="+g.token())
	} else {
		a.more = append(a.more, "GATEWAY_URL=")
	}
	a.more = append(a.more, more...)
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := a.Stop(syscall.SIGTERM)
		for _, id := range a.users {
			if g != nil && !g.Ended() { // there is room for so many only
				err = errors.Join(err, g.empty(context.Background(), "/sandboxes?limit=100&userId="+id))
			}
		}
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(a.Log(), "DATA RACE") {
			t.Error("the race detector found something")
		}
		if t.Failed() {
			t.Logf("the API's log:\n%s", tail(a.Log()))
		}
	})
	return a
}

// up starts the API, at the address that it had before.
func (a *api) up() error {
	env := append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + a.dir, runEnv(), "API_ADDR=" + a.addr, "DATA_DIR=" + a.dir,
		"MAKE_ADMIN=true", "ADMIN_EMAIL=" + adminEmail, "ADMIN_PASSWORD=" + adminPassword, "SIGN_UP=true",
		"LOG_LEVEL=debug", "LOG_FORMAT=json", "DRAIN_TIMEOUT=5s",
	}, a.more...)
	err := a.Start(env, filepath.Join(binaries, "api"), "serve")
	a.addr = a.Addr
	return err
}

func (a *api) url() string { return "http://" + a.addr }

// admin signs the admin in.
func (a *api) admin(t testing.TB) *caller {
	t.Helper()
	return a.signed(t, "/api/auth/sign-in/email", object{"email": adminEmail, "password": adminPassword})
}

// user makes another user.
func (a *api) user(t testing.TB) *caller {
	t.Helper()
	email := strings.ToLower(rand.Text()[:10]) + "@example.com"
	return a.signed(t, "/api/auth/sign-up/email", object{"email": email, "password": adminPassword, "name": "Somebody"})
}

func (a *api) signed(t testing.TB, path string, body object) *caller {
	t.Helper()
	var out struct {
		Token string
		User  struct{ ID string }
	}
	c := &caller{url: a.url()}
	c.must(t, http.MethodPost, path, body, http.StatusOK, &out)
	a.users = append(a.users, out.User.ID)
	return &caller{url: a.url(), bearer: out.Token, userID: out.User.ID}
}

type object = map[string]any

// caller sends requests as somebody.
type caller struct {
	url, bearer, userID string
	client              http.Client
}

// callTime is longer than anything that a test does may take.
const callTime = 3 * time.Minute

// maxReply bounds what a test reads of a reply, in bytes.
const maxReply = 64 << 20

// open sends a request whose reply the test reads.
func (c *caller) open(ctx context.Context, method, path string, body any, header http.Header) (*http.Response, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, reader)
	if err != nil {
		return nil, err
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	return c.client.Do(req)
}

// send sends a request and decodes the reply's JSON, if that is wanted.
func (c *caller) send(ctx context.Context, method, path string, body, into any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	res, err := c.open(ctx, method, path, body, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return res.StatusCode, err
	}
	if p, ok := into.(*string); ok {
		*p = string(raw)
	} else if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			return res.StatusCode, fmt.Errorf("%w in %s", err, raw)
		}
	}
	return res.StatusCode, nil
}

// must sends a request that has to have a status.
func (c *caller) must(t testing.TB, method, path string, body any, want int, into any) {
	t.Helper()
	var raw string
	status, err := c.send(t.Context(), method, path, body, &raw)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, raw)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(raw), into); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
}

// task is a task as the API shows it.
type task struct {
	ID, UserID, SandboxID, Provider, Status, Message, Response, SessionID, Error string
	CompletedAt                                                                  *time.Time
}

// final waits until a task has ended, and returns it.
func (c *caller) final(t testing.TB, id string, limit time.Duration) task {
	t.Helper()
	var got task
	eventually(t, "task "+id+" ends", limit, func() bool {
		var now task
		// The API may be down, or its database.
		if status, err := c.send(t.Context(), http.MethodGet, "/api/v2/agents/task/"+id, nil, &now); err != nil || status != http.StatusOK {
			return false
		}
		got = now
		return got.Status != "pending" && got.Status != "running"
	})
	return got
}

// event is an event of a task's stream.
type event struct {
	ID   string
	Type string
	Data map[string]any
}

// stream reads a task's events until their end, or until done says so.
func (c *caller) stream(t testing.TB, method, path string, body any, lastID string, done func(event) bool) []event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	header := http.Header{}
	if lastID != "" {
		header.Set("Last-Event-ID", lastID)
	}
	res, err := c.open(ctx, method, path, body, header)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		raw, _ := io.ReadAll(io.LimitReader(res.Body, maxReply))
		t.Fatalf("%s: status %d: %s", path, res.StatusCode, raw)
	}
	var events []event
	read(t, res.Body, func(e event) bool {
		if e.Type != "keepalive" {
			events = append(events, e)
		}
		return done == nil || !done(e)
	})
	return events
}

// texts joins the chunks of events.
func texts(events []event) string {
	var b strings.Builder
	for _, e := range events {
		if e.Type == "chunk" {
			text, _ := e.Data["content"].(string)
			b.WriteString(text)
		}
	}
	return b.String()
}

// eventually polls until the condition holds: what it waits for happens in
// another process.
func eventually(t testing.TB, what string, limit time.Duration, condition func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(limit), time.NewTicker(50*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}
