package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Pool says what is kept ready for creates to come.
type Pool struct {
	// Size is how many containers are kept booted and warm; 0 means none.
	Size int
	// Pause is for how long nothing has to boot before one is made.
	Pause time.Duration
	// Age is how old one becomes before another takes its place.
	Age time.Duration
	// LookEvery is how often they are looked at, and Retry how long after a
	// failure it is tried again, at first; each failure doubles that.
	LookEvery, Retry time.Duration
}

const (
	// longestRetry bounds how seldom it is tried again.
	longestRetry = 5 * time.Minute
	// pauses is for how many times Pause boots one after another may keep the pool from
	// being filled.
	pauses = 10
)

// DefaultPool is what a gateway starts from; it is off.
func DefaultPool() Pool {
	return Pool{Pause: 2 * time.Second, Age: time.Hour, LookEvery: time.Minute, Retry: 2 * time.Second}
}

const (
	// memberPrefix begins a member's name where a sandbox has its id, which never
	// begins with a dot.
	memberPrefix = ".pool-"
	// freeSuffix names the volume that says that no create has taken the member:
	// it goes when the member's own volume is on record. Without it a volume of
	// a member whose record the store has lost would pass for one of nobody's.
	freeSuffix = ".free"
	// rouseTimeout is how long a member may take to answer before it counts as dead.
	rouseTimeout = 5 * time.Second
)

// member is a container that no sandbox has yet: booted, warmed with the default
// config, and frozen. Its secrets are in the memory of this gateway only, so
// that another one, or the next, can only throw it away.
type member struct {
	name            string // what the engine has for a sandbox's id
	token, password string
	version         string // OpenCode's
	made            time.Time
	cont            Container
	link            Link
	guest           *guest.Client
}

func newMember() *member {
	return &member{name: memberPrefix + strings.ToLower(rand.Text()), token: secret(), password: secret()}
}

func (mem *member) volume() string { return volumePrefix + mem.name }

func isMember(sandboxID string) bool { return strings.HasPrefix(sandboxID, memberPrefix) }

// memberVolume says whether a volume was made for a member, whatever has become
// of that, and whether it is the one that says that the member is free.
func memberVolume(name string) (is, free bool) {
	if !strings.HasPrefix(name, volumePrefix+memberPrefix) {
		return false, false
	}
	return true, strings.HasSuffix(name, freeSuffix)
}

// pool keeps the members. All methods are safe for concurrent use.
type pool struct {
	m      *Manager
	set    Pool
	nudged chan struct{} // has room for one

	mu    sync.Mutex
	known map[string]*member // by name, from before it exists until it is a sandbox's, or gone
	ready []*member          // the newest last
	// short is since when too few are ready; zero if enough are.
	short time.Time
	// busy is when something booted last; failures are those to make a member, one
	// after another, and notBefore is when it is tried again.
	busy      time.Time
	failures  int
	notBefore time.Time
}

func newPool(m *Manager) *pool {
	return &pool{m: m, set: m.settings.Pool, nudged: make(chan struct{}, 1), known: map[string]*member{}}
}

// run keeps the pool filled for as long as the manager lives, and leaves nothing.
func (p *pool) run() {
	for {
		timer := time.NewTimer(p.tend(p.m.base))
		select {
		case <-timer.C:
		case <-p.nudged:
			timer.Stop()
		case <-p.m.base.Done():
			timer.Stop()
			p.empty()
			return
		}
	}
}

// empty throws away what nobody has taken.
func (p *pool) empty() {
	p.mu.Lock()
	left := p.ready
	p.ready = nil
	p.mu.Unlock()
	var group sync.WaitGroup
	for _, mem := range left {
		group.Go(func() { p.discard(p.m.base, mem) })
	}
	group.Wait()
}

// nudge has the pool looked at now.
func (p *pool) nudge() {
	select {
	case p.nudged <- struct{}{}:
	default:
	}
}

// stir notes that something boots, or has: nothing is made beside it.
func (p *pool) stir() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Now()
}

// heal has a pool that waits after failures try again: the engine is back.
func (p *pool) heal() {
	p.mu.Lock()
	p.notBefore = time.Time{}
	p.mu.Unlock()
	p.nudge()
}

