package browsertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	// stepTime bounds one step, patience the wait for what a page shall show.
	stepTime = time.Minute
	patience = time.Minute
	// kept is how many of its last requests a tab tells of when its test fails.
	kept = 100
)

// artifactsEnv names the folder in which pictures are kept.
const artifactsEnv = "AGENTPOD_ARTIFACTS"

// Tab is one tab, with what it asked for and what was written to its console. Its
// methods are for the test's goroutine, and end the test when they cannot do what
// they are for.
type Tab struct {
	t   testing.TB
	ctx context.Context //nolint:containedctx // chromedp's handle

	mu      sync.Mutex
	errors  []string
	paths   map[network.RequestID]string
	traffic map[string]Traffic // by path
	last    []string
	frames  strings.Builder
}

// Traffic counts what a tab and a server said to each other under a path.
type Traffic struct {
	// Asked are requests, Answered replies that began, and Chunks pieces of their
	// bodies as they came.
	Asked, Answered, Chunks int
}

func open(t testing.TB, parent context.Context, options ...chromedp.ContextOption) *Tab { //nolint:revive // the test comes first, as everywhere
	t.Helper()
	ctx, end := chromedp.NewContext(parent, options...)
	t.Cleanup(end)
	p := &Tab{t: t, ctx: ctx, paths: map[network.RequestID]string{}, traffic: map[string]Traffic{}}
	t.Cleanup(p.tell)
	// The tab lives as long as the context that opens it, so that has no deadline.
	late := time.AfterFunc(startTime, end)
	defer late.Stop()
	if err := chromedp.Listen(ctx, p.note); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	messages := chromedp.Console(ctx)
	go func() { // ends with the tab
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

// Beside opens another tab of the same profile: it has this one's cookies.
func (p *Tab) Beside() *Tab {
	p.t.Helper()
	return open(p.t, p.ctx)
}

// note keeps what the browser tells.
func (p *Tab) note(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := func(id network.RequestID, f func(*Traffic)) {
		one := p.traffic[p.paths[id]]
		f(&one)
		p.traffic[p.paths[id]] = one
	}
	switch ev := ev.(type) {
	case *network.EventRequestWillBeSent:
		at, err := url.Parse(ev.Request.URL)
		if err != nil || at.Host == "" {
			return // data: and the like
		}
		p.paths[ev.RequestID] = at.Path
		count(ev.RequestID, func(t *Traffic) { t.Asked++ })
		// A query may be a ticket.
		p.tellLocked("%s %s%s", ev.Request.Method, at.Host, at.Path)
	case *network.EventResponseReceived:
		count(ev.RequestID, func(t *Traffic) { t.Answered++ })
		p.tellLocked("%d %s", ev.Response.Status, p.paths[ev.RequestID])
	case *network.EventDataReceived:
		count(ev.RequestID, func(t *Traffic) { t.Chunks++ })
	case *network.EventLoadingFailed:
		p.tellLocked("%s %s", ev.ErrorText, p.paths[ev.RequestID])
	case *network.EventWebSocketFrameReceived:
		p.frames.Write(ev.Response.PayloadData)
	}
}

// tellLocked keeps a line for the case that the test fails. The caller holds mu.
func (p *Tab) tellLocked(format string, args ...any) {
	if len(p.last) == kept {
		p.last = p.last[1:]
	}
	p.last = append(p.last, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (p *Tab) tell() {
	if !p.t.Failed() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.t.Logf("what the tab asked for last:\n%s", strings.Join(p.last, "\n"))
}

// Console returns the errors since the last call.
func (p *Tab) Console() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.errors
	p.errors = nil
	return was
}

// Traffic is what there was under a path so far.
func (p *Tab) Traffic(path string) Traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.traffic[path]
}

// Received is what came on WebSockets.
func (p *Tab) Received() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frames.String()
}

// step is the context of one step.
func (p *Tab) step() (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.ctx, stepTime)
}

