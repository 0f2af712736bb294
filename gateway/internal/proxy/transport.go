// Package proxy is the data path to a sandbox: one transport whose connections
// belong to one run of one container, and the handler that carries a request to
// OpenCode across the border and back.
//
// Addresses are reused at once when a container dies, so nothing here trusts
// one. A connection is keyed by (run, port), and before the first byte is sent
// somebody who knows is asked whether exactly that run still runs: the engine, or,
// for a connection to OpenCode, the run's own sandboxd, over a connection that is
// known to be its. A run that is alive after the connect held its address the whole
// time, so the peer can be nobody else.
package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Reasons for which a dial fails before the network is asked; a DialError wraps
// them.
var (
	// ErrGone means that the run was dropped or never registered.
	ErrGone = errors.New("the run of the container is over")
	// ErrTooManyConnections means that the run's share of connections is used up.
	ErrTooManyConnections = errors.New("too many open connections to the sandbox")
)

// DialError is why no connection to a run could be made. Not one byte has been
// sent then.
type DialError struct {
	Run lifecycle.Run
	Err error
}

// Error says which run could not be reached and why.
func (e *DialError) Error() string {
	return fmt.Sprintf("connecting to container %.12s: %v", e.Run.ID, e.Err)
}

// Unwrap returns the reason: ErrGone, ErrTooManyConnections, what alive said, or
// the network's error.
func (e *DialError) Unwrap() error { return e.Err }

// AliveFunc returns nil if and only if exactly that run still runs. A
// sandbox.Error (such as engine_unavailable) is passed on to the caller.
type AliveFunc func(ctx context.Context, run lifecycle.Run) error

// TransportSettings are the bounds of a Transport; a zero field means its
// default.
type TransportSettings struct {
	// DialTimeout bounds the connect (default 5 s), AliveTimeout the question to
	// the engine that follows it (default 10 s).
	DialTimeout, AliveTimeout time.Duration
	// IdleTimeout is how long an unused connection is kept (default 60 s).
	IdleTimeout time.Duration
	// MaxConns bounds the connections to one port of one run (default 512). One
	// more fails at once instead of queueing behind event streams that never end.
	MaxConns int
}

func (s TransportSettings) withDefaults() TransportSettings {
	if s.DialTimeout <= 0 {
		s.DialTimeout = 5 * time.Second
	}
	if s.AliveTimeout <= 0 {
		s.AliveTimeout = 10 * time.Second
	}
	if s.IdleTimeout <= 0 {
		s.IdleTimeout = time.Minute
	}
	if s.MaxConns <= 0 {
		s.MaxConns = 512
	}
	return s
}

const (
	// maxHeaderBytes bounds everything before a reply's body, 1xx replies included.
	maxHeaderBytes = 64 << 10
	// maxIdlePerPort keeps a burst of requests from dialling each time: a new
	// connection costs a question to sandboxd, or to the engine.
	maxIdlePerPort = 128

	// ioBufferSize has room for most headers and events; larger bodies pass it by. An
	// event stream holds two of them for as long as it lasts.
	ioBufferSize = 2 << 10

	keySuffix = ".run"
)

// Transport is an http.RoundTripper for all sandboxes. It takes URLs that
// Register gave, follows no redirect, knows no proxy setting, asks for no
// compression, bounds headers and has no deadline for them: a turn's headers
// come when the turn is done, so callers bound the time with their context.
// Safe for concurrent use.
type Transport struct {
	alive    AliveFunc
	settings TransportSettings
	dialer   net.Dialer
	http     *http.Transport

	mu   sync.Mutex
	runs map[string]*runConns // by keyOf
}

// runConns are the connections of one run. Guarded by Transport.mu.
type runConns struct {
	run     lifecycle.Run
	addrs   map[string]string                      // port → host:port as the gateway dials it
	ready   map[string]func(context.Context) error // port → what must be asked before use
	conns   map[*conn]struct{}
	open    map[string]int // port → connections open or being made
	dropped bool
}

var _ lifecycle.Links = (*Transport)(nil)

