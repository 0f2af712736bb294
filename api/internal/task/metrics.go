package task

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
)

// figures are what is counted of tasks.
type figures struct {
	prometheus.Collector
	ended map[string]prometheus.Counter // by final status
}

func newFigures(s *Service) figures {
	ended, rows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_tasks_total", Help: "Tasks that have ended, by how; each is counted by the process that ended it.",
	}, "state", string(Completed), string(Failed), string(Cancelled))
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentpod_tasks_open", Help: "Tasks that run or wait in this process.",
	}, func() float64 { return float64(s.Active()) })
	return figures{metrics.Group{ended, open}, rows}
}

// Figures are those of the tasks.
func (s *Service) Figures() prometheus.Collector { return s.figures }
