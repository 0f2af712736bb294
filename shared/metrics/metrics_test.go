package metrics_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
)

func TestRequestsAreCountedByRouteAndNothingIsUnbounded(t *testing.T) {
	m, err := metrics.New()
	if err != nil {
		t.Fatal(err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	request := func(ctx context.Context, method string) *http.Request {
		return httptest.NewRequestWithContext(ctx, method, "/x", nil)
	}
	m.Count(request(t.Context(), "GET"), "/sandbox/:id", true, 200, time.Second)
	m.Count(request(t.Context(), "HACK"), "", true, 404, time.Second)
	m.Count(request(left, "PUT"), "", false, 200, time.Second)
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, line := range []string{
		`http_requests_total{method="GET",route="/sandbox/:id",status="200"} 1`,
		`http_requests_total{method="other",route="none",status="404"} 1`,
		`http_requests_total{method="PUT",route="none",status="499"} 1`,
		`http_request_duration_seconds_bucket{route="none",le="1"} 2`,
		`agentpod_build_info{version=`, "go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(w.Body.String(), "\n"+line) {
			t.Errorf("there is no %s in\n%s", line, w.Body.String())
		}
	}
}

func TestAFigureThatIsThereTwiceIsAnError(t *testing.T) {
	one := prometheus.NewCounter(prometheus.CounterOpts{Name: "http_requests_total", Help: "Another."})
	if _, err := metrics.New(one); err == nil {
		t.Error("it was taken")
	}
}
