package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Idle says after which time without activity a sandbox takes a step down the
// ladder, counted from its last activity each; 0 means never.
type Idle struct {
	Freeze  time.Duration
	Stop    time.Duration
	Archive time.Duration
	Delete  time.Duration
	// MaxAwake is how long a sandbox may say that it is busy without a request
	// to it before it is put to sleep all the same.
	MaxAwake time.Duration
}

// DefaultIdle are the gateway's own times.
func DefaultIdle() Idle {
	return Idle{Freeze: 5 * time.Minute, Stop: 30 * time.Minute, Archive: 24 * time.Hour, MaxAwake: 24 * time.Hour}
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
			all := m.snapshot()
			surplus := m.surplus(all)
			for _, b := range all {
				m.lookAt(b, time.Now(), surplus[b])
			}
		case <-m.base.Done():
			return
		}
	}
}

// surplus are the frozen sandboxes that are one too many, the longest idle first.
func (m *Manager) surplus(all []*box) map[*box]bool {
	if m.settings.MaxFrozen <= 0 {
		return nil
	}
	type frozen struct {
		b     *box
		since time.Time
	}
	var found []frozen
	for _, b := range all {
		b.mu.Lock()
		if b.state == stateFrozen {
			found = append(found, frozen{b, b.lastActive})
		}
		b.mu.Unlock()
	}
	if len(found) <= m.settings.MaxFrozen {
		return nil
	}
	slices.SortFunc(found, func(a, b frozen) int { return a.since.Compare(b.since) })
	over := map[*box]bool{}
	for _, f := range found[:len(found)-m.settings.MaxFrozen] {
		over[f.b] = true
	}
	return over
}

// lookAt begins what is due for one sandbox, in the background. One that is
// surplus does not stay frozen.
func (m *Manager) lookAt(b *box, now time.Time, surplus bool) {
	b.mu.Lock()
	idle := m.settings.Idle.with(b.rec.Idle)
	tier, down := idle.due(b.state, now.Sub(b.lastActive))
	if surplus && !down && b.state == stateFrozen {
		tier, down = sandbox.TierStopped, true
	}
	down = down && now.After(b.descendAfter)
	forget := idle.Delete > 0 && now.Sub(b.lastActive) >= idle.Delete && b.state.visible() && b.state != stateCreating
	store := b.state == stateRunning && b.attached && b.dirty && !b.persisting && now.After(b.persistAfter)
	if b.looking || b.inUse > 0 || b.unreadable || !down && !store && !forget {
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
		switch {
		case m.busy(b, idle):
		case forget:
			m.log.Info("deleting a sandbox that was idle for too long", "sandboxId", b.id, "idle", idle.Delete)
			if err := m.Delete(m.base, b.id); err != nil {
				m.log.Warn("an idle sandbox could not be deleted yet", "sandboxId", b.id, "error", err)
			}
		case down:
			m.descend(b, tier)
		case store:
			m.persist(b)
		}
	})
}

// busy asks a running sandbox whether something is being done in it, which is
// activity. One that says so for longer than MaxAwake without any request to it
// is not believed any more.
func (m *Manager) busy(b *box, idle Idle) bool {
	b.mu.Lock()
	running, cont := b.state == stateRunning, b.cont
	g, rec, requested := b.guest, b.rec, b.lastRequest
	b.mu.Unlock()
	if !running {
		return false
	}
	if g == nil { // adopted, and nobody has come for it yet
		release, ok := b.trySerial()
		if !ok {
			return true // somebody is at it right now
		}
		var err error
		g, err = m.open(b.life, b, cont)
		release()
		if err != nil {
			return false
		}
	}
	st, err := statusWithin(m.base, statusTimeout, g.Status)
	if err != nil || !st.Busy {
		return false // one that does not answer does nothing that could be waited for
	}
	awake := time.Since(requested)
	if idle.MaxAwake > 0 && awake >= idle.MaxAwake {
		why := fmt.Sprintf("it has said to be busy for %s without a request to it, and is put to sleep (MAX_AWAKE)", awake.Round(time.Second))
		m.log.Warn("a sandbox is not believed to be busy", "sandboxId", b.id, "awake", awake)
		m.notify(rec, sandbox.EventSandboxError, map[string]any{"reason": why})
		m.descend(b, sandbox.TierStopped)
		return true
	}
	b.mu.Lock()
	b.lastActive = time.Now().UTC()
	b.persistAfter = time.Now().Add(m.settings.PersistPause)
	b.mu.Unlock()
	return true
}

// statusTimeout bounds the question whether a sandbox is busy.
const statusTimeout = 5 * time.Second

// descend puts a sandbox to sleep if nobody works on it. What fails is tried
// again after a while.
func (m *Manager) descend(b *box, tier sandbox.Tier) {
	release, ok := b.trySerial()
	if !ok {
		return
	}
	defer release()
	if err := m.settle(b.life, b, tier, false); err != nil && b.life.Err() == nil {
		m.log.Warn("a sandbox could not be put to sleep yet", "sandboxId", b.id, "tier", tier, "error", err)
		b.mu.Lock()
		b.lastError, b.descendAfter = reason(err), time.Now().Add(m.settings.PersistRetry)
		b.mu.Unlock()
	}
}

// Hibernate puts a sandbox to sleep at once. One in which something is being
// done is refused (sandbox_busy), unless force ends that. One that sleeps as
// deeply or more stays as it is.
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
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		if !force && (!b.unused(ctx) || m.claimsBusy(ctx, b)) {
			return sandbox.Errorf(sandbox.CodeSandboxBusy, "something is being done in the sandbox %q; wait, or end it with force", id)
		}
		return m.settle(ctx, b, tier, force)
	})
	if err != nil {
		return resp, err
	}
	info, _ := b.info()
	return sandbox.HibernateResponse{Success: true, SandboxID: id, Status: info.Status, Tier: info.Tier}, nil
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
	g, asked := b.guest, b.state == stateRunning && b.attached
	b.mu.Unlock()
	if !asked {
		return false
	}
	st, err := statusWithin(ctx, statusTimeout, g.Status)
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
