package crash

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
)

func TestACreateFromThePoolThatFailsLeavesNothingOnTheHost(t *testing.T) {
	anew(t, claimed, again, restarted)
}

// claimed makes a sandbox of a container that is ready ahead, at a point at which
// that fails. The gateway that comes last has no pool, and leaves nothing of one.
func claimed(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	g.end()
	w.change = func(s *lifecycle.Settings) { s.Pool.Size, s.Pool.Pause = 1, time.Hour }
	const ready = "a sandbox is ready ahead"
	before := strings.Count(w.logs.String(), ready)
	g = w.boot(t)
	soon(ctx, t, func() string {
		if strings.Count(w.logs.String(), ready) == before {
			return "nothing is ready ahead"
		}
		return ""
	})
	w.change = func(s *lifecycle.Settings) { s.ReconcileEvery = 10 * time.Millisecond }
	calls := tr.place(g).Calls()
	tr.arm(g, at.n, at.fault)
	var err error
	g.mortal(func() { err = g.create(ctx, id) })
	reached = tr.place(g).Calls()-calls >= at.n
	if err != nil && !reached {
		t.Fatalf("nothing failed, but the create: %v", err)
	}
	acknowledged := err == nil
	g = tr.recover(t, w, g)
	if tr.goesOn() && !acknowledged {
		if err := g.create(ctx, id); err != nil {
			t.Fatalf("call %d, %s: the create does not succeed afterwards: %v", at.n, at.fault, err)
		}
		acknowledged = true
	}
	if tr.goesOn() {
		g.end()
		g = w.boot(t)
	}
	if acknowledged {
		check(t, g.wake(ctx, id))
		check(t, g.Delete(ctx, id))
	}
	soon(ctx, t, func() string {
		volumes, err := w.engine.Volumes(ctx)
		check(t, err)
		containers, err := w.engine.List(ctx)
		check(t, err)
		if found := w.traces(t, id); len(found)+len(volumes)+len(containers) > 0 {
			return fmt.Sprintf("call %d, %s: left are %v, %v and %v", at.n, at.fault, found, volumes, containers)
		}
		return ""
	})
	return reached, g
}

// soon waits until nothing is wrong any more.
func soon(ctx context.Context, t *testing.T, wrong func() string) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for why := wrong(); why != ""; why = wrong() {
		select {
		case <-again.C:
		case <-limit.C:
			t.Fatal(why)
		case <-ctx.Done():
			t.Fatal(why)
		}
	}
}
