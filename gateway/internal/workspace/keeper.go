package workspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Keeper keeps sandboxes' snapshots and mirrors. It can be used concurrently.
type Keeper struct {
	snapshots *snapshot.Engine
	mirror    *mirror.Mirror
	// storing and restoring have slots of their own: somebody waits for a wake.
	storing, restoring *semaphore.Weighted
	log                *slog.Logger
	figures            *figures
}

var _ lifecycle.Workspaces = (*Keeper)(nil)

// NewKeeper makes a Keeper that has so many snapshots and syncs at work at once,
// and as many restores; more of them wait.
func NewKeeper(snapshots *snapshot.Engine, mirrors *mirror.Mirror, concurrent int, log *slog.Logger) *Keeper {
	slots := int64(max(1, concurrent))
	return &Keeper{
		snapshots: snapshots, mirror: mirrors, log: log, figures: newFigures(),
		storing: semaphore.NewWeighted(slots), restoring: semaphore.NewWeighted(slots),
	}
}

// workspaceFolder is where the workspace is below the home.
var workspaceFolder = strings.TrimPrefix(guest.Workspace, guest.Home+"/") //nolint:gochecknoglobals // a constant

func refOf(ref lifecycle.Ref) snapshot.Ref {
	return snapshot.Ref{ID: ref.SandboxID, Incarnation: ref.Incarnation}
}

func (k *Keeper) home(g *guest.Client, ref lifecycle.Ref) *tree {
	return &tree{guest: g, log: k.log.With("sandboxId", ref.SandboxID)}
}

func (k *Keeper) workspace(g *guest.Client, ref lifecycle.Ref) *tree {
	return &tree{guest: g, under: workspaceFolder + "/", log: k.log.With("sandboxId", ref.SandboxID)}
}

// atWork does something when there is room for it, and words its errors.
func atWork(ctx context.Context, slots *semaphore.Weighted, doing string, work func() error) error {
	if err := slots.Acquire(ctx, 1); err != nil {
		return sandbox.Errorf(sandbox.CodeDeadline, "too much is being stored or restored at once; try again").WithCause(context.Cause(ctx))
	}
	defer slots.Release(1)
	// A conflict is not tried again here: it may be that the sandbox was deleted
	// meanwhile, and then nothing of it must come back.
	return explain(doing, work())
}

// Begin implements lifecycle.Workspaces.
func (k *Keeper) Begin(ctx context.Context, ref lifecycle.Ref) error {
	if err := k.snapshots.Begin(ctx, refOf(ref)); err != nil {
		return explain("beginning the sandbox's snapshots", err)
	}
	return explain("beginning the sandbox's mirror", k.mirror.Begin(ctx, refOf(ref)))
}

// Snapshot implements lifecycle.Workspaces. What no snapshot refers to any more
// is removed.
func (k *Keeper) Snapshot(ctx context.Context, ref lifecycle.Ref, g *guest.Client) (lifecycle.Snapshot, error) {
	var taken snapshot.Snapshot
	err := atWork(ctx, k.storing, "storing the sandbox", func() (err error) {
		taken, err = k.snapshots.Take(ctx, refOf(ref), k.home(g, ref))
		if err != nil || taken.Sent == 0 {
			return err
		}
		if _, err := k.snapshots.Collect(ctx, refOf(ref)); err != nil && ctx.Err() == nil {
			k.log.WarnContext(ctx, "what no snapshot uses any more could not be removed yet", "sandboxId", ref.SandboxID, "error", err)
		}
		return nil
	})
	k.figures.snapshot(ctx, taken, err)
	if err != nil {
		return lifecycle.Snapshot{}, err
	}
	if taken.Sent > 0 {
		k.log.DebugContext(ctx, "snapshot taken", "sandboxId", ref.SandboxID, "snapshot", taken.ID, "files", taken.Files, "bytes", taken.Bytes, "sent", taken.Sent)
	}
	if taken.Collapsed {
		k.log.WarnContext(ctx, "the sandbox's home has shrunk to next to nothing, and was stored so; a snapshot from before stays",
			"sandboxId", ref.SandboxID, "snapshot", taken.ID, "before", taken.Before, "files", taken.Files, "bytes", taken.Bytes)
	}
	return described(taken), nil
}

func described(s snapshot.Snapshot) lifecycle.Snapshot {
	return lifecycle.Snapshot{
		ID: s.ID, CreatedAt: s.CreatedAt, Files: s.Files, Bytes: s.Bytes, Collapsed: s.Collapsed, Before: s.Before,
	}
}

// Snapshots implements lifecycle.Workspaces.
func (k *Keeper) Snapshots(ctx context.Context, ref lifecycle.Ref) ([]lifecycle.Snapshot, error) {
	all, err := k.snapshots.List(ctx, refOf(ref))
	if err != nil {
		return nil, explain("listing the snapshots", err)
	}
	out := make([]lifecycle.Snapshot, 0, len(all))
	for _, s := range all {
		out = append(out, described(s))
	}
	return out, nil
}

// Restore implements lifecycle.Workspaces.
func (k *Keeper) Restore(ctx context.Context, ref lifecycle.Ref, id string, part lifecycle.Part, g *guest.Client, tell func(files int64)) (int64, error) {
	home := k.home(g, ref)
	home.tell = tell
	err := atWork(ctx, k.restoring, "restoring the sandbox", func() error {
		_, err := k.snapshots.Restore(ctx, refOf(ref), id, wants(part), home)
		return err
	})
	if sandbox.HasCode(err, sandbox.CodeSnapshotDamaged) {
		return 0, k.offer(ctx, ref, id, err)
	}
	return home.restored, err
}

