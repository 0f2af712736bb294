package webhook

import "github.com/prometheus/client_golang/prometheus"

// Figures are those of the events, as of when they are asked for.
func (s *Sender) Figures() prometheus.Collector { return figures{s} }

type figures struct{ sender *Sender }

func queueDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_webhook_queue", "Events that wait to be told to the API or are under way.", nil, nil)
}

func eventsDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_webhook_events_total", "Events for the API, by what became of them.", []string{"outcome"}, nil)
}

// Describe implements prometheus.Collector.
func (figures) Describe(out chan<- *prometheus.Desc) {
	out <- queueDesc()
	out <- eventsDesc()
}

// Collect implements prometheus.Collector.
func (f figures) Collect(out chan<- prometheus.Metric) {
	st := f.sender.Stats()
	out <- prometheus.MustNewConstMetric(queueDesc(), prometheus.GaugeValue, float64(st.Queued))
	for outcome, n := range map[string]uint64{"delivered": st.Sent, "failed": st.Failed, "dropped": st.Dropped, "forgotten": st.Forgotten} {
		out <- prometheus.MustNewConstMetric(eventsDesc(), prometheus.CounterValue, float64(n), outcome)
	}
}
