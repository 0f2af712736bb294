package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Handle is a running sandbox, ready to be talked to. It stays good until the
// run ends; Life ends, with a cause, when the sandbox is deleted.
type Handle struct {
	SandboxID   string
	UserID      string
	Incarnation string
	Directory   string
	Life        context.Context //nolint:containedctx // what hangs on the sandbox ends with it
	Run         Run
	Link        Link
	Password    string // OpenCode's
	Guest       *guest.Client
	Transport   http.RoundTripper

	release func()
}

// Release says that the use is over: until then the sandbox is not put to sleep
// by itself. Calling it again is fine.
func (h Handle) Release() {
	if h.release != nil {
		h.release()
	}
}

// Purpose is what a sandbox is used for.
type Purpose int

// The purposes. Both are activity.
const (
	Looking Purpose = iota // nothing is changed
	Working                // what is changed is stored once the sandbox is idle
)

// Use returns the running sandbox of that id, waking it when it sleeps. Waiting
// for that is bounded in time (Deadlines.Hold) and in number (MaxHeld). The
// caller releases the handle.
func (m *Manager) Use(ctx context.Context, id string, purpose Purpose) (Handle, error) {
	b, err := m.existing(id)
	if err != nil {
		return Handle{}, err
	}
	if h, ok := m.handle(b, purpose); ok {
		return h, nil
	}
	if n := b.held.Add(1); n > int64(m.settings.MaxHeld) {
		b.held.Add(-1)
		return Handle{}, sandbox.Errorf(sandbox.CodeNoCapacity, "too many requests wait for the sandbox %q to start; try again in a moment", id)
	}
	defer b.held.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Hold)
	defer cancel()
	b.mu.Lock()
	wakes := b.wakes
	b.requestedLocked(Looking) // it is waited for, and must not be deleted as idle
	b.mu.Unlock()
	var handover handover
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		b.mu.Lock()
		failed := b.wakeErr
		tried := b.wakes > wakes
		b.mu.Unlock()
		if tried && failed != nil {
			return failed // somebody tried while this one waited: one failure for all
		}
		if _, err := m.up(ctx, b, wish{}); err != nil {
			return err
		}
		// Before anybody can put it to sleep again.
		if h, ok := m.handle(b, purpose); ok {
			handover.give(h)
		}
		return nil
	})
	h, running := handover.take(err == nil)
	switch {
	case err != nil:
		return Handle{}, err
	case !running:
		return Handle{}, sandbox.Errorf(sandbox.CodeBootFailed, "the sandbox %q stopped as soon as it had started; see its logs", id)
	}
	return h, nil
}

// handover passes a handle to whoever waits for it, or releases it if they have
// left meanwhile.
type handover struct {
	mu    sync.Mutex
	h     *Handle
	taken bool
}

func (o *handover) give(h Handle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.taken {
		h.Release()
		return
	}
	o.h = &h
}

// take is called once. Who does not want the handle has it released.
func (o *handover) take(wanted bool) (Handle, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken = true
	switch {
	case o.h == nil:
		return Handle{}, false
	case !wanted:
		o.h.Release()
		return Handle{}, false
	}
	return *o.h, true
}

// handle is the fast path: no wait, no engine, no disk.
func (m *Manager) handle(b *box, purpose Purpose) (Handle, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h, ok := m.handleLocked(b)
	if !ok {
		return h, false
	}
	b.inUse++
	b.requestedLocked(purpose)
	h.release = sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.inUse--
		b.requestedLocked(purpose)
		if purpose == Working {
			b.quietUntil = time.Now().Add(m.settings.PersistPause)
		}
	})
	return h, true
}

// requestedLocked notes a request to the sandbox. The caller holds mu.
func (b *box) requestedLocked(purpose Purpose) {
	now := time.Now().UTC()
	b.lastActive, b.lastRequest = now, now
	if purpose == Working {
		b.soilLocked()
	}
}

// handleLocked is a handle that uses nothing. The caller holds mu.
func (m *Manager) handleLocked(b *box) (Handle, bool) {
	if b.state != stateRunning || !b.attached {
		return Handle{}, false
	}
	return m.newHandle(b), true
}

