package lifecycle

import (
	"context"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Ref is one incarnation of a sandbox: what is kept of one never passes for
// another's. With an empty Incarnation it is whatever has the id.
type Ref struct {
	SandboxID   string
	Incarnation string
}

// Snapshot is what is known of a snapshot without reading it. Files are the
// regular files in it, Bytes their sizes together.
type Snapshot struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"createdAt"`
	Files     int64     `json:"files"`
	Bytes     int64     `json:"bytes"`
	// Collapsed says of a snapshot that was just taken that it has next to
	// nothing of what the one before had, whose id is Before and which stays
	// longer than others. False and empty from elsewhere.
	Collapsed bool   `json:"-"`
	Before    string `json:"-"`
}

// Wire is the snapshot as callers see it.
func (s Snapshot) Wire() sandbox.Snapshot {
	return sandbox.Snapshot{ID: s.ID, CreatedAt: sandbox.At(s.CreatedAt), Files: s.Files, Bytes: s.Bytes}
}

// Synced is what the mirror holds after a sync.
type Synced struct {
	Files, Skipped int64
	Bytes          int64 // of the files
	Changed        bool  // the mirror was another before
}

// Part is a part of a snapshot.
type Part int

// The parts of a snapshot, in the order in which they are restored: OpenCode is
// started on its state while the workspace comes.
const (
	PartState     Part = iota + 1 // all of the home but the workspace
	PartWorkspace                 // the workspace
)

// Workspaces keeps in the store what must survive the loss of a host. Every
// method is safe for concurrent use, can be repeated, and fails with a
// sandbox.Error: store_unavailable if the store is away, snapshot_damaged,
// snapshot_not_found, workspace_too_large, guest_failed for a sandbox that does
// not list or send what it must, sandbox_deleted if the store holds another
// incarnation by now.
type Workspaces interface {
	// Begin makes the store's room for a new incarnation. It belongs into a create.
	Begin(ctx context.Context, ref Ref) error
	// Snapshot takes a snapshot of the home and commits it.
	Snapshot(ctx context.Context, ref Ref, g *guest.Client) (Snapshot, error)
	// Snapshots lists the snapshots, the newest first.
	Snapshots(ctx context.Context, ref Ref) ([]Snapshot, error)
	// Restore writes a part of a snapshot into the home; id is "" for the newest.
	// It returns how many files it wrote, and tells meanwhile, unless tell is nil.
	// What it wrote before it failed is for the caller to throw away.
	Restore(ctx context.Context, ref Ref, id string, part Part, g *guest.Client, tell func(files int64)) (files int64, err error)
	// Sync makes the mirror equal to the workspace.
	Sync(ctx context.Context, ref Ref, g *guest.Client) (Synced, error)
	// Mirrored says whether a mirror of that id is there, whoever wrote it.
	Mirrored(ctx context.Context, sandboxID string) (bool, error)
	// Import writes the mirror into the workspace.
	Import(ctx context.Context, ref Ref, g *guest.Client) (files int64, err error)
	// Delete removes snapshots and mirror, whoever wrote the mirror.
	Delete(ctx context.Context, ref Ref) error
	// Undo removes what Begin and what came after it have made, and leaves the
	// mirror's files: a create that failed must not cost what was there before.
	Undo(ctx context.Context, ref Ref) error
}

func (r Record) ref() Ref { return Ref{SandboxID: r.SandboxID, Incarnation: r.Incarnation} }