// NewTransport makes a Transport that asks alive about every new connection.
func NewTransport(alive AliveFunc, settings TransportSettings) *Transport {
	t := &Transport{
		alive:    alive,
		settings: settings.withDefaults(),
		runs:     make(map[string]*runConns),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	t.http = &http.Transport{
		DialContext:            t.dial,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         ioBufferSize,
		WriteBufferSize:        ioBufferSize,
		MaxIdleConnsPerHost:    maxIdlePerPort,
		IdleConnTimeout:        t.settings.IdleTimeout,
		ExpectContinueTimeout:  time.Second,
	}
	return t
}

// Register makes a container's run reachable and returns the base URLs of its
// two servers, for use with this Transport only. They stay well-formed, and
// fail, after the run was dropped. Registering a run again replaces the
// addresses for connections yet to be made.
//
// ready, if not nil, is asked after each new connection to OpenCode, with the
// link that Register returned: while it starts OpenCode accepts connections and
// never answers them. It returns nil only if the run's sandboxd has just said so,
// through this Transport: that is proof that the run is alive as well.
func (t *Transport) Register(c lifecycle.Container, ready func(ctx context.Context, link lifecycle.Link) error) lifecycle.Link {
	key := keyOf(c.Run())
	guestPort, openCodePort := strconv.Itoa(guest.Port), strconv.Itoa(sandbox.OpenCodePort)
	link := lifecycle.Link{
		GuestURL:    "http://" + key + ":" + guestPort,
		OpenCodeURL: "http://" + key + ":" + openCodePort,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	entry := t.runs[key]
	if entry == nil {
		entry = &runConns{run: c.Run(), conns: make(map[*conn]struct{}), open: make(map[string]int)}
		t.runs[key] = entry
	}
	entry.addrs = map[string]string{guestPort: c.GuestAddr, openCodePort: c.OpenCodeAddr}
	entry.ready = nil
	if ready != nil {
		entry.ready = map[string]func(context.Context) error{
			openCodePort: func(ctx context.Context) error { return ready(ctx, link) },
		}
	}
	return link
}

// keyOf is the host that stands for a run in a URL.
func keyOf(run lifecycle.Run) string {
	sum := sha256.Sum256([]byte(run.ID + "\x00" + run.StartedAt))
	return hex.EncodeToString(sum[:16]) + keySuffix
}

// Drop forgets a run and closes its connections at once, idle or in use.
// Dropping an unknown run is fine.
func (t *Transport) Drop(run lifecycle.Run) {
	t.drop(keyOf(run))
}

// Close drops every run. The transport must not be used afterwards.
func (t *Transport) Close() {
	t.mu.Lock()
	keys := make([]string, 0, len(t.runs))
	for key := range t.runs {
		keys = append(keys, key)
	}
	t.mu.Unlock()
	for _, key := range keys {
		t.drop(key)
	}
	t.http.CloseIdleConnections()
}

func (t *Transport) drop(key string) {
	t.mu.Lock()
	entry := t.runs[key]
	if entry == nil {
		t.mu.Unlock()
		return
	}
	delete(t.runs, key)
	entry.dropped = true
	conns := make([]*conn, 0, len(entry.conns))
	for c := range entry.conns {
		conns = append(conns, c)
	}
	t.mu.Unlock()
	for _, c := range conns {
		// What is not sent yet must not be: the address may be another's by now.
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// RoundTrip sends a request to the run that its URL names. The Host header is
// always that of a server on the sandbox's own loopback.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" || !strings.HasSuffix(req.URL.Hostname(), keySuffix) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, errors.New("the URL does not name a sandbox")
	}
	if host := net.JoinHostPort("127.0.0.1", req.URL.Port()); req.Host != host {
		req = req.WithContext(req.Context()) // a copy: the caller's is not to be changed
		req.Host = host
	}
	return t.http.RoundTrip(req)
}

// dial makes a connection and gives it out only when the run was alive after
// the connect.
func (t *Transport) dial(ctx context.Context, _, key string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(key)
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's key: %w", err)
	}
	entry, addr, ready, err := t.reserve(host, port)
	if err != nil {
		return nil, err
	}
	c, err := t.connect(ctx, entry, port, addr)
	if err != nil {
		t.mu.Lock()
		entry.open[port]--
		t.mu.Unlock()
		return nil, &DialError{Run: entry.run, Err: err}
	}
	aliveCtx, cancel := context.WithTimeout(ctx, t.settings.AliveTimeout)
	defer cancel()
	if err := t.proven(aliveCtx, entry.run, ready); err != nil {
		_ = c.SetLinger(0)
		_ = c.Close()
		return nil, &DialError{Run: entry.run, Err: err}
	}
	return c, nil
}

// proven returns nil if the run is alive and, if there is something to ask, ready.
func (t *Transport) proven(ctx context.Context, run lifecycle.Run, ready func(context.Context) error) error {
	if ready == nil {
		return t.alive(ctx, run)
	}
	err := ready(ctx)
	if err == nil {
		return nil
	}
	if gone := t.alive(ctx, run); gone != nil {
		return gone // which says more
	}
	return err
}

// reserve looks a run up and counts a connection that is about to be made.
func (t *Transport) reserve(key, port string) (entry *runConns, addr string, ready func(context.Context) error, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	entry = t.runs[key]
	if entry == nil {
		return nil, "", nil, &DialError{Err: ErrGone}
	}
	addr = entry.addrs[port]
	if addr == "" {
		return nil, "", nil, &DialError{Run: entry.run, Err: fmt.Errorf("port %s has no address", port)}
	}
	if entry.open[port] >= t.settings.MaxConns {
		return nil, "", nil, &DialError{Run: entry.run, Err: ErrTooManyConnections}
	}
	entry.open[port]++
	return entry, addr, entry.ready[port], nil
}

// connect dials and puts the connection under the run, so that from here on
// Drop closes it.
func (t *Transport) connect(ctx context.Context, entry *runConns, port, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.settings.DialTimeout)
	defer cancel()
	raw, err := t.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("a %T is not a TCP connection", raw)
	}
	c := &conn{TCPConn: tcp}
	c.forget = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(entry.conns, c)
		entry.open[port]--
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if entry.dropped {
		_ = tcp.Close()
		return nil, ErrGone
	}
	entry.conns[c] = struct{}{}
	return c, nil
}

// conn is a connection that its run knows. It embeds the TCP connection itself,
// because a WebSocket that ends one way needs CloseWrite.
type conn struct {
	*net.TCPConn
	forget func()
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.forget()
	return c.TCPConn.Close()
}
