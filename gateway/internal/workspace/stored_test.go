package workspace

import (
	"crypto/sha256"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// objects returns the hashes of what is stored under a prefix, by key.
func objects(t *testing.T, s store.Store, prefix string) map[string][sha256.Size]byte {
	t.Helper()
	all := map[string][sha256.Size]byte{}
	for _, key := range storetest.MustList(t, s, prefix) {
		all[key] = sha256.Sum256(get(t, s, key))
	}
	return all
}

// wantObjects fails a test if other objects are stored under a prefix than before.
func wantObjects(t *testing.T, s store.Store, prefix string, want map[string][sha256.Size]byte) {
	t.Helper()
	got := objects(t, s, prefix)
	for key, hash := range want {
		if got[key] != hash {
			t.Errorf("%s was changed or is gone", key)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s is new", key)
		}
	}
}

// without returns the objects that are of no sandbox of that id.
func without(all map[string][sha256.Size]byte, id string) map[string][sha256.Size]byte {
	rest := map[string][sha256.Size]byte{}
	for key, hash := range all {
		switch {
		case strings.HasPrefix(key, "snapshots/"+id+"/"), strings.HasPrefix(key, "mirrors/"+id+"/"), strings.HasPrefix(key, "workspaces/"+id+"/"):
		default:
			rest[key] = hash
		}
	}
	return rest
}

// most is how many bytes of memory anything may take that is done for a sandbox,
// with the garbage that the collector has not come to yet.
const most = 200 << 20

func wantLittle(t *testing.T, bytes uint64) {
	t.Helper()
	if bytes > most {
		t.Errorf("it took %d MiB of memory, and %d are allowed", bytes>>20, most>>20)
	}
}

// peak returns the most memory of Go's that was in use while fn ran, above what
// was in use before.
func peak(fn func()) uint64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most.Store(max(most.Load(), now.HeapInuse+now.StackInuse))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	fn()
	close(stop)
	<-stopped
	used := before.HeapInuse + before.StackInuse
	return most.Load() - min(most.Load(), used)
}
