package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The tests of task.Service on a real database are here: its own package may not
// know the store.

// place is a provider whose agents answer at once, or wait.
type place struct {
	sandbox.Backend

	answer  string
	making  chan struct{} // if not nil, each create waits for it
	working chan struct{} // if not nil, each message does

	mu      sync.Mutex
	created []sandbox.CreateRequest
	deleted []string
	aborted int
	asked   int
}

func (p *place) Health(context.Context) error { return nil }

func (p *place) Create(_ context.Context, r sandbox.CreateRequest) (sandbox.CreateResponse, error) {
	if p.making != nil {
		<-p.making
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.created = append(p.created, r)
	return sandbox.CreateResponse{Success: true, SandboxID: r.ID}, nil
}

func (p *place) Wake(context.Context, string, sandbox.WakeRequest) (sandbox.WakeResponse, error) {
	return sandbox.WakeResponse{Success: true}, nil
}

func (p *place) Delete(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deleted = append(p.deleted, id)
	return nil
}

func (p *place) Get(_ context.Context, id string) (sandbox.Info, error) {
	return sandbox.Info{SandboxID: id, Status: sandbox.StatusRunning}, nil
}

func (p *place) Message(ctx context.Context, _ string, r sandbox.MessageRequest) (sandbox.MessageResponse, error) {
	p.mu.Lock()
	p.asked++
	p.mu.Unlock()
	if p.working != nil {
		select {
		case <-p.working:
		case <-ctx.Done():
			return sandbox.MessageResponse{}, sandbox.Errorf(sandbox.CodeDeadline, "gave up").WithCause(ctx.Err())
		}
	}
	return sandbox.MessageResponse{SessionID: r.SessionID, Response: p.answer, Parts: []json.RawMessage{}}, nil
}

func (p *place) OpenCode(id string) (http.RoundTripper, string, error) {
	return p, "http://place.invalid/" + id, nil
}

// RoundTrip is OpenCode, as far as a task without a stream needs it.
func (p *place) RoundTrip(r *http.Request) (*http.Response, error) {
	body := `{}`
	switch {
	case strings.HasSuffix(r.URL.Path, "/abort"):
		p.mu.Lock()
		p.aborted++
		p.mu.Unlock()
		body = `true`
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/session"):
		body = `{"id":"ses_1"}`
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

func (p *place) Close(context.Context) error { return nil }

// count reads one of a place's figures.
func (p *place) count(n *int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *n
}

// engine is a service of tasks on a real database.
type engine struct {
	*task.Service
	store *store.Store
	boxes *sandboxes.Service
	user  string
}

// newEngine makes a service for one place. wrap changes what it sees of the
// database.
func newEngine(t *testing.T, s *store.Store, p *place, set task.Settings, wrap func(task.Tasks) task.Tasks) engine {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	now := time.Now()
	user := account.User{ID: task.NewID("u-"), Email: task.NewID("u") + "@example.com", Role: account.RoleUser, CreatedAt: now, UpdatedAt: now}
	_, err := s.Accounts().CreateUser(t.Context(), user, "")
	must(t, err)
	places, err := provider.New(provider.Settings{Default: provider.Cloudflare}, []provider.Provider{{Name: provider.Cloudflare, Backend: p}}, log)
	must(t, err)
	var tasks task.Tasks = s.Tasks()
	if wrap != nil {
		tasks = wrap(tasks)
	}
	boxes := sandboxes.New(sandboxes.Settings{}, sandboxes.Deps{Sandboxes: s.Sandboxes(), Backends: places, Log: log})
	e := engine{
		Service: task.New(set, task.Deps{Tasks: tasks, Teams: s.Teams(), Sandboxes: s.Sandboxes(), Backends: places, Raise: boxes.Raise, Log: log}),
		store:   s, boxes: boxes, user: user.ID,
	}
	ctx, stop := context.WithCancel(context.Background())
	recovered := make(chan struct{})
	go func() {
		defer close(recovered)
		e.Recover(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-recovered
		now, cancel := context.WithCancel(context.Background())
		cancel() // nothing is waited for
		must(t, e.Close(now))
		last, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, boxes.Close(last))
	})
	return e
}

func (e engine) launch(t *testing.T, req task.Request) task.Task {
	t.Helper()
	req.UserID = e.user
	if req.Message == "" {
		req.Message = "hello"
	}
	made, err := e.Launch(t.Context(), req)
	must(t, err)
	return made
}

func (e engine) wait(t *testing.T, id string) task.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := e.Wait(ctx, e.user, id)
	must(t, err)
	return r
}

// until waits for what happens in another goroutine.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it never came to be: %s", what)
		}
	}
}

// stolen is a database in which somebody else claims a task as soon as its session
// is to be noted.
type stolen struct {
	task.Tasks
	once *sync.Once
}

func (s stolen) Note(ctx context.Context, l task.Lease, p task.Progress) error {
	s.once.Do(func() { _, _ = s.Claim(ctx, "another", time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)) })
	return s.Tasks.Note(ctx, l, p)
}

