package lifecycle

import (
	"context"
	"io"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Logs returns the output of a sandbox's container, running or stopped. The
// caller closes it.
func (m *Manager) Logs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error) {
	container, err := m.containerOf(id)
	if err != nil {
		return nil, err
	}
	return m.runtime.Logs(ctx, container, opts)
}

// Stats returns the figures of a running sandbox.
func (m *Manager) Stats(ctx context.Context, id string) (sandbox.Stats, error) {
	container, err := m.containerOf(id)
	if err != nil {
		return sandbox.Stats{}, err
	}
	return m.runtime.Stats(ctx, container)
}

func (m *Manager) containerOf(id string) (string, error) {
	b, err := m.existing(id)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cont.ID != "" {
		return b.cont.ID, nil
	}
	if b.rec.ContainerID == "" {
		return "", sandbox.Errorf(sandbox.CodeConflict, "the sandbox %q has no container yet; try again when it has been created", id)
	}
	return b.rec.ContainerID, nil
}

// Tell sends a notice of something that happened in a sandbox, unless it was
// deleted meanwhile, and counts it as activity.
func (m *Manager) Tell(h Handle, event sandbox.Event, data map[string]any) {
	if h.Life.Err() != nil {
		return
	}
	if b := m.find(h.SandboxID); b != nil {
		b.mu.Lock()
		if b.rec.Incarnation == h.Incarnation {
			b.lastActive = time.Now().UTC()
		}
		b.mu.Unlock()
	}
	m.notify(Record{SandboxID: h.SandboxID, UserID: h.UserID, Incarnation: h.Incarnation}, event, data)
}
