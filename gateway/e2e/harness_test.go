package e2e

import (
	"bytes"
	"context"
	"encoding/json"
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

// gateway is a running gateway process with a data folder of its own, and the
// scripted model that its sandboxes use.
type gateway struct {
	dir   string
	env   []string
	url   string
	token string
	model *scriptedmodel.Server
	git   *scriptedmodel.GitServer

	processtest.Process
}

// sharedFixture is the gateway that tests use which neither stop it nor need
// settings of their own: a boot of OpenCode costs seconds.
//
//nolint:gochecknoglobals // shared on purpose, closed by TestMain
var sharedFixture fixture

type fixture struct {
	once sync.Once
	gw   *gateway
	err  error
}

func shared(t *testing.T) *gateway {
	t.Helper()
	sharedFixture.once.Do(func() { sharedFixture.gw, sharedFixture.err = launch() })
	if sharedFixture.err != nil {
		t.Fatal(sharedFixture.err)
	}
	return sharedFixture.gw
}

func (f *fixture) close() {
	if f.gw != nil {
		if err := f.gw.destroy(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
	}
}

// start gives a test a gateway of its own; env lines override the defaults.
func start(t *testing.T, env ...string) *gateway {
	t.Helper()
	g, err := launch(env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.destroy(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("gateway's log:\n%s", g.log())
		}
	})
	return g
}

func launch(env ...string) (*gateway, error) {
	dir, err := os.MkdirTemp("", "agentpod-e2e-data-")
	if err != nil {
		return nil, err
	}
	g := &gateway{dir: dir, env: env}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	network := exec.CommandContext(ctx, binary, "network")
	network.Env = g.environ("{}")
	host, err := network.Output()
	if err != nil {
		return nil, fmt.Errorf("gateway network: %w", err)
	}
	addr := strings.TrimSpace(string(host)) + ":0"
	g.model = scriptedmodel.New(scriptedmodel.Options{})
	if err := g.model.Start(context.Background(), addr); err != nil {
		return nil, err
	}
	if g.git, err = scriptedmodel.StartGit(context.Background(), addr, "", nil); err != nil {
		return nil, err
	}
	if err := g.run(); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *gateway) environ(config string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "DOCKER_HOST=" + os.Getenv("DOCKER_HOST"),
		"AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN"),
		"GATEWAY_ADDR=127.0.0.1:0", "DATA_DIR=" + g.dir, "SANDBOX_IMAGE=" + os.Getenv(imageEnv),
		"DEFAULT_CONFIG=" + config, "LOG_LEVEL=debug", "LOG_FORMAT=json", "DRAIN_TIMEOUT=3s",
		"POOL_SIZE=0", // a container more, and seconds of two cores: but for tests of the pool
	}, g.env...)
}

// run starts the process and waits until it serves.
func (g *gateway) run() error {
	if err := g.Start(g.environ(string(g.model.Config())), binary, "serve"); err != nil {
		return err
	}
	g.url = "http://" + g.Addr
	token, err := os.ReadFile(filepath.Join(g.dir, "gateway.token"))
	g.token = strings.TrimSpace(string(token))
	return err
}

func (g *gateway) log() string { return g.Log() }

// stop ends the process with a signal and waits for it.
func (g *gateway) stop(sig syscall.Signal) error {
	if err := g.Stop(sig); err != nil {
		return fmt.Errorf("the gateway: %w\n%s", err, g.log())
	}
	return nil
}

// destroy removes everything that the gateway made, and reports what it could
// not have removed by itself.
func (g *gateway) destroy() error {
	var problems []string
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if g.Ended() {
		if err := g.run(); err != nil {
			problems = append(problems, err.Error())
		}
	}
	for _, id := range g.ids(ctx) {
		if status, body, err := g.do(ctx, http.MethodDelete, "/sandbox/"+id, nil); err != nil || status != http.StatusOK {
			problems = append(problems, fmt.Sprintf("deleting %s: %d %s %v", id, status, body, err))
		}
	}
	if err := g.stop(syscall.SIGTERM); err != nil {
		problems = append(problems, err.Error())
	}
	_ = g.model.Close()
	_ = g.git.Close()
	for _, kind := range []string{"container", "volume"} {
		if left := g.engine(kind); left != "" {
			problems = append(problems, "left behind: "+kind+" "+left)
		}
	}
	if err := processtest.RemoveNetwork(ctx, "agentpod-"+g.installation()); err != nil {
		problems = append(problems, err.Error())
	}
	_ = os.RemoveAll(g.dir)
	if len(problems) > 0 {
		return fmt.Errorf("cleaning up: %s", strings.Join(problems, "; "))
	}
	return nil
}

func (g *gateway) ids(ctx context.Context) []string {
	_, body, err := g.do(ctx, http.MethodGet, "/sandboxes?limit=100", nil)
	if err != nil {
		return nil
	}
	var list struct{ Sandboxes []struct{ SandboxID string } }
	_ = json.Unmarshal(body, &list)
	var ids []string
	for _, s := range list.Sandboxes {
		ids = append(ids, s.SandboxID)
	}
	return ids
}

func (g *gateway) installation() string {
	raw, _ := os.ReadFile(filepath.Join(g.dir, "installation"))
	return strings.TrimSpace(string(raw))
}

// engine lists what the installation has in the engine, by kind: container or
// volume.
func (g *gateway) engine(kind string) string {
	args := []string{kind, "ls", "-q", "--filter", "label=agentpod.installation=" + g.installation()}
	if kind == "container" {
		args = append(args, "-a")
	}
	out, err := docker(args...)
	if err != nil {
		return err.Error()
	}
	return out
}

func (g *gateway) container(id string) string { return "agentpod-" + g.installation() + "-" + id }

func docker(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput() //nolint:gosec // the tests' own arguments
	return strings.TrimSpace(string(out)), err
}

// do sends a request with the token. Body is nil, raw bytes, or sent as JSON.
func (g *gateway) do(ctx context.Context, method, path string, body any) (int, []byte, error) {
	resp, err := g.open(ctx, method, path, body, nil)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	return resp.StatusCode, raw, err
}

func (g *gateway) open(ctx context.Context, method, path string, body any, header http.Header) (*http.Response, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	case io.Reader:
		reader = b
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, g.url+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return client.Do(req)
}

// client is every test's. Turns and streams take as long as they take: each
// call has a deadline in its context.
//
//nolint:gochecknoglobals // shared by all tests
var client = &http.Client{}

type object = map[string]any

// call sends a request, checks the status, and decodes the JSON answer.
func (g *gateway) call(t *testing.T, method, path string, body any, want int) object {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	status, raw, err := g.do(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, raw)
	}
	var out object
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return out
}

func (g *gateway) create(t *testing.T, id string, more object) object {
	t.Helper()
	body := object{"id": id, "userId": "user_1"}
	for k, v := range more {
		body[k] = v
	}
	return g.call(t, http.MethodPost, "/sandbox", body, http.StatusOK)
}

func (g *gateway) delete(t *testing.T, id string) {
	t.Helper()
	g.call(t, http.MethodDelete, "/sandbox/"+id, nil, http.StatusOK)
}

func (g *gateway) message(t *testing.T, id, text string, want int) object {
	t.Helper()
	return g.call(t, http.MethodPost, "/sandbox/"+id+"/message", object{"message": text}, want)
}

// eventually polls until the condition holds: what it waits for happens in
// another process.
func eventually(tb testing.TB, what string, limit time.Duration, condition func() bool) {
	tb.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("not within %s: %s", limit, what)
		}
	}
}
