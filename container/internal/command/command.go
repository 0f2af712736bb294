// Package command runs commands in the sandbox and streams their output.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	maxTimeout = 24 * time.Hour
	chunk      = 32 << 10
	pipeSize   = 64 << 10
	// drain is how long output is awaited once the command has exited;
	// what it left behind may hold the pipes for ever.
	drain = 200 * time.Millisecond
	// killWait bounds the wait for a killed command to be gone.
	killWait = 5 * time.Second
	// cannotStart is a shell's exit code for a command that is not there.
	cannotStart = 127
)

// Runner runs commands. It is safe for concurrent use.
type Runner struct {
	processes *process.Table
	env       []string
	workspace string

	mu      sync.Mutex
	next    int
	running map[int]string
}

// NewRunner returns a Runner whose commands get env and, unless a request says
// otherwise, workspace as their working directory.
func NewRunner(processes *process.Table, env []string, workspace string) *Runner {
	return &Runner{processes: processes, env: env, workspace: workspace, running: make(map[int]string)}
}

// Running names what runs, as reasons of being busy: "command: NAME".
func (r *Runner) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	reasons := make([]string, 0, len(r.running))
	for _, name := range r.running {
		reasons = append(reasons, "command: "+name)
	}
	slices.Sort(reasons)
	return reasons
}

// Check refuses a request that cannot be run, with invalid_request.
func Check(req guest.ExecRequest) error {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the command is empty")
	}
	for _, text := range append([]string{req.WorkingDir}, req.Command...) {
		if strings.ContainsRune(text, 0) {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "the command has a zero byte")
		}
	}
	for name, value := range req.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "the environment variable %q is not usable", name)
		}
	}
	if req.TimeoutMs < 0 || req.MaxOutput < 0 {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "timeoutMs and maxOutput cannot be negative")
	}
	return nil
}

// Run runs a command that passed Check and calls emit, never concurrently, for
// each piece of output and at last for the exit event. The command is killed,
// its process group too, at its deadline or when ctx ends or emit fails.
func (r *Runner) Run(ctx context.Context, req guest.ExecRequest, emit func(guest.ExecEvent) error) {
	timeout := guest.DefaultExecTimeout
	if req.TimeoutMs > 0 {
		timeout = time.Duration(min(req.TimeoutMs, maxTimeout.Milliseconds())) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer r.enter(filepath.Base(req.Command[0]))()

	limit := req.MaxOutput
	if limit == 0 {
		limit = guest.DefaultMaxOutput
	}
	stream := &stream{emit: emit, limit: limit, abandon: cancel}
	exit, err := r.run(ctx, req, stream)
	if err != nil {
		exit = guest.ExecEvent{ExitCode: cannotStart, Error: printable.Line(err.Error(), chunk)}
	}
	exit.Type = guest.EventExit
	exit.Truncated = stream.truncated
	_ = emit(exit) // the caller has left, and there is nobody else to tell
}

func (r *Runner) enter(name string) (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.next
	r.next++
	r.running[id] = name
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, id)
	}
}

func (r *Runner) run(ctx context.Context, req guest.ExecRequest, out *stream) (guest.ExecEvent, error) {
	proc, pipes, err := r.start(req)
	if err != nil {
		return guest.ExecEvent{}, err
	}
	var readers sync.WaitGroup
	for name, pipe := range pipes {
		readers.Go(func() {
			defer pipe.Close()
			out.copy(name, pipe)
		})
	}
	timedOut := false
	select {
	case <-proc.Done():
	case <-ctx.Done():
		timedOut = errors.Is(ctx.Err(), context.DeadlineExceeded)
		proc.Signal(syscall.SIGKILL)
		select {
		case <-proc.Done():
		case <-time.After(killWait):
		}
	}
	for _, pipe := range pipes {
		_ = pipe.SetReadDeadline(time.Now().Add(drain)) // it may be closed already
	}
	readers.Wait()
	select {
	case <-proc.Done():
		return guest.ExecEvent{ExitCode: proc.ExitCode(), TimedOut: timedOut}, nil
	default:
		return guest.ExecEvent{ExitCode: 128 + int(syscall.SIGKILL), TimedOut: timedOut}, nil
	}
}

// start starts the command; pipes are the ends to read from, by stream name.
func (r *Runner) start(req guest.ExecRequest) (proc *process.Process, pipes map[string]*os.File, err error) {
	pipes = make(map[string]*os.File, 2)
	ends := make(map[string]*os.File, 2)
	defer func() {
		for _, end := range ends {
			_ = end.Close()
		}
		if err != nil {
			for _, pipe := range pipes {
				_ = pipe.Close()
			}
		}
	}()
	for _, name := range []string{guest.EventStdout, guest.EventStderr} {
		if pipes[name], ends[name], err = os.Pipe(); err != nil {
			delete(pipes, name)
			delete(ends, name)
			return nil, nil, fmt.Errorf("make a pipe: %w", err)
		}
	}
	dir := req.WorkingDir
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(r.workspace, dir)
	}
	// Said here, because the kernel's own "no such file" would seem to be about
	// the program.
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, nil, fmt.Errorf("the working directory %s is not there", dir)
	}
	env := slices.Clone(r.env)
	for name, value := range req.Env {
		prefix := name + "="
		env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, prefix) })
		env = append(env, prefix+value)
	}
	proc, err = r.processes.Start(process.Command{
		Args: req.Command, Env: env, Dir: dir, Stdout: ends[guest.EventStdout], Stderr: ends[guest.EventStderr],
	})
	if err != nil {
		return nil, nil, err
	}
	return proc, pipes, nil
}

// stream turns output into events.
type stream struct {
	limit   int64
	abandon func()

	mu        sync.Mutex // serializes emit
	emit      func(guest.ExecEvent) error
	truncated bool
}

// copy reads a pipe to its end, or until its deadline has passed and what was
// in it by then is read, and passes on the first limit bytes.
func (s *stream) copy(name string, pipe *os.File) {
	buf := make([]byte, chunk)
	left := s.limit
	rest := pipeSize // how much to read beyond the deadline
	for {
		n, err := pipe.Read(buf)
		keep := min(int64(n), left)
		left -= keep
		s.pass(guest.ExecEvent{Type: name, Data: buf[:keep]}, int64(n) > keep)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && rest > 0:
			// A caller that takes its time must not cost it the last output.
			n, err = unixRead(pipe, buf[:min(rest, len(buf))])
			if n <= 0 || err != nil {
				return
			}
			rest -= n
			keep := min(int64(n), left)
			left -= keep
			s.pass(guest.ExecEvent{Type: name, Data: buf[:keep]}, int64(n) > keep)
		case err != nil:
			return
		}
	}
}

// unixRead reads what is there, whatever deadline the file has.
func unixRead(pipe *os.File, buf []byte) (n int, err error) {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("reach the pipe: %w", err)
	}
	// Control, unlike Read, is not bound by the deadline.
	if controlErr := conn.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), buf) }); controlErr != nil {
		return 0, fmt.Errorf("reach the pipe: %w", controlErr)
	}
	return n, err
}

func (s *stream) pass(event guest.ExecEvent, truncated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.truncated = s.truncated || truncated
	if len(event.Data) == 0 {
		return
	}
	if err := s.emit(event); err != nil {
		s.abandon()
	}
}
