// Package browsertest drives a headless Chromium, for tests of what somebody sees
// in a browser and of what a hostile page can do there.
package browsertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

const (
	// startTime bounds the start of a browser or a tab, endTime their end.
	startTime = time.Minute
	endTime   = 30 * time.Second
)

// Browser is a headless Chromium that tests share: starting one costs seconds. It
// starts with the first tab and runs until Close. The zero value is ready; safe for
// concurrent use but for Close.
type Browser struct {
	once sync.Once
	ctx  context.Context //nolint:containedctx // chromedp's handle
	ends []func()
	err  error
}

// Tab opens a tab with cookies and storage of its own, which ends with the test. The
// test fails if there is no Chromium.
func (b *Browser) Tab(t testing.TB) *Tab {
	t.Helper()
	b.once.Do(func() { b.err = b.start() })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return open(t, b.ctx, chromedp.WithNewBrowserContext())
}

func (b *Browser) start() error {
	path, err := find()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	profile, err := os.MkdirTemp("", "agentpod-browser-")
	if err != nil {
		return fmt.Errorf("making the browser's profile: %w", err)
	}
	b.ends = append(b.ends, func() { _ = os.RemoveAll(profile) })
	ctx, end := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(self), chromedp.Env(programEnv+"="+path), chromedp.UserDataDir(profile),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WindowSize(1280, 900))
	b.ends = append(b.ends, end)
	ctx, end = chromedp.NewContext(ctx)
	b.ends = append(b.ends, end)
	// The browser lives as long as the context that starts it, so that has no deadline.
	late := time.AfterFunc(startTime, end)
	defer late.Stop()
	if err := chromedp.Do(ctx); err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	b.ctx = ctx
	return nil
}

func find() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no Chromium on this machine; .ci/tools installs it")
}

// Close ends the browser, if one was started, and waits until it has ended.
func (b *Browser) Close() error {
	var err error
	if b.ctx != nil {
		ctx, cancel := context.WithTimeout(b.ctx, endTime)
		defer cancel()
		if err = chromedp.Cancel(ctx); err != nil {
			err = fmt.Errorf("ending the browser: %w", err)
		}
	}
	for i := len(b.ends) - 1; i >= 0; i-- {
		b.ends[i]()
	}
	return err
}