func (p *Tab) do(what string, action chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := p.step()
	defer cancel()
	if err := chromedp.Do(ctx, action); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// GoTo visits a page and waits until it is loaded.
func (p *Tab) GoTo(address string) {
	p.t.Helper()
	p.do("visiting a page", chromedp.Navigate(address))
}

// Reload loads the page anew and waits until that is done.
func (p *Tab) Reload() {
	p.t.Helper()
	p.do("reloading", chromedp.Reload())
}

// JS runs an expression that gives a text, or a promise of one.
func (p *Tab) JS(expression string) string {
	p.t.Helper()
	ctx, cancel := p.step()
	defer cancel()
	out, err := chromedp.Run(ctx, chromedp.Evaluate[string]("(async () => String(await ("+expression+")))()", chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return out
}

// gesture runs an expression as if somebody had clicked for it.
func (p *Tab) gesture(expression string) {
	p.t.Helper()
	ctx, cancel := p.step()
	defer cancel()
	if _, err := chromedp.Call(ctx, runtime.Evaluate, runtime.EvaluateParams{Expression: expression, UserGesture: new(true)}); err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
}

// quote writes a text as JavaScript has it.
func quote(text string) string {
	out, _ := json.Marshal(text) // never fails for a text
	return string(out)
}

// Wait waits until an expression is true; the page may change meanwhile.
func (p *Tab) Wait(what, expression string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+expression+")")); err == nil && ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if p.ctx.Err() != nil {
				p.t.Fatalf("%s: the browser has ended", what)
			}
			p.Shot("failed-" + strings.ReplaceAll(p.t.Name(), "/", "-"))
			p.t.Fatalf("not within %s: %s. The tab shows %s\nIts console: %v", patience, what, p.text(), p.Console())
		}
	}
}

// text is what the tab shows, as far as it can be told.
func (p *Tab) text() string {
	ctx, cancel := p.step()
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("location.pathname + '\\n' + document.body.innerText"))
	return text
}

// Shows waits until a text is on the page.
func (p *Tab) Shows(text string) {
	p.t.Helper()
	p.Wait("the page shows "+text, "document.body.innerText.includes("+quote(text)+")")
}

// Click waits until the element of a CSS selector can be clicked, and clicks it.
func (p *Tab) Click(selector string) {
	p.t.Helper()
	p.Wait(selector+" can be clicked", "(e => e && !e.disabled && e.getClientRects().length)(document.querySelector("+quote(selector)+"))")
	p.do("clicking "+selector, chromedp.Click(chromedp.CSS(selector)))
}

// Enter types keys at the focus.
func (p *Tab) Enter(keys string) {
	p.t.Helper()
	p.do("typing", chromedp.KeyEvent(keys))
}

// BypassCSP frees the pages that the tab loads from now on from their policies: what
// code in a sandbox can serve has none that holds it back.
func (p *Tab) BypassCSP() {
	p.t.Helper()
	ctx, cancel := p.step()
	defer cancel()
	if _, err := chromedp.Call(ctx, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: true}); err != nil {
		p.t.Fatalf("bypassing policies: %v", err)
	}
}

// Phone makes the tab as large as a phone's, with a dark colour scheme.
func (p *Tab) Phone() {
	p.t.Helper()
	ctx, cancel := p.step()
	defer cancel()
	size := emulation.SetDeviceMetricsOverrideParams{Width: 390, Height: 844, DeviceScaleFactor: 2, Mobile: true}
	if _, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, size); err != nil {
		p.t.Fatalf("making the tab a phone's: %v", err)
	}
	dark := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, dark); err != nil {
		p.t.Fatalf("making the tab dark: %v", err)
	}
}

// Shot keeps a picture of the tab as NAME.png, in the folder that AGENTPOD_ARTIFACTS
// names if there is one.
func (p *Tab) Shot(name string) {
	p.t.Helper()
	dir := os.Getenv(artifactsEnv)
	if dir == "" {
		dir = p.t.TempDir()
	}
	ctx, cancel := p.step()
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Errorf("taking a picture: %v", err)
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o600); err != nil { //nolint:gosec // the folder that was asked for
		p.t.Error(err)
	}
}
