package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// do sends a request through a front with a client that follows nothing.
func do(ctx context.Context, tb testing.TB, f *front, method, path string, body io.Reader) *http.Response {
	tb.Helper()
	req, err := http.NewRequestWithContext(ctx, method, f.URL+prefix+path, body)
	if err != nil {
		tb.Fatal(err)
	}
	res, err := f.Client().Do(req)
	if err != nil {
		tb.Fatalf("%s %s: %v", method, path, err)
	}
	tb.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func TestEveryMethodAndBodyTravels(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %d", r.Method, r.ContentLength))
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(data)
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	body := make([]byte, 100_000)
	_, _ = rand.Read(body)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
		t.Run(method, func(t *testing.T) {
			send := body
			if method == "GET" || method == "HEAD" {
				send = nil
			}
			res := do(t.Context(), t, f, method, "/x", bytes.NewReader(send))
			got, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(got, send) {
				t.Errorf("%d bytes back of %d, %v", len(got), len(send), err)
			}
			if seen := res.Header.Get("X-Seen"); res.StatusCode != http.StatusTeapot || seen != fmt.Sprintf("%s %d", method, len(send)) {
				t.Errorf("status %d, OpenCode saw %q", res.StatusCode, seen)
			}
		})
	}
}

func TestCompressedBodiesStayAsTheyAre(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "not gzip at all; accepts "+r.Header.Get("Accept-Encoding"))
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	_, header, body := send(t, f, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\nAccept-Encoding: br\r\nConnection: close\r\n\r\n")
	if header.Get("Content-Encoding") != "gzip" || body != "not gzip at all; accepts br" {
		t.Errorf("%v %q", header, body)
	}
}

func TestDropCutsAStream(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	res := do(t.Context(), t, f, http.MethodGet, "/stream", nil)
	if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	f.transport.Drop(run)
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the stream ended as if it were complete")
	}
	do(t.Context(), t, f, http.MethodGet, "/stream", nil)
	if err := f.result(t); !errors.Is(err, errPanicked) {
		t.Errorf("the cut stream returned %v", err)
	}
	if err := f.result(t); !sandbox.HasCode(err, sandbox.CodeOpenCodeDown) {
		t.Errorf("the next request returned %v", err)
	}
}

func TestAClientThatLeavesCancelsUpstream(t *testing.T) {
	began, left := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(left)
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL+prefix+"/session/s/message", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := f.Client().Do(req); err == nil {
		_ = res.Body.Close()
		t.Fatal("an answer came")
	}
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("OpenCode was not told")
	}
	if err := f.result(t); !errors.Is(err, proxy.ErrClientGone) {
		t.Errorf("Serve returned %v", err)
	}
}

