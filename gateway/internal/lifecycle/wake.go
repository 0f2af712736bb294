package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	boots := b.boots
	b.mu.Unlock()
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		b.mu.Lock()
		failed := b.bootErr
		tried := b.boots > boots
		b.mu.Unlock()
		if tried && failed != nil {
			return failed // somebody tried while this one waited: one failure for all
		}
		return m.up(ctx, b)
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
	err = m.serially(ctx, b, false, func(ctx context.Context) error {
		if err := m.up(ctx, b); err != nil {
			return err
		}
		if config.Empty() {
			return nil
		}
		written, err = m.applyConfig(ctx, b, config, rawConfig)
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

// Apply applies a config to a running sandbox, as Wake does, and returns how
// many files it wrote.
func (m *Manager) Apply(ctx context.Context, id string, rawConfig json.RawMessage) error {
	_, err := m.Wake(ctx, id, rawConfig)
	return err
}

// up makes sure that the sandbox runs and serves. The caller holds serial.
func (m *Manager) up(ctx context.Context, b *box) error {
	b.mu.Lock()
	st, attached, gone := b.state, b.attached, b.gone
	b.mu.Unlock()
	switch {
	case gone || st == stateDeleting || st == stateAbsent:
		return sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no sandbox %q; create it with POST /sandbox", b.id)
	case st == stateLost:
		return lostError(b.id)
	case st == stateRunning && attached:
		return nil
	}
	began := time.Now()
	err := m.wake(ctx, b)
	b.mu.Lock()
	b.boots++
	b.bootErr = err
	b.mu.Unlock()
	if err != nil {
		m.log.Warn("wake failed", "sandboxId", b.id, "duration", time.Since(began), "error", err)
		return err
	}
	m.log.Info("woken", "sandboxId", b.id, "duration", time.Since(began))
	return nil
}

func lostError(id string) error {
	return sandbox.Errorf(sandbox.CodeWorkspaceLost,
		"the disk of the sandbox %q was removed outside the gateway and its workspace is lost; delete the sandbox and create it again", id)
}

// wake starts what is stopped, and attaches to what runs since before the
// gateway did.
func (m *Manager) wake(ctx context.Context, b *box) (err error) {
	wasRunning := b.current() == stateRunning
	if !wasRunning {
		if err := m.become(b, stateStarting, false); err != nil {
			return err
		}
	}
	defer func() {
		if err == nil {
			return
		}
		b.mu.Lock()
		run := b.cont.Run()
		lost := b.state == stateLost
		b.mu.Unlock()
		if !lost && (wasRunning || b.current() == stateStarting) {
			m.halt(b, run, sandbox.EventSandboxError, err)
		}
	}()
	release, err := m.bootSlot(ctx)
	if err != nil {
		return atStep(ctx, "queue", err)
	}
	defer release()
	cont, err := m.container(ctx, b)
	if err != nil {
		return atStep(ctx, "container", err)
	}
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return err
	}
	config, err := ParseConfig(b.record().Secrets.Config)
	if err != nil {
		return atStep(ctx, "config", err)
	}
	if _, err := m.startOpenCode(ctx, b, g, config); err != nil {
		return atStep(ctx, "opencode", err)
	}
	if err := m.become(b, stateRunning, true); err != nil {
		return err
	}
	b.mu.Lock()
	b.attached = true
	rec := b.rec
	b.mu.Unlock()
	if !wasRunning {
		m.notify(rec, sandbox.EventSandboxWoken, map[string]any{"restoredFiles": 0, "filesWritten": 0})
	}
	return nil
}

// container finds the sandbox's container or makes it again on its volume.
func (m *Manager) container(ctx context.Context, b *box) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	rec := b.record()
	if rec.ContainerID != "" {
		cont, err := m.runtime.Inspect(ctx, rec.ContainerID)
		if err == nil {
			return cont, nil
		}
		if !errors.Is(err, ErrNoContainer) {
			return cont, err
		}
	}
	volumes, err := m.runtime.Volumes(ctx)
	if err != nil {
		return Container{}, err
	}
	if !slices.Contains(volumes, rec.Volume) {
		if err := m.become(b, stateLost, false); err != nil {
			return Container{}, err
		}
		err := lostError(rec.SandboxID)
		_ = m.save(ctx, b, func(r *Record) { r.LastError = err.Error() })
		return Container{}, err
	}
	// One of that name and not of the record is a leftover of an old start.
	if stale, err := m.runtime.Find(ctx, rec.SandboxID); err == nil {
		if err := m.runtime.Remove(ctx, stale.ID); err != nil {
			return Container{}, err
		}
	}
	cont, err := m.newContainer(ctx, b)
	if err != nil {
		return cont, err
	}
	return cont, m.save(ctx, b, func(r *Record) { r.ContainerID = cont.ID })
}

