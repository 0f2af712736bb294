package lifecycle

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
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
	if b.state == stateArchived {
		return "", sandbox.Errorf(sandbox.CodeConflict, "the sandbox %q is archived and has no container; wake it first", id)
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

// Get describes one sandbox. While it runs sandboxd is asked how it fares; a
// sandboxd that does not answer within a second is left out.
func (m *Manager) Get(ctx context.Context, id string) (sandbox.Info, error) {
	b, err := m.existing(id)
	if err != nil {
		return sandbox.Info{}, err
	}
	info, g := b.info()
	if g != nil {
		if st, err := m.ask(ctx, b, g, time.Second); err == nil {
			info.Busy, info.BusyReasons = st.Busy, st.Reasons
			info.OpenCode = openCodeInfo(st.OpenCode)
		} else if oc, err := statusWithin(ctx, time.Second, g.OpenCode); err == nil {
			// An OpenCode that hangs holds the whole status up, not its own state.
			info.OpenCode = openCodeInfo(oc)
		}
	}
	return info, nil
}

// ask asks a running sandbox how it fares.
func (m *Manager) ask(ctx context.Context, b *box, g *guest.Client, limit time.Duration) (guest.Status, error) {
	b.mu.Lock()
	run := b.cont.Run()
	b.mu.Unlock()
	st, err := statusWithin(ctx, limit, g.Status)
	if err == nil {
		m.restarted(b, run, st.OpenCode.Restarts)
	}
	return st, err
}

func statusWithin[T any](ctx context.Context, limit time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return ask(ctx)
}

// bareWarning is what a sandbox says whose OpenCode runs bare.
const bareWarning = "OpenCode did not get ready with the plugins and configs that lie in the sandbox, and was started without them: " +
	"correct or remove what is at fault below ~/.config/opencode, ~/.opencode or the workspace (by exec or the file routes), then stop the sandbox and wake it"

func openCodeInfo(oc guest.OpenCode) *sandbox.OpenCodeInfo {
	info := &sandbox.OpenCodeInfo{State: oc.State, Version: oc.Version, Restarts: oc.Restarts, LastExit: oc.LastExit}
	if oc.Bare {
		info.Warning = bareWarning
	}
	return info
}

func (b *box) info() (sandbox.Info, *guest.Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	info := sandbox.Info{
		SandboxID: b.id, UserID: b.rec.UserID, Status: b.statusLocked(), Provider: Provider,
		HasWorkspace: b.state != stateLost && b.state != stateCreating,
		CreatedAt:    sandbox.At(b.rec.CreatedAt), LastActiveAt: sandbox.At(b.lastActive),
		GitURL: b.rec.GitURL, Directory: b.rec.Directory, LastError: b.lastError,
		Tier: b.state.Tier(), Progress: b.progressLocked(), UnstoredSince: sandbox.At(b.unstoredLocked()),
	}
	if last := cmp.Or(b.snapshot, b.rec.Snapshot); last != nil {
		wire := last.Wire()
		info.LastSnapshot = &wire
	}
	if b.state == stateRunning {
		return info, b.guest
	}
	return info, nil
}

// statusLocked is what a caller sees. The caller holds mu.
func (b *box) statusLocked() sandbox.Status {
	if b.state == stateStopped && b.rec.Tier == sandbox.TierStopped {
		return sandbox.StatusSleeping // it was put there, and did not stop by itself
	}
	return b.state.Status()
}

// Filter selects from the list of sandboxes; empty fields select all, and a
// Limit of 0 means no limit. Cursor is the NextCursor of the page before.
type Filter struct {
	UserID string
	Status sandbox.Status
	Limit  int
	Cursor string
}

// List returns a page of the sandboxes in the order of their ids.
func (m *Manager) List(f Filter) sandbox.ListResponse {
	m.mu.RLock()
	boxes := make([]*box, 0, len(m.boxes))
	for id, b := range m.boxes {
		if id > f.Cursor {
			boxes = append(boxes, b)
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(boxes, func(a, b *box) int { return strings.Compare(a.id, b.id) })
	page := sandbox.ListResponse{Sandboxes: []sandbox.Info{}}
	for _, b := range boxes {
		info, _ := b.info()
		if info.Status == "" || f.UserID != "" && info.UserID != f.UserID || f.Status != "" && info.Status != f.Status {
			continue
		}
		if f.Limit > 0 && len(page.Sandboxes) == f.Limit {
			page.NextCursor = page.Sandboxes[f.Limit-1].SandboxID
			break
		}
		page.Sandboxes = append(page.Sandboxes, info)
	}
	return page
}
