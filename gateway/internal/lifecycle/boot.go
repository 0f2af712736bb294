package lifecycle

// The steps that bring a container up, shared by a create and a wake.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// slack is what sandboxd has to keep a deadline of its own and say so, before
// the gateway stops listening.
const slack = 5 * time.Second

// maxWords bounds what is repeated of a program's last words, in bytes.
const maxWords = 2000

// bootSlot waits for a place among those that boot at once. Giving it back twice
// is fine.
func (m *Manager) bootSlot(ctx context.Context, b *box) (release func(), err error) {
	defer b.during(ctx, sandbox.StepQueue)()
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Hold)
	defer cancel()
	select {
	case m.bootSlots <- struct{}{}:
		return sync.OnceFunc(func() {
			<-m.bootSlots
			m.pool.stir()
		}), nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &sandbox.Error{
				Code: sandbox.CodeNoCapacity, Message: "too many sandboxes boot at once; try again in a moment",
				RetryAfter: 10 * time.Second,
			}
		}
		return nil, ctx.Err()
	}
}

// newContainer makes the container of the box's record on a volume, not started. It
// is errNoDisk if the volume is kept and not there.
func (m *Manager) newContainer(ctx context.Context, b *box, volume string, kept bool) (Container, error) {
	defer timeline.Begin(ctx, "container")()
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	rec := b.record()
	cont, err := m.runtime.Create(ctx, Spec{
		SandboxID: rec.SandboxID,
		Volume:    volume,
		Kept:      kept,
		Env:       map[string]string{guest.TokenHashEnv: tokenHash(rec.Secrets.Token)},
	})
	if errors.Is(err, ErrNoVolume) {
		return cont, errNoDisk
	}
	return cont, err
}

// container finds the sandbox's container, or makes it again on its volume if it
// is gone or of an older image. It is errNoDisk if the volume is gone.
func (m *Manager) container(ctx context.Context, b *box) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	rec := b.record()
	if rec.ContainerID != "" {
		cont, err := m.runtime.Inspect(ctx, rec.ContainerID)
		if err == nil && (cont.State == ContainerRunning || cont.State == ContainerPaused) {
			return cont, nil
		}
		current := false
		if err == nil {
			current, err = m.runtime.Current(ctx, cont.ID)
		}
		if err == nil && current {
			return cont, nil
		}
		if err != nil && !errors.Is(err, ErrNoContainer) {
			return cont, err
		}
	}
	volumes, err := m.runtime.Volumes(ctx)
	if err != nil {
		return Container{}, err
	}
	if !slices.Contains(volumes, rec.Volume) {
		return Container{}, errNoDisk
	}
	// One of that name is of an older image, or a leftover of an old start.
	if stale, err := m.runtime.Find(ctx, rec.SandboxID); err == nil {
		if err := m.runtime.Remove(ctx, stale.ID); err != nil {
			return Container{}, err
		}
	}
	cont, err := m.newContainer(ctx, b, rec.Volume, true)
	if err != nil {
		return cont, err
	}
	return cont, m.save(ctx, b, func(r *Record) { r.ContainerID = cont.ID })
}

// start starts a container. One that the engine cannot start although it answers is
// made anew on its disk, once: after a restart of the engine in the middle of a start,
// what is left of that stands in the way until the container is removed.
func (m *Manager) start(ctx context.Context, b *box, cont Container) (Container, error) {
	startCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	started, err := m.runtime.Start(startCtx, cont.ID)
	cancel()
	if err == nil {
		return started, nil
	}
	now, askErr := m.observed(ctx, cont.ID)
	switch {
	case ctx.Err() != nil:
		return cont, err
	case askErr == nil && now.State == ContainerRunning:
		return now, nil // only the reply was lost
	case askErr != nil && !errors.Is(askErr, ErrNoContainer), askErr == nil && !blamesContainer(err):
		return cont, err
	}
	m.log.WarnContext(ctx, "a container cannot be started and is made anew on its disk", "containerId", cont.ID, "error", err)
	ctx, cancel = context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Remove(ctx, cont.ID); err != nil && !errors.Is(err, ErrNoContainer) {
		return cont, err
	}
	made, err := m.newContainer(ctx, b, cont.Volume, true)
	if err != nil {
		return cont, err
	}
	if b.record().ContainerID == cont.ID {
		if err := m.save(ctx, b, func(r *Record) { r.ContainerID = made.ID }); err != nil {
			return made, err
		}
	}
	return m.runtime.Start(ctx, made.ID)
}

// blamesContainer says whether a failed start may be the container's own fault, and
// not that of the engine or its host.
func blamesContainer(err error) bool {
	return slices.ContainsFunc([]sandbox.Code{sandbox.CodeBootFailed, sandbox.CodeConflict, sandbox.CodeInternal},
		func(code sandbox.Code) bool { return sandbox.HasCode(err, code) })
}

// open starts the container if it does not run, opens the path to it, waits until its
// sandboxd answers, and makes sure that its disk is the sandbox's: nothing but sandboxd
// has run then. It is errNoDisk if it is another.
func (m *Manager) open(ctx context.Context, b *box, cont Container) (*guest.Client, error) {
	var err error
	switch cont.State {
	case ContainerRunning:
	case ContainerPaused:
		engineCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
		defer cancel()
		err = m.runtime.Unpause(engineCtx, cont.ID)
		cont.State = ContainerRunning
	default:
		cont, err = m.start(ctx, b, cont)
	}
	if errors.Is(err, errNoDisk) {
		return nil, err
	}
	if err != nil {
		return nil, atStep(ctx, "container", err)
	}
	link, g := m.connect(cont, b.record().Secrets.Token)
	b.mu.Lock()
	b.cont, b.link, b.guest, b.attached = cont, link, g, false
	b.mu.Unlock()
	if err := m.awaitGuest(ctx, cont, g); err != nil {
		return nil, atStep(ctx, "sandboxd", err)
	}
	return g, m.confirmDisk(ctx, b, cont, g)
}

