package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// eventFront is a gateway with nothing but event streams, before one sandbox.
type eventFront struct {
	*httptest.Server
	returned chan error
	joined   chan struct{} // one for each call of Joined
	asked    chan struct{} // one for each call of Next
	end      context.CancelCauseFunc
	figures  prometheus.Collector
}

// serveEvents puts a front before the server at addr. change may alter each
// subscription. Heartbeats are off unless it turns them on.
func serveEvents(tb testing.TB, addr string, change func(*proxy.EventRequest)) *eventFront {
	tb.Helper()
	f := &eventFront{returned: make(chan error, 64), joined: make(chan struct{}, 64), asked: make(chan struct{}, 64)}
	transport := transportFor(tb, always, proxy.TransportSettings{})
	link := transport.Register(container(run, addr), nil)
	done, end := context.WithCancelCause(context.Background())
	f.end = end
	target := proxy.EventTarget{
		OpenCodeURL: link.OpenCodeURL, Password: "secret",
		Joined: func() { f.joined <- struct{}{} },
	}
	p := proxy.New(transport, proxy.Settings{Logger: slog.New(slog.DiscardHandler)})
	f.figures = p.Figures()
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _, _ := strings.Cut(r.RequestURI, "?")
		req := proxy.EventRequest{
			Path: strings.TrimPrefix(raw, prefix), Prefix: prefix, Done: done, Heartbeat: time.Hour,
			Next: func(context.Context) (proxy.EventTarget, error) {
				f.asked <- struct{}{}
				return target, nil
			},
		}
		if change != nil {
			change(&req)
		}
		err := errPanicked
		defer func() { f.returned <- err }()
		err = p.ServeEvents(w, r, req)
		if err != nil {
			http.Error(w, err.Error(), sandbox.CodeOf(err).Status())
			return
		}
	}))
	tb.Cleanup(f.Close)
	tb.Cleanup(func() { end(nil) }) // first: a server's Close waits for its handlers
	return f
}

func await[T any](tb testing.TB, c <-chan T, what string) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		tb.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

func (f *eventFront) ended(tb testing.TB, want error) {
	tb.Helper()
	if err := await(tb, f.returned, "the end of ServeEvents"); !errors.Is(err, want) {
		tb.Errorf("ServeEvents returned %v, want %v", err, want)
	}
}

// subscribe opens an event stream. It is cut when the test takes too long.
func (f *eventFront) subscribe(tb testing.TB, path string) (*http.Response, *events) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	tb.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+prefix+path, nil)
	if err != nil {
		tb.Fatal(err)
	}
	res, err := f.Client().Do(req)
	if err != nil {
		tb.Fatalf("subscribing to %s: %v", path, err)
	}
	tb.Cleanup(func() { _ = res.Body.Close() })
	return res, &events{tb: tb, r: bufio.NewReader(res.Body)}
}

// events reads an event stream whose lines end with LF.
type events struct {
	tb testing.TB
	r  *bufio.Reader
}

var eventID = regexp.MustCompile(`evt_[0-9a-f]{12}[0-9A-Za-z]{14}"`)

// next is the next block without its blank line, its id replaced by ID.
func (e *events) next() string {
	e.tb.Helper()
	var block strings.Builder
	for {
		line, err := e.r.ReadString('\n')
		if err != nil {
			e.tb.Fatalf("%v after %q", err, block.String()+line)
		}
		if line == "\n" {
			return strings.TrimSuffix(eventID.ReplaceAllString(block.String(), `ID"`), "\n")
		}
		block.WriteString(line)
	}
}

func (e *events) want(blocks ...string) {
	e.tb.Helper()
	for _, want := range blocks {
		if got := e.next(); got != want {
			e.tb.Fatalf("got %q, want %q", got, want)
		}
	}
}

// cutShort reads to the end, which must not look like one of a whole stream.
func (e *events) cutShort() {
	e.tb.Helper()
	if rest, err := io.ReadAll(e.r); err == nil || errors.Is(err, context.DeadlineExceeded) {
		e.tb.Errorf("the stream ended with %v after %.100q", err, rest)
	}
}

