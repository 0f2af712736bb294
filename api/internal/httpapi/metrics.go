package httpapi

import (
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/metrics"
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

// What becomes of who signs in and of what a provider tells, beside metrics.OK and
// metrics.Failed.
const (
	outcomeRefused = "refused" // what was given is wrong
	outcomeLimited = "limited" // too many tries
	outcomeClock   = "clock"   // the provider's clock is off
)

// events are the figures of what happens at the routes.
type events struct {
	prometheus.Collector
	signIns map[string]prometheus.Counter
	hooks   map[string]prometheus.Counter
}

func newEvents() events {
	signIns, signInRows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_sign_ins_total", Help: "Tries to sign in with e-mail and password, by how they ended.",
	}, "outcome", metrics.OK, outcomeRefused, outcomeLimited, metrics.Failed)
	hooks, hookRows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_webhook_received_total", Help: "What providers told of their sandboxes, by how it was taken.",
	}, "outcome", metrics.OK, outcomeRefused, outcomeClock, metrics.Failed)
	return events{metrics.Group{signIns, hooks}, signInRows, hookRows}
}

// signedIn counts a try to sign in.
func (e events) signedIn(err error) {
	_, limited := errors.AsType[*account.LimitedError](err)
	switch {
	case err == nil:
		e.signIns[metrics.OK].Inc()
	case limited:
		e.signIns[outcomeLimited].Inc()
	case explainAuth(err).status < http.StatusInternalServerError:
		e.signIns[outcomeRefused].Inc()
	default:
		e.signIns[metrics.Failed].Inc()
	}
}

// told counts what a provider told.
func (e events) told(err error) {
	switch {
	case err == nil:
		e.hooks[metrics.OK].Inc()
	case sandbox.HasCode(err, sandbox.CodeClockSkew):
		e.hooks[outcomeClock].Inc()
	case explain(err).Code.Status() < http.StatusInternalServerError:
		e.hooks[outcomeRefused].Inc()
	default:
		e.hooks[metrics.Failed].Inc()
	}
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
