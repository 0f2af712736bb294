package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Idle says after which time without activity a sandbox takes a step down the
// ladder, counted from its last activity each; 0 means never.
type Idle struct {
	Freeze time.Duration
	// Shrink is when what is frozen is moved to swap, if there is any.
	Shrink  time.Duration
	Stop    time.Duration
	Archive time.Duration
	Delete  time.Duration
	// MaxAwake is how long a sandbox may say that it is busy without a request
	// to it before it is put to sleep all the same.
	MaxAwake time.Duration
}

// DefaultIdle are the gateway's own times.
func DefaultIdle() Idle {
	return Idle{Freeze: 5 * time.Minute, Shrink: 10 * time.Minute, Stop: 30 * time.Minute, Archive: 24 * time.Hour, MaxAwake: 24 * time.Hour}
}

// with are the times with a sandbox's own laid over them.
func (i Idle) with(own sandbox.Idle) Idle {
	set := func(to *time.Duration, ms *int64) {
		if ms != nil {
			*to = time.Duration(*ms) * time.Millisecond
		}
	}
	set(&i.Freeze, own.FreezeAfterMs)
	set(&i.Stop, own.StopAfterMs)
	set(&i.Archive, own.ArchiveAfterMs)
	set(&i.Delete, own.DeleteAfterMs)
	set(&i.MaxAwake, own.MaxAwakeMs)
	return i
}

// maxIdle is the longest time that a caller can set, ten years: more is a mistake.
const maxIdle = 10 * 365 * 24 * time.Hour

func checkIdle(own *sandbox.Idle) (sandbox.Idle, error) {
	if own == nil {
		return sandbox.Idle{}, nil
	}
	for name, ms := range map[string]*int64{
		"freezeAfterMs": own.FreezeAfterMs, "stopAfterMs": own.StopAfterMs, "archiveAfterMs": own.ArchiveAfterMs,
		"deleteAfterMs": own.DeleteAfterMs, "maxAwakeMs": own.MaxAwakeMs,
	} {
		if ms != nil && (*ms < 0 || *ms > maxIdle.Milliseconds()) {
			return *own, sandbox.Errorf(sandbox.CodeInvalidRequest, "idle.%s must be from 0 (never) to %d milliseconds", name, maxIdle.Milliseconds())
		}
	}
	return *own, nil
}

// due is the lowest step that a sandbox in a state has to take after being idle
// for so long, and whether there is one.
func (i Idle) due(st state, idle time.Duration) (sandbox.Tier, bool) {
	after := func(limit time.Duration) bool { return limit > 0 && idle >= limit }
	switch {
	case (st == stateRunning || st == stateFrozen || st == stateStopped) && after(i.Archive):
		return sandbox.TierArchived, true
	case (st == stateRunning || st == stateFrozen) && after(i.Stop):
		return sandbox.TierStopped, true
	case st == stateRunning && after(i.Freeze):
		return sandbox.TierFrozen, true
	}
	return "", false
}

// look is what the gateway does every now and then for every sandbox: what was
// done in it is stored once it is idle, and it is put to sleep in time.
func (m *Manager) look() {
	every := time.NewTicker(m.settings.LookEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			all := m.all()
			surplus := m.surplus(all, time.Now())
			for _, b := range all {
				m.lookAt(b, time.Now(), surplus[b])
			}
		case <-m.base.Done():
			return
		}
	}
}

