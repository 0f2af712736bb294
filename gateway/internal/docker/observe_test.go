package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
)

func TestLogsArePlainTailedAndFollowed(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "talk")
	ask(t, c, "/log", url.Values{"text": {"line"}, "lines": {"10"}})
	read := func(opts lifecycle.LogOptions) string {
		t.Helper()
		rc, err := r.Logs(ctx, c.ID, opts)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	// The log driver is a little behind the process.
	eventually(t, "the log holds every line", func() error {
		all := strings.Split(strings.TrimSpace(read(lifecycle.LogOptions{})), "\n")
		slices.Sort(all) // the two streams are not in order to one another
		if len(all) != 11 || all[0] != "line 0" || all[9] != "line 9" || all[10] != "stub ready" {
			return fmt.Errorf("the log is %q", all)
		}
		return nil
	})
	if got := strings.Count(read(lifecycle.LogOptions{Tail: 3}), "\n"); got != 3 {
		t.Errorf("a tail of 3 has %d lines", got)
	}

	rc, err := r.Logs(ctx, c.ID, lifecycle.LogOptions{Tail: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	lines := bufio.NewScanner(rc)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	ask(t, c, "/log", url.Values{"text": {"fresh"}, "lines": {"1"}})
	if !lines.Scan() || lines.Text() != "fresh 0" {
		t.Fatalf("followed %q, %v", lines.Text(), lines.Err())
	}
	if err := r.Stop(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if lines.Scan() || lines.Err() != nil {
		t.Fatalf("after the end: %q, %v", lines.Text(), lines.Err())
	}
}

func TestAClosedOrCancelledLogLeavesNothingRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r := newRuntime(t)
	c := run(t, r, "flood")
	ask(t, c, "/log", url.Values{"text": {strings.Repeat("x", 200)}, "lines": {"2000"}})

	// Closed without having been read: the copy is stuck in its first write.
	rc, err := r.Logs(testContext(t), c.ID, lifecycle.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}

	// The context ends while nobody reads.
	ctx, cancel := context.WithCancel(testContext(t))
	rc, err = r.Logs(ctx, c.ID, lifecycle.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "the reader learns that the context ended", func() error {
		if _, err := rc.Read(make([]byte, 4096)); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("read: %w", err)
		}
		return nil
	})
	r.Close()
	if err := world.cli.Close(); err != nil {
		t.Fatal(err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestALogFloodStaysCapped(t *testing.T) {
	ctx := testContext(t)
	const size, files = 64 << 10, 2
	r := newRuntime(t, func(s *Settings) { s.LogMaxSize, s.LogMaxFiles = size, files })
	c := run(t, r, "flood")
	ask(t, c, "/log", url.Values{"text": {strings.Repeat("x", 1000)}, "lines": {"5000"}, "stream": {"stdout"}})
	eventually(t, "the newest line is kept", func() error {
		rc, err := r.Logs(ctx, c.ID, lifecycle.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 2*size*files {
			t.Fatalf("the log holds %d bytes", len(b))
		}
		if !strings.Contains(string(b), " 4999\n") {
			return fmt.Errorf("the last line is not among %d bytes: …%q", len(b), b[max(0, len(b)-60):])
		}
		return nil
	})
}

func TestStatsShowWhatASandboxUses(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "busy")
	idle, err := r.Stats(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if idle.MemoryLimit != 64*mebibyte || idle.MemoryUsage == 0 || idle.MemoryUsage >= idle.MemoryLimit || idle.MemoryPercent <= 0 {
		t.Errorf("idle: %+v", idle)
	}
	if idle.NetworkRx == 0 || idle.NetworkTx == 0 {
		t.Errorf("it was asked over its network, yet: %+v", idle)
	}
	ask(t, c, "/burn", nil)
	ask(t, c, "/eat", url.Values{"bytes": {strconv.Itoa(20 * mebibyte)}})
	eventually(t, "the stats show the load", func() error {
		s, err := r.Stats(ctx, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if s.CPUPercent < 20 || s.CPUPercent > 130 || s.MemoryUsage < idle.MemoryUsage+10*mebibyte {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if err := r.Stop(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Stats(ctx, c.ID); err != nil || s.CPUPercent != 0 || s.MemoryUsage != 0 {
		t.Errorf("stopped: %+v, %v", s, err)
	}
}

// watch collects events; next returns the next one of a container.
func watch(t *testing.T, r *Runtime) (next func() lifecycle.Event, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	subscribed, got, ended := make(chan struct{}), make(chan lifecycle.Event, 100), make(chan error, 1)
	go func() {
		ended <- r.Events(ctx, func() { close(subscribed) }, func(e lifecycle.Event) { got <- e })
	}()
	select {
	case <-subscribed:
	case err := <-ended:
		t.Fatalf("no events: %v", err)
	}
	next = func() lifecycle.Event {
		t.Helper()
		select {
		case e := <-got:
			return e
		case err := <-ended:
			t.Fatalf("the events ended: %v", err)
		case <-ctx.Done():
			t.Fatal("no event came")
		}
		return lifecycle.Event{}
	}
	stop = func() error {
		cancel()
		return <-ended
	}
	t.Cleanup(cancel)
	return next, stop
}

func TestEventsTellWhatHappensToTheInstallationsContainers(t *testing.T) {
	ctx := testContext(t)
	r, other := newRuntime(t), newRuntime(t)
	next, stop := watch(t, r)
	run(t, other, "noise")
	c := run(t, r, "before")
	want := func(kind lifecycle.EventKind, id string, code int) {
		t.Helper()
		if got := next(); got != (lifecycle.Event{Kind: kind, ContainerID: c.ID, SandboxID: id, ExitCode: code}) {
			t.Fatalf("got %+v, want %s of %s with %d", got, kind, id, code)
		}
	}
	want(lifecycle.EventStarted, "before", 0)
	for _, step := range []error{
		r.Pause(ctx, c.ID), r.Unpause(ctx, c.ID), r.Rename(ctx, c.ID, "after"),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	want(lifecycle.EventPaused, "before", 0)
	want(lifecycle.EventUnpaused, "before", 0)
	want(lifecycle.EventRenamed, "after", 0)
	if _, err := tell(t, c, "/exit", url.Values{"code": {"42"}}); err == nil {
		t.Fatal("it answered")
	}
	want(lifecycle.EventDied, "after", 42)
	if exit, err := r.Wait(ctx, c.ID); err != nil || exit.Code != 42 || exit.OOMKilled {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	if err := r.Remove(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	want(lifecycle.EventDestroyed, "after", 0)
	if err := stop(); err != nil {
		t.Fatalf("a cancelled watch returned %v", err)
	}
}

func TestAnOOMKillIsNoticed(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	next, _ := watch(t, r)
	c := run(t, r, "hungry")
	exited := make(chan lifecycle.Exit, 1)
	go func() {
		exit, err := r.Wait(ctx, c.ID)
		if err != nil {
			t.Error(err)
		}
		exited <- exit
	}()
	if _, err := tell(t, c, "/eat", url.Values{"bytes": {strconv.Itoa(512 * mebibyte)}}); err == nil {
		t.Fatal("it ate more than its limit")
	}
	if exit := <-exited; exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("exit %+v", exit)
	}
	kinds := map[lifecycle.EventKind]bool{}
	for !kinds[lifecycle.EventOOM] || !kinds[lifecycle.EventDied] {
		kinds[next().Kind] = true
	}
	if got, err := r.Inspect(ctx, c.ID); err != nil || !got.OOMKilled || got.ExitCode != 137 {
		t.Errorf("inspect %+v, %v", got, err)
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	r := newRuntime(t)
	c := run(t, r, "endless")
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	if _, err := r.Wait(ctx, c.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.Wait(testContext(t), c.ID)
		done <- err
	}()
	if err := r.Remove(testContext(t), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Fatalf("a wait for what is removed: %v", err)
	}
}
