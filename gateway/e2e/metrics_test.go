package e2e

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

// figures are the gateway's.
func (g *gateway) figures(t *testing.T) metricstest.Page {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, raw, err := g.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("the figures: %d %v", status, err)
	}
	return metricstest.Parse(t, string(raw))
}

func TestEveryFigureThatIsDocumentedHasAValueThatCanBe(t *testing.T) {
	const tables = "../../docs/metrics.md"
	h := receiveHooks(t)
	g := start(t, append(h.env(), "POOL_SIZE=1")...)
	g.pooled(t)
	g.create(t, "seen", nil)
	g.pooled(t)
	if n := g.figures(t).Sum("agentpod_pool_ready"); n != 1 {
		t.Errorf("%v are ready ahead", n)
	}
	g.message(t, "seen", "hello", http.StatusOK)
	g.call(t, http.MethodPost, "/sandbox/seen/sync", nil, http.StatusOK)
	for _, tier := range []string{"frozen", "stopped", "archived"} {
		g.hibernate(t, "seen", tier)
		g.call(t, http.MethodPost, "/sandbox/seen/wake", nil, http.StatusOK)
	}
	g.message(t, "seen", "hello again", http.StatusOK)
	g.call(t, http.MethodGet, "/sandbox/seen/opencode/path", nil, http.StatusOK)
	eventually(t, "all that happened is told to the API", time.Minute, func() bool { return g.figures(t).Sum("agentpod_webhook_queue") == 0 })
	healthy := g.figures(t)
	for _, figure := range []string{"agentpod_engine_calls_total", "agentpod_store_calls_total", "agentpod_snapshots_total", "agentpod_hibernations_total", "agentpod_webhook_events_total"} {
		if n := healthy.Sum(figure, "outcome", "failed"); n != 0 {
			t.Errorf("%s: %v have failed", figure, n)
		}
	}

	stream, err := g.open(t.Context(), http.MethodGet, "/sandbox/seen/opencode/event", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	g.exec(t, "seen", "pkill", "-9", "-x", "opencode")
	eventually(t, "OpenCode is there again and the gateway has heard of it", time.Minute, func() bool {
		g.call(t, http.MethodGet, "/sandbox/seen", nil, http.StatusOK)
		return g.figures(t).Sum("agentpod_opencode_restarts_total") == 1
	})
	g.create(t, "dies", object{"directory": "below"}) // the pool has none such
	if out, err := docker("kill", g.container("dies")); err != nil {
		t.Fatal(out)
	}
	eventually(t, "its death is noticed", time.Minute, func() bool { return g.figures(t).Sum("agentpod_container_deaths_total") == 1 })

	page := g.figures(t)
	page.Documented(t, tables, "Both", "Gateway")
	// What may have nothing to show at this moment.
	none := []string{"agentpod_webhook_queue", "agentpod_pool_ready"}
	for name := range maps.Keys(metricstest.Tables(t, tables, "Both", "Gateway")) {
		if page.Sum(name) <= 0 && !slices.Contains(none, name) {
			t.Errorf("%s: %v", name, page.Sum(name))
		}
	}
	for _, c := range []struct {
		name, label, value string
		least, most        float64
	}{
		{"agentpod_sandboxes", "status", "running", 1, 1},
		{"agentpod_sandboxes", "status", "stopped", 1, 1},
		{"agentpod_sandboxes_created_total", "source", "pool", 1, 1},
		{"agentpod_sandboxes_created_total", "source", "boot", 1, 1},
		{"agentpod_pool_claims_total", "outcome", "claimed", 1, 1},
		{"agentpod_pool_claims_total", "outcome", "unsuitable", 1, 1},
		{"agentpod_wake_duration_seconds", "tier", "frozen", 1, 1},
		{"agentpod_wake_duration_seconds", "tier", "stopped", 1, 1},
		{"agentpod_wake_duration_seconds", "tier", "archived", 1, 1},
		{"agentpod_hibernations_total", "outcome", "ok", 3, 3},
		{"agentpod_engine_calls_total", "call", "pause", 2, 20},
		{"agentpod_engine_calls_total", "call", "create", 3, 20},
		{"agentpod_snapshots_total", "outcome", "ok", 2, 20},
		{"agentpod_webhook_events_total", "outcome", "delivered", 8, 100},
		{"agentpod_proxy_open_streams", "kind", "events", 1, 1},
	} {
		if n := page.Sum(c.name, c.label, c.value); n < c.least || n > c.most {
			t.Errorf("%s %s: %v, want %v to %v", c.name, c.value, n, c.least, c.most)
		}
	}
	if n := page.Sum("agentpod_message_duration_seconds"); n != 2 {
		t.Errorf("%v messages", n)
	}
	wakes := page["agentpod_wake_duration_seconds"]
	for _, m := range wakes.GetMetric() {
		if took := m.GetHistogram().GetSampleSum(); took <= 0 || took > 120 {
			t.Errorf("a wake took %v s: %v", took, m.GetLabel())
		}
	}
}
