// Package metrics has the figures that gateway and API both show to Prometheus, on
// a registry that each adds its own to.
package metrics

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/agentpod/agentpod/shared/daemon"
)

// Buckets are the upper bounds of how long something takes that may take a
// millisecond or a quarter of an hour, in seconds.
func Buckets() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900}
}

// statusLeft counts a request whose caller did not wait for the answer.
const statusLeft = 499

// Metrics are the figures of one server. Safe for concurrent use.
type Metrics struct {
	*prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	page     http.Handler
}

// New makes a registry with the figures of the process, its build, and its
// requests. It fails if more of them, which it registers too, have a name twice.
func New(more ...prometheus.Collector) (*Metrics, error) {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests that were answered, by route, method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "How long requests took, streams to their end.", Buckets: Buckets(),
		}, []string{"route"}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "agentpod_build_info", Help: "1, with the version of the program.",
	}, []string{"version"})
	build.WithLabelValues(daemon.Version()).Set(1)
	own := []prometheus.Collector{m.requests, m.duration, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	for _, c := range append(own, more...) {
		if err := m.Register(c); err != nil {
			return nil, fmt.Errorf("registering the figures: %w", err)
		}
	}
	m.page = promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
	return m, nil
}

// ServeHTTP shows the figures. Who may see them its caller has found out.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.page.ServeHTTP(w, r) }

// Count counts a request that is over. route is that of the server's table, which
// bounds how many there are; empty for a path that is no route's. answered says that
// a reply was begun, with that status.
func (m *Metrics) Count(r *http.Request, route string, answered bool, status int, took time.Duration) {
	if !answered && r.Context().Err() != nil {
		status = statusLeft
	}
	if route == "" {
		route = "none"
	}
	method := r.Method
	if !slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, method) {
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}