// tend throws away what is of no use any more and makes one member if one is
// missing. It returns when to look again.
func (p *pool) tend(ctx context.Context) time.Duration {
	if p.set.Size <= 0 {
		return p.set.LookEvery
	}
	p.cull(ctx)
	p.mu.Lock()
	young := 0
	for _, mem := range p.ready {
		if time.Since(mem.made) < p.set.Age {
			young++
		}
	}
	if young >= p.set.Size {
		p.short = time.Time{}
	} else if p.short.IsZero() {
		p.short = time.Now()
	}
	wait := time.Until(p.notBefore)
	if time.Since(p.short) < pauses*p.set.Pause {
		wait = max(wait, p.set.Pause-time.Since(p.busy))
	}
	p.mu.Unlock()
	switch {
	case young >= p.set.Size:
		return p.set.LookEvery
	case len(p.m.bootSlots) > 0:
		return p.set.Pause
	case wait > 0:
		return wait
	}
	began := time.Now()
	mem, err := p.make(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if ctx.Err() != nil {
			return 0
		}
		retry := min(p.set.Retry<<min(p.failures, 16), longestRetry)
		p.failures++
		p.notBefore = time.Now().Add(retry)
		p.m.log.WarnContext(ctx, "no sandbox could be made ready ahead; creates are slower meanwhile", "error", err, "failures", p.failures, "retryIn", retry)
		return retry
	}
	p.failures, p.notBefore = 0, time.Time{}
	p.ready = append(p.ready, mem)
	p.m.log.InfoContext(ctx, "a sandbox is ready ahead", "containerId", mem.cont.ID, "duration", time.Since(began))
	return 0
}

// cull throws away members of an older image or that are gone, and those too old
// for which another is there.
func (p *pool) cull(ctx context.Context) {
	p.mu.Lock()
	all := slices.Clone(p.ready)
	p.mu.Unlock()
	for i, mem := range all {
		engineCtx, cancel := context.WithTimeout(ctx, p.m.settings.Deadlines.Engine)
		current, err := p.m.runtime.Current(engineCtx, mem.cont.ID)
		cancel()
		gone := errors.Is(err, ErrNoContainer)
		stale := err == nil && !current
		aged := time.Since(mem.made) >= p.set.Age && len(all)-i > p.set.Size
		if (gone || stale || aged) && p.withdraw(mem) {
			p.m.log.InfoContext(ctx, "a sandbox that was ready ahead is replaced", "containerId", mem.cont.ID, "oldImage", stale, "gone", gone)
			p.discard(ctx, mem)
		}
	}
}

// withdraw takes a member out of the pool, unless somebody has.
func (p *pool) withdraw(mem *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.ready, mem)
	if i < 0 {
		return false
	}
	p.ready = slices.Delete(p.ready, i, i+1)
	return true
}

// take gives out a member for good; nil if there is none.
func (p *pool) take() *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.ready)
	if n == 0 {
		return nil
	}
	mem := p.ready[n-1]
	p.ready = p.ready[:n-1]
	p.busy = time.Now()
	return mem
}

// count is how many members are ready.
func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

// lost is told of a member whose container has ended by itself.
func (p *pool) lost(name string) {
	p.mu.Lock()
	mem := p.known[name]
	p.mu.Unlock()
	if mem == nil || !p.withdraw(mem) {
		return // it is being made, claimed or thrown away, which finds out by itself
	}
	p.m.log.Warn("a sandbox that was ready ahead has ended by itself", "containerId", mem.cont.ID)
	p.m.work.Go(func() {
		p.discard(p.m.base, mem)
		p.nudge()
	})
}

// has says whether a member is this gateway's, and nobody's sandbox yet.
func (p *pool) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[name] != nil
}

// volumes are those of the members.
func (p *pool) volumes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, mem := range p.known {
		all = append(all, mem.volume(), mem.volume()+freeSuffix)
	}
	return all
}

// release forgets a member: it is a sandbox's, or gone.
func (p *pool) release(mem *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, mem.name)
}

// discard removes all that there is of a member. What cannot be removed now the
// reconcile finds.
func (p *pool) discard(ctx context.Context, mem *member) {
	defer p.release(mem)
	p.m.links.Drop(mem.cont.Run())
	if err := p.m.removeMember(ctx, mem); err != nil {
		p.m.log.WarnContext(ctx, "a sandbox that was ready ahead could not be removed yet", "name", mem.name, "error", err)
	}
}

// removeMember removes a member from the engine. What says that it is free goes last.
func (m *Manager) removeMember(ctx context.Context, mem *member) error {
	rec := Record{ContainerID: mem.cont.ID, Volume: mem.volume()}
	return m.removeFromEngine(context.WithoutCancel(ctx), rec, mem.name) // whoever leaves meanwhile
}

