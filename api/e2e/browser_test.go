package e2e

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/browsertest"
)

// chromium is the browser of all tests that look at pages.
//
//nolint:gochecknoglobals // shared on purpose, closed when the tests have run
var chromium browsertest.Browser

// A page of a sandbox, with nothing that holds it back, and somebody who is signed in
// to the API in the same browser.
func TestASandboxesPageGetsNothingOfTheAPIInABrowser(t *testing.T) {
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	user := a.admin(t)
	box := user.newBox(t, object{"name": "hostile"})

	signedIn := chromium.Tab(t)
	signedIn.BypassCSP() // the API's own pages do nothing; a frontend's would
	signedIn.GoTo(a.url() + "/health")
	session := func() string {
		t.Helper()
		return signedIn.JS(`fetch("/api/auth/get-session").then(r => r.text())`)
	}
	credentials, err := json.Marshal(object{"email": adminEmail, "password": adminPassword})
	if err != nil {
		t.Fatal(err)
	}
	if got := signedIn.JS(`fetch("/api/auth/sign-in/email", {method: "POST", headers: {"Content-Type": "application/json"}, body: ` + strconv.Quote(string(credentials)) + `}).then(r => r.status)`); got != "200" {
		t.Fatalf("signing in: %s", got)
	}
	if got := session(); !strings.Contains(got, adminEmail) {
		t.Fatalf("the browser is not signed in: %s", got)
	}

	var link struct{ URL string }
	g.caller().must(t, http.MethodGet, "/sandbox/"+box+"/ui", nil, http.StatusOK, &link)
	page := signedIn.Beside()
	page.BypassCSP()
	page.GoTo("about:blank")
	page.JS(`(location.href = ` + strconv.Quote(link.URL) + `, "")`)
	page.Wait("OpenCode's UI", `document.querySelector("[data-component=prompt-input]")`)
	port := a.addr[strings.LastIndex(a.addr, ":"):]
	before := len(a.Log())
	paths := []string{"/api/auth/get-session", "/api/auth/sign-out", boxPath + box, taskPath}
	var requests int
	for _, base := range []string{a.url(), "http://localhost" + port} {
		for _, path := range paths {
			var through []string
			through, requests = page.Attack(base + path)
			if len(through) > 0 {
				t.Errorf("a sandbox's page got through: %q", through)
			}
		}
		page.Popup(base + taskPath)
	}
	arrived := map[string]int{}
	for line := range strings.Lines(a.Log()[before:]) {
		var entry struct {
			Msg, Method, Path string
			Status            int
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg != "request" {
			continue
		}
		arrived[entry.Path]++
		if entry.Method != http.MethodGet && entry.Method != http.MethodOptions && entry.Status < http.StatusBadRequest {
			t.Errorf("a sandbox's page got a %d for %s %s", entry.Status, entry.Method, entry.Path)
		}
	}
	for _, path := range paths {
		if arrived[path] < requests {
			t.Errorf("%d attacks arrived at %s", arrived[path], path)
		}
	}
	page.Toss(sessionCookie, "sandbox.localhost", "localhost")
	if got := session(); !strings.Contains(got, adminEmail) {
		t.Errorf("an attack ended the session: %s", got)
	}
	var tasks struct{ Tasks []object }
	user.must(t, http.MethodGet, "/api/v2/agents/tasks", nil, http.StatusOK, &tasks)
	if len(tasks.Tasks) > 0 {
		t.Errorf("an attack made tasks: %v", tasks.Tasks)
	}
}
