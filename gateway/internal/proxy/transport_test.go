package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func get(ctx context.Context, tb testing.TB, t http.RoundTripper, url string) (string, error) {
	tb.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

func TestBothPortsOfARunAreReachedWithALoopbackHostHeader(t *testing.T) {
	host := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) }
	tr := transportFor(t, always, proxy.TransportSettings{})
	link := tr.Register(lifecycle.Container{
		ID: run.ID, StartedAt: run.StartedAt, GuestAddr: backend(t, host), OpenCodeAddr: backend(t, host),
	}, nil)
	for url, want := range map[string]string{link.GuestURL: "127.0.0.1:4095", link.OpenCodeURL: "127.0.0.1:4096"} {
		if got, err := get(t.Context(), t, tr, url); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", url, got, err, want)
		}
	}
}

func TestARestartedContainerIsAnotherTarget(t *testing.T) {
	addr := backend(t, func(http.ResponseWriter, *http.Request) {})
	tr := transportFor(t, always, proxy.TransportSettings{})
	first := tr.Register(container(run, addr), nil)
	second := tr.Register(container(lifecycle.Run{ID: run.ID, StartedAt: "later"}, addr), nil)
	if first == second {
		t.Fatal("two runs share their URLs")
	}
	tr.Drop(run)
	if _, err := get(t.Context(), t, tr, first.OpenCodeURL); !errors.Is(err, proxy.ErrGone) {
		t.Errorf("the dropped run: %v, want ErrGone", err)
	}
	if _, err := get(t.Context(), t, tr, second.OpenCodeURL); err != nil {
		t.Errorf("the run that goes on: %v", err)
	}
}

func TestAliveIsAskedOncePerConnectionAndAfterTheConnect(t *testing.T) {
	var mu sync.Mutex
	asked, accepted := 0, 0
	addr := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		accepted++
		mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	tr := transportFor(t, func(_ context.Context, r lifecycle.Run) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		if r != run || accepted != 0 {
			t.Errorf("asked about %v after %d requests", r, accepted)
		}
		return nil
	}, proxy.TransportSettings{})
	link := tr.Register(container(run, addr), nil)
	for range 3 {
		if _, err := get(t.Context(), t, tr, link.OpenCodeURL); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 1 || accepted != 3 {
		t.Errorf("asked %d times for %d requests, want once for 3", asked, accepted)
	}
}

// The container A dies between the look-up of its address and the connect, and
// B gets the address: B must not see one byte of A's request.
func TestASuccessorAtTheSameAddressReceivesNoByte(t *testing.T) {
	a, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	gone := false
	accepted := make(chan struct{}, 4)
	tr := transportFor(t, func(context.Context, lifecycle.Run) error {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return lifecycle.ErrNoContainer
		}
		return nil
	}, proxy.TransportSettings{})
	link := tr.Register(container(run, a.Addr().String()), nil)
	_ = a.Close()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		accepted <- struct{}{}
		data, _ := io.ReadAll(c)
		_ = c.Close()
		received <- len(data)
	}()
	t.Cleanup(func() { _ = l.Close() })
	mu.Lock()
	gone = true
	mu.Unlock()

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, link.OpenCodeURL+"/session", strings.NewReader("meant for A"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := tr.RoundTrip(req)
	if err == nil {
		_ = res.Body.Close()
		t.Fatal("the request reached somebody")
	}
	dial, ok := errors.AsType[*proxy.DialError](err)
	if !ok || dial.Run != run || !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Errorf("error %v, want a DialError of the run with alive's reason", err)
	}
	<-accepted
	select {
	case n := <-received:
		if n != 0 {
			t.Errorf("B received %d bytes", n)
		}
	case <-time.After(patience):
		t.Fatal("B's connection was not closed")
	}
}

func TestDropClosesIdleConnectionsAndThoseInUse(t *testing.T) {
	streaming := make(chan struct{})
	ended := make(chan struct{}, 2)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			return
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		close(streaming)
		<-r.Context().Done()
		ended <- struct{}{}
	})
	tr := transportFor(t, always, proxy.TransportSettings{})
	link := tr.Register(container(run, addr), nil)
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL+"/quick"); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := get(t.Context(), t, tr, link.OpenCodeURL+"/stream")
		failed <- err
	}()
	<-streaming
	tr.Drop(run)
	select {
	case err := <-failed:
		if err == nil {
			t.Error("the stream ended as if it were complete")
		}
	case <-time.After(patience):
		t.Fatal("the stream did not end")
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the server's side did not end")
	}
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL+"/quick"); !errors.Is(err, proxy.ErrGone) {
		t.Errorf("after Drop: %v, want ErrGone", err)
	}
}

