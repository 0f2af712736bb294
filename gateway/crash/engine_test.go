package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// engine is a host with sandboxes on it. A container is a sandboxd, a process
// like any other, and a volume is a folder. It outlives the gateways that use it.
type engine struct {
	dir  string
	runs sync.WaitGroup

	mu         sync.Mutex
	serial     int
	containers map[string]*container // by id
	listeners  map[int]func(lifecycle.Event)
}

// container is guarded by its engine's mu.
type container struct {
	lifecycle.Container
	dir       string // its own, beside the volume
	home      string // the volume
	env       map[string]string
	guestPort int
	codePort  int
	pid       int
	ended     chan struct{} // closed after the run
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{dir: t.TempDir(), containers: map[string]*container{}, listeners: map[int]func(lifecycle.Event){}}
	for _, folder := range []string{"volumes", "containers"} {
		if err := os.Mkdir(filepath.Join(e.dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := e.vanish(); err != nil {
			t.Error(err)
		}
		e.runs.Wait()
	})
	return e
}

// vanish is the end of the host: nothing is left of what was on it, and another
// one, which is empty, takes its place.
func (e *engine) vanish() error {
	containers, err := e.List(context.Background())
	for _, c := range containers {
		err = errors.Join(err, e.Remove(context.Background(), c.ID))
	}
	volumes, listErr := e.Volumes(context.Background())
	err = errors.Join(err, listErr)
	for _, v := range volumes {
		err = errors.Join(err, e.RemoveVolume(context.Background(), v))
	}
	return err
}

// reboot ends what runs. Containers and volumes are there still.
func (e *engine) reboot() error {
	containers, err := e.List(context.Background())
	for _, c := range containers {
		err = errors.Join(err, e.Stop(context.Background(), c.ID, 0))
	}
	return err
}

// home is where the volume of a sandbox's container is.
func (e *engine) home(t *testing.T, sandboxID string) string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.SandboxID == sandboxID {
			return c.home
		}
	}
	t.Fatalf("there is no container of %s", sandboxID)
	return ""
}

// alive returns nil if exactly that run runs still.
func (e *engine) alive(_ context.Context, run lifecycle.Run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[run.ID]
	if c == nil || c.Run() != run || c.State != lifecycle.ContainerRunning && c.State != lifecycle.ContainerPaused {
		return lifecycle.ErrNoContainer
	}
	return nil
}

// tell reports an event. The caller holds mu, so that nobody who has left is told.
func (e *engine) tell(kind lifecycle.EventKind, c *container) {
	for _, fn := range e.listeners {
		fn(lifecycle.Event{Kind: kind, ContainerID: c.ID, SandboxID: c.SandboxID, ExitCode: c.ExitCode})
	}
}

// find returns a container by its id. The caller holds mu.
func (e *engine) find(id string) (*container, error) {
	if c := e.containers[id]; c != nil {
		return c, nil
	}
	return nil, lifecycle.ErrNoContainer
}

// Ready implements lifecycle.Runtime.
func (e *engine) Ready(context.Context) error { return nil }

// CreateVolume implements lifecycle.Runtime.
func (e *engine) CreateVolume(_ context.Context, name string) error {
	return os.MkdirAll(filepath.Join(e.dir, "volumes", name), 0o755)
}

// Create implements lifecycle.Runtime.
func (e *engine) Create(_ context.Context, spec lifecycle.Spec) (lifecycle.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.SandboxID == spec.SandboxID {
			return lifecycle.Container{}, sandbox.Errorf(sandbox.CodeNameTaken, "%s has a container already", spec.SandboxID)
		}
	}
	if _, err := os.Stat(filepath.Join(e.dir, "volumes", spec.Volume)); spec.Kept && err != nil {
		return lifecycle.Container{}, lifecycle.ErrNoVolume
	}
	e.serial++
	id := "c" + strconv.Itoa(e.serial)
	c := &container{
		Container: lifecycle.Container{ID: id, SandboxID: spec.SandboxID, State: lifecycle.ContainerCreated, Volume: spec.Volume},
		dir:       filepath.Join(e.dir, "containers", id), home: filepath.Join(e.dir, "volumes", spec.Volume), env: spec.Env,
	}
	for _, folder := range []string{c.dir, c.home} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return lifecycle.Container{}, fmt.Errorf("making a container: %w", err)
		}
	}
	for _, port := range []*int{&c.guestPort, &c.codePort} {
		var err error
		if *port, err = freePort(); err != nil {
			return lifecycle.Container{}, err
		}
	}
	e.containers[id] = c
	return c.Container, nil
}

