package httpapi

import (
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/timeline"
)

// newStages makes the figures of the stages of requests.
func newStages() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "agentpod_request_stage_duration_seconds", Help: "How long each stage of a request took, by its route.", Buckets: metrics.Buckets(),
	}, []string{"route", "stage"})
}

// newMessages makes the figure of the turns.
func newMessages() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "agentpod_message_duration_seconds", Buckets: metrics.Buckets(),
		Help: "How long messages took from their request to the end of the agent's turn, however that ended.",
	})
}

// count counts a request that is over, and what it did with its time.
func (a *API) count(c echo.Context, stages []timeline.Stage, took time.Duration) {
	a.figures.Count(c.Request(), c.Path(), c.Response().Committed, c.Response().Status, took)
	for _, s := range stages {
		a.stages.WithLabelValues(c.Path(), s.Name).Observe(s.Took.Seconds())
	}
}

// metrics shows the figures.
func (a *API) metrics(c echo.Context) error {
	a.figures.ServeHTTP(c.Response(), c.Request())
	return nil
}
