package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// opened is an API with a sandbox of Ada's, served on a port.
type opened struct {
	world
	url, id, token string
	http           *http.Client
}

func open(t *testing.T, o options, openCode http.HandlerFunc) opened {
	t.Helper()
	_, o.backends = newGateway(t, openCode)
	w := newWorld(t, sqlite(t), o)
	token := w.signUp(t)
	client := &http.Client{Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	out := opened{world: w, token: token, id: w.running(t, w.userOfToken(t, token)), url: w.listen(t), http: client}
	t.Cleanup(client.CloseIdleConnections)
	return out
}

// root is where the sandbox's OpenCode is.
func (o opened) root() string { return o.url + sandboxesRoot + "/" + o.id + "/opencode" }

// ask sends a request with headers given as NAME, VALUE, …; the test closes the
// body.
func (o opened) ask(t *testing.T, method, address string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	must(t, err)
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	resp, err := o.http.Do(r)
	must(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(raw)
}

func TestTheProxysBorder(t *testing.T) {
	t.Parallel()
	var log lockedWriter
	o := open(t, options{log: &log}, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for name, value := range map[string]string{
			"Set-Cookie": "better-auth.session_token=evil", "Access-Control-Allow-Origin": "*", "Clear-Site-Data": `"*"`, "Service-Worker-Allowed": "/",
			"Strict-Transport-Security": "max-age=1", "Refresh": "0;url=//evil", "Content-Security-Policy": "default-src *",
			"X-Frame-Options": "ALLOWALL", "Cache-Control": "public", "X-Next-Cursor": "n", "Set-Auth-Token": "evil",
		} {
			h.Set(name, value)
		}
		if where := r.URL.Query().Get("to"); where != "" {
			h.Set("Location", where)
			w.WriteHeader(http.StatusFound)
		}
		r.Header.Del("Authorization") // the gateway's own
		_, _ = fmt.Fprintf(w, "%s %s\n", r.Method, strings.TrimPrefix(r.RequestURI, "/sandbox/"+strings.Split(r.RequestURI, "/")[2]))
		_ = r.Header.Write(w)
		_, _ = io.Copy(w, r.Body)
	})
	bare, _, _ := strings.Cut(o.token, ".")

	t.Run("nothing of ours goes in", func(t *testing.T) {
		resp := o.ask(t, "PATCH", o.root()+"/a%2Fb/%7Ex?x=1;y&t%6Fken=a&ticket=b&z=%zz", strings.NewReader("body\x00\xff"),
			"Authorization", "Bearer "+o.token, "Cookie", "a=b", "Origin", frontend, "Referer", frontend+"/?token=x", "X-Forwarded-For", "1.2.3.4",
			"User-Agent", "test", "X-Opencode-Directory", "/home/user", "Accept-Encoding", "identity", "Content-Type", "text/plain")
		want := "PATCH /opencode/a%2Fb/%7Ex?x=1;y&z=%zz\nAccept-Encoding: identity\r\nContent-Length: 6\r\nContent-Type: text/plain\r\nUser-Agent: test\r\n" +
			"X-Opencode-Directory: /home/user\r\nbody\x00\xff"
		if diff := cmp.Diff(want, text(t, resp)); diff != "" {
			t.Errorf("the sandbox saw (-want +got):\n%s", diff)
		}
	})
	t.Run("nothing that acts on our origin comes out", func(t *testing.T) {
		h := o.ask(t, "GET", o.root()+"/x", nil, "Authorization", "Bearer "+bare).Header
		got := map[string][]string{}
		for _, name := range []string{
			"Set-Cookie", "Access-Control-Allow-Origin", "Clear-Site-Data", "Service-Worker-Allowed", "Strict-Transport-Security", "Refresh",
			"Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Cache-Control", "X-Next-Cursor",
		} {
			if values := h.Values(name); values != nil {
				got[name] = values
			}
		}
		want := map[string][]string{
			"Content-Security-Policy": {"sandbox"}, "X-Content-Type-Options": {"nosniff"}, "X-Frame-Options": {"DENY"},
			"Cache-Control": {"no-store"}, "X-Next-Cursor": {"n"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("a redirect stays inside", func(t *testing.T) {
		inside := "/sandbox/" + o.id + "/opencode"
		for to, want := range map[string]string{
			inside + "/y?q#f": sandboxesRoot + "/" + o.id + "/opencode/y?q#f", "z": sandboxesRoot + "/" + o.id + "/opencode/z",
			"/sandbox/other/opencode/y": "", "/y": "", "//evil.example/y": "", "http://evil.example" + inside: "", inside + "x/y": "", inside + "/%2e%2e/y": "",
		} {
			resp := o.ask(t, "GET", o.root()+"/x?to="+url.QueryEscape(to), nil, "Authorization", "Bearer "+bare)
			if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusFound || got != want {
				t.Errorf("%s: %d, Location %q, want %q", to, resp.StatusCode, got, want)
			}
		}
	})
	t.Run("who may", func(t *testing.T) {
		bob := o.signUpBob(t)
		for name, c := range map[string]struct {
			query   string
			headers []string
			status  int
		}{
			"a cookie alone":             {"", []string{"Cookie", cookie(o.token)}, 401},
			"nothing":                    {"", nil, 401},
			"a cookie and a wrong token": {"?token=x", []string{"Cookie", cookie(o.token)}, 401},
			"a wrong Bearer and a token": {"?token=" + bare, []string{"Authorization", "Bearer x"}, 401},
			"a bare token":               {"?a=b&token=" + bare, nil, 200},
			"a signed token, encoded":    {"?token=" + url.QueryEscape(o.token), nil, 200},
			"a signed token, as it is":   {"?token=" + o.token, nil, 200},
			"a Bearer":                   {"", []string{"Authorization", "Bearer " + o.token}, 200},
			"a password":                 {"", []string{"Authorization", "Basic " + basic(bare), "Sec-Fetch-Mode", "cors"}, 200},
			"a password of a browser":    {"", []string{"Authorization", "Basic " + basic(bare), "Sec-Fetch-Site", "same-origin"}, 401},
			"a wrong password":           {"", []string{"Authorization", "Basic " + basic("wrong")}, 401},
			"a password in a parameter":  {"?auth_token=" + url.QueryEscape(basic(bare)), nil, 200},
			"another user":               {"", []string{"Authorization", "Bearer " + bob}, 404},
			"another user by parameter":  {"?token=" + url.QueryEscape(bob), nil, 404},
			"the service, not its own":   {"?token=" + serviceToken, nil, 404},
			"a foreign page":             {"?token=" + bare, []string{"Origin", "https://evil.example", "Upgrade", "websocket", "Connection", "Upgrade"}, 403},
		} {
			resp := o.ask(t, "GET", o.root()+"/x"+c.query, nil, c.headers...)
			if body := text(t, resp); resp.StatusCode != c.status {
				t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			}
		}
		// The parameter is for OpenCode's routes alone.
		for _, path := range []string{"/" + o.id, "/" + o.id + "/files/opencode/x", "/" + o.id + "/opencodex", "/" + o.id + "%2fopencode/x"} {
			if resp := o.ask(t, "GET", o.url+sandboxesRoot+path+"?token="+bare, nil); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
		}
		// A path that only the router takes for one of OpenCode's gives no cookie a say.
		for _, path := range []string{"/" + o.id + "/%6fpencode/x", "/a%2f" + o.id + "/opencode/x"} {
			resp := o.ask(t, "GET", o.url+sandboxesRoot+path, nil, "Cookie", cookie(o.token))
			if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
		}
	})
	t.Run("paths that could mean another", func(t *testing.T) {
		for _, path := range []string{
			"/../x", "/%2e%2e/x", "/.%2E/x", "/%252e%252e/x", "/..;a/x", "/a%2f..%2fb", `/a\b`, "/a%5cb", "/a%00b", "/a%0d%0ab",
			"/%2e%2e/%2e%2e/other/opencode/x",
		} {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(o.url, "http://"))
			must(t, err)
			must(t, conn.SetDeadline(time.Now().Add(patience)))
			_, _ = fmt.Fprintf(conn, "GET %s/%s/opencode%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", sandboxesRoot, o.id, path, bare)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			must(t, err)
			if body := text(t, resp); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
			must(t, conn.Close())
		}
	})
	t.Run("a body beyond the bound", func(t *testing.T) {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(o.url, "http://"))
		must(t, err)
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		_, _ = fmt.Fprintf(conn, "POST %s/%s/opencode/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n",
			sandboxesRoot, o.id, bare, maxProxyBody+1)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%d", resp.StatusCode)
		}
	})
	for _, secret := range []string{bare, gatewayToken, serviceToken, "token="} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q:\n%s", secret, log.String())
		}
	}
}

