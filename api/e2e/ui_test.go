package e2e

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// onHost sends a request to a sandbox's own host, which the gateway serves.
func (g *gateway) onHost(t *testing.T, address, cookie string) *http.Response {
	t.Helper()
	host, path, _ := strings.Cut(strings.TrimPrefix(address, "http://"), "/")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url()+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	stays := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := stays.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// enter gets a caller into a sandbox's web UI and returns where it is, and the
// cookie.
func (g *gateway) enter(t *testing.T, c *caller, id string) (base, cookie string) {
	t.Helper()
	var way struct {
		URL       string
		ExpiresAt time.Time
	}
	c.must(t, http.MethodGet, boxPath+id+"/ui", nil, http.StatusOK, &way)
	if left := time.Until(way.ExpiresAt); left <= 0 || left > 2*time.Minute {
		t.Errorf("the way is good for %s", left)
	}
	visit := g.onHost(t, way.URL, "")
	cookie, _, _ = strings.Cut(visit.Header.Get("Set-Cookie"), ";")
	if visit.StatusCode != http.StatusSeeOther || cookie == "" {
		t.Fatalf("the visit: %d %v", visit.StatusCode, visit.Header)
	}
	base, ticket, _ := strings.Cut(way.URL, "/?ticket=")
	if ticket == "" {
		t.Fatal("there is no ticket in the way")
	}
	t.Cleanup(func() {
		if strings.Contains(g.Log(), ticket) || strings.Contains(g.Log(), cookie) {
			t.Error("the gateway's log has the ticket or the cookie")
		}
	})
	return base, cookie
}

func TestSigningOutEndsTheWebUI(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	c, other := a.user(t), a.admin(t)
	id := c.newBox(t, object{"name": "mine"})
	other.must(t, http.MethodGet, boxPath+id+"/ui", nil, http.StatusNotFound, nil)
	base, cookie := g.enter(t, c, id)
	page := g.onHost(t, base+"/", cookie)
	if html, err := io.ReadAll(io.LimitReader(page.Body, maxReply)); err != nil || page.StatusCode != http.StatusOK || !strings.Contains(string(html), "<html") {
		t.Fatalf("the UI: %d %v %.200s", page.StatusCode, err, html)
	}
	events := bufio.NewReader(g.onHost(t, base+"/global/event", cookie).Body)
	if line, err := events.ReadString('\n'); err != nil {
		t.Fatalf("the stream: %q %v", line, err)
	}
	if strings.Contains(a.Log(), "ticket") {
		t.Error("the API's log has a ticket")
	}
	c.must(t, http.MethodPost, "/api/auth/sign-out", object{}, http.StatusOK, nil)
	_, _ = io.Copy(io.Discard, events) // it ends, or the test does not
	if got := g.onHost(t, base+"/session", cookie).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("the cookie after the sign-out: %d", got)
	}
	c.must(t, http.MethodGet, boxPath+id+"/ui", nil, http.StatusUnauthorized, nil)
}

// What was opened before the API was killed is ended by the one that comes after.
func TestASignOutAfterARestartEndsTheWebUI(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	c := a.user(t)
	id := c.newBox(t, object{"name": "mine"})
	base, cookie := g.enter(t, c, id)
	if err := a.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	if got := g.onHost(t, base+"/session", cookie).StatusCode; got != http.StatusOK {
		t.Errorf("the cookie after the restart: %d", got)
	}
	c.must(t, http.MethodPost, "/api/auth/sign-out", object{}, http.StatusOK, nil)
	eventually(t, "the cookie is good for nothing", 10*time.Second, func() bool {
		return g.onHost(t, base+"/session", cookie).StatusCode == http.StatusUnauthorized
	})
}
