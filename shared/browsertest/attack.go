package browsertest

import (
	"maps"
	"slices"
	"strings"
)

// attacks are expressions for what a hostile page can try on an address, for which
// ADDRESS stands, without its scheme. Each ends when its request has, and gives
// "reached" if the page got anything of the answer.
//
//nolint:gochecknoglobals // a constant table
var attacks = map[string]string{
	"a read":                    `fetch("http://ADDRESS", {credentials: "include"}).then(r => "reached", e => "refused")`,
	"a blind read":              `fetch("http://ADDRESS", {mode: "no-cors", credentials: "include"}).then(r => r.type == "opaque" ? "blind" : "reached", e => "refused")`,
	"a blind write of a text":   `fetch("http://ADDRESS", {method: "POST", mode: "no-cors", credentials: "include", headers: {"Content-Type": "text/plain"}, body: BODY}).then(r => r.type == "opaque" ? "blind" : "reached", e => "refused")`,
	"a blind write of a form":   `fetch("http://ADDRESS", {method: "POST", mode: "no-cors", credentials: "include", body: new URLSearchParams({message: "x"})}).then(r => r.type == "opaque" ? "blind" : "reached", e => "refused")`,
	"a write of JSON":           `fetch("http://ADDRESS", {method: "POST", credentials: "include", headers: {"Content-Type": "application/json"}, body: BODY}).then(r => "reached", e => "refused")`,
	"a removal":                 `fetch("http://ADDRESS", {method: "DELETE", credentials: "include"}).then(r => "reached", e => "refused")`,
	"a read with a token":       `fetch("http://ADDRESS", {headers: {Authorization: "Bearer x"}}).then(r => "reached", e => "refused")`,
	"a beacon":                  `navigator.sendBeacon("http://ADDRESS", BODY) ? "blind" : "refused"`,
	"a socket":                  `new Promise(done => { const s = new WebSocket("ws://ADDRESS"); s.onopen = () => done("reached"); s.onerror = () => done("refused"); })`,
	"events":                    `new Promise(done => { const s = new EventSource("http://ADDRESS", {withCredentials: true}); s.onopen = () => { s.close(); done("reached"); }; s.onerror = () => { s.close(); done("refused"); }; })`,
	"a frame":                   `new Promise(done => { const f = document.createElement("iframe"); f.src = "http://ADDRESS"; f.onload = () => { done(f.contentDocument ? "reached" : "blind"); f.remove(); }; document.body.append(f); })`,
	"a script":                  `new Promise(done => { const s = document.createElement("script"); s.src = "http://ADDRESS"; s.onload = () => done("reached"); s.onerror = () => done("refused"); document.body.append(s); })`,
	"a style":                   `new Promise(done => { const s = document.createElement("link"); s.rel = "stylesheet"; s.href = "http://ADDRESS"; s.onload = () => done("reached"); s.onerror = () => done("refused"); document.head.append(s); })`,
	"a picture":                 `new Promise(done => { const s = new Image(); s.src = "http://ADDRESS"; s.onload = () => done("reached"); s.onerror = () => done("refused"); })`,
	"a form, and one of a text": `Promise.all(["text/plain", "application/x-www-form-urlencoded"].map(kind => new Promise(done => { const f = document.createElement("iframe"); f.name = "to" + Math.random(); document.body.append(f); const form = document.createElement("form"); form.method = "POST"; form.enctype = kind; form.target = f.name; form.action = "http://ADDRESS"; const i = document.createElement("input"); i.name = '{"message":"x","a":"'; i.value = '"}'; form.append(i); document.body.append(form); f.onload = () => { if (f.contentDocument && f.contentDocument.URL == "about:blank") return; done(f.contentDocument ? "reached" : "blind"); f.remove(); }; form.submit(); })))`,
}

// Attack has the tab's page try on an address what a hostile page can, and returns
// what got through, and how many requests were made at the least.
func (p *Tab) Attack(address string) (through []string, requests int) {
	p.t.Helper()
	_, bare, _ := strings.Cut(address, "://")
	for _, name := range slices.Sorted(maps.Keys(attacks)) {
		script := strings.NewReplacer("ADDRESS", bare, "BODY", `'{"message":"x"}'`).Replace(attacks[name])
		if got := p.JS(script); strings.Contains(got, "reached") {
			through = append(through, name+" of "+address)
		}
	}
	return through, len(attacks)
}

// Toss has the page set cookies of a name for the domains above it.
func (p *Tab) Toss(name string, domains ...string) {
	p.t.Helper()
	for _, domain := range domains {
		for _, cookie := range []string{name + "=tossed; Domain=" + domain + "; Path=/; Secure", name + "=tossed; Domain=" + domain + "; Path=/", "=" + name + "=tossed; Domain=" + domain + "; Path=/"} {
			p.JS("(document.cookie = " + quote(cookie) + ")")
		}
	}
}

// Popup has the page open an address in a window of its own, and waits until the
// page cannot look into it any more.
func (p *Tab) Popup(address string) {
	p.t.Helper()
	p.gesture("window.popup = window.open(" + quote(address) + ")")
	p.Wait("the window that was opened is out of reach", "window.popup && (() => { try { return window.popup.closed || !window.popup.document } catch { return true } })()")
}