func TestFailuresBeforeTheReplyHaveCodes(t *testing.T) {
	talk := func(text string) func(t *testing.T) string {
		return func(t *testing.T) string {
			addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.WriteString(c, text) })
			return addr
		}
	}
	refused := func(t *testing.T) string {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		return l.Addr().String()
	}
	says := func(err error) proxy.AliveFunc {
		return func(context.Context, lifecycle.Run) error { return err }
	}
	for name, tt := range map[string]struct {
		addr  func(t *testing.T) string
		alive proxy.AliveFunc
		want  sandbox.Code
	}{
		"nobody listens":            {refused, always, sandbox.CodeOpenCodeDown},
		"the run is over":           {talk(""), says(lifecycle.ErrNoContainer), sandbox.CodeOpenCodeDown},
		"the engine is away":        {talk(""), says(sandbox.Errorf(sandbox.CodeEngineAway, "away")), sandbox.CodeEngineAway},
		"hung up":                   {talk(""), always, sandbox.CodeOpenCodeFailed},
		"no HTTP":                   {talk("SSH-2.0-x\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
		"huge header":               {talk("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
		"many headers":              {talk("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1<<16) + "\r\n"), always, sandbox.CodeOpenCodeFailed},
		"interim replies for ever":  {talk(strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 1000)), always, sandbox.CodeOpenCodeFailed},
		"status 000":                {talk("HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
		"status 999":                {talk("HTTP/1.1 999 Much\r\nContent-Length: 0\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
		"a switch nobody asked for": {talk("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
		"two lengths that disagree": {talk("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), always, sandbox.CodeOpenCodeFailed},
		"a header that is none":     {talk("HTTP/1.1 200 OK\r\nbad\x00name: 2\r\n\r\n"), always, sandbox.CodeOpenCodeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, tt.addr(t), tt.alive, proxy.Settings{}, nil)
			res := do(t.Context(), t, f, http.MethodPost, "/x?token=t0k3n", strings.NewReader("body"))
			err := f.result(t)
			if sandbox.CodeOf(err) != tt.want || res.StatusCode != tt.want.Status() {
				t.Errorf("status %d, error %v, want %s", res.StatusCode, err, tt.want)
			}
			if strings.Contains(err.Error(), "t0k3n") || strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

func TestABodyOverTheLimitIs413(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			w.WriteHeader(http.StatusAccepted)
		}
	})
	f := serve(t, addr, always, proxy.Settings{MaxBody: 1000}, nil)
	body := func(n int) string { return strings.Repeat("x", n) }
	for name, tt := range map[string]struct {
		body io.Reader
		want int
	}{
		"at the limit":                   {strings.NewReader(body(1000)), http.StatusAccepted},
		"above it, announced":            {strings.NewReader(body(1001)), http.StatusRequestEntityTooLarge},
		"above it, without a length":     {io.MultiReader(strings.NewReader(body(1001))), http.StatusRequestEntityTooLarge},
		"far above it, without a length": {io.LimitReader(endless{}, 1<<20), http.StatusRequestEntityTooLarge},
		"at the limit, without a length": {io.MultiReader(strings.NewReader(body(1000))), http.StatusAccepted},
	} {
		t.Run(name, func(t *testing.T) {
			if res := do(t.Context(), t, f, http.MethodPost, "/x", tt.body); res.StatusCode != tt.want {
				t.Errorf("status %d, want %d", res.StatusCode, tt.want)
			}
		})
	}
}

func TestABodyThatBreaksOffIsNotPassedAsComplete(t *testing.T) {
	addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	res := do(t.Context(), t, f, http.MethodGet, "/x", nil)
	if got, err := io.ReadAll(res.Body); err == nil || string(got) != "half" {
		t.Errorf("%q, %v", got, err)
	}
}

// endless is what a flooding sandbox or client sends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestMemoryStaysFlatWhileMuchStreamsBothWays(t *testing.T) {
	const size = 200 << 20
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n, _ := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n)
			return
		}
		_, _ = io.Copy(w, io.LimitReader(endless{}, size))
	})
	f := serve(t, addr, always, proxy.Settings{MaxBody: size}, nil)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	res := do(t.Context(), t, f, http.MethodGet, "/x", nil)
	var highest uint64
	var total int64
	for {
		n, err := io.CopyN(io.Discard, res.Body, size/8)
		total += n
		highest = max(highest, heap())
		if err != nil {
			break
		}
	}
	if total != size {
		t.Fatalf("%d bytes came of %d", total, size)
	}
	up := do(t.Context(), t, f, http.MethodPost, "/x", io.LimitReader(endless{}, size))
	if got, _ := io.ReadAll(up.Body); string(got) != fmt.Sprint(size) {
		t.Fatalf("OpenCode got %s bytes", got)
	}
	highest = max(highest, heap())
	if grown := int64(highest) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestADripIsPassedOnDropByDrop(t *testing.T) {
	gate := make(chan struct{})
	addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
		for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc") {
			<-gate
			_, _ = c.Write([]byte{b})
		}
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	go func() {
		for range len("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc") {
			gate <- struct{}{}
		}
	}()
	res := do(t.Context(), t, f, http.MethodGet, "/x", nil)
	if got, err := io.ReadAll(res.Body); err != nil || cmp.Diff("abc", string(got)) != "" {
		t.Errorf("%q, %v", got, err)
	}
}
