package store_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// peakHeap returns by how many bytes the heap in use grew at most during a call.
func peakHeap(call func()) uint64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticks := time.NewTicker(5 * time.Millisecond)
		defer ticks.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse))
			select {
			case <-ticks.C:
			case <-done:
				return
			}
		}
	}()
	call()
	close(done)
	<-ended
	return peak.Load() - min(peak.Load(), before.HeapInuse)
}

func Test100MBGoThroughWithBoundedMemory(t *testing.T) {
	const size, limit = 100 << 20, 64 << 20
	server := storetest.StartServer(t, storetest.ServerOptions{})
	for name, s := range map[string]store.Store{"a directory": newDirectory(t), "S3": newS3(t, server.Settings())} {
		for how, said := range map[string]int64{"known": size, "unknown": -1} {
			var put store.Info
			began := time.Now()
			grown := peakHeap(func() {
				var err error
				put, err = s.Put(t.Context(), "large", io.LimitReader(rand.NewChaCha8([32]byte{1}), size), said, store.PutOptions{})
				if err != nil {
					t.Fatal(err)
				}
			})
			t.Logf("%s: putting 100 MB of %s size took %v and %d MB of heap", name, how, time.Since(began).Round(time.Millisecond), grown>>20)
			if grown > limit || put.Size != size {
				t.Errorf("%s: putting %d bytes took %d of memory", name, put.Size, grown)
			}
			got := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
			began = time.Now()
			grown = peakHeap(func() {
				body, _, err := s.Get(t.Context(), "large", store.Range{})
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				if !sameBytes(t, body, got) {
					t.Errorf("%s: it came back as something else", name)
				}
			})
			t.Logf("%s: getting it took %v and %d MB of heap", name, time.Since(began).Round(time.Millisecond), grown>>20)
			if grown > limit {
				t.Errorf("%s: getting took %d of memory", name, grown)
			}
		}
	}
}

func sameBytes(t *testing.T, a, b io.Reader) bool {
	t.Helper()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return errA == errB //nolint:errorlint // both are io's own
		}
	}
}
