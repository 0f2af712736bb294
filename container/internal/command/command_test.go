package command_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/container/internal/command"
	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func runner(t *testing.T) (*command.Runner, string) {
	t.Helper()
	table := process.NewTable(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := table.HandleSignals(ctx, func() {})
	t.Cleanup(func() { cancel(); <-done })
	workspace := t.TempDir()
	return command.NewRunner(table, []string{"PATH=" + os.Getenv("PATH"), "FIXED=old"}, workspace), workspace
}

type result struct {
	stdout, stderr string
	exit           guest.ExecEvent
	events         int
}

func run(ctx context.Context, t *testing.T, r *command.Runner, req guest.ExecRequest) result {
	t.Helper()
	var res result
	r.Run(ctx, req, func(e guest.ExecEvent) error {
		if res.exit.Type != "" {
			t.Error("an event after the exit event")
		}
		res.events++
		switch e.Type {
		case "stdout":
			res.stdout += string(e.Data)
		case "stderr":
			res.stderr += string(e.Data)
		case "exit":
			res.exit = e
		}
		return nil
	})
	if res.exit.Type != "exit" {
		t.Error("there was no exit event")
	}
	return res
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestCommands(t *testing.T) {
	r, workspace := runner(t)
	if err := os.Mkdir(workspace+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		req            guest.ExecRequest
		stdout, stderr string
		code           int
	}{
		"streams are apart":            {guest.ExecRequest{Command: sh("echo out; echo err >&2; exit 3")}, "out\n", "err\n", 3},
		"a signal is 128 and n":        {guest.ExecRequest{Command: sh("kill -TERM $$")}, "", "", 143},
		"no shell splits arguments":    {guest.ExecRequest{Command: []string{"printf", "%s|", "a b", "$HOME"}}, "a b|$HOME|", "", 0},
		"the workspace is the default": {guest.ExecRequest{Command: []string{"pwd"}}, workspace + "\n", "", 0},
		"a folder is relative to it":   {guest.ExecRequest{Command: []string{"pwd"}, WorkingDir: "sub"}, workspace + "/sub\n", "", 0},
		"a folder may be absolute":     {guest.ExecRequest{Command: []string{"pwd"}, WorkingDir: "/"}, "/\n", "", 0},
		"env is added and replaced": {
			guest.ExecRequest{Command: sh(`echo "$FIXED $ADDED"`), Env: map[string]string{"FIXED": "new", "ADDED": "more"}},
			"new more\n", "", 0,
		},
		"stdin is empty": {guest.ExecRequest{Command: []string{"cat"}}, "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t.Context(), t, r, tc.req)
			if got.stdout != tc.stdout || got.stderr != tc.stderr || got.exit.ExitCode != tc.code || got.exit.TimedOut || got.exit.Truncated {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestWhatCannotStartIs127(t *testing.T) {
	r, _ := runner(t)
	for name, req := range map[string]guest.ExecRequest{
		"no such program": {Command: []string{"no-such-program"}},
		"no such folder":  {Command: []string{"true"}, WorkingDir: "nope"},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t.Context(), t, r, req)
			if got.exit.ExitCode != 127 || got.exit.Error == "" {
				t.Errorf("got %+v", got.exit)
			}
		})
	}
}

func TestADeadlineKillsTheWholeGroup(t *testing.T) {
	r, _ := runner(t)
	began := time.Now()
	got := run(t.Context(), t, r, guest.ExecRequest{Command: sh(`trap "" TERM; echo on; sleep 60 | sleep 60`), TimeoutMs: 300})
	if got.exit.ExitCode != 137 || !got.exit.TimedOut || got.stdout != "on\n" {
		t.Errorf("got %+v", got)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestOutputIsCappedAndTheCommandGoesOn(t *testing.T) {
	r, _ := runner(t)
	got := run(t.Context(), t, r, guest.ExecRequest{
		Command: sh("head -c 3000000 /dev/zero; echo small >&2; exit 4"), MaxOutput: 1000,
	})
	if len(got.stdout) != 1000 || got.stderr != "small\n" || !got.exit.Truncated || got.exit.ExitCode != 4 {
		t.Errorf("%d bytes, %q, %+v", len(got.stdout), got.stderr, got.exit)
	}
}

func TestGrandchildrenThatHoldThePipesDoNotHoldTheAnswer(t *testing.T) {
	r, _ := runner(t)
	began := time.Now()
	got := run(t.Context(), t, r, guest.ExecRequest{Command: sh("echo done; sleep 20 & exit 5")})
	if got.stdout != "done\n" || got.exit.ExitCode != 5 {
		t.Errorf("got %+v", got)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestACallerThatLeavesEndsTheCommand(t *testing.T) {
	for name, leave := range map[string]func(cancel func()) error{
		"its context ends":        func(cancel func()) error { cancel(); return nil },
		"it takes no more output": func(func()) error { return errors.New("broken pipe") },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := runner(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var exit guest.ExecEvent
			r.Run(ctx, guest.ExecRequest{Command: sh("echo on; sleep 60")}, func(e guest.ExecEvent) error {
				if e.Type == "exit" {
					exit = e
					return nil
				}
				if got := r.Running(); len(got) != 1 || got[0] != "command: sh" {
					t.Errorf("running %q", got)
				}
				return leave(cancel)
			})
			if exit.ExitCode != 137 || exit.TimedOut || len(r.Running()) != 0 {
				t.Errorf("exit %+v, running %v", exit, r.Running())
			}
		})
	}
}

func TestRequestsThatCannotBeRunAreRefused(t *testing.T) {
	for name, req := range map[string]guest.ExecRequest{
		"no command":           {},
		"an empty program":     {Command: []string{""}},
		"a zero byte":          {Command: []string{"a\x00b"}},
		"an env name with =":   {Command: []string{"a"}, Env: map[string]string{"A=B": "c"}},
		"a negative deadline":  {Command: []string{"a"}, TimeoutMs: -1},
		"a negative max":       {Command: []string{"a"}, MaxOutput: -1},
		"a zero byte in a dir": {Command: []string{"a"}, WorkingDir: strings.Repeat("\x00", 2)},
	} {
		t.Run(name, func(t *testing.T) {
			if err := command.Check(req); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestACallerThatTakesItsTimeGetsTheLastOutputToo(t *testing.T) {
	r, _ := runner(t)
	var got int
	slow := time.NewTimer(600 * time.Millisecond)
	defer slow.Stop()
	first := true
	r.Run(t.Context(), guest.ExecRequest{Command: sh("head -c 90000 /dev/zero")}, func(e guest.ExecEvent) error {
		got += len(e.Data)
		if first {
			first = false
			<-slow.C // the command has long exited, and its pipe is full
		}
		return nil
	})
	if got != 90000 {
		t.Errorf("got %d bytes", got)
	}
}
