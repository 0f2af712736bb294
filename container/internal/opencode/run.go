package opencode

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/guest"
)

// supervise keeps OpenCode running until ctx ends.
func (s *Supervisor) supervise(ctx context.Context, r *run) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstBackoff, longestBackoff
	wait.Reset()
	everReady := false
	for attempt := 1; ; attempt++ {
		started := time.Now()
		ready, exit := s.once(ctx, r)
		if ctx.Err() != nil {
			return
		}
		everReady = everReady || ready
		s.noteExit(r, exit)
		if !everReady && attempt >= bootAttempts {
			close(r.failed)
			<-ctx.Done()
			return
		}
		if ready && time.Since(started) >= stableAfter {
			wait.Reset()
		}
		delay := wait.NextBackOff()
		s.set.Log.WarnContext(ctx, "OpenCode ended by itself", "exit", exit, "restartIn", delay.String())
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// once runs OpenCode once and returns whether it became ready and how it ended.
func (s *Supervisor) once(ctx context.Context, r *run) (ready bool, exit string) {
	proc, drained, err := s.spawn(r)
	if err != nil {
		r.out.line(err.Error())
		return false, err.Error()
	}
	s.noteSpawn(r, proc.PID)

	probeCtx, stopProbing := context.WithTimeout(ctx, r.boot)
	probed := make(chan bool, 1)
	go func() {
		version, ok := s.probe(probeCtx, r, proc)
		if ok {
			s.becomeReady(r, proc.PID, version)
		}
		probed <- ok
	}()
	select {
	case <-proc.Done():
	case <-ctx.Done():
	case ready = <-probed:
		probed <- ready
		if !ready && ctx.Err() == nil {
			s.set.Log.WarnContext(ctx, "OpenCode did not become ready", "after", r.boot.String())
			break
		}
		select {
		case <-proc.Done():
		case <-ctx.Done():
		}
	}
	stopProbing()
	ready = <-probed
	if !terminate(proc) {
		s.set.Log.ErrorContext(ctx, "OpenCode outlives SIGKILL", "pid", proc.PID)
		return ready, "it cannot be killed"
	}
	<-drained
	return ready, proc.ExitText()
}

// terminate ends a process group, first with SIGTERM and then with SIGKILL, and
// reports whether its leader is gone.
func terminate(proc *process.Process) bool {
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGTERM, termGrace}, {syscall.SIGKILL, killGrace}} {
		select {
		case <-proc.Done():
			return true
		default:
		}
		proc.Signal(step.sig)
		select {
		case <-proc.Done():
			return true
		case <-time.After(step.wait):
		}
	}
	return false
}

// spawn starts the process; drained is closed when its output has been read.
func (s *Supervisor) spawn(r *run) (proc *process.Process, drained <-chan struct{}, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer write.Close()
	environment, err := s.environment(r)
	if err != nil {
		_ = read.Close()
		return nil, nil, err
	}
	proc, err = s.set.Processes.Start(process.Command{
		Args:   []string{s.set.Binary, "serve", "--hostname", s.set.Hostname, "--port", strconv.Itoa(s.set.Port)},
		Env:    environment,
		Dir:    s.workingDir(r.directory),
		Stdout: write, Stderr: write,
		EndGroup: true,
	})
	if err != nil {
		_ = read.Close()
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.out.copyLines(read)
	}()
	go func() {
		<-proc.Done()
		_ = read.SetReadDeadline(time.Now().Add(drain)) // the pipe may be closed already
	}()
	return proc, done, nil
}

// environment is what OpenCode gets: quiet, and with its password and config.
func (s *Supervisor) environment(r *run) ([]string, error) {
	environment := append(append([]string(nil), s.set.Env...),
		"OPENCODE_SERVER_PASSWORD="+r.password,
		"OPENCODE_CONFIG_DIR="+s.set.ConfigDir,
		"OPENCODE_DISABLE_MODELS_FETCH=1",
		"OPENCODE_DISABLE_AUTOUPDATE=1",
		"OPENCODE_DISABLE_LSP_DOWNLOAD=1",
		"OPENCODE_DISABLE_DEFAULT_PLUGINS=1",
		// A repository's config could have conversations uploaded, and say where to.
		"OPENCODE_DISABLE_SHARE=1",
	)
	if r.noProject {
		environment = append(environment, "OPENCODE_DISABLE_PROJECT_CONFIG=1")
	}
	if !r.bare {
		return environment, nil
	}
	// OPENCODE_PURE alone still has OpenCode 1.18.33 read the home's configs, and
	// import its plugins later. Both it looks for below these two.
	empty := s.set.ConfigDir + "-empty"
	if err := os.MkdirAll(empty, 0o750); err != nil {
		return nil, fmt.Errorf("make an empty config folder: %w", err)
	}
	return append(environment, "OPENCODE_PURE=1", "XDG_CONFIG_HOME="+empty, "OPENCODE_TEST_HOME="+empty), nil
}

// probe asks until OpenCode is ready, its process ends, or ctx does.
func (s *Supervisor) probe(ctx context.Context, r *run, proc *process.Process) (version string, ok bool) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		if version, err := r.api.health(ctx); err == nil {
			select {
			case <-proc.Done():
				return "", false // somebody else answers on the port
			default:
				return version, true
			}
		}
		select {
		case <-proc.Done():
			return "", false
		case <-ctx.Done():
			return "", false
		case <-tick.C:
		}
	}
}

func (s *Supervisor) noteSpawn(r *run, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Bare = r.bare
	s.status.State, s.status.PID, s.status.Since = guest.StateStarting, pid, time.Now()
	s.stale = false // a new process reads everything anew
}

func (s *Supervisor) becomeReady(r *run, pid int, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.PID, s.status.Since = guest.StateReady, pid, time.Now()
	s.status.Version = version
	close(r.ready)
	s.set.Log.Info("OpenCode is ready", "pid", pid, "version", version)
}

// noteExit records that OpenCode died without being asked to.
func (s *Supervisor) noteExit(r *run, exit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.PID, s.status.Since = guest.StateRestarting, 0, time.Now()
	s.status.LastExit = exit
	s.status.Restarts++
	select {
	case <-r.ready:
		r.ready = make(chan struct{})
	default:
	}
}