// open starts the container if it does not run, opens the path to it, and waits
// until its sandboxd answers.
func (m *Manager) open(ctx context.Context, b *box, cont Container) (*guest.Client, error) {
	engineCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	var err error
	switch cont.State {
	case ContainerRunning:
	case ContainerPaused:
		err = m.runtime.Unpause(engineCtx, cont.ID)
	default:
		cont, err = m.runtime.Start(engineCtx, cont.ID)
	}
	if err != nil {
		return nil, atStep(ctx, "container", err)
	}
	var g *guest.Client
	link := m.links.Register(cont, func(ctx context.Context) error { return openCodeReady(ctx, g) })
	g = guest.NewClient(m.links, link.GuestURL, b.record().Secrets.Token)
	b.mu.Lock()
	b.cont, b.link, b.guest, b.attached = cont, link, g, false
	b.mu.Unlock()
	if err := m.awaitGuest(ctx, cont, g); err != nil {
		return nil, atStep(ctx, "sandboxd", err)
	}
	return g, nil
}

// openCodeReady asks sandboxd whether OpenCode serves. After a crash it accepts
// connections for up to a second before it has routes, and a request sent then
// would hang for ever.
func openCodeReady(ctx context.Context, g *guest.Client) error {
	oc, err := g.OpenCode(ctx)
	if err != nil {
		return err
	}
	if oc.State != guest.StateReady {
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode is %s in the sandbox (last exit: %s); try again in a moment",
			lastWords(oc.State), lastWords(oc.LastExit))
	}
	return nil
}

// awaitGuest polls sandboxd, which binds its port before anything else. It
// notices a container that ended meanwhile, and repeats its last words.
func (m *Manager) awaitGuest(ctx context.Context, cont Container, g *guest.Client) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Guest)
	defer cancel()
	const pause = 10 * time.Millisecond
	for {
		tryCtx, done := context.WithTimeout(ctx, 2*time.Second)
		_, err := g.Status(tryCtx)
		done()
		if err == nil {
			return nil
		}
		if now, inspectErr := m.runtime.Inspect(ctx, cont.ID); errors.Is(inspectErr, ErrNoContainer) ||
			inspectErr == nil && now.State == ContainerExited {
			return sandbox.Errorf(sandbox.CodeBootFailed, "the container ended with exit code %d: %s",
				now.ExitCode, lastWords(m.tail(ctx, cont.ID)))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("waiting for sandboxd: %w (last: %w)", ctx.Err(), err)
		}
	}
}

// tail is the end of a container's output.
func (m *Manager) tail(ctx context.Context, id string) string {
	const lines, limit = 20, 16 << 10
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	r, err := m.runtime.Logs(ctx, id, LogOptions{Tail: lines})
	if err != nil {
		return ""
	}
	defer func() { _ = r.Close() }()
	out, _ := io.ReadAll(io.LimitReader(r, limit))
	return string(out)
}

// startOpenCode has sandboxd render the config and start OpenCode with it.
func (m *Manager) startOpenCode(ctx context.Context, b *box, g *guest.Client, config Config) (guest.Applied, error) {
	rendered, err := config.Over(m.settings.Defaults).Guest()
	if err != nil {
		return guest.Applied{}, err
	}
	rec := b.record()
	limit := m.settings.Deadlines.Boot
	ctx, cancel := context.WithTimeout(ctx, limit+5*time.Second)
	defer cancel()
	applied, err := g.Start(ctx, guest.StartRequest{
		Password: rec.Secrets.Password, Config: rendered, Directory: rec.Directory, TimeoutMs: limit.Milliseconds(),
	})
	if err != nil {
		return applied, fmt.Errorf("starting OpenCode: %w", err)
	}
	return applied, nil
}

// applyConfig changes the config of a running sandbox: first there, then in the
// record, so that what OpenCode rejects is never kept.
func (m *Manager) applyConfig(ctx context.Context, b *box, config Config, raw json.RawMessage) (int, error) {
	rendered, err := config.Over(m.settings.Defaults).Guest()
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
	if len(applied.Written) == 0 && !applied.Pending {
		return 0, nil
	}
	if err := m.save(ctx, b, func(r *Record) { r.Secrets.Config = raw }); err != nil {
		return 0, atStep(ctx, "record", err)
	}
	return config.CountWritten(applied.Written), nil
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
	b.attached = false
	b.rec.LastError = why.Error()
	rec := b.rec
	b.mu.Unlock()
	m.links.Drop(run)
	m.log.Warn("stopped", "sandboxId", b.id, "reason", why)
	m.notify(rec, event, map[string]any{"reason": lastWords(why.Error())})
}
