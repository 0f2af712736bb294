package sandboxes_test

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// rows is a task.Sandboxes in memory; the store's own tests hold the real one to
// the same.
type rows struct {
	mu   sync.Mutex
	kept map[string]task.Sandbox
}

func (r *rows) Create(_ context.Context, s task.Sandbox) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.UserID == "nobody" {
		return task.ErrNotFound
	}
	for _, other := range r.kept {
		if other.ID == s.ID || other.UserID == s.UserID && other.Slug == s.Slug {
			return task.ErrExists
		}
	}
	r.kept[s.ID] = s
	return nil
}

func (r *rows) Find(_ context.Context, id string) (task.Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.kept[id]
	if !ok {
		return s, task.ErrNotFound
	}
	return s, nil
}

func (r *rows) Get(ctx context.Context, userID, id string) (task.Sandbox, error) {
	s, err := r.Find(ctx, id)
	if err != nil || s.UserID != userID {
		return task.Sandbox{}, task.ErrNotFound
	}
	return s, nil
}

func (r *rows) List(_ context.Context, f task.SandboxFilter) ([]task.Sandbox, int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []task.Sandbox{}
	for _, s := range r.kept {
		if s.UserID == f.UserID {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b task.Sandbox) int { return cmp.Compare(a.Name, b.Name) })
	return out, int64(len(out)), nil
}

func (r *rows) Update(_ context.Context, id string, now time.Time, c task.SandboxChange) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.kept[id]
	if !ok {
		return task.ErrNotFound
	}
	set(&s.Status, c.Status)
	set(&s.Tier, c.Tier)
	set(&s.ErrorMessage, c.ErrorMessage)
	set(&s.ConfigHash, c.ConfigHash)
	s.StartedAt = cmp.Or(c.StartedAt, s.StartedAt)
	s.WorkspaceSyncedAt = cmp.Or(c.WorkspaceSyncedAt, s.WorkspaceSyncedAt)
	s.LastActiveAt = cmp.Or(c.LastActiveAt, s.LastActiveAt)
	s.UpdatedAt = now
	r.kept[id] = s
	return nil
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

func (*rows) Apply(context.Context, time.Time, task.SandboxEvent) (bool, error) {
	panic("the service applies no events")
}

func (r *rows) Delete(_ context.Context, userID, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept[id].UserID == userID {
		delete(r.kept, id)
	}
	return nil
}

// backend is a sandbox.Backend in memory. What a test does not set panics.
type backend struct {
	sandbox.Backend

	mu       sync.Mutex
	infos    map[string]sandbox.Info
	creates  []sandbox.CreateRequest
	wakes    []sandbox.WakeRequest
	sleeps   []sandbox.HibernateRequest
	deleted  []string
	fail     error                           // what every call says
	creating func(ctx context.Context) error // what a create waits for
	getting  func(ctx context.Context) error // what a look waits for
}

