package border

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

// Transport returns next as a ReverseProxy shall see it: without what the
// ReverseProxy would pass on unseen.
func Transport(next http.RoundTripper) http.RoundTripper { return upstream{next} }

type upstream struct{ next http.RoundTripper }

// RoundTrip hides interim replies and trailers, both of which could carry a
// header past the border, and refuses a status that no server may send.
func (u upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := u.next.RoundTrip(r.WithContext(untraced{r.Context()})) //nolint:contextcheck // it is the request's own, but for the trace
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols && (res.StatusCode < 200 || res.StatusCode > 599) {
		_ = res.Body.Close()
		return nil, fmt.Errorf("status %d is not a final one", res.StatusCode)
	}
	// The body fills in the trailers of the response that it came with, not of
	// this copy.
	clone := *res
	clone.Trailer = nil
	clone.Request = r
	return &clone, nil
}

// untraced hides the ReverseProxy's httptrace, through which interim replies
// reach the client, and without which the transport counts them towards the
// bound on headers.
type untraced struct{ context.Context } //nolint:containedctx // a context that wraps one

// Value returns what the parent holds, unless it is a trace.
func (c untraced) Value(key any) any {
	v := c.Context.Value(key)
	if _, ok := v.(*httptrace.ClientTrace); ok {
		return nil
	}
	return v
}

// Writer notices when a reply begins and from then on ends it together with its
// context, even while a client that does not read blocks the write. It is for
// one goroutine.
type Writer struct {
	http.ResponseWriter
	// Parting, if it is set before the reply begins, gives the last bytes for the
	// client of an upgraded connection that the sandbox's side has ended.
	Parting func() []byte

	ctx     context.Context //nolint:containedctx // the exchange's own, which this type serves
	input   func()
	started bool
	stops   []func()
}

// NewWriter returns a Writer on w that ends with ctx. Input, unless it is nil, is
// called when bytes come from the client of an upgraded connection, before they
// go on, but not for its answer to the parting words; it must return at once.
func NewWriter(ctx context.Context, w http.ResponseWriter, input func()) *Writer {
	return &Writer{ResponseWriter: w, ctx: ctx, input: input}
}

// Started tells whether the reply has begun.
func (w *Writer) Started() bool { return w.started }

// Unwrap lets http.ResponseController reach the writer below.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader begins the reply.
func (w *Writer) WriteHeader(status int) {
	w.started = true
	w.atEnd(func() { _ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now()) })
	w.ResponseWriter.WriteHeader(status)
}

// leaveTime is how long the rest of a body may take behind its reply.
const leaveTime = 10 * time.Second

// Upload returns the body of a request, bounded in bytes, to be read while the
// reply is on its way, which net/http's server does not allow otherwise. A writer
// that cannot do this (HTTP/2 always does) says so, and that is fine. The handler
// calls leave at its end: were a rest of the body left to the server, it would
// take the client's next request for a read at the same time, and panic.
func (w *Writer) Upload(r *http.Request, limit int64) (body io.ReadCloser, leave func()) {
	if r.Body == nil || r.ContentLength == 0 {
		return r.Body, func() {}
	}
	body = http.MaxBytesReader(w.ResponseWriter, r.Body, limit)
	if r.Header.Get("Upgrade") != "" { // the connection is not the server's afterwards
		return body, func() {}
	}
	control := http.NewResponseController(w.ResponseWriter)
	if control.EnableFullDuplex() != nil {
		return body, func() {}
	}
	return body, func() {
		_ = control.SetReadDeadline(time.Now().Add(leaveTime))
		if w.ctx.Err() != nil {
			_ = control.SetReadDeadline(time.Now())
		}
		switch err := r.Body.Close(); {
		case err == nil:
		case w.started:
			panic(http.ErrAbortHandler) // what is left of the body would be the next request
		default:
			w.Header().Set("Connection", "close")
		}
	}
}

// Hijack takes the connection over. The ReverseProxy closes only the sandbox's
// side of an upgraded connection when the context ends, and waits for the
// client's side if the sandbox had closed its own.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.started = true
	w.atEnd(func() { _ = c.Close() })
	if w.input != nil {
		c = &heard{Conn: c, input: w.input, parting: w.Parting}
	}
	return c, rw, nil
}

// heard is a connection that tells when bytes come.
type heard struct {
	net.Conn
	input   func()
	parting func() []byte
	over    atomic.Bool // what comes now is the answer to our farewell
}

// Close sends what is to be said last, and closes.
func (h *heard) Close() error {
	h.over.Store(true)
	if h.parting != nil {
		if last := h.parting(); len(last) > 0 {
			_ = h.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = h.Write(last) // to a client that may have left
		}
	}
	return h.Conn.Close()
}

// Read reads, and tells of what came.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 && !h.over.Load() {
		h.input()
	}
	return n, err
}

// CloseWrite ends one way of the connection.
func (h *heard) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return h.Close()
}

// atEnd calls f when the context ends, unless Release was called before.
func (w *Writer) atEnd(f func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(w.ctx, func() {
		defer close(done)
		f()
	})
	w.stops = append(w.stops, func() {
		if !stop() {
			<-done // what is below must not be touched behind the handler
		}
	})
}

// Release lets the reply be: the end of the context does not cut it any more, and
// nothing touches it in the background.
func (w *Writer) Release() {
	for _, stop := range w.stops {
		stop()
	}
	w.stops = nil
}

// NewBuffers returns a pool of buffers of so many bytes that all copies of a
// ReverseProxy share.
func NewBuffers(size int) httputil.BufferPool { return &buffers{size: size} }

type buffers struct {
	size int
	pool sync.Pool
}

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, b.size)
}

// Put gives a buffer back.
func (b *buffers) Put(p []byte) {
	if len(p) == b.size {
		b.pool.Put(&p)
	}
}
