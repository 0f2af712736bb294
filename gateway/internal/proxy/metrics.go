package proxy

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
)

// figures are what is counted of requests to OpenCode.
type figures struct {
	prometheus.Collector
	requests map[string]prometheus.Counter
	events   prometheus.Gauge
	upgraded prometheus.Gauge
}

func newFigures() figures {
	requests, rows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_proxy_requests_total", Help: "Requests that were carried to OpenCode in a sandbox, by how they ended.",
	}, "outcome", metrics.OK, metrics.Failed, metrics.Cancelled)
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "agentpod_proxy_open_streams", Help: "Event streams and upgraded connections, such as terminals, that are open.",
	}, []string{"kind"})
	return figures{
		Collector: metrics.Group{requests, open}, requests: rows,
		events: open.WithLabelValues("events"), upgraded: open.WithLabelValues("upgraded"),
	}
}

// Figures are those of the requests to OpenCode.
func (p *Proxy) Figures() prometheus.Collector { return p.figures }

// over counts a request that ended with an error or, if whole is not set, in the
// middle of its reply. left says that its caller has left.
func (f figures) over(err error, whole, left bool) {
	outcome := metrics.OK
	switch {
	case errors.Is(err, ErrClientGone), !whole && left:
		outcome = metrics.Cancelled
	case err != nil || !whole:
		outcome = metrics.Failed
	}
	f.requests[outcome].Inc()
}
