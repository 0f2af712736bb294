package docker

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

func TestCallsAreCountedByNameAndHowTheyEnded(t *testing.T) {
	r := fakeRuntime(t, "unix:///nowhere/engine.sock")
	for _, call := range everyCall(r) {
		_ = call(testContext(t)) // there is no engine
	}
	page := metricstest.Of(t, r.Figures())
	for _, m := range page["agentpod_engine_calls_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "call" && !slices.Contains(callNames(), l.GetValue()) {
				t.Errorf("%q is none of the calls' names", l.GetValue())
			}
		}
	}
	failed := func(call string) float64 {
		return page.Sum("agentpod_engine_calls_total", "call", call, "outcome", "failed")
	}
	for _, call := range []string{"create_volume", "pause", "unpause", "stop", "remove", "list", "volumes", "image", "stats"} {
		if failed(call) == 0 || failed(call) != page.Sum("agentpod_engine_call_duration_seconds", "call", call) {
			t.Errorf("%s: %v have failed", call, failed(call))
		}
	}
	r = serveFake(t, &fakeEngine{api: "1.41", replies: map[string]reply{
		"GET /containers/" + fakeID + "/json": {status: http.StatusNotFound, text: "No such container: x"},
	}})
	if _, err := r.Inspect(testContext(t), fakeID); !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Fatal(err)
	}
	if page = metricstest.Of(t, r.Figures()); failed("inspect") != 0 || page.Sum("agentpod_engine_calls_total", "call", "inspect", "outcome", "ok") != 1 {
		t.Error("that there is no container passes for a failure of the engine")
	}
}
