//go:build browser

package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// elsewhere is a page of another site, such as that of the API's frontend.
func elsewhere(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><title>elsewhere</title><link rel="icon" href="data:,"><p>elsewhere</p>`)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// open lets a tab into a sandbox, by a link on a page of another site, and waits
// for OpenCode's UI.
func (p *tab) open(g *gateway, id string) {
	p.t.Helper()
	p.goTo(elsewhere(p.t))
	p.js(`(location.href = "` + g.ui(p.t, id) + `")`)
	p.wait("OpenCode's UI of "+id, `document.querySelector("[data-component=prompt-input]")`)
}

// say types a message into OpenCode's prompt and waits for its answer.
func (p *tab) say(text string) {
	p.t.Helper()
	p.wait("the models are there", `document.body.innerText.includes("Scripted")`)
	p.click("[data-component=prompt-input]")
	p.enter(text)
	p.click("[data-action=prompt-submit]")
	p.shows("echo: " + text)
}

// sleeps puts a sandbox to sleep and waits until the open tab has asked for its
// health, as it does all the time: it sleeps on. A tab that is still loading, such
// as the icon of a notice, wakes it first.
func (p *tab) sleeps(g *gateway, id, tier string) {
	p.t.Helper()
	for range 4 {
		g.hibernate(p.t, id, tier)
		before := p.probes()
		eventually(p.t, "the tab asks for health", 40*time.Second, func() bool { return p.probes() > before })
		if g.tier(p.t, id) == tier {
			return
		}
	}
	p.t.Errorf("an idle tab does not let the sandbox be %s", tier)
}

func (p *tab) probes() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, url := range p.seen {
		if strings.HasSuffix(url, "/health") {
			n++
		}
	}
	return n
}

func TestTheWebUIWorksInABrowser(t *testing.T) {
	g := shared(t)
	g.create(t, "ui", object{"gitUrl": g.git.URL()})
	defer g.delete(t, "ui")
	p := openBrowser(t).tab(t)
	p.open(g, "ui")
	p.shot("opened")
	p.say("hello from the browser")
	p.shot("answered")
	p.js(`(location.reload(), "")`)
	p.shows("echo: hello from the browser")
	p.shot("reloaded")
	for _, tier := range []string{"frozen", "archived"} {
		p.sleeps(g, "ui", tier)
		p.say("after it was " + tier)
		p.shot("after-" + tier)
	}
	if errors := p.console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}

	g.hibernate(t, "ui", "stopped")
	p.js(`(location.reload(), "")`)
	p.shows("was asleep")
	p.shot("waiting")
	p.shows("echo: after it was archived")
}

func TestATerminalOfTheWebUIEchoes(t *testing.T) {
	g := shared(t)
	g.create(t, "ui-terminal", object{"gitUrl": g.git.URL()})
	defer g.delete(t, "ui-terminal")
	p := openBrowser(t).tab(t)
	p.open(g, "ui-terminal")
	p.say("a session")
	p.js("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '`', code: 'Backquote', ctrlKey: true, bubbles: true, cancelable: true}))")
	eventually(t, "the shell prompts", time.Minute, func() bool { return strings.Contains(p.received(), "$ ") })
	p.click("[data-component=terminal]")
	p.enter("echo $((6*7))-echoed\r")
	eventually(t, "the terminal echoes", time.Minute, func() bool { return strings.Contains(p.received(), "42-echoed") })
	p.shot("terminal")
	if errors := p.console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}
	p.sleeps(g, "ui-terminal", "archived")
}