// newHandle is a handle to the run at hand. The caller holds mu.
func (m *Manager) newHandle(b *box) Handle {
	return Handle{
		SandboxID: b.id, UserID: b.rec.UserID, Incarnation: b.rec.Incarnation, Directory: b.rec.Directory,
		Life: b.life, Run: b.cont.Run(), Link: b.link, Password: b.rec.Secrets.Password,
		Guest: b.guest, Transport: m.links, release: func() {},
	}
}

// Wake brings a sandbox up and applies a config if one is given. A sandbox that
// runs is left alone but for the config. An archived one comes from the snapshot
// named, the newest if that is empty.
func (m *Manager) Wake(ctx context.Context, id string, rawConfig json.RawMessage, snapshot string) (sandbox.WakeResponse, error) {
	var resp sandbox.WakeResponse
	config, err := m.accept(rawConfig)
	if err != nil {
		return resp, err
	}
	b, err := m.existing(id)
	if err != nil {
		return resp, err
	}
	var done outcome
	err = m.serially(ctx, b, false, func(ctx context.Context) (err error) {
		done, err = m.up(ctx, b, wish{config: given(config, rawConfig), snapshot: snapshot})
		return err
	})
	if err != nil {
		return resp, err
	}
	return sandbox.WakeResponse{
		Success: true, SandboxID: id, Status: sandbox.StatusRunning, ServerPort: sandbox.OpenCodePort,
		RestoredFiles: int(done.restored), FilesWritten: done.written, Warnings: config.Warnings,
	}, nil
}

// wish is what a wake was asked for beside running.
type wish struct {
	config   *newConfig // nil for the one on record
	snapshot string     // "" for the newest
}

// outcome is what a wake did.
type outcome struct {
	restored int64 // files from the store
	written  int   // files of the config
}

// newConfig is a config that a caller gave, as it was taken apart and as it is kept.
type newConfig struct {
	config Config
	raw    json.RawMessage
}

// given is nil for a config that asks for nothing: the sandbox keeps its own.
func given(config Config, raw json.RawMessage) *newConfig {
	if config.Empty() {
		return nil
	}
	return &newConfig{config, raw}
}

// up makes sure that the sandbox runs and serves, as wished. The caller holds
// serial.
func (m *Manager) up(ctx context.Context, b *box, want wish) (done outcome, err error) {
	b.mu.Lock()
	st, attached, gone := b.state, b.attached, b.gone
	b.requestedLocked(Looking)
	b.mu.Unlock()
	switch {
	case gone || st == stateDeleting || st == stateAbsent:
		return done, sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no sandbox %q; create it with POST /sandbox", b.id)
	case st == stateLost:
		return done, lostError(b.id, b.lastErrorNow())
	case want.snapshot != "" && st != stateArchived:
		return done, sandbox.Errorf(sandbox.CodeConflict, "a snapshot is restored into an archived sandbox; hibernate it with tier archived first")
	case st == stateRunning && attached && want.config == nil:
		return done, nil
	case st == stateRunning && attached:
		done.written, err = m.applyConfig(ctx, b, *want.config)
		return done, err
	}
	began := time.Now()
	if st == stateFrozen {
		err = m.thaw(ctx, b)
	}
	b.mu.Lock()
	thawed := st == stateFrozen && b.state == stateRunning && b.attached
	b.mu.Unlock()
	if err == nil && !thawed {
		done, err = m.wake(ctx, b, want)
	}
	b.mu.Lock()
	b.wakes++
	b.wakeErr = err
	rec := b.rec
	b.mu.Unlock()
	if err != nil {
		m.log.WarnContext(ctx, "wake failed", "sandboxId", b.id, "tier", st.Tier(), "duration", time.Since(began), "error", err)
		return done, err
	}
	took := time.Since(began)
	m.log.InfoContext(ctx, "woken", "sandboxId", b.id, "tier", st.Tier(), "duration", took)
	if st != stateRunning {
		m.figures.woke(st.Tier(), took)
		m.notify(rec, sandbox.EventSandboxWoken, map[string]any{
			"tier": st.Tier(), "restoredFiles": done.restored, "filesWritten": done.written,
		})
	}
	if thawed && want.config != nil {
		done.written, err = m.applyConfig(ctx, b, *want.config)
	}
	return done, err
}

