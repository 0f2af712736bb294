package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
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
		b.rec, b.version = s.Record, s.Version
		b.lastActive, b.lastError = s.Record.LastActiveAt, s.Record.Secrets.LastError
		b.lastRequest, b.generation = b.lastActive, s.Record.Generation
		next := stateStopped
		if s.Record.Tier == sandbox.TierArchived {
			next = stateArchived
		}
		switch {
		case s.Record.Phase == PhaseReady:
		case s.Record.Phase == PhaseCreating && m.wasReady(ctx, s.Record):
			b.unreadable, next = true, stateLost
			b.lastError = "its record is older than what is stored of it: somebody put an old one back"
		default:
			// A create that never answered, or a delete that was interrupted.
			next = stateDeleting
			b.end(ErrDeleted)
		}
		if err := m.become(b, next, true); err != nil {
			return err
		}
	}
	for id, why := range listing.Unreadable {
		m.log.ErrorContext(ctx, "a record cannot be read", "sandboxId", id, "error", why)
		b := m.newBox(id)
		b.unreadable = true
		b.rec, b.lastError = Record{SandboxID: id}, "its record cannot be read: "+why.Error()
		if err := m.become(b, stateLost, true); err != nil {
			return err
		}
	}
	m.log.InfoContext(ctx, "records loaded", "sandboxes", len(listing.Stored), "unreadable", len(listing.Unreadable))
	return nil
}

// wasReady says whether a sandbox was ready once whose record says that it is
// being created: only then it was stored. If that is not known it may have been.
func (m *Manager) wasReady(ctx context.Context, rec Record) bool {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	all, err := m.workspaces.Snapshots(ctx, rec.ref())
	return err != nil || len(all) > 0
}

