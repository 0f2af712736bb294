package process_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/process"
)

// childEnv makes the test binary play a part instead of running tests.
const childEnv = "PROCESS_TEST_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "signals":
		playSignalTaker()
	default:
		goleak.VerifyTestMain(m)
	}
}

// playSignalTaker hardens itself, takes all signals and lives until its stdin ends.
func playSignalTaker() {
	if err := process.Harden(); err != nil {
		os.Exit(3)
	}
	table := process.NewTable(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := table.HandleSignals(ctx, func() {})
	_, _ = os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	<-done
	os.Exit(0)
}

// table returns a table that reaps for the length of a test.
func table(t *testing.T) *process.Table {
	t.Helper()
	tab := process.NewTable(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := tab.HandleSignals(ctx, func() {})
	t.Cleanup(func() { cancel(); <-done })
	return tab
}

func start(t *testing.T, tab *process.Table, args ...string) *process.Process {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := tab.Start(process.Command{Args: args, Env: os.Environ(), Dir: "/", Stdout: null, Stderr: null, EndGroup: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func await(t *testing.T, p *process.Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the process was not reaped")
	}
}

func TestExitStatusesReachWhoStartedTheChild(t *testing.T) {
	tab := table(t)
	for name, tc := range map[string]struct {
		script string
		code   int
		text   string
	}{
		"success":               {"exit 0", 0, "exit status 0"},
		"failure":               {"exit 7", 7, "exit status 7"},
		"a signal is 128 and n": {"kill -9 $$", 137, "signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, tab, "sh", "-c", tc.script)
			await(t, p)
			if p.ExitCode() != tc.code || p.ExitText() != tc.text {
				t.Errorf("got %d, %q; want %d, %q", p.ExitCode(), p.ExitText(), tc.code, tc.text)
			}
		})
	}
}

func TestNoChildThatExitsAtOnceIsLost(t *testing.T) {
	tab := table(t)
	children := make([]*process.Process, 0, 100)
	for range 100 {
		children = append(children, start(t, tab, "true"))
	}
	for _, p := range children {
		await(t, p)
		if p.ExitCode() != 0 {
			t.Fatalf("exit code %d", p.ExitCode())
		}
	}
}

func TestAChildLeadsASessionOfItsOwnAndIsPreferredByTheOOMKiller(t *testing.T) {
	tab := table(t)
	p := start(t, tab, "sleep", "60")
	sid, err := unix.Getsid(p.PID)
	if err != nil || sid != p.PID {
		t.Errorf("session %d, %v; want %d", sid, err, p.PID)
	}
	score, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/oom_score_adj")
	if err != nil || strings.TrimSpace(string(score)) != "500" {
		t.Errorf("oom_score_adj %q, %v", score, err)
	}
	p.Signal(syscall.SIGKILL)
	await(t, p)
	p.Signal(syscall.SIGKILL) // harmless once it is gone
}

func TestTheRestOfTheGroupEndsWithItsLeader(t *testing.T) {
	tab := table(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := tab.Start(process.Command{
		Args: []string{"sh", "-c", "sleep 60 & exit 0"}, Env: os.Environ(), Dir: "/", Stdout: w, Stderr: w, EndGroup: true,
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	await(t, p)
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the sleep still holds the pipe: %v", err)
	}
}

func TestWhatCannotBeStartedSaysWhy(t *testing.T) {
	tab := table(t)
	for name, args := range map[string][]string{
		"not in PATH": {"no-such-program-here"},
		"no file":     {"/no/such/file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tab.Start(process.Command{Args: args, Env: os.Environ(), Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr})
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEndAllEndsWhatIgnoresSIGTERMAndWhatWasOrphaned(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	tab := table(t)
	stubborn := start(t, tab, "sh", "-c", `trap "" TERM; while :; do sleep 1; done`)
	parent := start(t, tab, "sh", "-c", "setsid sleep 60 & exit 0") // its child goes astray
	await(t, parent)
	began := time.Now()
	if err := tab.EndAll(context.Background(), 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	await(t, stubborn)
	if stubborn.ExitCode() != 137 {
		t.Errorf("exit code %d, want SIGKILL", stubborn.ExitCode())
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if process.Parents()[os.Getpid()] {
		t.Error("a child is left")
	}
}

func TestThreadsAreReserved(t *testing.T) {
	const most = 40
	process.ReserveThreads(most)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil || len(threads) < most {
		t.Errorf("%d threads, %v", len(threads), err)
	}
}

func TestAHardenedProcessSurvivesEverySignalThatItCanSurvive(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self) //nolint:gosec // this test itself
	cmd.Env = append(os.Environ(), childEnv+"=signals")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if sig == syscall.SIGKILL || sig == syscall.SIGSTOP || (sig >= 32 && sig <= 34) {
			continue // the kernel keeps these from PID 1, which this is not
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatalf("signal %d: %v", sig, err)
		}
	}
	if _, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/environ"); os.Getuid() != 0 && err == nil {
		t.Error("its environment is readable")
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
