package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Delete removes a sandbox with everything that it has: whatever runs on it is
// ended first, a create included. Deleting what is not there is fine. When the
// engine or the store is away the sandbox is gone for callers all the same, the
// error says what must be done again, and the gateway does it by itself too.
func (m *Manager) Delete(ctx context.Context, id string) error {
	if err := sandbox.CheckID(id); err != nil {
		return err
	}
	b := m.find(id)
	if b == nil {
		// A mirror may be there all the same, such as the Cloudflare worker's.
		return m.purge(ctx, Record{}, id, true)
	}
	b.mu.Lock()
	b.unwanted = true
	b.mu.Unlock()
	b.end(ErrDeleted)
	done := make(chan error, 1)
	m.work.Go(func() {
		// Once asked for it is done, whether or not its caller waits for its turn.
		done <- m.serially(m.base, b, true, func(ctx context.Context) error { return m.destroy(ctx, b) })
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return waitError(ctx)
	}
}

// destroy removes container, volume, what is stored and the record, in that
// order, so that what is interrupted is found again. The caller holds serial.
func (m *Manager) destroy(ctx context.Context, b *box) error {
	b.mu.Lock()
	gone, st, rec, run := b.gone, b.state, b.rec, b.cont.Run()
	unreadable := b.unreadable
	// What a create has begun and nobody wants deleted is only taken back.
	whole := b.unwanted || rec.Phase != PhaseCreating || unreadable
	b.mu.Unlock()
	if gone {
		return nil
	}
	b.end(ErrDeleted)
	if st == stateAbsent {
		m.forget(b)
		return nil
	}
	if err := m.become(b, stateDeleting, false); err != nil {
		return err
	}
	// A delete that was asked for is finished, whoever leaves meanwhile.
	ctx = context.WithoutCancel(ctx)
	if whole && rec.Phase != PhaseDeleting && !unreadable {
		// So that a restart goes on with it. A store that cannot be written must not
		// keep anything from being deleted: that frees space.
		if err := m.save(ctx, b, func(r *Record) { r.Phase = PhaseDeleting }); err != nil {
			m.log.WarnContext(ctx, "a delete could not be noted", "sandboxId", b.id, "error", err)
		}
	}
	b.stopPersisting()
	m.links.Drop(run)
	if err := m.removeFromEngine(ctx, rec, b.id); err != nil {
		return err
	}
	if err := m.removeVolumes(ctx, b.id, rec); err != nil {
		return err
	}
	if err := m.purge(ctx, rec, b.id, whole); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	if err := m.store.Delete(ctx, b.id); err != nil {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the sandbox's record could not be removed; delete it again").WithCause(err)
	}
	if err := m.become(b, stateAbsent, false); err != nil {
		return err
	}
	m.notices.Drop(b.id, rec.Incarnation)
	if st != stateCreating {
		m.log.InfoContext(ctx, "deleted", "sandboxId", b.id, "userId", rec.UserID)
		m.notify(rec, sandbox.EventSandboxDeleted, nil)
	}
	m.forget(b)
	return nil
}

// purge removes what is stored of a sandbox but its record; of a create that is
// taken back only what that has made.
func (m *Manager) purge(ctx context.Context, rec Record, id string, whole bool) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Purge)
	defer cancel()
	ref := rec.ref()
	ref.SandboxID = id // a record that cannot be read has none
	if !whole {
		return m.workspaces.Undo(ctx, ref)
	}
	return m.workspaces.Delete(ctx, ref)
}

// removeVolumes removes every volume of a sandbox: those that its record names,
// whatever they are called, and those of its id, which a record that cannot be read
// may name.
func (m *Manager) removeVolumes(ctx context.Context, id string, rec Record) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	volumes, err := m.runtime.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if sandboxOfVolume(v) != id && !rec.names(v) {
			continue
		}
		if err := m.runtime.RemoveVolume(ctx, v); err != nil && !errors.Is(err, ErrNoContainer) {
			return err
		}
	}
	return nil
}

// names says whether the record has a volume.
func (r Record) names(volume string) bool {
	return r.Volume == volume || slices.Contains(r.GivenUp, volume) || slices.Contains(r.Removing, volume)
}

// removeGoing removes the volumes that nothing needs any more; one that cannot be
// removed keeps none of the others. The caller holds serial.
func (m *Manager) removeGoing(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	var left []string
	var errs []error
	for _, name := range b.record().Removing {
		if err := m.removeDisk(ctx, name); err != nil {
			left, errs = append(left, name), append(errs, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.Removing = left // written with the next change
	return errors.Join(errs...)
}

// removeDisk removes a volume and, of one that was made for the pool, the mark that
// says that it is free.
func (m *Manager) removeDisk(ctx context.Context, name string) error {
	names := []string{name}
	if is, _ := memberVolume(name); is {
		names = append(names, name+freeSuffix)
	}
	for _, name := range names {
		if err := m.runtime.RemoveVolume(ctx, name); err != nil && !errors.Is(err, ErrNoContainer) {
			return err
		}
	}
	return nil
}

// removeFromEngine removes a sandbox's container and the volume of its record.
func (m *Manager) removeFromEngine(ctx context.Context, rec Record, id string) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	// By name: a create that was interrupted has not noted the container's id.
	cont, err := m.runtime.Find(ctx, id)
	switch {
	case errors.Is(err, ErrNoContainer):
		cont = Container{ID: rec.ContainerID} // it has the name of a member of the pool still
	case err != nil:
		return err
	}
	if cont.ID != "" {
		if err := m.runtime.Remove(ctx, cont.ID); err != nil && !errors.Is(err, ErrNoContainer) {
			return err
		}
	}
	// A record that cannot be read does not say which volume it is.
	if name := cmp.Or(rec.Volume, cont.Volume); name != "" {
		return m.removeDisk(ctx, name)
	}
	return nil
}
