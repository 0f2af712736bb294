// Package lifecycle is the domain of the gateway: what a sandbox is, which
// states it goes through and under which deadlines, and how what the store
// wants and what the engine does are brought together again. It knows no
// engine, no HTTP framework and no file layout; those implement the interfaces
// declared here.
package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Provider is what the gateway calls itself in answers and webhooks.
const Provider = "docker"

// Causes with which a sandbox's life context ends.
var (
	// ErrDeleted ends everything that still hangs on a deleted sandbox.
	ErrDeleted = sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
	// ErrClosing ends what runs when the gateway shuts down.
	ErrClosing = sandbox.Errorf(sandbox.CodeShuttingDown, "the gateway is shutting down; try again in a moment")
)

// Links is the data path into sandboxes. It carries requests to the URLs of a
// registered link over connections that belong to that run of the container.
type Links interface {
	http.RoundTripper
	// Register opens the path to one run; registering it again is fine. A new
	// connection to OpenCode is used only when openCodeReady returns nil.
	Register(c Container, openCodeReady func(ctx context.Context, link Link) error) Link
	// Drop closes the path and every connection on it, at once.
	Drop(run Run)
}

// Link is where one run of a sandbox is reached through Links.
type Link struct {
	GuestURL    string
	OpenCodeURL string
}

// Notices tells the outside what happens. Neither method blocks.
type Notices interface {
	Send(sandboxID, incarnation string, event sandbox.Event, data map[string]any)
	// Drop forgets what waits to be told of a deleted incarnation.
	Drop(sandboxID, incarnation string)
}

// Settings of a Manager.
type Settings struct {
	Deadlines Deadlines
	// MaxRunning bounds the sandboxes that run at once, 0 means no bound. When one
	// more is wanted, the longest idle of those that were not used for RoomAfter
	// is frozen.
	MaxRunning int
	RoomAfter  time.Duration
	// MaxFrozen bounds the sandboxes that are frozen, as they keep their memory: of
	// more the longest idle are stopped. 0 means no bound.
	MaxFrozen int
	// BootConcurrency bounds how many boot at once; more of them wait.
	BootConcurrency int
	// MaxHeld bounds the requests that wait for one sandbox.
	MaxHeld int
	// Defaults is laid under every sandbox's own config.
	Defaults     Config
	GitProtocols []string
	// NoProjectConfig keeps OpenCode from reading a repository's config.
	NoProjectConfig bool
	// ReconcileEvery is the period of the comparison of store and engine.
	ReconcileEvery time.Duration
	// Pool says what is kept ready for creates.
	Pool Pool
	// Idle says when sandboxes are put to sleep that say nothing else.
	Idle Idle
	// LookEvery is how often that is looked at.
	LookEvery time.Duration
	// PersistPause is for how long a sandbox is left alone before what was done
	// in it is stored, and PersistRetry how long after that, or a step down the
	// ladder, has failed it is tried again.
	PersistPause, PersistRetry time.Duration
	// PersistMost is for how long what was done may wait to be stored because the
	// sandbox is busy or asked for things.
	PersistMost time.Duration
	// ProbeEvery is how often the store is asked whether it is back while a sandbox
	// waits for it.
	ProbeEvery time.Duration
}

// DefaultSettings are what a gateway starts from.
func DefaultSettings() Settings {
	return Settings{
		Deadlines:       DefaultDeadlines(),
		MaxRunning:      20,
		RoomAfter:       10 * time.Second,
		MaxFrozen:       20,
		BootConcurrency: 4,
		MaxHeld:         128,
		GitProtocols:    DefaultGitProtocols(),
		ReconcileEvery:  time.Minute,
		Pool:            DefaultPool(),
		Idle:            DefaultIdle(),
		LookEvery:       time.Second,
		PersistPause:    2 * time.Second,
		PersistRetry:    30 * time.Second,
		PersistMost:     time.Minute,
		ProbeEvery:      5 * time.Second,
	}
}