// thaw lets a frozen sandbox go on. Nothing is written and nobody is asked.
func (m *Manager) thaw(ctx context.Context, b *box) error {
	if err := m.become(b, stateStarting, false); err != nil {
		return err
	}
	b.mu.Lock()
	cont, attached := b.cont, b.attached
	b.shrunk = false
	b.mu.Unlock()
	defer timeline.Begin(ctx, "unpause")()
	engineCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Unpause(engineCtx, cont.ID); err != nil {
		now, inspectErr := m.observed(ctx, cont.ID)
		switch {
		case errors.Is(inspectErr, ErrNoContainer) || inspectErr == nil && now.State == ContainerExited:
			m.halt(b, cont.Run(), sandbox.EventSandboxStopped, errors.New("the container ended while it was frozen"))
			return nil // it is woken from there
		case inspectErr != nil || now.State != ContainerRunning:
			_ = m.become(b, stateFrozen, true)
			return atStep(ctx, "container", err)
		} // else somebody else was faster
	}
	if attached {
		m.callWatchers(ctx, b)
	}
	return m.become(b, stateRunning, true)
}

// lostError says that the workspace is gone, or why the sandbox cannot be used
// if that is known better.
func lostError(id, why string) error {
	if why == "" {
		why = "its disk was removed outside the gateway and the workspace is lost"
	}
	return sandbox.Errorf(sandbox.CodeWorkspaceLost, "the sandbox %q cannot be used: %s; delete it and create it again", id, why)
}

// wake starts what is stopped or archived, and attaches to what runs since before
// the gateway did. The record's config gives way to the next one, which is kept once
// OpenCode has taken it: a config that is broken can always be replaced.
func (m *Manager) wake(ctx context.Context, b *box, want wish) (done outcome, err error) {
	was := b.current()
	if was != stateRunning {
		if err := m.become(b, stateStarting, false); err != nil {
			return done, err
		}
	}
	if was != stateArchived {
		done.written, err = m.restart(ctx, b, was, want.config)
		if errors.Is(err, errNoDisk) {
			if err := m.fallBack(ctx, b); err != nil {
				m.settleBack(b, stateStopped, err)
				return done, err
			}
			was = stateArchived
			if err := m.become(b, stateStarting, false); err != nil {
				return done, err
			}
		} else if err != nil {
			return done, err
		}
	}
	if was == stateArchived {
		if done.restored, done.written, err = m.revive(ctx, b, want.snapshot, want.config); err != nil {
			m.settleBack(b, stateArchived, err)
			return done, err
		}
	}
	m.callWatchers(ctx, b)
	if err := m.become(b, stateRunning, true); err != nil {
		return done, err
	}
	b.mu.Lock()
	b.attached, b.lastError = true, ""
	if was == stateRunning || want.snapshot != "" {
		b.soilLocked() // who knows what it did before the gateway came, or: this is the newest now
	}
	b.requestedLocked(Looking)
	b.mu.Unlock()
	return done, nil
}

// settleBack is for a wake that failed: the sandbox sleeps on where it was.
func (m *Manager) settleBack(b *box, to state, why error) {
	if b.current() == stateStarting {
		_ = m.become(b, to, true) // the table has it
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.life.Err() == nil {
		b.lastError = reason(why)
	}
}

// restart starts the container of a sandbox whose disk is here, and OpenCode in it.
func (m *Manager) restart(ctx context.Context, b *box, was state, next *newConfig) (written int, err error) {
	var cont Container
	defer func() {
		if err != nil && was != stateRunning && !errors.Is(err, errNoDisk) {
			m.standDown(ctx, b, cont, err)
		}
	}()
	release, err := m.bootSlot(ctx, b)
	if err != nil {
		return 0, atStep(ctx, "queue", err)
	}
	defer release()
	if cont, err = m.container(ctx, b); err != nil {
		if errors.Is(err, errNoDisk) {
			return 0, err
		}
		return 0, atStep(ctx, "container", err)
	}
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return 0, err
	}
	if b.outdated() {
		// Once OpenCode runs, the disk may hold more than the snapshot does.
		if err := m.save(ctx, b, func(r *Record) { r.Tier = "" }); err != nil {
			return 0, atStep(ctx, "record", err)
		}
	}
	return m.startWith(ctx, b, g, next)
}

