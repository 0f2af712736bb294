package crash

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestACreateFromThePoolThatFailsLeavesNothingOnTheHost(t *testing.T) {
	anew(t, claimed, again, restarted)
}

// lives are what is done to a sandbox between its create and its delete, each in the
// order in which it is done.
func lives() map[string][]func(ctx context.Context, g *gateway, id string) error {
	sleep := func(tier sandbox.Tier) func(context.Context, *gateway, string) error {
		return func(ctx context.Context, g *gateway, id string) error { return g.hibernate(ctx, id, tier) }
	}
	wake := func(ctx context.Context, g *gateway, id string) error { return g.wake(ctx, id) }
	remove := func(ctx context.Context, g *gateway, id string) error { return g.Delete(ctx, id) }
	return map[string][]func(context.Context, *gateway, string) error{
		"it is deleted":                          {remove},
		"it is archived and deleted":             {sleep(sandbox.TierArchived), remove},
		"its disk goes, it is woken and deleted": {sleep(sandbox.TierStopped), loseDisk, wake, remove},
	}
}

// loseDisk removes a sandbox's container and disk behind the gateway's back.
func loseDisk(ctx context.Context, g *gateway, id string) error {
	c, err := g.wire.engine.Find(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(g.wire.engine.Remove(ctx, c.ID), g.wire.engine.RemoveVolume(ctx, c.Volume))
}

func TestNothingOfASandboxFromThePoolIsLeftWhereverItsLifeIsCutShort(t *testing.T) {
	for name, steps := range lives() {
		t.Run(name, func(t *testing.T) {
			anew(t, func(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (bool, *gateway) {
				if !tr.atEngine && tr.recovery == again {
					return false, g // a store that fails for a while leaves nothing on the host: see claimed and deleted
				}
				return lived(t, w, g, tr, at, id, steps)
			}, again, restarted)
		})
	}
}

// lived makes a sandbox of a container that is ready ahead, and goes through its life,
// in which something fails at one point. However that ended, it can be deleted then,
// and nothing is left on the host.
func lived(t *testing.T, w *world, g *gateway, tr trial, at point, id string, steps []func(context.Context, *gateway, string) error) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	g = ahead(ctx, t, w, g)
	check(t, g.create(ctx, id))
	if c, err := w.engine.Find(ctx, id); err != nil || !strings.Contains(c.Volume, ".pool-") {
		t.Fatalf("it is not from the pool: %+v %v", c, err)
	}
	calls := tr.place(g).Calls()
	tr.arm(g, at.n, at.fault)
	var err error
	g.mortal(func() {
		for _, step := range steps {
			if g.wire.cut() != nil {
				return
			}
			err = errors.Join(err, step(ctx, g, id))
		}
	})
	reached = tr.place(g).Calls()-calls >= at.n
	if err != nil && !reached {
		t.Fatalf("nothing failed, but: %v", err)
	}
	if reached {
		g = tr.recover(t, w, g)
	} else {
		g.end() // its fault is waiting for its call
		g = w.boot(t)
	}
	check(t, g.Delete(ctx, id))
	if tr.goesOn() && reached {
		g.end()
		g = w.boot(t)
	}
	hostIsEmpty(ctx, t, w, at, id)
	return reached, g
}

// ahead is a gateway in whose pool a container is ready, and which makes no other. The
// gateways after it have no pool, and reconcile all the time.
func ahead(ctx context.Context, t *testing.T, w *world, g *gateway) *gateway {
	t.Helper()
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
	return g
}

// claimed makes a sandbox of a container that is ready ahead, at a point at which
// that fails. The gateway that comes last has no pool, and leaves nothing of one.
func claimed(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	g = ahead(ctx, t, w, g)
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
	hostIsEmpty(ctx, t, w, at, id)
	return reached, g
}

// hostIsEmpty waits until nothing of a sandbox is stored, and nothing at all is on the
// host.
func hostIsEmpty(ctx context.Context, t *testing.T, w *world, at point, id string) {
	t.Helper()
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
