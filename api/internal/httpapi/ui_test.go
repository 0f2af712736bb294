package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// doors are the web UIs of a fake gateway's sandboxes.
type doors struct {
	// opening is called before a way is given out.
	opening func()

	mu     sync.Mutex
	away   bool
	failed int               // requests that found it away
	asked  []string          // PATH?session=… of every way that was asked for
	open   map[string]string // URL by "ID SESSION", of those that have not ended
	ended  map[string]bool
}

func newDoors(t testing.TB) (*doors, map[string]sandbox.Backend) {
	t.Helper()
	d := &doors{open: map[string]string{}, ended: map[string]bool{}}
	g, backends := newGateway(t, http.NotFound)
	g.ui = d.serve
	return d, backends
}

func (d *doors) serve(w http.ResponseWriter, r *http.Request) {
	id, session := strings.Split(r.URL.Path, "/")[2], r.URL.Query().Get("session")
	key := id + " " + session
	if r.Method == http.MethodGet && d.opening != nil {
		d.opening()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case d.away:
		d.failed++
		panic(http.ErrAbortHandler)
	case r.Method == http.MethodDelete:
		delete(d.open, key)
		d.ended[key] = true
		_, _ = fmt.Fprint(w, `{"success":true}`)
	case d.ended[key]:
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprint(w, `{"error":"the session was ended; use another","code":"forbidden"}`)
	default:
		d.asked = append(d.asked, r.URL.RequestURI())
		d.open[key] = fmt.Sprintf("http://%s.sandbox.localhost:8787/?ticket=TICKET%d", id, len(d.asked))
		_, _ = fmt.Fprintf(w, `{"url":%q,"expiresAt":"2026-01-02T03:04:05.000Z"}`, d.open[key])
	}
}

func (d *doors) goAway(away bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away, d.failed = away, 0
}

// see returns how many are open, and how often it was found away.
func (d *doors) see() (open, failed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.open), d.failed
}

// sessionIDOf returns the id of a token's session.
func (w world) sessionIDOf(t testing.TB, token string) string {
	t.Helper()
	_, body := w.send(t, "GET", authRoot+"get-session", "", "Authorization", "Bearer "+token)
	var reply struct{ Session struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &reply); err != nil || reply.Session.ID == "" {
		t.Fatalf("%v in %s", err, body)
	}
	return reply.Session.ID
}

func (w world) signOut(t testing.TB, token string) {
	t.Helper()
	if resp, body := w.send(t, "POST", authRoot+"sign-out", "", "Authorization", "Bearer "+token); resp.StatusCode != http.StatusOK {
		t.Errorf("signing out: %d %s", resp.StatusCode, body)
	}
}