// Append says nothing of it: the loss is noticed where the session is noted.
func (s stolen) Append(_ context.Context, l task.Lease, _ time.Time, events ...task.Event) ([]task.Event, error) {
	for i := range events {
		events[i].TaskID, events[i].Seq = l.TaskID, int64(i+1)
	}
	return events, nil
}

func TestWhoLosesATaskLeavesItsSandboxAlone(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi"}
	e := newEngine(t, sqlite(t), p, task.Settings{}, func(all task.Tasks) task.Tasks { return stolen{all, &sync.Once{}} })
	made := e.launch(t, task.Request{})
	until(t, "it was taken away", func() bool { return e.Active() == 0 })
	got, err := e.Get(t.Context(), e.user, made.ID)
	if err != nil || got.Status != task.Running || got.SandboxID == nil || len(p.deleted) > 0 {
		t.Errorf("the task is %+v, %v; deleted %v", got, err, p.deleted)
	}
}

// outage is a database that is away for who renews a lease, and not for who claims
// one: the order in which they find it back is chance.
type outage struct {
	task.Tasks
	down   *atomic.Bool
	failed *atomic.Int64
}

func (o outage) Renew(ctx context.Context, l task.Lease, until time.Time) error {
	if o.down.Load() {
		o.failed.Add(1)
		return io.ErrUnexpectedEOF
	}
	return o.Tasks.Renew(ctx, l, until)
}

func TestAnOutageLongerThanALeaseTakesNoTaskFromItsOwnProcess(t *testing.T) {
	t.Parallel()
	const lease = 600 * time.Millisecond
	p, down, failed := &place{answer: "hi", working: make(chan struct{})}, &atomic.Bool{}, &atomic.Int64{}
	e := newEngine(t, sqlite(t), p, task.Settings{Lease: lease}, func(all task.Tasks) task.Tasks { return outage{all, down, failed} })
	made := e.launch(t, task.Request{})
	until(t, "its agent works", func() bool { return p.count(&p.asked) == 1 })
	down.Store(true)
	until(t, "its lease is over", func() bool {
		got, err := e.Get(t.Context(), e.user, made.ID)
		return err == nil && got.LeaseUntil.Before(time.Now().Add(-lease)) && failed.Load() > 4
	})
	down.Store(false)
	until(t, "its lease holds again", func() bool {
		got, err := e.Get(t.Context(), e.user, made.ID)
		return err == nil && got.LeaseUntil.After(time.Now())
	})
	close(p.working)
	if r := e.wait(t, made.ID); r.Err != nil || r.Response != "hi" {
		t.Errorf("it ended with %+v", r)
	}
	if got, err := e.Get(t.Context(), e.user, made.ID); err != nil || got.Attempts != 1 || p.count(&p.asked) != 1 {
		t.Errorf("%d attempts, asked %d times, %v", got.Attempts, p.asked, err)
	}
}

func TestAnAnswerThatNoDatabaseKeepsAsItIsEndsTheTask(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*store.Store{"SQLite": sqlite(t), "Postgres": storetest.Open(t, server.URL(t))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &place{answer: "a\x00b" + strings.Repeat("é", 300<<10)}
			e := newEngine(t, s, p, task.Settings{}, nil)
			made := e.launch(t, task.Request{})
			if r := e.wait(t, made.ID); r.Err != nil || len(r.Response) <= 600<<10 || !strings.HasPrefix(r.Response, "a\ufffdbé") {
				t.Errorf("the caller got %d bytes and %v", len(r.Response), r.Err)
			}
			got, err := e.Get(t.Context(), e.user, made.ID)
			if err != nil || got.Status != task.Completed || !strings.HasPrefix(got.Response, "a\ufffdbé") || len(got.Response) > 300<<10 {
				t.Errorf("kept: %s, %d bytes, %v", got.Status, len(got.Response), err)
			}
		})
	}
}

func TestATaskMakesASandboxThatWasNeverStarted(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi"}
	e := newEngine(t, sqlite(t), p, task.Settings{}, nil)
	box, err := e.boxes.Create(t.Context(), e.user, sandboxes.NewSandbox{Name: "x", GithubURL: "https://example.com/o/r.git", GitBranch: "main", Later: true})
	must(t, err)
	made := e.launch(t, task.Request{SandboxID: box.ID})
	if r := e.wait(t, made.ID); r.Err != nil {
		t.Fatal(r.Err)
	}
	if len(p.created) != 1 || p.created[0].GitURL != "https://example.com/o/r.git" || p.created[0].GitBranch != "main" {
		t.Errorf("it was made with %+v", p.created)
	}
}

