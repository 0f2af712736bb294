package lifecycle

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// settle puts a sandbox to sleep in a tier, at least, unless somebody came for it
// after it was decided. Nothing is ended before the store can be written, and no
// container or disk is removed before its snapshot is committed. The caller holds
// serial.
func (m *Manager) settle(ctx context.Context, b *box, tier sandbox.Tier, force bool, decided time.Time) error {
	began, from := time.Now(), b.current()
	stored := b.record().Tier == sandbox.TierStopped
	var err error
	switch {
	case from == stateLost:
		return lostError(b.id, b.lastErrorNow())
	case from == stateCreating || !from.visible():
		return sandbox.Errorf(sandbox.CodeConflict, "the sandbox %q does not run yet; try again when it has been created", b.id)
	case from == stateArchived,
		depth(from.Tier()) >= depth(tier) && (from != stateStopped || stored || tier == sandbox.TierFrozen):
		return nil
	case tier == sandbox.TierFrozen:
		err = m.freeze(ctx, b, force, decided)
	case from == stateStopped && !stored:
		err = m.storeStopped(ctx, b)
	case from != stateStopped:
		err = m.stop(ctx, b, force, decided)
	}
	if err == nil && tier == sandbox.TierArchived {
		err = m.archive(ctx, b)
	}
	m.figures.slept(tier, err)
	if err != nil {
		return err
	}
	b.mu.Lock()
	rec := b.rec
	b.lastError = ""
	b.mu.Unlock()
	m.log.InfoContext(ctx, "put to sleep", "sandboxId", b.id, "tier", tier, "duration", time.Since(began))
	m.notify(rec, sandbox.EventSandboxHibernated, map[string]any{"tier": tier})
	return nil
}

// beginSettling closes the sandbox to new requests, unless one came meanwhile.
func (m *Manager) beginSettling(b *box, force bool, decided time.Time) (was state, err error) {
	b.mu.Lock()
	was = b.state
	if !force && (b.inUse > 0 || b.lastRequest.After(decided)) {
		b.mu.Unlock()
		return was, busyError(b.id)
	}
	err = m.becomeLocked(b, stateSettling, true)
	b.mu.Unlock()
	if err == nil {
		b.stopPersisting()
	}
	return was, err
}

// freeze stores what is not stored, as a frozen sandbox cannot be, and pauses the
// container: memory and disk stay. With force it is paused whatever became of that.
func (m *Manager) freeze(ctx context.Context, b *box, force bool, decided time.Time) error {
	if err := m.storeFirst(ctx, b); err != nil && !force {
		if sandbox.HasCode(err, sandbox.CodeStoreAway) {
			return sandbox.Errorf(sandbox.CodeStoreAway, `the store cannot be written, so the sandbox %q goes on: frozen now, what was done in it would be stored nowhere; try again, or give "force":true`, b.id).WithCause(err)
		}
		return err
	}
	return m.freezeNow(ctx, b, force, decided)
}

// freezeNow pauses the container.
func (m *Manager) freezeNow(ctx context.Context, b *box, force bool, decided time.Time) error {
	if _, err := m.beginSettling(b, force, decided); err != nil {
		return err
	}
	closed := time.Now()
	b.mu.Lock()
	cont := b.cont
	b.mu.Unlock()
	paused, err := m.pause(ctx, cont)
	if !paused {
		_ = m.become(b, stateRunning, true)
		return atStep(ctx, "container", err)
	}
	if err := errors.Join(atStepOrNil(ctx, "container", err), m.become(b, stateFrozen, true)); err != nil {
		return err
	}
	b.mu.Lock()
	nudged := b.lastRequest.After(closed)
	b.mu.Unlock()
	if nudged { // a terminal was typed into
		return errors.Join(busyError(b.id), m.thaw(ctx, b))
	}
	return nil
}

// pause pauses a container. paused is false only if the engine says that it is not:
// what is not known counts as paused, as a request thaws that, and would hang in what
// passes for running.
func (m *Manager) pause(ctx context.Context, cont Container) (paused bool, err error) {
	engineCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	if err = m.runtime.Pause(engineCtx, cont.ID); err == nil {
		return true, nil
	}
	now, askErr := m.observed(ctx, cont.ID)
	switch {
	case askErr == nil && now.Run() == cont.Run() && now.State == ContainerPaused:
		return true, nil // only the reply was lost
	case askErr == nil || errors.Is(askErr, ErrNoContainer):
		return false, err
	default:
		return true, err
	}
}

// observeTimeout bounds one question to the engine after a call that has taken long
// already: a request that waits for both must not wait twice as long.
const observeTimeout = 10 * time.Second

// observed is what the engine says of a container after a call whose end is not
// known. It is asked in a time of its own, as that call may have used up its own.
func (m *Manager) observed(ctx context.Context, id string) (Container, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(observeTimeout, m.settings.Deadlines.Engine))
	defer cancel()
	return m.runtime.Inspect(ctx, id)
}

