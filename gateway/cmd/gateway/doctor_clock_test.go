package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/config"
)

func TestTheDoctorComparesTheAPIsClockAsWebhooksGoByIt(t *testing.T) {
	for name, c := range map[string]struct {
		off  time.Duration
		says string // of a failure, or else of the detail
		fine bool
	}{
		"the same clock":     {0, "they go to", true},
		"one that is behind": {-10 * time.Minute, "the clock of the API is 10m", false},
		"one that is ahead":  {10 * time.Minute, "ahead of", false},
	} {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/health" || r.Header.Get("Authorization") != "" {
				t.Errorf("asked for %s", r.URL)
			}
			w.Header().Set("Date", time.Now().Add(c.off).UTC().Format(http.TimeFormat))
		}))
		x := &examination{cfg: config.Config{APIURL: api.URL + "/", APIToken: "token"}}
		detail, err := x.webhooks(t.Context())
		api.Close()
		if c.fine && (err != nil || !strings.Contains(detail, c.says)) || !c.fine && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %q, %v", name, detail, err)
		}
		// An API that is started later is no fault.
		if detail, err := x.webhooks(t.Context()); err != nil || !strings.Contains(detail, "nothing answers yet") {
			t.Errorf("%s, gone: %q, %v", name, detail, err)
		}
	}
}
