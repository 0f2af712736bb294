package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// load reads the records on boot. The engine is asked later, in the background:
// until then every sandbox counts as stopped, and a request for one asks the
// engine by itself.
func (m *Manager) load(ctx context.Context) error {
	listing, err := m.store.List(ctx)
	if err != nil {
		return fmt.Errorf("reading the records: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range listing.Stored {
		b := m.newBox(s.Record.SandboxID)
		b.rec, b.version, b.lastActive = s.Record, s.Version, s.Record.LastActiveAt
		b.state = stateStopped
		if s.Record.Phase != PhaseReady {
			// A create that never answered, or a delete that was interrupted.
			b.state = stateDeleting
			b.end(ErrDeleted)
		}
	}
	for id, why := range listing.Unreadable {
		m.log.Error("a record cannot be read", "sandboxId", id, "error", why)
		b := m.newBox(id)
		b.state, b.unreadable = stateLost, true
		b.rec = Record{SandboxID: id, LastError: "its record cannot be read: " + why.Error()}
	}
	m.log.Info("records loaded", "sandboxes", len(listing.Stored), "unreadable", len(listing.Unreadable))
	return nil
}

// follow listens to the engine for as long as the manager lives. Each time the
// engine can be heard (again), what was missed is made up for.
func (m *Manager) follow() {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	pause := least
	for m.base.Err() == nil {
		err := m.runtime.Events(m.base, func() {
			pause = least
			m.work.Go(func() { m.reconcile(m.base) })
		}, m.observe)
		if m.base.Err() != nil {
			return
		}
		m.log.Warn("the engine cannot be heard", "error", err, "retryIn", pause)
		select {
		case <-time.After(pause + rand.N(pause/2)): //nolint:gosec // jitter
		case <-m.base.Done():
		}
		pause = min(2*pause, most)
	}
}

// tick reconciles every now and then, whatever the events said.
func (m *Manager) tick() {
	every := time.NewTicker(m.settings.ReconcileEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			m.reconcile(m.base)
			m.saveActivity(m.base)
		case <-m.base.Done():
			return
		}
	}
}

// observe takes an event of the engine.
func (m *Manager) observe(e Event) {
	switch e.Kind {
	case EventDied, EventDestroyed, EventPaused, EventOOM:
	default:
		return
	}
	b := m.find(e.SandboxID)
	if b == nil {
		return
	}
	if e.Kind == EventOOM {
		m.log.Warn("a process was killed for want of memory", "sandboxId", b.id)
		return
	}
	m.verify(m.base, b)
}

// Verify looks whether the run that a request found dead has really ended, so
// that the next request starts the sandbox instead of failing too.
func (m *Manager) Verify(ctx context.Context, id string) {
	if b := m.find(id); b != nil {
		m.verify(ctx, b)
	}
}

func (m *Manager) verify(ctx context.Context, b *box) {
	b.mu.Lock()
	st, cont := b.state, b.cont
	b.mu.Unlock()
	if st != stateRunning {
		return // an operation is on its way and finds out by itself
	}
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	now, err := m.runtime.Inspect(ctx, cont.ID)
	switch {
	case errors.Is(err, ErrNoContainer):
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container was removed outside the gateway"))
	case err != nil: // not known: the engine is asked again later
	case now.State == ContainerRunning && now.Run() == cont.Run():
	case now.State == ContainerPaused:
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container was paused outside the gateway"))
	case now.OOMKilled:
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container ran out of memory and was killed; raise SANDBOX_MEMORY"))
	default:
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, fmt.Errorf("the container ended with exit code %d", now.ExitCode))
	}
}

// reconcile compares what the engine has with what the records want.
func (m *Manager) reconcile(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	m.finishDeletes(ctx)
	containers, err := m.runtime.List(ctx)
	if err != nil {
		m.log.Warn("reconcile: the engine did not list containers", "error", err)
		return
	}
	seen := map[string]bool{}
	for _, c := range containers {
		seen[c.ID] = true
		m.reconcileContainer(ctx, c)
	}
	m.mu.RLock()
	var vanished []*box
	for _, b := range m.boxes {
		b.mu.Lock()
		if b.state == stateRunning && !seen[b.cont.ID] {
			vanished = append(vanished, b)
		}
		b.mu.Unlock()
	}
	m.mu.RUnlock()
	for _, b := range vanished {
		m.verify(ctx, b)
	}
	m.removeOrphanVolumes(ctx)
}

