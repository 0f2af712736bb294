package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// persistRun is one sync and one snapshot of a running sandbox. Its results may
// be read when its channels are closed.
type persistRun struct {
	synced  chan struct{} // closed after the sync
	done    chan struct{} // closed after the snapshot
	asked   bool          // by a caller, who is told of it whatever it changes
	result  Synced
	syncErr error
	snapErr error
}

// errSettling ends what is persisted in the background: the sandbox is put to
// sleep, which does the same once more, or deleted.
var errSettling = sandbox.Errorf(sandbox.CodeSettling, "the sandbox is being put to sleep; try again in a moment")

// persist has what is in a running sandbox synced and stored, by a run that
// begins after this call: calls during one run share the next. It is nil if the
// sandbox does not run. asked says that a caller is told of it.
func (m *Manager) persist(b *box, asked bool) *persistRun {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateRunning || b.guest == nil {
		return nil
	}
	if b.nextRun != nil {
		b.nextRun.asked = b.nextRun.asked || asked
		return b.nextRun
	}
	b.nextRun = &persistRun{synced: make(chan struct{}), done: make(chan struct{}), asked: asked}
	if !b.persisting {
		b.persisting = true
		ctx, cancel := context.WithCancelCause(b.aboutLocked(b.life))
		idle := make(chan struct{})
		b.endPersist = func() {
			cancel(errSettling)
			<-idle
		}
		m.work.Go(func() {
			defer close(idle)
			defer cancel(nil)
			m.persistAll(ctx, b)
		})
	}
	return b.nextRun
}

// persistAll makes the runs that were asked for until there are none.
func (m *Manager) persistAll(ctx context.Context, b *box) {
	for {
		b.mu.Lock()
		run := b.nextRun
		b.nextRun = nil
		if run == nil {
			b.persisting = false
			b.mu.Unlock()
			return
		}
		// What happens from here on is for the next run.
		b.storingSince = time.Now()
		if b.dirty {
			b.storingSince = b.dirtySince
		}
		b.dirty = false
		rec, g := b.rec, b.guest
		b.mu.Unlock()
		m.persistOnce(ctx, b, rec, g, run)
	}
}

func (m *Manager) persistOnce(ctx context.Context, b *box, rec Record, g *guest.Client, run *persistRun) {
	defer close(run.done)
	began := time.Now()
	run.result, run.syncErr = m.sync(ctx, b, rec, g, run.asked)
	close(run.synced)
	_, run.snapErr = m.takeSnapshot(ctx, b, rec, g)
	err := errors.Join(run.syncErr, run.snapErr)
	goesOn := false // what is being done now is not stored
	if err == nil {
		st, statusErr := m.ask(ctx, b, g, statusTimeout)
		goesOn = statusErr == nil && st.Busy
	}
	b.mu.Lock()
	b.quietUntil = time.Now().Add(m.settings.PersistPause)
	switch {
	case err == nil:
		b.failures, b.awaits = 0, ""
		if b.persistFailed {
			b.persistFailed, b.lastError = false, ""
		}
		if goesOn {
			b.soilLocked()
		}
	case ctx.Err() != nil: // not its own fault
		b.soilAgainLocked()
	default:
		// It is tried again, and until then the sandbox goes on as it is.
		b.soilAgainLocked()
		b.persistFailed, b.lastError = true, reason(err)
		b.persistAfter = time.Now().Add(m.backOffLocked(b, err))
	}
	b.storingSince = time.Time{}
	b.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "the sandbox could not be stored", "sandboxId", b.id, "duration", time.Since(began), "error", err)
		return
	}
	m.log.DebugContext(ctx, "stored", "sandboxId", b.id, "duration", time.Since(began))
}

// soilLocked notes that something was done which is not stored yet. The caller
// holds mu.
func (b *box) soilLocked() {
	if !b.dirty {
		b.dirty, b.dirtySince = true, time.Now()
	}
}

// soilAgainLocked notes that what was to be stored is not, and has not been for as
// long as before. The caller holds mu.
func (b *box) soilAgainLocked() {
	b.dirty, b.dirtySince = true, b.storingSince
}

