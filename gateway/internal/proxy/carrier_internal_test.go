package proxy

import (
	"testing"

	"github.com/agentpod/agentpod/shared/border"
)

func TestHealthAndEventsDoNotWake(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"/global/health": true, "/api/health": true, "/event": true, "/global/event": true, "/api/event": true, "/api/session/ses_1/event": true,
		"/session": false, "/session/ses_1/message": false, "/event/x": false, "": false, "/api/session": false,
	} {
		if got := healthPath(path) || border.EventPath(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
