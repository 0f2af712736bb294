package lifecycle

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// counted fails the test unless rows of figures have these values.
func counted(t *testing.T, p metricstest.Page, want map[string]float64) {
	t.Helper()
	for _, row := range []struct{ name, label string }{
		{"agentpod_sandboxes_created_total", "source"},
		{"agentpod_sandboxes", "tier"},
		{"agentpod_wake_duration_seconds", "tier"},
		{"agentpod_hibernations_total", "outcome"},
		{"agentpod_pool_claims_total", "outcome"},
	} {
		for _, m := range p[row.name].GetMetric() {
			for _, l := range m.GetLabel() {
				key := row.name + " " + l.GetValue()
				if got := p.Sum(row.name, row.label, l.GetValue()); l.GetName() == row.label && got != want[key] {
					t.Errorf("%s: %v, want %v", key, got, want[key])
				}
			}
		}
	}
	for _, name := range []string{"agentpod_opencode_restarts_total", "agentpod_container_deaths_total", "agentpod_pool_size", "agentpod_pool_ready"} {
		if got := p.Sum(name); got != want[name] {
			t.Errorf("%s: %v, want %v", name, got, want[name])
		}
	}
}

// restartedOpenCode has every sandboxd say how often OpenCode has restarted.
func (w *world) restartedOpenCode(times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.OpenCode.Restarts = times
}

func TestWhatHappensToSandboxesIsCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(once(2))
	page := func() metricstest.Page { return metricstest.Of(t, m.Figures()) }
	w.pooled(m, 2)
	w.mustCreate(m, "pooled")
	elsewhere := request("elsewhere")
	elsewhere.Directory = "sub"
	if _, err := m.Create(t.Context(), elsewhere); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.restarts = 1 // the other member is of no use
	w.mu.Unlock()
	w.mustCreate(m, "replaced")
	w.mustCreate(m, "booted")
	for id, tier := range map[string]sandbox.Tier{"pooled": sandbox.TierFrozen, "elsewhere": sandbox.TierStopped, "replaced": sandbox.TierArchived} {
		if _, err := m.Hibernate(t.Context(), id, tier, false); err != nil {
			t.Fatal(err)
		}
	}
	counted(t, page(), map[string]float64{
		"agentpod_sandboxes_created_total pool": 1, "agentpod_sandboxes_created_total boot": 3,
		"agentpod_pool_claims_total claimed": 1, "agentpod_pool_claims_total unsuitable": 1,
		"agentpod_pool_claims_total failed": 1, "agentpod_pool_claims_total empty": 1, "agentpod_pool_size": 2,
		"agentpod_hibernations_total ok": 3,
		"agentpod_sandboxes running":     1, "agentpod_sandboxes frozen": 1, "agentpod_sandboxes stopped": 1, "agentpod_sandboxes archived": 1,
	})
	for _, id := range []string{"pooled", "elsewhere", "replaced", "booted"} { // the last one runs
		if _, err := m.Wake(t.Context(), id, nil, ""); err != nil {
			t.Fatal(err)
		}
	}
	w.restartedOpenCode(2)
	for range 2 {
		if _, err := m.Get(t.Context(), "booted"); err != nil {
			t.Fatal(err)
		}
	}
	w.setFail("Pause", errInjected)
	if _, err := m.Hibernate(t.Context(), "pooled", sandbox.TierFrozen, true); err == nil {
		t.Fatal("it could be paused")
	}
	w.die(m, "elsewhere", 137)
	after := page()
	counted(t, after, map[string]float64{
		"agentpod_sandboxes_created_total pool": 1, "agentpod_sandboxes_created_total boot": 3,
		"agentpod_pool_claims_total claimed": 1, "agentpod_pool_claims_total unsuitable": 1,
		"agentpod_pool_claims_total failed": 1, "agentpod_pool_claims_total empty": 1, "agentpod_pool_size": 2,
		"agentpod_hibernations_total ok": 3, "agentpod_hibernations_total failed": 1,
		"agentpod_wake_duration_seconds frozen": 1, "agentpod_wake_duration_seconds stopped": 1, "agentpod_wake_duration_seconds archived": 1,
		"agentpod_sandboxes running": 3, "agentpod_sandboxes stopped": 1,
		"agentpod_opencode_restarts_total": 2, "agentpod_container_deaths_total": 1,
	})
	if n := after.Sum("agentpod_sandboxes", "status", "stopped", "tier", "stopped"); n != 1 {
		t.Errorf("%v sandboxes stopped by themselves", n)
	}
}

func TestRestartsBeforeTheGatewayBeganAreNotItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.mustCreate(w.manager(), "a")
	w.restartedOpenCode(5)
	m := w.manager()
	page := func() metricstest.Page { return metricstest.Of(t, m.Figures()) }
	until(t, "it is adopted", func() bool { return m.find("a").current() == stateRunning })
	h, err := m.Use(t.Context(), "a", Looking)
	if err != nil {
		t.Fatal(err)
	}
	h.Release()
	for range 2 {
		if _, err := m.Get(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		w.restartedOpenCode(6)
	}
	if n := page().Sum("agentpod_opencode_restarts_total"); n != 1 {
		t.Errorf("%v restarts, want 1", n)
	}
}

func TestThereAreNoMoreSeriesOfAThousandSandboxes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.MaxRunning, s.MaxFrozen = 0, 0 })
	page := func() metricstest.Page { return metricstest.Of(t, m.Figures()) }
	before := page().Series()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(8)
	tiers := sleeps()
	for i := range 1000 {
		group.Go(func() error {
			req := sandbox.CreateRequest{ID: fmt.Sprint("box-", i), UserID: fmt.Sprint("user-", i)}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if _, err := m.Create(ctx, req); err != nil {
				return err
			}
			if _, err := m.Hibernate(ctx, req.ID, tiers[i%len(tiers)], true); err != nil {
				return err
			}
			_, err := m.Wake(ctx, req.ID, nil, "")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	after := page()
	if n := after.Sum("agentpod_sandboxes", "tier", "running"); n != 1000 {
		t.Fatalf("%v sandboxes run", n)
	}
	if n := after.Sum("agentpod_wake_duration_seconds"); n != 1000 {
		t.Errorf("%v have woken", n)
	}
	if n := after.Series(); n != before {
		t.Errorf("%d series with 1000 sandboxes, %d without", n, before)
	}
}
