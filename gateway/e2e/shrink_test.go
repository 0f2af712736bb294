package e2e

import (
	"net/http"
	"testing"
	"time"
)

func TestAFrozenSandboxIsShrunkAndGoesOnWhereItWas(t *testing.T) {
	g := start(t, "SHRINK_AFTER=1s", "FREEZE_AFTER=0", "STOP_AFTER=0", "ARCHIVE_AFTER=0")
	g.create(t, "small", nil)
	defer g.delete(t, "small")
	session, _ := g.message(t, "small", "before", http.StatusOK)["sessionId"].(string)
	memory := func() float64 {
		stats, _ := g.call(t, http.MethodGet, "/sandbox/small/stats", nil, http.StatusOK)["stats"].(map[string]any)
		n, _ := stats["memoryUsage"].(float64)
		return n / 1e6
	}
	before := memory()
	g.hibernate(t, "small", "frozen")
	eventually(t, "it is shrunk", time.Minute, func() bool { return memory() < 40 })
	if before < 200 {
		t.Errorf("it had %.0f MB before, so there was nothing to shrink", before)
	}
	answer := g.call(t, http.MethodPost, "/sandbox/small/message", object{"message": "after", "sessionId": session}, http.StatusOK)
	if answer["sessionId"] != session || answer["content"] == "" {
		t.Errorf("it answered %v", answer)
	}
	t.Logf("%.0f MB before, %.0f MB awake again", before, memory())
}
