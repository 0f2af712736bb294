package timeline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/shared/timeline"
)

const (
	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceparent = "00-" + traceID + "-00f067aa0ba902b7-01"
)

func get(t *testing.T, header map[string]string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	return r
}

func TestARequestKeepsTheIDThatItsCallerChose(t *testing.T) {
	for given, kept := range map[string]bool{
		"a-request": true, "01J:8.x_=/+": true, strings.Repeat("x", 128): true,
		"": false, "two words": false, strings.Repeat("x", 129): false, `"quoted"`: false, "<b>": false,
	} {
		r, _, id := timeline.Receive(get(t, map[string]string{"X-Request-Id": given}))
		if timeline.RequestID(r.Context()) != id || (id == given) != kept || id == "" {
			t.Errorf("%q became %q, noted as %q", given, id, timeline.RequestID(r.Context()))
		}
	}
}

func TestALineHasWhatIsKnownOfItsRequest(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(timeline.Handler(slog.NewJSONHandler(&out, nil)))
	line := func() map[string]any {
		defer out.Reset()
		if n := strings.Count(out.String(), `"sandboxId"`); n != 1 {
			t.Errorf("sandboxId is there %d times: %s", n, out.String())
		}
		var said map[string]any
		if err := json.Unmarshal(out.Bytes(), &said); err != nil {
			t.Fatal(err)
		}
		return said
	}
	r, _, _ := timeline.Receive(get(t, map[string]string{"X-Request-Id": "the-id", "Traceparent": traceparent}))
	ctx := r.Context()
	timeline.Note(ctx, "sandboxId", "a", "userId", "")
	log.InfoContext(ctx, "noted")
	if got := line(); got["requestId"] != "the-id" || got["traceId"] != traceID || got["sandboxId"] != "a" || got["userId"] != nil {
		t.Errorf("%v", got)
	}
	log.InfoContext(ctx, "its own word counts", "sandboxId", "b")
	if got := line(); got["sandboxId"] != "b" {
		t.Errorf("%v", got)
	}
	log.With("sandboxId", "c").InfoContext(ctx, "and that of its logger")
	if got := line(); got["sandboxId"] != "c" {
		t.Errorf("%v", got)
	}
	timeline.Note(ctx, "sandboxId", "d")
	log.InfoContext(timeline.Carry(timeline.About(t.Context(), "userId", "u"), ctx), "carried")
	if got := line(); got["sandboxId"] != "d" || got["userId"] != "u" || got["requestId"] != "the-id" || got["traceId"] != traceID {
		t.Errorf("%v", got)
	}
	log.InfoContext(timeline.Branch(t.Context(), ctx, "sandboxId", "e"), "branched")
	log.InfoContext(ctx, "the branch's is its own")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"sandboxId":"e"`) || !strings.Contains(lines[0], "the-id") || !strings.Contains(lines[1], `"sandboxId":"d"`) {
		t.Errorf("%q", lines)
	}
}

// recorded returns a context with a recording span, and what is recorded.
func recorded(t *testing.T) (context.Context, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	r, _, _ := timeline.Receive(get(t, map[string]string{"X-Request-Id": "the-id", "Traceparent": traceparent}))
	ctx, done := timeline.Serve(r.Context(), provider.Tracer(timeline.Scope), http.MethodGet)
	t.Cleanup(func() { done("/route/:id", http.StatusOK) })
	return ctx, recorder
}

func TestARequestThatGoesOutCarriesIDAndTrace(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer server.Close()
	client := &http.Client{Transport: &timeline.Transport{Next: &http.Transport{}, Peer: "peer"}}
	defer client.CloseIdleConnections()
	send := func(ctx context.Context) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if req.Header.Get("X-Request-Id") != "" {
			t.Error("the caller's own request was changed")
		}
	}
	send(t.Context())
	if got.Get("X-Request-Id") != "" || got.Get("Traceparent") != "" {
		t.Errorf("nothing is known of the request, and it says %v", got)
	}
	// Where no traces are sent they still go through.
	plain, _, _ := timeline.Receive(get(t, map[string]string{"X-Request-Id": "the-id", "Traceparent": traceparent}))
	send(plain.Context())
	if got.Get("X-Request-Id") != "the-id" || got.Get("Traceparent") != traceparent {
		t.Errorf("%v", got)
	}
	ctx, recorder := recorded(t)
	send(ctx)
	ended := recorder.Ended()
	if len(ended) != 1 || ended[0].Name() != "peer GET" || ended[0].SpanKind() != trace.SpanKindClient {
		t.Fatalf("%v", ended)
	}
	if want := "00-" + traceID + "-" + ended[0].SpanContext().SpanID().String() + "-01"; got.Get("Traceparent") != want {
		t.Errorf("the peer gets the trace %q, want %q", got.Get("Traceparent"), want)
	}
}

func TestAPeersStagesBecomeSpansWithinTheTimeOfTheCall(t *testing.T) {
	for name, c := range map[string]struct {
		timing string // what a hostile peer says; empty for one that is as it should be
		want   []string
	}{
		"of a peer as it should be":      {"", []string{"GET /v1/start", "boot"}},
		"of one that claims ages":        {"request;dur=999999999, boot;at=99999;dur=999999", []string{"GET /v1/start", "boot"}},
		"of one that tells no whole":     {"boot;dur=1", nil},
		"of one that sends nonsense":     {"request;dur=NaN, <script>;dur=1, boot;dur=-1;at=1e400, UPPER", []string{"GET /v1/start", "boot"}},
		"of one that sends far too much": {"request;dur=1" + strings.Repeat(", boot;dur=1", 1000), nil},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r, _, _ = timeline.Receive(r)
				ctx := r.Context()
				timeline.Begin(ctx, "boot")()
				if c.timing == "" {
					w = timeline.Answer(ctx, w)
				} else {
					w.Header().Set("Server-Timing", c.timing)
				}
				_, _ = w.Write([]byte("x"))
			}))
			defer server.Close()
			client := &http.Client{Transport: &timeline.Transport{Next: &http.Transport{}, Peer: "peer", Relays: true}}
			defer client.CloseIdleConnections()
			ctx, recorder := recorded(t)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/start", nil)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			ended := time.Now()
			var got []string
			for _, s := range recorder.Ended() {
				if s.InstrumentationScope().Name != timeline.RelayScope {
					continue
				}
				got = append([]string{s.Name()}, got...)
				if s.StartTime().Before(began) || s.EndTime().After(ended) || s.EndTime().Before(s.StartTime()) {
					t.Errorf("%s is from %s to %s, the call was from %s to %s", s.Name(), s.StartTime(), s.EndTime(), began, ended)
				}
				if s.SpanContext().TraceID().String() != traceID {
					t.Errorf("%s is of another trace", s.Name())
				}
			}
			if strings.Join(got, ",") != strings.Join(c.want, ",") {
				t.Errorf("spans %q, want %q", got, c.want)
			}
		})
	}
}