func (m *Manager) reconcileContainer(ctx context.Context, c Container) {
	b := m.find(c.SandboxID)
	if b == nil {
		m.log.Warn("removing a container that has no record", "containerId", c.ID, "sandboxId", c.SandboxID)
		if err := m.runtime.Remove(ctx, c.ID); err != nil {
			m.log.Warn("an orphaned container could not be removed", "containerId", c.ID, "error", err)
		}
		return
	}
	b.mu.Lock()
	st, own := b.state, b.rec.ContainerID == c.ID
	run := b.cont.Run()
	b.mu.Unlock()
	switch {
	case st == stateStopped && own && c.State == ContainerRunning:
		m.adopt(ctx, b, c.ID)
	case st == stateRunning && own && (c.State != ContainerRunning || c.StartedAt != "" && c.StartedAt != run.StartedAt):
		m.verify(ctx, b)
	}
}

// adopt takes over a container that runs already. Its sandboxd is asked at the
// first request, which keeps the boot of a gateway with many sandboxes short.
func (m *Manager) adopt(ctx context.Context, b *box, containerID string) {
	select {
	case b.serial <- struct{}{}:
	default:
		return // an operation is on its way
	}
	defer func() { <-b.serial }()
	cont, err := m.runtime.Inspect(ctx, containerID)
	if err != nil || cont.State != ContainerRunning {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateStopped {
		return
	}
	if err := m.becomeLocked(b, stateRunning, true); err != nil {
		return
	}
	b.cont, b.attached = cont, false
	m.log.Info("adopted", "sandboxId", b.id, "containerId", containerID)
}

// finishDeletes removes what a delete, or a failed create, could not remove.
func (m *Manager) finishDeletes(ctx context.Context) {
	m.mu.RLock()
	var left []*box
	for _, b := range m.boxes {
		if b.current() == stateDeleting {
			left = append(left, b)
		}
	}
	m.mu.RUnlock()
	for _, b := range left {
		select {
		case b.serial <- struct{}{}:
		default:
			continue // being deleted right now
		}
		if b.current() == stateDeleting {
			if err := m.destroy(ctx, b); err != nil {
				m.log.Warn("a delete could not be finished yet", "sandboxId", b.id, "error", err)
			}
		}
		<-b.serial
	}
}

// removeOrphanVolumes removes volumes that no record names. The volumes are
// listed before the records: a volume is made after its record.
func (m *Manager) removeOrphanVolumes(ctx context.Context) {
	volumes, err := m.runtime.Volumes(ctx)
	if err != nil {
		m.log.Warn("reconcile: the engine did not list volumes", "error", err)
		return
	}
	wanted := map[string]bool{}
	m.mu.RLock()
	for _, b := range m.boxes {
		b.mu.Lock()
		wanted[b.rec.Volume] = true
		unreadable := b.unreadable
		b.mu.Unlock()
		if unreadable {
			m.mu.RUnlock()
			return // one of the volumes may be its
		}
	}
	m.mu.RUnlock()
	for _, v := range volumes {
		if wanted[v] {
			continue
		}
		m.log.Warn("removing a volume that has no record", "volume", v)
		if err := m.runtime.RemoveVolume(ctx, v); err != nil && !errors.Is(err, ErrNoContainer) {
			m.log.Warn("an orphaned volume could not be removed", "volume", v, "error", err)
		}
	}
}

// saveActivity writes what changed of lastActiveAt and lastError, at most once
// a tick a sandbox.
func (m *Manager) saveActivity(ctx context.Context) {
	m.mu.RLock()
	boxes := make([]*box, 0, len(m.boxes))
	for _, b := range m.boxes {
		boxes = append(boxes, b)
	}
	m.mu.RUnlock()
	for _, b := range boxes {
		select {
		case b.serial <- struct{}{}:
		default:
			continue
		}
		b.mu.Lock()
		last := b.lastActive
		changed := b.state != stateDeleting && b.rec.Phase == PhaseReady && last.After(b.rec.LastActiveAt)
		b.mu.Unlock()
		if changed {
			if err := m.save(ctx, b, func(r *Record) { r.LastActiveAt = last }); err != nil {
				m.log.Warn("the time of the last activity could not be written", "sandboxId", b.id, "error", err)
			}
		}
		<-b.serial
	}
}
