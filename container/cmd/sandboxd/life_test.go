package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestOpenCodeThatDiesIsRestarted(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	first, err := b.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first.OpenCode.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("it is ready again", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && s.OpenCode.State == guest.StateReady && s.OpenCode.PID != first.OpenCode.PID
	})
	s, err := b.Status(t.Context())
	if err != nil || s.OpenCode.Restarts != 1 || s.OpenCode.LastExit != "signal: killed" {
		t.Errorf("status %+v, %v", s.OpenCode, err)
	}
	wantWritten(t, b.mustPut(config("m")))
}

func TestABootThatFailsQuotesOpenCode(t *testing.T) {
	b := newBox(t)
	b.tell(fakeCrash, "")
	_, err := b.Start(t.Context(), guest.StartRequest{Password: "pw"})
	if !sandbox.HasCode(err, sandbox.CodeBootFailed) || !strings.Contains(err.Error(), "cannot go on") || strings.ContainsRune(err.Error(), 0x1b) {
		t.Errorf("got %q", err)
	}
	s, err := b.Status(t.Context())
	if err != nil || s.OpenCode.State != guest.StateStopped || s.OpenCode.LastExit != "exit status 7" {
		t.Errorf("status %+v, %v", s.OpenCode, err)
	}
	if err := os.Remove(filepath.Join(b.fake, fakeCrash)); err != nil {
		t.Fatal(err)
	}
	b.mustStart(guest.Config{})
}

func TestABootHasADeadline(t *testing.T) {
	b := newBox(t)
	began := time.Now()
	_, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", TimeoutMs: 300})
	if !sandbox.HasCode(err, sandbox.CodeBootFailed) || time.Since(began) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func TestAStopEndsEverythingAndOpenCodeStaysDown(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	events := make(chan guest.ExecEvent, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Exec(t.Context(), guest.ExecRequest{Command: []string{"sh", "-c", `trap "" TERM; setsid sleep 60 & echo on; while :; do sleep 1; done`}},
			func(e guest.ExecEvent) error { events <- e; return nil })
	}()
	if e := <-events; string(e.Data) != "on\n" {
		t.Fatalf("event %+v", e)
	}
	status, err := b.Stop(t.Context(), guest.StopRequest{GraceMs: 200})
	if err != nil || status.OpenCode.State != guest.StateStopped || status.Busy {
		t.Errorf("status %+v, %v", status, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if e := <-events; e.Type != "exit" || e.ExitCode != 137 {
		t.Errorf("event %+v", e)
	}
	if b.asked("START") != 1 {
		t.Errorf("%d starts", b.asked("START"))
	}
	_, err = b.PutConfig(t.Context(), config("n"))
	if !sandbox.HasCode(err, sandbox.CodeConflict) {
		t.Errorf("a config without OpenCode: %v", err)
	}
	if _, err := b.Stop(t.Context(), guest.StopRequest{}); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	b.mustStart(config("m"))
}

func TestFilesTravelThroughTheClient(t *testing.T) {
	b := newBox(t)
	ctx := t.Context()
	if err := b.WriteFile(ctx, "workspace/d/f.sh", 0o755, strings.NewReader("echo hi"), 7); err != nil {
		t.Fatal(err)
	}
	f, err := b.ReadFile(ctx, "workspace/d/f.sh")
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(f.Body)
	_ = f.Close()
	if err != nil || string(content) != "echo hi" || f.Size != 7 || f.Type != "file" {
		t.Errorf("%q, %v, %+v", content, err, f)
	}
	d, err := b.ReadFile(ctx, "workspace/d")
	if err != nil || d.Listing == nil || len(d.Listing.Entries) != 1 || d.Listing.Entries[0].Mode != 0o755 {
		t.Errorf("%+v, %v", d, err)
	}
	if err := b.DeleteFile(ctx, "workspace/d"); err != nil {
		t.Error(err)
	}
	if _, err := b.ReadFile(ctx, "workspace/d/f.sh"); !sandbox.HasCode(err, sandbox.CodeFileNotFound) {
		t.Errorf("got %v", err)
	}
	if err := b.DeleteFile(ctx, "workspace"); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyGetsInWithoutTheToken(t *testing.T) {
	b := newBox(t)
	stranger := guest.NewClient(&http.Transport{DisableKeepAlives: true}, "http://"+b.addr, "another token")
	if _, err := stranger.Status(t.Context()); !sandbox.HasCode(err, sandbox.CodeGuestFailed) {
		t.Errorf("got %v", err)
	}
}

func TestWithoutAValidTokenHashSandboxdDoesNotStart(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, hash := range map[string]string{"none": "", "short": "abcd", "no hex": strings.Repeat("z", 64)} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, self)
			cmd.Env = append(os.Environ(), partEnv+"=sandboxd", guest.TokenHashEnv+"="+hash, "SANDBOXD_ADDR=127.0.0.1:0")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), guest.TokenHashEnv) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
