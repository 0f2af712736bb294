//go:build browser

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// browser is a headless Chromium with a profile of its own.
type browser struct {
	ctx context.Context //nolint:containedctx // chromedp's handle
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v; .ci/tools installs it", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(self), chromedp.Env(browserEnv+"="+path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WindowSize(1280, 900))
	ctx, endBrowser := chromedp.NewContext(ctx)
	ctx, endTime := context.WithTimeout(ctx, 5*time.Minute)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until it has ended
		endTime()
		endBrowser()
		end()
	})
	return &browser{ctx: ctx}
}

// tab is one tab, with what was written to its console.
type tab struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // chromedp's handle

	mu     sync.Mutex
	errors []string
	seen   []string // URLs that were asked for
	frames strings.Builder
}

func (b *browser) tab(t *testing.T) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(b.ctx)
	t.Cleanup(end)
	p := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, func(ev any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch ev := ev.(type) {
		case *network.EventRequestWillBeSent:
			p.seen = append(p.seen, ev.Request.URL)
		case *network.EventWebSocketFrameReceived:
			p.frames.Write(ev.Response.PayloadData)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.IsException() || m.Type == "error" {
				p.mu.Lock()
				p.errors = append(p.errors, fmt.Sprintf("%s (%s)", m, m.URL))
				p.mu.Unlock()
			}
		}
	}()
	return p
}

// console returns the errors since the last call.
func (p *tab) console() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.errors
	p.errors = nil
	return was
}

// received is what came on WebSockets.
func (p *tab) received() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frames.String()
}

func (p *tab) goTo(url string) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Navigate(url)); err != nil {
		p.t.Fatalf("visiting %s: %v", url, err)
	}
}

// js runs an expression that gives a text, or a promise of one.
func (p *tab) js(expression string) string {
	p.t.Helper()
	out, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("(async () => String(await ("+expression+")))()", chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return out
}

// wait waits until an expression is true; the page may change meanwhile.
func (p *tab) wait(what, expression string) {
	p.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool]("!!("+expression+")")); err == nil && ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			p.shot("failed")
			text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText"))
			p.t.Fatalf("not within a minute: %s. The tab shows %s\nIts console: %v", what, text, p.console())
		case <-p.ctx.Done():
			p.t.Fatal("the browser has ended")
		}
	}
}

// shows waits until a text is on the page.
func (p *tab) shows(text string) {
	p.t.Helper()
	p.wait("the page shows "+text, "document.body.innerText.includes("+strconv.Quote(text)+")")
}

func (p *tab) click(selector string) {
	p.t.Helper()
	p.wait(selector+" can be clicked", "(e => e && !e.disabled && e.getClientRects().length)(document.querySelector("+strconv.Quote(selector)+"))")
	if err := chromedp.Do(p.ctx, chromedp.Click(chromedp.CSS(selector))); err != nil {
		p.t.Fatalf("clicking %s: %v", selector, err)
	}
}

// enter types text at the focus.
func (p *tab) enter(keys string) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.KeyEvent(keys)); err != nil {
		p.t.Fatalf("typing: %v", err)
	}
}

// shot keeps a picture of the tab.
func (p *tab) shot(name string) {
	p.t.Helper()
	dir := os.Getenv("AGENTPOD_ARTIFACTS")
	if dir == "" {
		dir = p.t.TempDir()
	}
	picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Errorf("taking a picture: %v", err)
		return
	}
	path := filepath.Join(dir, "ui-"+name+".png")
	if err := os.WriteFile(path, picture, 0o600); err != nil {
		p.t.Error(err)
	}
}
