package clienttest

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// HTMLError is how the worker's platform reports a handler that failed.
func HTMLError(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "text/html; charset=UTF-8")
	rw.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(rw, "<!DOCTYPE html><html><head><title>Worker threw exception</title></head><body><h1>Error 1101</h1></body></html>")
}

// BareError is how the bare runtime reports it.
func BareError(rw http.ResponseWriter, _ *http.Request) { replay(rw, "raw_sync") }

// PlainNotFound is what the worker says of a route that it does not know.
func PlainNotFound(rw http.ResponseWriter, _ *http.Request) { replay(rw, "raw_404") }

// NoParts is what it says of a turn that failed.
func NoParts(rw http.ResponseWriter, _ *http.Request) { replay(rw, "message_bad_model") }

// Page is a success that is a page: a portal in front of the backend.
func Page(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(rw, "<html>sign in</html>")
}

// Hang never answers. It ends when the caller leaves, which net/http notices only
// behind the body.
func Hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxBody))
	<-r.Context().Done()
}

// CutOff breaks off in the middle of a body.
func CutOff(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(rw, `{"success":true,`)
	_ = http.NewResponseController(rw).Flush()
	panic(http.ErrAbortHandler)
}

// Drop closes the connection without an answer.
func Drop(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// HugeBody sends a body without end.
func HugeBody(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	chunk := strings.Repeat(" ", 64<<10)
	for {
		if _, err := io.WriteString(rw, chunk); err != nil {
			return
		}
	}
}

// HugeError is HugeBody with a status that is none of success.
func HugeError(rw http.ResponseWriter, r *http.Request) {
	rw.WriteHeader(http.StatusInternalServerError)
	HugeBody(rw, r)
}

// HugeHeaders sends headers of 4 MiB.
func HugeHeaders(rw http.ResponseWriter, _ *http.Request) {
	for range 4 {
		rw.Header().Add("X-Filler", strings.Repeat("x", 1<<20))
	}
	rw.WriteHeader(http.StatusOK)
}

// SlowHeaders sends a header line every 10 ms, for ever.
func SlowHeaders(rw http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for line := "HTTP/1.1 200 OK\r\n"; ; line = "X: y\r\n" {
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
		<-tick.C
	}
}

// EchoToken repeats the caller's Authorization in its error.
func EchoToken(rw http.ResponseWriter, r *http.Request) {
	rw.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(rw, "cannot take "+r.Header.Get("Authorization")) //nolint:gosec // the fault is that it repeats this
}

// Status answers with a status and nothing else; retryAfter, if not empty, is the
// header of that name.
func Status(status int, retryAfter string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			rw.Header().Set("Retry-After", retryAfter)
		}
		rw.WriteHeader(status)
	}
}

// Redirect sends the caller to another address.
func Redirect(to string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Location", to)
		rw.WriteHeader(http.StatusTemporaryRedirect)
	}
}
