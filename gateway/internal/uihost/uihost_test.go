package uihost

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake has one sandbox, "box".
type fake struct {
	incarnation string // empty: there is none
	running     bool
	progress    []sandbox.Progress
	use         func(ctx context.Context) error
	carried     []string
	done        context.Context //nolint:containedctx // the last visit's
}

func (f *fake) Whose(string) (lifecycle.Handle, error) {
	if f.incarnation == "" {
		return lifecycle.Handle{}, sandbox.Errorf(sandbox.CodeSandboxNotFound, "none")
	}
	return lifecycle.Handle{Incarnation: f.incarnation, Directory: "/home/user/workspace"}, nil
}

func (f *fake) Get(context.Context, string) (sandbox.Info, error) {
	return sandbox.Info{Status: sandbox.StatusSleeping, Tier: sandbox.TierArchived, Progress: f.progress}, nil
}

func (f *fake) Peek(string) (lifecycle.Handle, bool, error) {
	return lifecycle.Handle{}, f.running, nil
}

func (f *fake) Use(ctx context.Context, _ string, _ lifecycle.Purpose) (lifecycle.Handle, error) {
	if err := f.use(ctx); err != nil {
		return lifecycle.Handle{}, err
	}
	return lifecycle.Handle{Incarnation: f.incarnation}, nil
}

func (f *fake) Carry(w http.ResponseWriter, r *http.Request, v proxy.Visit) error {
	f.carried = append(f.carried, r.Method+" "+v.Path)
	f.done = v.Done
	_, _ = io.WriteString(w, "from OpenCode")
	return nil
}

const own = "http://box.sandbox.localhost:8787"

