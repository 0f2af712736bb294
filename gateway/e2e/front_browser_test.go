//go:build browser

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// signIn signs a tab in to the front page.
func (p *tab) signIn(g *gateway) {
	p.t.Helper()
	p.goTo(g.url + "/")
	p.click("#token")
	p.enter(g.token + "\r")
	p.wait("the sandboxes", `document.querySelector("#list")`)
}

// card waits until what is shown of a sandbox has a text.
func (p *tab) card(id, text string) {
	p.t.Helper()
	p.wait(id+" says "+text, `document.querySelector("#sandbox-`+id+`")?.innerText.includes("`+text+`")`)
}

// press clicks a button of a sandbox's card.
func (p *tab) press(id, key string) {
	p.t.Helper()
	p.click("#sandbox-" + id + ` [data-key="` + key + `"]`)
}

func TestTheFrontPageDoesWhatAPersonNeeds(t *testing.T) {
	g := start(t)
	p := openBrowser(t).tab(t)
	p.goTo(g.url + "/")
	p.shot("front-sign-in")
	p.click("#token")
	p.enter("not the token at all\r")
	p.shows("not this gateway's token")
	p.console() // the browser's own word on the status
	p.signIn(g)
	p.shows("There is no sandbox")
	p.shot("front-empty")

	p.click("#gitUrl")
	p.enter("file:///etc\r")
	p.wait("what is wrong with the URL", `/gitUrl|protocol|https/.test(document.querySelector(".new .problem").innerText)`)
	p.console()
	p.js(`(document.querySelector("#gitUrl").value = "", "")`)
	p.click("#gitUrl")
	p.enter(g.git.URL())
	p.click("#id")
	p.enter("front\r")
	p.card("front", "Being created")
	p.shot("front-creating")
	p.card("front", "Running")
	p.shot("front-running")

	p.js(`(document.querySelector("#sandbox-front [data-key=open]").form.target = "_self", "")`)
	p.press("front", "open")
	p.wait("OpenCode's UI", `document.querySelector("[data-component=prompt-input]")`)
	p.say("hello from the front page")

	p.goTo(g.url + "/")
	p.card("front", "just now")
	// By keyboard alone.
	p.js(`(document.querySelector("#sandbox-front [data-key=sync]").focus(), "")`)
	p.enter("\r")
	p.card("front", "Synced: ")
	p.wait("the focus stays", `document.activeElement.dataset.key === "sync"`)
	p.press("front", "hibernate")
	p.shot("front-menu")
	p.press("front", "frozen")
	p.card("front", "Asleep, frozen")
	p.press("front", "hibernate")
	p.press("front", "archived")
	p.card("front", "Asleep, archived")
	p.shot("front-archived")
	p.press("front", "wake")
	p.card("front", "Running")

	if _, err := chromedp.Call(p.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 390, Height: 844, DeviceScaleFactor: 2, Mobile: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}); err != nil {
		t.Fatal(err)
	}
	p.shot("front-phone-dark")
	if got := p.js("document.documentElement.scrollWidth <= innerWidth"); got != "true" {
		t.Error("on a phone the page is wider than the screen")
	}
	p.press("front", "delete")
	p.shot("front-phone-delete")
	p.press("front", "delete-sure")
	p.shows("There is no sandbox")
	if errors := p.console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}

	g.create(t, "front", nil)
	p.card("front", "Running")
	p.js(`(document.querySelector("#sandbox-front [data-key=open]").form.target = "_self", "")`)
	p.press("front", "open")
	p.wait("OpenCode's UI", `document.querySelector("[data-component=prompt-input]")`)
	ui := p.js("location.href")
	p.goTo(g.url + "/")
	p.click("header button")
	p.shows("Sign in")
	p.goTo(ui)
	p.shows("visit is over")
}

