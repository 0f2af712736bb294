package httpapi

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

// told is what the login client made of an answer.
type told struct {
	Status                     int
	Code, Message, Email, Role string
	User, Session              string
	Success, Nothing, Date     bool
}

func TestTheLoginClientSignsUpInAndOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"package.json", "login.mjs"} {
		raw, err := os.ReadFile(filepath.Join("testdata", "login", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), raw, 0o600))
	}
	s := storetest.Open(t, server.URL(t))
	open := newWorld(t, s, options{}).listen(t)
	closed := newWorld(t, s, options{account: func(set *account.Settings) { set.SignUp = false }}).listen(t)
	run := func(timeout time.Duration, name string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the test's own
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "API_URL="+open, "CLOSED_URL="+closed)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run(3*time.Minute, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
	lines := strings.Split(strings.TrimSpace(run(time.Minute, "node", "login.mjs")), "\n")
	var raw map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(lines[len(lines)-1]), &raw))
	if string(raw["captured"]) != "true" || string(raw["cookiesAfterSignOut"]) != "0" {
		t.Errorf("captured a token: %s; cookies after signing out: %s", raw["captured"], raw["cookiesAfterSignOut"])
	}
	delete(raw, "captured")
	delete(raw, "cookiesAfterSignOut")
	got := map[string]told{}
	for name, value := range raw {
		var one told
		must(t, json.Unmarshal(value, &one))
		one.User, one.Session = strings.Repeat("x", min(1, len(one.User))), strings.Repeat("x", min(1, len(one.Session)))
		got[name] = one
	}
	signed := told{Email: "grace@example.com", Role: "admin", User: "x", Date: true}
	session := signed
	session.Session = "x"
	ended := told{Nothing: true}
	failed := func(status int, code, message string) told {
		return told{Status: status, Code: code, Message: message, Nothing: true}
	}
	want := map[string]told{
		"signUp": signed, "sessionAfterSignUp": session, "signOut": {Success: true}, "sessionAfterSignOut": ended,
		"signIn": signed, "session": session,
		"signInByToken": signed, "sessionByToken": session, "signOutByToken": {Success: true}, "sessionByTokenAfter": ended, "sessionOfTheOther": session,
		"wrongPassword": failed(401, "INVALID_EMAIL_OR_PASSWORD", "Invalid email or password"),
		"unknownUser":   failed(401, "INVALID_EMAIL_OR_PASSWORD", "Invalid email or password"),
		"twice":         failed(422, "USER_ALREADY_EXISTS_USE_ANOTHER_EMAIL", "User already exists. Use another email."),
		"shortPassword": failed(400, "PASSWORD_TOO_SHORT", "Password too short"),
		"closed":        failed(400, "EMAIL_PASSWORD_SIGN_UP_DISABLED", "Email and password sign up is not enabled"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the client was told (-want +got):\n%s", diff)
	}
}
