package docker

import (
	"net/url"
	"strconv"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// memoryOf is what a container has in memory, in bytes, and its limit.
func memoryOf(t *testing.T, r *Runtime, id string) (used, limit uint64) {
	t.Helper()
	e, err := r.connect(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := sample(testContext(t), e, id)
	if err != nil {
		t.Fatal(err)
	}
	return s.MemoryStats.Usage, s.MemoryStats.Limit
}

func TestAPausedContainerIsShrunkAndGoesOn(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "large")
	wantCode(t, r.Shrink(ctx, c.ID), sandbox.CodeConflict)
	ask(t, c, "/eat", url.Values{"bytes": {strconv.Itoa(50 * mebibyte)}})
	if err := r.Pause(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	before, _ := memoryOf(t, r, c.ID)
	if before < 50*mebibyte {
		t.Fatalf("it has %d bytes", before)
	}
	if err := r.Shrink(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	after, limit := memoryOf(t, r, c.ID)
	if after > shrunkMemory || limit != 64*mebibyte {
		t.Errorf("it has %d bytes of %d, before %d", after, limit, before)
	}
	if err := r.Unpause(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "/name", nil); got != "large" {
		t.Errorf("it answers %q", got)
	}
}

func TestALimitThatWasLeftLowIsPutBackBeforeTheContainerRuns(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "low")
	for name, again := range map[string]func(next *Runtime) error{
		"unpaused": func(next *Runtime) error { return next.Unpause(ctx, c.ID) },
		"started": func(next *Runtime) error {
			if err := next.Stop(ctx, c.ID, 0); err != nil {
				return err
			}
			_, err := next.Start(ctx, c.ID)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			next, err := New(r.set, testLog(t))
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			if err := r.Pause(ctx, c.ID); err != nil {
				t.Fatal(err)
			}
			// As a gateway does that is killed at that moment.
			update := container.UpdateConfig{Resources: container.Resources{Memory: shrunkMemory, MemorySwap: 64 * mebibyte}}
			e, err := r.connect(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.cli.ContainerUpdate(ctx, c.ID, update); err != nil {
				t.Fatal(err)
			}
			if err := again(next); err != nil {
				t.Fatal(err)
			}
			if now, err := r.Inspect(ctx, c.ID); err != nil || now.State != lifecycle.ContainerRunning {
				t.Fatalf("%+v, %v", now, err)
			}
			if _, limit := memoryOf(t, r, c.ID); limit != 64*mebibyte {
				t.Errorf("its limit is %d", limit)
			}
		})
	}
}

func TestTheKernelsFiguresSayHowMuchSwapIsFree(t *testing.T) {
	for name, c := range map[string]struct {
		figures string
		want    uint64
		ok      bool
	}{
		"some is free":          {"MemTotal:       24684140 kB\nSwapTotal:       2097148 kB\nSwapFree:        2096892 kB\n", 2096892 << 10, true},
		"there is none":         {"SwapTotal:             0 kB\nSwapFree:              0 kB\n", 0, true},
		"nothing is said":       {"MemTotal: 1 kB\n", 0, false},
		"what is no number":     {"SwapFree: many kB\n", 0, false},
		"a number that is huge": {"SwapFree: 99999999999999999999 kB\n", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := swapIn(c.figures); got != c.want || (err == nil) != c.ok {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
	if _, known := (&Runtime{host: "tcp://192.0.2.1:2376"}).freeSwap(); known {
		t.Error("an engine on another machine has another swap")
	}
}
