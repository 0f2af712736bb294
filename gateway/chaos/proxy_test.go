package chaos

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"
)

// mode is how a request fails on its way.
type mode int

const (
	refuse   mode = iota // the connection is cut before anything reaches the other side
	silence              // nothing reaches the other side, and nothing is ever said
	lose                 // the other side does it, and the connection is cut then
	hang                 // the other side does it, and nothing is ever said
	half                 // half of the request's body arrives, then the connection is cut
	halfBack             // half of the answer arrives, then the connection is cut
	fail                 // an answer of the proxy's own, with status and body
	slow                 // it takes delay longer
	alter                // another body arrives
	pass                 // nothing happens to it: before is called, and it goes on
)

// rule makes requests fail.
type rule struct {
	match  func(*http.Request) bool // nil for all
	mode   mode
	times  int // how often; 0 for as long as the rule stands
	status int // of fail
	body   string
	delay  time.Duration       // of slow
	ends   chan struct{}       // closed when what was silent is cut; nil for never
	before func()              // called before the request goes on, however it fails
	after  func()              // called when the other side has done it, of lose and hang
	change func([]byte) []byte // of alter: what becomes of the request's body
}

// proxy is a border at which requests fail as its rules say. Its methods are safe for
// concurrent use.
type proxy struct {
	address   string
	next      *httputil.ReverseProxy
	transport *http.Transport
	server    *http.Server
	observe   func(r *http.Request, body []byte, status int)

	mu      sync.Mutex
	rules   []*rule
	watches []*watch
}

// watch waits for a request.
type watch struct {
	match func(*http.Request) bool
	seen  chan struct{}
	once  sync.Once
}

// loopback is an address with a free port.
const loopback = "127.0.0.1:0"

// networkOf tells a Unix socket's path from host and port.
func networkOf(address string) string {
	if address[0] == '/' {
		return "unix"
	}
	return "tcp"
}

// carriage is how a proxy reaches its server, and who learns of what it carries.
type carriage struct {
	// keepHost hands the caller's Host header on, as S3's signatures need it.
	keepHost bool
	// dial, if it is set, connects in the place of the target's address.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	// observe, if it is set, learns of each request.
	observe func(r *http.Request, body []byte, status int)
}

// newProxy listens before an HTTP server; both addresses are host and port, or the path
// of a Unix socket.
func newProxy(listen, target string, how carriage) (*proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), networkOf(listen), listen)
	if err != nil {
		return nil, err
	}
	p := &proxy{address: listener.Addr().String(), observe: how.observe}
	host := target
	if networkOf(target) == "unix" {
		p.transport, host = unixTransport(target), "engine"
	} else {
		p.transport = &http.Transport{MaxIdleConnsPerHost: 16}
	}
	p.transport.DisableCompression = true
	if how.dial != nil {
		p.transport.DialContext = how.dial
	}
	p.next = &httputil.ReverseProxy{
		Transport: p.transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", host
			r.Out.Host = host
			if how.keepHost {
				r.Out.Host = r.In.Host
			}
		},
		// The other side is down: the caller sees what it would without the proxy.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { cut(w) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // connections break here all the time
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: p.next.ErrorLog}
	go func() { _ = p.server.Serve(listener) }() // until close
	return p, nil
}

func (p *proxy) close() {
	_ = p.server.Close()
	p.transport.CloseIdleConnections()
}

// url is the proxy's address for callers over TCP.
func (p *proxy) url() string { return "http://" + p.address }

// add puts a rule in force and returns what takes it away. Requests that are silent
// stay so until their callers leave.
func (p *proxy) add(r rule) (heal func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	added := &r
	p.rules = append(p.rules, added)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, other := range p.rules {
			if other == added {
				p.rules = append(p.rules[:i:i], p.rules[i+1:]...)
			}
		}
	}
}

// await returns a channel that is closed when a request comes that matches.
func (p *proxy) await(match func(*http.Request) bool) <-chan struct{} {
	w := &watch{match: match, seen: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watches = append(p.watches, w)
	return w.seen
}

// rule finds the rule for a request, and counts it.
func (p *proxy) rule(r *http.Request) *rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.watches[:0]
	for _, w := range p.watches {
		if w.match(r) {
			w.once.Do(func() { close(w.seen) })
			continue
		}
		kept = append(kept, w)
	}
	p.watches = kept
	for i, rule := range p.rules {
		if rule.match != nil && !rule.match(r) {
			continue
		}
		if rule.times > 0 {
			rule.times--
			if rule.times == 0 {
				p.rules = append(p.rules[:i:i], p.rules[i+1:]...)
			}
		}
		return rule
	}
	return nil
}