func TestASandboxThatIsDeletedWhileATaskMakesItIsGone(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi", making: make(chan struct{})}
	e := newEngine(t, sqlite(t), p, task.Settings{}, nil)
	box, err := e.boxes.Create(t.Context(), e.user, sandboxes.NewSandbox{Name: "x", Later: true})
	must(t, err)
	made := e.launch(t, task.Request{SandboxID: box.ID})
	until(t, "the task runs", func() bool {
		got, err := e.Get(t.Context(), e.user, made.ID)
		return err == nil && got.Status == task.Running
	})
	must(t, e.boxes.Delete(t.Context(), e.user, box.ID))
	close(p.making)
	if r := e.wait(t, made.ID); r.Err == nil {
		t.Error("the task was done in a sandbox that was deleted")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.created) > 0 && !slices.Contains(p.deleted[1:], box.ID) {
		t.Errorf("made %d times, deleted %v: it is left at its provider", len(p.created), p.deleted)
	}
}

func TestARepositoryIsCheckedAndKeptWithoutItsPassword(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi"}
	e := newEngine(t, sqlite(t), p, task.Settings{}, nil)
	for _, bad := range []string{"https://user:pa/ss@host/r.git", "https://host/r.git?access_token=secret", "file:///etc", "--upload-pack=x ://", "ext::sh"} {
		_, err := e.Launch(t.Context(), task.Request{UserID: e.user, Message: "m", GitURL: bad})
		if !sandbox.HasCode(err, sandbox.CodeInvalidGitURL) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := e.Launch(t.Context(), task.Request{UserID: e.user, Message: "m", GitURL: "https://host/r.git", GitBranch: "--x"}); !sandbox.HasCode(err, sandbox.CodeInvalidGitURL) {
		t.Errorf("a branch that is an option: %v", err)
	}
	made := e.launch(t, task.Request{GitURL: "https://user:secret@example.com/o/repo.git"})
	if r := e.wait(t, made.ID); r.Err != nil {
		t.Fatal(r.Err)
	}
	got, err := e.Get(t.Context(), e.user, made.ID)
	must(t, err)
	box, err := e.store.Sandboxes().Get(t.Context(), e.user, *got.SandboxID)
	must(t, err)
	if got.GitURL != "https://example.com/o/repo.git" || box.GithubURL != got.GitURL || box.RepoName != "repo" || p.created[0].GitURL != "https://user:secret@example.com/o/repo.git" {
		t.Errorf("kept %s and %s (%s), made with %s", got.GitURL, box.GithubURL, box.RepoName, p.created[0].GitURL)
	}
}

// The task was begun by an API whose settings named another provider.
func TestATaskOfAProviderThatIsNotConfiguredAnyMoreFails(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi"}
	s := sqlite(t)
	e := newEngine(t, s, p, task.Settings{Lease: 400 * time.Millisecond}, nil)
	now := time.Now().Add(-time.Minute)
	box := task.Sandbox{ID: "task-left", UserID: e.user, Provider: provider.Docker, Name: "x", Slug: "x", Status: task.SandboxStarting, CreatedAt: now, UpdatedAt: now}
	left := task.Task{
		ID: "tsk-left", UserID: e.user, SandboxID: &box.ID, Provider: provider.Docker, Status: task.Pending, Message: "m", NewSandbox: true,
		LeaseOwner: "gone", LeaseUntil: now, CreatedAt: now,
	}
	must(t, s.Tasks().Create(t.Context(), left, &box))
	if r := e.wait(t, left.ID); !sandbox.HasCode(r.Err, sandbox.CodeProviderMissing) {
		t.Errorf("it ended with %v", r.Err)
	}
}

func TestOneUsersTasksLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi", working: make(chan struct{})}
	s := sqlite(t)
	e := newEngine(t, s, p, task.Settings{Concurrency: 3}, nil)
	for range 3 {
		e.launch(t, task.Request{})
	}
	if _, err := e.Launch(t.Context(), task.Request{UserID: e.user, Message: "m"}); !sandbox.HasCode(err, sandbox.CodeTooManyRequests) {
		t.Errorf("one more: %v", err)
	}
	now := time.Now()
	_, err := s.Accounts().CreateUser(t.Context(), account.User{ID: "other", Email: "other@example.com", Role: account.RoleUser, CreatedAt: now, UpdatedAt: now}, "")
	must(t, err)
	if _, err := e.Launch(t.Context(), task.Request{UserID: "other", Message: "m"}); err != nil {
		t.Errorf("another user's: %v", err)
	}
	close(p.working)
}

func TestATaskThatIsCancelledElsewhereStopsItsAgent(t *testing.T) {
	t.Parallel()
	p := &place{answer: "hi", working: make(chan struct{})}
	s := sqlite(t)
	runs := newEngine(t, s, p, task.Settings{Lease: 400 * time.Millisecond}, nil)
	other := newEngine(t, s, &place{}, task.Settings{Lease: time.Hour}, nil)
	made := runs.launch(t, task.Request{})
	until(t, "its agent works", func() bool { return p.count(&p.asked) == 1 })
	must(t, other.Cancel(t.Context(), runs.user, made.ID))
	until(t, "its agent is stopped", func() bool { return p.count(&p.aborted) > 0 })
	if r := runs.wait(t, made.ID); !sandbox.HasCode(r.Err, sandbox.CodeTaskCancelled) {
		t.Errorf("it ended with %v", r.Err)
	}
}
