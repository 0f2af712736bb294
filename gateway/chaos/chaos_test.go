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
	chosen, err := choose(kinds(), run.kinds, run.count > defaultCount)
	if err != nil {
		t.Fatal(err)
	}
	points := plan(run.seed, chosen, run.count)
	w := newWorld(t, min(run.lanes, max(len(points), 1)))
	t.Run("what is lost on purpose is told", func(t *testing.T) { blind(t, w, folder) })
	t.Run("nothing acknowledged is lost", func(t *testing.T) { faults(t, w, folder, points) })
}

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

// faults injects the faults that the flags ask for, and holds gateway and API to what
// they have acknowledged.
func faults(t *testing.T, w *world, folder string, points []*point) {
	began := time.Now()
	r := &runner{world: w, stop: run.stop, log: t.Logf, keep: keepLogs(folder)}
	if err := r.run(t.Context(), points); err != nil {
		t.Error(err)
	}
	rep := report{Commit: commit(t.Context()), Seed: run.seed, Kinds: run.kinds, Seconds: time.Since(began).Seconds(), Points: points}
	if err := rep.write(folder, os.Stdout); err != nil {
		t.Error(err)
	}
	slices.SortFunc(points, func(a, b *point) int { return cmp.Compare(a.Kind, b.Kind) })
	for _, p := range points {
		for _, v := range p.Violations {
			t.Errorf("violation %d: %s (make chaos SEED=%d KINDS=%s COUNT=1)", v.Number, v.What, p.Seed, p.Kind)
		}
	}
}