func TestAnAnswerThatIsNoneIsTold(t *testing.T) {
	t.Parallel()
	o := open(t, options{}, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/refused"):
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasSuffix(r.URL.Path, "/half"):
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			panic(http.ErrAbortHandler)
		}
	})
	resp := o.ask(t, "GET", o.root()+"/refused", nil, "Authorization", "Bearer "+o.token)
	if code := codeOf(t, text(t, resp)); resp.StatusCode != http.StatusBadGateway || code != "backend_failed" {
		t.Errorf("%d %s", resp.StatusCode, code)
	}
	resp = o.ask(t, "GET", o.root()+"/gone", nil, "Authorization", "Bearer "+o.token)
	if code := codeOf(t, text(t, resp)); resp.StatusCode != http.StatusServiceUnavailable || code != "backend_unavailable" {
		t.Errorf("%d %s", resp.StatusCode, code)
	}
	resp = o.ask(t, "GET", o.root()+"/half", nil, "Authorization", "Bearer "+o.token)
	if got, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("half an answer came as a whole: %q", got)
	}
}

func TestEventsArriveOneByOne(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	o := open(t, options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	lines := bufio.NewScanner(o.ask(t, "GET", o.root()+"/event?token="+url.QueryEscape(o.token), nil).Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
			t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("at the end: %q, %v", lines.Text(), lines.Err())
	}
}

// endless serves event streams and WebSockets that do not end by themselves, and
// requests that take their time.
func endless(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	}
	if strings.HasSuffix(r.URL.Path, "/event") {
		_, _ = io.WriteString(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
	}
	<-r.Context().Done()
}

// streaming opens an event stream and a WebSocket and returns a function that
// waits for the end of both.
func (o opened) streaming(t *testing.T, token string) (ended func()) {
	t.Helper()
	stream := bufio.NewReader(o.ask(t, "GET", o.root()+"/event", nil, "Authorization", "Bearer "+token).Body)
	if line, err := stream.ReadString('\n'); err != nil || line != "data: first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	socket, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(o.root(), "http")+"/pty/p/connect?token="+url.QueryEscape(token),
		&websocket.DialOptions{HTTPClient: o.http})
	must(t, err)
	if resp.Header.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("the upgrade has the headers %v", resp.Header)
	}
	t.Cleanup(func() { _ = socket.CloseNow() })
	for _, message := range []string{"ls\n", strings.Repeat("x", 30_000)} {
		must(t, socket.Write(ctx, websocket.MessageText, []byte(message)))
		if _, got, err := socket.Read(ctx); err != nil || string(got) != message {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	return func() {
		t.Helper()
		if rest, err := io.ReadAll(stream); err == nil || ctx.Err() != nil {
			t.Errorf("the stream: %q, %v", rest, err)
		}
		if _, got, err := socket.Read(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("the WebSocket: %q, %v", got, err)
		}
	}
}

func TestLosingTheRightEndsWhatIsOpen(t *testing.T) {
	t.Parallel()
	// What ends at once must not wait for the next check, nor anything else end by it.
	never, often := func(s *Settings) { s.Recheck = time.Hour }, func(s *Settings) { s.Recheck = 5 * time.Millisecond }
	for name, c := range map[string]struct {
		settings func(*Settings)
		lose     func(t *testing.T, o opened)
	}{
		"signing out": {never, func(t *testing.T, o opened) {
			if resp, body := o.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+o.token); resp.StatusCode != http.StatusOK {
				t.Error(resp.StatusCode, body)
			}
		}},
		"signing out elsewhere": {often, func(t *testing.T, o opened) {
			bare, _, _ := strings.Cut(o.token, ".")
			must(t, o.api.Accounts.SignOut(t.Context(), bare))
		}},
		"the session's end": {often, func(_ *testing.T, o opened) { o.clock.pass(8 * 24 * time.Hour) }},
		"deleting the sandbox": {never, func(t *testing.T, o opened) {
			if resp, body := o.send(t, "DELETE", sandboxesRoot+"/"+o.id, "", "Authorization", "Bearer "+o.token); resp.StatusCode != http.StatusOK {
				t.Error(resp.StatusCode, body)
			}
		}},
		"a delete elsewhere": {often, func(t *testing.T, o opened) {
			must(t, o.store.Sandboxes().Delete(t.Context(), o.userOfToken(t, o.token), o.id))
		}},
		"a drain": {never, func(_ *testing.T, o opened) { o.api.Drain() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := open(t, options{api: c.settings}, endless)
			ended := o.streaming(t, o.token)
			c.lose(t, o)
			ended()
			o.held(t, 0)
		})
	}
}

