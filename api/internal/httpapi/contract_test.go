package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

// recording is a request to the server that the login client was written for,
// and its answer.
type recording struct {
	Request struct {
		Method, Path string
		Headers      map[string]string
		Body         json.RawMessage
	}
	Response struct {
		Status  int
		Headers map[string]json.RawMessage
		Body    any
	}
}

func readRecording(t testing.TB, name string) recording {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "auth", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var r recording
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

// played is the order in which the recordings follow from each other.
func played() []string {
	return []string{
		"ok", "get_session_none", "sign_up", "sign_up_duplicate", "sign_up_short_password", "sign_up_long_password", "sign_up_bad_email",
		"sign_up_missing_name", "sign_in", "get_session_cookie", "get_session_bearer", "get_session_bearer_body_token", "get_session_bad_bearer",
		"sign_in_wrong_password", "sign_in_unknown_user", "sign_in_bad_json", "sign_in_empty", "sign_in_foreign_origin", "sign_in_remember_false",
		"sign_out_foreign_origin", "sign_out", "get_session_after_sign_out", "sign_out_none", "unknown",
	}
}

func TestEveryRecordingOfTheLoginServerIsMatched(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/auth/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".json"); !slices.Contains(played(), name) {
			t.Errorf("%s is not played", name)
		}
	}
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		// The recorded user was not the first of that server.
		first := httptest.NewRequestWithContext(t.Context(), http.MethodPost, authRoot+"sign-up/email",
			strings.NewReader(`{"name":"First","email":"first@example.com","password":"password1"}`))
		if resp := w.do(first); resp.StatusCode != http.StatusOK {
			t.Fatalf("the first user: %d", resp.StatusCode)
		}
		p := player{world: w, ours: map[string]string{}}
		for _, name := range played() {
			if !t.Run(name, func(t *testing.T) { p.play(t, readRecording(t, name)) }) {
				return // the next follow from this one
			}
		}
	})
}

// player plays recordings and remembers what of ours stands for which recorded
// token.
type player struct {
	world world
	ours  map[string]string
}

// translate puts our tokens in the place of the recorded ones.
func (p *player) translate(s string) string {
	for _, theirs := range slices.Backward(slices.SortedFunc(maps.Keys(p.ours), func(a, b string) int { return len(a) - len(b) })) {
		s = strings.ReplaceAll(s, theirs, p.ours[theirs])
	}
	return s
}

// learn notes that a token of ours was given where theirs was recorded.
func (p *player) learn(theirs, ours string) {
	token, _, _ := strings.Cut(theirs, ".")
	our, _, _ := strings.Cut(ours, ".")
	p.ours[theirs], p.ours[url.QueryEscape(theirs)], p.ours[token] = ours, url.QueryEscape(ours), our
}

func (p *player) play(t *testing.T, r recording) {
	body := ""
	if raw := string(r.Request.Body); raw != "null" {
		body = raw
		var text string
		if json.Unmarshal(r.Request.Body, &text) == nil {
			body = text // it was not JSON
		}
	}
	req := httptest.NewRequestWithContext(t.Context(), r.Request.Method, r.Request.Path, strings.NewReader(body))
	req.Header.Set("User-Agent", "example-client/1.0")
	for name, value := range r.Request.Headers {
		req.Header.Set(name, p.translate(value))
	}
	resp := p.world.do(req)
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != r.Response.Status {
		t.Fatalf("status %d, recorded %d: %s", resp.StatusCode, r.Response.Status, raw)
	}
	var cookies []string
	for name, value := range r.Response.Headers {
		if name == "set-cookie" {
			must(t, json.Unmarshal(value, &cookies))
			continue
		}
		var recorded string
		must(t, json.Unmarshal(value, &recorded))
		got := resp.Header.Get(name)
		switch name {
		case tokenHeader:
			p.learn(recorded, got)
		case "access-control-expose-headers":
			if slices.Contains(strings.Split(got, ", "), recorded) {
				continue
			}
		}
		if got != p.translate(recorded) {
			t.Errorf("header %s: %q, recorded %q", name, got, recorded)
		}
	}
	if resp.Header.Get(tokenHeader) != "" && r.Response.Headers[tokenHeader] == nil {
		t.Error("a token was given that was not recorded")
	}
	if diff := cmp.Diff(p.cookies(cookies), p.cookies(resp.Header.Values("Set-Cookie"))); diff != "" {
		t.Errorf("cookies (-recorded +ours):\n%s", diff)
	}
	var got any
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatalf("%v in %q", err, raw)
		}
	}
	if diff := cmp.Diff(p.body(t, "", r.Response.Body), p.body(t, "", got)); diff != "" {
		t.Errorf("body (-recorded +ours):\n%s", diff)
	}
}

// cookies makes cookies comparable: their attributes in one order, our tokens in
// the place of the recorded ones.
func (p *player) cookies(lines []string) []string {
	var out []string
	for _, line := range lines {
		parts := strings.Split(line, "; ")
		slices.Sort(parts[1:])
		if name, value, _ := strings.Cut(parts[0], "="); name == forgetCookie && value != "" {
			// Signed with another secret.
			decoded, err := url.PathUnescape(value)
			text, signature, found := strings.Cut(decoded, ".")
			parts[0] = fmt.Sprintf("%s=%s, signed %v with %d characters, %v", name, text, found, len(signature), err)
		}
		out = append(out, p.translate(strings.Join(parts, "; ")))
	}
	return out
}

// body makes a body comparable: what a server makes up is checked for its form,
// and replaced.
func (p *player) body(t *testing.T, name string, value any) any {
	forms := map[string]string{
		"id": `^[A-Za-z0-9]{32}$`, "userId": `^[A-Za-z0-9]{32}$`, "ipAddress": `^[0-9.]*$`,
		"createdAt": recordedTime, "updatedAt": recordedTime, "expiresAt": recordedTime,
	}
	switch v := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			out[key] = p.body(t, key, inner)
		}
		return out
	case string:
		if form := forms[name]; form != "" {
			if !regexp.MustCompile(form).MatchString(v) {
				t.Errorf("%s is %q", name, v)
			}
			return "some " + name
		}
		return p.translate(v)
	default:
		return v
	}
}

const recordedTime = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