// openCode answers the first request with the first script and so on; the last
// answers all that follow.
func openCode(tb testing.TB, scripts ...http.HandlerFunc) string {
	tb.Helper()
	var n atomic.Int64
	return backend(tb, func(w http.ResponseWriter, r *http.Request) {
		scripts[min(int(n.Add(1)), len(scripts))-1](w, r)
	})
}

// says sends an event stream piece by piece and keeps it open as OpenCode does.
func says(pieces ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		breaksAfter(pieces...)(w, r)
		<-r.Context().Done()
	}
}

// breaksAfter sends an event stream and ends it.
func breaksAfter(pieces ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, piece := range pieces {
			_, _ = io.WriteString(w, piece)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func answers(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, status) }
}

func TestWholeEventsTravelByteForByteHoweverTheyEndAndArrive(t *testing.T) {
	const text = "data: 1\n\ndata: \xff\x00\nid: 2\n\n\n: c\r\n\r\n\r\ndata: 3\r\rdata: 4\n\r\ndata: 5\r\n\rdata: 6\r\r\ndata: 7\r\n\ndata: \u00e9\n\n"
	for name, pieces := range map[string][]string{
		"at once":        {text},
		"byte by byte":   strings.Split(text, ""),
		"in two":         {text[:10], text[10:]},
		"line by line":   strings.SplitAfter(text, "\n"),
		"cut inside one": {text + "data: cut", " off"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveEvents(t, openCode(t, says(pieces...)), nil)
			_, e := f.subscribe(t, "/event")
			got := make([]byte, len(text))
			if _, err := io.ReadFull(e.r, got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(text, string(got)); diff != "" {
				t.Errorf("-sent +got:\n%s", diff)
			}
			f.end(nil)
			if rest, _ := io.ReadAll(e.r); len(rest) != 0 {
				t.Errorf("an event that is not whole came: %q", rest)
			}
			f.ended(t, errPanicked)
			if len(f.joined) != 1 {
				t.Errorf("Joined was called %d times", len(f.joined))
			}
		})
	}
}

func TestAnEventArrivesBeforeTheNextIsSentAndTheFirstMeansJoined(t *testing.T) {
	gate := make(chan struct{})
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_ = http.NewResponseController(w).Flush()
			<-gate
			_, _ = fmt.Fprintf(w, "data: %d\r\n\r\n", i)
		}
		_ = http.NewResponseController(w).Flush()
		<-gate
	}), nil)
	defer close(gate)
	_, e := f.subscribe(t, "/event")
	if len(f.joined) != 0 {
		t.Error("Joined was called before the first event")
	}
	for i := range 3 {
		gate <- struct{}{}
		got := make([]byte, len("data: 0\r\n\r\n"))
		if _, err := io.ReadFull(e.r, got); err != nil || string(got) != fmt.Sprintf("data: %d\r\n\r\n", i) {
			t.Fatalf("event %d: %q, %v", i, got, err)
		}
		if len(f.joined) != 1 {
			t.Errorf("after event %d Joined was called %d times", i, len(f.joined))
		}
	}
}

func TestASubscriptionAndItsReplyAreCleaned(t *testing.T) {
	seen := make(chan string, 1)
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
		var head strings.Builder
		_ = r.Header.Write(&head)
		seen <- r.Method + " " + r.RequestURI + " " + r.Host + "\r\n" + head.String()
		for name, values := range map[string]string{
			"Set-Cookie": "a=1", "Access-Control-Allow-Origin": "*", "Clear-Site-Data": `"*"`, "Location": "//elsewhere.example/",
			"X-Agentpod-Error": "sandbox_not_found", "Content-Security-Policy": "default-src *", "X-Accel-Buffering": "no", "Cache-Control": "no-cache, no-transform",
		} {
			w.Header().Set(name, values)
		}
		breaksAfter("data: 1\n\n")(w, r)
		<-r.Context().Done()
	}), nil)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "GET "+prefix+"/event?directory=%2Fx&token=t0k3n HTTP/1.1\r\nHost: g\r\nConnection: X-Hop, Upgrade\r\nX-Hop: 1\r\nUpgrade: websocket\r\n"+
		"Authorization: Bearer t0k3n\r\nCookie: a=t0k3n\r\nX-Forwarded-For: 1.2.3.4\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip\r\n"+
		"Last-Event-ID: 7\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody")
	want := "GET /event?directory=%2Fx 127.0.0.1:4096\r\n" +
		"Accept: text/event-stream\r\nAuthorization: Basic b3BlbmNvZGU6c2VjcmV0\r\nLast-Event-Id: 7\r\n"
	if diff := cmp.Diff(want, await(t, seen, "the subscription")); diff != "" {
		t.Errorf("OpenCode saw (-want +got):\n%s", diff)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	defer f.end(nil)
	res.Header.Del("Date")
	if diff := cmp.Diff(http.Header{
		"Content-Type": {"text/event-stream"}, "X-Accel-Buffering": {"no"}, "Cache-Control": {"no-cache, no-transform"},
		"Content-Security-Policy": {"sandbox"}, "X-Content-Type-Options": {"nosniff"},
	}, res.Header); diff != "" {
		t.Errorf("the client saw (-want +got):\n%s", diff)
	}
}

