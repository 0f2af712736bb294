package chaos

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// One world for all: its engine takes half a minute to have the image.
func TestFaultsOfTheRealPrograms(t *testing.T) {
	folder, err := reportFolder()
	if err != nil {
		t.Fatal(err)
	}
	standIn, err := draw(run.count, false)
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := draw(run.real, true)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, min(run.lanes, max(len(standIn), 1)))
	t.Run("what is lost on purpose is told", func(t *testing.T) { blind(t, w, folder) })
	t.Run("nothing acknowledged is lost", func(t *testing.T) { faults(t, w, folder, standIn, genuine) })
}

// draw plans points of the kinds that the flags ask for.
func draw(count int, genuine bool) ([]*point, error) {
	if count == 0 {
		return nil, nil
	}
	chosen, err := choose(kinds(), run.kinds, genuine || count > defaultCount, genuine)
	if err != nil {
		return nil, err
	}
	return plan(run.seed, chosen, count, genuine), nil
}

// genuineLanes is how many gateways have sandboxes with the real OpenCode at once: each
// boot of it takes seconds of a core.
const genuineLanes = 2

// blind has things lost behind the programs' backs, each of which the oracle must tell.
func blind(t *testing.T, w *world, folder string) {
	if run.kinds != "" {
		return // what is asked for are other points
	}
	var points []*point
	for _, l := range losses() {
		points = append(points, &point{Kind: l.name, Seed: run.seed, kind: l.kind})
	}
	r := &runner{world: w, log: t.Logf, keep: keepLogs(folder)}
	if err := r.run(t.Context(), points); err != nil {
		t.Fatal(err)
	}
	for i, l := range losses() {
		if !slices.ContainsFunc(points[i].Violations, func(v violation) bool { return strings.Contains(v.What, l.told) }) {
			t.Errorf("%s: the oracle says %v, and nothing of %q", l.name, points[i].Violations, l.told)
		}
	}
}

// done counts the points that were run.
func done(points []*point) (n int) {
	for _, p := range points {
		if p.Seconds > 0 {
			n++
		}
	}
	return n
}

// faults injects the faults that the flags ask for, and holds gateway and API to what
// they have acknowledged.
func faults(t *testing.T, w *world, folder string, standIn, genuine []*point) {
	began := time.Now()
	r := &runner{world: w, stop: run.stop, log: t.Logf, keep: keepLogs(folder)}
	if run.within > 0 {
		r.until = began.Add(run.within)
	}
	if err := r.run(t.Context(), standIn); err != nil {
		t.Error(err)
	}
	if len(genuine) > 0 && !t.Failed() && !r.ended() {
		if err := w.open(t.Context(), min(genuineLanes, len(genuine)), true); err != nil {
			t.Fatal(err)
		}
		if err := r.run(t.Context(), genuine); err != nil {
			t.Error(err)
		}
	}
	points := slices.Concat(standIn, genuine)
	if left := len(points) - done(points); left > 0 {
		t.Logf("%d of %d points were not begun", left, len(points))
	}
	rep := report{Commit: commit(t.Context()), Seed: run.seed, Kinds: run.kinds, Seconds: time.Since(began).Seconds(), Points: points}
	if err := rep.write(folder, os.Stdout); err != nil {
		t.Error(err)
	}
	slices.SortFunc(points, func(a, b *point) int { return cmp.Compare(a.Kind, b.Kind) })
	for _, p := range points {
		for _, v := range p.Violations {
			t.Errorf("violation %d: %s (%s)", v.Number, v.What, p.again())
		}
	}
}