func TestOnlyTheOwnSessionsStreamsEnd(t *testing.T) {
	t.Parallel()
	o := open(t, options{api: func(s *Settings) { s.Recheck = 5 * time.Millisecond }}, endless)
	resp, body := o.send(t, "POST", authRoot+"sign-in/email", adaLogin)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	second := resp.Header.Get(tokenHeader)
	first, other := o.streaming(t, o.token), bufio.NewReader(o.ask(t, "GET", o.root()+"/event?token="+url.QueryEscape(second), nil).Body)
	o.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+o.token)
	first()
	if line, err := other.ReadString('\n'); err != nil || line != "data: first\n" {
		t.Errorf("%q, %v", line, err)
	}
	// It goes on until its own session ends.
	o.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+second)
	if _, err := io.ReadAll(other); err == nil {
		t.Error("the other stream ended as if it were complete")
	}
}

func TestARequestThatWaitsIsToldThatTheSessionEnded(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 1)
	o := open(t, options{}, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		endless(w, r)
	})
	go func() {
		<-began
		o.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+o.token)
	}()
	resp := o.ask(t, "GET", o.root()+"/wait", nil, "Authorization", "Bearer "+o.token)
	if code := codeOf(t, text(t, resp)); resp.StatusCode != http.StatusUnauthorized || code != "unauthorized" {
		t.Errorf("%d %s", resp.StatusCode, code)
	}
}