func TestSilenceIsFilledWithHeartbeatsBetweenEvents(t *testing.T) {
	for path, beat := range map[string]string{
		"/event":               `data: {"id":"ID","type":"server.heartbeat","properties":{}}`,
		"/global/event":        `data: {"payload":{"id":"ID","type":"server.heartbeat","properties":{}}}`,
		"/api/event":           `: heartbeat`,
		"/api/session/s/event": `: heartbeat`,
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			rest := make(chan struct{})
			f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
				breaksAfter("data: 1\n\ndata: 2\nda")(w, r)
				<-rest
				breaksAfter("ta: 3\n\n")(w, r)
				<-r.Context().Done()
			}), func(r *proxy.EventRequest) { r.Heartbeat = 20 * time.Millisecond })
			_, e := f.subscribe(t, path)
			e.want("data: 1", beat, beat, beat)
			close(rest)
			for got := e.next(); got != "data: 2\ndata: 3"; got = e.next() {
				if got != beat {
					t.Fatalf("got %q", got)
				}
			}
		})
	}
}

func TestAStreamThatOpenCodeEndsGoesOnWithTheNext(t *testing.T) {
	for name, breaking := range map[string]http.HandlerFunc{
		"complete":         breaksAfter("data: 1\n\n"),
		"within an event":  breaksAfter("data: 1\n\n", "data: hal"),
		"within a chunk":   hangsUp("data: 1\n\n", "data: hal"),
		"before its blank": hangsUp("data: 1\n\n", "data: half\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := serveEvents(t, openCode(t, breaking, says("data: connected\n\n", "data: 2\n\n")), nil)
			_, e := f.subscribe(t, "/event")
			e.want("data: 1", "data: connected", "data: 2")
			if len(f.asked) != 2 || len(f.joined) != 2 {
				t.Errorf("asked for %d targets, %d joined", len(f.asked), len(f.joined))
			}
		})
	}
}

// hangsUp sends an event stream and closes the connection.
func hangsUp(pieces ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		breaksAfter(pieces...)(w, r)
		panic(http.ErrAbortHandler)
	}
}

func TestWhileTheSandboxSleepsTheGatewayAnswersByItself(t *testing.T) {
	for path, blocks := range map[string][]string{
		"/event": {
			`data: {"id":"ID","type":"server.connected","properties":{}}`,
			`data: {"id":"ID","type":"server.heartbeat","properties":{}}`,
		},
		"/global/event": {
			`data: {"payload":{"id":"ID","type":"server.connected","properties":{}}}`,
			`data: {"payload":{"id":"ID","type":"server.heartbeat","properties":{}}}`,
		},
		"/api/event":           {`data: {"id":"ID","type":"server.connected","data":{}}`, `: heartbeat`},
		"/api/session/s/event": {`: heartbeat`, `: heartbeat`},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			awake := make(chan struct{})
			f := serveEvents(t, openCode(t, says("data: theirs\n\n", "data: 1\n\n")), func(r *proxy.EventRequest) {
				r.Heartbeat = 20 * time.Millisecond
				r.Asleep = func() bool { return true }
				next := r.Next
				r.Next = func(ctx context.Context) (proxy.EventTarget, error) {
					select {
					case <-awake:
					case <-ctx.Done():
						return proxy.EventTarget{}, ctx.Err()
					}
					return next(ctx)
				}
			})
			res, e := f.subscribe(t, path)
			res.Header.Del("Date")
			if diff := cmp.Diff(http.Header{
				"Content-Type": {"text/event-stream"}, "Cache-Control": {"no-cache, no-transform"}, "X-Accel-Buffering": {"no"},
				"Content-Security-Policy": {"sandbox"}, "X-Content-Type-Options": {"nosniff"},
			}, res.Header); diff != "" || res.StatusCode != http.StatusOK {
				t.Errorf("status %d, headers (-want +got):\n%s", res.StatusCode, diff)
			}
			e.want(blocks...)
			e.want(blocks[1], blocks[1])
			close(awake)
			for got := e.next(); got != "data: theirs"; got = e.next() {
				if got != blocks[1] {
					t.Fatalf("got %q", got)
				}
			}
			e.want("data: 1")
			await(t, f.joined, "the joining")
		})
	}
}

