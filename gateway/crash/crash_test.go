package crash

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// limit bounds everything that is done to a sandbox between two looks at it.
const limit = 2 * time.Minute

// result is what an operation acknowledged: a snapshot, a sync of the mirror.
type result struct{ stored, synced bool }

// operation is something done to a sandbox that runs and has changes which are
// not stored.
type operation struct {
	name string
	// before brings the sandbox to where the operation begins, nil if it is there.
	// stores says that this acknowledges a snapshot of the changes.
	before func(ctx context.Context, g *gateway, id string) error
	stores bool
	// records says that it writes the sandbox's record.
	records bool
	do      func(ctx context.Context, g *gateway, id string) (result, error)
}

// operations are what a sandbox must survive.
func operations() []operation {
	sleep := func(tier sandbox.Tier) func(context.Context, *gateway, string) error {
		return func(ctx context.Context, g *gateway, id string) error { return g.hibernate(ctx, id, tier) }
	}
	hibernate := func(tier sandbox.Tier) func(context.Context, *gateway, string) (result, error) {
		return func(ctx context.Context, g *gateway, id string) (result, error) {
			err := g.hibernate(ctx, id, tier)
			return result{stored: err == nil && tier != sandbox.TierFrozen}, err
		}
	}
	wake := func(ctx context.Context, g *gateway, id string) (result, error) {
		return result{}, g.wake(ctx, id)
	}
	persist := func(ctx context.Context, g *gateway, id string) (done result, err error) {
		done.stored, done.synced, err = g.persist(ctx, id)
		return done, err
	}
	return []operation{
		{name: "a sync and a snapshot", do: persist},
		{name: "hibernation to stopped", records: true, do: hibernate(sandbox.TierStopped)},
		{name: "hibernation to archived", records: true, do: hibernate(sandbox.TierArchived)},
		{name: "hibernation from stopped to archived", records: true, before: sleep(sandbox.TierStopped), stores: true, do: hibernate(sandbox.TierArchived)},
		{name: "hibernation to archived of one that died", records: true, before: die, do: hibernate(sandbox.TierArchived)},
		{name: "a wake from archived", records: true, before: sleep(sandbox.TierArchived), stores: true, do: wake},
		{name: "a wake from stopped", records: true, before: sleep(sandbox.TierStopped), stores: true, do: wake},
		{name: "hibernation to frozen", do: hibernate(sandbox.TierFrozen)},
		{name: "a wake from frozen", before: sleep(sandbox.TierFrozen), do: wake},
	}
}