// surplus are the sandboxes that are one too many, the longest idle first: frozen
// ones beyond MaxFrozen, and as many running ones as there was no room for others
// since the last look.
func (m *Manager) surplus(all []*box, now time.Time) map[*box]bool {
	var frozen, idle []*box
	since := map[*box]time.Time{}
	for _, b := range all {
		b.mu.Lock()
		since[b] = b.lastActive
		unused := b.inUse == 0 && b.held.Load() == 0 && now.Sub(b.lastActive) >= m.settings.RoomAfter
		switch {
		case b.state == stateFrozen:
			frozen = append(frozen, b)
		case b.state == stateRunning && unused && m.settings.Idle.with(b.rec.Idle).Freeze > 0:
			idle = append(idle, b)
		}
		b.mu.Unlock()
	}
	over := map[*box]bool{}
	longest := func(boxes []*box, n int) {
		slices.SortFunc(boxes, func(a, b *box) int { return since[a].Compare(since[b]) })
		for _, b := range boxes[:max(0, min(n, len(boxes)))] {
			over[b] = true
		}
	}
	if m.settings.MaxFrozen > 0 {
		longest(frozen, len(frozen)-m.settings.MaxFrozen)
	}
	longest(idle, int(m.refused.Swap(0)))
	return over
}

// duty is what is due for a sandbox.
type duty struct {
	tier sandbox.Tier // to put it to sleep in; "" for none
	// overdue: it has been in use for MaxAwake without a new request, and is put to
	// sleep under whoever uses it.
	overdue bool
	store   bool // what was done in it
	urgent  bool // however busy it is
	thaw    bool // to store what it was frozen with
	forget  bool // delete it
	shrink  bool
}

// dueLocked says what is due. The caller holds mu.
func (m *Manager) dueLocked(b *box, idle Idle, now time.Time, surplus bool) (d duty) {
	used := b.inUse > 0 || b.held.Load() > 0
	since, running := now.Sub(b.lastActive), b.state == stateRunning
	if tier, due := idle.due(b.state, since); due {
		d.tier = tier
	}
	switch {
	case running && surplus && d.tier == "" && !b.dirty && !b.persisting:
		d.tier = sandbox.TierFrozen
	case b.state == stateFrozen && surplus && d.tier == "",
		// It stopped by itself: what it has is stored before anything else happens to it.
		b.state == stateStopped && d.tier == "" && b.rec.Tier == "" && since >= m.settings.PersistRetry:
		d.tier = sandbox.TierStopped
	case d.tier == sandbox.TierFrozen && (b.dirty || b.persisting):
		d.tier = "" // a frozen sandbox cannot be stored
	}
	d.overdue = running && b.inUse > 0 && idle.MaxAwake > 0 && now.Sub(b.lastRequest) >= idle.MaxAwake
	if used && !d.overdue || !now.After(b.descendAfter) {
		d.tier, d.overdue = "", false
	}
	unstored := b.dirty && !b.persisting && now.After(b.persistAfter)
	d.urgent = unstored && now.Sub(b.dirtySince) >= m.settings.PersistMost
	d.store = running && unstored && (d.urgent || !used && now.After(b.quietUntil))
	d.thaw = b.state == stateFrozen && unstored && !used && d.tier == ""
	d.shrink = b.state == stateFrozen && idle.Shrink > 0 && since >= idle.Shrink && d.tier == "" && !used && !b.shrunk && now.After(b.shrinkAfter)
	d.forget = !used && idle.Delete > 0 && since >= idle.Delete && b.state.visible() && b.state != stateCreating
	return d
}

// lookAt begins what is due for one sandbox, in the background. One that is
// surplus takes a step down.
func (m *Manager) lookAt(b *box, now time.Time, surplus bool) {
	b.mu.Lock()
	idle := m.settings.Idle.with(b.rec.Idle)
	d := m.dueLocked(b, idle, now, surplus)
	if b.looking || b.unreadable || d == (duty{urgent: d.urgent}) {
		b.mu.Unlock()
		return
	}
	b.looking = true
	b.mu.Unlock()
	m.work.Go(func() {
		defer func() {
			b.mu.Lock()
			b.looking = false
			b.mu.Unlock()
		}()
		m.attend(b, d, idle, now)
	})
}

// attend does what is due, unless the sandbox is busy.
func (m *Manager) attend(b *box, d duty, idle Idle, now time.Time) {
	busy, overdue := m.busy(b, idle)
	switch {
	case d.overdue || overdue:
		m.disbelieve(b, now)
	case d.store && (d.urgent || !busy):
		m.persist(b, false)
	case busy:
	case d.forget:
		m.forgetIdle(b, idle.Delete)
	case d.tier != "":
		m.descend(b, d.tier, false, now)
	case d.thaw:
		m.storeFrozen(b, now)
	case d.shrink:
		m.shrink(b)
	}
}

