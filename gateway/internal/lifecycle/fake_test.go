package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errInjected is what a step that was told to fail fails with.
var errInjected = sandbox.Errorf(sandbox.CodeEngineAway, "injected")

// world is everything around a Manager: an engine, a store and guests that
// live in memory and fail on demand.
type world struct {
	t *testing.T

	mu         sync.Mutex
	containers map[string]*Container // by id
	background map[string]bool       // by id
	volumes    map[string]bool
	tokens     map[string]string     // containers by the hash of their token
	marks      map[string]guest.Mark // by volume
	given      map[Run]bool          // runs whose disk was given a mark
	diskFull   bool                  // so that none can be given
	collapsed  bool                  // homes shrink to nothing
	records    map[string]Stored
	snapshots  map[string][]Snapshot // by sandbox id, the newest first
	mirrors    map[string]bool
	oldImage   bool   // every container is of one
	outdated   string // the container that is of one
	restarts   int    // of OpenCode
	status     guest.Status
	unreadable map[string]error
	serial     int
	calls      map[string]int
	fail       map[string]error         // by step
	block      map[string]chan struct{} // a step waits for its channel or its context
	entered    map[string]chan struct{} // closed when a blocked step was entered
	events     func(Event)
	notices    []string
	dropped    []Run
	execs      []guest.ExecRequest
	starts     []guest.StartRequest
	execReply  guest.ExecEvent
	execStderr string
	server     *httptest.Server
	accept     string
	listing    []guest.Entry
	transport  http.Transport
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, containers: map[string]*Container{}, background: map[string]bool{}, volumes: map[string]bool{},
		tokens: map[string]string{}, marks: map[string]guest.Mark{}, given: map[Run]bool{}, records: map[string]Stored{},
		snapshots: map[string][]Snapshot{}, mirrors: map[string]bool{}, status: guest.Status{OpenCode: guest.OpenCode{State: guest.StateReady}},
		unreadable: map[string]error{}, calls: map[string]int{}, fail: map[string]error{},
		block: map[string]chan struct{}{}, entered: map[string]chan struct{}{}, execReply: guest.ExecEvent{Type: "exit"},
	}
	w.server = httptest.NewServer(http.HandlerFunc(w.serveGuest))
	t.Cleanup(w.server.Close)
	return w
}

// manager makes and starts a Manager in this world; it is closed with the test.
func (w *world) manager(change ...func(*Settings)) *Manager {
	w.t.Helper()
	settings := DefaultSettings()
	settings.Deadlines.Hold = 5 * time.Second
	settings.Deadlines.Engine = 5 * time.Second
	settings.Deadlines.Guest = 2 * time.Second
	settings.ReconcileEvery, settings.LookEvery = time.Hour, time.Hour
	settings.PersistPause = 0
	for _, c := range change {
		c(&settings)
	}
	m := New(settings, w, storeOf{w}, workspacesOf{w}, linksOf{w}, noticesOf{w}, slog.New(slog.DiscardHandler))
	if err := m.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			w.t.Error(err)
		}
		w.transport.CloseIdleConnections()
	})
	return m
}

// step counts a call and fails or blocks it as told.
func (w *world) step(ctx context.Context, name string) error {
	w.mu.Lock()
	w.calls[name]++
	err, gate, entered := w.fail[name], w.block[name], w.entered[name]
	if entered != nil {
		delete(w.entered, name)
		close(entered)
	}
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// hold makes a step block; the first channel is closed when it is entered, the
// function lets it go.
func (w *world) hold(name string) (entered <-chan struct{}, release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate, in := make(chan struct{}), make(chan struct{})
	w.block[name], w.entered[name] = gate, in
	return in, sync.OnceFunc(func() {
		w.mu.Lock()
		delete(w.block, name)
		w.mu.Unlock()
		close(gate)
	})
}

func (w *world) setFail(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.fail, name)
		return
	}
	w.fail[name] = err
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[name]
}

// left names what exists in engine and store.
func (w *world) left() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for id := range w.containers {
		all = append(all, "container "+id)
	}
	for v := range w.volumes {
		all = append(all, "volume "+v)
	}
	for id := range w.records {
		all = append(all, "record "+id)
	}
	for id := range w.snapshots {
		all = append(all, "snapshots "+id)
	}
	for id := range w.mirrors {
		all = append(all, "mirror "+id)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.notices)
}

// kill ends a sandbox's container as a crash would and tells of it.
func (w *world) kill(sandboxID string, exitCode int) {
	w.mu.Lock()
	var id string
	for _, c := range w.containers {
		if c.SandboxID == sandboxID {
			c.State, c.ExitCode, id = ContainerExited, exitCode, c.ID
		}
	}
	tell := w.events
	w.mu.Unlock()
	tell(Event{Kind: EventDied, ContainerID: id, SandboxID: sandboxID, ExitCode: exitCode})
}

