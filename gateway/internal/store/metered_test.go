package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

func TestMeteredConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { t.Helper(); return store.NewMetered(newDirectory(t)) })
}

func TestCallsAreCountedByHowTheyEnded(t *testing.T) {
	t.Parallel()
	faults := storetest.NewFaults(newDirectory(t))
	s := store.NewMetered(faults)
	put := func(ctx context.Context, opts store.PutOptions) error {
		_, err := s.Put(ctx, "a/x", strings.NewReader("x"), 1, opts)
		return err
	}
	all := func() (n int, failed error) {
		for _, err := range s.List(t.Context(), "a/") {
			n, failed = n+1, errors.Join(failed, err)
		}
		return n, failed
	}
	if err := put(t.Context(), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), store.PutOptions{IfAbsent: true}); !errors.Is(err, store.ErrExists) {
		t.Fatal(err)
	}
	if _, err := s.Head(t.Context(), "a/y"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if n, err := all(); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if err := put(left, store.PutOptions{}); err == nil {
		t.Fatal("it was put for nobody")
	}
	faults.Down()
	if err := put(t.Context(), store.PutOptions{}); !errors.Is(err, store.ErrAway) {
		t.Fatal(err)
	}
	if _, err := all(); !errors.Is(err, store.ErrAway) {
		t.Fatal(err)
	}
	page := metricstest.Of(t, s.Figures())
	for _, c := range []struct {
		operation, outcome string
		want               float64
	}{
		{"put", "ok", 2},
		{"put", "failed", 1},
		{"put", "cancelled", 1},
		{"head", "ok", 1},
		{"list", "ok", 1},
		{"list", "failed", 1},
		{"get", "ok", 0},
		{"delete", "failed", 0},
	} {
		if n := page.Sum("agentpod_store_calls_total", "operation", c.operation, "outcome", c.outcome); n != c.want {
			t.Errorf("%s %s: %v, want %v", c.operation, c.outcome, n, c.want)
		}
	}
	if n := page.Sum("agentpod_store_call_duration_seconds", "operation", "put"); n != 4 {
		t.Errorf("%v puts took time, want 4", n)
	}
}
