package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/metrics"
)

// Metered is a Store that counts what another is asked. What was read of a body
// after Get has returned is in no figure, nor is what the caller of a List does.
type Metered struct {
	inner Store
	calls *metrics.Calls
}

var _ Store = (*Metered)(nil)

// NewMetered makes a Metered of a store.
func NewMetered(inner Store) *Metered {
	return &Metered{inner, metrics.NewCalls("agentpod_store", "operation", "the store", proper,
		"put", "get", "head", "list", "delete", "delete_prefix", "probe")}
}

// Figures are those of the calls.
func (m *Metered) Figures() prometheus.Collector { return m.calls }

// proper says whether an error is an answer and no fault of the store's.
func proper(err error) bool {
	return slices.ContainsFunc([]error{ErrNotFound, ErrExists, ErrChanged, ErrRange}, func(answer error) bool { return errors.Is(err, answer) })
}

// Put implements Store.
func (m *Metered) Put(ctx context.Context, key string, body io.Reader, size int64, opts PutOptions) (Info, error) {
	began := time.Now()
	info, err := m.inner.Put(ctx, key, body, size, opts)
	m.calls.Count(ctx, "put", time.Since(began), err)
	return info, err
}

// Get implements Store.
func (m *Metered) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	began := time.Now()
	body, info, err := m.inner.Get(ctx, key, r)
	m.calls.Count(ctx, "get", time.Since(began), err)
	return body, info, err
}

// Head implements Store.
func (m *Metered) Head(ctx context.Context, key string) (Info, error) {
	began := time.Now()
	info, err := m.inner.Head(ctx, key)
	m.calls.Count(ctx, "head", time.Since(began), err)
	return info, err
}

// List implements Store.
func (m *Metered) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var failure error
		var others time.Duration // the caller's
		began := time.Now()
		for info, err := range m.inner.List(ctx, prefix) {
			failure = err
			given := time.Now()
			goesOn := yield(info, err)
			others += time.Since(given)
			if !goesOn {
				break
			}
		}
		m.calls.Count(ctx, "list", time.Since(began)-others, failure)
	}
}

// Delete implements Store.
func (m *Metered) Delete(ctx context.Context, key string) error {
	began := time.Now()
	err := m.inner.Delete(ctx, key)
	m.calls.Count(ctx, "delete", time.Since(began), err)
	return err
}

// DeletePrefix implements Store.
func (m *Metered) DeletePrefix(ctx context.Context, prefix string) error {
	began := time.Now()
	err := m.inner.DeletePrefix(ctx, prefix)
	m.calls.Count(ctx, "delete_prefix", time.Since(began), err)
	return err
}

// Probe implements Store.
func (m *Metered) Probe(ctx context.Context) error {
	began := time.Now()
	err := m.inner.Probe(ctx)
	m.calls.Count(ctx, "probe", time.Since(began), err)
	return err
}
