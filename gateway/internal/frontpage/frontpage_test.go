package frontpage

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "a-token-that-is-long-enough"

// boxes are sandboxes that do what a test says.
type boxes struct {
	mu    sync.Mutex
	infos []sandbox.Info
	calls []string
	fail  error
	hold  chan struct{} // a call waits for it to be closed
}

func (b *boxes) call(ctx context.Context, what string) error {
	b.mu.Lock()
	b.calls = append(b.calls, what)
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fail
}

func (b *boxes) set(infos ...sandbox.Info) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.infos = infos
}

func (b *boxes) called() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

func (b *boxes) List(f lifecycle.Filter) sandbox.ListResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	var page sandbox.ListResponse
	for _, info := range b.infos {
		if info.SandboxID <= f.Cursor {
			continue
		}
		if len(page.Sandboxes) == f.Limit {
			page.NextCursor = page.Sandboxes[f.Limit-1].SandboxID
			break
		}
		page.Sandboxes = append(page.Sandboxes, info)
	}
	return page
}

func (b *boxes) Whose(id string) (lifecycle.Handle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.infos, func(info sandbox.Info) bool { return info.SandboxID == id }) {
		return lifecycle.Handle{}, nil
	}
	return lifecycle.Handle{}, sandbox.Errorf(sandbox.CodeSandboxNotFound, "none")
}

func (b *boxes) Create(ctx context.Context, req sandbox.CreateRequest) (sandbox.CreateResponse, error) {
	return sandbox.CreateResponse{}, b.call(ctx, "create "+req.ID+" "+req.UserID+" "+req.GitURL+" "+req.GitBranch)
}

func (b *boxes) Wake(ctx context.Context, id string, _ json.RawMessage, _ string) (sandbox.WakeResponse, error) {
	return sandbox.WakeResponse{}, b.call(ctx, "wake "+id)
}

func (b *boxes) Hibernate(ctx context.Context, id string, tier sandbox.Tier, _ bool) (sandbox.HibernateResponse, error) {
	return sandbox.HibernateResponse{}, b.call(ctx, "hibernate "+id+" "+string(tier))
}

func (b *boxes) Sync(ctx context.Context, id string) (lifecycle.Synced, error) {
	return lifecycle.Synced{Files: 1, Bytes: 2500}, b.call(ctx, "sync "+id)
}

func (b *boxes) Delete(ctx context.Context, id string) error { return b.call(ctx, "delete "+id) }

// doors are the sandboxes' UIs.
type doors struct {
	mu    sync.Mutex
	open  []string
	ended []string
}

func (d *doors) Ticket(id, session string) (string, time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, id+" "+session)
	return "http://" + id + ".sandbox.localhost/?ticket=t", time.Now(), nil
}

func (d *doors) End(id, session string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = append(d.ended, id+" "+session)
	return nil
}

// fixture is a Page behind a server, and a browser without JavaScript.
type fixture struct {
	*testing.T
	boxes  *boxes
	doors  *doors
	server *httptest.Server
	client *http.Client
	drain  context.CancelFunc
	front  *Page
	log    *lines
}

// lines are a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, boxes: &boxes{}, doors: &doors{}, log: &lines{}}
	streams, drain := context.WithCancel(context.Background())
	f.drain = drain
	p := New(Settings{Token: token, Address: "http://127.0.0.1:8787", SandboxHosts: "http://*.sandbox.localhost:8787", Streams: streams},
		Deps{Sandboxes: f.boxes, UI: f.doors, Log: slog.New(slog.NewTextHandler(f.log, nil))})
	f.front = p
	f.server = httptest.NewTLSServer(p) // the cookie is kept for https only
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.client = f.server.Client()
	f.client.Jar = jar
	f.client.Timeout = 20 * time.Second
	f.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		drain()
		f.server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

// send sends a request as a browser would, with more headers over that.
func (f *fixture) send(method, path string, form url.Values, more http.Header) (*http.Response, string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), method, f.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		f.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", f.server.URL)
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for name, values := range more {
		r.Header[name] = values
	}
	resp, err := f.client.Do(r)
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.Fatal(err)
	}
	return resp, string(body)
}