// shrinkPause is for how long a sandbox is left alone that could not be shrunk.
const shrinkPause = 10 * time.Minute

// shrink moves the memory of a frozen sandbox to swap. One at a time: it is the
// disk's work.
func (m *Manager) shrink(b *box) {
	if !m.shrinking.TryLock() {
		return // it is looked at again
	}
	defer m.shrinking.Unlock()
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	b.mu.Lock()
	cont, still := b.cont, b.state == stateFrozen && b.held.Load() == 0
	b.mu.Unlock()
	if !still {
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(b.life, m.settings.Deadlines.Engine)
	defer cancel()
	err := m.runtime.Shrink(ctx, cont.ID)
	b.mu.Lock()
	if b.shrunk = err == nil; !b.shrunk {
		b.shrinkAfter = time.Now().Add(shrinkPause)
	}
	b.mu.Unlock()
	switch {
	case err == nil:
		m.logOf(b).Info("shrunk", "duration", time.Since(began))
	case sandbox.HasCode(err, sandbox.CodeUnsupported):
		m.logOf(b).Debug("not shrunk", "error", err)
	case b.life.Err() == nil:
		m.logOf(b).Warn("a frozen sandbox could not be shrunk", "error", err)
	}
}

// forgetIdle deletes a sandbox, unless somebody has come for it.
func (m *Manager) forgetIdle(b *box, limit time.Duration) {
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	b.mu.Lock()
	idle := time.Since(b.lastActive) >= limit && b.inUse == 0 && b.held.Load() == 0 && b.state.visible()
	b.unwanted = b.unwanted || idle
	b.mu.Unlock()
	if !idle {
		return
	}
	m.logOf(b).Info("deleting a sandbox that was idle for too long", "idle", limit)
	if err := m.destroy(m.base, b); err != nil {
		m.logOf(b).Warn("an idle sandbox could not be deleted yet", "error", err)
	}
}

// busy asks a running sandbox whether something is being done in it, which is
// activity. One that says so for longer than MaxAwake without any request to it
// is overdue. One that does not answer may be busy, for a while.
func (m *Manager) busy(b *box, idle Idle) (busy, overdue bool) {
	g, err := m.guestOf(b)
	if g == nil && err == nil {
		return false, false // it does not run
	}
	var st guest.Status
	if err == nil {
		st, err = m.ask(m.base, b, g, statusTimeout)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.unanswered++
		return b.unanswered < maxUnanswered, false
	}
	b.unanswered = 0
	if !st.Busy {
		return false, false
	}
	now := time.Now()
	if idle.MaxAwake > 0 && now.Sub(b.lastRequest) >= idle.MaxAwake {
		return true, now.After(b.descendAfter) && b.state == stateRunning
	}
	b.lastActive, b.quietUntil = now.UTC(), now.Add(m.settings.PersistPause)
	return true, false
}

// guestOf is a running sandbox's sandboxd; nil if it does not run. Nobody may
// have come for it yet since it was adopted.
func (m *Manager) guestOf(b *box) (*guest.Client, error) {
	b.mu.Lock()
	running, g := b.state == stateRunning, b.guest
	b.mu.Unlock()
	switch {
	case !running:
		return nil, nil //nolint:nilnil // nobody to ask: a frozen one would not answer
	case g != nil:
		return g, nil
	}
	release, ok := b.trySerial()
	if !ok {
		return nil, nil //nolint:nilnil // somebody is at it, and it is looked at again
	}
	defer release()
	b.mu.Lock()
	running, g, cont := b.state == stateRunning, b.guest, b.cont
	b.mu.Unlock()
	switch {
	case !running:
		return nil, nil //nolint:nilnil // as above
	case g != nil:
		return g, nil
	}
	return m.open(b.life, b, cont)
}

const (
	// statusTimeout bounds the question whether a sandbox is busy. It is more than
	// sandboxd gives OpenCode to answer.
	statusTimeout = 10 * time.Second
	// maxUnanswered is how many such questions in a row may stay without an answer
	// before a sandbox counts as idle.
	maxUnanswered = 3
)

// disbelieve puts a sandbox to sleep whatever is being done in it.
func (m *Manager) disbelieve(b *box, now time.Time) {
	b.mu.Lock()
	awake, rec := now.Sub(b.lastRequest).Round(time.Second), b.rec
	b.mu.Unlock()
	m.logOf(b).Warn("a sandbox is not believed to be busy", "awake", awake)
	m.notify(rec, sandbox.EventSandboxError, map[string]any{
		"reason": fmt.Sprintf("it has been busy for %s without a request to it, and is put to sleep (MAX_AWAKE)", awake),
	})
	m.descend(b, sandbox.TierStopped, true, now)
}

// descend puts a sandbox to sleep, unless somebody came for it after it was decided.
// What fails is tried again after a while, longer each time.
func (m *Manager) descend(b *box, tier sandbox.Tier, force bool, decided time.Time) {
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	was := b.current()
	b.mu.Lock()
	life := b.aboutLocked(b.life)
	b.mu.Unlock()
	m.refresh(life, b)
	if b.current() != was {
		return // it runs after all
	}
	err := m.settle(life, b, tier, force, decided)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.failures, b.awaits = 0, ""
	case b.life.Err() != nil || sandbox.HasCode(err, sandbox.CodeSandboxBusy):
	default:
		b.lastError = reason(err)
		b.descendAfter = time.Now().Add(m.backOffLocked(b, err))
		m.log.Warn("a sandbox could not be put to sleep yet", "sandboxId", b.id, "userId", b.rec.UserID, "tier", tier, "error", err)
	}
}

