package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// healthOnly is a backend of which only the health is asked.
type healthOnly struct {
	sandbox.Backend
	err error
}

func (h healthOnly) Health(context.Context) error { return h.err }

// bob signs somebody up who is not the first, and so no admin.
func (w world) bob(t testing.TB) string {
	t.Helper()
	resp, body := w.send(t, "POST", authRoot+"sign-up/email", strings.ReplaceAll(strings.ReplaceAll(ada, "ada", "bob"), "Ada", "Bob"))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("signing up: %d %s", resp.StatusCode, body)
	}
	return resp.Header.Get(tokenHeader)
}

func TestWhoIsSignedInSeesWhichProvidersAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{backends: map[string]sandbox.Backend{
		provider.Docker: healthOnly{err: sandbox.Errorf(sandbox.CodeBackendAway, "the gateway could not be reached")},
	}})
	token := w.signUp(t)
	if _, _, err := w.api.Providers.Select(t.Context(), provider.Docker, provider.QuickTask); !sandbox.HasCode(err, sandbox.CodeBackendAway) {
		t.Fatal(err)
	}
	resp, body := w.send(t, "GET", "/api/v2/agents/providers", "", "Cookie", cookie(token))
	var got map[string]map[string]any
	must(t, json.Unmarshal([]byte(body), &got))
	states := w.api.Providers.States()
	want := map[string]map[string]any{
		"docker": {
			"available": false, "description": states["docker"].Description, "reason": "the gateway could not be reached",
			"since": states["docker"].Since.Format("2006-01-02T15:04:05.000Z"),
		},
		"cloudflare": {"available": false, "description": states["cloudflare"].Description, "reason": "it is not configured"},
	}
	if diff := cmp.Diff(want, got); resp.StatusCode != http.StatusOK || diff != "" {
		t.Errorf("%d (-want +got):\n%s", resp.StatusCode, diff)
	}
	if resp, _ := w.send(t, "GET", "/api/v2/agents/providers", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger: %d", resp.StatusCode)
	}
}

func TestAProviderThatAnswersIsAvailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{backends: map[string]sandbox.Backend{provider.Cloudflare: healthOnly{}}})
	token := w.signUp(t)
	if _, _, err := w.api.Providers.Select(t.Context(), provider.Cloudflare, provider.QuickTask); err != nil {
		t.Fatal(err)
	}
	_, body := w.send(t, "GET", "/api/v2/agents/providers", "", "Cookie", cookie(token))
	var got map[string]backendBody
	must(t, json.Unmarshal([]byte(body), &got))
	if b := got["cloudflare"]; !b.Available || b.Reason != "" || b.Since == nil || got["docker"].Available {
		t.Errorf("%s", body)
	}
}