func (f *fixture) signIn() {
	f.Helper()
	if resp, body := f.send(http.MethodPost, "/ui/sign-in", url.Values{"token": {token}}, nil); resp.StatusCode != http.StatusSeeOther {
		f.Fatalf("signing in: %d %s", resp.StatusCode, body)
	}
}

// page waits until the page says something.
func (f *fixture) page(says string) string {
	f.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		_, body := f.send(http.MethodGet, "/", nil, nil)
		if strings.Contains(body, says) {
			return body
		}
		select {
		case <-tick.C:
		case <-deadline:
			f.Fatalf("the page does not say %q:\n%s", says, body)
		}
	}
}

func running(id string) sandbox.Info {
	return sandbox.Info{SandboxID: id, UserID: "u", Status: sandbox.StatusRunning, CreatedAt: sandbox.At(time.Now()), LastActiveAt: sandbox.At(time.Now())}
}

func TestOnlyWhoSignedInSeesOrDoesAnything(t *testing.T) {
	f := newFixture(t)
	f.boxes.set(running("demo"))
	resp, body := f.send(http.MethodGet, "/", nil, nil)
	if resp.StatusCode != http.StatusOK || strings.Contains(body, "demo") || !strings.Contains(body, `type="password"`) {
		t.Errorf("a stranger gets %d %s", resp.StatusCode, body)
	}
	for _, path := range []string{"/ui/sandboxes", "/ui/sandboxes/demo/delete", "/ui/sandboxes/demo/open", "/ui/sign-out"} {
		if resp, _ := f.send(http.MethodPost, path, url.Values{}, nil); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("POST %s: %d", path, resp.StatusCode)
		}
	}
	if resp, _ := f.send(http.MethodGet, "/ui/live", nil, nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the stream: %d", resp.StatusCode)
	}
	for _, wrong := range []string{"", "x", token + "x"} {
		resp, _ := f.send(http.MethodPost, "/ui/sign-in", url.Values{"token": {wrong}}, nil)
		if resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies()) > 0 {
			t.Errorf("token %q: %d", wrong, resp.StatusCode)
		}
	}
	resp, _ = f.send(http.MethodGet, "/", nil, http.Header{"Cookie": {cookieName + "=forged"}})
	if resp.StatusCode != http.StatusOK || len(f.boxes.called()) > 0 {
		t.Errorf("forged: %d, called %q", resp.StatusCode, f.boxes.called())
	}

	resp, _ = f.send(http.MethodPost, "/ui/sign-in", url.Values{"token": {" " + token + "\n"}}, nil)
	c := resp.Cookies()
	if len(c) != 1 || !strings.HasPrefix(c[0].Name, "__Host-") || !c[0].HttpOnly || !c[0].Secure || c[0].Domain != "" || c[0].Path != "/" || strings.Contains(c[0].Value, token) {
		t.Fatalf("cookies %v", c)
	}
	f.page("demo")
	tossed := http.Header{"Cookie": {cookieName + "=tossed; " + cookieName + "=" + c[0].Value}}
	if _, body := f.send(http.MethodGet, "/", nil, tossed); !strings.Contains(body, "demo") {
		t.Error("a cookie that somebody else has set wins")
	}
}

func TestPagesOfOtherOriginsGetNothing(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("demo"))
	navigation := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		want         int
	}{
		"a visit by a link of another site is one":      {"GET", "/", navigation, http.StatusOK},
		"a visit to what is no page is refused":         {"GET", "/ui/live", navigation, http.StatusForbidden},
		"a frame is refused":                            {"GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, http.StatusForbidden},
		"a request of a sibling is refused":             {"GET", "/", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, http.StatusForbidden},
		"a form of another site is refused":             {"POST", "/ui/sandboxes/demo/delete", navigation, http.StatusForbidden},
		"a form of a sandbox under a path is refused":   {"POST", "/ui/sandboxes/demo/delete", map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "null"}, http.StatusForbidden},
		"a form of an old browser elsewhere is refused": {"POST", "/ui/sandboxes/demo/delete", map[string]string{"Sec-Fetch-Site": "", "Origin": "http://evil.example"}, http.StatusForbidden},
		"signing somebody in from elsewhere is refused": {"POST", "/ui/sign-in", map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}, http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{}
			for k, v := range c.header {
				header[k] = []string{v}
				if v == "" {
					header[k] = nil
				}
			}
			if resp, _ := f.send(c.method, c.path, url.Values{"token": {token}}, header); resp.StatusCode != c.want {
				t.Errorf("status %d, want %d", resp.StatusCode, c.want)
			}
		})
	}
	if got := f.boxes.called(); len(got) > 0 {
		t.Errorf("called %q", got)
	}
	resp, _ := f.send(http.MethodGet, "/", nil, nil)
	policy := resp.Header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "frame-ancestors 'none'") || !strings.Contains(policy, "form-action 'self' http://*.sandbox.localhost:8787;") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