func TestASandboxThatRunsButKeepsSilentIsAnsweredForToo(t *testing.T) {
	f := serveEvents(t, openCode(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}, says("data: 1\n\n")), func(r *proxy.EventRequest) {
		r.Heartbeat, r.JoinTimeout = 20*time.Millisecond, 1500*time.Millisecond
	})
	_, e := f.subscribe(t, "/event")
	e.want(`data: {"id":"ID","type":"server.connected","properties":{}}`, `data: {"id":"ID","type":"server.heartbeat","properties":{}}`)
	await(t, f.joined, "the first target's failure")
	for e.next() != "data: 1" {
		continue
	}
	await(t, f.joined, "the joining")
}

func TestATargetWhoseFirstEventIsLateIsGivenUp(t *testing.T) {
	f := serveEvents(t, openCode(t, says(""), says("data: 1\n\n")), func(r *proxy.EventRequest) { r.JoinTimeout = 50 * time.Millisecond })
	_, e := f.subscribe(t, "/event")
	e.want("data: 1")
	if joined := len(f.joined); joined < 2 || joined != len(f.asked) {
		t.Errorf("Joined was called %d times for %d targets", joined, len(f.asked))
	}
}

func TestAJoiningThatFailsIsTriedAgainAfterAGrowingPause(t *testing.T) {
	began := time.Now()
	f := serveEvents(t, openCode(t, breaksAfter("data: 1\n\n"), answers(http.StatusServiceUnavailable, "not yet"),
		answers(http.StatusOK, "<html>"), says("data: 2\n\n")), nil)
	_, e := f.subscribe(t, "/event")
	e.want("data: 1", "data: 2")
	if waited := time.Since(began); waited < (250+500+1000)*time.Millisecond {
		t.Errorf("OpenCode was asked four times within %s", waited)
	}
	if len(f.asked) != 4 || len(f.joined) != 4 {
		t.Errorf("asked for %d targets, %d joined", len(f.asked), len(f.joined))
	}
}

func TestADurableStreamGoesOnAfterItsLastEvent(t *testing.T) {
	queries := make(chan string, 8)
	event := func(seq int) string { return fmt.Sprintf(`data: {"id":"evt_x","durable":{"seq":%d}}`, seq) }
	noted := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			queries <- r.URL.RawQuery
			h(w, r)
		}
	}
	f := serveEvents(t, openCode(t,
		noted(breaksAfter(event(4)+"\n\n", event(5)+"\n\n", "data: no number\n\n", event(6))),
		noted(says(event(6)+"\n\n")),
	), nil)
	_, e := f.subscribe(t, "/api/session/s/event?%61fter=3&directory=%2fx")
	e.want(event(4), event(5), "data: no number", event(6))
	if diff := cmp.Diff([]string{"%61fter=3&directory=%2fx", "directory=%2fx&after=5"}, []string{<-queries, <-queries}); diff != "" {
		t.Errorf("queries (-want +got):\n%s", diff)
	}
}

