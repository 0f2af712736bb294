package workspace

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/shared/metrics"
)

// outcomeUnchanged is that of a snapshot that would have been as the one before.
const outcomeUnchanged = "unchanged"

// figures are what is counted of snapshots and syncs.
type figures struct {
	prometheus.Collector
	syncs     prometheus.Histogram
	snapshots map[string]prometheus.Counter
	bytes     prometheus.Counter
	files     prometheus.Counter
}

func newFigures() *figures {
	f := &figures{
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "agentpod_sync_duration_seconds", Help: "How long it took to make a mirror equal to its workspace.", Buckets: metrics.Buckets(),
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentpod_snapshot_bytes_total", Help: "Bytes that were sent to the store for snapshots.",
		}),
		files: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentpod_snapshot_files_total", Help: "Files that are in the snapshots that were taken.",
		}),
	}
	taken, rows := metrics.Counters(prometheus.CounterOpts{
		Name: "agentpod_snapshots_total", Help: "Times that a sandbox was to be stored, by how that ended.",
	}, "outcome", metrics.OK, outcomeUnchanged, metrics.Failed, metrics.Cancelled)
	f.snapshots = rows
	f.Collector = metrics.Group{f.syncs, taken, f.bytes, f.files}
	return f
}

// Figures are those of the snapshots and syncs.
func (k *Keeper) Figures() prometheus.Collector { return k.figures }

// snapshot counts one that was to be taken. ctx is its caller's.
func (f *figures) snapshot(ctx context.Context, taken snapshot.Snapshot, err error) {
	outcome := metrics.OK
	switch {
	case err != nil && ctx.Err() != nil:
		outcome = metrics.Cancelled
	case err != nil:
		outcome = metrics.Failed
	case taken.Sent == 0:
		outcome = outcomeUnchanged
	default:
		f.bytes.Add(float64(taken.Sent))
		f.files.Add(float64(taken.Files))
	}
	f.snapshots[outcome].Inc()
}
