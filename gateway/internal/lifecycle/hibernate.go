package lifecycle

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// settle puts a sandbox to sleep in a tier, at least. Whatever fails, it stays
// as it is: nothing is stopped before the store can be written, no container is
// removed before its snapshot is committed. The caller holds serial.
func (m *Manager) settle(ctx context.Context, b *box, tier sandbox.Tier, force bool) error {
	began, from := time.Now(), b.current()
	var err error
	switch {
	case from == stateLost:
		return lostError(b.id, b.lastErrorNow())
	case from == stateCreating || !from.visible():
		return sandbox.Errorf(sandbox.CodeConflict, "the sandbox %q does not run yet; try again when it has been created", b.id)
	case from == stateArchived || depth(from.Tier()) >= depth(tier):
		return nil
	case tier == sandbox.TierFrozen:
		err = m.freeze(ctx, b, force)
	default:
		err = m.putDown(ctx, b, from, tier, force)
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	rec := b.rec
	b.lastError = ""
	b.mu.Unlock()
	m.log.Info("put to sleep", "sandboxId", b.id, "tier", tier, "duration", time.Since(began))
	m.notify(rec, sandbox.EventSandboxHibernated, map[string]any{"tier": tier})
	return nil
}

// putDown goes on from frozen.
func (m *Manager) putDown(ctx context.Context, b *box, from state, tier sandbox.Tier, force bool) error {
	if from != stateStopped {
		if err := m.stop(ctx, b, force); err != nil {
			return err
		}
	}
	if tier != sandbox.TierArchived {
		return nil
	}
	return m.archive(ctx, b)
}

// beginSettling closes the sandbox to new requests, unless one came meanwhile.
func (m *Manager) beginSettling(b *box, force bool) (was state, err error) {
	b.mu.Lock()
	was = b.state
	if b.inUse > 0 && !force {
		b.mu.Unlock()
		return was, sandbox.Errorf(sandbox.CodeSandboxBusy, "something is being done in the sandbox %q", b.id)
	}
	err = m.becomeLocked(b, stateSettling, true)
	b.mu.Unlock()
	if err == nil {
		b.stopPersisting()
	}
	return was, err
}

// freeze pauses the container. Nothing is written: memory and disk stay.
func (m *Manager) freeze(ctx context.Context, b *box, force bool) error {
	if _, err := m.beginSettling(b, force); err != nil {
		return err
	}
	b.mu.Lock()
	cont := b.cont
	b.mu.Unlock()
	if err := m.pause(ctx, cont); err != nil {
		_ = m.become(b, stateRunning, true)
		return atStep(ctx, "container", err)
	}
	return m.become(b, stateFrozen, true)
}

func (m *Manager) pause(ctx context.Context, cont Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	err := m.runtime.Pause(ctx, cont.ID)
	if err == nil {
		return nil
	}
	// Perhaps only the answer was lost: a request to what passes for running would
	// hang then.
	if now, inspectErr := m.runtime.Inspect(ctx, cont.ID); inspectErr == nil && now.Run() == cont.Run() && now.State == ContainerPaused {
		return nil
	}
	return err
}

// stop ends every process of a sandbox, stores what it has, and stops its
// container.
func (m *Manager) stop(ctx context.Context, b *box, force bool) (err error) {
	// Before anything is ended: without the store it could not be stopped.
	if err := m.storeReady(ctx); err != nil {
		return err
	}
	was, err := m.beginSettling(b, force)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.backTo(ctx, b, was)
		}
	}()
	b.mu.Lock()
	cont := b.cont
	if was == stateFrozen {
		cont.State = ContainerPaused
	}
	b.attached = false
	b.mu.Unlock()
	// Nobody else may reach the sandbox from here on, a request under way included.
	m.links.Drop(cont.Run())
	g, err := m.open(ctx, b, cont)
	if err == nil {
		_, err = g.Stop(ctx, guest.StopRequest{GraceMs: m.settings.Deadlines.Stop.Milliseconds()})
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		// It does not do what it is told. The container is the unit to kill.
		m.log.Warn("a sandbox did not end its processes and is killed", "sandboxId", b.id, "error", err)
		if g, err = m.bare(ctx, b, cont); err != nil {
			return err
		}
	}
	if err := m.commit(ctx, b, g); err != nil {
		return err
	}
	return m.putOut(ctx, b)
}

