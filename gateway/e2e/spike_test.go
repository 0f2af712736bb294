package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/chromedp"
)

func TestSpike(t *testing.T) {
	g := start(t)
	g.create(t, "spike", object{"gitUrl": g.git.URL()})
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoFirstRun, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.WindowSize(1280, 900),
	}
	actx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	defer cancel()
	ctx, cancel2 := chromedp.NewContext(actx)
	defer cancel2()
	ctx, cancel3 := context.WithTimeout(ctx, 90*time.Second)
	defer cancel3()
	_ = chromedp.Listen(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *runtime.EventConsoleAPICalled:
			s := ""
			for _, a := range ev.Args {
				s += " " + string(a.Value) + a.Description
			}
			fmt.Println("CONSOLE", ev.Type, s)
		case *runtime.EventExceptionThrown:
			fmt.Println("EXC", ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception.Description)
		case *cdplog.EventEntryAdded:
			fmt.Println("LOG", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL)
		case *network.EventRequestWillBeSent:
			fmt.Println("REQ", ev.Request.Method, ev.Request.URL, ev.Type)
		case *network.EventResponseReceived:
			fmt.Println("RES", ev.Response.Status, ev.Response.URL, ev.Response.Headers["Content-Security-Policy"])
		case *network.EventLoadingFailed:
			fmt.Println("FAILED", ev.Type, ev.ErrorText, ev.BlockedReason)
		case *network.EventWebSocketCreated:
			fmt.Println("WS", ev.URL)
		}
	})
	u := g.call(t, http.MethodGet, "/sandbox/spike/ui", nil, 200)
	fmt.Println(u)
	shot := func(name string) {
		b, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Error(err)
		}
		_ = os.WriteFile("/tmp/h/shots/"+name+".png", b, 0o644)
		html, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("document.documentElement.outerHTML"))
		_ = os.WriteFile("/tmp/h/shots/"+name+".html", []byte(html), 0o644)
	}
	_ = os.MkdirAll("/tmp/h/shots", 0o755)
	from := os.Getenv("SPIKE_FROM")
	if from == "" { from = g.url+"/health" }
	if err := chromedp.Do(ctx, chromedp.Navigate(from)); err != nil {
		t.Error(err)
	}
	_, _ = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href = "`+u["url"].(string)+`"`)); err != nil { t.Error(err) }
	if err := chromedp.Do(ctx, chromedp.Sleep(8*time.Second)); err != nil {
		t.Error(err)
	}
	shot("1")
	for i, js := range []string{os.Getenv("JS1"), os.Getenv("JS2"), os.Getenv("JS3"), os.Getenv("JS4")} {
		if js == "" { continue }
		out, err := chromedp.Run(ctx, chromedp.Evaluate[string](js))
		_ = chromedp.Do(ctx, chromedp.Sleep(4*time.Second))
		fmt.Println("JS", i, out, err)
		shot(fmt.Sprint("js", i+1))
	}
}
