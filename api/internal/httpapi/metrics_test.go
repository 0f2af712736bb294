package httpapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// scrape reads the figures with the service credential.
func (w world) scrape(t testing.TB) string {
	t.Helper()
	resp, body := w.send(t, "GET", "/metrics", "", "Authorization", "Bearer "+serviceToken)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	return body
}

func TestTheFiguresAreForAdminsAndTheService(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	admin := w.signUp(t)
	user := w.bob(t)
	for name, c := range map[string]struct {
		headers []string
		status  int
		code    string
	}{
		"the service": {[]string{"Authorization", "Bearer " + serviceToken}, http.StatusOK, ""},
		"an admin":    {[]string{"Cookie", cookie(admin)}, http.StatusOK, ""},
		"a user":      {[]string{"Cookie", cookie(user)}, http.StatusForbidden, "forbidden"},
		"a stranger":  {nil, http.StatusUnauthorized, "unauthorized"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body := w.send(t, "GET", "/metrics", "", c.headers...)
			if resp.StatusCode != c.status || c.code != "" && codeOf(t, body) != c.code || (c.code == "") != strings.Contains(body, "http_requests_total") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestRequestsAreCountedByRouteNotByPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{backends: map[string]sandbox.Backend{provider.Docker: healthOnly{}}})
	if _, _, err := w.api.Providers.Select(t.Context(), "", provider.QuickTask); err != nil {
		t.Fatal(err)
	}
	service := []string{"Authorization", "Bearer " + serviceToken}
	w.send(t, "GET", "/health", "")
	w.send(t, "GET", "/health", "")
	w.send(t, "GET", "/api/v2/agents/providers", "", service...)
	w.send(t, "GET", "/api/v2/agents/providers", "")
	w.send(t, "POST", "/health", "")
	w.send(t, "GET", "/secret-path/of-a-caller", "", service...)
	w.send(t, "GET", "/secret-path/of-a-stranger", "")
	w.send(t, "SECRET", "/api/v2/agents/secret-path", "", service...)
	figures := w.scrape(t)
	for _, line := range []string{
		`http_requests_total{method="GET",route="/health",status="200"} 2`,
		`http_requests_total{method="GET",route="/api/v2/agents/providers",status="200"} 1`,
		`http_requests_total{method="POST",route="/health",status="405"} 1`,
		`http_requests_total{method="GET",route="none",status="404"} 1`,
		`http_requests_total{method="GET",route="none",status="401"} 2`,
		`http_requests_total{method="other",route="none",status="404"} 1`,
		`http_request_duration_seconds_count{route="/health"} 3`,
		`agentpod_provider_available{provider="docker"} 1`,
		`agentpod_provider_available{provider="cloudflare"} 0`,
	} {
		if !strings.Contains(figures, line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(figures, "\n"+name+" ") {
			t.Errorf("%s is missing", name)
		}
	}
	if strings.Contains(figures, "secret") || strings.Contains(figures, "SECRET") {
		t.Error("what a caller sent became a label")
	}
	if t.Failed() {
		t.Log(regexp.MustCompile(`(?m)^http_requests_total.*$`).FindAllString(figures, -1))
	}
}

func TestACallerWhoLeftIsCountedAsSuch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(ctx, "GET", "/api/v2/agents/providers", nil)
	r.Header.Set("Authorization", "Bearer "+serviceToken)
	w.do(r)
	if figures := w.scrape(t); !strings.Contains(figures, `status="499"} 1`) {
		t.Error("it is not counted")
	}
}
