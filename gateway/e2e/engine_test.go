package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// insideEnv marks the run of this test binary in a network namespace of its
// own, with an engine of its own in it: one that may be stopped.
const insideEnv = "AGENTPOD_E2E_INSIDE"

func TestAnEngineThatStopsAndStartsTakesNothingWithIt(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		inside := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--propagation", "private", "--", //nolint:gosec // ourselves
			"sh", "-c", `ip link set lo up && exec "$@"`, "sh", os.Args[0], "-test.v", "-test.run", "^"+t.Name()+"$", "-test.timeout", "5m")
		inside.Env = append(os.Environ(), insideEnv+"="+binary)
		out, err := inside.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	engine := privateEngine(t)
	g := start(t)
	g.create(t, "survivor", nil)
	g.call(t, http.MethodPut, "/sandbox/survivor/files/workspace/kept.txt", []byte("kept"), http.StatusOK)
	session := g.message(t, "survivor", "before", http.StatusOK)["sessionId"]

	engine.stop(t)
	if got := g.call(t, http.MethodPost, "/sandbox", object{"id": "other", "userId": "u"}, http.StatusServiceUnavailable); got["code"] != "engine_unavailable" {
		t.Errorf("create: %v", got)
	}
	g.call(t, http.MethodGet, "/sandbox/survivor", nil, http.StatusOK)
	status, raw, err := g.do(t.Context(), http.MethodGet, "/sandbox/survivor/opencode/session", nil)
	if err != nil || status < 500 {
		t.Errorf("proxy: %d %s %v", status, raw, err)
	}
	engine.start(t)
	eventually(t, "the sandbox answers again", time.Minute, func() bool {
		status, _, err := g.do(t.Context(), http.MethodPost, "/sandbox/survivor/wake", nil)
		return err == nil && status == http.StatusOK
	})
	got := g.call(t, http.MethodPost, "/sandbox/survivor/message", object{"message": "after", "sessionId": session}, http.StatusOK)
	if got["response"] != "echo: after" {
		t.Errorf("message: %v", got)
	}
	if status, body, err := g.do(t.Context(), http.MethodGet, "/sandbox/survivor/files/workspace/kept.txt", nil); err != nil || status != http.StatusOK || string(body) != "kept" {
		t.Errorf("the file: %d %s %v", status, body, err)
	}
	g.delete(t, "survivor")
	if left := g.engine("container") + g.engine("volume"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// daemon is a Docker engine of the test's own.
type daemon struct {
	dir string
	cmd *exec.Cmd
}

// privateEngine starts an engine, gives it the sandbox image, and makes it the
// one that this process and its gateways use.
func privateEngine(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "e-") //nolint:usetesting // a socket's path has room for 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: dir}
	d.start(t)
	t.Cleanup(func() {
		d.stop(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	socket := "unix://" + filepath.Join(d.dir, "docker.sock")
	load := exec.CommandContext(t.Context(), "sh", "-c", `docker save "$1" | docker -H "$2" load -q`, "sh", os.Getenv(imageEnv), socket) //nolint:gosec // our own
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("loading the image: %v\n%s", err, out)
	}
	t.Setenv("DOCKER_HOST", socket)
	return d
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	log, err := os.Create(filepath.Join(d.dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command("dockerd", "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"), //nolint:gosec,noctx // ended by stop
		"--pidfile", filepath.Join(d.dir, "pid"), "--host", "unix://"+filepath.Join(d.dir, "docker.sock"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the engine answers", time.Minute, func() bool {
		_, err := docker("-H", "unix://"+filepath.Join(d.dir, "docker.sock"), "version")
		return err == nil
	})
}

func (d *daemon) stop(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		_ = d.cmd.Process.Kill()
		t.Error("the engine did not stop")
	}
}
