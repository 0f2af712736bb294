package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// How long a request may go without a byte moving follows from what it sends.
// The callers with the shortest deadline, 10 s, write a record: they have three
// tries in it.
const (
	// answerTime is how long the first try of a small request waits for its
	// answer. Each further try waits twice as long, up to longestSilence.
	answerTime = 2 * time.Second
	// deleteTime is added for a request that deletes up to a thousand objects.
	deleteTime     = 8 * time.Second
	longestSilence = time.Minute
	// slowest is the rate in bytes a second below which a connection is given up.
	// The kernel takes up to inFlight bytes from a request before they are sent.
	slowest  = 1 << 20
	inFlight = 8 << 20
)

// errSilent ends a request in which nothing moved.
var errSilent = errors.New("nothing moved for too long")

// patience is how long a request may go without a byte moving.
func patience(req *http.Request) time.Duration {
	wait := answerTime
	switch query := req.URL.Query(); {
	case req.Method != http.MethodPost:
	case query.Has("uploadId"): // a server may copy gigabytes to assemble the parts of an object
		return longestSilence
	case query.Has("delete"):
		wait += deleteTime
	}
	if size := min(req.ContentLength, inFlight); size > 0 {
		wait += time.Duration(size) * time.Second / slowest
	}
	for range tryOf(req.Context()) {
		if wait >= longestSilence {
			return longestSilence
		}
		wait *= 2
	}
	return min(wait, longestSilence)
}

type tryKey struct{}

// alone is how patient a call is that nobody tries again: as if tries came before.
const alone = 2

// withTry returns a context for a try that n others came before.
func withTry(ctx context.Context, n int) context.Context {
	if n == 0 {
		return ctx
	}
	return context.WithValue(ctx, tryKey{}, tryOf(ctx)+n)
}

// tryOf returns how many tries came before the one that a context is for.
func tryOf(ctx context.Context) int {
	n, _ := ctx.Value(tryKey{}).(int)
	return n
}

// patient is a transport that gives up a request in which nothing moves. What
// silenced one connection silenced others: the idle ones are closed with it, so
// that no later request waits for one of them.
type patient struct {
	inner *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{quiet: patience(req), cancel: cancel}
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedReader{ReadCloser: req.Body, watch: w, sends: true}
	}
	w.resume()
	resp, err := p.inner.RoundTrip(req)
	if err != nil {
		w.stop()
		return nil, p.silenced(ctx, err)
	}
	w.pause()
	resp.Body = &watchedReader{ReadCloser: resp.Body, watch: w, failed: func(err error) error { return p.silenced(ctx, err) }}
	return resp, nil
}

// silenced says what ended a request. A request that its caller's deadline ended
// may have met silence, too.
func (p patient) silenced(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errSilent):
		p.inner.CloseIdleConnections()
		return cause
	case errors.Is(cause, context.DeadlineExceeded):
		p.inner.CloseIdleConnections()
	}
	return err
}

// watch ends a request when nothing has moved for too long. It can be used
// concurrently.
type watch struct {
	quiet  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func (w *watch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
	case w.timer == nil:
		w.timer = time.AfterFunc(w.quiet, func() { w.cancel(fmt.Errorf("%w: %s", errSilent, w.quiet)) })
	default:
		w.timer.Reset(w.quiet)
	}
}

func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watch) stop() {
	w.pause()
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.cancel(nil)
}

// watchedReader is a body. Of what is sent, the time counts in which it is not
// read: its own reader's slowness is not the server's. Of an answer, the time
// counts in which it is read: a caller that does not read is not the server's
// silence either.
type watchedReader struct {
	io.ReadCloser
	watch  *watch
	sends  bool
	failed func(err error) error // of an answer: what an error means
}

// Read implements io.Reader.
func (r *watchedReader) Read(p []byte) (int, error) {
	if r.sends {
		r.watch.pause()
		defer r.watch.resume()
		return r.ReadCloser.Read(p)
	}
	r.watch.resume()
	n, err := r.ReadCloser.Read(p)
	switch {
	case err == nil:
		r.watch.pause()
	case errors.Is(err, io.EOF):
		r.watch.stop()
	default:
		r.watch.pause()
		err = r.failed(err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *watchedReader) Close() error {
	if !r.sends {
		defer r.watch.stop()
	}
	return r.ReadCloser.Close()
}
