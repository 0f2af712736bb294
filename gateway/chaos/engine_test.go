package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// engine is a Docker engine of the run's own. Its methods that start and stop it
// are for one goroutine at a time; the rest are safe for concurrent use.
type engine struct {
	folder string
	socket string
	client *http.Client

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

const (
	engineStart = time.Minute
	engineStop  = 30 * time.Second
	engineCall  = 30 * time.Second
)

// newEngine starts an engine that keeps its data in a folder.
func newEngine(ctx context.Context, folder string) (*engine, error) {
	e := &engine{folder: folder, socket: "/run/engine.sock"}
	e.client = &http.Client{Transport: unixTransport(e.socket)}
	if err := e.up(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// unixTransport dials a Unix socket, whatever the address.
func unixTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
}

func (e *engine) host() string { return "unix://" + e.socket }

// up starts the engine and waits until it answers.
func (e *engine) up(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(e.folder, "dockerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the engine's log: %w", err)
	}
	defer log.Close()
	_ = os.Remove("/run/docker.pid")                                                 // of an engine that was killed: another process may have its number by now
	cmd := exec.Command("dockerd", "--data-root", filepath.Join(e.folder, "docker"), //nolint:gosec,noctx // ended by stop
		"--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "-H", e.host(), "--bridge", "none", "--userland-proxy=false",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"+groupOf(e.folder), "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the engine: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its log says why
		close(exited)
	}()
	e.mu.Lock()
	e.cmd, e.exited = cmd, exited
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, engineStart)
	defer cancel()
	for {
		if err := e.call(ctx, http.MethodGet, "/_ping", nil, nil); err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("the engine ended; its log: %s", e.log())
		case <-ctx.Done():
			return fmt.Errorf("the engine does not answer within %s; its log: %s", engineStart, e.log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// log is the end of what the engine has logged.
func (e *engine) log() string {
	raw, err := os.ReadFile(filepath.Join(e.folder, "dockerd.log"))
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-4000):])
}

func (e *engine) signal(sig syscall.Signal) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cmd.Process.Signal(sig)
}

// stop ends the engine with a signal and waits for it.
func (e *engine) stop(sig syscall.Signal) error {
	if err := e.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending the engine: %w", err)
	}
	select {
	case <-e.exited:
		return nil
	case <-time.After(engineStop):
		return errors.Join(errors.New("the engine did not end"), e.signal(syscall.SIGKILL))
	}
}

// engineError is an answer of the engine that is no success.
type engineError struct {
	status int
	text   string
}

// Error implements error.
func (e *engineError) Error() string {
	return fmt.Sprintf("the engine answered %d: %s", e.status, e.text)
}

// call asks the engine itself, not the proxy of a lane. into may be nil.
func (e *engine) call(ctx context.Context, method, path string, body io.Reader, into any) error {
	ctx, cancel := context.WithTimeout(ctx, engineCall)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, body)
	if err != nil {
		return fmt.Errorf("asking the engine: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the engine: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("reading the engine's answer: %w", err)
	case resp.StatusCode >= http.StatusBadRequest:
		return &engineError{resp.StatusCode, string(raw)}
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("reading the engine's answer: %w", err)
	}
	return nil
}

// container is a container as the engine tells of it.
type container struct {
	ID    string
	Names []string
	State string // created, running, paused, exited, …
}

func labelled(installation string) string {
	raw, _ := json.Marshal(map[string][]string{"label": {"agentpod.installation=" + installation}}) //nolint:errchkjson // strings
	return url.QueryEscape(string(raw))
}

// containers are those of an installation, by name.
func (e *engine) containers(ctx context.Context, installation string) (map[string]container, error) {
	var list []container
	if err := e.call(ctx, http.MethodGet, "/containers/json?all=1&filters="+labelled(installation), nil, &list); err != nil {
		return nil, err
	}
	found := map[string]container{}
	for _, c := range list {
		if len(c.Names) > 0 {
			found[c.Names[0][1:]] = c // without the slash
		}
	}
	return found, nil
}

// volumes are the names of an installation's volumes.
func (e *engine) volumes(ctx context.Context, installation string) ([]string, error) {
	var list struct{ Volumes []struct{ Name string } }
	if err := e.call(ctx, http.MethodGet, "/volumes?filters="+labelled(installation), nil, &list); err != nil {
		return nil, err
	}
	var names []string
	for _, v := range list.Volumes {
		names = append(names, v.Name)
	}
	return names, nil
}

// inspected is what the faults need to know of a container.
type inspected struct {
	State  struct{ Pid int }
	Mounts []struct{ Type, Name string }
}

func (e *engine) inspect(ctx context.Context, name string) (inspected, error) {
	var got inspected
	err := e.call(ctx, http.MethodGet, "/containers/"+name+"/json", nil, &got)
	return got, err
}

// sandboxd is the process number of a container's first process.
func (e *engine) sandboxd(ctx context.Context, name string) (int, error) {
	got, err := e.inspect(ctx, name)
	if err == nil && got.State.Pid == 0 {
		err = errors.New("the container does not run")
	}
	return got.State.Pid, err
}

// openCode is the process number of a container's OpenCode.
func (e *engine) openCode(ctx context.Context, name string) (int, error) {
	pid, err := e.sandboxd(ctx, name)
	if err != nil {
		return 0, err
	}
	for _, child := range children(pid) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		if err == nil && string(comm) == "opencode\n" {
			return child, nil
		}
	}
	return 0, errors.New("OpenCode does not run in the container")
}

// remove removes a container by hand.
func (e *engine) remove(ctx context.Context, name string) error {
	return gone(e.call(ctx, http.MethodDelete, "/containers/"+name+"?force=1", nil, nil))
}

// removeVolume removes a volume by hand.
func (e *engine) removeVolume(ctx context.Context, name string) error {
	return gone(e.call(ctx, http.MethodDelete, "/volumes/"+name+"?force=1", nil, nil))
}

// gone forgives that something is not there any more.
func gone(err error) error {
	if e, ok := errors.AsType[*engineError](err); ok && e.status == http.StatusNotFound {
		return nil
	}
	return err
}
