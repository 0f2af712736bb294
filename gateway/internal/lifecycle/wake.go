package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
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
}

// Use returns the running sandbox of that id, starting it when it is stopped.
// Waiting for that is bounded in time (Deadlines.Hold) and in number (MaxHeld).
// active says whether the use counts as activity.
func (m *Manager) Use(ctx context.Context, id string, active bool) (Handle, error) {
	b, err := m.existing(id)
	if err != nil {
		return Handle{}, err
	}
	if h, ok := m.handle(b, active); ok {
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
	b.mu.Unlock()
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		b.mu.Lock()
		failed := b.wakeErr
		tried := b.wakes > wakes
		b.mu.Unlock()
		if tried && failed != nil {
			return failed // somebody tried while this one waited: one failure for all
		}
		_, err := m.up(ctx, b, nil)
		return err
	})
	if err != nil {
		return Handle{}, err
	}
	if h, ok := m.handle(b, active); ok {
		return h, nil
	}
	return Handle{}, sandbox.Errorf(sandbox.CodeBootFailed, "the sandbox %q stopped as soon as it had started; see its logs", id)
}

// handle is the fast path: no wait, no engine, no disk.
func (m *Manager) handle(b *box, active bool) (Handle, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateRunning || !b.attached {
		return Handle{}, false
	}
	if active {
		b.lastActive = time.Now().UTC()
	}
	return Handle{
		SandboxID: b.id, UserID: b.rec.UserID, Incarnation: b.rec.Incarnation, Directory: b.rec.Directory,
		Life: b.life, Run: b.cont.Run(), Link: b.link, Password: b.rec.Secrets.Password,
		Guest: b.guest, Transport: m.links,
	}, true
}

// Wake brings a sandbox up and applies a config if one is given. A sandbox that
// runs is left alone but for the config.
func (m *Manager) Wake(ctx context.Context, id string, rawConfig json.RawMessage) (sandbox.WakeResponse, error) {
	var resp sandbox.WakeResponse
	config, err := ParseConfig(rawConfig)
	if err != nil {
		return resp, err
	}
	b, err := m.existing(id)
	if err != nil {
		return resp, err
	}
	var written int
	err = m.serially(ctx, b, false, func(ctx context.Context) (err error) {
		written, err = m.up(ctx, b, given(config, rawConfig))
		return err
	})
	if err != nil {
		return resp, err
	}
	return sandbox.WakeResponse{
		Success: true, SandboxID: id, Status: sandbox.StatusRunning, ServerPort: sandbox.OpenCodePort,
		FilesWritten: written, Warnings: config.Warnings,
	}, nil
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

// up makes sure that the sandbox runs and serves, with the config given if there
// is one, and returns how many files of it were written. The caller holds serial.
func (m *Manager) up(ctx context.Context, b *box, next *newConfig) (written int, err error) {
	b.mu.Lock()
	st, attached, gone := b.state, b.attached, b.gone
	b.mu.Unlock()
	switch {
	case gone || st == stateDeleting || st == stateAbsent:
		return 0, sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no sandbox %q; create it with POST /sandbox", b.id)
	case st == stateLost:
		return 0, lostError(b.id, b.lastErrorNow())
	case st == stateRunning && attached && next == nil:
		return 0, nil
	case st == stateRunning && attached:
		return m.applyConfig(ctx, b, *next)
	}
	began := time.Now()
	written, err = m.wake(ctx, b, next)
	b.mu.Lock()
	b.wakes++
	b.wakeErr = err
	b.mu.Unlock()
	if err != nil {
		m.log.Warn("wake failed", "sandboxId", b.id, "duration", time.Since(began), "error", err)
		return 0, err
	}
	m.log.Info("woken", "sandboxId", b.id, "duration", time.Since(began))
	return written, nil
}

// lostError says that the workspace is gone, or why the sandbox cannot be used
// if that is known better.
func lostError(id, why string) error {
	if why == "" {
		why = "its disk was removed outside the gateway and the workspace is lost"
	}
	return sandbox.Errorf(sandbox.CodeWorkspaceLost, "the sandbox %q cannot be used: %s; delete it and create it again", id, why)
}

// wake starts what is stopped, and attaches to what runs since before the
// gateway did. The record's config gives way to the next one, which is kept once
// OpenCode has taken it: a config that is broken can always be replaced.
func (m *Manager) wake(ctx context.Context, b *box, next *newConfig) (written int, err error) {
	wasRunning := b.current() == stateRunning
	if !wasRunning {
		if err := m.become(b, stateStarting, false); err != nil {
			return 0, err
		}
	}
	var cont Container
	defer func() {
		if err != nil && !wasRunning {
			m.standDown(ctx, b, cont, err)
		}
	}()
	release, err := m.bootSlot(ctx)
	if err != nil {
		return 0, atStep(ctx, "queue", err)
	}
	defer release()
	if cont, err = m.container(ctx, b); err != nil {
		return 0, atStep(ctx, "container", err)
	}
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return 0, err
	}
	if written, err = m.startWith(ctx, b, g, next); err != nil {
		return 0, err
	}
	if err := m.become(b, stateRunning, true); err != nil {
		return 0, err
	}
	b.mu.Lock()
	b.attached, b.lastError = true, ""
	rec := b.rec
	b.mu.Unlock()
	if !wasRunning {
		m.notify(rec, sandbox.EventSandboxWoken, map[string]any{"restoredFiles": 0, "filesWritten": written})
	}
	return written, nil
}

// startWith starts OpenCode with the next config, or the one on record.
func (m *Manager) startWith(ctx context.Context, b *box, g *guest.Client, next *newConfig) (written int, err error) {
	if next == nil {
		config, err := ParseConfig(b.record().Secrets.Config)
		if err != nil {
			return 0, atStep(ctx, "config", err)
		}
		_, err = m.startOpenCode(ctx, b, g, config)
		return 0, atStepOrNil(ctx, "opencode", err)
	}
	applied, err := m.startOpenCode(ctx, b, g, next.config)
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
	if bytes.Equal(b.record().Secrets.Config, next.raw) {
		return nil
	}
	return m.save(ctx, b, func(r *Record) { r.Secrets.Config = next.raw })
}

// applyConfig changes the config of a running sandbox: first there, then in the
// record, so that what OpenCode rejects is never kept. One that waits for a busy
// sandbox is kept unseen; should OpenCode reject it later, the next one replaces it.
func (m *Manager) applyConfig(ctx context.Context, b *box, next newConfig) (int, error) {
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
			m.log.Warn("the container of a failed wake could not be stopped", "sandboxId", b.id, "error", err)
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
	if b.cont.Run() != run || b.state != stateRunning && b.state != stateStarting {
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
	m.log.Warn("stopped", "sandboxId", b.id, "reason", why)
	m.notify(rec, event, map[string]any{"reason": reason(why)})
}