// Cards change once a second while a sandbox is at something. Who is about to press a
// button, or listens to the page, must not notice.
func TestTheFrontPageDoesNotDisturbWhoUsesIt(t *testing.T) {
	g := start(t)
	p := openBrowser(t).tab(t)
	p.signIn(g)
	p.wait("the script", `typeof stream === "object" && stream`)
	// The stream is out of the way: the test says what comes.
	p.js(`(stream.close(), globalThis.card = (version, inside) => show({id: "x", before: "", html:
		'<li id="sandbox-x" data-version="' + version + '" data-state="x: ' + (version > 3 ? "B" : "A") + '"><h3 tabindex="-1" data-key="name">x</h3> ' + inside +
		' <p role="alert" data-key="refusal" hidden></p></li>'}), globalThis.at = () => document.activeElement.dataset.key ?? "", "")`)
	for _, step := range []struct{ what, script, want string }{
		{"a new card is announced", `(card(1, '<p data-key="failed">no</p> <form action="/s"><button data-key="sync">S</button></form> <details data-key="m"><summary data-key="menu">M</summary></details>'), said.textContent)`, "x: A"},
		{"what is open and busy", `(globalThis.kept = [...document.querySelectorAll("#sandbox-x p, #sandbox-x button, #sandbox-x summary")], kept[1].focus(), kept[1].ariaBusy = "true",
			document.querySelector("#sandbox-x details").open = true, said.textContent = "", at())`, "sync"},
		{"stays, as the same elements, when something else comes", `(card(2, '<div>1 s</div> <p data-key="failed">no</p> <form action="/w"><button data-key="wake">W</button></form> <form action="/s"><button data-key="sync">S</button></form> <details data-key="m"><summary data-key="menu">M</summary></details>'),
			[kept.every(e => e.isConnected), at(), kept[1].ariaBusy, document.querySelector("#sandbox-x details").open, document.querySelectorAll("#sandbox-x form").length, said.textContent].join())`, "true,sync,true,true,2,"},
		{"who pressed what is gone is at the name", `(card(3, '<div>2 s</div>'), at())`, "name"},
		{"and back when it is there again, and is told what was done", `(document.querySelector("#sandbox-x").dataset.done = "", card(4, '<form action="/s"><button data-key="sync">S</button></form>'), at() + said.textContent)`, "syncx: B"},
		{"what is wrong stays", `(document.querySelector("#sandbox-x [data-key=refusal]").hidden = false, card(5, ''), document.querySelector("#sandbox-x [data-key=refusal]").hidden)`, "false"},
		{"what is on another page now is not called deleted", `(said.textContent = "", remove({id: "x"}), said.textContent + document.activeElement.id)`, "list"},
		{"nobody looks, nothing is asked for", `(watch(), Object.defineProperty(document, "hidden", {value: true, configurable: true}), globalThis.was = stream, document.dispatchEvent(new Event("visibilitychange")), was.readyState + "" + stream)`, "2null"},
		{"until somebody does", `(delete document.hidden, document.dispatchEvent(new Event("visibilitychange")), stream.readyState)`, "0"},
	} {
		if got := p.js(step.script); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
	g.create(t, "front", nil)
	p.card("front", "Running")
	// By keyboard, out of a menu.
	p.js(`((m => { m.open = true; m.querySelector("button").focus() })(document.querySelector("#sandbox-front [data-key=hibernate-menu]")), "")`)
	p.enter("\r")
	p.card("front", "Asleep, frozen")
	p.wait("the focus is in the card", `document.activeElement.closest("#sandbox-front")`)
	if errors := p.console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}
}

func TestASandboxesPageGetsNothingOfTheFrontPage(t *testing.T) {
	g := start(t)
	g.create(t, "front", nil)
	b := openBrowser(t)
	front, evil := b.tab(t), b.tab(t)
	front.signIn(g)
	front.card("front", "Running")
	evil.open(g, "front")
	// What code in a sandbox can serve has no policy that holds it back.
	if _, err := chromedp.Call(evil.ctx, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: true}); err != nil {
		t.Fatal(err)
	}
	evil.js(`(location.reload(), "")`)
	evil.wait("OpenCode's UI", `document.querySelector("[data-component=prompt-input]")`)
	for what, script := range map[string]string{
		"a request":             `fetch("TARGET/", {credentials: "include"}).then(r => "reached", e => "refused")`,
		"the stream":            `new Promise(done => { const s = new EventSource("TARGET/ui/live", {withCredentials: true}); s.onmessage = s.onopen = () => done("reached"); s.onerror = () => done("refused"); })`,
		"a request with a form": `fetch("TARGET/ui/sandboxes/front/delete", {method: "POST", credentials: "include", body: new URLSearchParams()}).then(r => "reached", e => "refused")`,
		"a form nobody sees":    `fetch("TARGET/ui/sandboxes/front/delete", {method: "POST", mode: "no-cors", credentials: "include", body: new URLSearchParams()}).then(r => r.type, e => "refused")`,
		"a form as text":        `fetch("TARGET/ui/sandboxes", {method: "POST", mode: "no-cors", credentials: "include", headers: {"Content-Type": "text/plain"}, body: "id=evil"}).then(r => r.type, e => "refused")`,
		"a WebSocket":           `new Promise(done => { const s = new WebSocket("TARGET/ui/live".replace("http", "ws")); s.onopen = () => done("reached"); s.onerror = () => done("refused"); })`,
		"a frame": `new Promise(done => { const f = document.createElement("iframe"); f.src = "TARGET/"; f.onload = () => {
			let inside = "refused"; try { inside = f.contentDocument.body ? "reached" : inside } catch {} done(inside) }; document.body.append(f); })`,
		"a window":              `new Promise(done => { const w = open("TARGET/"); setTimeout(() => { let seen = "refused"; try { seen = w.document.body ? "reached" : seen } catch {} done(w?.closed ? "refused" : seen) }, 1500); })`,
		"the API by the cookie": `fetch("TARGET/sandboxes", {credentials: "include"}).then(r => "reached", e => "refused")`,
	} {
		for _, url := range []string{g.url, strings.Replace(g.url, "127.0.0.1", "localhost", 1)} {
			if got := evil.js(strings.ReplaceAll(script, "TARGET", url)); got != "refused" && got != "opaque" {
				t.Errorf("%s to %s: %s", what, url, got)
			}
		}
	}
	evil.js(`(["__Host-agentpod-front=tossed; Path=/; Secure", "__Host-agentpod-front=tossed; Domain=localhost; Path=/; Secure", "agentpod-front=tossed; Domain=localhost; Path=/"].forEach(c => document.cookie = c), "")`)
	// A form that takes its visitor along.
	evil.js(`((f => { f.method = "POST"; f.action = "` + g.url + `/ui/sandboxes/front/delete"; document.body.append(f); f.submit() })(document.createElement("form")), "")`)
	evil.shows("page of another site asked for this")
	front.js(`(location.reload(), "")`)
	front.card("front", "Running")
	g.call(t, http.MethodGet, "/sandbox/front", nil, http.StatusOK)
	g.call(t, http.MethodGet, "/sandbox/evil", nil, http.StatusNotFound)
}