// make makes a member, or leaves nothing.
func (p *pool) make(ctx context.Context) (*member, error) {
	mem := newMember()
	p.mu.Lock()
	p.known[mem.name] = mem
	p.mu.Unlock()
	if err := p.boot(ctx, mem); err != nil {
		p.discard(ctx, mem)
		return nil, err
	}
	mem.made = time.Now()
	return mem, nil
}

// boot boots the member's container, warms it and freezes it.
func (p *pool) boot(ctx context.Context, mem *member) error {
	m := p.m
	// An engine goes on with a create whose caller has left, and what it makes
	// then nobody removes.
	engineCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.CreateVolume(engineCtx, mem.volume()+freeSuffix); err != nil {
		return err
	}
	var err error
	mem.cont, err = m.runtime.Create(engineCtx, Spec{
		SandboxID: mem.name, Volume: mem.volume(), Env: map[string]string{guest.TokenHashEnv: tokenHash(mem.token)},
		Background: true, // whoever is waited for goes first, also who comes meanwhile
	})
	if err != nil {
		return err
	}
	started, err := m.runtime.Start(engineCtx, mem.cont.ID)
	if err != nil {
		return err
	}
	mem.cont = started
	mem.link, mem.guest = m.connect(mem.cont, mem.token)
	if err := m.awaitGuest(ctx, mem.cont, mem.guest); err != nil {
		return err
	}
	if err := p.warm(ctx, mem); err != nil {
		return err
	}
	lastCtx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Engine)
	defer cancel()
	if err := m.runtime.Foreground(lastCtx, mem.cont.ID); err != nil {
		return err
	}
	return m.runtime.Pause(lastCtx, mem.cont.ID)
}

// warm has OpenCode started with the default config and warmed.
func (p *pool) warm(ctx context.Context, mem *member) error {
	rendered, err := Config{}.Over(p.m.settings.Defaults).Guest()
	if err != nil {
		return err
	}
	limit := p.m.settings.Deadlines.Boot
	ctx, cancel := context.WithTimeout(ctx, limit+slack)
	defer cancel()
	applied, err := mem.guest.Start(ctx, guest.StartRequest{
		Password: mem.password, Config: rendered, TimeoutMs: limit.Milliseconds(), Warm: true, NoProjectConfig: p.m.settings.NoProjectConfig,
	})
	mem.version = printable.Line(applied.Version, maxShown)
	return err
}

// claimed is what a create has of a member until the sandbox is its own.
type claimed struct {
	*member
	roused <-chan error // one comes, the member's fault
}

// lend takes a member for a create that it suits, and begins to rouse it. It is
// nil if there is none. One that was lent is a sandbox's or destroyed afterwards.
func (p *pool) lend(ctx context.Context, plan plan) *claimed {
	if p.set.Size <= 0 {
		return nil
	}
	if plan.directory != guest.Workspace {
		p.m.figures.claims[claimUnsuitable].Inc()
		return nil // its OpenCode runs elsewhere
	}
	mem := p.take()
	if mem == nil {
		p.m.figures.claims[claimEmpty].Inc()
		return nil
	}
	roused := make(chan error, 1)
	p.m.work.Go(func() { roused <- p.m.rouse(ctx, mem) })
	return &claimed{mem, roused}
}

// rouse thaws a member and makes sure that it is what it should be.
func (m *Manager) rouse(ctx context.Context, mem *member) error {
	ctx, cancel := context.WithTimeout(ctx, rouseTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		current, err := m.runtime.Current(ctx, mem.cont.ID)
		if err == nil && !current {
			err = errors.New("it is of an older image")
		}
		return err
	})
	group.Go(func() error {
		if err := m.runtime.Unpause(ctx, mem.cont.ID); err != nil {
			return err
		}
		oc, err := mem.guest.OpenCode(ctx)
		if err != nil {
			return err
		}
		if oc.State != guest.StateReady || oc.Restarts > 0 {
			return sandbox.Errorf(sandbox.CodeOpenCodeDown, "its OpenCode is %s and has restarted %d times", oc.State, oc.Restarts)
		}
		turns, err := opencode.New(m.links, mem.link.OpenCodeURL, mem.password).SessionStatus(ctx)
		if err == nil && len(turns) > 0 {
			err = errors.New("its OpenCode is at work")
		}
		return err
	})
	return group.Wait()
}

// memberError is the fault of a member: without it the create may succeed.
type memberError struct{ error }