// unstoredLocked is since when something is not stored; zero if everything is. The
// caller holds mu.
func (b *box) unstoredLocked() time.Time {
	switch {
	case !b.storingSince.IsZero():
		return b.storingSince
	case b.dirty:
		return b.dirtySince
	default:
		return time.Time{}
	}
}

// storeFirst stores what a sandbox that runs has done and that is not stored yet. The
// caller holds serial.
func (m *Manager) storeFirst(ctx context.Context, b *box) error {
	b.mu.Lock()
	unstored, g, cont := !b.unstoredLocked().IsZero(), b.guest, b.cont
	b.mu.Unlock()
	if !unstored {
		return nil
	}
	if err := m.storeReady(ctx); err != nil {
		return err
	}
	if g == nil { // nobody has asked for it since it was adopted
		if _, err := m.open(ctx, b, cont); err != nil {
			return err
		}
	}
	run := m.persist(b, false) //nolint:contextcheck // it outlives the request
	if run == nil {
		return busyError(b.id) // it has ended meanwhile
	}
	select {
	case <-run.done:
		return run.snapErr // the mirror is an export, and no reason to wait
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sync makes the mirror equal to the workspace, and tells of it if that was asked
// for or changed anything.
func (m *Manager) sync(ctx context.Context, b *box, rec Record, g *guest.Client, asked bool) (Synced, error) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Snapshot)
	defer cancel()
	synced, err := m.workspaces.Sync(ctx, rec.ref(), g)
	if err != nil {
		return synced, atStep(ctx, "sync", err)
	}
	b.mu.Lock()
	b.synced = synced
	b.mu.Unlock()
	if !asked && !synced.Changed {
		return synced, nil
	}
	m.notify(rec, sandbox.EventWorkspaceSynced, map[string]any{"syncedFiles": synced.Files, "totalSize": synced.Bytes})
	return synced, nil
}

// takeSnapshot stores the home and notes the snapshot for callers.
func (m *Manager) takeSnapshot(ctx context.Context, b *box, rec Record, g *guest.Client) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Snapshot)
	defer cancel()
	taken, err := m.workspaces.Snapshot(ctx, rec.ref(), g)
	if err != nil {
		return taken, atStep(ctx, "snapshot", err)
	}
	b.mu.Lock()
	b.snapshot = &taken
	b.mu.Unlock()
	if taken.Collapsed {
		m.notify(rec, sandbox.EventSandboxError, map[string]any{
			"reason": "nearly all files of its home are gone; the snapshot " + taken.Before + " from before is kept and can be restored",
		})
	}
	return taken, nil
}

// stopPersisting ends what is persisted in the background and waits for it. The
// caller has made sure that no more of it begins.
func (b *box) stopPersisting() {
	b.mu.Lock()
	end, busy := b.endPersist, b.persisting
	b.mu.Unlock()
	if busy {
		end()
	}
}

// Sync makes the mirror equal to the workspace, waking the sandbox for it.
func (m *Manager) Sync(ctx context.Context, id string) (Synced, error) {
	h, err := m.Use(ctx, id, Looking)
	if err != nil {
		return Synced{}, err
	}
	defer h.Release()
	b, err := m.existing(id)
	if err != nil {
		return Synced{}, err
	}
	run := m.persist(b, true) //nolint:contextcheck // it outlives the request
	if run == nil {
		return Synced{}, errSettling
	}
	select {
	case <-run.synced:
		return run.result, run.syncErr
	case <-ctx.Done():
		return Synced{}, waitError(ctx)
	}
}

// Persist has what was done in a sandbox synced and stored, and waits for the
// sync no longer than limit: what it returns is then as of the sync before.
func (m *Manager) Persist(ctx context.Context, h Handle, limit time.Duration) Synced {
	b := m.find(h.SandboxID)
	if b == nil || h.Life.Err() != nil {
		return Synced{}
	}
	if run := m.persist(b, false); run != nil { //nolint:contextcheck // it outlives the request
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		select {
		case <-run.synced:
		case <-ctx.Done():
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.synced
}

// Snapshots lists what can be restored of a sandbox, the newest first.
func (m *Manager) Snapshots(ctx context.Context, id string) ([]Snapshot, error) {
	b, err := m.existing(id)
	if err != nil {
		return nil, err
	}
	return m.workspaces.Snapshots(ctx, b.record().ref())
}
