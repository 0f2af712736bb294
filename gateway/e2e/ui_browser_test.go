package e2e

import (
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/browsertest"
)

// tab is a tab for sandboxes' pages.
type tab struct {
	*browsertest.Tab
	t *testing.T
}

func browse(t *testing.T) *tab {
	t.Helper()
	return &tab{chromium.Tab(t), t}
}

// ready is when OpenCode's UI can be used.
const ready = `document.querySelector("[data-component=prompt-input]")`

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
	p.GoTo(elsewhere(p.t))
	p.JS(`(location.href = "` + g.ui(p.t, id) + `")`)
	p.Wait("OpenCode's UI of "+id, ready)
}

// say types a message into OpenCode's prompt and waits for its answer.
func (p *tab) say(text string) {
	p.t.Helper()
	p.Wait("the models are there", `document.body.innerText.includes("Scripted")`)
	p.Click("[data-component=prompt-input]")
	p.Enter(text)
	p.Click("[data-action=prompt-submit]")
	p.Shows("echo: " + text)
}

// The paths of what OpenCode's UI asks for all the time.
const (
	probePath  = "/api/health"
	streamPath = "/global/event"
)

// sleepsOn shows that a sandbox which sleeps is left alone by an open tab: its probe
// of the health is answered, its one event stream goes on, and nobody wakes it.
func (p *tab) sleepsOn(g *gateway, id, tier string) {
	p.t.Helper()
	woken, probe, stream := g.wakes(id), p.Traffic(probePath), p.Traffic(streamPath)
	eventually(p.t, "the tab hears of the health and of events", time.Minute, func() bool {
		return p.Traffic(probePath).Answered > probe.Answered && p.Traffic(streamPath).Chunks > stream.Chunks
	})
	if now := p.Traffic(streamPath); now.Asked != stream.Asked {
		p.t.Errorf("%s: the tab had to ask for events %d times more", tier, now.Asked-stream.Asked)
	}
	if got := g.tier(p.t, id); got != tier || g.wakes(id) != woken {
		p.t.Errorf("an idle tab does not let the sandbox be %s: it is %s, and was woken %d times", tier, got, g.wakes(id)-woken)
	}
}

// wakes is how often a sandbox was woken.
func (g *gateway) wakes(id string) (n int) {
	for entry := range entries(g.log()) {
		if entry.Msg == "woken" && entry.SandboxID == id {
			n++
		}
	}
	return n
}

// logged are the statuses with which the gateway answered requests for a path on a
// sandbox's host.
func (g *gateway) logged(id, path string) (statuses []int) {
	for entry := range entries(g.log()) {
		if entry.Msg == "request" && strings.HasPrefix(entry.Host, id+".") && entry.Path == path {
			statuses = append(statuses, entry.Status)
		}
	}
	return statuses
}

type logEntry struct {
	Msg, Host, Path, SandboxID string
	Status                     int
}

// entries are those of a log.
func entries(log string) iter.Seq[logEntry] {
	return func(yield func(logEntry) bool) {
		for line := range strings.SplitSeq(log, "\n") {
			var entry logEntry
			if json.Unmarshal([]byte(line), &entry) == nil && !yield(entry) {
				return
			}
		}
	}
}

func TestTheWebUIWorksInABrowser(t *testing.T) {
	g := start(t, "FREEZE_AFTER=5s", "STOP_AFTER=0", "ARCHIVE_AFTER=0")
	g.create(t, "ui", object{"gitUrl": g.git.URL()})
	p := browse(t)
	p.open(g, "ui")
	p.Shot("ui-opened")
	p.say("hello from the browser")
	p.Shot("ui-answered")
	p.Reload()
	p.Shows("echo: hello from the browser")
	p.Shot("ui-reloaded")

	p.JS("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '`', code: 'Backquote', ctrlKey: true, bubbles: true, cancelable: true}))")
	eventually(t, "the shell prompts", time.Minute, func() bool { return strings.Contains(p.Received(), "$ ") })
	p.Click("[data-component=terminal]")
	p.Enter("echo $((6*7))-echoed\r")
	eventually(t, "the terminal echoes", time.Minute, func() bool { return strings.Contains(p.Received(), "42-echoed") })
	p.Shot("ui-terminal")

	// It falls asleep by itself once the tab has loaded all that it wants: from then
	// on the tab is idle.
	asleep := func() {
		t.Helper()
		eventually(t, "the sandbox of an idle tab is frozen", 2*time.Minute, func() bool { return g.tier(t, "ui") == "frozen" })
	}
	asleep()
	p.sleepsOn(g, "ui", "frozen")
	events := p.Traffic(streamPath).Asked
	p.say("after it was frozen")
	p.Shot("ui-after-frozen")
	asleep()
	g.hibernate(t, "ui", "archived")
	p.sleepsOn(g, "ui", "archived")
	p.say("after it was archived")
	p.Shot("ui-after-archived")
	if n := p.Traffic(streamPath).Asked - events; n > 0 {
		t.Errorf("the event stream broke off: it was asked for %d times more", n)
	}
	if errors := p.Console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}

	asleep()
	g.hibernate(t, "ui", "stopped")
	p.Reload()
	p.Shows("was asleep")
	p.Shot("ui-waiting")
	p.Shows("echo: after it was archived")
}

