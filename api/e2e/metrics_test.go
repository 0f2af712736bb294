package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

// The task's sandbox is stored once it is idle; what the API knows of that it has
// from the gateway, which it asks as it starts.
func TestTheFiguresShowWhatUsersDidAndStore(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	admin := a.admin(t)
	var got struct{ SandboxID string }
	admin.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "What is 2+2?", "provider": "docker"}, http.StatusOK, &got)
	eventually(t, "the sandbox is stored", 2*time.Minute, func() bool {
		var info struct{ LastSnapshot *struct{ Bytes int64 } }
		g.caller().must(t, http.MethodGet, "/sandbox/"+got.SandboxID, nil, http.StatusOK, &info)
		return info.LastSnapshot != nil && info.LastSnapshot.Bytes > 0
	})
	figures := func(c *caller) metricstest.Page {
		t.Helper()
		var text string
		if status, err := c.send(t.Context(), http.MethodGet, "/metrics", nil, &text); err != nil || status != http.StatusOK {
			t.Fatal(status, err)
		}
		return metricstest.Parse(t, text)
	}
	page := figures(admin)
	page.Documented(t, "../../docs/metrics.md", "Both", "API")
	for _, c := range []struct {
		name, label, value string
		want               float64
	}{
		{"agentpod_sign_ins_total", "outcome", "ok", 1},
		{"agentpod_tasks_total", "state", "completed", 1},
		{"agentpod_tasks_total", "state", "failed", 0},
		{"agentpod_provider_available", "provider", "docker", 1},
		{"agentpod_provider_available", "provider", "cloudflare", 0},
	} {
		if n := page.Sum(c.name, c.label, c.value); n != c.want {
			t.Errorf("%s %s: %v, want %v", c.name, c.value, n, c.want)
		}
	}
	if n := page.Sum("agentpod_tasks_open"); n != 0 {
		t.Errorf("%v tasks are open", n)
	}

	next := newAPI(t, g)
	nextAdmin := next.admin(t)
	eventually(t, "the next API knows what is stored", time.Minute, func() bool {
		return figures(nextAdmin).Sum("agentpod_user_storage_top_bytes", "rank", "1") > 0
	})
	page = figures(nextAdmin)
	if n := page.Sum("agentpod_user_storage_bytes"); n < 1 {
		t.Errorf("%v users store something", n)
	}
}
