// Package mirror keeps a copy of a sandbox's workspace in a store in the layout
// of the Cloudflare worker: one object a file, workspaces/ID/relative/path. So a
// sandbox can move between the worker and the gateway, both ways. It is an
// export: what survives a host is in the snapshots.
//
// A sealed index says which of the objects are the gateway's own, for only those
// are ever deleted. Neither what a tree says is believed nor what lies in the
// bucket. docs/mirror-format.md has the format.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/agentpod/agentpod/gateway/internal/gate"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// ErrConflict is for a call during which somebody else changed the mirror. It
// can be tried again.
var ErrConflict = errors.New("the sandbox's mirror was changed meanwhile")

// Settings are what can be chosen. Zero values mean the defaults.
type Settings struct {
	// Exclude are names: a path with an element that is exactly one of them is
	// not mirrored. Nil means DefaultExclude, empty that nothing is excluded.
	Exclude []string
	// Parallel is how many objects of a sandbox are sent, read or deleted at
	// once; the default is 16.
	Parallel int
	// Margin is how long before the listing a file must have been changed last
	// to be trusted not to have changed since; the default is 1 s. It has to be
	// more than the clocks of gateway and sandbox are apart.
	Margin time.Duration
	// MaxEntries, MaxNames and MaxBytes bound a workspace and what is imported:
	// everything that is listed (default 500 000), the bytes of the mirrored
	// files' paths (64 MiB), and of their content (256 GiB).
	MaxEntries int
	MaxNames   int64
	MaxBytes   int64
	// Log is told what was skipped and worked around; the default is nobody.
	Log *slog.Logger
}

// DefaultExclude returns the names that are excluded if nothing is said: those
// of the worker, which has them too.
func DefaultExclude() []string {
	return []string{
		"node_modules", ".git", "__pycache__", ".cache", "dist", "build", ".next", ".nuxt", "target", ".opencode", ".DS_Store",
	}
}

func (s Settings) withDefaults() Settings {
	if s.Exclude == nil {
		s.Exclude = DefaultExclude()
	}
	s.Parallel = orDefault(s.Parallel, 16)
	s.Margin = orDefault(s.Margin, time.Second)
	s.MaxEntries = orDefault(s.MaxEntries, 500_000)
	s.MaxNames = orDefault(s.MaxNames, 64<<20)
	s.MaxBytes = orDefault(s.MaxBytes, 256<<30)
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	return s
}

