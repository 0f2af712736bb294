package sandboxes

import (
	"context"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// gone is what a record says of a sandbox that its provider does not have.
const gone = "the sandbox's provider does not have it any more; delete it and make another"

// activeStep is how much newer an activity must be for a look to write it down.
const activeStep = time.Minute

// Get returns a sandbox, with what its provider says of it right now. A provider
// that does not answer leaves it as it was.
func (s *Service) Get(ctx context.Context, userID, id string) (task.Sandbox, error) {
	row, err := s.row(ctx, userID, id)
	if err != nil || row.Status == task.SandboxCreated || s.busyMaking(id) {
		return row, err
	}
	c, changed := s.look(ctx, row)
	if !changed {
		return row, nil
	}
	return s.change(ctx, row, c)
}

// look asks a sandbox's provider and returns what that changes.
func (s *Service) look(ctx context.Context, row task.Sandbox) (task.SandboxChange, bool) {
	ctx, cancel := context.WithTimeout(ctx, s.settings.LookTimeout)
	defer cancel()
	backend, err := s.deps.Backends.Backend(row.Provider)
	var info sandbox.Info
	if err == nil {
		info, err = backend.Get(ctx, row.ID)
	}
	switch {
	case err == nil:
		return s.heard(row, info)
	case !sandbox.HasCode(err, sandbox.CodeSandboxNotFound):
		s.deps.Log.DebugContext(ctx, "a sandbox could not be looked at", "sandboxId", row.ID, "error", err)
		return task.SandboxChange{}, false
	case row.Status == task.SandboxError, row.Status == task.SandboxStarting && s.now().Sub(row.UpdatedAt) < s.settings.StartGrace:
		return task.SandboxChange{}, false
	}
	return task.SandboxChange{Status: ptr(task.SandboxError), ErrorMessage: ptr(gone)}, true
}

// heard returns what a backend's word changes of a record, and whether it does.
func (s *Service) heard(row task.Sandbox, info sandbox.Info) (task.SandboxChange, bool) {
	var c task.SandboxChange
	now := s.now()
	status := statusOf(row.Status, info.Status)
	if status != row.Status {
		c.Status = &status
	}
	if tier := tierOf(info.Tier); tier != "" && tier != row.Tier {
		c.Tier = &tier
	}
	message := printable.Line(info.LastError, maxErrorText)
	switch {
	case status != task.SandboxError:
		message = ""
	case message == "":
		message = row.ErrorMessage
	}
	if message != row.ErrorMessage {
		c.ErrorMessage = &message
	}
	// What sleeps has run, too.
	if row.StartedAt == nil && (status == task.SandboxRunning || status == task.SandboxSleeping || status == task.SandboxStopped) {
		c.StartedAt = &now
	}
	if at := info.LastActiveAt.Time; !at.IsZero() && !at.After(now) && (row.LastActiveAt == nil || at.Sub(*row.LastActiveAt) >= activeStep) {
		c.LastActiveAt = &at
	}
	return c, c != task.SandboxChange{}
}

// statusOf is what a record says of a backend's status. One that was stopped and
// sleeps is still called stopped: somebody asked for it.
func statusOf(before task.SandboxStatus, heard sandbox.Status) task.SandboxStatus {
	switch heard {
	case sandbox.StatusCreating:
		return task.SandboxStarting
	case sandbox.StatusRunning:
		return task.SandboxRunning
	case sandbox.StatusStopped:
		return task.SandboxStopped
	case sandbox.StatusSleeping:
		if before == task.SandboxStopped {
			return before
		}
		return task.SandboxSleeping
	case sandbox.StatusError:
		return task.SandboxError
	}
	return before
}

// tierOf is what a record says of a backend's tier; a worker has none.
func tierOf(t sandbox.Tier) string { return printable.Line(string(t), maxTier) }

const maxTier = 20 // bytes

// listLimit is how many sandboxes the one look at all of a user's covers.
const listLimit = 100

// List returns a page of a user's sandboxes and how many there are. The gateway's
// are shown with the status that it has them in right now, if it says so at once.
func (s *Service) List(ctx context.Context, filter task.SandboxFilter) ([]task.Sandbox, int64, error) {
	rows, n, err := s.deps.Sandboxes.List(ctx, filter)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // the store says what it was doing
	}
	var live map[string]sandbox.Info
	for i, row := range rows {
		if row.Provider != provider.Docker || row.StartedAt == nil {
			continue
		}
		if live == nil {
			live = s.live(ctx, filter.UserID)
		}
		if info, ok := live[row.ID]; ok {
			rows[i].Status, rows[i].Tier = statusOf(row.Status, info.Status), tierOf(info.Tier)
		}
	}
	return rows, n, nil
}

// live asks the gateway for all sandboxes of a user; it never returns nil.
func (s *Service) live(ctx context.Context, userID string) map[string]sandbox.Info {
	ctx, cancel := context.WithTimeout(ctx, s.settings.ListTimeout)
	defer cancel()
	out := map[string]sandbox.Info{}
	backend, err := s.deps.Backends.Backend(provider.Docker)
	var page sandbox.ListResponse
	if err == nil {
		page, err = backend.List(ctx, sandbox.ListOptions{UserID: userID, Limit: listLimit})
	}
	if err != nil {
		s.deps.Log.DebugContext(ctx, "the sandboxes of a user could not be looked at", "userId", userID, "error", err)
		return out
	}
	for _, info := range page.Sandboxes {
		out[info.SandboxID] = info
	}
	return out
}
