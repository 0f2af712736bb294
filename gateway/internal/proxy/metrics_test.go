package proxy_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/coder/websocket"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

func TestStreamsAreCountedWhileTheyAreOpen(t *testing.T) {
	t.Parallel()
	f := serve(t, backend(t, echo), always, proxy.Settings{}, nil)
	open := func() float64 {
		return metricstest.Of(t, f.figures).Sum("agentpod_proxy_open_streams", "kind", "upgraded")
	}
	c := dialWebSocket(t, f)
	if n := open(); n != 1 {
		t.Errorf("%v connections are open, want 1", n)
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
	_ = f.result(t)
	if n := open(); n != 0 {
		t.Errorf("%v connections are open, want none", n)
	}

	e := serveEvents(t, openCode(t, says("data: {}\n\n")), nil)
	streams := func() float64 {
		return metricstest.Of(t, e.figures).Sum("agentpod_proxy_open_streams", "kind", "events")
	}
	_, events := e.subscribe(t, "/event")
	_ = events.next()
	if n := streams(); n != 1 {
		t.Errorf("%v streams are open, want 1", n)
	}
	e.end(nil)
	_ = await(t, e.returned, "the end of ServeEvents")
	if n := streams(); n != 0 {
		t.Errorf("%v streams are open, want none", n)
	}
}

func TestRequestsToOpenCodeAreCountedByHowTheyEnded(t *testing.T) {
	t.Parallel()
	f := serve(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/error":
			w.WriteHeader(http.StatusInternalServerError)
		case "/broken":
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		}
	}), always, proxy.Settings{}, nil)
	for _, path := range []string{"/", "/error", "/broken"} {
		res, err := f.Client().Get(f.URL + prefix + path) //nolint:noctx // its server is closed
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body) // who leaves early is counted as such
			_ = res.Body.Close()
		}
		_ = f.result(t)
	}
	for outcome, n := range map[string]float64{"ok": 2, "failed": 1, "cancelled": 0} {
		got := metricstest.Of(t, f.figures).Sum("agentpod_proxy_requests_total", "outcome", outcome)
		if got != n {
			t.Errorf("%s: %v, want %v", outcome, got, n)
		}
	}
}
