package sandboxes

import (
	"context"
	"io"
	"io/fs"
	"net/http"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Start brings a sandbox up. One that has never run is made in the background, any
// other is awake when Start returns.
func (s *Service) Start(ctx context.Context, userID, id string) (task.Sandbox, error) {
	row, err := s.row(ctx, userID, id)
	if err != nil {
		return row, err
	}
	if row.StartedAt != nil {
		row, _, err = s.Raise(ctx, row, "")
		return row, err
	}
	if !s.busyMaking(id) {
		row, err = s.change(ctx, row, task.SandboxChange{Status: ptr(task.SandboxStarting), ErrorMessage: ptr("")})
		if err != nil {
			return row, err
		}
	}
	if !s.begin(ctx, row, row.GithubURL) {
		return row, sandbox.Errorf(sandbox.CodeShuttingDown, "the API is shutting down; try again")
	}
	return row, nil
}

// Stop ends what runs in a sandbox; its disk is kept.
func (s *Service) Stop(ctx context.Context, userID, id string) (task.Sandbox, error) {
	return s.hibernate(ctx, userID, id, task.SandboxStopped, sandbox.HibernateRequest{Tier: sandbox.TierStopped})
}

// Pause freezes a sandbox; its memory is kept.
func (s *Service) Pause(ctx context.Context, userID, id string) (task.Sandbox, error) {
	return s.hibernate(ctx, userID, id, task.SandboxSleeping, sandbox.HibernateRequest{Tier: sandbox.TierFrozen})
}

// Restart ends what runs in a sandbox, busy or not, and brings it up again.
func (s *Service) Restart(ctx context.Context, userID, id string) (task.Sandbox, error) {
	row, err := s.hibernate(ctx, userID, id, task.SandboxStopped, sandbox.HibernateRequest{Tier: sandbox.TierStopped, Force: true})
	if err != nil {
		return row, err
	}
	row, _, err = s.Raise(ctx, row, "")
	return row, err
}

func (s *Service) hibernate(
	ctx context.Context, userID, id string, status task.SandboxStatus, req sandbox.HibernateRequest,
) (task.Sandbox, error) {
	row, backend, err := s.started(ctx, userID, id)
	if err != nil {
		return row, err
	}
	reply, err := backend.Hibernate(ctx, id, req)
	if err != nil {
		return row, provider.Told(err)
	}
	return s.change(ctx, row, task.SandboxChange{
		Status: &status, Tier: ptr(tierOf(reply.Tier)), ErrorMessage: ptr(""),
	})
}

// Delete removes a sandbox with all it has, and then its record. If its provider
// does not answer, nothing has changed.
func (s *Service) Delete(ctx context.Context, userID, id string) error {
	row, err := s.row(ctx, userID, id)
	if err != nil {
		return err
	}
	if err := s.drop(ctx, id); err != nil {
		return err
	}
	// What was never started may just be, for a task.
	backend, err := s.deps.Backends.Backend(row.Provider)
	if err != nil {
		return err //nolint:wrapcheck // an error for the caller
	}
	if err := backend.Delete(ctx, id); err != nil && !sandbox.HasCode(err, sandbox.CodeSandboxNotFound) {
		return provider.Told(err)
	}
	ctx, cancel := settling(ctx)
	defer cancel()
	return s.deps.Sandboxes.Delete(ctx, userID, id) //nolint:wrapcheck // the store says what it was doing
}

// Sync makes the stored copy of the workspace equal to it.
func (s *Service) Sync(ctx context.Context, userID, id string) (sandbox.SyncResponse, error) {
	row, backend, err := s.started(ctx, userID, id)
	if err != nil {
		return sandbox.SyncResponse{}, err
	}
	reply, err := backend.Sync(ctx, id)
	if err != nil {
		return reply, provider.Told(err)
	}
	now := s.now()
	_, err = s.change(ctx, row, task.SandboxChange{WorkspaceSyncedAt: &now})
	return reply, err
}

// Logs returns the last lines that a sandbox printed.
func (s *Service) Logs(ctx context.Context, userID, id string, tail int) (sandbox.LogsResponse, error) {
	return ask(ctx, s, userID, id, func(b sandbox.Backend) (sandbox.LogsResponse, error) {
		reply, err := b.Logs(ctx, id, tail)
		reply.Logs = printable.Escape(reply.Logs)
		return reply, err //nolint:wrapcheck // an error for the caller
	})
}

// Stats returns what a running sandbox uses.
func (s *Service) Stats(ctx context.Context, userID, id string) (sandbox.Stats, error) {
	return ask(ctx, s, userID, id, func(b sandbox.Backend) (sandbox.Stats, error) { return b.Stats(ctx, id) })
}

// Exec runs a command.
func (s *Service) Exec(ctx context.Context, userID, id string, req sandbox.ExecRequest) (sandbox.ExecResponse, error) {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return sandbox.ExecResponse{}, sandbox.Errorf(sandbox.CodeInvalidRequest,
			`command must be an array of strings, such as ["ls","-la"], of which the first is the program`)
	}
	if req.TimeoutMs < 0 {
		return sandbox.ExecResponse{}, sandbox.Errorf(sandbox.CodeInvalidRequest, "timeoutMs must not be below 0")
	}
	return ask(ctx, s, userID, id, func(b sandbox.Backend) (sandbox.ExecResponse, error) { return b.Exec(ctx, id, req) })
}

// ReadFile opens a file, whose Close the caller calls.
func (s *Service) ReadFile(ctx context.Context, userID, id, path string) (*sandbox.File, error) {
	return ask(ctx, s, userID, id, func(b sandbox.Backend) (*sandbox.File, error) { return b.ReadFile(ctx, id, path) })
}

// ListFiles returns a folder's entries.
func (s *Service) ListFiles(ctx context.Context, userID, id, path string) (sandbox.FileListing, error) {
	return ask(ctx, s, userID, id, func(b sandbox.Backend) (sandbox.FileListing, error) { return b.ListFiles(ctx, id, path) })
}

// WriteFile replaces a file; mode 0 means 0644, and size -1 that it is not known.
func (s *Service) WriteFile(ctx context.Context, userID, id, path string, mode fs.FileMode, body io.Reader, size int64) error {
	_, err := ask(ctx, s, userID, id, func(b sandbox.Backend) (struct{}, error) {
		return struct{}{}, b.WriteFile(ctx, id, path, mode, body, size)
	})
	return err
}

// DeleteFile removes a file, or a folder with all that is in it.
func (s *Service) DeleteFile(ctx context.Context, userID, id, path string) error {
	_, err := ask(ctx, s, userID, id, func(b sandbox.Backend) (struct{}, error) { return struct{}{}, b.DeleteFile(ctx, id, path) })
	return err
}

// ask asks the backend of a user's sandbox for something.
func ask[T any](ctx context.Context, s *Service, userID, id string, what func(sandbox.Backend) (T, error)) (T, error) {
	_, backend, err := s.started(ctx, userID, id)
	if err != nil {
		var none T
		return none, err
	}
	out, err := what(backend)
	return out, provider.Told(err)
}

// OpenCode returns a way to a sandbox's OpenCode, as sandbox.Backend has it.
func (s *Service) OpenCode(ctx context.Context, userID, id string) (transport http.RoundTripper, baseURL string, err error) {
	_, backend, err := s.started(ctx, userID, id)
	if err != nil {
		return nil, "", err
	}
	return backend.OpenCode(id) //nolint:wrapcheck // an error for the caller
}