// bare is the container started anew: nothing but sandboxd runs in it.
func (m *Manager) bare(ctx context.Context, b *box, cont Container) (*guest.Client, error) {
	engineCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Stop(engineCtx, cont.ID, 0); err != nil {
		return nil, atStep(ctx, "container", err)
	}
	m.links.Drop(cont.Run())
	cont.State = ContainerExited
	return m.open(ctx, b, cont)
}

// commit stores what a sandbox has in which nothing runs, and notes that there is
// nothing else to it.
func (m *Manager) commit(ctx context.Context, b *box, g *guest.Client) error {
	rec := b.record()
	var exported sync.WaitGroup
	exported.Go(func() {
		if _, err := m.sync(ctx, b, rec, g); err != nil {
			// The mirror is an export: the next sync makes up for it.
			m.log.Warn("the mirror could not be brought up to date", "sandboxId", b.id, "error", err)
		}
	})
	taken, err := m.takeSnapshot(ctx, b, rec, g)
	exported.Wait()
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := m.save(ctx, b, func(r *Record) { r.Tier, r.Snapshot = sandbox.TierStopped, &taken }); err != nil {
		return atStep(ctx, "record", err)
	}
	return nil
}

// putOut stops the container of a sandbox that is stored.
func (m *Manager) putOut(ctx context.Context, b *box) error {
	b.mu.Lock()
	cont := b.cont
	b.dirty = false
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Stop(ctx, cont.ID, 0); err != nil && !errors.Is(err, ErrNoContainer) {
		return atStep(ctx, "container", err)
	}
	m.links.Drop(cont.Run())
	return m.become(b, stateStopped, true)
}

// backTo is for a sandbox that could not be stopped: it is as it was, but that
// OpenCode is started again by the next request.
func (m *Manager) backTo(ctx context.Context, b *box, was state) {
	b.mu.Lock()
	cont := b.cont
	b.mu.Unlock()
	if was == stateStopped {
		m.links.Drop(cont.Run())
		engineCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
		defer cancel()
		if err := m.runtime.Stop(engineCtx, cont.ID, 0); err != nil && !errors.Is(err, ErrNoContainer) {
			m.log.Warn("a container could not be stopped again", "sandboxId", b.id, "error", err)
		}
	}
	if was == stateFrozen && m.pause(ctx, cont) != nil {
		was = stateRunning
	}
	_ = m.become(b, was, true)                // the table has it: settling came from there
	m.work.Go(func() { m.verify(m.base, b) }) // perhaps because the container ended
}

// archive removes the container and the disk of a stopped sandbox. One that
// stopped by itself is stored first.
func (m *Manager) archive(ctx context.Context, b *box) error {
	if b.record().Tier != sandbox.TierStopped {
		if err := m.storeStopped(ctx, b); err != nil {
			return err
		}
	}
	rec := b.record()
	// The record first: what is left behind then is removed as orphaned.
	if err := m.save(ctx, b, func(r *Record) { r.Tier, r.ContainerID, r.Volume = sandbox.TierArchived, "", "" }); err != nil {
		return atStep(ctx, "record", err)
	}
	if err := m.become(b, stateArchived, true); err != nil {
		return err
	}
	b.mu.Lock()
	b.cont, b.guest, b.attached = Container{}, nil, false
	b.mu.Unlock()
	if err := m.removeFromEngine(context.WithoutCancel(ctx), rec, b.id); err != nil {
		m.log.Warn("what an archived sandbox had could not be removed yet", "sandboxId", b.id, "error", err)
	}
	return nil
}

// storeStopped stores a sandbox that stopped by itself: its container is started
// with nothing but sandboxd in it.
func (m *Manager) storeStopped(ctx context.Context, b *box) (err error) {
	if err := m.storeReady(ctx); err != nil {
		return err
	}
	cont, err := m.container(ctx, b)
	if errors.Is(err, errNoDisk) {
		return m.fallBack(ctx, b)
	}
	if err != nil {
		return atStep(ctx, "container", err)
	}
	if err := m.become(b, stateSettling, true); err != nil {
		return err
	}
	b.mu.Lock()
	b.cont = cont
	b.mu.Unlock()
	defer func() {
		if err != nil {
			m.backTo(ctx, b, stateStopped)
		}
	}()
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return err
	}
	if err := m.commit(ctx, b, g); err != nil {
		return err
	}
	return m.putOut(ctx, b)
}

func (m *Manager) storeReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	if err := m.store.Ready(ctx); err != nil {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the store cannot be written, so the sandbox stays as it is; it is tried again").WithCause(err)
	}
	return nil
}
