package metrics

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Group is several collectors as one.
type Group []prometheus.Collector

// Describe implements prometheus.Collector.
func (g Group) Describe(out chan<- *prometheus.Desc) {
	for _, c := range g {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (g Group) Collect(out chan<- prometheus.Metric) {
	for _, c := range g {
		c.Collect(out)
	}
}

// Counters makes a counter with a row for each of the values of its only label, so
// that every row is there from the start: of one that begins with its first event
// no rate shows that.
func Counters(opts prometheus.CounterOpts, label string, values ...string) (vec *prometheus.CounterVec, rows map[string]prometheus.Counter) {
	vec, rows = prometheus.NewCounterVec(opts, []string{label}), make(map[string]prometheus.Counter, len(values))
	for _, v := range values {
		rows[v] = vec.WithLabelValues(v)
	}
	return vec, rows
}

// The outcomes of a call to something outside.
const (
	OK        = "ok"
	Failed    = "failed"
	Cancelled = "cancelled" // its caller left
)

// Calls are the figures of calls to something outside. Safe for concurrent use.
type Calls struct {
	total  *prometheus.CounterVec
	took   *prometheus.HistogramVec
	rows   map[string]callRow // not changed once made
	proper func(error) bool
}

type callRow struct {
	outcomes map[string]prometheus.Counter
	took     prometheus.Observer
}

// NewCalls makes the figures NAME_calls_total and NAME_call_duration_seconds of calls
// to somebody, whose names the label has. An error that is a proper answer is no
// failure.
func NewCalls(name, label, whom string, proper func(error) bool, names ...string) *Calls {
	c := &Calls{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name + "_calls_total", Help: "Calls to " + whom + ", by what was asked and how it ended.",
		}, []string{label, "outcome"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name + "_call_duration_seconds", Help: "How long calls to " + whom + " took.", Buckets: Buckets(),
		}, []string{label}),
		rows: make(map[string]callRow, len(names)), proper: proper,
	}
	for _, n := range names {
		c.rows[n] = c.row(n)
	}
	return c
}

// Count counts a call that is over. ctx is its caller's.
func (c *Calls) Count(ctx context.Context, name string, took time.Duration, err error) {
	outcome := Failed
	switch {
	case err == nil || c.proper(err):
		outcome = OK
	case errors.Is(ctx.Err(), context.Canceled):
		outcome = Cancelled
	}
	row, ok := c.rows[name]
	if !ok {
		row = c.row(name)
	}
	row.outcomes[outcome].Inc()
	row.took.Observe(took.Seconds())
}

func (c *Calls) row(name string) callRow {
	row := callRow{outcomes: map[string]prometheus.Counter{}, took: c.took.WithLabelValues(name)}
	for _, outcome := range []string{OK, Failed, Cancelled} {
		row.outcomes[outcome] = c.total.WithLabelValues(name, outcome)
	}
	return row
}

// Describe implements prometheus.Collector.
func (c *Calls) Describe(out chan<- *prometheus.Desc) { Group{c.total, c.took}.Describe(out) }

// Collect implements prometheus.Collector.
func (c *Calls) Collect(out chan<- prometheus.Metric) { Group{c.total, c.took}.Collect(out) }
