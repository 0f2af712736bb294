package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/gateway/internal/workspace"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

// world is what is around a gateway and outlives it: a store and an engine.
type world struct {
	t      *testing.T
	store  *store.Directory
	keys   *seal.Keyring
	engine *engine
	logs   lockedBuffer
	// change is made to the settings of the gateways to come, if it is not nil.
	change func(*lifecycle.Settings)
}

// keep is how many snapshots a sandbox has.
const keep = 2

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	if w.store, err = store.OpenDirectory(filepath.Join(t.TempDir(), "store")); err != nil {
		t.Fatal(err)
	}
	if w.keys, err = seal.NewKeyring([seal.KeySize]byte{1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the gateways said:\n%s", w.logs.String())
		}
	})
	w.engine = newEngine(t)
	return w
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// gateway is one life of a gateway, without its HTTP server.
type gateway struct {
	*lifecycle.Manager

	t      *testing.T
	faults *storetest.Faults // between it and the store
	wire   *wire             // between it and the engine
	links  *proxy.Transport

	mu       sync.Mutex
	diesWith int // the call to the store with which it dies, 0 for none
	closed   bool
	gone     chan struct{} // closed when its death is noticed
	notice   func()        // closes gone
}

// boot starts a gateway. It ends with the test if nothing ended it before.
func (w *world) boot(t *testing.T) *gateway {
	t.Helper()
	log := slog.New(slog.NewTextHandler(&w.logs, nil))
	g := &gateway{t: t, faults: storetest.NewFaults(w.store), gone: make(chan struct{})}
	g.notice = sync.OnceFunc(func() { close(g.gone) })
	g.wire = &wire{engine: w.engine, gateway: g, plan: map[int]storetest.Fault{}}
	g.links = proxy.NewTransport(g.wire.alive, proxy.TransportSettings{})
	once := store.NewRetrier(g.faults, store.Policy{Tries: 1, FirstWait: time.Millisecond})
	keeper := workspace.NewKeeper(
		snapshot.New(once, w.keys, snapshot.Settings{Keep: keep, Log: log}), mirror.New(once, w.keys, mirror.Settings{Log: log}), 1, log)
	set := settings()
	if w.change != nil {
		w.change(&set)
	}
	g.Manager = lifecycle.New(set, g.wire, workspace.NewRecords(once, w.keys), keeper, &path{g.links, g}, silence{}, log)
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.end)
	return g
}

// settings are those of a gateway that does nothing of its own accord but what
// it does on boot, so that calls can be counted.
func settings() lifecycle.Settings {
	s := lifecycle.DefaultSettings()
	s.Deadlines = lifecycle.Deadlines{
		Engine: 30 * time.Second, Guest: 20 * time.Second, Boot: 30 * time.Second, Clone: 30 * time.Second, Config: 20 * time.Second,
		Stop: time.Second, Hold: time.Minute, Store: 20 * time.Second, Snapshot: time.Minute, Restore: time.Minute, Purge: time.Minute,
	}
	s.ReconcileEvery, s.LookEvery = time.Hour, time.Hour
	// So that a place that is not given back is missed at once.
	s.MaxRunning, s.BootConcurrency = 1, 1
	return s
}

// end shuts the gateway down. Ending it twice is fine.
func (g *gateway) end() {
	if g.closed {
		return
	}
	g.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		g.t.Error(err)
	}
	g.links.Close()
}

// place is where a gateway can be hurt.
type place interface {
	// Calls returns how many calls there were.
	Calls() int
	// Fail plans a fault of the n-th call from now on.
	Fail(n int, fault storetest.Fault)
}

