// Package process owns every process below sandboxd: it starts children, is the
// only one that reaps, and ends them all. Nothing else in sandboxd may wait for
// a child, because two reapers steal each other's exit statuses.
package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrEnding is returned by Start while EndAll runs.
var ErrEnding = errors.New("the sandbox's processes are being ended")

// oomScoreAdj makes the kernel prefer every child to sandboxd when memory ends.
const oomScoreAdj = "500"

// Table holds the children of this process. All methods are safe for
// concurrent use. Somebody has to call Reap whenever SIGCHLD arrives.
type Table struct {
	log *slog.Logger

	mu       sync.Mutex
	children map[int]*Process
	ending   bool
}

// NewTable returns an empty table.
func NewTable(log *slog.Logger) *Table {
	return &Table{log: log, children: make(map[int]*Process)}
}

// Command is what to start. Args[0] is looked up in the PATH of Env unless it
// has a slash. The files become the child's stdout and stderr; its stdin is
// /dev/null. The caller closes its own copies after Start.
type Command struct {
	Args   []string
	Env    []string
	Dir    string
	Stdout *os.File
	Stderr *os.File
	// EndGroup kills what is left of the child's process group when it exits.
	EndGroup bool
}

// Process is a child in a session and process group of its own.
type Process struct {
	PID int

	table    *Table
	endGroup bool
	done     chan struct{}
	status   unix.WaitStatus // valid once done is closed
	exited   bool            // guarded by table.mu
}

// Start starts a child. It fails with the operating system's error (such as
// fs.ErrNotExist) when the program cannot be run, and with ErrEnding.
func (t *Table) Start(cmd Command) (*Process, error) {
	if len(cmd.Args) == 0 || cmd.Args[0] == "" {
		return nil, errors.New("no program given")
	}
	path, err := lookPath(cmd.Args[0], cmd.Env)
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open stdin: %w", err)
	}
	defer null.Close()

	// The lock spans fork and registration, so that Reap cannot see the child
	// before it is known, however soon it exits.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending {
		return nil, ErrEnding
	}
	pid, err := syscall.ForkExec(path, cmd.Args, &syscall.ProcAttr{ //nolint:gosec // running what the caller names is the point
		Dir:   cmd.Dir,
		Env:   cmd.Env,
		Files: []uintptr{null.Fd(), cmd.Stdout.Fd(), cmd.Stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Args[0]), err)
	}
	p := &Process{PID: pid, table: t, endGroup: cmd.EndGroup, done: make(chan struct{})}
	t.children[pid] = p
	score := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	if err := os.WriteFile(score, []byte(oomScoreAdj), 0); err != nil {
		t.log.Debug("raise a child's oom score", "pid", pid, "error", err)
	}
	return p, nil
}

// Done is closed when the process has exited and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the exit status as a shell gives it: 128+n for a signal n.
// It may be called once Done is closed.
func (p *Process) ExitCode() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// ExitText is the exit status in words, such as "exit status 1" or "signal:
// killed". It may be called once Done is closed.
func (p *Process) ExitText() string {
	if p.status.Signaled() {
		return "signal: " + p.status.Signal().String()
	}
	return "exit status " + strconv.Itoa(p.status.ExitStatus())
}

// Signal sends sig to the whole process group while its leader lives; after
// that the number could belong to somebody else, and nothing is sent.
func (p *Process) Signal(sig syscall.Signal) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.exited {
		return
	}
	if err := unix.Kill(-p.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		p.table.log.Warn("signal a process group", "pid", p.PID, "signal", sig.String(), "error", err)
	}
}

// Reap collects every child that has exited, orphans included, and hands the
// statuses of those that were started here to who waits for them.
func (t *Table) Reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		pid, ok := nextExited()
		if !ok {
			return
		}
		p := t.children[pid]
		if p != nil && p.endGroup {
			// Before the leader is reaped its number cannot be reused, so this
			// reaches its own group and no other.
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got != pid {
			t.log.Warn("reap a child", "pid", pid, "error", err)
			return
		}
		if p == nil {
			continue
		}
		delete(t.children, pid)
		p.status, p.exited = status, true
		close(p.done)
	}
}

// siginfoPIDOffset is where si_pid lies in siginfo_t on 64-bit Linux.
const siginfoPIDOffset = 16

// nextExited returns a child that has exited and leaves it a zombie.
func nextExited() (pid int, ok bool) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || info.Signo == 0 {
			return 0, false // ECHILD, or nobody has exited
		}
		raw := (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info)) //nolint:gosec // x/sys does not export si_pid
		return int(int32(binary.NativeEndian.Uint32(raw[siginfoPIDOffset:]))), true
	}
}

// lookPath finds a program in the PATH of env: the child's, not sandboxd's.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one wins, as in the child
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue // a relative PATH element runs what lies in the workspace
		}
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s: %w in $PATH", name, os.ErrNotExist)
}