func (b *backend) Create(ctx context.Context, req sandbox.CreateRequest) (sandbox.CreateResponse, error) {
	b.mu.Lock()
	b.creates = append(b.creates, req)
	wait := b.creating
	b.mu.Unlock()
	if wait != nil {
		if err := wait(ctx); err != nil {
			return sandbox.CreateResponse{}, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return sandbox.CreateResponse{}, b.fail
	}
	b.infos[req.ID] = sandbox.Info{SandboxID: req.ID, UserID: req.UserID, Status: sandbox.StatusRunning, Tier: sandbox.TierRunning}
	return sandbox.CreateResponse{Success: true, SandboxID: req.ID}, nil
}

func (b *backend) Get(ctx context.Context, id string) (sandbox.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.getting != nil {
		if err := b.getting(ctx); err != nil {
			return sandbox.Info{}, err
		}
	}
	if b.fail != nil {
		return sandbox.Info{}, b.fail
	}
	info, ok := b.infos[id]
	if !ok {
		return info, sandbox.Errorf(sandbox.CodeSandboxNotFound, "no such sandbox")
	}
	return info, nil
}

func (b *backend) List(_ context.Context, o sandbox.ListOptions) (sandbox.ListResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out sandbox.ListResponse
	for _, info := range b.infos {
		if info.UserID == o.UserID {
			out.Sandboxes = append(out.Sandboxes, info)
		}
	}
	return out, b.fail
}

func (b *backend) Delete(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	delete(b.infos, id)
	b.deleted = append(b.deleted, id)
	return nil
}

func (b *backend) Wake(_ context.Context, id string, req sandbox.WakeRequest) (sandbox.WakeResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wakes = append(b.wakes, req)
	b.put(id, sandbox.StatusRunning, sandbox.TierRunning)
	return sandbox.WakeResponse{Success: true}, b.fail
}

func (b *backend) Hibernate(_ context.Context, id string, req sandbox.HibernateRequest) (sandbox.HibernateResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sleeps = append(b.sleeps, req)
	b.put(id, sandbox.StatusSleeping, req.Tier)
	return sandbox.HibernateResponse{Success: true, Status: sandbox.StatusSleeping, Tier: req.Tier}, b.fail
}

// put changes what the backend says of a sandbox. The caller holds mu.
func (b *backend) put(id string, status sandbox.Status, tier sandbox.Tier) {
	info := b.infos[id]
	info.Status, info.Tier = status, tier
	b.infos[id] = info
}

func (b *backend) Sync(context.Context, string) (sandbox.SyncResponse, error) {
	return sandbox.SyncResponse{Success: true, SyncedFiles: 3}, b.fail
}

func (b *backend) Logs(context.Context, string, int) (sandbox.LogsResponse, error) {
	return sandbox.LogsResponse{Logs: "a\x1b[31mb\n"}, b.fail
}

func (b *backend) Exec(_ context.Context, _ string, req sandbox.ExecRequest) (sandbox.ExecResponse, error) {
	return sandbox.ExecResponse{Stdout: req.Command[0]}, b.fail
}

// set lets a test change the backend.
func (b *backend) set(change func(b *backend)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

// backends are the two providers.
type backends map[string]sandbox.Backend

func (b backends) Backend(name string) (sandbox.Backend, error) {
	if found, ok := b[name]; ok {
		return found, nil
	}
	return nil, sandbox.Errorf(sandbox.CodeProviderMissing, "%s is not configured", name)
}

func (b backends) Select(_ context.Context, asked string, use provider.UseCase) (string, sandbox.Backend, error) {
	if use != provider.Development {
		panic("a sandbox is for somebody who works in it")
	}
	name := cmp.Or(asked, provider.Docker)
	found, err := b.Backend(name)
	return name, found, err
}

// world is a service with what it stands on.
type world struct {
	*sandboxes.Service
	rows    *rows
	gateway *backend
	config  string // the user's, and its own hash
}

func newWorld(t *testing.T, settings sandboxes.Settings) *world {
	t.Helper()
	w := &world{rows: &rows{kept: map[string]task.Sandbox{}}, gateway: &backend{infos: map[string]sandbox.Info{}}, config: `{"v":1}`}
	w.Service = sandboxes.New(settings, sandboxes.Deps{
		Sandboxes: w.rows, Backends: backends{provider.Docker: w.gateway},
		Config: func(_ context.Context, userID string) (json.RawMessage, string, error) {
			if w.config == "" {
				return nil, "", nil
			}
			return json.RawMessage(w.config), userID + w.config, nil
		},
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

// create makes a sandbox of u1 and waits until it is made.
func (w *world) create(t *testing.T, n sandboxes.NewSandbox) task.Sandbox {
	t.Helper()
	if n.Name == "" {
		n.Name = "A sandbox"
	}
	row, err := w.Create(t.Context(), "u1", n)
	if err != nil {
		t.Fatal(err)
	}
	return w.await(t, row.ID)
}

// await returns a sandbox's record when it is starting no more.
func (w *world) await(t *testing.T, id string) task.Sandbox {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		row, err := w.rows.Find(t.Context(), id)
		if err != nil || row.Status != task.SandboxStarting {
			return row
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the sandbox is still starting")
		}
	}
}

// want fails the test unless an error has a code; "" stands for no error.
func want(t *testing.T, err error, code sandbox.Code) {
	t.Helper()
	if code == "" && err != nil || code != "" && !sandbox.HasCode(err, code) {
		t.Errorf("%v, want %q", err, code)
	}
}