// Unwrap implements errors.Unwrap.
func (e memberError) Unwrap() error { return e.error }

// settle ends a loan with how the create ended.
func (p *pool) settle(ctx context.Context, mem *claimed, err error) {
	switch {
	case errors.Is(err, ErrRecordExists):
		p.discard(ctx, mem.member) // nothing says that it is the sandbox's
	case err != nil:
		p.m.links.Drop(mem.cont.Run())
	}
	p.release(mem.member)
	p.stir()
	p.nudge()
}

// createFrom makes the sandbox of a member. Its record is there. A memberError
// says that it should be made without one.
func (m *Manager) createFrom(ctx context.Context, b *box, mem *claimed, p plan) (written int, err error) {
	roused := timeline.Begin(ctx, "rouse")
	if err := <-mem.roused; err != nil {
		return 0, memberError{err}
	}
	roused()
	rec := b.record()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		groupCtx, cancel := context.WithTimeout(groupCtx, m.settings.Deadlines.Engine)
		defer cancel()
		defer timeline.Begin(groupCtx, "rename")()
		if err := m.runtime.Rename(groupCtx, mem.cont.ID, rec.SandboxID); err != nil {
			return memberError{err}
		}
		return nil
	})
	group.Go(func() error {
		groupCtx, cancel := context.WithTimeout(groupCtx, m.settings.Deadlines.Engine)
		defer cancel()
		if err := m.runtime.RemoveVolume(groupCtx, mem.volume()+freeSuffix); err != nil {
			return memberError{err}
		}
		return nil
	})
	group.Go(func() error {
		if err := m.confirmDisk(groupCtx, b, mem.cont, mem.guest); err != nil {
			return memberError{err}
		}
		return nil
	})
	group.Go(func() (err error) {
		p.mirrored, err = m.makeRoom(groupCtx, rec)
		return atStepOrNil(ctx, "store", err)
	})
	if err := group.Wait(); err != nil {
		return 0, err
	}
	m.pool.release(mem.member)
	mem.cont.SandboxID, mem.cont.State = rec.SandboxID, ContainerRunning
	b.mu.Lock()
	b.cont, b.link, b.guest, b.attached = mem.cont, mem.link, mem.guest, false
	b.rec.Version = mem.version // written with the next change
	b.mu.Unlock()
	return m.outfit(ctx, b, mem.guest, p)
}

// outfit makes a member's sandbox what was asked for. What came into the
// workspace, OpenCode has to look at: it thinks it empty.
func (m *Manager) outfit(ctx context.Context, b *box, g *guest.Client, p plan) (written int, err error) {
	defer func() {
		if e, ok := errors.AsType[*sandbox.Error](err); ok && slices.Contains([]sandbox.Code{sandbox.CodeGuestFailed, sandbox.CodeOpenCodeDown}, e.Code) {
			err = memberError{err}
		}
	}()
	switch {
	case p.mirrored:
		err = m.importMirror(ctx, b, g)
	case p.repo != nil:
		err = atStepOrNil(ctx, "clone", m.clone(ctx, b, g, *p.repo))
	}
	if err != nil {
		return 0, err
	}
	if filled := p.mirrored || p.repo != nil; filled || !p.config.Empty() {
		if _, err := m.startOpenCode(ctx, b, g, p.config, filled); err != nil {
			return 0, atStep(ctx, "opencode", err)
		}
	}
	m.serves(b)
	return p.config.CountWritten(p.config.keys()), nil
}

// replaceMember gives the box's record a disk and secrets of its own in the place
// of a member's, of which nothing is left.
func (m *Manager) replaceMember(ctx context.Context, b *box, mem *claimed, fault error) error {
	m.figures.claims[claimFailed].Inc()
	m.log.WarnContext(ctx, "a sandbox that was ready ahead is of no use; another is booted", "sandboxId", b.id, "containerId", mem.cont.ID, "error", fault)
	rec := b.record()
	b.mu.Lock()
	b.cont, b.guest, b.attached = Container{}, nil, false
	b.mu.Unlock()
	m.links.Drop(mem.cont.Run())
	if err := m.removeFromEngine(ctx, rec, b.id); err != nil {
		return atStep(ctx, "container", err)
	}
	m.pool.release(mem.member)
	err := m.save(ctx, b, func(r *Record) {
		r.ContainerID, r.Volume, r.Version = "", newVolume(b.id), ""
		r.Secrets.Token, r.Secrets.Password = secret(), secret()
	})
	return atStepOrNil(ctx, "record", err)
}