// Ports are below those that the kernel gives to connections, or one of these
// could have a port between its choice and its use.
const firstPort, ports = 10_000, 20_000

//nolint:gochecknoglobals // the ports are the whole process's
var lastPort atomic.Int64

// freePort returns a port on which nobody listens, and which is not given out
// again soon.
func freePort() (int, error) {
	lastPort.CompareAndSwap(0, int64(os.Getpid())*97%ports+1) // apart from other runs of these tests
	for range ports {
		port := firstPort + int(lastPort.Add(1)%ports)
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, errors.New("no port is free")
}

const loopback = "127.0.0.1"

// Start implements lifecycle.Runtime.
func (e *engine) Start(_ context.Context, id string) (lifecycle.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(id)
	if err != nil {
		return lifecycle.Container{}, err
	}
	if c.State == lifecycle.ContainerRunning {
		return c.Container, nil
	}
	output, err := os.OpenFile(filepath.Join(c.dir, "output"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return lifecycle.Container{}, fmt.Errorf("starting a container: %w", err)
	}
	defer output.Close()
	config := filepath.Join(c.dir, "config") // a tmpfs of the container
	if err := os.RemoveAll(config); err != nil {
		return lifecycle.Container{}, fmt.Errorf("starting a container: %w", err)
	}
	address, code := net.JoinHostPort(loopback, strconv.Itoa(c.guestPort)), strconv.Itoa(c.codePort)
	command := exec.Command(programs.sandboxd) //nolint:gosec,noctx // built by TestMain; the container's end ends it
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.home, "SANDBOXD_HOME=" + c.home, "SANDBOXD_WORKSPACE=" + filepath.Join(c.home, "workspace"),
		"SANDBOXD_CONFIG_DIR=" + config, "SANDBOXD_PLUGIN_DIR=" + programs.plugins, "SANDBOXD_ADDR=" + address,
		"SANDBOXD_OPENCODE=" + programs.openCode, "SANDBOXD_OPENCODE_HOST=" + loopback, "SANDBOXD_OPENCODE_PORT=" + code,
	}
	for name, value := range c.env {
		command.Env = append(command.Env, name+"="+value)
	}
	command.Stdout, command.Stderr, command.Dir = output, output, c.home
	// A test that is killed takes its sandboxes along.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return lifecycle.Container{}, fmt.Errorf("starting a container: %w", err)
	}
	e.serial++
	c.State, c.StartedAt, c.ExitCode = lifecycle.ContainerRunning, strconv.Itoa(e.serial), 0
	c.GuestAddr, c.OpenCodeAddr = address, net.JoinHostPort(loopback, code)
	c.pid, c.ended = command.Process.Pid, make(chan struct{})
	ended := c.ended
	e.runs.Go(func() {
		_ = command.Wait() // killed, as a rule
		e.mu.Lock()
		defer e.mu.Unlock()
		c.State, c.ExitCode = lifecycle.ContainerExited, command.ProcessState.ExitCode()
		c.GuestAddr, c.OpenCodeAddr = "", ""
		close(ended)
		e.tell(lifecycle.EventDied, c)
	})
	return c.Container, nil
}

// endTime bounds the end of killed processes.
const endTime = 20 * time.Second

// Stop implements lifecycle.Runtime.
func (e *engine) Stop(_ context.Context, id string, _ time.Duration) error {
	e.mu.Lock()
	c, err := e.find(id)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	running, pid, ended := c.State == lifecycle.ContainerRunning || c.State == lifecycle.ContainerPaused, c.pid, c.ended
	e.mu.Unlock()
	if !running {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	// Stopped, it can neither make processes nor reap any, and gets the orphans.
	_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		inside := descendants(pid)
		if len(inside) == 0 {
			break
		}
		signal(inside, syscall.SIGKILL)
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("the processes %v do not end", inside)
		}
	}
	signal([]int{pid}, syscall.SIGKILL)
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the container %s does not end", id)
	}
}

