package webhook_test

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestEveryEventIsCountedByWhatBecameOfIt(t *testing.T) {
	a := serve(t, func(_ int, _ http.ResponseWriter, _ *http.Request, got received) int {
		if got.sandbox() == "refused" {
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	s := start(t, fast(a.URL), slog.New(slog.DiscardHandler))
	for _, id := range []string{"a", "b", "refused"} {
		s.Send(id, "1", sandbox.EventSandboxCreated, nil)
	}
	await(t, "the end of all", func() bool { return s.Stats().Queued == 0 })
	drain(t, s)
	s.Send("late", "1", sandbox.EventSandboxCreated, nil)
	page := metricstest.Of(t, s.Figures())
	for outcome, want := range map[string]float64{"delivered": 2, "failed": 1, "dropped": 1, "forgotten": 0} {
		if n := page.Sum("agentpod_webhook_events_total", "outcome", outcome); n != want {
			t.Errorf("%s: %v, want %v", outcome, n, want)
		}
	}
	if n := page.Sum("agentpod_webhook_queue"); n != 0 {
		t.Errorf("%v wait", n)
	}
}
