package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

func TestTheFiguresAreThoseThatAreDocumented(t *testing.T) {
	t.Parallel()
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said := `{"status":"ok","credentials":[]}`
		if r.URL.Path == "/sandboxes" { // two pages
			said = `{"sandboxes":[{"sandboxId":"a","userId":"ada","status":"running","lastSnapshot":{"id":"1","bytes":700000000}},{"sandboxId":"b","userId":"bob","status":"running"}],"nextCursor":"b"}`
			if r.URL.Query().Get("cursor") == "b" {
				said = `{"sandboxes":[{"sandboxId":"c","userId":"ada","status":"sleeping","lastSnapshot":{"id":"2","bytes":600000000}},{"sandboxId":"d","userId":"bob","status":"running","lastSnapshot":{"id":"3","bytes":2000000}}]}`
			}
		}
		_, _ = io.WriteString(w, said)
	}))
	defer gateway.Close()
	const service, hook = "the-token-of-a-service", "the-token-of-webhooks"
	url, stop := start(t, gatewayToken, "GATEWAY_URL="+gateway.URL, "DATA_DIR="+t.TempDir(), "API_TOKEN="+service, "WEBHOOK_TOKEN_DOCKER="+hook)
	defer stop()
	call(t, http.MethodPost, url+"/api/auth/sign-up/email", "", `{"name":"Ada","email":"ada@example.com","password":"password1"}`)
	for _, password := range []string{"password1", "wrong password"} {
		call(t, http.MethodPost, url+"/api/auth/sign-in/email", "", fmt.Sprintf(`{"email":"ada@example.com","password":%q}`, password))
	}
	event := fmt.Sprintf(`{"event":"sandbox.created","data":{"sandboxId":"a"},"timestamp":%q}`, time.Now().UTC().Format(time.RFC3339))
	for _, token := range []string{hook, "another-token"} {
		call(t, http.MethodPost, url+"/api/v2/cloudflare/webhook", token, event)
	}
	page := func() metricstest.Page {
		t.Helper()
		_, text := call(t, http.MethodGet, url+"/metrics", service, "")
		return metricstest.Parse(t, text)
	}
	// The first look at the providers is under way.
	late := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for page().Sum("agentpod_user_storage_bytes") == 0 || page().Sum("agentpod_provider_available") == 0 {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("nobody has looked at the provider and what is stored there")
		}
	}
	shown := page()
	shown.Documented(t, "../../../docs/metrics.md", "Both", "API")
	for _, c := range []struct {
		name, label, value string
		want               float64
	}{
		{"agentpod_sign_ins_total", "outcome", "ok", 1},
		{"agentpod_sign_ins_total", "outcome", "refused", 1},
		{"agentpod_webhook_received_total", "outcome", "ok", 1},
		{"agentpod_webhook_received_total", "outcome", "refused", 1},
		{"agentpod_provider_available", "provider", "docker", 1},
		{"agentpod_user_storage_top_bytes", "rank", "1", 1.3e9},
		{"agentpod_user_storage_top_bytes", "rank", "2", 2e6},
		{"agentpod_user_storage_top_bytes", "rank", "3", 0},
	} {
		if n := shown.Sum(c.name, c.label, c.value); n != c.want {
			t.Errorf("%s %s: %v, want %v", c.name, c.value, n, c.want)
		}
	}
	storage := shown["agentpod_user_storage_bytes"].GetMetric()[0].GetHistogram()
	if storage.GetSampleCount() != 2 || storage.GetSampleSum() != 1.302e9 {
		t.Errorf("%v", storage)
	}
}
