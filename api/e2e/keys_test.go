package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

func TestAStrangerWhoSignsUpDoesNotReadTheOperatorsKey(t *testing.T) {
	a := newAPI(t, sharedGateway.get(t), "SIGN_UP=auto") // the gateway's default is a model with a key
	stranger := &caller{url: a.url()}
	status, raw := stranger.raw(t, http.MethodPost, "/api/auth/sign-up/email", object{"email": "eve@example.com", "password": adminPassword, "name": "Eve"}, nil)
	if status != http.StatusBadRequest || !strings.Contains(raw, `"EMAIL_PASSWORD_SIGN_UP_DISABLED"`) || !strings.Contains(raw, "default credentials") {
		t.Errorf("a sign-up: %d %s", status, raw)
	}
	if status == http.StatusOK {
		eve := a.signed(t, "/api/auth/sign-in/email", object{"email": "eve@example.com", "password": adminPassword})
		if keys := providersOf(t, eve); strings.Contains(keys, scriptedmodel.DefaultAPIKey) {
			t.Error("with one GET of /opencode/provider she reads the operator's key")
		}
	}
	// This is the reason: a user of a sandbox reads it.
	if keys := providersOf(t, a.admin(t)); !strings.Contains(keys, scriptedmodel.DefaultAPIKey) {
		t.Errorf("the admin reads %.300s", keys)
	}
}

// providersOf makes a sandbox and returns what OpenCode says of the providers in it.
func providersOf(t *testing.T, c *caller) string {
	t.Helper()
	id := c.newBox(t, object{"name": "keys"})
	status, raw := c.raw(t, http.MethodGet, fmt.Sprintf("/api/v2/sandboxes/%s/opencode/provider", id), nil, nil)
	if status != http.StatusOK {
		t.Fatalf("the providers: %d %s", status, raw)
	}
	return raw
}