// connect opens the path to a run of a container.
func (m *Manager) connect(cont Container, token string) (Link, *guest.Client) {
	link := m.links.Register(cont, func(ctx context.Context, link Link) error {
		return openCodeReady(ctx, guest.NewClient(m.links, link.GuestURL, token))
	})
	return link, guest.NewClient(m.links, link.GuestURL, token)
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
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode is %s in the sandbox (last exit: %s); try again in a moment", oc.State, oc.LastExit)
	}
	return nil
}

// awaitGuest polls sandboxd, which binds its port before anything else. It
// notices a container that ended meanwhile, and repeats its last words.
func (m *Manager) awaitGuest(ctx context.Context, cont Container, g *guest.Client) error {
	defer timeline.Begin(ctx, "sandboxd")()
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Guest)
	defer cancel()
	const pause = 10 * time.Millisecond
	for {
		tryCtx, done := context.WithTimeout(ctx, 2*time.Second)
		_, err := g.OpenCode(tryCtx)
		done()
		if err == nil {
			return nil
		}
		if now, inspectErr := m.runtime.Inspect(ctx, cont.ID); errors.Is(inspectErr, ErrNoContainer) ||
			inspectErr == nil && now.State == ContainerExited {
			return sandbox.Errorf(sandbox.CodeBootFailed, "the container ended with exit code %d: %s",
				now.ExitCode, printable.Tail(m.tail(ctx, cont.ID), maxWords))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return sandbox.Errorf(sandbox.CodeBootFailed, "sandboxd did not answer within %s (GUEST_TIMEOUT)",
				m.settings.Deadlines.Guest).WithCause(err)
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

// startOpenCode has sandboxd render the config and start OpenCode with it. To one
// that runs already the config is given; reload says that the workspace has
// changed, too.
func (m *Manager) startOpenCode(ctx context.Context, b *box, g *guest.Client, config Config, reload bool) (guest.Applied, error) {
	rendered, err := config.Over(m.settings.Defaults).Guest()
	if err != nil {
		return guest.Applied{}, err
	}
	rec := b.record()
	defer b.during(ctx, sandbox.StepOpenCode)()
	limit := m.settings.Deadlines.Boot
	// Of a new sandbox's home nothing can be at fault, and its creator is told.
	mayBare, within := rec.Phase == PhaseReady, limit+slack
	if mayBare {
		within += limit
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	applied, err := g.Start(ctx, guest.StartRequest{
		Password: rec.Secrets.Password, Config: rendered, Directory: rec.Directory, TimeoutMs: limit.Milliseconds(), Reload: reload,
		NoProjectConfig: m.settings.NoProjectConfig, MayBare: mayBare,
	})
	if err != nil {
		return applied, fmt.Errorf("starting OpenCode: %w", err)
	}
	if applied.Bare {
		m.log.WarnContext(ctx, bareWarning, "sandboxId", b.id)
	}
	b.mu.Lock()
	b.rec.Version = printable.Line(applied.Version, maxShown) // written with the next change
	b.mu.Unlock()
	return applied, nil
}

// clone clones the repository into the workspace.
func (m *Manager) clone(ctx context.Context, b *box, g *guest.Client, repo Repository) error {
	tell, done := b.begin(ctx, sandbox.StepClone)
	defer done()
	limit := m.settings.Deadlines.Clone
	ctx, cancel := context.WithTimeout(ctx, limit+slack)
	defer cancel()
	argv, env := repo.Command(guest.Workspace, m.settings.GitProtocols)
	progress := cloning{tell: tell}
	stderr, exit, err := progress.run(ctx, g, guest.ExecRequest{Command: argv, Env: env, TimeoutMs: limit.Milliseconds()})
	switch {
	case err != nil:
		return fmt.Errorf("running git: %w", err)
	case exit.TimedOut:
		return sandbox.Errorf(sandbox.CodeCloneFailed, "git clone of %s took longer than %s", repo.URL, limit)
	case exit.ExitCode != 0:
		return sandbox.Errorf(sandbox.CodeCloneFailed, "git clone of %s failed: %s", repo.URL, printable.Tail(repo.Redact(string(stderr)), maxWords))
	}
	return nil
}

func (m *Manager) makeDirectory(ctx context.Context, g *guest.Client, dir string) error {
	res, err := g.Run(ctx, guest.ExecRequest{Command: []string{"mkdir", "-p", "--", dir}, WorkingDir: guest.Workspace})
	if err != nil {
		return fmt.Errorf("making the directory: %w", err)
	}
	if res.ExitCode != 0 {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the directory cannot be made: %s", printable.Tail(res.Stderr, maxWords))
	}
	return nil
}

func workspaceEmpty(ctx context.Context, g *guest.Client) (bool, error) {
	f, err := g.ReadFile(ctx, strings.TrimPrefix(guest.Workspace, guest.Home+"/"))
	if err != nil {
		return false, fmt.Errorf("listing the workspace: %w", err)
	}
	defer func() { _ = f.Close() }()
	return f.Listing != nil && len(f.Listing.Entries) == 0, nil
}

func (m *Manager) emptyWorkspace(ctx context.Context, b *box, g *guest.Client) {
	res, err := g.Run(ctx, guest.ExecRequest{Command: []string{"find", guest.Workspace, "-mindepth", "1", "-delete"}})
	if err != nil || res.ExitCode != 0 {
		m.log.WarnContext(ctx, "what a failed clone left could not be removed", "sandboxId", b.id, "error", err, "exitCode", res.ExitCode)
	}
}
