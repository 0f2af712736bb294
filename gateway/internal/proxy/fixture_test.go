package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// run is the container run that most tests talk to.
//
//nolint:gochecknoglobals // a constant value
var run = lifecycle.Run{ID: "container-a", StartedAt: "2026-01-01T00:00:00Z"}

func always(context.Context, lifecycle.Run) error { return nil }

func transportFor(tb testing.TB, alive proxy.AliveFunc, settings proxy.TransportSettings) *proxy.Transport {
	tb.Helper()
	t := proxy.NewTransport(alive, settings)
	tb.Cleanup(t.Close)
	return t
}

func container(r lifecycle.Run, addr string) lifecycle.Container {
	return lifecycle.Container{ID: r.ID, StartedAt: r.StartedAt, GuestAddr: addr, OpenCodeAddr: addr}
}

// front is a gateway with nothing but the proxy, before one sandbox.
type front struct {
	*httptest.Server
	transport *proxy.Transport
	req       proxy.Request
	figures   prometheus.Collector
	returned  chan error // what Serve returned, or errPanicked
	end       context.CancelCauseFunc
}

var errPanicked = errors.New("panicked with http.ErrAbortHandler")

const prefix = "/sandbox/a/opencode"

// serve puts a front before the server at addr. change may alter each request's
// guard.
func serve(tb testing.TB, addr string, alive proxy.AliveFunc, settings proxy.Settings, change func(*proxy.Request)) *front {
	tb.Helper()
	f := &front{transport: transportFor(tb, alive, proxy.TransportSettings{}), returned: make(chan error, 64)}
	done, end := context.WithCancelCause(context.Background())
	f.end = end
	tb.Cleanup(func() { end(nil) })
	link := f.transport.Register(container(run, addr), nil)
	f.req = proxy.Request{OpenCodeURL: link.OpenCodeURL, Password: "secret", Prefix: prefix, Done: done}
	if change != nil {
		change(&f.req)
	}
	settings.Logger = slog.New(slog.DiscardHandler)
	if settings.MaxBody == 0 {
		settings.MaxBody = 256 << 20
	}
	p := proxy.New(f.transport, settings)
	f.figures = p.Figures()
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := f.req
		raw, _, _ := strings.Cut(r.RequestURI, "?")
		req.Path = strings.TrimPrefix(raw, prefix)
		err := errPanicked
		defer func() {
			select {
			case f.returned <- err:
			default:
			}
		}()
		err = p.Serve(w, r, req)
		if err != nil {
			http.Error(w, err.Error(), sandbox.CodeOf(err).Status())
			return
		}
	}))
	tb.Cleanup(f.Close)
	return f
}

// result is what the next Serve returned.
func (f *front) result(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-f.returned:
		return err
	case <-time.After(patience):
		tb.Fatal("Serve did not return")
		return nil
	}
}

// backend runs an HTTP server as the one in a sandbox.
func backend(tb testing.TB, h http.HandlerFunc) string {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// raw runs a server that speaks bytes. It reads the request's head, then calls
// talk; got counts the bytes that reached it.
func raw(tb testing.TB, addr string, talk func(c net.Conn)) (where string, got *atomic.Int64) {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	got = new(atomic.Int64)
	ended := make(chan struct{})
	conns := make(chan net.Conn, 64)
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			go func() {
				defer func() { _ = c.Close() }()
				head := make([]byte, 0, 4096)
				one := make([]byte, 1)
				for !strings.HasSuffix(string(head), "\r\n\r\n") {
					if _, err := c.Read(one); err != nil {
						return
					}
					got.Add(1)
					head = append(head, one[0])
				}
				talk(c)
			}()
		}
	}()
	tb.Cleanup(func() {
		_ = l.Close()
		<-ended
		close(conns)
		for c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String(), got
}

// send puts a request on the wire as it stands and returns the reply's parts.
func send(tb testing.TB, f *front, request string) (status string, header http.Header, body string) {
	tb.Helper()
	c, err := (&net.Dialer{}).DialContext(tb.Context(), "tcp", f.Listener.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		tb.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		tb.Fatalf("reading the reply: %v", err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatalf("reading the reply's body: %v", err)
	}
	return res.Status, res.Header, string(data)
}
