package sandboxes

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// measureTimeout bounds one look at the storage of all users.
const measureTimeout = 30 * time.Second

// Measure looks what the sandboxes of each user take up in the store, until ctx
// ends. It is what their newest snapshots hold; those of a provider that cannot
// list them are not known.
func (s *Service) Measure(ctx context.Context) {
	tick := time.NewTicker(s.settings.MeasureEvery)
	defer tick.Stop()
	for {
		if sums, err := s.measure(ctx); err == nil {
			s.storage.set(sums)
		} else if ctx.Err() == nil { // whether the provider is away is told elsewhere
			s.deps.Log.DebugContext(ctx, "the storage of the users could not be looked at", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// measure returns the bytes of each user.
func (s *Service) measure(ctx context.Context) (map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	backend, err := s.deps.Backends.Backend(provider.Docker)
	if err != nil {
		return nil, err //nolint:wrapcheck // the registry says what it was doing
	}
	sums := map[string]int64{}
	opts := sandbox.ListOptions{Limit: listLimit}
	for {
		page, err := backend.List(ctx, opts)
		if err != nil {
			return nil, err //nolint:wrapcheck // the client says what it was doing
		}
		for _, info := range page.Sandboxes {
			if info.LastSnapshot != nil {
				sums[info.UserID] += max(0, info.LastSnapshot.Bytes)
			}
		}
		if page.NextCursor <= opts.Cursor { // "" at the end
			return sums, nil
		}
		opts.Cursor = page.NextCursor
	}
}

// storage shows how much the users store, as of the last look: a user is no label,
// as there may be any number.
type storage struct {
	mu    sync.Mutex
	bytes []float64 // of each user, the most first
}

func (s *storage) set(sums map[string]int64) {
	all := make([]float64, 0, len(sums))
	for _, n := range sums {
		all = append(all, float64(n))
	}
	slices.SortFunc(all, func(a, b float64) int { return cmp.Compare(b, a) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes = all
}

// Figures are those of the storage.
func (s *Service) Figures() prometheus.Collector { return &s.storage }

// ranks is how many users are shown by themselves.
const ranks = 5

// storageBounds are the buckets of the histogram, in bytes.
func storageBounds() []float64 {
	return []float64{1e6, 1e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 1e11}
}

func storageDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_user_storage_bytes", "How many bytes the users store, each user once, as of the last look.", nil, nil)
}

func topDesc() *prometheus.Desc {
	return prometheus.NewDesc("agentpod_user_storage_top_bytes", "How many bytes those users store who store the most.", []string{"rank"}, nil)
}

// Describe implements prometheus.Collector.
func (*storage) Describe(out chan<- *prometheus.Desc) {
	out <- storageDesc()
	out <- topDesc()
}

// Collect implements prometheus.Collector.
func (s *storage) Collect(out chan<- prometheus.Metric) {
	s.mu.Lock()
	all := s.bytes // never changed
	s.mu.Unlock()
	buckets, sum := map[float64]uint64{}, 0.0
	for _, bound := range storageBounds() {
		buckets[bound] = 0
	}
	for _, n := range all {
		sum += n
		for bound := range maps.Keys(buckets) {
			if n <= bound {
				buckets[bound]++
			}
		}
	}
	out <- prometheus.MustNewConstHistogram(storageDesc(), uint64(len(all)), sum, buckets)
	for i := range ranks {
		n := 0.0
		if i < len(all) {
			n = all[i]
		}
		out <- prometheus.MustNewConstMetric(topDesc(), prometheus.GaugeValue, n, strconv.Itoa(i+1))
	}
}
