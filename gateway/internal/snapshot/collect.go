package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

// deleters is how many objects are deleted at once.
const deleters = 8

// Collect removes what no snapshot of a sandbox refers to, and returns how many
// objects that were. In this process it waits for a Take. One of another process
// is safe too, for before anything is removed the pointer is replaced by itself:
// a Take that began before fails at the pointer then, and one that begins
// afterwards uses nothing of what was listed. If a manifest cannot be read,
// nothing is removed; one from before a collapse that is damaged stays no longer
// than others then.
func (e *Engine) Collect(ctx context.Context, ref Ref) (int, error) {
	if err := ref.check(); err != nil {
		return 0, err
	}
	ctx, leave, err := e.enter(ctx, ref)
	if err != nil {
		return 0, err
	}
	defer leave()
	removed, err := e.collect(ctx, ref)
	if err != nil {
		return removed, interrupted(ctx, fmt.Errorf("collecting what no snapshot of %s uses: %w", ref.ID, err))
	}
	return removed, nil
}

func (e *Engine) collect(ctx context.Context, ref Ref) (int, error) {
	p, err := e.readPointer(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		p, err = &pointer{}, nil
	}
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for i, k := range p.Snapshots {
		m, err := e.readManifest(ctx, ref, k, true)
		if errors.Is(err, ErrDamaged) && k.BeforeCollapse != nil {
			// It goes with the next snapshot, or nothing could ever be removed again.
			p.Snapshots[i].BeforeCollapse = nil
			err = errors.Join(err, e.writePointer(ctx, ref, p))
		}
		if err != nil {
			return 0, err
		}
		used[manifestKey(ref.ID, k.ID)] = true
		for _, pack := range m.packs {
			used[packKey(ref.ID, pack.name)] = true
		}
	}
	var unused []string
	for _, prefix := range []string{packPrefix(ref.ID), manifestPrefix(ref.ID)} {
		for info, err := range e.store.List(ctx, prefix) {
			if err != nil {
				return 0, fmt.Errorf("listing %s: %w", prefix, err)
			}
			if !used[info.Key] {
				unused = append(unused, info.Key)
			}
		}
	}
	if len(unused) == 0 {
		return 0, nil
	}
	p.Damaged = slices.DeleteFunc(p.Damaged, func(name string) bool { return !used[packKey(ref.ID, name)] })
	if err := e.writePointer(ctx, ref, p); err != nil {
		return 0, err
	}
	group, inside := errgroup.WithContext(ctx)
	group.SetLimit(deleters)
	for _, key := range unused {
		group.Go(func() error {
			if err := e.store.Delete(inside, key); err != nil {
				return fmt.Errorf("deleting %s: %w", key, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return len(unused), nil
}

// Delete removes all snapshots of a sandbox, ending what is being done with
// them. It can be repeated until it succeeds. If they are of another incarnation
// it removes nothing: ErrSuperseded. An empty incarnation is any: that is for a
// sandbox of which nothing is known any more but its id.
func (e *Engine) Delete(ctx context.Context, ref Ref) error {
	checked := ref.check
	if ref.Incarnation == "" {
		checked = ref.checkID
	}
	if err := checked(); err != nil {
		return err
	}
	e.gates.Interrupt(ref.ID, ref.Incarnation, fmt.Errorf("%w: it is being deleted", ErrSuperseded))
	ctx, leave, err := e.enter(ctx, ref)
	if err != nil {
		return err
	}
	defer leave()
	if ref.Incarnation != "" {
		_, err = e.readPointer(ctx, ref)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("deleting the snapshots of %s: %w", ref.ID, err)
	}
	// The pointer first: from then on nothing refers to what is half deleted.
	err = e.store.Delete(ctx, pointerKey(ref.ID))
	for _, prefix := range []string{manifestPrefix(ref.ID), packPrefix(ref.ID)} {
		if err == nil {
			err = e.store.DeletePrefix(ctx, prefix)
		}
	}
	if err != nil {
		return fmt.Errorf("deleting the snapshots of %s: %w", ref.ID, err)
	}
	return nil
}