func TestWhatASandboxSaysIsText(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	evil := `"><img src=x onerror=alert(1)><script>alert(1)</script>`
	bad := running("demo")
	bad.UserID, bad.GitURL, bad.LastError = evil, "https://x/"+evil, evil+"\x1b[2J\u202e"+strings.Repeat("long", 1000)
	f.boxes.set(bad)
	body := f.page("demo")
	if strings.Contains(body, "<img") || strings.Contains(body, "<script>") || strings.ContainsAny(body, "\x1b\u202e") || len(body) > 20_000 {
		t.Errorf("the page has\n%s", body)
	}
}

func TestACreateSaysWhatIsWrongWhereItWasAskedFor(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("demo"))
	for name, c := range map[string]struct {
		form url.Values
		fail error
		says string
	}{
		"a name that is no id":      {url.Values{"id": {"../x"}}, nil, "the sandbox id must be"},
		"a name that is in use":     {url.Values{"id": {"demo"}}, nil, "choose another name"},
		"a URL that is not allowed": {url.Values{"gitUrl": {"file:///etc"}}, sandbox.Errorf(sandbox.CodeInvalidRequest, "gitUrl must be https"), "gitUrl must be https"},
	} {
		t.Run(name, func(t *testing.T) {
			f.boxes.fail = c.fail
			resp, body := f.send(http.MethodPost, "/ui/sandboxes", c.form, nil)
			if resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(body, c.says) || !strings.Contains(body, `value="`+c.form.Get("gitUrl")+`"`) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			resp, body = f.send(http.MethodPost, "/ui/sandboxes", c.form, http.Header{"Accept": {"text/plain"}})
			if resp.StatusCode < 400 || !strings.Contains(body, c.says) || strings.Contains(body, "<") {
				t.Errorf("to the script: %d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestWhatTakesLongGoesOnWithoutItsRequest(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.hold = make(chan struct{})
	form := url.Values{"gitUrl": {"https://git.example/you/My_Project.git"}, "gitBranch": {"dev"}}
	if resp, body := f.send(http.MethodPost, "/ui/sandboxes", form, nil); resp.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	f.page("Being created")
	call := f.boxes.called()[0]
	id := strings.Fields(call)[1]
	if !strings.HasPrefix(id, "my-project-") || sandbox.CheckID(id) != nil || !strings.HasSuffix(call, " "+Owner+" https://git.example/you/My_Project.git dev") {
		t.Errorf("called %q", call)
	}
	begun := running(id)
	begun.Status = sandbox.StatusCreating
	f.boxes.set(begun)
	if resp, _ := f.send(http.MethodPost, "/ui/sandboxes/"+id+"/sync", nil, nil); resp.StatusCode != http.StatusConflict {
		t.Errorf("a second thing at once: %d", resp.StatusCode)
	}
	f.boxes.set()
	f.boxes.mu.Lock()
	f.boxes.fail = sandbox.Errorf(sandbox.CodeCloneFailed, "git clone failed: <b>no</b>")
	close(f.boxes.hold)
	f.boxes.hold = nil
	f.boxes.mu.Unlock()
	if body := f.page("It could not be created: git clone failed: &lt;b&gt;no"); !strings.Contains(body, "Not created") {
		t.Error("it still looks as if it came")
	}
	f.send(http.MethodPost, "/ui/sandboxes/"+id+"/dismiss", nil, nil)
	f.page("There is no sandbox")
}

func TestACreateCanBeCutShortByADelete(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.hold = make(chan struct{})
	f.send(http.MethodPost, "/ui/sandboxes", url.Values{"id": {"demo"}}, nil)
	begun := running("demo")
	begun.Status = sandbox.StatusCreating
	f.boxes.set(begun)
	if resp, body := f.send(http.MethodPost, "/ui/sandboxes/demo/delete", nil, nil); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	f.page("Deleting")
}

func TestEveryButtonDoesWhatItSays(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	asleep := running("demo")
	asleep.Status, asleep.Tier = sandbox.StatusSleeping, sandbox.TierFrozen
	f.boxes.set(asleep)
	for _, c := range []struct {
		verb string
		form url.Values
		call string
		says string
	}{
		{"wake", nil, "wake demo", "Awake."},
		{"sync", nil, "sync demo", "Synced: 1 file, 2.5 kB."},
		{"hibernate", url.Values{"tier": {"archived"}}, "hibernate demo archived", "Put to sleep."},
		{"delete", nil, "delete demo", ""},
	} {
		if resp, body := f.send(http.MethodPost, "/ui/sandboxes/demo/"+c.verb, c.form, nil); resp.StatusCode != http.StatusSeeOther {
			t.Fatalf("%s: %d %s", c.verb, resp.StatusCode, body)
		}
		f.page(c.says)
		if calls := f.boxes.called(); calls[len(calls)-1] != c.call {
			t.Errorf("%s called %q", c.verb, calls)
		}
	}
	for _, verb := range []string{"wake", "sync", "hibernate", "delete"} {
		if resp, _ := f.send(http.MethodPost, "/ui/sandboxes/gone/"+verb, nil, nil); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s of what is gone: %d", verb, resp.StatusCode)
		}
	}
	if resp, _ := f.send(http.MethodPost, "/ui/sandboxes/demo/explode", nil, nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("what there is not: %d", resp.StatusCode)
	}
	body := f.page("demo")
	if strings.Contains(body, `value="frozen"`) || !strings.Contains(body, `value="stopped"`) || !strings.Contains(body, `value="archived"`) {
		t.Error("a frozen sandbox can be put to deeper sleep, and to nothing else")
	}
}

func TestSigningOutEndsWhatWasOpened(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("demo"))
	resp, _ := f.send(http.MethodPost, "/ui/sandboxes/demo/open", nil, nil)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "http://demo.sandbox.localhost/?ticket=t" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	f.signIn() // in a tab where the page for it was left open
	f.send(http.MethodPost, "/ui/sign-out", nil, nil)
	if len(f.doors.open) != 1 || !slices.Equal(f.doors.open, f.doors.ended) {
		t.Errorf("opened %q, ended %q", f.doors.open, f.doors.ended)
	}
	if _, body := f.send(http.MethodGet, "/", nil, nil); strings.Contains(body, "demo") {
		t.Error("still signed in")
	}
}

// listen opens the stream and returns its events as lines of name and data.
func (f *fixture) listen(ctx context.Context) func() (name, data string) {
	f.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.server.URL+"/ui/live", nil)
	if err != nil {
		f.Fatal(err)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() (name, data string) {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				name = rest
			}
			if rest, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return name, rest
			}
		}
		return "end", ""
	}
}