func TestSandboxesAreStrangersInABrowser(t *testing.T) {
	g := shared(t)
	g.create(t, "one", nil)
	defer g.delete(t, "one")
	g.create(t, "two", nil)
	defer g.delete(t, "two")
	one := browse(t)
	two := &tab{one.Beside(), t}
	one.open(g, "one")
	two.open(g, "two")
	if got := one.JS(`(localStorage.setItem("mine", "one"), document.cookie = "mine=one", document.cookie)`); strings.Contains(got, "agentpod") {
		t.Errorf("a page can read %q", got)
	}
	if got := two.JS(`localStorage.getItem("mine") + document.cookie`); strings.Contains(got, "one") || strings.Contains(got, "agentpod") {
		t.Errorf("the other sandbox sees %q", got)
	}

	one.BypassCSP()
	one.Reload()
	one.Wait("OpenCode's UI", ready)
	host := two.JS("location.host")
	port := host[strings.LastIndex(host, ":"):]
	// Under a path nobody else asks for. Every request must arrive, and be refused.
	through, requests := one.Attack("http://" + host + "/attacked")
	eventually(t, "all attacks arrive", time.Minute, func() bool { return len(g.logged("two", "/attacked")) >= requests })
	for _, status := range g.logged("two", "/attacked") {
		if status != http.StatusForbidden && status != http.StatusUnauthorized {
			t.Errorf("status %d for a sibling's request", status)
		}
	}
	// The gateway's own address, under each of its names, with what would hurt most.
	before := len(g.log())
	paths := []string{"/", "/sandbox/two/ui", "/sandbox/two/message"}
	for _, base := range []string{g.url, "http://localhost" + port} {
		for _, path := range paths {
			got, _ := one.Attack(base + path)
			through = append(through, got...)
		}
		for method, path := range map[string]string{"POST": "/sandbox", "DELETE": "/sandbox/two", "PUT": "/sandbox/two/files/a.txt"} {
			if got := one.JS(`fetch("` + base + path + `", {method: "` + method + `", credentials: "include", body: '{"id":"three"}'}).then(r => "reached", e => "refused")`); got != "refused" {
				through = append(through, method+" "+base+path)
			}
		}
	}
	arrived := map[string]int{}
	for entry := range entries(g.log()[before:]) {
		if entry.Msg != "request" || entry.Host != "" {
			continue
		}
		arrived[entry.Path]++
		if entry.Status < http.StatusBadRequest && entry.Path != "/" { // which is for everybody to see
			t.Errorf("a sandbox's page got a %d for %s", entry.Status, entry.Path)
		}
	}
	for _, path := range paths {
		if arrived[path] < requests { // by either name
			t.Errorf("%d attacks arrived at %s", arrived[path], path)
		}
	}
	if len(through) > 0 {
		t.Errorf("a sandbox's page got through: %q", through)
	}
	one.Popup("http://" + host + "/by-window")
	one.Toss("__Host-agentpod", "sandbox.localhost", "localhost")
	two.Reload()
	two.Wait("OpenCode's UI in spite of tossed cookies", ready)
	if got := one.JS(`navigator.serviceWorker.register("/assets/sw.js").then(r => "registered", e => "refused")`); got != "refused" {
		t.Errorf("a service worker was %s", got)
	}
	one.JS(`(location.href = "http://` + host + `/by-visit", "")`)
	one.Shows("This came from another site")
	one.Shot("ui-from-a-sibling")
	for _, path := range []string{"/by-visit", "/by-window"} {
		if got := g.logged("two", path); !slices.Equal(got, []int{http.StatusForbidden}) {
			t.Errorf("%s by a sibling: %v", path, got)
		}
	}
	if g.tier(t, "two") != "running" || slices.Contains(g.ids(t.Context()), "three") {
		t.Error("an attack did something")
	}
}