// It says nothing, not even headers, before there is an event; who waits for
// Joined must not wait for that.
func TestADurableStreamCountsAsJoinedAtOnce(t *testing.T) {
	began := make(chan struct{})
	f := serveEvents(t, openCode(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	}), func(r *proxy.EventRequest) { r.Heartbeat, r.JoinTimeout = 10*time.Millisecond, 10*time.Millisecond })
	_, e := f.subscribe(t, "/api/session/s/event")
	await(t, f.joined, "the joining")
	await(t, began, "the subscription")
	e.want(": heartbeat", ": heartbeat")
	if len(f.asked) != 1 {
		t.Errorf("its silence was taken for a failure %d times", len(f.asked)-1)
	}
}

func TestAReplyThatIsNoEventStreamIsPassedOn(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		header http.Header
		body   string
	}{
		"an error":                {http.StatusNotFound, http.Header{"Content-Type": {"application/json"}}, `{"_tag":"SessionNotFoundError"}`},
		"an error as events":      {http.StatusInternalServerError, http.Header{"Content-Type": {"text/event-stream"}}, "data: no"},
		"a page":                  {http.StatusOK, http.Header{"Content-Type": {"text/html"}}, "<html>\n\n</html>"},
		"a type that is none":     {http.StatusOK, http.Header{"Content-Type": {"text/event-stream/x"}}, "data: no"},
		"compressed events":       {http.StatusOK, http.Header{"Content-Type": {"text/event-stream"}, "Content-Encoding": {"gzip"}}, "\x1f\x8b"},
		"a redirect":              {http.StatusFound, http.Header{"Content-Type": {"text/plain"}, "Location": {"/event2"}}, "there"},
		"nothing":                 {http.StatusNoContent, http.Header{"Content-Type": {"text/plain"}}, ""},
		"a body that is no block": {http.StatusOK, http.Header{"Content-Type": {"text/plain"}}, strings.Repeat("x", 9<<20)},
		"what it has no right to": {http.StatusUnauthorized, http.Header{"Content-Type": {"text/plain"}, "Set-Cookie": {"a=1"}}, "who?"},
		"accepted, not answered":  {http.StatusAccepted, http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}, "data: no"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveEvents(t, openCode(t, func(w http.ResponseWriter, _ *http.Request) {
				for key, values := range tt.header {
					w.Header()[key] = values
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}), nil)
			f.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			if transport, ok := f.Client().Transport.(*http.Transport); ok {
				transport.DisableCompression = true
			}
			res, _ := f.subscribe(t, "/event")
			body, err := io.ReadAll(res.Body)
			if err != nil || string(body) != tt.body || res.StatusCode != tt.status {
				t.Errorf("status %d, %d bytes of %d, %v", res.StatusCode, len(body), len(tt.body), err)
			}
			want := tt.header.Clone()
			want.Del("Set-Cookie")
			want.Set("Content-Security-Policy", "sandbox")
			want.Set("X-Content-Type-Options", "nosniff")
			if want.Get("Location") != "" {
				want.Set("Location", prefix+want.Get("Location"))
			}
			res.Header.Del("Date")
			res.Header.Del("Content-Length")
			if diff := cmp.Diff(want, res.Header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			f.ended(t, nil)
			if len(f.joined) != 1 {
				t.Errorf("Joined was called %d times", len(f.joined))
			}
		})
	}
}

func TestAReplyThatIsPassedOnAndBreaksIsCut(t *testing.T) {
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}), nil)
	_, e := f.subscribe(t, "/event")
	e.cutShort()
	f.ended(t, errPanicked)
}

func TestAnEventWithoutEndEndsTheStream(t *testing.T) {
	for name, size := range map[string]int{"unfinished": 10 << 20, "finished": 8<<20 + 1} {
		t.Run(name, func(t *testing.T) {
			f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
				breaksAfter("data: 1\n\n")(w, r)
				_, _ = io.Copy(w, io.LimitReader(endless{}, int64(size)))
				says("\n\n")(w, r)
			}), nil)
			_, e := f.subscribe(t, "/event")
			e.want("data: 1")
			e.cutShort()
			f.ended(t, errPanicked)
			if len(f.asked) != 1 {
				t.Error("OpenCode was joined again")
			}
		})
	}
	t.Run("but one of 8 MiB arrives", func(t *testing.T) {
		large := strings.Repeat("x", 8<<20-2)
		f := serveEvents(t, openCode(t, says(large, "\n\n", "data: 1\n\n")), nil)
		_, e := f.subscribe(t, "/event")
		if got := e.next(); got != large {
			t.Errorf("%d bytes came of %d", len(got), len(large))
		}
		e.want("data: 1")
	})
}

