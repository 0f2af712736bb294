package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// screen is what a terminal was sent so far.
type screen struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(p)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.all.String(), text)
}

func TestOpenCodesOwnTerminalAttachesOnThePath(t *testing.T) {
	g := shared(t)
	g.create(t, "attach", nil)
	defer g.delete(t, "attach")
	session, _ := g.message(t, "attach", "hello-before", 200)["sessionId"].(string)
	name := "agentpod-attach-" + strings.ToLower(g.installation())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var seen screen
	attach := exec.CommandContext(ctx, "docker", "run", "--rm", "-t", "--network", "host", "--name", name, "--entrypoint", "opencode", //nolint:gosec // the test's own
		"-e", "OPENCODE_SERVER_PASSWORD="+g.token, os.Getenv(imageEnv), "attach", g.url+"/sandbox/attach/opencode", "--session", session)
	attach.Stdout, attach.Stderr = &seen, &seen
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = exec.CommandContext(context.WithoutCancel(ctx), "docker", "kill", name).Run() //nolint:gosec // it has no end of its own
		_ = attach.Wait()
		if t.Failed() {
			t.Logf("the terminal was sent %q", seen.all.String())
		}
	}()
	eventually(t, "the terminal shows what was said before", time.Minute, func() bool { return seen.shows("hello-before") })
	g.call(t, "POST", "/sandbox/attach/message", object{"message": "hello-meanwhile", "sessionId": session}, 200)
	eventually(t, "the terminal shows what is said meanwhile", time.Minute, func() bool { return seen.shows("hello-meanwhile") })
}
