package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxGeneration is more than there ever are: such a mark is not the gateway's, and
// could not be counted up.
const maxGeneration = 1 << 53

// confirmDisk makes sure that the disk which a run of a container is on is the
// sandbox's, before anything but sandboxd runs on it: an engine makes a volume that is
// gone anew at the mount, and its empty home would become the newest snapshot. It goes
// by the mark that each start gives the disk. A mark that is missing, of another
// sandbox or older than the record's is errNoDisk, and the container is stopped; the
// disk is kept. The mark is on the disk before it is in the record, so that whatever
// fails in between leaves a disk that is newer than the record says.
func (m *Manager) confirmDisk(ctx context.Context, b *box, cont Container, g *guest.Client) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Guest)
	defer cancel()
	b.mu.Lock()
	incarnation, expected := b.rec.Incarnation, max(b.rec.Generation, b.generation)
	fresh := b.rec.Phase == PhaseCreating || b.volume != "" // made for this very run
	b.mu.Unlock()
	next := expected + 1
	if !fresh { // of a new disk nothing is expected
		has, err := g.Mark(ctx)
		switch {
		case sandbox.HasCode(err, sandbox.CodeUnsupported):
			return nil // of an image from before marks; its next container is not
		case err != nil:
			return atStep(ctx, "disk", err)
		case has.Given && has.Incarnation == incarnation:
			b.marked(has.Generation)
			return nil
		case expected > 0 && (has.Incarnation != incarnation || has.Generation < expected), has.Generation >= maxGeneration:
			m.log.ErrorContext(ctx, "a disk is not the sandbox's and is not used", "containerId", cont.ID, "volume", cont.Volume,
				"generation", has.Generation, "expected", expected, "sameSandbox", has.Incarnation == incarnation)
			m.endRun(ctx, b, cont)
			return errNoDisk
		case has.Incarnation == incarnation:
			next = max(next, has.Generation+1)
		}
	}
	err := g.PutMark(ctx, guest.Mark{Incarnation: incarnation, Generation: next})
	switch {
	case err == nil:
		b.marked(next)
	case sandbox.HasCode(err, sandbox.CodeUnsupported):
	case sandbox.HasCode(err, sandbox.CodeDiskFull) && !fresh:
		// It is the sandbox's, and its owner has to get in to make room.
		m.log.WarnContext(ctx, "a disk is too full for its next mark", "containerId", cont.ID, "error", err)
	default:
		return atStep(ctx, "disk", err)
	}
	return nil
}

// marked notes the generation of the disk's mark. It is written with the next change
// of the record.
func (b *box) marked(generation int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.generation = max(b.generation, generation)
}

// endRun stops a container that must not go on.
func (m *Manager) endRun(ctx context.Context, b *box, cont Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Stop(ctx, cont.ID, 0); err != nil && !errors.Is(err, ErrNoContainer) {
		m.log.WarnContext(ctx, "a container could not be stopped", "sandboxId", b.id, "error", err)
	}
	m.links.Drop(cont.Run())
}

// maxGivenUp is how many disks that were given up are kept: code in a sandbox that
// spoils its disk's mark again and again must not fill the host.
const maxGivenUp = 3

// giveUp keeps the record's disk, which is not the sandbox's any more.
func giveUp(r *Record) {
	r.GivenUp = append(slices.Clone(r.GivenUp), r.Volume)
	if over := len(r.GivenUp) - maxGivenUp; over > 0 {
		r.Removing = append(slices.Clone(r.Removing), r.GivenUp[:over]...)
		r.GivenUp = r.GivenUp[over:]
	}
	r.Volume = ""
}

// oldestUnstored is since when a sandbox has something that is not stored; zero if
// none has.
func (m *Manager) oldestUnstored() time.Time {
	var oldest time.Time
	for _, b := range m.all() {
		b.mu.Lock()
		since := b.unstoredLocked()
		b.mu.Unlock()
		if !since.IsZero() && (oldest.IsZero() || since.Before(oldest)) {
			oldest = since
		}
	}
	return oldest
}
