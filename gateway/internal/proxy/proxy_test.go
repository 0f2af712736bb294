package proxy_test

import (
	"bufio"
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

	"github.com/coder/websocket"
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

func TestEventsArriveBeforeTheNextIsSent(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lines := bufio.NewScanner(do(ctx, t, f, http.MethodGet, "/event", nil).Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
			t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
	if lines.Scan() {
		t.Errorf("more than was sent: %q", lines.Text())
	}
	if err := f.result(t); err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestHeadersArriveBeforeAnyBody(t *testing.T) {
	release := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-release
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if res := do(ctx, t, f, http.MethodGet, "/event", nil); res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
	close(release)
}

func TestARequestAndItsReplyStreamAtTheSameTime(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_ = rc.Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); _ = rc.Flush() {
			_, _ = io.WriteString(w, lines.Text()+"!\n")
		}
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	body, feed := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answers := bufio.NewScanner(do(ctx, t, f, http.MethodPost, "/x", body).Body)
	for i := range 3 {
		_, _ = fmt.Fprintf(feed, "line %d\n", i)
		if !answers.Scan() || answers.Text() != fmt.Sprintf("line %d!", i) {
			t.Fatalf("answer %d: %q, %v", i, answers.Text(), answers.Err())
		}
	}
	_ = feed.Close()
	if answers.Scan() || answers.Err() != nil {
		t.Errorf("at the end: %q, %v", answers.Text(), answers.Err())
	}
}

func TestAnUploadStreamsWhileItIsMade(t *testing.T) {
	got := make(chan string)
	addr := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			got <- lines.Text()
		}
		close(got)
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	body, feed := io.Pipe()
	go func() {
		for i := range 3 {
			_, _ = fmt.Fprintf(feed, "line %d\n", i)
			if line := <-got; line != fmt.Sprintf("line %d", i) {
				t.Errorf("OpenCode got %q", line)
			}
		}
		_ = feed.Close()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if res := do(ctx, t, f, http.MethodPost, "/x", body); res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestContinueIsSentWhenTheSandboxWantsTheBody(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") != "100-continue" {
			t.Errorf("Expect is %q", r.Header.Get("Expect"))
		}
		_, _ = io.Copy(w, r.Body)
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "POST "+prefix+"/x HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	r := bufio.NewReader(c)
	interim, err := http.ReadResponse(r, nil)
	if err != nil || interim.StatusCode != http.StatusContinue {
		t.Fatalf("first reply %v, %v", interim, err)
	}
	_, _ = io.WriteString(c, "body")
	final, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = final.Body.Close() }()
	if got, _ := io.ReadAll(final.Body); string(got) != "body" {
		t.Errorf("got %q", got)
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if c.Write(r.Context(), kind, data) != nil {
			return
		}
	}
}

func dialWebSocket(t *testing.T, f *front) *websocket.Conn {
	t.Helper()
	c, res, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(f.URL, "http")+prefix+"/pty/p/connect?token=t", &websocket.DialOptions{
		HTTPClient: f.Client(), HTTPHeader: http.Header{"Origin": {"http://elsewhere.example"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Body != nil {
		_ = res.Body.Close()
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func TestAWebSocketEchoes(t *testing.T) {
	f := serve(t, backend(t, echo), always, proxy.Settings{}, nil)
	c := dialWebSocket(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, text := range []string{"ls\n", "", strings.Repeat("x", 30_000)} {
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("closing: %v", err)
	}
	if err := f.result(t); err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestTheEndOfTheIncarnationEndsWhatIsOpen(t *testing.T) {
	deleted := sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
	left := make(chan struct{}, 1)
	hang := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			_, _ = io.WriteString(w, "first")
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		left <- struct{}{}
	}

	t.Run("a request that waits gets the cause", func(t *testing.T) {
		f := serve(t, backend(t, hang), always, proxy.Settings{}, nil)
		time.AfterFunc(10*time.Millisecond, func() { f.end(deleted) })
		res := do(t.Context(), t, f, http.MethodGet, "/wait", nil)
		if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusConflict || !strings.Contains(string(body), "sandbox_deleted") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
		<-left
	})
	t.Run("a later request does too", func(t *testing.T) {
		f := serve(t, backend(t, hang), always, proxy.Settings{}, nil)
		f.end(errors.New("stopped"))
		do(t.Context(), t, f, http.MethodGet, "/wait", nil)
		if err := f.result(t); !sandbox.HasCode(err, sandbox.CodeOpenCodeDown) {
			t.Errorf("Serve returned %v", err)
		}
	})
	t.Run("a stream is cut so that the client knows", func(t *testing.T) {
		f := serve(t, backend(t, hang), always, proxy.Settings{}, nil)
		res := do(t.Context(), t, f, http.MethodGet, "/stream", nil)
		if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		f.end(deleted)
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("the stream ended as if it were complete")
		}
		if err := f.result(t); !errors.Is(err, errPanicked) {
			t.Errorf("Serve returned %v", err)
		}
		<-left
	})
	t.Run("a stream to a client that does not read", func(t *testing.T) {
		flood := backend(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, endless{}) })
		f := serve(t, flood, always, proxy.Settings{}, nil)
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\n\r\n")
		if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		f.end(deleted)
		if err := f.result(t); !errors.Is(err, errPanicked) {
			t.Errorf("Serve returned %v", err)
		}
	})
	t.Run("a WebSocket", func(t *testing.T) {
		f := serve(t, backend(t, echo), always, proxy.Settings{}, nil)
		c := dialWebSocket(t, f)
		f.end(deleted)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("the WebSocket is still open: %v", err)
		}
		if err := f.result(t); err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	t.Run("a WebSocket whose sandbox has closed its side", func(t *testing.T) {
		addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSet-Cookie: a=1\r\n\r\n")
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			_, _ = io.Copy(io.Discard, c)
		})
		f := serve(t, addr, always, proxy.Settings{}, nil)
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Set-Cookie") != "" {
			t.Fatalf("%v, %v", res, err)
		}
		f.end(deleted)
		if err := f.result(t); err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
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