// ServeHTTP carries a request, or fails it.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rule := p.rule(r)
	if rule == nil {
		p.carry(w, r)
		return
	}
	if rule.before != nil {
		rule.before()
	}
	switch rule.mode {
	case refuse:
		cut(w)
	case silence:
		select {
		case <-r.Context().Done():
		case <-rule.ends:
		}
		cut(w)
	case lose, hang:
		p.next.ServeHTTP(&discarded{header: http.Header{}}, r)
		if rule.after != nil {
			rule.after()
		}
		if rule.mode == hang {
			<-r.Context().Done()
		}
		cut(w)
	case half:
		r.Body = io.NopCloser(&halved{r.Body, max(r.ContentLength/2, 1)})
		p.carry(w, r)
	case halfBack:
		recorded := &discarded{header: w.Header()}
		p.next.ServeHTTP(recorded, r)
		w.Header().Set("Content-Length", strconv.Itoa(recorded.body.Len()+1))
		w.WriteHeader(max(recorded.status, http.StatusOK))
		_, _ = w.Write(recorded.body.Bytes()[:recorded.body.Len()/2])
		cut(w)
	case fail:
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(rule.status)
		_, _ = io.WriteString(w, rule.body)
	case slow:
		select {
		case <-time.After(rule.delay):
		case <-r.Context().Done():
		}
		p.carry(w, r)
	case alter:
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			cut(w)
			return
		}
		raw = rule.change(raw)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
		p.carry(w, r)
	case pass:
		p.carry(w, r)
	}
}

// carry hands a request on, and tells of it.
func (p *proxy) carry(w http.ResponseWriter, r *http.Request) {
	if p.observe == nil {
		p.next.ServeHTTP(w, r)
		return
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		cut(w)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	told := &teller{ResponseWriter: w}
	p.next.ServeHTTP(told, r)
	p.observe(r, raw, told.status)
}

// teller remembers the status of an answer.
type teller struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (t *teller) WriteHeader(status int) {
	t.status = status
	t.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (t *teller) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// cut ends a connection without another word.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = conn.Close()
}

// discarded is an answer that is not sent.
type discarded struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (d *discarded) Header() http.Header { return d.header }

// WriteHeader implements http.ResponseWriter.
func (d *discarded) WriteHeader(status int) { d.status = status }

// Write implements http.ResponseWriter.
func (d *discarded) Write(b []byte) (int, error) { return d.body.Write(b) }

// halved is a body that breaks in the middle.
type halved struct {
	io.Reader
	left int64
}

// Read implements io.Reader.
func (h *halved) Read(b []byte) (int, error) {
	if h.left <= 0 {
		return 0, errors.New("cut in the middle")
	}
	n, err := h.Reader.Read(b[:min(int64(len(b)), h.left)])
	h.left -= int64(n)
	return n, err
}

// wire is a border of plain connections, before Postgres. Its methods are safe for
// concurrent use.
type wire struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	conns  map[net.Conn]bool
	refuse bool
	quiet  chan struct{} // while it is there nothing moves; closed when it ends
}

func newWire(target string) (*wire, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &wire{listener: listener, target: target, conns: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go w.carry(conn)
		}
	}()
	return w, nil
}

func (w *wire) close() {
	_ = w.listener.Close()
	w.cut()
}

// cut ends all connections.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.conns {
		_ = conn.Close()
	}
}

// down ends all connections and refuses new ones until the result is called.
func (w *wire) down() (heal func()) {
	w.set(func() { w.refuse = true })
	w.cut()
	return func() { w.set(func() { w.refuse = false }) }
}

// hush keeps every byte until the result is called.
func (w *wire) hush() (heal func()) {
	quiet := make(chan struct{})
	w.set(func() { w.quiet = quiet })
	return func() {
		w.set(func() { w.quiet = nil })
		close(quiet)
	}
}

func (w *wire) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *wire) carry(in net.Conn) {
	defer in.Close()
	w.mu.Lock()
	refused := w.refuse
	w.mu.Unlock()
	if refused {
		return
	}
	out, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", w.target)
	if err != nil {
		return
	}
	defer out.Close()
	w.set(func() { w.conns[in], w.conns[out] = true, true })
	defer w.set(func() {
		delete(w.conns, in)
		delete(w.conns, out)
	})
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			defer func() {
				_ = in.Close()
				_ = out.Close()
			}()
			buffer := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buffer)
				if n > 0 {
					w.pass()
					if _, err := way[1].Write(buffer[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}

// pass waits for the end of a silence.
func (w *wire) pass() {
	w.mu.Lock()
	quiet := w.quiet
	w.mu.Unlock()
	if quiet != nil {
		<-quiet
	}
}