// follow listens to the engine for as long as the manager lives. Each time the
// engine can be heard (again), what was missed is made up for.
func (m *Manager) follow() {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	pause := least
	for m.base.Err() == nil {
		err := m.runtime.Events(m.base, func() {
			pause = least
			m.pool.heal()
			m.back(sandbox.CodeEngineAway)
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
	if isMember(e.SandboxID) && (e.Kind == EventDied || e.Kind == EventDestroyed) {
		m.pool.lost(e.SandboxID)
		return
	}
	b := m.find(e.SandboxID)
	if b == nil {
		return
	}
	if e.Kind == EventOOM {
		m.logOf(b).Warn("a process was killed for want of memory")
		return
	}
	m.work.Go(func() { m.verify(m.base, b) })
}

// Verify looks whether the run that a request found dead has really ended, so
// that the next request starts the sandbox instead of failing too. It reports
// whether the sandbox is stopped.
func (m *Manager) Verify(ctx context.Context, id string) (stopped bool) {
	b := m.find(id)
	if b == nil {
		return false
	}
	m.verify(ctx, b)
	return b.current() == stateStopped
}

func (m *Manager) verify(ctx context.Context, b *box) {
	b.mu.Lock()
	st, cont := b.state, b.cont
	b.mu.Unlock()
	if st != stateRunning && st != stateFrozen {
		return // an operation is on its way and finds out by itself
	}
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	now, err := m.runtime.Inspect(ctx, cont.ID)
	switch {
	case errors.Is(err, ErrNoContainer):
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container was removed outside the gateway"))
	case err != nil: // not known: the engine is asked again later
	case (now.State == ContainerRunning || now.State == ContainerPaused) && now.Run() == cont.Run():
		m.followPause(b, now) //nolint:contextcheck // what it does is the sandbox's
	case now.OOMKilled:
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container ran out of memory and was killed; raise SANDBOX_MEMORY"))
	default:
		m.halt(b, cont.Run(), sandbox.EventSandboxStopped, fmt.Errorf("the container ended with exit code %d", now.ExitCode))
	}
}

// followPause notes that a container was paused or unpaused outside the gateway. One
// that was paused under a request goes on: the request would wait for ever.
func (m *Manager) followPause(b *box, now Container) {
	release, ok := b.trySerial()
	if !ok {
		return // an operation is on its way
	}
	defer release()
	b.mu.Lock()
	thaw := false
	switch {
	case b.cont.Run() != now.Run():
	case b.state == stateRunning && now.State == ContainerPaused:
		_ = m.becomeLocked(b, stateFrozen, true)
		thaw = b.inUse > 0 || b.held.Load() > 0
	case b.state == stateFrozen && now.State == ContainerRunning:
		_ = m.becomeLocked(b, stateRunning, true)
	}
	life := b.aboutLocked(b.life)
	b.mu.Unlock()
	if !thaw {
		return
	}
	if err := m.thaw(life, b); err != nil {
		m.log.WarnContext(life, "a sandbox that was paused under a request could not go on", "error", err)
	}
}

// reconcile compares what the engine has with what the records want.
func (m *Manager) reconcile(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	m.finishDeletes()
	containers, err := m.runtime.List(ctx)
	if err != nil {
		m.log.WarnContext(ctx, "reconcile: the engine did not list containers", "error", err)
		return
	}
	seen := map[string]bool{}
	for _, c := range containers {
		seen[c.ID] = true
		m.reconcileContainer(ctx, c)
	}
	for _, b := range m.all() {
		b.mu.Lock()
		vanished := (b.state == stateRunning || b.state == stateFrozen) && !seen[b.cont.ID]
		b.mu.Unlock()
		if vanished {
			m.verify(ctx, b)
		}
	}
	m.reconcileVolumes(ctx, seen)
}

func (m *Manager) reconcileContainer(ctx context.Context, c Container) {
	if isMember(c.SandboxID) {
		m.reconcileMember(ctx, c)
		return
	}
	b := m.find(c.SandboxID)
	if b == nil {
		m.log.WarnContext(ctx, "removing a container that has no record", "containerId", c.ID, "sandboxId", c.SandboxID)
		if err := m.runtime.Remove(ctx, c.ID); err != nil {
			m.log.WarnContext(ctx, "an orphaned container could not be removed", "containerId", c.ID, "error", err)
		}
		return
	}
	b.mu.Lock()
	st, own := b.state, b.rec.ContainerID == c.ID
	b.mu.Unlock()
	switch {
	case st == stateStopped && own && (c.State == ContainerRunning || c.State == ContainerPaused):
		m.adopt(ctx, b, c.ID)
	case st == stateRunning && own && c.State != ContainerRunning, st == stateFrozen && own && c.State != ContainerPaused:
		m.verify(ctx, b)
	case st == stateArchived:
		m.removeLeftover(ctx, b, c)
	}
}

// reconcileMember removes a member of a pool that is no more, such as that of the
// gateway before this one.
func (m *Manager) reconcileMember(ctx context.Context, c Container) {
	if m.pool.has(c.SandboxID) {
		return
	}
	// It may have become a sandbox since it was listed.
	now, err := m.runtime.Inspect(ctx, c.ID)
	if err != nil || now.SandboxID != c.SandboxID {
		return
	}
	m.log.InfoContext(ctx, "removing a container that was to be ready ahead", "containerId", c.ID)
	if err := m.runtime.Remove(ctx, c.ID); err != nil && !errors.Is(err, ErrNoContainer) {
		m.log.WarnContext(ctx, "a container could not be removed yet", "containerId", c.ID, "error", err)
	}
}

// reconcileMemberVolumes removes the volumes of a pool that is no more: those that
// are marked as free. What a create has taken is a sandbox's, if of another store.
func (m *Manager) reconcileMemberVolumes(ctx context.Context, volumes []string, wanted map[string]bool) {
	for _, mark := range volumes {
		if _, free := memberVolume(mark); !free || wanted[mark] {
			continue
		}
		disk := strings.TrimSuffix(mark, freeSuffix)
		if wanted[disk] {
			continue // a create is taking it
		}
		m.log.InfoContext(ctx, "removing the volume of a container that was to be ready ahead", "volume", disk)
		for _, name := range []string{disk, mark} {
			if err := m.runtime.RemoveVolume(ctx, name); err != nil && !errors.Is(err, ErrNoContainer) {
				m.log.WarnContext(ctx, "a volume could not be removed yet", "volume", name, "error", err)
				break
			}
		}
	}
}

// removeLeftover removes a container of a sandbox that is archived: the gateway
// ended between the record and the engine.
func (m *Manager) removeLeftover(ctx context.Context, b *box, c Container) {
	release, ok := b.trySerial()
	if !ok {
		return // it is being woken
	}
	defer release()
	if b.current() != stateArchived {
		return
	}
	m.log.InfoContext(ctx, "removing the container of an archived sandbox", "sandboxId", b.id, "containerId", c.ID)
	if err := m.runtime.Remove(ctx, c.ID); err != nil && !errors.Is(err, ErrNoContainer) {
		m.log.WarnContext(ctx, "a container could not be removed yet", "sandboxId", b.id, "error", err)
	}
}

// adopt takes over a container that runs already. Its sandboxd is asked at the
// first request, which keeps the boot of a gateway with many sandboxes short.
func (m *Manager) adopt(ctx context.Context, b *box, containerID string) {
	release, ok := b.trySerial()
	if !ok {
		return // an operation is on its way
	}
	defer release()
	m.adoptHeld(ctx, b, containerID)
}

// adoptHeld is adopt for who holds serial.
func (m *Manager) adoptHeld(ctx context.Context, b *box, containerID string) {
	cont, err := m.runtime.Inspect(ctx, containerID)
	next := stateRunning
	switch {
	case err != nil:
		return
	case cont.State == ContainerPaused:
		next = stateFrozen
	case cont.State != ContainerRunning:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateStopped {
		return
	}
	if err := m.becomeLocked(b, next, true); err != nil {
		return
	}
	b.cont, b.guest, b.attached = cont, nil, false
	b.restarts, b.restartsOf = unknown, cont.Run()
	if next != stateFrozen || !b.rec.storedLast() {
		b.soilLocked() // who knows what it did before the gateway came
	}
	m.log.InfoContext(ctx, "adopted", "sandboxId", b.id, "containerId", containerID)
}

// finishDeletes removes what a delete, or a failed create, could not remove: it
// was interrupted, something was away, or its caller left while it waited.
func (m *Manager) finishDeletes() {
	for _, b := range m.all() {
		if b.current() != stateDeleting && !errors.Is(context.Cause(b.life), ErrDeleted) {
			continue
		}
		release, ok := b.trySerial()
		if !ok {
			continue // being deleted right now
		}
		// By itself: removing what is stored can take long.
		m.work.Go(func() {
			defer release()
			if err := m.destroy(m.base, b); err != nil {
				m.logOf(b).Warn("a delete could not be finished yet", "error", err)
			}
		})
	}
}

// reconcileVolumes removes volumes that their sandbox's record does not name, and
// notices volumes that are gone. They are listed before the records are looked
// at: a volume is made after its record. A volume whose sandbox has no record at
// all is kept: a delete removes the record last, so it was the store that lost it,
// or was changed for another. containers are those that there are.
func (m *Manager) reconcileVolumes(ctx context.Context, containers map[string]bool) {
	volumes, err := m.runtime.Volumes(ctx)
	if err != nil {
		m.log.WarnContext(ctx, "reconcile: the engine did not list volumes", "error", err)
		return
	}
	wanted, removing, keepAll := map[string]bool{}, map[string]bool{}, false
	var going []*box                     // that have volumes which are to be removed
	for _, v := range m.pool.volumes() { // before the records: what leaves the pool is on one
		wanted[v] = true
	}
	for _, b := range m.all() {
		b.mu.Lock()
		rec, st := b.rec, b.state
		keepAll = keepAll || b.unreadable // one of the volumes may be its
		wanted[rec.Volume], wanted[b.volume] = true, true
		for _, v := range rec.GivenUp {
			wanted[v] = true
		}
		for _, v := range rec.Removing {
			removing[v] = true
		}
		if len(rec.Removing) > 0 {
			going = append(going, b)
		}
		found := b.unreadable
		b.mu.Unlock()
		there := containers[rec.ContainerID] || slices.Contains(volumes, rec.Volume)
		switch {
		case st == stateStopped && !there:
			m.lose(ctx, b)
		case st == stateLost && there && !found:
			m.regain(b)
		}
	}
	m.reconcileMemberVolumes(ctx, volumes, wanted)
	for _, b := range going {
		m.finishRemoving(ctx, b)
	}
	if keepAll {
		return
	}
	for _, v := range volumes {
		if _, free := memberVolume(v); free || wanted[v] || removing[v] || slices.Contains(volumes, v+freeSuffix) {
			continue
		}
		if id := sandboxOfVolume(v); id == "" || m.find(id) == nil {
			m.warnOnce(v, "a volume has no record in the store and is kept; is it the right store? If it is, and nobody needs the volume, remove it: docker volume rm", "volume", v)
			continue
		}
		m.log.WarnContext(ctx, "removing a volume that has no record", "volume", v)
		if err := m.runtime.RemoveVolume(ctx, v); err != nil && !errors.Is(err, ErrNoContainer) {
			m.log.WarnContext(ctx, "an orphaned volume could not be removed", "volume", v, "error", err)
		}
	}
}

// finishRemoving removes the disks that a sandbox's record names as going, and forgets
// those that are gone: a gateway that was killed in between has not.
func (m *Manager) finishRemoving(ctx context.Context, b *box) {
	release, ok := b.trySerial()
	if !ok {
		return // an operation is on its way, such as the one that removes them
	}
	defer release()
	volumes, err := m.runtime.Volumes(ctx) // as it is now, while nothing else is done to the sandbox
	if err != nil {
		return
	}
	b.mu.Lock()
	b.rec.Removing = slices.DeleteFunc(slices.Clone(b.rec.Removing), func(v string) bool { return !slices.Contains(volumes, v) })
	left := len(b.rec.Removing)
	b.mu.Unlock()
	if left == 0 {
		return
	}
	if err := m.removeGoing(ctx, b); err != nil {
		m.log.WarnContext(ctx, "a disk could not be removed yet", "sandboxId", b.id, "error", err)
	}
}

// lose notes that a sandbox is lost: it stopped, its volume is gone, and it was
// never stored. One that was goes on from its newest snapshot when it is needed.
func (m *Manager) lose(ctx context.Context, b *box) {
	release, ok := b.trySerial()
	if !ok {
		return // an operation is on its way and finds out by itself
	}
	defer release()
	rec := b.record()
	volumes, err := m.runtime.Volumes(ctx) // the list may be of before it stopped
	if err != nil || b.current() != stateStopped || slices.Contains(volumes, rec.Volume) {
		return
	}
	all, err := m.workspaces.Snapshots(ctx, rec.ref())
	if err != nil || len(all) > 0 {
		m.warnOnce(rec.Volume, "a sandbox's disk is not in the engine; if it is needed its newest snapshot takes its place", "sandboxId", b.id, "snapshots", len(all), "error", err)
		return
	}
	if err := m.become(b, stateLost, false); err == nil {
		m.log.ErrorContext(ctx, "a workspace is lost: its volume was removed outside the gateway", "sandboxId", b.id)
		m.notify(rec, sandbox.EventSandboxError, map[string]any{"reason": "the workspace is lost"})
	}
}

// regain is for a sandbox that was lost and whose volume is there again.
func (m *Manager) regain(b *box) {
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	if b.current() == stateLost && m.become(b, stateStopped, true) == nil {
		m.logOf(b).Info("a workspace that was lost is there again")
	}
}

// warnOnce says something of a volume once, and not each minute.
func (m *Manager) warnOnce(volume, message string, args ...any) {
	m.mu.Lock()
	again := m.warned[volume]
	m.warned[volume] = true
	m.mu.Unlock()
	if !again {
		m.log.Warn(message, args...) //nolint:sloglint // the callers' are literals
	}
}

// saveActivity writes what changed of lastActiveAt and lastError, at most once
// a tick a sandbox.
func (m *Manager) saveActivity(ctx context.Context) {
	for _, b := range m.all() {
		release, ok := b.trySerial()
		if !ok {
			continue
		}
		b.mu.Lock()
		last := b.lastActive
		changed := b.state != stateDeleting && !b.unreadable && b.rec.Phase == PhaseReady &&
			(last.After(b.rec.LastActiveAt) || b.lastError != b.rec.Secrets.LastError)
		changed = changed || b.state.visible() && b.snapshot != nil && (b.rec.Snapshot == nil || b.rec.Snapshot.ID != b.snapshot.ID)
		b.mu.Unlock()
		if changed {
			if err := m.save(ctx, b, func(*Record) {}); err != nil {
				m.log.WarnContext(ctx, "the time of the last activity could not be written", "sandboxId", b.id, "error", err)
				release()
				return // the others would fail too, each after its deadline
			}
		}
		release()
	}
}