// die has a sandbox's container end by itself, and waits until that is noticed.
func die(ctx context.Context, g *gateway, id string) error {
	c, err := g.wire.engine.Find(ctx, id)
	if err != nil {
		return err
	}
	if err := g.wire.engine.Stop(ctx, c.ID, 0); err != nil {
		return err
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for g.info(id).Tier == sandbox.TierRunning {
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// recovery is what comes after a failure.
type recovery string

const (
	// again goes on with the same gateway.
	again recovery = "the same gateway goes on"
	// restarted is a gateway that dies there and then, and starts again.
	restarted recovery = "the gateway is killed"
	// rebooted goes on, and later gateway and host both end. The disks are there still.
	rebooted recovery = "the host reboots later"
	// moved is one that starts on another host: what was on this one is lost.
	moved recovery = "the host is lost"
)

// trial breaks one thing in certain ways, at each of its calls in turn.
type trial struct {
	atEngine bool // else at the store
	faults   []storetest.Fault
	recovery recovery
}

// trials are all trials. A gateway that dies before a call, or before its reply,
// leaves what one leaves that dies after the call before, or after the call.
func trials() []trial {
	var all []trial
	for _, fault := range storetest.EveryFault() {
		all = append(all, trial{false, []storetest.Fault{fault}, again})
	}
	return append(all,
		trial{false, []storetest.Fault{storetest.Before, storetest.ReplyLost}, rebooted},
		trial{false, []storetest.Fault{storetest.Midway}, restarted},
		trial{false, []storetest.Fault{storetest.DownAfter}, restarted},
		trial{false, []storetest.Fault{storetest.DownAfter}, moved},
		trial{true, []storetest.Fault{storetest.Before, storetest.ReplyLost}, again},
		trial{true, []storetest.Fault{storetest.Before, storetest.DownAfter}, restarted},
		trial{true, []storetest.Fault{storetest.DownAfter}, moved},
	)
}

func (tr trial) String() string {
	where := "the store"
	if tr.atEngine {
		where = "the engine"
	}
	return fmt.Sprintf("%s fails %v, %s", where, tr.faults, tr.recovery)
}

// goesOn tells whether the gateway outlives the failure.
func (tr trial) goesOn() bool { return tr.recovery == again || tr.recovery == rebooted }

// place is what is broken of a gateway.
func (tr trial) place(g *gateway) place {
	if tr.atEngine {
		return g.wire
	}
	return g.faults
}

// arm has the n-th call from now on fail.
func (tr trial) arm(g *gateway, n int, fault storetest.Fault) {
	switch {
	case tr.goesOn():
		tr.place(g).Fail(n, fault)
	case tr.atEngine:
		g.dieAtEngine(n, fault)
	default:
		g.dieAtStore(n, fault)
	}
}

// recover ends the failure, and returns the gateway to go on with.
func (tr trial) recover(t *testing.T, w *world, g *gateway) *gateway {
	t.Helper()
	if tr.goesOn() {
		g.faults.Up()
		g.wire.up()
		return g
	}
	g.end()
	if tr.recovery == moved {
		check(t, w.engine.vanish())
	}
	return w.boot(t)
}

// point is one point at which something is broken.
type point struct {
	n     int
	fault storetest.Fault
}

// each tries the points of a trial until a call is not made any more, which is
// what try returns.
func (tr trial) each(try func(point) (reached bool)) (points int) {
	for _, fault := range tr.faults {
		for n := 1; try(point{n, fault}); n++ {
			points++
		}
	}
	return points
}

func TestNoFailureAnywhereInItsLifeCostsASandboxAnything(t *testing.T) {
	var points atomic.Int64
	t.Run("points", func(t *testing.T) {
		for _, op := range operations() {
			for _, tr := range trials() {
				if tr.recovery == rebooted && !op.records {
					continue // nothing else that it leaves matters later
				}
				t.Run(op.name+", "+tr.String(), func(t *testing.T) {
					t.Parallel()
					points.Add(int64(op.survive(t, tr)))
				})
			}
		}
	})
	report(t, points.Load())
}

// box is the sandbox to which everything is done.
const box = "box"

// subject is a sandbox in a world, and what it has.
type subject struct {
	t       *testing.T
	w       *world
	g       *gateway
	ctx     context.Context //nolint:containedctx // the test's
	version int             // of its files
	born    string          // see treeOf
}

// newSubject makes a sandbox that has as many snapshots as it can have, so that
// each further one leaves packs and a manifest behind that nothing uses.
func newSubject(t *testing.T) *subject {
	t.Helper()
	w := newWorld(t)
	s := &subject{t: t, w: w, g: w.boot(t)}
	s.within()
	check(t, s.g.create(s.ctx, box))
	s.born = read(t, w.engine.home(t, box))[born]
	if s.born == "" {
		t.Fatal("OpenCode has no state")
	}
	for range keep + 2 { // a pack lasts one snapshot longer than what it was made for
		s.write()
		s.store()
	}
	collected := func(call string) bool { return strings.HasPrefix(call, "Delete snapshots/"+box+"/packs/") }
	if !slices.ContainsFunc(s.g.faults.Log(), collected) {
		t.Fatal("a further snapshot leaves nothing to collect")
	}
	return s
}

// within gives the subject's context its time anew.
func (s *subject) within() {
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	s.t.Cleanup(cancel)
	s.ctx = ctx
}

// write makes the next version.
func (s *subject) write() {
	s.t.Helper()
	s.version++
	write(s.t, s.w.engine.home(s.t, box), s.version)
}

// store has the version stored, and checks that nothing else is stored.
func (s *subject) store() {
	s.t.Helper()
	stored, synced, err := s.g.persist(s.ctx, box)
	if err != nil || !stored || !synced {
		s.t.Fatalf("version %d was not stored: %v", s.version, err)
	}
	s.w.mirrored(s.t, box, s.version)
	s.tidy()
}

// tidy checks that what is stored is what the snapshots use.
func (s *subject) tidy() {
	s.t.Helper()
	all, unused := s.w.snapshots(s.t, box)
	if len(all) == 0 || len(all) > keep || len(unused) > 0 {
		s.t.Fatalf("there are %d snapshots, and nothing uses %q", len(all), unused)
	}
}

// has checks that the sandbox wakes, with one of the versions.
func (s *subject) has(versions ...int) {
	s.t.Helper()
	if err := s.g.wake(s.ctx, box); err != nil {
		s.t.Fatalf("it does not wake: %v", err)
	}
	got := read(s.t, s.w.engine.home(s.t, box))
	for _, version := range versions {
		if maps.Equal(got, treeOf(version, s.born)) {
			s.version = version
			return
		}
	}
	s.t.Fatalf("it has not one of the versions %v (-want +got):\n%s", versions, cmp.Diff(treeOf(versions[0], s.born), got))
}

// survive breaks an operation at every point, and returns how many there are.
func (op operation) survive(t *testing.T, tr trial) int {
	s := newSubject(t)
	points := tr.each(func(at point) bool {
		s.within()
		return op.try(s, tr, at)
	})
	op.leaveNothing(s)
	return points
}

func (op operation) try(s *subject, tr trial, at point) (reached bool) {
	t := s.t
	t.Helper()
	s.write()
	s.store()
	before := s.version
	s.write()
	now := s.version
	if op.before != nil {
		check(t, op.before(s.ctx, s.g, box))
	}

	calls := tr.place(s.g).Calls()
	tr.arm(s.g, at.n, at.fault)
	var done result
	var err error
	s.g.mortal(func() { done, err = op.do(s.ctx, s.g, box) })
	reached = tr.place(s.g).Calls()-calls >= at.n
	defer func() {
		if t.Failed() {
			t.Logf("that was call %d, %s: %v, acknowledged %+v", at.n, at.fault, err, done)
		}
	}()
	if !reached && err != nil {
		t.Fatalf("nothing failed, but %s: %v", op.name, err)
	}
	if done.synced {
		s.w.mirrored(t, box, now)
	}
	if !reached {
		s.g.end() // its fault is waiting for its call
		s.g = s.w.boot(t)
		s.has(now)
		return false
	}
	s.g = tr.recover(t, s.w, s.g)
	if tr.recovery == again && (at.n+int(at.fault))%2 == 0 { // both ways, at each point
		if _, err := op.do(s.ctx, s.g, box); err != nil {
			t.Fatalf("it does not succeed afterwards: %v", err)
		}
	}
	if tr.recovery == moved && !op.stores && !done.stored {
		s.has(before, now)
	} else {
		s.has(now)
	}
	s.version = max(s.version, now) // a version is never made twice
	if tr.recovery == rebooted {
		s.reboot()
	}
	if tr.recovery == again && !tr.atEngine {
		if found := s.onHost(); len(found) != 2 {
			t.Fatalf("besides its container and its volume it has %q", found)
		}
	}
	return true
}

// reboot changes something, has the host end before that is stored, and goes down
// the ladder from there.
func (s *subject) reboot() {
	s.t.Helper()
	s.write()
	s.g.end()
	check(s.t, s.w.engine.reboot())
	s.g = s.w.boot(s.t)
	check(s.t, s.g.hibernate(s.ctx, box, sandbox.TierArchived))
	s.has(s.version)
}

// leaveNothing checks that an archived sandbox is only in the store, with
// nothing else, and a deleted one nowhere.
func (op operation) leaveNothing(s *subject) {
	t := s.t
	t.Helper()
	s.within()
	s.write()
	check(t, s.g.hibernate(s.ctx, box, sandbox.TierArchived))
	s.tidy()
	// What a gateway that was killed left is removed by the next one in its own time.
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for found := s.onHost(); len(found) > 0; found = s.onHost() {
		select {
		case <-look.C:
		case <-s.ctx.Done():
			t.Fatalf("an archived sandbox left %q", found)
		}
	}
	s.has(s.version)
	check(t, s.g.Delete(s.ctx, box))
	if found := append(s.w.traces(t, box), s.onHost()...); len(found) > 0 {
		t.Errorf("a deleted sandbox left %q", found)
	}
}

// onHost names every container and volume.
func (s *subject) onHost() []string {
	s.t.Helper()
	containers, err := s.w.engine.List(s.ctx)
	check(s.t, err)
	found, err := s.w.engine.Volumes(s.ctx)
	check(s.t, err)
	for _, c := range containers {
		found = append(found, c.ID)
	}
	return found
}

func TestNoFailureKeepsADeletedSandboxFromBeingGone(t *testing.T) {
	anew(t, deleted, again, restarted, moved)
}

// anew breaks something at every point of it, each in a sandbox of its own, for
// the trials with these recoveries. try returns whether its point was reached,
// and the gateway to go on with.
func anew(t *testing.T, try func(*testing.T, *world, *gateway, trial, point, string) (bool, *gateway), recoveries ...recovery) {
	t.Helper()
	var points atomic.Int64
	t.Run("points", func(t *testing.T) {
		for _, tr := range trials() {
			if !slices.Contains(recoveries, tr.recovery) {
				continue
			}
			t.Run(tr.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				g := w.boot(t)
				sandboxes := 0
				points.Add(int64(tr.each(func(at point) (reached bool) {
					sandboxes++
					reached, g = try(t, w, g, tr, at, fmt.Sprintf("box-%d", sandboxes))
					return reached
				})))
			})
		}
	})
	report(t, points.Load())
}

func report(t *testing.T, points int64) {
	t.Helper()
	t.Logf("%d points were tried", points)
	if points == 0 {
		t.Error("nothing was tried")
	}
}

// deleted makes a sandbox and deletes it at a point at which that fails.
func deleted(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	check(t, g.create(ctx, id))
	write(t, w.engine.home(t, id), 1)
	if _, _, err := g.persist(ctx, id); err != nil {
		t.Fatal(err)
	}
	calls := tr.place(g).Calls()
	tr.arm(g, at.n, at.fault)
	var err error
	g.mortal(func() { err = g.Delete(ctx, id) })
	reached = tr.place(g).Calls()-calls >= at.n
	if err == nil {
		nothingIsLeft(ctx, t, w, id)
	}
	if err != nil && !reached {
		t.Fatalf("nothing failed, but the delete: %v", err)
	}
	if !reached {
		g.end()
		return false, w.boot(t)
	}
	g = tr.recover(t, w, g)
	if err := g.Delete(ctx, id); err != nil {
		t.Fatalf("call %d, %s: the delete does not succeed afterwards: %v", at.n, at.fault, err)
	}
	nothingIsLeft(ctx, t, w, id)
	return true, g
}

func nothingIsLeft(ctx context.Context, t *testing.T, w *world, id string) {
	t.Helper()
	volumes, err := w.engine.Volumes(ctx)
	check(t, err)
	if found := append(w.traces(t, id), volumes...); len(found) > 0 {
		t.Fatalf("the deleted sandbox %s left %q", id, found)
	}
}

func TestACreateThatFailsLeavesNothingAndCanBeRepeated(t *testing.T) {
	anew(t, created, again, restarted) // what was never stored is lost with its host
}

// created makes a sandbox at a point at which that fails, and once more.
func created(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	calls := tr.place(g).Calls()
	tr.arm(g, at.n, at.fault)
	var err error
	g.mortal(func() { err = g.create(ctx, id) })
	reached = tr.place(g).Calls()-calls >= at.n
	acknowledged := err == nil
	if !acknowledged && !reached {
		t.Fatalf("nothing failed, but the create: %v", err)
	}
	if reached {
		g = tr.recover(t, w, g)
	} else {
		g.end()
		g = w.boot(t)
	}
	if acknowledged {
		check(t, g.wake(ctx, id))
	}
	if err := g.create(ctx, id); err != nil {
		t.Fatalf("call %d, %s: the create does not succeed afterwards: %v", at.n, at.fault, err)
	}
	home := w.engine.home(t, id)
	write(t, home, 1)
	if _, _, err := g.persist(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, unused := w.snapshots(t, id); len(unused) > 0 {
		t.Errorf("nothing uses %q", unused)
	}
	check(t, g.hibernate(ctx, id, sandbox.TierArchived))
	check(t, g.wake(ctx, id))
	bornAs := read(t, w.engine.home(t, id))[born]
	if got, want := read(t, w.engine.home(t, id)), treeOf(1, bornAs); !maps.Equal(got, want) {
		t.Fatalf("call %d, %s: it has other files (-want +got):\n%s", at.n, at.fault, cmp.Diff(want, got))
	}
	check(t, g.Delete(ctx, id))
	nothingIsLeft(ctx, t, w, id)
	return reached, g
}

func TestACreateThatFailsLeavesTheMirrorThatItFound(t *testing.T) {
	anew(t, imported, again, restarted, moved)
}

// imported makes a sandbox of a mirror at a point at which that fails, and once more.
func imported(t *testing.T, w *world, g *gateway, tr trial, at point, id string) (reached bool, next *gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	prefix := "workspaces/" + id + "/"
	theirs := map[string]string{"a.txt": "theirs", "src/b.txt": "theirs too"}
	for path, content := range theirs {
		storetest.MustPut(t, w.store, prefix+path, []byte(content), store.PutOptions{})
	}
	calls := tr.place(g).Calls()
	tr.arm(g, at.n, at.fault)
	var err error
	g.mortal(func() { err = g.create(ctx, id) })
	reached = tr.place(g).Calls()-calls >= at.n
	if reached {
		g = tr.recover(t, w, g)
	} else {
		g.end()
		g = w.boot(t)
	}
	for path, content := range theirs {
		if raw, _ := storetest.MustGet(t, w.store, prefix+path); string(raw) != content {
			t.Fatalf("call %d, %s: %s of the mirror is %q now", at.n, at.fault, path, raw)
		}
	}
	if err == nil && tr.recovery == moved {
		return reached, g // what was never stored is lost with its host
	}
	if err := g.create(ctx, id); err != nil {
		t.Fatalf("call %d, %s: the create does not succeed afterwards: %v", at.n, at.fault, err)
	}
	for path, content := range theirs {
		raw, err := os.ReadFile(filepath.Join(w.engine.home(t, id), "workspace", path))
		if err != nil || string(raw) != content {
			t.Fatalf("call %d, %s: %s is %q: %v", at.n, at.fault, path, raw, err)
		}
	}
	check(t, g.Delete(ctx, id))
	nothingIsLeft(ctx, t, w, id)
	return reached, g
}
