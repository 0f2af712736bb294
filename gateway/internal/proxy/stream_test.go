package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

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

// awaitStandstill returns when n has grown and grows no more: everything on the
// way to a client that does not read is full.
func awaitStandstill(t *testing.T, n *atomic.Int64) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for last, still := int64(0), 0; still < 4; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the flood does not stand still")
		}
		if now := n.Load(); now == 0 || now != last {
			last, still = now, 0
		} else {
			still++
		}
	}
}

func TestTheEndOfTheIncarnationEndsWhatIsOpen(t *testing.T) {
	deleted := sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
	began, left := make(chan struct{}, 2), make(chan struct{}, 2)
	hang := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			_, _ = io.WriteString(w, "first")
			_ = http.NewResponseController(w).Flush()
		}
		began <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	}

	t.Run("a request that waits gets the cause", func(t *testing.T) {
		f := serve(t, backend(t, hang), always, proxy.Settings{}, nil)
		go func() {
			<-began
			f.end(deleted)
		}()
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
		var written atomic.Int64
		flood := backend(t, func(w http.ResponseWriter, _ *http.Request) {
			for chunk := make([]byte, 32<<10); ; written.Add(1) {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		})
		f := serve(t, flood, always, proxy.Settings{}, nil)
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\n\r\n")
		awaitStandstill(t, &written)
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