func TestDropWhileAliveIsAskedWins(t *testing.T) {
	addr, got := raw(t, "127.0.0.1:0", func(net.Conn) {})
	var tr *proxy.Transport
	tr = transportFor(t, func(context.Context, lifecycle.Run) error {
		tr.Drop(run)
		return nil
	}, proxy.TransportSettings{})
	link := tr.Register(container(run, addr), nil)
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); err == nil {
		t.Error("the request went through a dropped run")
	}
	if got.Load() != 0 {
		t.Errorf("%d bytes were sent after Drop", got.Load())
	}
}

func TestConnectionsOfARunAreBoundedAndFreedAgain(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, 2)
	addr := backend(t, func(http.ResponseWriter, *http.Request) {
		began <- struct{}{}
		<-release
	})
	tr := transportFor(t, always, proxy.TransportSettings{MaxConns: 1})
	link := tr.Register(container(run, addr), nil)
	first := make(chan error, 1)
	go func() {
		_, err := get(t.Context(), t, tr, link.OpenCodeURL)
		first <- err
	}()
	<-began
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); !errors.Is(err, proxy.ErrTooManyConnections) {
		t.Errorf("second connection: %v, want ErrTooManyConnections", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); err != nil {
		t.Errorf("after the first ended: %v", err)
	}
}

func TestFailedDialsDoNotUseUpTheBound(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	tr := transportFor(t, always, proxy.TransportSettings{MaxConns: 1})
	link := tr.Register(container(run, addr), nil)
	for range 3 {
		_, err := get(t.Context(), t, tr, link.OpenCodeURL)
		if _, ok := errors.AsType[*net.OpError](err); !ok {
			t.Fatalf("error %v, want the network's", err)
		}
	}
}

func TestAliveHasADeadlineAndItsSandboxErrorIsKept(t *testing.T) {
	addr := backend(t, func(http.ResponseWriter, *http.Request) {})
	tr := transportFor(t, func(ctx context.Context, _ lifecycle.Run) error {
		<-ctx.Done()
		return sandbox.Errorf(sandbox.CodeEngineAway, "the engine does not answer")
	}, proxy.TransportSettings{AliveTimeout: time.Millisecond})
	link := tr.Register(container(run, addr), nil)
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); !sandbox.HasCode(err, sandbox.CodeEngineAway) {
		t.Errorf("error %v, want engine_unavailable", err)
	}
}

func TestOnlyURLsOfTheRegistryAreTaken(t *testing.T) {
	tr := transportFor(t, always, proxy.TransportSettings{})
	addr := backend(t, func(http.ResponseWriter, *http.Request) {})
	link := tr.Register(container(run, addr), nil)
	for _, url := range []string{
		"http://" + addr + "/", "https" + strings.TrimPrefix(link.OpenCodeURL, "http"),
		"http://unknown.run:4096/", strings.Replace(link.OpenCodeURL, ":4096", ":22", 1),
	} {
		if _, err := get(t.Context(), t, tr, url); err == nil {
			t.Errorf("%s was sent somewhere", url)
		}
	}
}

func TestReadyIsAskedWithTheLinkBeforeAConnectionToOpenCodeIsUsed(t *testing.T) {
	var served atomic.Int64
	addr := backend(t, func(http.ResponseWriter, *http.Request) { served.Add(1) })
	tr := transportFor(t, always, proxy.TransportSettings{})
	var asked []lifecycle.Link
	notYet := sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode is starting")
	answer := error(notYet)
	link := tr.Register(container(run, addr), func(_ context.Context, link lifecycle.Link) error {
		asked = append(asked, link)
		return answer
	})
	if _, err := get(t.Context(), t, tr, link.GuestURL); err != nil || len(asked) != 0 {
		t.Errorf("a connection to sandboxd: %v, asked %v", err, asked)
	}
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); !errors.Is(err, notYet) || served.Load() != 1 {
		t.Errorf("not ready: %v, %d requests came", err, served.Load())
	}
	answer = nil
	if _, err := get(t.Context(), t, tr, link.OpenCodeURL); err != nil || served.Load() != 2 {
		t.Errorf("ready: %v, %d requests came", err, served.Load())
	}
	if len(asked) != 2 || asked[0] != link || asked[1] != link {
		t.Errorf("asked with %v, want %v twice", asked, link)
	}
}
