package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/shared/doctor"
)

// answering is a gateway that says this of its defaults; nothing is no answer.
func answering(t *testing.T, defaults string) string {
	t.Helper()
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/defaults":
			_, _ = io.WriteString(w, `{"status":"ok"}`)
		case defaults == "":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"no such route","code":"not_found"}`)
		default:
			_, _ = io.WriteString(w, defaults)
		}
	}))
	t.Cleanup(gateway.Close)
	return gateway.URL
}

func TestSignUpGoesByTheGatewaysDefaultsUnlessItIsSet(t *testing.T) {
	t.Parallel()
	const none, some = `{"credentials":[]}`, `{"credentials":["anthropic"]}`
	for name, c := range map[string]struct {
		gateway, signUp string
		refused         string // what the refusal says; empty for none
	}{
		"no default credentials":                 {answering(t, none), "", ""},
		"default credentials":                    {answering(t, some), "", "default credentials"},
		"default credentials, and auto":          {answering(t, some), "auto", "SIGN_UP=true"},
		"default credentials, and it is open":    {answering(t, some), "true", ""},
		"no default credentials, and it is shut": {answering(t, none), "false", "not enabled"},
		"a gateway that is away":                 {"http://127.0.0.1:1", "", "does not say"},
		"a gateway that is older":                {answering(t, ""), "", "does not say"},
		"a gateway that says something else":     {answering(t, `{"status":"ok"}`), "", "does not say"},
		"a gateway that is away, and it is open": {"http://127.0.0.1:1", "true", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			env := []string{gatewayToken, "DATA_DIR=" + dir, "GATEWAY_URL=" + c.gateway, "MAKE_ADMIN=true"}
			if c.signUp != "" {
				env = append(env, "SIGN_UP="+c.signUp)
			}
			url, stop := start(t, env...)
			defer stop()
			resp, body := call(t, "POST", url+"/api/auth/sign-up/email", "", `{"name":"Ada","email":"ada@example.com","password":"password1"}`)
			if c.refused == "" {
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%d %s", resp.StatusCode, body)
				}
			} else if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, `"EMAIL_PASSWORD_SIGN_UP_DISABLED"`) || !strings.Contains(body, c.refused) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			password, err := os.ReadFile(filepath.Join(dir, "admin.password"))
			must(t, err)
			resp, body = call(t, "POST", url+"/api/auth/sign-in/email", "", `{"email":"admin@localhost.test","password":"`+strings.TrimSpace(string(password))+`"}`)
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the admin: %d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestADoctorWarnsOfDefaultCredentialsThatUsersCanRead(t *testing.T) {
	t.Parallel()
	const none, some = `{"credentials":[]}`, `{"credentials":["anthropic","openai"]}`
	for name, c := range map[string]struct {
		gateway, signUp string
		warns, fails    bool
		says            string
	}{
		"no default credentials":       {answering(t, none), "auto", false, false, "open; the gateway has no default credentials"},
		"default credentials":          {answering(t, some), "auto", true, false, "closed, as the gateway has default credentials of anthropic, openai"},
		"and sign-up is open":          {answering(t, some), "true", true, false, "every user who signs up can read them (GET /api/v2/sandboxes/ID/opencode/provider)"},
		"and sign-up is closed":        {answering(t, some), "false", false, false, "closed"},
		"an older gateway":             {answering(t, ""), "auto", false, true, "does not say whether it has default credentials"},
		"an older one, and it is open": {answering(t, ""), "true", true, false, "does not say"},
	} {
		x := &examination{cfg: config.Config{GatewayURL: c.gateway, GatewayToken: "a-token-of-the-gateway", SignUp: c.signUp}}
		detail, err := x.signUp(t.Context())
		warning, warned := errors.AsType[doctor.WarningError](err)
		said := detail + string(warning)
		if err != nil && !warned {
			said = err.Error()
		}
		if warned != c.warns || (err != nil && !warned) != c.fails || !strings.Contains(said, c.says) {
			t.Errorf("%s: %q, %v", name, detail, err)
		}
	}
}