func TestOnlyItsOwnerGetsAWayIntoASandboxesUI(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		d, backends := newDoors(t)
		var log lockedWriter
		w := newWorld(t, s, options{backends: backends, log: &log})
		token, bob := w.signUp(t), w.signUpBob(t)
		id := w.running(t, w.userOfToken(t, token))
		path := sandboxesRoot + "/" + id + "/ui"
		for i, header := range [][]string{{"Authorization", "Bearer " + token}, {"Cookie", cookie(token)}} {
			resp, body := w.send(t, "GET", path, "", header...)
			want := fmt.Sprintf(`{"url":"http://%s.sandbox.localhost:8787/?ticket=TICKET%d","expiresAt":"2026-01-02T03:04:05.000Z"}`, id, i+1)
			if resp.StatusCode != http.StatusOK || strings.TrimSpace(body) != want || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%v: %d %v %s", header[0], resp.StatusCode, resp.Header, body)
			}
		}
		// The session's id and no more: nothing follows from it for its token.
		asked := strings.Join(d.asked, "\n")
		bare, _, _ := strings.Cut(token, ".")
		if want := "/sandbox/" + id + "/ui?session=" + url.QueryEscape(w.sessionIDOf(t, token)); asked != want+"\n"+want || strings.Contains(asked, bare) {
			t.Errorf("the gateway was asked %s", asked)
		}
		for name, c := range map[string]struct {
			path   string
			header []string
			status int
			code   string
		}{
			"another user":            {path, []string{"Authorization", "Bearer " + bob}, 404, "sandbox_not_found"},
			"the service, of a user":  {path, []string{"Authorization", "Bearer " + serviceToken}, 404, "sandbox_not_found"},
			"nobody":                  {path, nil, 401, "unauthorized"},
			"a sandbox that is none":  {sandboxesRoot + "/sbx-none/ui", []string{"Cookie", cookie(token)}, 404, "sandbox_not_found"},
			"a foreign page's cookie": {path, []string{"Cookie", cookie(token), "Upgrade", "websocket", "Origin", "http://evil.test"}, 403, "forbidden_origin"},
		} {
			resp, body := w.send(t, "GET", c.path, "", c.header...)
			if resp.StatusCode != c.status || codeOf(t, body) != c.code {
				t.Errorf("%s: %d %s, want %d %s", name, resp.StatusCode, body, c.status, c.code)
			}
		}
		if len(d.asked) != 2 {
			t.Errorf("the gateway was asked %v", d.asked)
		}
		// The service has sandboxes too, and no session.
		own := w.running(t, account.ServiceUserID)
		w.call(t, serviceToken, "GET", sandboxesRoot+"/"+own+"/ui", "", http.StatusOK)
		if d.asked[2] != "/sandbox/"+own+"/ui" {
			t.Errorf("for the service the gateway was asked %s", d.asked[2])
		}
		if text := log.String(); strings.Contains(text, "TICKET") || strings.Contains(text, "ticket") || !strings.Contains(text, path) {
			t.Error("the log has a ticket, or nothing")
		}
	})
}