// dieAtStore has the gateway end with the n-th call to the store from now on: that one
// fails or not, and it reaches nothing any more.
func (g *gateway) dieAtStore(n int, fault storetest.Fault) {
	const many = 200 // more than any operation makes
	g.faults.Fail(n, fault)
	for later := 1; later < many; later++ {
		g.faults.Fail(n+later, storetest.Before)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.diesWith = g.faults.Calls() + n
}

// dieAtEngine does the same at the engine.
func (g *gateway) dieAtEngine(n int, fault storetest.Fault) {
	g.wire.Fail(n, fault)
	g.wire.mu.Lock()
	defer g.wire.mu.Unlock()
	g.wire.fatal = g.wire.calls + n
}

// dead tells whether the gateway is dead but for its goroutines.
func (g *gateway) dead() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.diesWith > 0 && g.faults.Calls() >= g.diesWith
}

// mortal does something that the gateway may not survive: should it die, it ends
// at once, and not when all that it began has failed.
func (g *gateway) mortal(do func()) {
	var watch sync.WaitGroup
	done := make(chan struct{})
	watch.Go(func() {
		select {
		case <-g.gone:
			g.end()
		case <-done:
		}
	})
	do()
	close(done)
	watch.Wait()
}

var (
	errInjected = sandbox.Errorf(sandbox.CodeEngineAway, "injected")
	errDead     = sandbox.Errorf(sandbox.CodeEngineAway, "a dead gateway reaches nobody")
)

// wire is what a gateway has of the engine. It counts the calls that change
// something, and they fail when they are told to.
type wire struct {
	*engine
	gateway *gateway

	mu    sync.Mutex
	calls int
	plan  map[int]storetest.Fault
	fatal int // the call after which nothing gets through, 0 for none
	down  bool
}

var (
	_ lifecycle.Runtime = (*wire)(nil)
	_ place             = (*wire)(nil)
	_ place             = (*storetest.Faults)(nil)
)

// Calls implements place.
func (w *wire) Calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// Fail implements place. A call to the engine has no middle.
func (w *wire) Fail(n int, fault storetest.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plan[w.calls+n] = fault
}

// up ends what DownAfter did.
func (w *wire) up() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

// cut returns the error of a wire through which nothing gets.
func (w *wire) cut() error {
	w.mu.Lock()
	down, dead := w.down, w.fatal > 0 && w.calls >= w.fatal
	w.mu.Unlock()
	if dead || w.gateway.dead() {
		w.gateway.notice()
		return errDead
	}
	if down {
		return errDead
	}
	return nil
}

// change makes a call that changes something.
func (w *wire) change(call func() error) error {
	if err := w.cut(); err != nil {
		return err
	}
	w.mu.Lock()
	w.calls++
	fault, planned := w.plan[w.calls]
	fatal := w.calls == w.fatal
	w.mu.Unlock()
	var err error
	if !planned || fault == storetest.ReplyLost || fault == storetest.DownAfter {
		err = call()
	}
	w.mu.Lock()
	w.down = w.down || planned && fault == storetest.DownAfter
	w.mu.Unlock()
	if fatal {
		w.gateway.faults.Down()
	}
	if planned && fault != storetest.DownAfter {
		return errors.Join(errInjected, err)
	}
	return err
}

func (w *wire) alive(ctx context.Context, run lifecycle.Run) error {
	if err := w.cut(); err != nil {
		return err
	}
	return w.engine.alive(ctx, run)
}

// Create implements lifecycle.Runtime.
func (w *wire) Create(ctx context.Context, spec lifecycle.Spec) (c lifecycle.Container, err error) {
	err = w.change(func() (err error) {
		c, err = w.engine.Create(ctx, spec)
		return err
	})
	if err != nil {
		return lifecycle.Container{}, err
	}
	return c, nil
}

// Start implements lifecycle.Runtime.
func (w *wire) Start(ctx context.Context, id string) (c lifecycle.Container, err error) {
	err = w.change(func() (err error) {
		c, err = w.engine.Start(ctx, id)
		return err
	})
	if err != nil {
		return lifecycle.Container{}, err
	}
	return c, nil
}

// Stop implements lifecycle.Runtime.
func (w *wire) Stop(ctx context.Context, id string, grace time.Duration) error {
	return w.change(func() error { return w.engine.Stop(ctx, id, grace) })
}

