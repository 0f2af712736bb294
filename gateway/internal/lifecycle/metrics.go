package lifecycle

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Where a sandbox that was created comes from.
const (
	fromPool = "pool"
	fromBoot = "boot"
)

// What became of a create's wish for a member of the pool.
const (
	claimClaimed    = "claimed"
	claimEmpty      = "empty"      // none was there
	claimUnsuitable = "unsuitable" // the sandbox wants what no member has
	claimFailed     = "failed"     // it was of no use
)

// outcomeBusy is that of a hibernation that somebody's work prevented.
const outcomeBusy = "busy"

// figures are what is counted of sandboxes. What there is of them at this moment is
// read when it is asked for.
type figures struct {
	prometheus.Collector
	created      map[string]prometheus.Counter
	claims       map[string]prometheus.Counter
	wakes        map[sandbox.Tier]prometheus.Observer
	hibernations *prometheus.CounterVec
	restarts     prometheus.Counter
	deaths       prometheus.Counter
}

// sleeps are the tiers of sandboxes that do not run.
func sleeps() []sandbox.Tier {
	return []sandbox.Tier{sandbox.TierFrozen, sandbox.TierStopped, sandbox.TierArchived}
}

func newFigures(m *Manager) *figures {
	f := &figures{wakes: map[sandbox.Tier]prometheus.Observer{}}
	created, rows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_sandboxes_created_total", Help: "Sandboxes that were created, from the pool or with a boot of their own.",
	}, "source", fromPool, fromBoot)
	f.created = rows
	claims, rows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_pool_claims_total", Help: "Creates that asked the pool, by what they got.",
	}, "outcome", claimClaimed, claimEmpty, claimUnsuitable, claimFailed)
	f.claims = rows
	wakes := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "agentpod_wake_duration_seconds", Help: "How long sandboxes took to wake, by the tier they slept in.", Buckets: metrics.Buckets(),
	}, []string{"tier"})
	f.hibernations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentpod_hibernations_total", Help: "Times that a sandbox was to be put to sleep, by tier and how that ended.",
	}, []string{"tier", "outcome"})
	for _, tier := range sleeps() {
		f.wakes[tier] = wakes.WithLabelValues(string(tier))
		for _, outcome := range []string{metrics.OK, metrics.Failed, outcomeBusy} {
			f.hibernations.WithLabelValues(string(tier), outcome)
		}
	}
	f.restarts = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "agentpod_opencode_restarts_total", Help: "Times that OpenCode ended by itself in a sandbox and was started again.",
	})
	f.deaths = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "agentpod_container_deaths_total", Help: "Times that a sandbox's container ended by itself.",
	})
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentpod_pool_size", Help: "How many sandboxes are to be ready ahead.",
	}, func() float64 { return float64(max(0, m.settings.Pool.Size)) })
	ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentpod_pool_ready", Help: "How many sandboxes are ready ahead.",
	}, func() float64 { return float64(m.pool.count()) })
	unstored := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentpod_unstored_seconds", Help: "Age of the oldest change in a sandbox that is not stored: what would be lost with the host.",
	}, func() float64 {
		since := m.oldestUnstored()
		if since.IsZero() {
			return 0
		}
		return time.Since(since).Seconds()
	})
	f.Collector = metrics.Group{created, claims, wakes, f.hibernations, f.restarts, f.deaths, size, ready, unstored, census{m}}
	return f
}

// Figures are those of the sandboxes and of the pool.
func (m *Manager) Figures() prometheus.Collector { return m.figures }

// census counts the sandboxes.
type census struct{ m *Manager }

func censusDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_sandboxes", "Sandboxes that there are, by status and tier.", []string{"status", "tier"}, nil)
}

// noTier is the label of a sandbox that is nowhere on the ladder.
const noTier = "none"

// Describe implements prometheus.Collector.
func (census) Describe(out chan<- *prometheus.Desc) { out <- censusDesc() }

// Collect implements prometheus.Collector.
func (c census) Collect(out chan<- prometheus.Metric) {
	type row struct {
		status sandbox.Status
		tier   sandbox.Tier
	}
	counts := map[row]int{
		{sandbox.StatusCreating, noTier}: 0, {sandbox.StatusRunning, sandbox.TierRunning}: 0,
		{sandbox.StatusSleeping, sandbox.TierFrozen}: 0, {sandbox.StatusSleeping, sandbox.TierStopped}: 0, {sandbox.StatusSleeping, sandbox.TierArchived}: 0,
		{sandbox.StatusStopped, sandbox.TierStopped}: 0, {sandbox.StatusError, noTier}: 0,
	}
	for _, b := range c.m.all() {
		b.mu.Lock()
		is := row{b.statusLocked(), b.state.Tier()}
		b.mu.Unlock()
		if is.tier == "" {
			is.tier = noTier
		}
		if is.status != "" {
			counts[is]++
		}
	}
	for is, n := range counts {
		out <- prometheus.MustNewConstMetric(censusDesc(), prometheus.GaugeValue, float64(n), string(is.status), string(is.tier))
	}
}

// slept counts that a sandbox was to be put to sleep.
func (f *figures) slept(tier sandbox.Tier, err error) {
	outcome := metrics.OK
	switch {
	case sandbox.HasCode(err, sandbox.CodeSandboxBusy):
		outcome = outcomeBusy
	case err != nil:
		outcome = metrics.Failed
	}
	f.hibernations.WithLabelValues(string(tier), outcome).Inc()
}

// woke counts that a sandbox woke from a tier.
func (f *figures) woke(from sandbox.Tier, took time.Duration) {
	if row := f.wakes[from]; row != nil {
		row.Observe(took.Seconds())
	}
}

// unknown is how often OpenCode has restarted in a run that began before the gateway.
const unknown = -1

// restarted takes notice of how often OpenCode has restarted in a run.
func (m *Manager) restarted(b *box, run Run, restarts int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cont.Run() != run {
		return
	}
	if b.restartsOf != run {
		b.restartsOf, b.restarts = run, 0
	}
	if b.restarts != unknown {
		m.figures.restarts.Add(float64(max(0, restarts-b.restarts)))
	}
	b.restarts = max(b.restarts, restarts)
}