// held waits until as many requests are held open.
func (o opened) held(t *testing.T, n int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		o.api.streams.mu.Lock()
		got := len(o.api.streams.open)
		o.api.streams.mu.Unlock()
		if got == n {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d requests are held, want %d", got, n)
		}
	}
}

func TestAnUploadThatHangsEndsWithTheSession(t *testing.T) {
	t.Parallel()
	for _, below := range []string{"/files/a", "/opencode/upload"} {
		t.Run(below, func(t *testing.T) {
			t.Parallel()
			o := open(t, options{}, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(o.url, "http://"))
			must(t, err)
			defer conn.Close()
			must(t, conn.SetDeadline(time.Now().Add(patience)))
			_, _ = fmt.Fprintf(conn, "PUT %s/%s%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
				sandboxesRoot, o.id, below, o.token)
			o.held(t, 1)
			o.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+o.token)
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("%q, %v, want a connection that is cut", rest, err)
			}
			o.held(t, 0)
		})
	}
}

// lockedWriter is a log for several writers.
type lockedWriter struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buffer.Write(p)
}

func (w *lockedWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buffer.String()
}

// basic is a password as OpenCode's own clients send it.
func basic(password string) string {
	return base64.StdEncoding.EncodeToString([]byte("opencode:" + password))
}