// Pause implements lifecycle.Runtime.
func (w *wire) Pause(ctx context.Context, id string) error {
	return w.change(func() error { return w.engine.Pause(ctx, id) })
}

// Shrink implements lifecycle.Runtime.
func (w *wire) Shrink(ctx context.Context, id string) error {
	return w.change(func() error { return w.engine.Shrink(ctx, id) })
}

// Unpause implements lifecycle.Runtime.
func (w *wire) Unpause(ctx context.Context, id string) error {
	return w.change(func() error { return w.engine.Unpause(ctx, id) })
}

// Foreground implements lifecycle.Runtime.
func (w *wire) Foreground(ctx context.Context, id string) error {
	return w.change(func() error { return w.engine.Foreground(ctx, id) })
}

// Rename implements lifecycle.Runtime.
func (w *wire) Rename(ctx context.Context, id, sandboxID string) error {
	return w.change(func() error { return w.engine.Rename(ctx, id, sandboxID) })
}

// CreateVolume implements lifecycle.Runtime.
func (w *wire) CreateVolume(ctx context.Context, name string) error {
	return w.change(func() error { return w.engine.CreateVolume(ctx, name) })
}

// Remove implements lifecycle.Runtime.
func (w *wire) Remove(ctx context.Context, id string) error {
	return w.change(func() error { return w.engine.Remove(ctx, id) })
}

// RemoveVolume implements lifecycle.Runtime.
func (w *wire) RemoveVolume(ctx context.Context, name string) error {
	return w.change(func() error { return w.engine.RemoveVolume(ctx, name) })
}

// Current implements lifecycle.Runtime: there is one image only.
func (w *wire) Current(context.Context, string) (bool, error) { return true, nil }

// Inspect implements lifecycle.Runtime.
func (w *wire) Inspect(ctx context.Context, id string) (lifecycle.Container, error) {
	if err := w.cut(); err != nil {
		return lifecycle.Container{}, err
	}
	return w.engine.Inspect(ctx, id)
}

// Find implements lifecycle.Runtime.
func (w *wire) Find(ctx context.Context, sandboxID string) (lifecycle.Container, error) {
	if err := w.cut(); err != nil {
		return lifecycle.Container{}, err
	}
	return w.engine.Find(ctx, sandboxID)
}

// List implements lifecycle.Runtime.
func (w *wire) List(ctx context.Context) ([]lifecycle.Container, error) {
	if err := w.cut(); err != nil {
		return nil, err
	}
	return w.engine.List(ctx)
}

// Volumes implements lifecycle.Runtime.
func (w *wire) Volumes(ctx context.Context) ([]string, error) {
	if err := w.cut(); err != nil {
		return nil, err
	}
	return w.engine.Volumes(ctx)
}

// path is a gateway's way into its sandboxes. They are no containers, so the
// folders that it names are not where it believes them to be.
type path struct {
	*proxy.Transport
	gateway *gateway
}

// RoundTrip implements lifecycle.Links.
func (p *path) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.gateway.wire.cut(); err != nil {
		return nil, err
	}
	if r.URL.Path != guest.RouteStart {
		return p.Transport.RoundTrip(r)
	}
	var start guest.StartRequest
	err := json.NewDecoder(r.Body).Decode(&start)
	if err := errors.Join(err, r.Body.Close()); err != nil {
		return nil, fmt.Errorf("reading a start request: %w", err)
	}
	start.Directory = "" // which is the workspace, wherever that is
	raw, err := json.Marshal(start)
	if err != nil {
		return nil, fmt.Errorf("writing a start request: %w", err)
	}
	moved := r.Clone(r.Context())
	moved.Body, moved.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	return p.Transport.RoundTrip(moved)
}

// silence is nobody who is told of anything.
type silence struct{}

// Send implements lifecycle.Notices.
func (silence) Send(string, string, sandbox.Event, map[string]any) {}

// Drop implements lifecycle.Notices.
func (silence) Drop(string, string) {}

// create makes a sandbox without a repository or a config.
func (g *gateway) create(ctx context.Context, id string) error {
	_, err := g.Create(ctx, sandbox.CreateRequest{ID: id, UserID: "owner"})
	return err
}

