package chaos

import (
	"os"
	"testing"
	"time"
)

// TestNothingAcknowledgedIsLost injects faults, as many and of the kinds that the flags
// say, and holds gateway and API to what they have acknowledged.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	folder, err := reportFolder()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := choose(kinds(), run.kinds, run.count > defaultCount)
	if err != nil {
		t.Fatal(err)
	}
	points := plan(run.seed, chosen, run.count)
	w := newWorld(t, min(run.lanes, len(points)))
	began := time.Now()
	r := &runner{world: w, stop: run.stop, log: t.Logf, keep: keepLogs(folder)}
	if err := r.run(t.Context(), points); err != nil {
		t.Error(err)
	}
	rep := report{Commit: commit(t.Context()), Seed: run.seed, Kinds: run.kinds, Seconds: time.Since(began).Seconds(), Points: points}
	if err := rep.write(folder, os.Stdout); err != nil {
		t.Error(err)
	}
	for _, p := range points {
		for _, v := range p.Violations {
			t.Errorf("violation %d: %s (SEED=%d KINDS=%s COUNT=1)", v.Number, v.What, p.Seed, p.Kind)
		}
	}
}