// outdated says whether the record does not say that the sandbox runs on its disk.
func (b *box) outdated() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unsure || b.rec.Tier != "" || b.rec.Generation != b.generation
}

// startWith starts OpenCode with the next config, or the one on record.
func (m *Manager) startWith(ctx context.Context, b *box, g *guest.Client, next *newConfig) (written int, err error) {
	if next == nil {
		config, err := ParseConfig(b.record().Secrets.Config)
		if err != nil {
			return 0, atStep(ctx, "config", err)
		}
		_, err = m.startOpenCode(ctx, b, g, config, false)
		return 0, atStepOrNil(ctx, "opencode", err)
	}
	applied, err := m.startOpenCode(ctx, b, g, next.config, false)
	if err != nil {
		return 0, atStep(ctx, "opencode", err)
	}
	if err := m.keep(ctx, b, *next); err != nil {
		return 0, atStep(ctx, "record", err)
	}
	return next.config.CountWritten(applied.Written), nil
}

// keep writes a config that OpenCode has taken into the record.
func (m *Manager) keep(ctx context.Context, b *box, next newConfig) error {
	if rec, sure := b.recorded(); sure && bytes.Equal(rec.Secrets.Config, next.raw) {
		return nil
	}
	return m.save(ctx, b, func(r *Record) { r.Secrets.Config = next.raw })
}

// applyConfig changes the config of a running sandbox: first there, then in the
// record, so that what OpenCode rejects is never kept. One that waits for a busy
// sandbox is kept unseen; should OpenCode reject it later, the next one replaces it.
func (m *Manager) applyConfig(ctx context.Context, b *box, next newConfig) (int, error) {
	defer timeline.Begin(ctx, "config")()
	rendered, err := next.config.Over(m.settings.Defaults).Guest()
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	g := b.guest
	b.mu.Unlock()
	guestCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Config)
	defer cancel()
	applied, err := g.PutConfig(guestCtx, rendered)
	if err != nil {
		return 0, atStep(ctx, "config", err)
	}
	if err := m.keep(ctx, b, next); err != nil {
		return 0, atStep(ctx, "record", err)
	}
	return next.config.CountWritten(applied.Written), nil
}

// standDown ends what a wake that failed has begun: a container without an
// OpenCode in it would pass for a running sandbox.
func (m *Manager) standDown(ctx context.Context, b *box, cont Container, why error) {
	// Whatever ended the wake, this must be done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	if cont.ID != "" {
		if err := m.runtime.Stop(ctx, cont.ID, 0); err != nil && !errors.Is(err, ErrNoContainer) {
			m.log.WarnContext(ctx, "the container of a failed wake could not be stopped", "sandboxId", b.id, "error", err)
		}
	}
	b.mu.Lock()
	run := b.cont.Run()
	b.mu.Unlock()
	m.halt(b, run, sandbox.EventSandboxError, why)
}

// halt notes that a run of a sandbox has ended, or could not begin.
func (m *Manager) halt(b *box, run Run, event sandbox.Event, why error) {
	b.mu.Lock()
	if b.cont.Run() != run || b.state != stateRunning && b.state != stateStarting && b.state != stateFrozen {
		b.mu.Unlock()
		return
	}
	if err := m.becomeLocked(b, stateStopped, true); err != nil {
		b.mu.Unlock()
		return
	}
	ended := b.life.Err() != nil // by a delete or a shutdown, which is no failure
	b.attached = false
	if !ended {
		b.lastError = reason(why)
	}
	rec := b.rec
	b.mu.Unlock()
	m.links.Drop(run)
	if ended {
		return
	}
	if event == sandbox.EventSandboxStopped {
		m.figures.deaths.Inc()
	}
	m.logOf(b).Warn("stopped", "reason", why)
	m.notify(rec, event, map[string]any{"reason": reason(why)})
}