// maxBackOff bounds how long is waited before what failed is tried again.
const maxBackOff = time.Hour

// backOffLocked counts a failure, and says how long to wait, unless what was away is
// back before. The caller holds mu.
func (m *Manager) backOffLocked(b *box, err error) time.Duration {
	b.failures, b.awaits = min(b.failures+1, 20), "" // more would overflow
	for _, away := range []sandbox.Code{sandbox.CodeStoreAway, sandbox.CodeEngineAway} {
		if sandbox.HasCode(err, away) {
			b.awaits = away
		}
	}
	return min(m.settings.PersistRetry<<(b.failures-1), maxBackOff)
}

// probe asks a store that sandboxes wait for whether it is back. The pauses between
// their own tries grow to an hour, and nothing is stored meanwhile.
func (m *Manager) probe() {
	every := time.NewTicker(m.settings.ProbeEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			if m.awaited(sandbox.CodeStoreAway) && m.storeReady(m.base) == nil {
				m.back(sandbox.CodeStoreAway)
			}
		case <-m.base.Done():
			return
		}
	}
}

// awaited says whether a sandbox waits for something that was away.
func (m *Manager) awaited(away sandbox.Code) bool {
	return slices.ContainsFunc(m.all(), func(b *box) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.awaits == away
	})
}

// back has what failed as something was away tried again at once.
func (m *Manager) back(away sandbox.Code) {
	for _, b := range m.all() {
		b.mu.Lock()
		if b.awaits == away {
			b.awaits, b.failures, b.persistAfter, b.descendAfter = "", 0, time.Time{}, time.Time{}
		}
		b.mu.Unlock()
	}
}