// Manager keeps the sandboxes. All methods are safe for concurrent use; what
// concerns one sandbox happens one after another.
type Manager struct {
	settings   Settings
	runtime    Runtime
	store      Store
	workspaces Workspaces
	links      Links
	notices    Notices
	log        *slog.Logger

	base      context.Context //nolint:containedctx // the parent of work that outlives a request
	shutdown  context.CancelCauseFunc
	work      sync.WaitGroup
	bootSlots chan struct{}
	pool      *pool
	figures   *figures
	occupied  atomic.Int64
	shrinking sync.Mutex // one at a time
	// refused counts who found no room since the last look.
	refused atomic.Int64

	mu     sync.RWMutex
	boxes  map[string]*box
	warned map[string]bool // volumes that something was said of
}

// box is one sandbox. serial is held by whoever changes it; mu guards the
// fields for readers and for what the engine reports.
type box struct {
	id     string
	serial chan struct{}

	mu       sync.Mutex
	state    state
	rec      Record
	version  Version
	unsure   bool // the store may hold another record: a write of it failed, or its answer was lost
	cont     Container
	link     Link
	guest    *guest.Client
	attached bool   // sandboxd has confirmed OpenCode in this run
	volume   string // of a container that is being restored, not on record yet
	// generation is that of the mark which the disk was given last; the record's may
	// be older.
	generation int64
	life       context.Context //nolint:containedctx // ends with the incarnation
	end        context.CancelCauseFunc
	// lastActive is the last activity of any kind, lastRequest that of a caller;
	// inUse counts the uses that have not ended.
	lastActive  time.Time
	lastRequest time.Time
	inUse       int
	watchers    map[*Watcher]struct{}

	// dirty is set, since dirtySince, while something was done that is not stored yet;
	// storingSince is since when what is being stored at this moment was not.
	dirty         bool
	dirtySince    time.Time
	storingSince  time.Time
	persisting    bool
	persistFailed bool
	nextRun       *persistRun
	endPersist    func()
	// quietUntil is moved by work, so that it is stored once and not at each step of
	// it. It never puts off what is urgent.
	quietUntil   time.Time
	persistAfter time.Time    // not sooner, as it has failed
	descendAfter time.Time    // not sooner, as it has failed
	failures     int          // to step down or to store, one after another
	awaits       sandbox.Code // what was away when that failed last, such as the store
	unanswered   int          // questions whether it is busy, one after another
	synced       Synced       // as of the last sync
	snapshot     *Snapshot    // the newest
	looking      bool         // lookAt is at it
	shrunk       bool         // while it is frozen, its memory is in swap
	shrinkAfter  time.Time    // no sooner
	nudged       bool         // Nudge is at it
	restarts     int          // of OpenCode that are counted, of the run that is next
	restartsOf   Run

	gone       bool // no longer in the manager's map
	unwanted   bool // a delete was asked for
	unreadable bool // the record exists and cannot be read
	lastError  string
	steps      []*progress // it is at
	// wakes counts the tries to bring it up; wakeErr is how the last one ended.
	wakes   int
	wakeErr error
	held    atomic.Int64
}

// New makes a Manager. Start must be called before it serves.
func New(settings Settings, runtime Runtime, store Store, workspaces Workspaces, links Links, notices Notices, log *slog.Logger) *Manager {
	base, shutdown := context.WithCancelCause(context.Background())
	m := &Manager{
		settings: settings, runtime: runtime, store: store, workspaces: workspaces, links: links, notices: notices, log: log,
		base: base, shutdown: shutdown,
		bootSlots: make(chan struct{}, max(1, settings.BootConcurrency)),
		boxes:     map[string]*box{}, warned: map[string]bool{},
	}
	m.pool = newPool(m)
	m.figures = newFigures(m)
	return m
}