func signal(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// descendants returns the processes below one, without zombies.
func descendants(ancestor int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	children := map[int][]int{}
	for _, name := range stats {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // ended since
		}
		// PID (NAME) STATE PARENT …, and the name may hold anything.
		text := string(raw)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	var all []int
	for next := []int{ancestor}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}

// Pause implements lifecycle.Runtime.
func (e *engine) Pause(_ context.Context, id string) error {
	return e.halt(id, lifecycle.ContainerRunning, lifecycle.ContainerPaused, syscall.SIGSTOP, lifecycle.EventPaused)
}

// Shrink implements lifecycle.Runtime.
func (*engine) Shrink(context.Context, string) error {
	return sandbox.Errorf(sandbox.CodeUnsupported, "processes have no swap of their own")
}

// Unpause implements lifecycle.Runtime.
func (e *engine) Unpause(_ context.Context, id string) error {
	return e.halt(id, lifecycle.ContainerPaused, lifecycle.ContainerRunning, syscall.SIGCONT, lifecycle.EventUnpaused)
}

func (e *engine) halt(id string, from, to lifecycle.State, sig syscall.Signal, kind lifecycle.EventKind) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(id)
	if err != nil {
		return err
	}
	if c.State != from {
		return sandbox.Errorf(sandbox.CodeConflict, "the container is %s", c.State)
	}
	signal(append([]int{c.pid}, descendants(c.pid)...), sig)
	c.State = to
	e.tell(kind, c)
	return nil
}

// Foreground implements lifecycle.Runtime.
func (e *engine) Foreground(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err := e.find(id)
	return err
}

// Rename implements lifecycle.Runtime.
func (e *engine) Rename(_ context.Context, id, sandboxID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(id)
	if err == nil {
		c.SandboxID = sandboxID
	}
	return err
}

// Remove implements lifecycle.Runtime.
func (e *engine) Remove(ctx context.Context, id string) error {
	if err := e.Stop(ctx, id, 0); err != nil && !errors.Is(err, lifecycle.ErrNoContainer) {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return nil
	}
	delete(e.containers, id)
	e.tell(lifecycle.EventDestroyed, c)
	return os.RemoveAll(c.dir)
}

// RemoveVolume implements lifecycle.Runtime.
func (e *engine) RemoveVolume(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	home := filepath.Join(e.dir, "volumes", name)
	for _, c := range e.containers {
		if c.home == home {
			return sandbox.Errorf(sandbox.CodeConflict, "the volume is in use by %s", c.ID)
		}
	}
	return os.RemoveAll(home)
}

// Inspect implements lifecycle.Runtime.
func (e *engine) Inspect(_ context.Context, id string) (lifecycle.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(id)
	if err != nil {
		return lifecycle.Container{}, err
	}
	return c.Container, nil
}

// Find implements lifecycle.Runtime.
func (e *engine) Find(_ context.Context, sandboxID string) (lifecycle.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.SandboxID == sandboxID {
			return c.Container, nil
		}
	}
	return lifecycle.Container{}, lifecycle.ErrNoContainer
}

// List implements lifecycle.Runtime.
func (e *engine) List(context.Context) ([]lifecycle.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []lifecycle.Container
	for _, c := range e.containers {
		all = append(all, lifecycle.Container{ID: c.ID, SandboxID: c.SandboxID, State: c.State})
	}
	return all, nil
}

// Volumes implements lifecycle.Runtime.
func (e *engine) Volumes(context.Context) ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	folders, err := os.ReadDir(filepath.Join(e.dir, "volumes"))
	if err != nil {
		return nil, fmt.Errorf("listing the volumes: %w", err)
	}
	var names []string
	for _, f := range folders {
		names = append(names, f.Name())
	}
	return names, nil
}

// Stats implements lifecycle.Runtime.
func (e *engine) Stats(context.Context, string) (sandbox.Stats, error) { return sandbox.Stats{}, nil }

// Logs implements lifecycle.Runtime.
func (e *engine) Logs(_ context.Context, id string, _ lifecycle.LogOptions) (io.ReadCloser, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(id)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(c.dir, "output"))
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return file, err
}

// Wait implements lifecycle.Runtime.
func (e *engine) Wait(ctx context.Context, id string) (lifecycle.Exit, error) {
	e.mu.Lock()
	c, err := e.find(id)
	if err != nil || c.ended == nil {
		e.mu.Unlock()
		return lifecycle.Exit{}, err
	}
	ended := c.ended
	e.mu.Unlock()
	select {
	case <-ended:
	case <-ctx.Done():
		return lifecycle.Exit{}, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return lifecycle.Exit{Code: c.ExitCode}, nil
}

// Events implements lifecycle.Runtime.
func (e *engine) Events(ctx context.Context, subscribed func(), fn func(lifecycle.Event)) error {
	e.mu.Lock()
	e.serial++
	me := e.serial
	e.listeners[me] = fn
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.listeners, me)
	}()
	subscribed()
	<-ctx.Done()
	return nil
}