// storeFrozen stores what a sandbox was frozen with although it was not stored: it
// goes on for as long as that takes. One that is asked for meanwhile is left running.
func (m *Manager) storeFrozen(b *box, decided time.Time) {
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	b.mu.Lock()
	still, life := b.state == stateFrozen && b.dirty && b.inUse == 0 && b.held.Load() == 0, b.aboutLocked(b.life)
	b.mu.Unlock()
	if !still {
		return
	}
	err := m.storeReady(life)
	if err == nil {
		err = m.thaw(life, b)
	}
	if err == nil && b.current() == stateRunning {
		err = m.storeFirst(life, b)
		if freezeErr := m.freezeNow(life, b, false, decided); !sandbox.HasCode(freezeErr, sandbox.CodeSandboxBusy) {
			err = errors.Join(err, freezeErr)
		}
	}
	if err == nil || life.Err() != nil {
		return
	}
	b.mu.Lock()
	b.persistAfter = time.Now().Add(m.backOffLocked(b, err))
	b.mu.Unlock()
	m.log.WarnContext(life, "a frozen sandbox could not be stored yet", "error", err)
}

// refresh looks whether the container of a stopped sandbox runs: after a restart of
// the gateway, or a start by somebody else. The caller holds serial.
func (m *Manager) refresh(ctx context.Context, b *box) {
	rec := b.record()
	if b.current() != stateStopped || rec.ContainerID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	m.adoptHeld(ctx, b, rec.ContainerID)
}

// Hibernate puts a sandbox to sleep at once. One in which something is being
// done is refused (sandbox_busy), unless force ends that. What was done in it is
// stored first; while the store is away that is store_unavailable, and the sandbox
// goes on, unless force freezes it all the same: the answer says that it is unstored
// then. One that sleeps as deeply or more stays as it is.
func (m *Manager) Hibernate(ctx context.Context, id string, tier sandbox.Tier, force bool) (sandbox.HibernateResponse, error) {
	var resp sandbox.HibernateResponse
	if tier == "" {
		tier = sandbox.TierStopped
	}
	if depth(tier) == 0 {
		return resp, sandbox.Errorf(sandbox.CodeInvalidRequest, "tier must be one of frozen, stopped, archived")
	}
	b, err := m.existing(id)
	if err != nil {
		return resp, err
	}
	var reached sandbox.Info
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		m.refresh(ctx, b)
		if !force && !b.unused(ctx) {
			return busyError(id)
		}
		decided := time.Now()
		if !force && m.claimsBusy(ctx, b) {
			return busyError(id)
		}
		err := m.settle(ctx, b, tier, force, decided)
		reached, _ = b.info() // before a request that waits already wakes it
		return err
	})
	if err != nil {
		return resp, err
	}
	return sandbox.HibernateResponse{
		Success: true, SandboxID: id, Status: reached.Status, Tier: reached.Tier,
		Unstored: reached.Tier == sandbox.TierFrozen && !reached.UnstoredSince.IsZero(),
	}, nil
}

func busyError(id string) error {
	return sandbox.Errorf(sandbox.CodeSandboxBusy, "something is being done in the sandbox %q; wait, or end it with force", id)
}

// usePatience is how long a use may take to end that has been answered already.
const usePatience = time.Second

// unused waits for a moment until nobody uses the sandbox, and says whether that
// is so.
func (b *box) unused(ctx context.Context) bool {
	const pause = 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, usePatience)
	defer cancel()
	for {
		b.mu.Lock()
		inUse := b.inUse
		b.mu.Unlock()
		if inUse == 0 {
			return true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false
		}
	}
}

func (m *Manager) claimsBusy(ctx context.Context, b *box) bool {
	b.mu.Lock()
	g, cont, running := b.guest, b.cont, b.state == stateRunning
	b.mu.Unlock()
	if running && g == nil {
		g, _ = m.open(ctx, b, cont) // one that does not answer is not busy
	}
	if !running || g == nil {
		return false
	}
	st, err := m.ask(ctx, b, g, statusTimeout)
	return err == nil && st.Busy
}

// depth orders the tiers; 0 is none to sleep in.
func depth(t sandbox.Tier) int {
	switch t {
	case sandbox.TierFrozen:
		return 1
	case sandbox.TierStopped:
		return 2
	case sandbox.TierArchived:
		return 3
	default:
		return 0
	}
}
