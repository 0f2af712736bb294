package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// figures is what /metrics shows.
type figures struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	page     http.Handler
}

// newFigures registers the API's figures; without a registry it makes one.
func newFigures(registry *prometheus.Registry, providers *provider.Registry) (*figures, error) {
	if registry == nil {
		registry = prometheus.NewRegistry()
	}
	f := &figures{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests that were answered, by route, method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "How long requests took, streams to their end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900},
		}, []string{"route"}),
		page: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}
	for _, c := range []prometheus.Collector{
		f.requests, f.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), availability{providers},
	} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering the figures: %w", err)
		}
	}
	return f, nil
}

// statusLeft counts a request whose caller did not wait for the answer.
const statusLeft = 499

// count counts a request that is over. Its labels are bounded whatever a caller
// sends: a path that is no route's, or that was refused before, is "none".
func (f *figures) count(c echo.Context, took time.Duration) {
	r, route, status := c.Request(), c.Path(), c.Response().Status
	if route == "" {
		route = "none"
	}
	method := r.Method
	if !slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, method) {
		method = "other"
	}
	if !c.Response().Committed && r.Context().Err() != nil {
		status = statusLeft
	}
	f.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	f.duration.WithLabelValues(route).Observe(took.Seconds())
}

// metrics shows the figures to who runs the API.
func (a *API) metrics(c echo.Context) error {
	if !callerOf(c).Admin() {
		return sandbox.Errorf(sandbox.CodeForbidden, "only an admin or the service credential may read the figures")
	}
	a.figures.page.ServeHTTP(c.Response(), c.Request())
	return nil
}

// availability shows which providers answer, as of when it is asked.
type availability struct{ providers *provider.Registry }

// Describe implements prometheus.Collector.
func (availability) Describe(out chan<- *prometheus.Desc) { out <- availabilityDesc() }

// Collect implements prometheus.Collector.
func (a availability) Collect(out chan<- prometheus.Metric) {
	for name, s := range a.providers.States() {
		value := 0.0
		if s.Available {
			value = 1
		}
		out <- prometheus.MustNewConstMetric(availabilityDesc(), prometheus.GaugeValue, value, name)
	}
}

func availabilityDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_provider_available", "1 if the provider is configured and answers.", []string{"provider"}, nil)
}