// Start loads the records and begins to follow the engine in the background.
// It fails only when the store cannot be read: an engine that is away is waited
// for while the gateway serves.
func (m *Manager) Start(ctx context.Context) error {
	if err := m.load(ctx); err != nil {
		return err
	}
	m.work.Go(m.follow)
	m.work.Go(m.tick)
	m.work.Go(m.look)
	m.work.Go(m.probe)
	m.work.Go(m.pool.run)
	return nil
}

// Close ends what runs and waits for it, no longer than ctx. Sandboxes stay.
func (m *Manager) Close(ctx context.Context) error {
	m.shutdown(ErrClosing)
	return daemon.Await(ctx, &m.work, "work on sandboxes")
}

// Ready returns nil when engine and store can be used.
func (m *Manager) Ready(ctx context.Context) error {
	if err := m.store.Ready(ctx); err != nil {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the store cannot be written").WithCause(err)
	}
	return m.runtime.Ready(ctx)
}

// newBox makes a box in the map's lock.
func (m *Manager) newBox(id string) *box {
	b := &box{id: id, serial: make(chan struct{}, 1), state: stateAbsent, watchers: map[*Watcher]struct{}{}}
	b.life, b.end = context.WithCancelCause(m.base)
	m.boxes[id] = b
	return b
}

// find returns the box of id, nil if there is none.
func (m *Manager) find(id string) *box {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.boxes[id]
}

// findOrAdd returns the box of id, making one if there is none.
func (m *Manager) findOrAdd(id string) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[id]; b != nil {
		return b
	}
	return m.newBox(id)
}

// forget takes the box out of the map: its sandbox is no more.
func (m *Manager) forget(b *box) {
	b.end(ErrDeleted)
	b.mu.Lock()
	b.gone = true
	b.mu.Unlock()
	m.mu.Lock()
	if m.boxes[b.id] == b {
		delete(m.boxes, b.id)
	}
	m.mu.Unlock()
}

// existing returns the box of a sandbox that callers can see.
func (m *Manager) existing(id string) (*box, error) {
	if err := sandbox.CheckID(id); err != nil {
		return nil, err
	}
	b := m.find(id)
	if b == nil || !b.current().visible() {
		return nil, sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no sandbox %q; create it with POST /sandbox", id)
	}
	return b, nil
}

func (b *box) current() state {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

func (b *box) record() Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec
}

// become moves a box to another state as the table allows, and counts it
// against MaxRunning. forced is for what runs already.
func (m *Manager) become(b *box, next state, forced bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return m.becomeLocked(b, next, forced)
}

func (m *Manager) becomeLocked(b *box, next state, forced bool) error {
	if b.state == next {
		return nil
	}
	if !b.state.mayBecome(next) {
		err := errTransition(b.state, next)
		m.log.Error("refused a transition", "sandboxId", b.id, "error", err)
		return err
	}
	switch was, will := b.state.occupies(), next.occupies(); {
	case !was && will:
		limit := int64(m.settings.MaxRunning)
		if n := m.occupied.Add(1); limit > 0 && n > limit && !forced {
			m.occupied.Add(-1)
			m.refused.Add(1)
			return &sandbox.Error{
				Code:       sandbox.CodeNoCapacity,
				Message:    "all the sandboxes that may run at once are running; an idle one is put to sleep if there is one, so try again, stop or delete one, or raise MAX_RUNNING",
				RetryAfter: 5 * time.Second,
			}
		}
	case was && !will:
		m.occupied.Add(-1)
	}
	b.state = next
	return nil
}

