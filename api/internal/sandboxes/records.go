package sandboxes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// WorkerRecords are the records that a worker's client needs, kept in those of
// the API. It is safe for concurrent use, by several processes too.
type WorkerRecords struct{ rows task.Sandboxes }

var _ sandbox.Records = WorkerRecords{}

// NewWorkerRecords makes the records of a worker's client.
func NewWorkerRecords(rows task.Sandboxes) WorkerRecords { return WorkerRecords{rows} }

// Record implements sandbox.Records. What has never run has none: its first
// create shall still clone.
func (w WorkerRecords) Record(ctx context.Context, id string) (sandbox.Record, bool, error) {
	row, err := w.rows.Find(ctx, id)
	if errors.Is(err, task.ErrNotFound) || err == nil && row.StartedAt == nil {
		return sandbox.Record{}, false, nil
	}
	if err != nil {
		return sandbox.Record{}, false, fmt.Errorf("reading what is known of a worker's sandbox: %w", err)
	}
	r := sandbox.Record{
		SandboxID: row.ID, UserID: row.UserID, Status: sandbox.StatusSleeping, GitURL: row.GithubURL,
		CreatedAt: row.CreatedAt, LastActiveAt: *row.StartedAt,
	}
	if row.LastActiveAt != nil {
		r.LastActiveAt = *row.LastActiveAt
	}
	switch row.Status { //nolint:exhaustive // of the rest the worker says that it sleeps
	case task.SandboxRunning:
		r.Status = sandbox.StatusRunning
	case task.SandboxStopped:
		r.Status = sandbox.StatusStopped
	case task.SandboxError:
		r.Status = sandbox.StatusError
	}
	return r, true, nil
}

// PutRecord implements sandbox.Records. Only what has a record here is changed.
func (w WorkerRecords) PutRecord(ctx context.Context, r sandbox.Record) error {
	row, err := w.rows.Find(ctx, r.SandboxID)
	if err == nil {
		c := task.SandboxChange{Status: ptr(statusOf(row.Status, r.Status))}
		if row.StartedAt == nil {
			c.StartedAt = ptr(time.Now())
		}
		if !r.LastActiveAt.IsZero() {
			c.LastActiveAt = &r.LastActiveAt
		}
		err = w.rows.Update(ctx, r.SandboxID, time.Now(), c)
	}
	if err != nil && !errors.Is(err, task.ErrNotFound) {
		return fmt.Errorf("keeping what is known of a worker's sandbox: %w", err)
	}
	return nil
}

// DeleteRecord implements sandbox.Records. It leaves the record to whoever deletes
// the sandbox, and who deletes it once more if that fails.
func (WorkerRecords) DeleteRecord(context.Context, string) error { return nil }
