package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// ui asks the gateway for a way into a sandbox.
func (g *gateway) ui(t *testing.T, id string) string {
	t.Helper()
	url, _ := g.call(t, http.MethodGet, "/sandbox/"+id+"/ui", nil, http.StatusOK)["url"].(string)
	if !strings.Contains(url, "/?ticket=") {
		t.Fatalf("url %q", url)
	}
	return url
}

// onHost sends a request to a sandbox's host.
func (g *gateway) onHost(t *testing.T, method, url string, header http.Header) *http.Response {
	t.Helper()
	host := strings.SplitN(strings.TrimPrefix(url, "http://"), "/", 2)
	r, err := http.NewRequestWithContext(t.Context(), method, g.url+"/"+host[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Header = host[0], header
	if r.Header == nil {
		r.Header = http.Header{}
	}
	stays := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := stays.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestOnlyWhoWasLetInReachesASandboxesHost(t *testing.T) {
	g := shared(t)
	g.create(t, "Let_In", nil) // no name of a host, so the label is a hash
	defer g.delete(t, "Let_In")
	link := g.ui(t, "Let_In")
	first := g.onHost(t, http.MethodGet, link, nil)
	if first.StatusCode != http.StatusSeeOther || strings.Contains(first.Header.Get("Location"), "ticket") || first.Header.Get("Clear-Site-Data") == "" ||
		first.Header.Get("Referrer-Policy") != "no-referrer" || first.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("the visit: %d %v", first.StatusCode, first.Header)
	}
	cookie, _, _ := strings.Cut(first.Header.Get("Set-Cookie"), ";")
	if !strings.HasPrefix(cookie, "__Host-agentpod=") {
		t.Fatalf("cookie %q", first.Header.Get("Set-Cookie"))
	}
	base, _, _ := strings.Cut(link, "/?")
	ended, _ := g.call(t, http.MethodGet, "/sandbox/Let_In/ui?session=s1", nil, http.StatusOK)["url"].(string)
	ofSession, _, _ := strings.Cut(g.onHost(t, http.MethodGet, ended, nil).Header.Get("Set-Cookie"), ";")
	for name, c := range map[string]struct {
		method, url string
		header      http.Header
		want        int
	}{
		"the cookie":                     {"GET", base + "/session", http.Header{"Cookie": {cookie}}, 200},
		"a session's cookie":             {"GET", base + "/session", http.Header{"Cookie": {ofSession}}, 200},
		"a tossed cookie beside it":      {"GET", base + "/session", http.Header{"Cookie": {"__Host-agentpod=x.y; " + cookie}}, 200},
		"the ticket again":               {"GET", link, nil, 401},
		"no cookie":                      {"GET", base + "/session", nil, 401},
		"a forged cookie":                {"GET", base + "/session", http.Header{"Cookie": {cookie[:len(cookie)-2] + "xx"}}, 401},
		"the token":                      {"GET", base + "/session", http.Header{"Authorization": {"Bearer " + g.token}}, 401},
		"another host":                   {"GET", strings.Replace(base, "x--", "x--2", 1) + "/session", http.Header{"Cookie": {cookie}}, 404},
		"a host of another domain":       {"GET", strings.Replace(base, "localhost", "example", 1) + "/session", http.Header{"Cookie": {cookie}}, 403},
		"another port in the host":       {"GET", base + "1/session", http.Header{"Cookie": {cookie}}, 404},
		"the domain alone":               {"GET", "http://sandbox.localhost" + base[strings.LastIndex(base, ":"):] + "/session", http.Header{"Cookie": {cookie}}, 404},
		"a write of a foreign page":      {"POST", base + "/session", http.Header{"Cookie": {cookie}, "Origin": {"http://evil.test"}}, 403},
		"a write of nobody":              {"POST", base + "/session", http.Header{"Cookie": {cookie}}, 403},
		"a write of its own":             {"POST", base + "/session", http.Header{"Cookie": {cookie}, "Origin": {base}}, 200},
		"a sibling's request":            {"GET", base + "/session", http.Header{"Cookie": {cookie}, "Sec-Fetch-Site": {"same-site"}}, 403},
		"a service worker":               {"GET", base + "/sw.js", http.Header{"Cookie": {cookie}, "Service-Worker": {"script"}}, 403},
		"a path that climbs":             {"GET", base + "/a/%2e%2e/b", http.Header{"Cookie": {cookie}}, 400},
		"a health probe with the cookie": {"GET", base + "/global/health", http.Header{"Cookie": {cookie}}, 200},
	} {
		resp := g.onHost(t, c.method, c.url, c.header)
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if resp.StatusCode != c.want {
			t.Errorf("%s: %d %.200s, want %d", name, resp.StatusCode, body, c.want)
		}
	}
	pointer, err := g.open(t.Context(), http.MethodGet, "/sandbox/Let_In/opencode/", nil, http.Header{"Accept": {"text/html"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pointer.Body.Close() }()
	text, _ := io.ReadAll(pointer.Body)
	if pointer.StatusCode != http.StatusOK || !strings.Contains(string(text), base+"/") || strings.Contains(string(text), "ticket") {
		t.Errorf("the page under the path: %d %s", pointer.StatusCode, text)
	}

	// Streams end with their session, and with the sandbox.
	stream := func(cookie string) io.Reader {
		resp := g.onHost(t, http.MethodGet, base+"/global/event", http.Header{"Cookie": {cookie}})
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("a stream: %d", resp.StatusCode)
		}
		return resp.Body
	}
	sessions, others := stream(ofSession), stream(cookie)
	g.call(t, http.MethodDelete, "/sandbox/Let_In/ui?session=s1", nil, http.StatusOK)
	_, _ = io.Copy(io.Discard, sessions)
	for _, c := range []struct {
		cookie string
		want   int
	}{{ofSession, 401}, {cookie, 200}} {
		if got := g.onHost(t, http.MethodGet, base+"/session", http.Header{"Cookie": {c.cookie}}).StatusCode; got != c.want {
			t.Errorf("after the session has ended: %d, want %d", got, c.want)
		}
	}
	g.call(t, http.MethodGet, "/sandbox/Let_In/ui?session=s1", nil, http.StatusForbidden)
	g.delete(t, "Let_In")
	_, _ = io.Copy(io.Discard, others)
	g.create(t, "Let_In", nil)
	if got := g.onHost(t, http.MethodGet, base+"/session", http.Header{"Cookie": {cookie}}).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("an earlier incarnation's cookie: %d", got)
	}
	for _, secret := range []string{link[strings.Index(link, "ticket=")+7:], cookie[len("__Host-agentpod="):]} {
		if strings.Contains(g.log(), secret) {
			t.Error("a credential is in the log")
		}
	}
}
