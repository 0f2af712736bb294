package httpapi

import (
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// metrics shows the figures to who runs the API.
func (a *API) metrics(c echo.Context) error {
	if !callerOf(c).Admin() {
		return sandbox.Errorf(sandbox.CodeForbidden, "only an admin or the service credential may read the figures")
	}
	a.figures.ServeHTTP(c.Response(), c.Request())
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