// serially runs fn alone on the box. fn goes on when the caller leaves; its
// context is the box's life, or the manager's for work that must outlive it.
//
//nolint:contextcheck // the work has a life of its own on purpose
func (m *Manager) serially(ctx context.Context, b *box, outlive bool, fn func(ctx context.Context) error) error {
	waited := timeline.Begin(ctx, "wait")
	select {
	case b.serial <- struct{}{}:
		waited()
	case <-ctx.Done():
		return waitError(ctx)
	case <-m.base.Done():
		return ErrClosing
	}
	opCtx := b.life
	if outlive {
		opCtx = m.base
	}
	b.mu.Lock()
	opCtx = timeline.Carry(b.aboutLocked(opCtx), ctx)
	b.mu.Unlock()
	done := make(chan error, 1)
	m.work.Go(func() {
		defer func() { <-b.serial }()
		done <- fn(opCtx)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return waitError(ctx)
	}
}

// logOf returns the log for work on a box that has no context of its own.
func (m *Manager) logOf(b *box) *slog.Logger {
	b.mu.Lock()
	defer b.mu.Unlock()
	return m.log.With("sandboxId", b.id, "userId", b.rec.UserID)
}

// aboutLocked returns a context whose log lines tell of the box.
func (b *box) aboutLocked(ctx context.Context) context.Context {
	return timeline.About(ctx, "sandboxId", b.id, "userId", b.rec.UserID)
}

// waitError says why a wait ended.
func waitError(ctx context.Context) error {
	cause := context.Cause(ctx)
	if e, ok := errors.AsType[*sandbox.Error](cause); ok {
		return e
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return &sandbox.Error{Code: sandbox.CodeDeadline, Message: "the work on the sandbox took too long to wait for; it goes on in the background, try again", RetryAfter: sandbox.DefaultRetryAfter, Cause: cause}
	}
	return cause
}

// atStep names the step that failed, in the words of what failed in it.
func atStep(ctx context.Context, step string, err error) error {
	if ended, ok := errors.AsType[*sandbox.Error](context.Cause(ctx)); ok {
		return ended // deleted or shutting down: whatever failed, failed because of that
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		clone := *e
		clone.Message = "step " + step + ": " + e.Message
		return &clone
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return sandbox.Errorf(sandbox.CodeDeadline, "step %s took too long; try again, and see the timeouts in the README if it stays so", step).WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeInternal, "step %s failed; the gateway's log has the cause", step).WithCause(err)
}

// save writes a change of the record. If it fails the change does not count, but
// may be in the store all the same: until a write succeeds the box is unsure. The
// caller holds serial.
func (m *Manager) save(ctx context.Context, b *box, change func(*Record)) error {
	defer timeline.Begin(ctx, "record")()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.settings.Deadlines.Store)
	defer cancel()
	b.mu.Lock()
	rec, version := b.rec, b.version
	rec.Secrets.LastError, rec.LastActiveAt, rec.Generation = b.lastError, b.lastActive, b.generation
	if b.snapshot != nil {
		rec.Snapshot = b.snapshot
	}
	b.mu.Unlock()
	change(&rec)
	version, err := m.store.Update(ctx, rec, version)
	b.mu.Lock()
	defer b.mu.Unlock()
	if version != "" {
		b.version = version
	}
	b.unsure = err != nil
	if err != nil {
		return storeError(err)
	}
	b.rec = rec
	return nil
}

// recorded returns the record if it is known that the store holds it.
func (b *box) recorded() (rec Record, sure bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec, !b.unsure
}

func storeError(cause error) error {
	return sandbox.Errorf(sandbox.CodeStoreAway,
		"the sandbox's record could not be written; check that the store answers and has space, the gateway's log has the cause").WithCause(cause)
}

func (b *box) lastErrorNow() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lastError
}

// reason is an error as callers may read it: what is meant for the log stays
// out of it.
func reason(err error) string {
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

// all lists the boxes there are.
func (m *Manager) all() []*box {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.boxes))
}

// trySerial takes the box's turn unless somebody has it.
func (b *box) trySerial() (release func(), ok bool) {
	select {
	case b.serial <- struct{}{}:
		return func() { <-b.serial }, true
	default:
		return nil, false
	}
}

func (m *Manager) notify(rec Record, event sandbox.Event, more map[string]any) {
	data := map[string]any{"userId": rec.UserID}
	maps.Copy(data, more)
	m.notices.Send(rec.SandboxID, rec.Incarnation, event, data)
}