func wants(part lifecycle.Part) func(path string) bool {
	return func(path string) bool {
		inside := path == workspaceFolder || strings.HasPrefix(path, workspaceFolder+"/")
		return inside == (part == lifecycle.PartWorkspace)
	}
}

// offer adds to the error of a snapshot that is damaged which other one there is.
func (k *Keeper) offer(ctx context.Context, ref lifecycle.Ref, id string, err error) error {
	all, listErr := k.snapshots.List(ctx, refOf(ref))
	if listErr != nil {
		return err
	}
	for i, s := range all {
		if (s.ID == id || id == "" && i == 0) && i+1 < len(all) {
			older := all[i+1]
			return sandbox.Errorf(sandbox.CodeSnapshotDamaged,
				`%s; nothing was overwritten. The snapshot before it is %s, taken at %s: restore it with POST /sandbox/%s/wake {"snapshot":"%s"}`,
				message(err), older.ID, older.CreatedAt.UTC().Format("2006-01-02T15:04:05Z"), ref.SandboxID, older.ID).WithCause(err)
		}
	}
	return sandbox.Errorf(sandbox.CodeSnapshotDamaged, "%s; nothing was overwritten, and there is no snapshot before it", message(err)).WithCause(err)
}

func message(err error) string {
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

// Sync implements lifecycle.Workspaces.
func (k *Keeper) Sync(ctx context.Context, ref lifecycle.Ref, g *guest.Client) (lifecycle.Synced, error) {
	var result mirror.Result
	began := time.Now()
	err := atWork(ctx, k.storing, "syncing the workspace", func() (err error) {
		result, err = k.mirror.Sync(ctx, refOf(ref), k.workspace(g, ref))
		return err
	})
	if err == nil {
		k.figures.syncs.Observe(time.Since(began).Seconds())
	}
	return lifecycle.Synced{
		Files: result.Files, Skipped: result.Skipped, Bytes: result.Bytes, Changed: result.Sent > 0 || result.Deleted > 0,
	}, err
}

// Mirrored implements lifecycle.Workspaces.
func (k *Keeper) Mirrored(ctx context.Context, sandboxID string) (bool, error) {
	there, err := k.mirror.Exists(ctx, sandboxID)
	return there, explain("looking for a mirror", err)
}

// Import implements lifecycle.Workspaces.
func (k *Keeper) Import(ctx context.Context, ref lifecycle.Ref, g *guest.Client) (files int64, err error) {
	err = atWork(ctx, k.restoring, "restoring the mirror", func() (err error) {
		files, err = k.mirror.Import(ctx, refOf(ref), k.workspace(g, ref))
		return err
	})
	return files, err
}

// Undo implements lifecycle.Workspaces.
func (k *Keeper) Undo(ctx context.Context, ref lifecycle.Ref) error {
	if err := k.snapshots.Delete(ctx, refOf(ref)); err != nil && !errors.Is(err, snapshot.ErrSuperseded) {
		return explain("removing the sandbox's snapshots", err)
	}
	if err := k.mirror.Forget(ctx, refOf(ref)); err != nil && !errors.Is(err, snapshot.ErrSuperseded) {
		return explain("removing the mirror's index", err)
	}
	return nil
}

// Delete implements lifecycle.Workspaces.
func (k *Keeper) Delete(ctx context.Context, ref lifecycle.Ref) error {
	if err := k.snapshots.Delete(ctx, refOf(ref)); err != nil && !errors.Is(err, snapshot.ErrSuperseded) {
		return explain("removing the sandbox's snapshots", err)
	}
	if err := k.mirror.Delete(ctx, refOf(ref)); err != nil && !errors.Is(err, snapshot.ErrSuperseded) {
		return explain("removing the sandbox's mirror", err)
	}
	return nil
}

// maxReason is of a reason in a message, in bytes.
const maxReason = 300

// explain makes the contract's error of any error of what is kept.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	coded := func(code sandbox.Code, format string, args ...any) error {
		return sandbox.Errorf(code, format, args...).WithCause(fmt.Errorf("%s: %w", doing, err))
	}
	if damage, ok := errors.AsType[*snapshot.DamagedError](err); ok {
		return coded(sandbox.CodeSnapshotDamaged, "what is stored of the sandbox is damaged: the object %s", damage.Key)
	}
	switch {
	case errors.Is(err, snapshot.ErrNoSnapshot):
		return coded(sandbox.CodeSnapshotNotFound, "there is no such snapshot; GET /sandbox/ID/snapshots lists them")
	case errors.Is(err, snapshot.ErrSuperseded):
		return coded(sandbox.CodeSandboxDeleted, "the sandbox was deleted, or made anew, meanwhile")
	case errors.Is(err, snapshot.ErrLimit):
		// It may have a path in it, which is as long as the sandbox likes.
		return coded(sandbox.CodeWorkspaceLimit, "the sandbox has more than can be stored: %s; remove some of its files", printable.Line(err.Error(), maxReason))
	case errors.Is(err, snapshot.ErrTree):
		return coded(sandbox.CodeGuestFailed, "the sandbox does not list or send its files as it must")
	case errors.Is(err, snapshot.ErrConflict), errors.Is(err, mirror.ErrConflict):
		return coded(sandbox.CodeConflict, "somebody else changed what is stored of the sandbox meanwhile; does another gateway use the same store?")
	case errors.Is(err, store.ErrAway):
		return coded(sandbox.CodeStoreAway, "the store is away; try again in a moment")
	}
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return coded(sandbox.CodeDeadline, "%s took too long; try again", doing)
	}
	return coded(sandbox.CodeInternal, "%s failed; the gateway's log has the cause", doing)
}
