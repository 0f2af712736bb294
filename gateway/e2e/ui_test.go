package e2e

import (
	"testing"
"time"
)

func TestTheWebUIWorksInABrowser(t *testing.T) {
	g := shared(t)
	g.create(t, "ui", object{"gitUrl": g.git.URL()})
	defer g.delete(t, "ui")
	b := openBrowser(t)
	p := b.tab(t)
	p.goTo(g.url+"/health")
	p.console()
	p.open(g, "ui")
	p.shot("opened")
	p.click("[data-component=prompt-input]")
	p.enter("hello from the browser")
	p.enter("\r")
	p.wait("x", `document.querySelector("[data-action=prompt-submit]").disabled || true`)
	chromedpSleep(p, 3)
	p.shot("a1")
	p.click("[data-action=prompt-submit]")
	chromedpSleep(p, 3)
	p.shot("a2")
	p.click("[data-action=prompt-project]")
	chromedpSleep(p, 2)
	p.shot("a3")
	p.mu.Lock()
	for _, u := range p.seen { t.Log(u) }
	p.mu.Unlock()
	t.Log(p.console())
}
func chromedpSleep(p *tab, n int) { <-time.After(time.Duration(n)*time.Second) }