func TestAClientThatDoesNotReadIsCut(t *testing.T) {
	left := make(chan struct{})
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		breaksAfter("data: 1\n\n")(w, r)
		for block := strings.Repeat("data: x\n", 1<<15) + "\n"; ; {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}), func(r *proxy.EventRequest) { r.WriteTimeout = 200 * time.Millisecond })
	f.subscribe(t, "/event")
	f.ended(t, errPanicked)
	await(t, left, "the end of OpenCode's side")
}

func TestAnEventStreamEndsWhileItsClientDoesNotRead(t *testing.T) {
	var written atomic.Int64
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
		breaksAfter("data: 1\n\n")(w, r)
		for block := strings.Repeat("data: x\n", 1<<12) + "\n"; ; written.Add(1) {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}), nil)
	f.subscribe(t, "/event")
	awaitStandstill(t, &written)
	f.end(errors.New("drain"))
	f.ended(t, errPanicked)
}

func TestTheEndOfTheIncarnationEndsItsEventStreams(t *testing.T) {
	deleted := sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
	asleep := func(r *proxy.EventRequest) {
		r.Asleep = func() bool { return true }
		r.Next = func(ctx context.Context) (proxy.EventTarget, error) {
			<-ctx.Done()
			return proxy.EventTarget{}, ctx.Err()
		}
	}
	left := make(chan struct{}, 1)
	t.Run("while events flow", func(t *testing.T) {
		f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
			says("data: 1\n\n")(w, r)
			left <- struct{}{}
		}), nil)
		_, e := f.subscribe(t, "/event")
		e.want("data: 1")
		f.end(deleted)
		e.cutShort()
		f.ended(t, errPanicked)
		await(t, left, "the end of OpenCode's side")
	})
	t.Run("while it sleeps", func(t *testing.T) {
		f := serveEvents(t, openCode(t, says()), asleep)
		_, e := f.subscribe(t, "/event")
		e.next()
		f.end(deleted)
		e.cutShort()
		f.ended(t, errPanicked)
	})
	t.Run("in the pause before the next joining", func(t *testing.T) {
		f := serveEvents(t, openCode(t, breaksAfter("data: 1\n\n")), nil)
		_, e := f.subscribe(t, "/event")
		e.want("data: 1")
		await(t, f.joined, "the joining")
		f.end(deleted)
		e.cutShort()
		f.ended(t, errPanicked)
	})
	t.Run("before the reply began", func(t *testing.T) {
		began := make(chan struct{}, 1)
		f := serveEvents(t, openCode(t, func(_ http.ResponseWriter, r *http.Request) {
			began <- struct{}{}
			<-r.Context().Done()
		}), nil)
		go func() {
			<-began
			f.end(deleted)
		}()
		if res, _ := f.subscribe(t, "/event"); res.StatusCode != http.StatusConflict {
			t.Errorf("status %d", res.StatusCode)
		}
		f.ended(t, deleted)
	})
	t.Run("before it was asked for", func(t *testing.T) {
		f := serveEvents(t, openCode(t, says()), asleep)
		f.end(deleted)
		if res, _ := f.subscribe(t, "/event"); res.StatusCode != http.StatusConflict {
			t.Errorf("status %d", res.StatusCode)
		}
		f.ended(t, deleted)
	})
}

func TestAClientThatLeavesEndsItsEventStream(t *testing.T) {
	left := make(chan struct{})
	f := serveEvents(t, openCode(t, func(w http.ResponseWriter, r *http.Request) {
		says("data: 1\n\n")(w, r)
		close(left)
	}), nil)
	res, e := f.subscribe(t, "/event")
	e.want("data: 1")
	_ = res.Body.Close()
	await(t, left, "the end of OpenCode's side")
	f.ended(t, errPanicked)
}

