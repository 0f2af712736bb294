// Package dockertest stands between a gateway and its container engine, for tests
// that lose replies of the engine, hold them, or act in the middle of them. The engine
// behind it is the real one.
package dockertest

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy passes requests on to an engine. All methods are safe for
// concurrent use.
type Proxy struct {
	socket   string
	upstream *httputil.ReverseProxy
	server   *http.Server

	mu    sync.Mutex
	rules []*rule
	down  bool
	conns map[net.Conn]struct{}
}

// rule is what is done to some requests.
type rule struct {
	method string
	path   *regexp.Regexp
	left   int // requests that it is for still
	do     Action
}

// Exchange is one request of the gateway's to the engine.
type Exchange struct {
	Request *http.Request

	p *Proxy
	w http.ResponseWriter
}

// Action is what a test does with a request instead of passing it on.
type Action func(x *Exchange)

// defaultSocket is where an engine is that nothing is said of.
const defaultSocket = "/var/run/docker.sock"

// Start starts a proxy of the engine at a unix:// address, empty for the usual one. It
// ends with the test.
func Start(t testing.TB, host string) *Proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	engine := strings.TrimPrefix(host, "unix://")
	if engine == "" {
		engine = defaultSocket
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", engine)
	}}
	p := &Proxy{socket: filepath.Join(dir, "engine.sock"), conns: map[net.Conn]struct{}{}}
	p.upstream = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine" },
		// Events are a stream.
		FlushInterval: -1, Transport: transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	p.server = &http.Server{Handler: p, ConnState: p.follow, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = p.server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = p.server.Close()
		<-served
		transport.CloseIdleConnections()
		_ = os.RemoveAll(dir)
	})
	return p
}

// Host is the proxy as DOCKER_HOST names it.
func (p *Proxy) Host() string { return "unix://" + p.socket }

// On has an action taken for the next requests of a method whose path, without the
// API's version, matches. The first rule that matches counts.
func (p *Proxy) On(method, path string, times int, do Action) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, &rule{method, regexp.MustCompile(path), times, do})
}

// Clear ends all rules.
func (p *Proxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
}

// Down cuts every connection, and refuses new ones until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}

// Up ends Down.
func (p *Proxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

func (p *Proxy) follow(conn net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch state {
	case http.StateNew:
		p.conns[conn] = struct{}{}
		if p.down {
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		delete(p.conns, conn)
	default:
	}
}

var version = regexp.MustCompile(`^/v[0-9.]+`)

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &Exchange{Request: r, p: p, w: w}
	if do := p.match(r.Method, version.ReplaceAllString(r.URL.Path, "")); do != nil {
		do(x)
		return
	}
	p.upstream.ServeHTTP(w, r)
}

func (p *Proxy) match(method, path string) Action {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return Cut
	}
	for _, r := range p.rules {
		if r.left > 0 && r.method == method && r.path.MatchString(path) {
			r.left--
			return r.do
		}
	}
	return nil
}

// Path is the request's, with the API's version.
func (x *Exchange) Path() string { return x.Request.URL.Path }

// Forward passes the request on. The engine's reply is kept.
func (x *Exchange) Forward() *httptest.ResponseRecorder {
	reply := httptest.NewRecorder()
	// The engine has the request, even if its caller leaves.
	x.p.upstream.ServeHTTP(reply, x.Request.WithContext(context.WithoutCancel(x.Request.Context())))
	return reply
}

// Deliver sends a reply that was kept.
func (x *Exchange) Deliver(reply *httptest.ResponseRecorder) {
	for name, values := range reply.Header() {
		x.w.Header()[name] = values
	}
	x.w.WriteHeader(reply.Code)
	_, _ = x.w.Write(reply.Body.Bytes())
}

// Cut ends the connection without a reply.
func Cut(*Exchange) { panic(http.ErrAbortHandler) }

// Fail replies with an error of the engine's, without asking it.
func Fail(status int, message string) Action {
	return func(x *Exchange) {
		x.w.Header().Set("Content-Type", "application/json")
		x.w.WriteHeader(status)
		_ = json.NewEncoder(x.w).Encode(map[string]string{"message": message})
	}
}

// Before does something, and then passes the request on.
func Before(do func(x *Exchange)) Action {
	return func(x *Exchange) {
		do(x)
		x.Deliver(x.Forward())
	}
}