func TestWhyThereIsNoWayIntoAUI(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ui     http.HandlerFunc
		status int
		want   string // in the answer
	}{
		"a gateway without a UI": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotImplemented)
			_, _ = fmt.Fprint(w, `{"error":"this gateway serves no web UI: SANDBOX_DOMAIN is off","code":"unsupported"}`)
		}, 501, `"this gateway serves no web UI: SANDBOX_DOMAIN is off","code":"unsupported"`},
		"a gateway of long ago": {nil, 502, `"backend_failed"`},
		"a sandbox that the gateway lost": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprint(w, `{"error":"there is no such sandbox","code":"sandbox_not_found"}`)
		}, 404, `"sandbox_not_found"`},
		"an address that no browser shall follow": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, `{"url":"javascript:alert(1)"}`)
		}, 502, `"the gateway sent no address of a web UI","code":"backend_failed"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, backends := newGateway(t, http.NotFound)
			g.ui = c.ui
			w := newWorld(t, sqlite(t), options{backends: backends})
			token := w.signUp(t)
			resp, body := w.send(t, "GET", sandboxesRoot+"/"+w.running(t, w.userOfToken(t, token))+"/ui", "", "Authorization", "Bearer "+token)
			if resp.StatusCode != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, body, c.status, c.want)
			}
		})
	}
}

// often is for visits that end without anybody saying so here.
const often = 10 * time.Millisecond

func TestWhatASessionOpenedEndsWithIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		visits time.Duration
		end    func(t *testing.T, w world, d *doors, token string)
	}{
		"signing out, at once": {time.Hour, func(t *testing.T, w world, _ *doors, token string) { w.signOut(t, token) }},
		"signing out at another API, which never heard of it": {time.Hour, func(t *testing.T, w world, _ *doors, token string) {
			newWorld(t, w.store, options{backends: w.backends, visits: time.Hour}).signOut(t, token)
		}},
		"a sign-out that nobody told this API of": {often, func(t *testing.T, w world, _ *doors, token string) {
			bare, _, _ := strings.Cut(token, ".")
			must(t, w.api.Accounts.SignOut(t.Context(), bare))
		}},
		"its time": {often, func(_ *testing.T, w world, _ *doors, _ string) { w.clock.pass(2 * time.Hour) }},
		"a sign-out while the gateway is away": {often, func(t *testing.T, w world, d *doors, token string) {
			d.goAway(true)
			w.signOut(t, token)
			until(t, "the gateway is asked again and again", func() bool { _, failed := d.see(); return failed > 3 })
			if w.signedIn(t, "Authorization", "Bearer "+token) {
				t.Error("a session does not end without the gateway")
			}
			d.goAway(false)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Each(t, server, func(t *testing.T, s *store.Store) {
				d, backends := newDoors(t)
				w := newWorld(t, s, options{backends: backends, visits: c.visits})
				lasting := w.signUp(t)
				_, body := w.send(t, "POST", authRoot+"sign-in/email", strings.Replace(adaLogin, "}", `,"rememberMe":false}`, 1))
				var signed struct{ Token string }
				must(t, json.Unmarshal([]byte(body), &signed))
				userID := w.userOfToken(t, lasting)
				boxes := []string{w.running(t, userID), w.running(t, userID)}
				w.clock.pass(account.ShortLife - time.Hour) // soon one session is over, and no visit
				for _, token := range []string{lasting, signed.Token} {
					for _, id := range boxes {
						w.call(t, token, "GET", sandboxesRoot+"/"+id+"/ui", "", http.StatusOK)
						w.call(t, token, "GET", sandboxesRoot+"/"+id+"/ui", "", http.StatusOK)
					}
				}
				keep := w.sessionIDOf(t, lasting)
				c.end(t, w, d, signed.Token)
				until(t, "what the session opened is closed", func() bool { open, _ := d.see(); return open == 2 })
				d.mu.Lock()
				defer d.mu.Unlock()
				for _, id := range boxes {
					if d.open[id+" "+keep] == "" {
						t.Error("what another session opened was closed, too")
					}
				}
			})
		})
	}
}

// A way that was asked for before a sign-out must not come out after it.
func TestASignOutWhileAWayIsMadeWins(t *testing.T) {
	t.Parallel()
	d, backends := newDoors(t)
	w := newWorld(t, sqlite(t), options{backends: backends})
	token := w.signUp(t)
	id := w.running(t, w.userOfToken(t, token))
	bare, _, _ := strings.Cut(token, ".")
	d.opening = func() { must(t, w.api.Accounts.SignOut(t.Context(), bare)) }
	got := w.call(t, token, "GET", sandboxesRoot+"/"+id+"/ui", "", http.StatusUnauthorized)
	if _, has := got["url"]; has || got["code"] != "unauthorized" {
		t.Errorf("%v", got)
	}
}

// A gateway may have been told of the end before it is asked for a way.
func TestAGatewayThatKnowsOfTheEndIsBelieved(t *testing.T) {
	t.Parallel()
	d, backends := newDoors(t)
	w := newWorld(t, sqlite(t), options{backends: backends})
	token := w.signUp(t)
	id := w.running(t, w.userOfToken(t, token))
	d.ended[id+" "+w.sessionIDOf(t, token)] = true
	if got := w.call(t, token, "GET", sandboxesRoot+"/"+id+"/ui", "", http.StatusUnauthorized); got["code"] != "unauthorized" {
		t.Errorf("%v", got)
	}
}

// What cannot be open any more is forgotten, whoever is asked or is not.
func TestVisitsAreForgotten(t *testing.T) {
	t.Parallel()
	d, backends := newDoors(t)
	w := newWorld(t, sqlite(t), options{backends: backends, visits: often})
	token := w.signUp(t)
	id := w.running(t, w.userOfToken(t, token))
	w.call(t, token, "GET", sandboxesRoot+"/"+id+"/ui", "", http.StatusOK)
	none := func() bool {
		// At the end of all time every visit is over.
		over, err := w.store.Visits().Over(t.Context(), time.Now().AddDate(100, 0, 0), 10)
		must(t, err)
		return len(over) == 0
	}
	if none() {
		t.Fatal("a visit was not kept")
	}
	d.goAway(true)
	w.clock.pass(14 * time.Hour)
	until(t, "a visit of long ago is forgotten", none)
	if _, failed := d.see(); failed > 0 || !w.signedIn(t, "Authorization", "Bearer "+token) {
		t.Errorf("the gateway was told of what is over by itself, %d times", failed)
	}
	must(t, w.store.Visits().Put(t.Context(), task.Visit{SessionID: "of long ago", SandboxID: id, Until: w.clock.Now().Add(time.Hour)}))
	d.goAway(false)
	until(t, "a visit whose session is gone is forgotten", none)
}