func newHost(t *testing.T, f *fake) *Host {
	t.Helper()
	public := &url.URL{Scheme: "http", Host: "127.0.0.1:8787"}
	h := New(Settings{Domain: "sandbox.localhost", Public: public, Key: []byte("a key")},
		Deps{Sandboxes: f, Carrier: f, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func ask(t *testing.T, h *Host, method, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	r.RequestURI = strings.TrimPrefix(target, own)
	for pair := range slices.Chunk(header, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// enter gets a cookie.
func enter(t *testing.T, h *Host, session string, header ...string) (cookie string, w *httptest.ResponseRecorder) {
	t.Helper()
	link, _, err := h.Ticket("box", session)
	if err != nil {
		t.Fatal(err)
	}
	w = ask(t, h, http.MethodGet, link, header...)
	cookie, _, _ = strings.Cut(w.Header().Get("Set-Cookie"), ";")
	if w.Code != http.StatusSeeOther || cookie == "" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	return cookie, w
}

func TestALabelIsTheIDOrAHash(t *testing.T) {
	t.Parallel()
	for id, plain := range map[string]bool{
		"a": true, "task-1": true, "1": true, "a-b-c": true, strings.Repeat("a", 63): true,
		"A": false, "a_b": false, "a-": false, "a--b": false, "8080--a": false, "x--a": false, "xn--a": false, "a--": false,
	} {
		label := Label(id)
		if (label == id) != plain || !isLabel(label) || !plain && !strings.HasPrefix(label, "x--") {
			t.Errorf("%q became %q", id, label)
		}
	}
	for _, text := range []string{"", "-a", "a.b", "A", "a_b", "8080--a", "x--short", "x--" + strings.Repeat("1", 32), strings.Repeat("a", 64)} {
		if isLabel(text) {
			t.Errorf("%q passes for a label", text)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9_-]{0,62}`)
		a, b := id.Draw(t, "a"), id.Draw(t, "b")
		if !isLabel(Label(a)) || len(Label(a)) > 63 || (a != b) == (Label(a) == Label(b)) {
			t.Fatalf("%q %q, %q %q", a, Label(a), b, Label(b))
		}
	})
}

func TestAPassIsReadOnlyAsItWasSigned(t *testing.T) {
	t.Parallel()
	p := pass{SandboxID: "box", Incarnation: "i", Session: "s", Issued: time.Unix(1, 0).UTC(), Expires: time.Unix(2, 0).UTC()}
	value, err := sign([]byte("a key"), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := read([]byte("a key"), value); !ok || got != p {
		t.Errorf("%+v %v", got, ok)
	}
	if _, ok := read([]byte("another key"), value); ok {
		t.Error("another key's is read")
	}
	for i := range value {
		changed := []byte(value)
		changed[i] ^= 1
		if got, ok := read([]byte("a key"), string(changed)); ok && got != p {
			t.Fatalf("byte %d: %+v", i, got)
		}
	}
	for _, text := range []string{"", ".", "a", "a.b", value + ".x", value[:len(value)/2]} {
		if _, ok := read([]byte("a key"), text); ok {
			t.Errorf("%q is read", text)
		}
	}
}

func TestATicketLetsOneBrowserInForAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{incarnation: "one", running: true}
		h := newHost(t, f)
		link, expires, err := h.Ticket("box", "")
		if err != nil || !strings.HasPrefix(link, own+"/?ticket=") || time.Until(expires) != time.Minute {
			t.Fatal(link, expires, err)
		}
		for name, header := range map[string][]string{
			"a frame": {"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, "a script": {"Sec-Fetch-Mode", "cors"}, "an upgrade": {"Upgrade", "websocket"},
		} {
			if w := ask(t, h, http.MethodGet, link, header...); w.Code != http.StatusUnauthorized || w.Header().Get("Set-Cookie") != "" {
				t.Errorf("%s: %d", name, w.Code)
			}
		}
		w := ask(t, h, http.MethodGet, link, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site")
		if set := w.Header().Get("Set-Cookie"); w.Code != http.StatusSeeOther || w.Header().Get("Clear-Site-Data") != `"cache", "storage"` ||
			!strings.Contains(set, "HttpOnly") || !strings.Contains(set, "Secure") || !strings.Contains(set, "Path=/;") || strings.Contains(set, "Domain") {
			t.Fatalf("%d %v", w.Code, w.Header())
		}
		if w := ask(t, h, http.MethodGet, link); w.Code != http.StatusUnauthorized {
			t.Errorf("again: %d", w.Code)
		}
		late, _, _ := h.Ticket("box", "")
		time.Sleep(time.Minute)
		if w := ask(t, h, http.MethodGet, late); w.Code != http.StatusUnauthorized {
			t.Errorf("after a minute: %d", w.Code)
		}
		earlier, _, _ := h.Ticket("box", "")
		f.incarnation = "two"
		if w := ask(t, h, http.MethodGet, earlier); w.Code != http.StatusUnauthorized {
			t.Errorf("an earlier incarnation's: %d", w.Code)
		}
		burnt, _, _ := h.Ticket("box", "")
		if w := ask(t, h, http.MethodGet, strings.Replace(burnt, "box.", "other.", 1)); w.Code != http.StatusUnauthorized {
			t.Errorf("on another host: %d", w.Code)
		}
		if w := ask(t, h, http.MethodGet, burnt); w.Code != http.StatusUnauthorized {
			t.Errorf("after another host: %d", w.Code)
		}
		if len(f.carried) > 0 {
			t.Errorf("carried %v", f.carried)
		}
	})
}

func TestTicketsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, &fake{incarnation: "one"})
		var err error
		n := 0
		for ; err == nil; n++ {
			_, _, err = h.Ticket("box", "")
		}
		if n != maxOfOne+1 || !sandbox.HasCode(err, sandbox.CodeTooManyRequests) {
			t.Errorf("of one sandbox: %d, then %v", n, err)
		}
		for n := len(h.tickets.open); n < maxTickets-1; n++ {
			h.tickets.open[sha256.Sum256([]byte(strconv.Itoa(n)))] = pass{SandboxID: "others", Expires: time.Now().Add(ticketLife)}
		}
		if _, _, err := h.Ticket("another", ""); err != nil {
			t.Errorf("another sandbox gets none: %v", err)
		}
		if _, _, err := h.Ticket("another", ""); !sandbox.HasCode(err, sandbox.CodeTooManyRequests) {
			t.Errorf("of all: %v", err)
		}
		time.Sleep(ticketLife + time.Second)
		if _, _, err := h.Ticket("box", ""); err != nil {
			t.Error(err)
		}
	})
}

func TestACookieEndsWithItsTimeItsSessionAndItsSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{incarnation: "one", running: true}
		h := newHost(t, f)
		plain, _ := enter(t, h, "")
		ofSession, _ := enter(t, h, "s")
		status := func(cookie string) int { return ask(t, h, http.MethodGet, own+"/x", "Cookie", cookie).Code }
		if status(plain) != 200 || status(ofSession) != 200 {
			t.Fatal("a fresh cookie is not good")
		}
		held := f.done
		if err := h.End("box", "s"); err != nil || !errors.Is(context.Cause(held), errOver) && held.Err() == nil {
			t.Errorf("%v, %v", err, held.Err())
		}
		if status(plain) != 200 || status(ofSession) != 401 {
			t.Error("the end of a session is not only its own")
		}
		if _, _, err := h.Ticket("box", "s"); !sandbox.HasCode(err, sandbox.CodeForbidden) {
			t.Errorf("a ticket of an ended session: %v", err)
		}
		restarted := newHost(t, f)
		if w := ask(t, restarted, http.MethodGet, own+"/x", "Cookie", ofSession); w.Code != 401 {
			t.Errorf("a session's cookie after a restart: %d", w.Code)
		}
		if w := ask(t, restarted, http.MethodGet, own+"/x", "Cookie", plain); w.Code != 200 {
			t.Errorf("a cookie after a restart: %d", w.Code)
		}
		time.Sleep(visitLife)
		if status(plain) != 401 {
			t.Error("a cookie is good for ever")
		}
		// It still tells whose storage the browser has.
		if _, w := enter(t, h, "", "Cookie", plain); w.Header().Get("Clear-Site-Data") != "" {
			t.Error("the storage of the same sandbox was cleared")
		}
		fresh, _ := enter(t, h, "")
		f.incarnation = "two"
		if status(fresh) != 401 {
			t.Error("an earlier incarnation's cookie is good")
		}
		if _, w := enter(t, h, "", "Cookie", fresh); w.Header().Get("Clear-Site-Data") == "" {
			t.Error("the storage of an earlier sandbox was kept")
		}
	})
}

func TestOnlyItsOwnPagesReachASandbox(t *testing.T) {
	t.Parallel()
	f := &fake{incarnation: "one", running: true}
	h := newHost(t, f)
	cookie, _ := enter(t, h, "")
	start := own + startPath("/home/user/workspace")
	document := func(site string) []string {
		return []string{"Sec-Fetch-Site", site, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}
	}
	for name, c := range map[string]struct {
		method, target string
		header         []string
		want           int
	}{
		"a program":                         {"GET", own + "/x", nil, 200},
		"its own page":                      {"GET", own + "/x", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		"the address bar":                   {"GET", own + "/x", document("none"), 200},
		"a sibling":                         {"GET", own + "/x", []string{"Sec-Fetch-Site", "same-site"}, 403},
		"another site":                      {"GET", own + "/x", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"two answers":                       {"GET", own + "/x", []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "cross-site"}, 403},
		"a read of a foreign origin":        {"GET", own + "/x", []string{"Origin", "http://evil.test"}, 403},
		"a read of no origin":               {"GET", own + "/x", []string{"Origin", "null"}, 403},
		"a write of its own":                {"POST", own + "/x", []string{"Origin", own, "Sec-Fetch-Site", "same-origin"}, 200},
		"a write of its own, an old one":    {"DELETE", own + "/x", []string{"Origin", own}, 200},
		"a write without an origin":         {"POST", own + "/x", nil, 403},
		"a write of another port":           {"POST", own + "/x", []string{"Origin", own + "1"}, 403},
		"a write of two origins":            {"POST", own + "/x", []string{"Origin", own, "Origin", "http://evil.test"}, 403},
		"a socket of its own":               {"GET", own + "/x", []string{"Upgrade", "websocket", "Origin", own}, 200},
		"a socket without an origin":        {"GET", own + "/x", []string{"Upgrade", "websocket"}, 403},
		"a socket of a sibling":             {"GET", own + "/x", []string{"Upgrade", "websocket", "Origin", "http://a.sandbox.localhost:8787"}, 403},
		"a link of another site":            {"GET", own + "/x", document("cross-site"), 403},
		"what follows the ticket":           {"GET", start, document("cross-site"), 202},
		"what follows it, with a query":     {"GET", start + "?x", document("cross-site"), 403},
		"what follows it, in a frame":       {"GET", start, []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		"a service worker":                  {"GET", own + "/sw.js", []string{"Service-Worker", "script", "Sec-Fetch-Site", "same-origin"}, 403},
		"a service worker by its dest":      {"GET", own + "/sw.js", []string{"Sec-Fetch-Dest", "serviceworker", "Sec-Fetch-Site", "same-origin"}, 403},
		"a path that climbs":                {"GET", own + "/a/%252e%252e/b", nil, 400},
		"a label of another sandbox":        {"GET", "http://other.sandbox.localhost:8787/x", nil, 401},
		"a label that is reserved":          {"GET", "http://8080--box.sandbox.localhost:8787/x", nil, 404},
		"a label of labels":                 {"GET", "http://a.box.sandbox.localhost:8787/x", nil, 404},
		"a dot behind":                      {"GET", "http://box.sandbox.localhost.:8787/x", nil, 404},
		"another port":                      {"GET", "http://box.sandbox.localhost:8788/x", nil, 404},
		"a ticket parameter on another way": {"GET", own + "/x?ticket=abc", nil, 200},
	} {
		w := ask(t, h, c.method, c.target, append([]string{"Cookie", cookie}, c.header...)...)
		if w.Code != c.want || (w.Body.String() == "from OpenCode") != (c.want == 200) {
			t.Errorf("%s: %d %.80s, want %d", name, w.Code, w.Body, c.want)
		}
	}
	if w := ask(t, h, http.MethodGet, own+"/x", "Cookie", "__Host-agentpod=a.b; "+cookie+"; __Host-agentpod=c"); w.Code != 200 {
		t.Errorf("beside tossed cookies: %d", w.Code)
	}
	if w := ask(t, h, http.MethodGet, own+"/site.webmanifest", "Sec-Fetch-Dest", "manifest", "Sec-Fetch-Site", "same-origin"); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
		t.Errorf("a manifest: %d %s", w.Code, w.Body)
	}
}

func TestASleepingSandboxShowsAPageUntilItIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		woken := make(chan error)
		f := &fake{incarnation: "one", use: func(ctx context.Context) error {
			select {
			case err := <-woken:
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}}
		h := newHost(t, f)
		cookie, _ := enter(t, h, "")
		page := func() *httptest.ResponseRecorder {
			return ask(t, h, http.MethodGet, own+"/a", "Cookie", cookie, "Accept", "text/html")
		}
		state := func() string {
			return strings.TrimSpace(ask(t, h, http.MethodGet, own+"/a", "Cookie", cookie, "Agentpod-Waiting", "1").Body.String())
		}
		if w := page(); w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), "is being restored") || !strings.Contains(w.Header().Get("Content-Security-Policy"), "nonce-") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if got := state(); got != `{"state":"waiting"}` {
			t.Error(got)
		}
		percent := 40
		f.progress = []sandbox.Progress{{Step: sandbox.StepRestore, Percent: &percent}, {Step: sandbox.StepOpenCode}}
		// The words apart from the number: they are read out when they change.
		if got := state(); got != `{"state":"waiting","text":"Bringing its files back; Starting OpenCode.","percent":40}` {
			t.Error(got)
		}
		woken <- sandbox.Errorf(sandbox.CodeBootFailed, "it said <b>no</b>")
		synctest.Wait()
		if got := state(); !strings.Contains(got, `"state":"failed"`) || !strings.Contains(got, "it said") {
			t.Error(got)
		}
		// Who asks for the page again has it tried again.
		if w := page(); w.Code != http.StatusAccepted {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		woken <- nil
		synctest.Wait()
		f.running = true
		if got := state(); got != `{"state":"ready"}` {
			t.Error(got)
		}
		if w := page(); w.Body.String() != "from OpenCode" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		// One that fails at once says so at once, escaped.
		f.running = false
		f.use = func(context.Context) error { return sandbox.Errorf(sandbox.CodeWorkspaceLost, "it said <b>no</b>") }
		if w := page(); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "it said &lt;b&gt;no&lt;/b&gt;") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		// What is no page is held, as under the path.
		if w := ask(t, h, http.MethodGet, own+"/session", "Cookie", cookie); w.Body.String() != "from OpenCode" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func TestARefusalIsAPageForPeopleAndJSONForPrograms(t *testing.T) {
	t.Parallel()
	h := newHost(t, &fake{incarnation: "one"})
	if w := ask(t, h, http.MethodGet, own+"/", "Accept", "text/html"); w.Code != 401 || !strings.Contains(w.Body.String(), "/sandbox/ID/ui") || strings.Contains(w.Body.String(), "<script") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w := ask(t, h, http.MethodGet, own+"/")
	var body sandbox.ErrorResponse
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 401 || body.Code != sandbox.CodeUnauthorized {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if h.Serves("127.0.0.1:8787") || h.Serves("evil-sandbox.localhost") || !h.Serves("SANDBOX.localhost.") || !h.Serves("a.sandbox.localhost:1") {
		t.Error("which hosts are served")
	}
}