func TestTheStreamSendsWhatChangesAndNothingElse(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("a"), running("c"))
	next := f.listen(t.Context())
	for _, want := range []string{`"id":"c"`, `"id":"a"`} {
		if name, data := next(); name != "card" || !strings.Contains(data, want) {
			t.Fatalf("%s %s", name, data)
		}
	}
	if name, _ := next(); name != "whole" {
		t.Fatalf("%s", name)
	}
	f.boxes.set(running("a"), running("b"))
	if name, data := next(); name != "card" || !strings.Contains(data, `"before":""`) || !strings.Contains(data, `"id":"b"`) {
		t.Errorf("%s %s", name, data)
	}
	if name, data := next(); name != "gone" || data != `{"deleted":"true","id":"c"}` {
		t.Errorf("%s %s", name, data)
	}
	f.send(http.MethodPost, "/ui/sign-out", nil, nil)
	if name, _ := next(); name != "end" {
		t.Errorf("after signing out: %s", name)
	}
}

// The script puts each before one that is there already, or at the end.
func TestNewCardsOfOneMomentComeInAnOrderThatCanBeKept(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("a"), running("b"), running("c"))
	next := f.listen(t.Context())
	there := map[string]bool{"": true}
	for range 3 {
		name, data := next()
		var card struct{ ID, Before string }
		if err := json.Unmarshal([]byte(data), &card); err != nil || name != "card" || !there[card.Before] {
			t.Errorf("%s %s, after %v: %v", name, data, there, err)
		}
		there[card.ID] = true
	}
}