// die is a kill that the manager has noticed.
func (w *world) die(m *Manager, sandboxID string, exitCode int) {
	w.t.Helper()
	until(w.t, "the engine is listened to", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.events != nil
	})
	w.kill(sandboxID, exitCode)
	until(w.t, "the death is noticed", func() bool { return m.find(sandboxID).current() == stateStopped })
}

// --- the engine ---

func (w *world) Ready(ctx context.Context) error { return w.step(ctx, "Ready") }

func (w *world) CreateVolume(ctx context.Context, name string) error {
	if err := w.step(ctx, "CreateVolume"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.volumes[name] = true
	return nil
}

func (w *world) Create(ctx context.Context, spec Spec) (Container, error) {
	if err := w.step(ctx, "Create"); err != nil {
		return Container{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.SandboxID == spec.SandboxID {
			return Container{}, sandbox.Errorf(sandbox.CodeNameTaken, "taken")
		}
	}
	if spec.Kept && !w.volumes[spec.Volume] {
		return Container{}, ErrNoVolume
	}
	w.serial++
	c := &Container{ID: "c" + strconv.Itoa(w.serial), SandboxID: spec.SandboxID, State: ContainerCreated, Volume: spec.Volume}
	w.containers[c.ID], w.volumes[spec.Volume] = c, true
	w.tokens[spec.Env[guest.TokenHashEnv]] = c.ID
	if spec.Background {
		w.background[c.ID] = true
	}
	return *c, nil
}

func (w *world) Start(ctx context.Context, id string) (Container, error) {
	if err := w.step(ctx, "Start"); err != nil {
		return Container{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[id]
	if c == nil {
		return Container{}, ErrNoContainer
	}
	w.serial++
	c.State, c.StartedAt = ContainerRunning, fmt.Sprint("t", w.serial)
	c.GuestAddr, c.OpenCodeAddr = "guest", "opencode"
	return *c, nil
}

func (w *world) set(ctx context.Context, step, id string, state State) error {
	if err := w.step(ctx, step); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.containers[id]; c != nil {
		c.State = state
		return nil
	}
	return ErrNoContainer
}

func (w *world) Stop(ctx context.Context, id string, _ time.Duration) error {
	return w.set(ctx, "Stop", id, ContainerExited)
}

func (w *world) Shrink(ctx context.Context, id string) error {
	return w.set(ctx, "Shrink", id, ContainerPaused)
}

func (w *world) Pause(ctx context.Context, id string) error {
	return w.set(ctx, "Pause", id, ContainerPaused)
}

func (w *world) Unpause(ctx context.Context, id string) error {
	return w.set(ctx, "Unpause", id, ContainerRunning)
}

func (w *world) Foreground(ctx context.Context, id string) error {
	if err := w.step(ctx, "Foreground"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.containers[id] == nil {
		return ErrNoContainer
	}
	delete(w.background, id)
	return nil
}

func (w *world) Rename(ctx context.Context, id, sandboxID string) error {
	if err := w.step(ctx, "Rename"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[id]
	if c == nil {
		return ErrNoContainer
	}
	c.SandboxID = sandboxID
	return nil
}

func (w *world) Remove(ctx context.Context, id string) error {
	if err := w.step(ctx, "Remove"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.containers, id)
	return nil
}

func (w *world) RemoveVolume(ctx context.Context, name string) error {
	if err := w.step(ctx, "RemoveVolume"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.volumes, name)
	delete(w.marks, name)
	return nil
}

func (w *world) Inspect(ctx context.Context, id string) (Container, error) {
	if err := w.step(ctx, "Inspect"); err != nil {
		return Container{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.containers[id]; c != nil {
		return *c, nil
	}
	return Container{}, ErrNoContainer
}

func (w *world) Current(ctx context.Context, id string) (bool, error) {
	err := w.step(ctx, "Current")
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.containers[id] == nil {
		err = ErrNoContainer
	}
	return !w.oldImage && w.outdated != id, err
}

func (w *world) Find(ctx context.Context, sandboxID string) (Container, error) {
	if err := w.step(ctx, "Find"); err != nil {
		return Container{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.SandboxID == sandboxID {
			return *c, nil
		}
	}
	return Container{}, ErrNoContainer
}

func (w *world) List(ctx context.Context) ([]Container, error) {
	if err := w.step(ctx, "List"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Container
	for _, c := range w.containers {
		all = append(all, *c)
	}
	return all, nil
}

func (w *world) Volumes(ctx context.Context) ([]string, error) {
	if err := w.step(ctx, "Volumes"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.volumes)), nil
}

func (w *world) Stats(ctx context.Context, _ string) (sandbox.Stats, error) {
	return sandbox.Stats{}, w.step(ctx, "Stats")
}

func (w *world) Logs(ctx context.Context, _ string, _ LogOptions) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("last words")), w.step(ctx, "Logs")
}

func (w *world) Wait(ctx context.Context, _ string) (Exit, error) {
	return Exit{}, w.step(ctx, "Wait")
}

func (w *world) Events(ctx context.Context, subscribed func(), fn func(Event)) error {
	if err := w.step(ctx, "Events"); err != nil {
		return err
	}
	w.mu.Lock()
	w.events = fn
	w.mu.Unlock()
	subscribed()
	<-ctx.Done()
	return nil
}

// --- the store ---

type storeOf struct{ w *world }

func (s storeOf) Ready(ctx context.Context) error { return s.w.step(ctx, "store.Ready") }

func (s storeOf) Create(ctx context.Context, r Record) (Version, error) {
	if err := s.w.step(ctx, "store.Create"); err != nil {
		return "", err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if _, ok := s.w.records[r.SandboxID]; ok {
		return "", ErrRecordExists
	}
	s.w.records[r.SandboxID] = Stored{r, "1"}
	return "1", nil
}

func (s storeOf) Update(ctx context.Context, r Record, v Version) (Version, error) {
	if err := s.w.step(ctx, "store.Update"); err != nil {
		return "", err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	old, ok := s.w.records[r.SandboxID]
	if !ok {
		return "", ErrNoRecord
	}
	if old.Version != v {
		return "", ErrRecordChanged
	}
	next := Version(fmt.Sprint(v, "+"))
	s.w.records[r.SandboxID] = Stored{r, next}
	return next, s.w.fail["store.Update landed"]
}

func (s storeOf) Delete(ctx context.Context, id string) error {
	if err := s.w.step(ctx, "store.Delete"); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.w.records, id)
	return nil
}

func (s storeOf) List(ctx context.Context) (Listing, error) {
	if err := s.w.step(ctx, "store.List"); err != nil {
		return Listing{}, err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return Listing{Stored: slices.Collect(maps.Values(s.w.records)), Unreadable: maps.Clone(s.w.unreadable)}, nil
}

// --- what is kept ---

type workspacesOf struct{ w *world }

func (k workspacesOf) Begin(ctx context.Context, _ Ref) error { return k.w.step(ctx, "Begin") }

func (k workspacesOf) Snapshot(ctx context.Context, ref Ref, g *guest.Client) (Snapshot, error) {
	if err := k.w.step(ctx, "Snapshot"); err != nil {
		return Snapshot{}, err
	}
	if _, err := g.OpenCode(ctx); err != nil {
		return Snapshot{}, err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	k.w.serial++
	taken := Snapshot{ID: fmt.Sprint("snap", k.w.serial), CreatedAt: time.Now(), Files: 3, Bytes: 30, Collapsed: k.w.collapsed}
	k.w.snapshots[ref.SandboxID] = append([]Snapshot{taken}, k.w.snapshots[ref.SandboxID]...)
	return taken, nil
}

func (k workspacesOf) Snapshots(ctx context.Context, ref Ref) ([]Snapshot, error) {
	if err := k.w.step(ctx, "Snapshots"); err != nil {
		return nil, err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	return slices.Clone(k.w.snapshots[ref.SandboxID]), nil
}

func (k workspacesOf) Restore(ctx context.Context, ref Ref, id string, part Part, _ *guest.Client, _ func(int64)) (int64, error) {
	if err := k.w.step(ctx, fmt.Sprint("Restore", part)); err != nil {
		return 0, err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for _, s := range k.w.snapshots[ref.SandboxID] {
		if id == "" || s.ID == id {
			return int64(part), nil
		}
	}
	return 0, sandbox.Errorf(sandbox.CodeSnapshotNotFound, "no such snapshot")
}

func (k workspacesOf) Sync(ctx context.Context, ref Ref, _ *guest.Client) (Synced, error) {
	if err := k.w.step(ctx, "Sync"); err != nil {
		return Synced{}, err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	k.w.mirrors[ref.SandboxID] = true
	return Synced{Files: 2, Bytes: 20}, nil
}

func (k workspacesOf) Mirrored(ctx context.Context, id string) (bool, error) {
	err := k.w.step(ctx, "Mirrored")
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	return k.w.mirrors[id], err
}

func (k workspacesOf) Import(ctx context.Context, _ Ref, _ *guest.Client) (int64, error) {
	return 1, k.w.step(ctx, "Import")
}

func (k workspacesOf) Undo(ctx context.Context, ref Ref) error {
	if err := k.w.step(ctx, "Undo"); err != nil {
		return err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	delete(k.w.snapshots, ref.SandboxID)
	return nil
}

func (k workspacesOf) Delete(ctx context.Context, ref Ref) error {
	if err := k.w.step(ctx, "Delete"); err != nil {
		return err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	delete(k.w.snapshots, ref.SandboxID)
	delete(k.w.mirrors, ref.SandboxID)
	return nil
}

// --- the path and the guest behind it ---

type linksOf struct{ w *world }

func (l linksOf) Register(Container, func(context.Context, Link) error) Link {
	return Link{GuestURL: l.w.server.URL, OpenCodeURL: l.w.server.URL}
}

func (l linksOf) Drop(run Run) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.dropped = append(l.w.dropped, run)
}

func (l linksOf) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.w.transport.RoundTrip(r)
}

// acceptConfig lets a start pass whose config has the text, whatever fails.
func (w *world) acceptConfig(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.accept = text
}

func (w *world) accepts(r *http.Request) bool {
	w.mu.Lock()
	text := w.accept
	w.mu.Unlock()
	if text == "" || r.URL.Path != guest.RouteStart {
		return false
	}
	var req guest.StartRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	return strings.Contains(string(req.Config.OpenCode), strings.ReplaceAll(text, " ", ""))
}

func (w *world) serveGuest(rw http.ResponseWriter, r *http.Request) {
	if w.accepts(r) {
		_ = json.NewEncoder(rw).Encode(guest.Applied{Written: []string{guest.KeyOpenCode}})
		return
	}
	if err := w.step(r.Context(), r.URL.Path); err != nil {
		e, ok := errors.AsType[*sandbox.Error](err)
		if !ok {
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(e.Code.Status())
		_ = json.NewEncoder(rw).Encode(guest.ErrorBody{Error: e.Message, Code: string(e.Code)})
		return
	}
	switch r.URL.Path {
	case guest.RouteStart:
		var req guest.StartRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		w.mu.Lock()
		w.starts = append(w.starts, req)
		w.mu.Unlock()
		_ = json.NewEncoder(rw).Encode(guest.Applied{Written: []string{guest.KeyOpenCode}})
	case guest.RouteMark:
		w.serveMark(rw, r)
	case "/session/status":
		_, _ = rw.Write([]byte("{}"))
	case guest.RouteConfig:
		_ = json.NewEncoder(rw).Encode(guest.Applied{Written: []string{guest.KeyOpenCode}})
	case guest.RouteExec:
		var req guest.ExecRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		w.mu.Lock()
		w.execs = append(w.execs, req)
		reply, stderr := w.execReply, w.execStderr
		w.mu.Unlock()
		enc := json.NewEncoder(rw)
		_ = enc.Encode(guest.ExecEvent{Type: "stderr", Data: []byte(stderr)})
		_ = enc.Encode(reply)
	case guest.RouteFiles:
		rw.Header().Set(guest.TypeHeader, "directory")
		_ = json.NewEncoder(rw).Encode(guest.Listing{Entries: w.listing})
	case guest.RouteOpenCode:
		w.mu.Lock()
		restarts := w.restarts
		w.mu.Unlock()
		_ = json.NewEncoder(rw).Encode(guest.OpenCode{State: guest.StateReady, Restarts: restarts})
	default:
		w.mu.Lock()
		status := w.status
		w.mu.Unlock()
		_ = json.NewEncoder(rw).Encode(status)
	}
}

// serveMark answers for the disk of the container that has the request's token.
func (w *world) serveMark(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[w.tokens[tokenHash(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))]]
	if c == nil {
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodPut {
		if w.diskFull {
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(sandbox.CodeDiskFull.Status())
			_ = json.NewEncoder(rw).Encode(guest.ErrorBody{Error: "full", Code: string(sandbox.CodeDiskFull)})
			return
		}
		var mark guest.Mark
		_ = json.NewDecoder(r.Body).Decode(&mark)
		w.marks[c.Volume], w.given[c.Run()] = mark, true
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	_ = json.NewEncoder(rw).Encode(guest.MarkStatus{Mark: w.marks[c.Volume], Given: w.given[c.Run()]})
}

type noticesOf struct{ w *world }

func (n noticesOf) Send(id, _ string, event sandbox.Event, _ map[string]any) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.notices = append(n.w.notices, string(event)+" "+id)
}

func (n noticesOf) Drop(string, string) {}
