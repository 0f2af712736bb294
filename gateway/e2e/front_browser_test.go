package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// signIn signs a tab in to the front page.
func (p *tab) signIn(g *gateway) {
	p.t.Helper()
	p.GoTo(g.url + "/")
	p.Click("#token")
	p.Enter(g.token + "\r")
	p.Wait("the sandboxes", `document.querySelector("#list")`)
}

// card waits until what is shown of a sandbox has a text.
func (p *tab) card(id, text string) {
	p.t.Helper()
	p.Wait(id+" says "+text, `document.querySelector("#sandbox-`+id+`")?.innerText.includes("`+text+`")`)
}

// press clicks a button of a sandbox's card.
func (p *tab) press(id, key string) {
	p.t.Helper()
	p.Click("#sandbox-" + id + ` [data-key="` + key + `"]`)
}

func TestTheFrontPageWorksInABrowser(t *testing.T) {
	g := start(t)
	p := browse(t)
	p.GoTo(g.url + "/")
	p.Shot("front-sign-in")
	p.Click("#token")
	p.Enter("not the token at all\r")
	p.Shows("not this gateway's token")
	p.Console() // the browser's own word on the status
	p.signIn(g)
	p.Shows("There is no sandbox")
	p.Shot("front-empty")

	p.Click("#gitUrl")
	p.Enter("file:///etc\r")
	p.Wait("what is wrong with the URL", `/gitUrl|protocol|https/.test(document.querySelector(".new .problem").innerText)`)
	p.Console()
	p.JS(`(document.querySelector("#gitUrl").value = "", "")`)
	p.Click("#gitUrl")
	p.Enter(g.git.URL())
	p.Click("#id")
	p.Enter("front\r")
	p.card("front", "Being created")
	p.Shot("front-creating")
	p.card("front", "Running")
	p.Shot("front-running")

	p.JS(`(document.querySelector("#sandbox-front [data-key=open]").form.target = "_self", "")`)
	p.press("front", "open")
	p.Wait("OpenCode's UI", ready)
	p.say("hello from the front page")

	p.GoTo(g.url + "/")
	p.card("front", "just now")
	// By keyboard alone.
	p.JS(`(document.querySelector("#sandbox-front [data-key=sync]").focus(), "")`)
	p.Enter("\r")
	p.card("front", "Synced: ")
	p.Wait("the focus stays", `document.activeElement.dataset.key === "sync"`)
	p.press("front", "hibernate")
	p.Shot("front-menu")
	p.press("front", "frozen")
	p.card("front", "Asleep, frozen")
	p.press("front", "hibernate")
	p.press("front", "archived")
	p.card("front", "Asleep, archived")
	p.Shot("front-archived")
	p.press("front", "wake")
	p.card("front", "Running")

	p.Phone()
	p.Shot("front-phone-dark")
	if got := p.JS("document.documentElement.scrollWidth <= innerWidth"); got != "true" {
		t.Error("on a phone the page is wider than the screen")
	}
	p.press("front", "delete")
	p.Shot("front-phone-delete")
	p.press("front", "delete-sure")
	p.Shows("There is no sandbox")
	if errors := p.Console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}

	g.create(t, "front", nil)
	p.card("front", "Running")
	p.JS(`(document.querySelector("#sandbox-front [data-key=open]").form.target = "_self", "")`)
	p.press("front", "open")
	p.Wait("OpenCode's UI", ready)
	ui := p.JS("location.href")
	p.GoTo(g.url + "/")
	p.Click("header button")
	p.Shows("Sign in")
	p.GoTo(ui)
	p.Shows("visit is over")
}

// Cards change once a second while a sandbox is at something. Who is about to press a
// button, or listens to the page, must not notice.
func TestTheFrontPageDoesNotDisturbWhoUsesItInABrowser(t *testing.T) {
	g := start(t)
	p := browse(t)
	p.signIn(g)
	p.Wait("the script", `typeof stream === "object" && stream`)
	// The stream is out of the way: the test says what comes.
	p.JS(`(stream.close(), globalThis.card = (version, inside) => show({id: "x", before: "", html:
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
		if got := p.JS(step.script); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
	g.create(t, "front", nil)
	p.card("front", "Running")
	// By keyboard, out of a menu.
	p.JS(`((m => { m.open = true; m.querySelector("button").focus() })(document.querySelector("#sandbox-front [data-key=hibernate-menu]")), "")`)
	p.Enter("\r")
	p.card("front", "Asleep, frozen")
	p.Wait("the focus is in the card", `document.activeElement.closest("#sandbox-front")`)
	if errors := p.Console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}
}

func TestSandboxesGetNothingOfTheFrontPageInABrowser(t *testing.T) {
	g := start(t)
	g.create(t, "front", nil)
	front := browse(t)
	evil := &tab{front.Beside(), t} // the same person's
	front.signIn(g)
	front.card("front", "Running")
	evil.open(g, "front")
	evil.BypassCSP()
	evil.Reload()
	evil.Wait("OpenCode's UI", ready)
	local := strings.Replace(g.url, "127.0.0.1", "localhost", 1)
	var through []string
	for _, path := range []string{"/", "/ui/live", "/ui/sandboxes", "/ui/sandboxes/front/delete", "/ui/sandboxes/front/open", "/ui/sign-out"} {
		got, _ := evil.Attack(g.url + path)
		through = append(through, got...)
	}
	if len(through) > 0 {
		t.Errorf("a sandbox's page got through: %q", through)
	}
	for _, url := range []string{g.url, local} {
		evil.Popup(url + "/")
	}
	evil.Toss("__Host-agentpod-front", "sandbox.localhost", "localhost", "127.0.0.1")
	// A form that takes its visitor along.
	evil.JS(`((f => { f.method = "POST"; f.action = "` + g.url + `/ui/sandboxes/front/delete"; document.body.append(f); f.submit() })(document.createElement("form")), "")`)
	evil.Shows("page of another site asked for this")
	front.Reload()
	front.card("front", "Running")
	g.call(t, http.MethodGet, "/sandbox/front", nil, http.StatusOK)
	g.call(t, http.MethodGet, "/sandbox/evil", nil, http.StatusNotFound)
}