func TestWhatIsPushedToAnotherPageIsNotCalledDeleted(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	var all []sandbox.Info
	for i := range perPage {
		all = append(all, running(fmt.Sprintf("box-%02d", i)))
	}
	f.boxes.set(all...)
	next := f.listen(t.Context())
	for range perPage {
		if name, data := next(); name != "card" {
			t.Fatalf("%s %s", name, data)
		}
	}
	if name, _ := next(); name != "whole" {
		t.Fatal(name)
	}
	f.boxes.set(append([]sandbox.Info{running("a-new-one")}, all...)...)
	if name, data := next(); name != "pages" || !strings.Contains(data, "?after=box-48") {
		t.Errorf("%s %s", name, data)
	}
	if name, data := next(); name != "card" || !strings.Contains(data, `"before":"box-00"`) {
		t.Errorf("%s %s", name, data)
	}
	if name, data := next(); name != "gone" || data != `{"id":"box-49"}` {
		t.Errorf("%s %s", name, data)
	}
}

func TestWhatIsBeingCreatedIsOnTheFirstPage(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	var all []sandbox.Info
	for i := range perPage + 1 {
		all = append(all, running(fmt.Sprintf("box-%02d", i)))
	}
	f.boxes.set(all...)
	f.boxes.hold = make(chan struct{})
	f.send(http.MethodPost, "/ui/sandboxes", url.Values{"id": {"last-of-all"}}, nil)
	if body := f.page("Being created"); !strings.Contains(body, `id="sandbox-last-of-all"`) || !strings.Contains(body, "?after=box-49") {
		t.Errorf("the page has\n%s", body)
	}
	close(f.boxes.hold)
	f.page("Next page")
}

func TestTheLogHasWhyAnActionFailed(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	f.boxes.set(running("demo"))
	f.boxes.fail = errors.New("the reason")
	f.send(http.MethodPost, "/ui/sandboxes/demo/sync", nil, nil)
	if body := f.page("It could not be synced"); strings.Contains(body, "the reason") || !strings.Contains(f.log.String(), "the reason") {
		t.Errorf("the log has %q", f.log.String())
	}
}

func TestClosingSignsEverybodyOut(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	next := f.listen(t.Context())
	if name, _ := next(); name != "whole" {
		t.Fatal(name)
	}
	if err := f.front.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name, _ := next(); name != "end" {
		t.Error(name)
	}
}

func TestTheStreamEndsWhenTheGatewayDrains(t *testing.T) {
	f := newFixture(t)
	f.signIn()
	next := f.listen(t.Context())
	if name, _ := next(); name != "whole" {
		t.Fatalf("%s", name)
	}
	f.drain()
	if name, _ := next(); name != "end" {
		t.Errorf("%s", name)
	}
}

func TestSizesAndTimesAreInWords(t *testing.T) {
	for got, want := range map[string]string{
		bytesText(0): "0 bytes", bytesText(999): "999 bytes", bytesText(1500): "1.5 kB", bytesText(25_000_000): "25 MB",
		ago(5 * time.Second): "just now", ago(90 * time.Second): "1 min ago", ago(30 * time.Hour): "30 h ago", ago(72 * time.Hour): "3 days ago",
		filesText(1): "1 file", filesText(2): "2 files",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