// logged are the statuses with which the gateway answered requests for a path on a
// sandbox's host.
func (g *gateway) logged(id, path string) (statuses []int) {
	for line := range strings.SplitSeq(g.log(), "\n") {
		var entry struct {
			Msg, Host, Path string
			Status          int
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "request" && strings.HasPrefix(entry.Host, id+".") && entry.Path == path {
			statuses = append(statuses, entry.Status)
		}
	}
	return statuses
}

func TestSandboxesAreStrangersInABrowser(t *testing.T) {
	g := shared(t)
	g.create(t, "one", nil)
	defer g.delete(t, "one")
	g.create(t, "two", nil)
	defer g.delete(t, "two")
	b := openBrowser(t)
	one, two := b.tab(t), b.tab(t)
	one.open(g, "one")
	two.open(g, "two")
	if got := one.js(`(localStorage.setItem("mine", "one"), document.cookie = "mine=one", document.cookie)`); strings.Contains(got, "agentpod") {
		t.Errorf("a page can read %q", got)
	}
	if got := two.js(`localStorage.getItem("mine") + document.cookie`); strings.Contains(got, "one") || strings.Contains(got, "agentpod") {
		t.Errorf("the other sandbox sees %q", got)
	}

	// What code in a sandbox can serve has no policy that holds it back.
	if _, err := chromedp.Call(one.ctx, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: true}); err != nil {
		t.Fatal(err)
	}
	one.js(`(location.reload(), "")`)
	one.wait("OpenCode's UI", `document.querySelector("[data-component=prompt-input]")`)
	host := two.js("location.host")
	attempt := func(path, script string) {
		t.Helper()
		got := one.js(strings.ReplaceAll(script, "URL", host+path))
		if strings.Contains(got, "reached") {
			t.Errorf("%s: %s", path, got)
		}
		eventually(t, path+" was asked for", 30*time.Second, func() bool { return len(g.logged("two", path)) > 0 })
		for _, status := range g.logged("two", path) {
			if status != http.StatusForbidden && status != http.StatusUnauthorized {
				t.Errorf("%s: status %d", path, status)
			}
		}
	}
	attempt("/by-fetch", `fetch("http://URL", {credentials: "include"}).then(r => "reached", e => "refused")`)
	attempt("/by-blind-fetch", `fetch("http://URL", {mode: "no-cors", credentials: "include"}).then(r => r.type, e => "refused")`)
	attempt("/by-blind-post", `fetch("http://URL", {method: "POST", mode: "no-cors", credentials: "include", body: "x"}).then(r => r.type, e => "refused")`)
	attempt("/by-socket", `new Promise(done => { const s = new WebSocket("ws://URL"); s.onopen = () => done("reached"); s.onerror = () => done("refused"); })`)
	attempt("/by-frame", `new Promise(done => { const f = document.createElement("iframe"); f.src = "http://URL"; f.onload = () => done("loaded"); document.body.append(f); })`)
	attempt("/by-script", `new Promise(done => { const s = document.createElement("script"); s.src = "http://URL"; s.onload = () => done("reached"); s.onerror = () => done("refused"); document.body.append(s); })`)
	for path, url := range map[string]string{"the gateway": g.url + "/sandboxes", "a name of it": "http://localhost:" + g.url[strings.LastIndex(g.url, ":")+1:] + "/sandboxes"} {
		if got := one.js(`fetch("` + url + `", {credentials: "include"}).then(r => "reached", e => "refused")`); got != "refused" {
			t.Errorf("%s was %s", path, got)
		}
	}
	one.js(`(["__Host-agentpod=tossed; Domain=sandbox.localhost; Path=/; Secure", "agentpod=tossed; Domain=sandbox.localhost; Path=/", "=__Host-agentpod=tossed; Domain=sandbox.localhost; Path=/"].forEach(c => document.cookie = c), "")`)
	two.js(`(location.reload(), "")`)
	two.wait("OpenCode's UI in spite of tossed cookies", `document.querySelector("[data-component=prompt-input]")`)
	if got := one.js(`navigator.serviceWorker.register("/assets/sw.js").then(r => "registered", e => "refused")`); got != "refused" {
		t.Errorf("a service worker was %s", got)
	}
	one.js(`(location.href = "http://` + host + `/by-visit", "")`)
	one.shows("This came from another site")
	one.shot("from-a-sibling")
	if got := g.logged("two", "/by-visit"); !slices.Equal(got, []int{http.StatusForbidden}) {
		t.Errorf("a visit by a sibling's link: %v", got)
	}
}