// stop ends every process of a sandbox, stores what it has, and stops its
// container. If it cannot be stored it is as before, but that OpenCode is started
// again by the next request. If that is its own fault it is stopped all the same,
// with its disk kept: trying again would end its processes each time.
func (m *Manager) stop(ctx context.Context, b *box, force bool, decided time.Time) error {
	// Before anything is ended: without the store it could not be stopped.
	if err := m.storeReady(ctx); err != nil {
		return err
	}
	was, err := m.beginSettling(b, force, decided)
	if err != nil {
		return err
	}
	g, err := m.quieten(ctx, b, was)
	if err == nil {
		err = m.commit(ctx, b, g)
	}
	ownFault := sandbox.HasCode(err, sandbox.CodeWorkspaceLimit) || sandbox.HasCode(err, sandbox.CodeGuestFailed)
	if err == nil || ownFault {
		if outErr := m.putOut(ctx, b); outErr != nil && err == nil {
			err = outErr
		}
	}
	if b.current() == stateSettling {
		m.backTo(ctx, b, was)
	}
	return err
}

// quieten ends everything in a sandbox but sandboxd, and every connection to it.
func (m *Manager) quieten(ctx context.Context, b *box, was state) (*guest.Client, error) {
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
		return nil, cause
	}
	if err == nil {
		return g, nil
	}
	// It does not do what it is told. The container is the unit to kill.
	m.log.WarnContext(ctx, "a sandbox did not end its processes and is killed", "sandboxId", b.id, "error", err)
	return m.bare(ctx, b, cont)
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
	exporting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var exported sync.WaitGroup
	exported.Go(func() {
		if _, err := m.sync(exporting, b, rec, g, false); err != nil {
			// The mirror is an export: the next sync makes up for it.
			m.log.WarnContext(ctx, "the mirror could not be brought up to date", "sandboxId", b.id, "error", err)
		}
	})
	defer b.during(ctx, sandbox.StepSnapshot)()
	taken, err := m.takeSnapshot(ctx, b, rec, g)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = atStepOrNil(ctx, "record", m.save(ctx, b, func(r *Record) { r.Tier, r.Snapshot = sandbox.TierStopped, &taken }))
	}
	if err != nil {
		giveUp()
	}
	exported.Wait()
	return err
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
			m.log.WarnContext(ctx, "a container could not be stopped again", "sandboxId", b.id, "error", err)
		}
	}
	if was == stateFrozen {
		if paused, _ := m.pause(ctx, cont); !paused {
			was = stateRunning
		}
	}
	_ = m.become(b, was, true)                // the table has it: settling came from there
	m.work.Go(func() { m.verify(m.base, b) }) // perhaps because the container ended
}

// archive removes the container and the disk of a stopped sandbox that is stored.
func (m *Manager) archive(ctx context.Context, b *box) error {
	rec := b.record()
	// The record first: from what is left behind then, nothing can be woken.
	if err := m.save(ctx, b, func(r *Record) {
		r.Removing = append(slices.Clone(r.Removing), r.Volume)
		r.Tier, r.ContainerID, r.Volume = sandbox.TierArchived, "", ""
	}); err != nil {
		return atStep(ctx, "record", err)
	}
	if err := m.become(b, stateArchived, true); err != nil {
		return err
	}
	b.mu.Lock()
	b.cont, b.guest, b.attached = Container{}, nil, false
	b.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	err := m.removeFromEngine(ctx, rec, b.id)
	if err == nil {
		err = m.removeGoing(ctx, b)
	}
	if err != nil {
		m.log.WarnContext(ctx, "what an archived sandbox had could not be removed yet", "sandboxId", b.id, "error", err)
	}
	return nil
}

// storeStopped stores a sandbox that stopped by itself: its container is started
// with nothing but sandboxd in it.
func (m *Manager) storeStopped(ctx context.Context, b *box) error {
	if err := m.storeReady(ctx); err != nil {
		return err
	}
	release, err := m.bootSlot(ctx, b)
	if err != nil {
		return atStep(ctx, "queue", err)
	}
	defer release()
	cont, err := m.container(ctx, b)
	switch {
	case errors.Is(err, errNoDisk):
		return sandbox.Errorf(sandbox.CodeConflict, "the disk of the sandbox %q is not in the engine, so it cannot be stored; wake it to go on from its newest snapshot", b.id)
	case err != nil:
		return atStep(ctx, "container", err)
	case cont.State == ContainerRunning || cont.State == ContainerPaused:
		return busyError(b.id) // it was started by somebody else just now
	}
	if err := m.become(b, stateSettling, true); err != nil {
		return err
	}
	b.mu.Lock()
	b.cont = cont
	b.mu.Unlock()
	g, err := m.open(ctx, b, cont)
	if err == nil {
		err = m.commit(ctx, b, g)
	}
	if err == nil {
		err = m.putOut(ctx, b)
	}
	if b.current() == stateSettling {
		m.backTo(ctx, b, stateStopped)
	}
	return err
}

func (m *Manager) storeReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	if err := m.store.Ready(ctx); err != nil {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the store cannot be written, so the sandbox stays as it is; it is tried again").WithCause(err)
	}
	return nil
}
