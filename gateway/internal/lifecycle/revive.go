package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// errNoDisk is for a sandbox whose volume is not in the engine.
var errNoDisk = errors.New("the sandbox's disk is not there")

const volumePrefix = "agentpod-"

// newVolume names a disk of a sandbox that nothing has been on.
func newVolume(sandboxID string) string {
	return volumePrefix + sandboxID + "." + strings.ToLower(rand.Text())
}

// sandboxOfVolume is the reverse of newVolume; empty for another name.
func sandboxOfVolume(name string) string {
	id, _, ok := strings.Cut(strings.TrimPrefix(name, volumePrefix), ".") // no id has a dot
	if !ok || !strings.HasPrefix(name, volumePrefix) {
		return ""
	}
	return id
}

// fallBack is for a sandbox that is needed and whose disk is not in the engine: it
// was removed behind the gateway's back, or is on a host that is gone. It is what
// its newest snapshot holds then, or lost.
func (m *Manager) fallBack(ctx context.Context, b *box) error {
	rec := b.record()
	all, err := m.workspaces.Snapshots(ctx, rec.ref())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		m.log.ErrorContext(ctx, "a workspace is lost: its disk is gone, and it was never stored", "sandboxId", b.id)
		if err := m.become(b, stateLost, false); err != nil {
			return err
		}
		return lostError(rec.SandboxID, "")
	}
	m.log.WarnContext(ctx, "a sandbox's disk is gone; its newest snapshot takes its place", "sandboxId", b.id, "snapshot", all[0].ID, "takenAt", all[0].CreatedAt)
	if rec.Tier != sandbox.TierStopped { // it may have held more
		m.notify(rec, sandbox.EventSandboxError, map[string]any{
			"reason": "its disk is gone; the snapshot of " + all[0].CreatedAt.UTC().Format(time.RFC3339) + " takes its place",
		})
	}
	if err := m.save(ctx, b, func(r *Record) {
		giveUp(r)
		r.Tier, r.ContainerID, r.Volume, r.Snapshot = sandbox.TierArchived, "", "", &all[0]
	}); err != nil {
		return err
	}
	b.mu.Lock()
	b.snapshot = &all[0]
	b.mu.Unlock()
	return m.become(b, stateArchived, true)
}

// revive makes an archived sandbox again from a snapshot, "" for the newest. What
// is stored is not touched, and what was made is removed if it fails. The
// state is starting already.
func (m *Manager) revive(ctx context.Context, b *box, snapshot string, next *newConfig) (restored int64, written int, err error) {
	release, err := m.bootSlot(ctx, b)
	if err != nil {
		return 0, 0, atStep(ctx, "queue", err)
	}
	defer release()
	b.mu.Lock()
	b.volume = newVolume(b.id)
	rec, volume := b.rec, b.volume
	b.mu.Unlock()
	defer func() {
		if err != nil {
			m.undoRevival(ctx, b, rec, volume)
		}
		b.mu.Lock()
		b.volume = ""
		b.mu.Unlock()
	}()
	engineCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	if stale, err := m.runtime.Find(engineCtx, rec.SandboxID); err == nil {
		if err := m.runtime.Remove(engineCtx, stale.ID); err != nil {
			return 0, 0, atStep(ctx, "container", err)
		}
	}
	cont, err := m.newContainer(engineCtx, b, volume, false)
	if err != nil {
		return 0, 0, atStep(ctx, "container", err)
	}
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return 0, 0, err
	}
	if restored, written, err = m.refill(ctx, b, g, snapshot, next, release); err != nil {
		return 0, 0, err
	}
	if err := context.Cause(ctx); err != nil {
		return 0, 0, err
	}
	err = m.save(ctx, b, func(r *Record) { r.Tier, r.ContainerID, r.Volume = "", cont.ID, volume })
	if err != nil {
		return 0, 0, atStep(ctx, "record", err)
	}
	return restored, written, nil
}

// refill restores OpenCode's state, and the workspace while OpenCode boots on it.
// The boot slot is given back when OpenCode is ready. It returns how many files of
// the workspace were restored, as the contract counts them.
func (m *Manager) refill(ctx context.Context, b *box, g *guest.Client, snapshot string, next *newConfig, release func()) (restored int64, written int, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Restore)
	defer cancel()
	rec := b.record()
	tell, done := b.begin(ctx, sandbox.StepRestore)
	defer done()
	if _, err := m.workspaces.Restore(ctx, rec.ref(), snapshot, PartState, g, nil); err != nil {
		return 0, 0, atStep(ctx, "restore", err)
	}
	if rec.Directory != guest.Workspace {
		if err := m.makeDirectory(ctx, g, rec.Directory); err != nil {
			return 0, 0, atStep(ctx, "directory", err)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer release()
		written, err = m.startWith(groupCtx, b, g, next)
		return err
	})
	group.Go(func() (err error) {
		restored, err = m.workspaces.Restore(groupCtx, rec.ref(), snapshot, PartWorkspace, g, b.filesTold(snapshot, tell))
		return atStepOrNil(ctx, "restore", err)
	})
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	return restored, written, nil
}

// undoRevival removes what a wake that failed has made.
func (m *Manager) undoRevival(ctx context.Context, b *box, rec Record, volume string) {
	b.mu.Lock()
	run := b.cont.Run()
	b.cont, b.guest, b.attached = Container{}, nil, false
	b.mu.Unlock()
	m.links.Drop(run)
	rec.Volume = volume
	if err := m.removeFromEngine(context.WithoutCancel(ctx), rec, b.id); err != nil {
		m.log.WarnContext(ctx, "what a failed wake made could not be removed yet", "sandboxId", b.id, "error", err)
	}
}
