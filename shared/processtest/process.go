// Package processtest runs the project's servers as processes of their own, for
// tests that stop and kill them.
package processtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second
	// stopTime is more than a server gives itself to drain.
	stopTime = 40 * time.Second
)

// Process is a server that logs JSON lines, one of which says "serving" and its
// "addr". Its methods but Log and Done are for one goroutine at a time.
type Process struct {
	// Addr is where it serves, host:port.
	Addr string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	logs bytes.Buffer
}

// Start runs a program until it serves. It may be used again after the process
// has ended; the log goes on.
func (p *Process) Start(env []string, program string, args ...string) error {
	cmd := exec.Command(program, args...) //nolint:gosec,noctx // the tests' own, ended by Stop
	cmd.Env = env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("starting %s: %w", program, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", program, err)
	}
	serving, done := make(chan string, 1), make(chan struct{})
	go p.read(cmd, stderr, serving, done)
	p.cmd, p.done = cmd, done
	select {
	case p.Addr = <-serving:
		return nil
	case <-done:
		return fmt.Errorf("%s ended at once:\n%s", program, p.Log())
	case <-time.After(startTime):
		_ = p.Stop(syscall.SIGKILL)
		return fmt.Errorf("%s did not serve within %s:\n%s", program, startTime, p.Log())
	}
}

func (p *Process) read(cmd *exec.Cmd, stderr io.Reader, serving chan<- string, done chan<- struct{}) {
	defer close(done)
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct{ Msg, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			select {
			case serving <- line.Addr:
			default:
			}
		}
		p.mu.Lock()
		p.logs.Write(append(lines.Bytes(), '\n'))
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, stderr)
	_ = cmd.Wait() // how it ended is the test's business
}

// Log is everything that the processes wrote so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logs.String()
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended tells whether it has.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// PeakMemory is the most memory that the process ever had resident, in bytes. Only
// Linux says so.
func (p *Process) PeakMemory() (int64, error) { return p.memory("VmHWM:") }

// Memory is how much memory the process has resident, in bytes. Only Linux says so.
func (p *Process) Memory() (int64, error) { return p.memory("VmRSS:") }

func (p *Process) memory(field string) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading how much memory a process has: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var kib int64
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				return 0, fmt.Errorf("reading how much memory a process has: %w", err)
			}
			return kib * 1024, nil
		}
	}
	return 0, errors.New("the kernel does not say how much memory a process has")
}

// CPUTime is the processor time that the process has used, in steps of 10 ms. Only
// Linux says so.
func (p *Process) CPUTime() (time.Duration, error) { return CPUTime(p.PID()) }

// CPUTime is the processor time that a process and its children that still run have
// used, in steps of 10 ms. Only Linux says so.
func CPUTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading how much processor time a process has used: %w", err)
	}
	// What is before the last ")" is its name. Behind it, the 12th and 13th field
	// count hundredths of a second.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("the kernel does not say how much processor time a process has used")
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, fmt.Errorf("reading how much processor time a process has used: %w", err)
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		return 0, fmt.Errorf("reading how much processor time a process has used: %w", err)
	}
	all := time.Duration(user+system) * 10 * time.Millisecond
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, fmt.Errorf("reading which children a process has: %w", err)
	}
	for _, text := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(text)
		if err != nil {
			return 0, fmt.Errorf("reading which children a process has: %w", err)
		}
		used, err := CPUTime(child)
		if err != nil {
			return 0, err
		}
		all += used
	}
	return all, nil
}

// Signal sends a signal that does not end the process.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("sending %v: %w", sig, err)
	}
	return nil
}

// Stop sends a signal that ends the process, and waits until it has ended. One
// that has is a success.
func (p *Process) Stop(sig syscall.Signal) error {
	if p.Ended() {
		return nil
	}
	if err := p.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		err := fmt.Errorf("it did not end within %s of %v", stopTime, sig)
		return errors.Join(err, p.cmd.Process.Kill())
	}
}