// wake brings a sandbox up as a request does.
func (g *gateway) wake(ctx context.Context, id string) error {
	h, err := g.Use(ctx, id, lifecycle.Working)
	if err == nil {
		h.Release()
	}
	return err
}

// hibernate puts a sandbox to sleep.
func (g *gateway) hibernate(ctx context.Context, id string, tier sandbox.Tier) error {
	_, err := g.Hibernate(ctx, id, tier, false)
	return err
}

// info is what a caller sees of a sandbox, as far as the gateway knows it.
func (g *gateway) info(id string) sandbox.Info {
	for _, info := range g.Manager.List(lifecycle.Filter{}).Sandboxes {
		if info.SandboxID == id {
			return info
		}
	}
	return sandbox.Info{}
}

// persist has a running sandbox synced and stored, and waits for both. stored
// says that the snapshot was acknowledged, synced that the mirror was.
func (g *gateway) persist(ctx context.Context, id string) (stored, synced bool, err error) {
	if err := g.wake(ctx, id); err != nil {
		return false, false, err
	}
	before := g.info(id)
	_, err = g.Sync(ctx, id)
	synced = err == nil
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		now := g.info(id)
		stored = snapshotOf(now) != snapshotOf(before)
		switch failed := now.LastError != before.LastError && now.LastError != ""; {
		case stored && synced && now.LastError == "":
			return true, true, nil
		case failed:
			return stored, synced, errors.New(now.LastError)
		}
		select {
		case <-again.C:
		case <-g.gone:
			return stored, synced, errDead
		case <-ctx.Done():
			return stored, synced, fmt.Errorf("storing did not end: %w (last error: %q)", context.Cause(ctx), now.LastError)
		}
	}
}

// snapshotOf is the id of the newest snapshot that a gateway knows of.
func snapshotOf(info sandbox.Info) string {
	if info.LastSnapshot == nil {
		return ""
	}
	return info.LastSnapshot.ID
}

// record is what the store has of a sandbox.
func (w *world) record(t *testing.T, id string) lifecycle.Record {
	t.Helper()
	listing, err := workspace.NewRecords(w.store, w.keys).List(t.Context())
	if err != nil || len(listing.Unreadable) > 0 {
		t.Fatalf("the records: %v, %v", err, listing.Unreadable)
	}
	for _, stored := range listing.Stored {
		if stored.Record.SandboxID == id {
			return stored.Record
		}
	}
	t.Fatalf("there is no record of %s", id)
	return lifecycle.Record{}
}

// snapshots checks that every snapshot that a sandbox has is whole, and returns
// them, and the objects under its snapshots/ that none of them uses.
func (w *world) snapshots(t *testing.T, id string) (all []snapshot.Snapshot, unused []string) {
	t.Helper()
	ref := snapshot.Ref{ID: id, Incarnation: w.record(t, id).Incarnation}
	reads := storetest.NewFaults(w.store) // tells what is read
	reader := snapshot.New(reads, w.keys, snapshot.Settings{})
	all, err := reader.List(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		if _, err := reader.Restore(t.Context(), ref, one.ID, nil, nowhere{}); err != nil {
			t.Errorf("the snapshot %s of %s: %v", one.ID, id, err)
		}
	}
	used := map[string]bool{}
	for _, call := range reads.Log() {
		used[strings.TrimPrefix(call, "Get ")] = true
	}
	for _, key := range storetest.MustList(t, w.store, "snapshots/"+id+"/") {
		if !used[key] {
			unused = append(unused, key)
		}
	}
	return all, unused
}

// traces names what there is of a sandbox in the store and the engine.
func (w *world) traces(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	for _, key := range storetest.MustList(t, w.store, "") {
		if strings.Contains("/"+key+"/", "/"+id+"/") {
			found = append(found, key)
		}
	}
	if c, err := w.engine.Find(t.Context(), id); err == nil {
		found = append(found, "container "+c.ID)
	}
	return found
}
