package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

const ttl = 600 * time.Millisecond

func settings(holder string) store.LeaseSettings {
	return store.LeaseSettings{Key: "lease.json", Holder: holder, TTL: ttl}
}

func mustAcquire(t *testing.T, s store.Store, holder string) *store.Lease {
	t.Helper()
	lease, err := store.Acquire(t.Context(), s, settings(holder))
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// hold renews a lease in the background until the returned function is called,
// which returns what Hold returned.
func hold(t *testing.T, lease *store.Lease) func() error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- lease.Hold(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestLeases(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	onS3 := prefixes(server)
	for name, open := range map[string]func(t *testing.T) store.Store{"on a directory": newDirectory, "on S3": onS3} {
		t.Run(name, func(t *testing.T) {
			t.Run("one that is renewed is not taken", func(t *testing.T) { leaseHeld(t, open(t)) })
			t.Run("one that expired is taken and lost", func(t *testing.T) { leaseExpired(t, open(t)) })
			t.Run("one that was released is taken at once", func(t *testing.T) { leaseReleased(t, open(t)) })
			t.Run("one of the same name is taken at once", func(t *testing.T) { leaseInherited(t, open(t)) })
			t.Run("one of eight who want it gets it", func(t *testing.T) { leaseRace(t, open(t)) })
			t.Run("one whose store is away for a while is kept", func(t *testing.T) { leaseAway(t, open(t)) })
			t.Run("one whose renewals get lost replies is kept", func(t *testing.T) { leaseReplyLost(t, open(t)) })
		})
	}
}

func leaseHeld(t *testing.T, s store.Store) {
	first := mustAcquire(t, s, "first")
	stop := hold(t, first)
	began := time.Now()
	for range 3 {
		_, err := store.Acquire(t.Context(), s, settings("second"))
		var held *store.HeldError
		if !errors.As(err, &held) || held.Holder != "first" {
			t.Fatalf("the error is %v", err)
		}
	}
	if took := time.Since(began); took > 3*ttl {
		t.Errorf("it took %v to see three renewals", took)
	}
	if !first.Held() {
		t.Error("it is not held")
	}
	if err := stop(); err != nil {
		t.Errorf("Hold returned %v", err)
	}
}

func leaseExpired(t *testing.T, s store.Store) {
	first := mustAcquire(t, s, "first") // and dies
	began := time.Now()
	second := mustAcquire(t, s, "second")
	if took := time.Since(began); took < ttl || took > 4*ttl {
		t.Errorf("it was taken over after %v", took)
	}
	if first.Held() || !second.Held() {
		t.Errorf("the first holds it: %v, the second: %v", first.Held(), second.Held())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := first.Hold(ctx); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("the first's Hold returned %v", err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("releasing what is lost: %v", err)
	}
	if !second.Held() {
		t.Error("the first released the second's")
	}
	hold(t, second)
}

func leaseReleased(t *testing.T, s store.Store) {
	first := mustAcquire(t, s, "first")
	stop := hold(t, first)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := first.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if first.Held() {
		t.Error("it is held after its release")
	}
	began := time.Now()
	mustAcquire(t, s, "second")
	if took := time.Since(began); took > ttl/2 {
		t.Errorf("it was taken after %v", took)
	}
	if err := first.Hold(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("holding what was released: %v", err)
	}
}

func leaseInherited(t *testing.T, s store.Store) {
	first := mustAcquire(t, s, "the same")
	began := time.Now()
	mustAcquire(t, s, "the same")
	if took := time.Since(began); took > ttl/2 {
		t.Errorf("it was taken after %v", took)
	}
	if err := first.Hold(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("the first's Hold returned %v", err)
	}
}

func leaseRace(t *testing.T, s store.Store) {
	for range 2 { // the second time over one that expired
		var mu sync.Mutex
		var winners []*store.Lease
		var stops []func() error
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				lease, err := store.Acquire(context.Background(), s, settings(fmt.Sprintf("racer %d", i)))
				var held *store.HeldError
				if err != nil {
					if !errors.As(err, &held) {
						t.Errorf("a loser's error is %v", err)
					}
					return
				}
				stop := hold(t, lease)
				mu.Lock()
				defer mu.Unlock()
				winners, stops = append(winners, lease), append(stops, stop)
			})
		}
		group.Wait()
		if len(winners) != 1 || !winners[0].Held() {
			t.Fatalf("%d won", len(winners))
		}
		if err := stops[0](); err != nil {
			t.Error(err)
		}
	}
}

func leaseAway(t *testing.T, s store.Store) {
	faults := storetest.NewFaults(s)
	lease := mustAcquire(t, faults, "first")
	before := faults.Calls()
	for i := range 4 { // several tries fit between a third of the TTL and its end
		faults.Fail(i+1, storetest.Before)
	}
	stop := hold(t, lease)
	waitFor(t, func() bool { return faults.Calls() >= before+6 })
	if !lease.Held() {
		t.Error("it was lost")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	faults.Down()
	stop = hold(t, lease)
	waitFor(t, func() bool { return !lease.Held() })
	faults.Up()
	waitFor(t, lease.Held) // nobody took it meanwhile
	faults.Down()
	waitFor(t, func() bool { return !lease.Held() })
	if err := stop(); err != nil {
		t.Error(err)
	}
	mustAcquire(t, s, "second")
	faults.Up()
	if err := lease.Hold(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("after somebody else took it, Hold returned %v", err)
	}
}

func leaseReplyLost(t *testing.T, s store.Store) {
	faults := storetest.NewFaults(s)
	lease := mustAcquire(t, faults, "first")
	before := faults.Calls()
	for i := range 3 {
		faults.Fail(4*i+1, storetest.ReplyLost)
	}
	stop := hold(t, lease)
	waitFor(t, func() bool { return faults.Calls() >= before+12 })
	if !lease.Held() {
		t.Error("it was lost")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for !done() {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			t.Fatal("it did not come about within 10 s")
		}
	}
}

// hanging is a store whose Put never returns before its context is done.
type hanging struct {
	store.Store
	hangs atomic.Bool
}

func (h *hanging) hang(hangs bool) { h.hangs.Store(hangs) }

func (h *hanging) Put(ctx context.Context, key string, body io.Reader, size int64, opts store.PutOptions) (store.Info, error) {
	if h.hangs.Load() {
		<-ctx.Done()
		return store.Info{}, ctx.Err()
	}
	return h.Store.Put(ctx, key, body, size, opts)
}

func TestALeaseWhoseStoreHangsExpiresInTimeAndIsHeldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &hanging{Store: newDirectory(t)}
		lease, err := store.Acquire(t.Context(), s, store.LeaseSettings{Key: "lease", Holder: "first"})
		if err != nil {
			t.Fatal(err)
		}
		s.hang(true)
		began := time.Now()
		stop := hold(t, lease)
		for lease.Held() {
			<-time.After(time.Second)
		}
		if took := time.Since(began); took < 25*time.Second || took > 35*time.Second {
			t.Errorf("a lease of 30 s expired after %v", took)
		}
		s.hang(false)
		<-time.After(15 * time.Second)
		if !lease.Held() {
			t.Error("it is not held again")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
