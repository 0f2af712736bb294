// Package storetest is what tests of the store, and of what uses it, need: a
// conformance suite, a store that fails when it is told to, and a real S3 server.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

// Fault is how a call fails.
type Fault int

const (
	// Before fails a call before it has any effect.
	Before Fault = iota
	// Midway lets a call begin: a Put reads half of its body and has no effect,
	// a Get's reader breaks in the middle, a List after the first object, and a
	// DeletePrefix has deleted the first object. It is Before with the others.
	Midway
	// ReplyLost lets a call have its effect, and fails it then.
	ReplyLost
	// DownAfter lets a call succeed, and fails all later ones.
	DownAfter
)

// String names a fault for test names.
func (f Fault) String() string {
	return [...]string{"before", "midway", "reply lost", "down after"}[f]
}

// EveryFault are all kinds of faults.
func EveryFault() []Fault { return []Fault{Before, Midway, ReplyLost, DownAfter} }

// errInjected is what injected faults have in common.
var errInjected = errors.New("injected")

// Faults is a store that fails when it is told to. It counts the calls of all
// methods together, from 1 on. Its methods can be called concurrently.
type Faults struct {
	inner store.Store

	mu    sync.Mutex
	calls int
	names []string
	plan  map[int]Fault
	down  bool
}

var _ store.Store = (*Faults)(nil)

// NewFaults wraps a store, with no fault planned.
func NewFaults(inner store.Store) *Faults {
	return &Faults{inner: inner, plan: map[int]Fault{}}
}

// Fail plans a fault of the n-th call from now on; the next one is the first.
func (f *Faults) Fail(n int, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan[f.calls+n] = fault
}

// Down makes all calls fail before they have any effect, until Up.
func (f *Faults) Down() { f.set(true) }

// Up ends Down, and what DownAfter did.
func (f *Faults) Up() { f.set(false) }

func (f *Faults) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Calls returns how many calls there were.
func (f *Faults) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Log returns the calls in their order, as "Put a/key".
func (f *Faults) Log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.names...)
}

// none is for a call that is not to fail.
const none Fault = -1

// begin counts a call and returns its fault.
func (f *Faults) begin(name, key string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.names = append(f.names, name+" "+key)
	fault, planned := f.plan[f.calls]
	switch {
	case f.down:
		return Before
	case !planned:
		return none
	}
	if fault == DownAfter {
		f.down = true
		return none
	}
	return fault
}

func injected(fault Fault, key string) error {
	return fmt.Errorf("%w: %w (%s) at %q", store.ErrAway, errInjected, fault, key)
}

// Put implements store.Store.
func (f *Faults) Put(ctx context.Context, key string, body io.Reader, size int64, opts store.PutOptions) (store.Info, error) {
	switch fault := f.begin("Put", key); fault {
	case Before:
		return store.Info{}, injected(fault, key)
	case Midway:
		_, _ = io.CopyN(io.Discard, body, max(size/2, 1)) // what is read of it is lost anyway
		return store.Info{}, injected(fault, key)
	case ReplyLost:
		if _, err := f.inner.Put(ctx, key, body, size, opts); err != nil {
			return store.Info{}, err
		}
		return store.Info{}, injected(fault, key)
	default:
		return f.inner.Put(ctx, key, body, size, opts)
	}
}

// Get implements store.Store.
func (f *Faults) Get(ctx context.Context, key string, r store.Range) (io.ReadCloser, store.Info, error) {
	fault := f.begin("Get", key)
	if fault == Before {
		return nil, store.Info{}, injected(fault, key)
	}
	body, info, err := f.inner.Get(ctx, key, r)
	switch {
	case err != nil || fault == none:
		return body, info, err
	case fault == ReplyLost:
		_ = body.Close()
		return nil, store.Info{}, injected(fault, key)
	}
	length := info.Size - r.Offset
	if r.Length > 0 {
		length = min(length, r.Length)
	}
	return &broken{ReadCloser: body, left: length / 2, err: injected(fault, key)}, info, nil
}

// broken is a reader that fails in the middle.
type broken struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *broken) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Head implements store.Store.
func (f *Faults) Head(ctx context.Context, key string) (store.Info, error) {
	fault := f.begin("Head", key)
	if fault == Before || fault == Midway {
		return store.Info{}, injected(fault, key)
	}
	info, err := f.inner.Head(ctx, key)
	if err == nil && fault == ReplyLost {
		return store.Info{}, injected(fault, key)
	}
	return info, err
}

// List implements store.Store.
func (f *Faults) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		fault := f.begin("List", prefix)
		if fault == Before {
			yield(store.Info{}, injected(fault, prefix))
			return
		}
		for info, err := range f.inner.List(ctx, prefix) {
			if !yield(info, err) || err != nil {
				return
			}
			if fault == Midway {
				yield(store.Info{}, injected(fault, prefix))
				return
			}
		}
		if fault == Midway || fault == ReplyLost {
			yield(store.Info{}, injected(fault, prefix))
		}
	}
}

// Delete implements store.Store.
func (f *Faults) Delete(ctx context.Context, key string) error {
	return f.do("Delete", key, func() error { return f.inner.Delete(ctx, key) }, nil)
}

// DeletePrefix implements store.Store.
func (f *Faults) DeletePrefix(ctx context.Context, prefix string) error {
	return f.do("DeletePrefix", prefix, func() error { return f.inner.DeletePrefix(ctx, prefix) }, func() error {
		for info, err := range f.inner.List(ctx, prefix) {
			if err != nil {
				return err
			}
			return f.inner.Delete(ctx, info.Key)
		}
		return nil
	})
}

// Probe implements store.Store.
func (f *Faults) Probe(ctx context.Context) error {
	return f.do("Probe", "", func() error { return f.inner.Probe(ctx) }, nil)
}

// do makes a call that returns nothing but an error. half is what it does if it
// fails midway, nil for nothing.
func (f *Faults) do(name, key string, call, half func() error) error {
	fault := f.begin(name, key)
	switch {
	case fault == none:
		return call()
	case fault == ReplyLost:
		if err := call(); err != nil {
			return err
		}
	case fault == Midway && half != nil:
		if err := half(); err != nil {
			return err
		}
	}
	return injected(fault, key)
}