func TestAClientThatLeavesBeforeTheReplyIsToldNothing(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	f := serveEvents(t, openCode(t, says()), func(r *proxy.EventRequest) {
		r.Next = func(ctx context.Context) (proxy.EventTarget, error) {
			leave()
			<-ctx.Done()
			return proxy.EventTarget{}, ctx.Err()
		}
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+prefix+"/event", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := f.Client().Do(req); err == nil {
		_ = res.Body.Close()
		t.Error("an answer came")
	}
	f.ended(t, proxy.ErrClientGone)
}

func TestFailuresBeforeAnEventStreamBeginHaveCodes(t *testing.T) {
	gone := func(context.Context) (proxy.EventTarget, error) {
		return proxy.EventTarget{}, sandbox.Errorf(sandbox.CodeSandboxNotFound, "no such sandbox")
	}
	for name, tt := range map[string]struct {
		path   string
		serve  http.HandlerFunc
		change func(*proxy.EventRequest)
		want   sandbox.Code
	}{
		"a path that could mean another": {"/a%2f..%2fevent", says(), nil, sandbox.CodeInvalidPath},
		"no sandbox":                     {"/event", says(), func(r *proxy.EventRequest) { r.Next = gone }, sandbox.CodeSandboxNotFound},
		"hung up":                        {"/event", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, sandbox.CodeOpenCodeFailed},
		"an unknown run": {"/event", says(), func(r *proxy.EventRequest) {
			r.Next = func(context.Context) (proxy.EventTarget, error) {
				return proxy.EventTarget{OpenCodeURL: "http://unknown.run:4096"}, nil
			}
		}, sandbox.CodeOpenCodeDown},
		"a switch nobody asked for": {"/event", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
		}, nil, sandbox.CodeOpenCodeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveEvents(t, openCode(t, tt.serve), tt.change)
			if res, _ := f.subscribe(t, tt.path); res.StatusCode != tt.want.Status() {
				t.Errorf("status %d", res.StatusCode)
			}
			if err := await(t, f.returned, "the end"); sandbox.CodeOf(err) != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAnErrorOfNextEndsAStreamThatBegan(t *testing.T) {
	f := serveEvents(t, openCode(t, breaksAfter("data: 1\n\n")), func(r *proxy.EventRequest) {
		next := r.Next
		asked := 0
		r.Next = func(ctx context.Context) (proxy.EventTarget, error) {
			asked++
			if asked > 1 {
				return proxy.EventTarget{}, sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
			}
			return next(ctx)
		}
	})
	_, e := f.subscribe(t, "/event")
	e.want("data: 1")
	e.cutShort()
	f.ended(t, errPanicked)
}

// What a stop and a wake do: the run's connections are cut, the next target is
// another run, and Next waits meanwhile.
func TestAStreamMovesToTheRunThatComesAfterASleep(t *testing.T) {
	tr := transportFor(t, always, proxy.TransportSettings{})
	second := lifecycle.Run{ID: run.ID, StartedAt: "later"}
	targets := make(chan proxy.EventTarget, 2)
	register := func(r lifecycle.Run, script http.HandlerFunc) proxy.EventTarget {
		return proxy.EventTarget{OpenCodeURL: tr.Register(container(r, openCode(t, script)), nil).OpenCodeURL}
	}
	targets <- register(run, says("data: 1\n\n", "data: cut"))
	p := proxy.New(tr, proxy.Settings{})
	var ended sync.WaitGroup
	ended.Add(1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer ended.Done()
		_ = p.ServeEvents(w, r, proxy.EventRequest{
			Path: "/event", Heartbeat: 20 * time.Millisecond,
			Next: func(ctx context.Context) (proxy.EventTarget, error) {
				select {
				case target := <-targets:
					return target, nil
				case <-ctx.Done():
					return proxy.EventTarget{}, ctx.Err()
				}
			},
		})
	}))
	defer s.Close()
	f := &eventFront{Server: s}
	res, e := f.subscribe(t, "/event")
	e.want("data: 1")
	tr.Drop(run)
	const beat = `data: {"id":"ID","type":"server.heartbeat","properties":{}}`
	e.want(beat, beat)
	targets <- register(second, says("data: connected\n\n"))
	for got := e.next(); got != "data: connected"; got = e.next() {
		if got != beat {
			t.Fatalf("got %q", got)
		}
	}
	_ = res.Body.Close()
	ended.Wait()
}