func orDefault[T int | int64 | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

const (
	// smallFile is up to what size in bytes a file is held in memory, so that
	// many can be on their way at once. Larger ones are streamed.
	smallFile = 1 << 20
	// memory is how many bytes of small files may be on their way to the store
	// at once, in all mirrors together.
	memory = 32 << 20
	// streams is how many large files may be. A sandbox that sends one slowly
	// keeps a place, so they must not be able to keep all that the store has.
	streams = 8
)

// Mirror makes and reads mirrors. Its methods can be called concurrently; those
// that change the mirror of one sandbox wait for each other.
type Mirror struct {
	store    store.Store
	sealer   snapshot.Sealer
	settings Settings
	exclude  map[string]bool
	gates    gate.Gates
	budget   *semaphore.Weighted // bytes of small files on their way
	streams  chan struct{}       // held while a large file is sent
	now      func() time.Time
}

// New makes a Mirror. The store should retry by itself (store.Retrier).
func New(s store.Store, sealer snapshot.Sealer, settings Settings) *Mirror {
	settings = settings.withDefaults()
	exclude := make(map[string]bool, len(settings.Exclude))
	for _, name := range settings.Exclude {
		exclude[name] = true
	}
	return &Mirror{
		store: s, sealer: sealer, settings: settings, exclude: exclude,
		budget: semaphore.NewWeighted(memory), streams: make(chan struct{}, streams), now: time.Now,
	}
}

// Result is what a sync came to.
type Result struct {
	Files   int64 // in the mirror, and the gateway's own
	Skipped int64 // excluded, not regular, or with a name that the store cannot hold
	Bytes   int64 // of Files' content
	Sent    int64 // bytes of content that this call sent
	Deleted int   // objects that this call deleted
}

// prefixOf returns what the keys of a sandbox's files begin with.
func prefixOf(id string) string { return "workspaces/" + id + "/" }

func checkID(id string) error {
	if err := sandbox.CheckID(id); err != nil {
		return fmt.Errorf("a mirror's sandbox: %w", err)
	}
	return nil
}

func check(ref snapshot.Ref) error {
	if err := checkID(ref.ID); err != nil {
		return err
	}
	if ref.Incarnation == "" || len(ref.Incarnation) > 200 {
		return fmt.Errorf("a mirror's sandbox %s has no usable incarnation", ref.ID)
	}
	return nil
}

// alone makes a call while nobody else works on the sandbox's mirror.
func (m *Mirror) alone(ctx context.Context, ref snapshot.Ref, doing string, call func(context.Context) error) error {
	if err := check(ref); err != nil {
		return err
	}
	return m.inside(ctx, ref, doing, call)
}

// inside is alone for a ref that was checked.
func (m *Mirror) inside(ctx context.Context, ref snapshot.Ref, doing string, call func(context.Context) error) error {
	ctx, leave, err := m.gates.Enter(ctx, ref.ID, ref.Incarnation)
	if err != nil {
		return fmt.Errorf("waiting for what is done with the sandbox's mirror: %w", err)
	}
	defer leave()
	err = call(ctx)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return fmt.Errorf("%s the mirror of %s: %w", doing, ref.ID, err)
}

// Begin makes a sandbox's mirror that of this incarnation, which owns nothing of
// it yet, whatever an earlier one left. It belongs into a create, before the
// first Sync or Import; for a mirror that was begun it does nothing.
func (m *Mirror) Begin(ctx context.Context, ref snapshot.Ref) error {
	return m.alone(ctx, ref, "beginning", func(ctx context.Context) error {
		at, err := m.claim(ctx, ref)
		superseded := errors.Is(err, snapshot.ErrSuperseded)
		if err != nil && !superseded {
			return err
		}
		if superseded || at.damaged {
			return m.writeIndex(ctx, ref, &index{etag: at.etag})
		}
		return nil
	})
}

// Exists tells whether there is a mirror of a sandbox, whoever wrote it: any
// object under workspaces/ID/.
func (m *Mirror) Exists(ctx context.Context, id string) (bool, error) {
	if err := checkID(id); err != nil {
		return false, err
	}
	for _, err := range m.store.List(ctx, prefixOf(id)) {
		if err != nil {
			return false, fmt.Errorf("looking for a mirror of %s: %w", id, err)
		}
		return true, nil
	}
	return false, nil
}

// Last returns what the last Sync or Import that succeeded came to, without Sent
// and Deleted; it is all 0 if there was none. Its errors are the store's,
// snapshot.ErrSuperseded, and snapshot.ErrDamaged.
func (m *Mirror) Last(ctx context.Context, ref snapshot.Ref) (Result, error) {
	if err := check(ref); err != nil {
		return Result{}, err
	}
	at, err := m.readIndex(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return Result{}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("looking at the mirror of %s: %w", ref.ID, err)
	}
	return at.result, nil
}

// Delete removes all objects of a sandbox's mirror, whoever wrote them, and the
// index, ending what is being done with it. It can be repeated until it
// succeeds. If the mirror is another incarnation's, nothing is removed:
// snapshot.ErrSuperseded. An empty incarnation is any: that is for a sandbox of
// which nothing is known any more but its id.
func (m *Mirror) Delete(ctx context.Context, ref snapshot.Ref) error { return m.remove(ctx, ref, true) }

// Forget is Delete for a mirror that is to be left as it lies: only the index is
// removed, so that nothing in it is the gateway's own any more.
func (m *Mirror) Forget(ctx context.Context, ref snapshot.Ref) error {
	return m.remove(ctx, ref, false)
}

func (m *Mirror) remove(ctx context.Context, ref snapshot.Ref, files bool) error {
	anybody := ref.Incarnation == ""
	checked := func() error { return check(ref) }
	if anybody {
		checked = func() error { return checkID(ref.ID) }
	}
	if err := checked(); err != nil {
		return err
	}
	m.gates.Interrupt(ref.ID, ref.Incarnation, fmt.Errorf("%w: it is being deleted", snapshot.ErrSuperseded))
	return m.inside(ctx, ref, "deleting", func(ctx context.Context) error {
		if !anybody {
			_, err := m.readIndex(ctx, ref)
			if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, snapshot.ErrDamaged) {
				return err
			}
		}
		// The index first: from then on a sync in another process fails.
		if err := m.store.Delete(ctx, indexKey(ref.ID)); err != nil || !files {
			return err
		}
		return m.store.DeletePrefix(ctx, prefixOf(ref.ID))
	})
}
