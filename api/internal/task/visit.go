package task

import (
	"context"
	"time"
)

// Visit is a session that was given a way into a sandbox's web UI.
type Visit struct {
	SessionID string
	SandboxID string
	// Until is when all that it has opened is over by itself.
	Until time.Time
}

// OverVisit is a visit that is to be ended.
type OverVisit struct {
	Visit
	Provider string // the sandbox's
}

// Visits keeps visits, which outlive their sessions and end with their sandboxes.
// It is safe for concurrent use.
type Visits interface {
	// Put keeps a visit in the place of an earlier one. Errors: ErrNotFound if there
	// is no such sandbox.
	Put(ctx context.Context, v Visit) error
	// Over returns up to limit visits whose time or whose session is over: that was
	// ended, has expired, or is of somebody who may not sign in any more.
	Over(ctx context.Context, now time.Time, limit int) ([]OverVisit, error)
	// Delete forgets a visit unless another was put in its place. It need not exist.
	Delete(ctx context.Context, v Visit) error
}
