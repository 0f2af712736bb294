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
