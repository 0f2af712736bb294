package task

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Backends chooses where sandboxes are made and finds where they are.
type Backends interface {
	// Select chooses a provider; asked is the one that the caller named, or "".
	Select(ctx context.Context, asked string, use provider.UseCase) (name string, backend sandbox.Backend, err error)
	// Backend returns the provider of a sandbox that exists.
	Backend(name string) (sandbox.Backend, error)
}

// Settings of a Service; zero fields mean the defaults.
type Settings struct {
	// Timeout bounds an agent's turn: 10 min. Raising is what a task has beyond it,
	// to make or wake its sandbox: 5 min.
	Timeout, Raising time.Duration
	// Concurrency is how many tasks run at once: 256. Four times as many wait.
	Concurrency int
	// TeamSize is how many agents a team may have: 10.
	TeamSize int
	// Lease is how long nobody else takes up a task after its process is gone: 20 s.
	Lease time.Duration
	// Patience is how long a backend may be away in the middle of a task: provider.Patience.
	Patience time.Duration
}

func (s Settings) orDefault() Settings {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&s.Timeout, 10 * time.Minute}, {&s.Raising, 5 * time.Minute}, {&s.Lease, 20 * time.Second}, {&s.Patience, provider.Patience}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if s.Concurrency <= 0 {
		s.Concurrency = 256
	}
	if s.TeamSize <= 0 {
		s.TeamSize = 10
	}
	return s
}

// Deps are what a Service calls.
type Deps struct {
	Tasks     Tasks
	Teams     Teams
	Sandboxes Sandboxes
	Backends  Backends
	// Raise brings a sandbox up: it makes one that was never started, cloning
	// gitURL if that is not empty, and wakes another.
	Raise func(ctx context.Context, row Sandbox, gitURL string) (Sandbox, sandbox.Backend, error)
	// Config is what a user's sandboxes are given, which a task's error may not
	// repeat the secrets of; nil for nothing.
	Config func(ctx context.Context, userID string) (config json.RawMessage, hash string, err error)
	Log    *slog.Logger
}

// Service runs tasks and teams. A task goes on whoever asked for it left; one
// whose process is gone is taken up by another. It is safe for concurrent use.
type Service struct {
	Deps
	settings Settings
	slots    chan struct{}
	bells    bells
	life     context.Context //nolint:containedctx // the life of the service, not of a call
	end      context.CancelCauseFunc
	running  sync.WaitGroup
	figures  figures

	mu     sync.Mutex
	closed bool
	jobs   map[string]*job
}

// New makes a service. It runs nothing by itself before Recover.
func New(settings Settings, deps Deps) *Service {
	s := &Service{Deps: deps, settings: settings.orDefault(), jobs: map[string]*job{}}
	s.figures = newFigures(s)
	s.slots = make(chan struct{}, s.settings.Concurrency)
	s.life, s.end = context.WithCancelCause(context.Background())
	return s
}

// errClosing is why a job ends when its process does.
var errClosing = errors.New("the API is shutting down")

// Close lets what runs go on until ctx ends, and then leaves it to another
// process, or the next one.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		s.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	s.end(errClosing)
	<-idle // every step of a job ends with it, and giving up a lease has a deadline
	return nil
}

// Request is one message for an agent.
type Request struct {
	UserID  string
	Message string
	// SandboxID is the sandbox to work in; empty means a new one, into which
	// GitURL is cloned if there is one.
	SandboxID string
	GitURL    string
	GitBranch string
	Model     *sandbox.Model
	// Provider is where a new sandbox is made; empty lets the API choose.
	Provider string
}

// The bounds of a request, in bytes.
const (
	maxMessage = 256 << 10
	maxName    = 200
	nameOf     = 60 // of a message, as the name of a sandbox
)

// check returns the repository that is to be cloned, if there is one.
func (r Request) check() (repo sandbox.Repository, err error) {
	if r.GitURL != "" || r.GitBranch != "" {
		if repo, err = sandbox.ParseRepository(r.GitURL, r.GitBranch, sandbox.DefaultGitProtocols()); err != nil {
			return repo, err
		}
	}
	if strings.TrimSpace(r.Message) == "" {
		return repo, sandbox.Errorf(sandbox.CodeInvalidRequest, "message is missing")
	}
	if len(r.Message) > maxMessage {
		return repo, sandbox.Errorf(sandbox.CodeTooLarge, "the message is larger than %d bytes; put long texts into a file of the workspace", maxMessage)
	}
	texts := map[string]string{"message": r.Message, "sandboxId": r.SandboxID, "provider": r.Provider}
	if r.Model != nil {
		texts["model"] = r.Model.ProviderID + r.Model.ModelID
	}
	for name, text := range texts {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return repo, sandbox.Errorf(sandbox.CodeInvalidRequest, "%s is not text", name)
		}
	}
	if m := r.Model; m != nil && (m.ProviderID == "" || m.ModelID == "" || len(m.ProviderID) > maxName || len(m.ModelID) > maxName) {
		return repo, sandbox.Errorf(sandbox.CodeInvalidRequest, `model must name a provider and a model: {"providerID":"…","modelID":"…"} or "provider/model"`)
	}
	return repo, nil
}

// Result is how a task ended.
type Result struct {
	TaskID    string
	SandboxID string
	SessionID string
	MessageID string
	Response  string
	// Parts are those of the agent's last message, as OpenCode has them; of a task
	// that another process ended, its text. Never nil.
	Parts []json.RawMessage
	// Err says why the task failed, nil if it did not.
	Err *sandbox.Error
}

// Launch begins a task and returns it; await its end with Wait. Errors:
// invalid_request, invalid_git_url, payload_too_large, sandbox_not_found,
// provider_not_configured, too_many_requests, shutting_down.
func (s *Service) Launch(ctx context.Context, req Request) (Task, error) {
	j, box, err := s.prepare(ctx, req, provider.QuickTask, PrefixTask)
	if err != nil {
		return Task{}, err
	}
	if err := s.admit(j); err != nil {
		return Task{}, err
	}
	if err := s.Tasks.Create(ctx, j.task, box); err != nil {
		s.forget(j)
		return Task{}, err
	}
	t := j.task // the job changes its own
	s.start(ctx, j)
	return t, nil
}

// prepare makes a job of a request, with the row of its sandbox if that is new.
func (s *Service) prepare(ctx context.Context, req Request, use provider.UseCase, prefix string) (*job, *Sandbox, error) {
	repo, err := req.check()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	t := Task{
		ID: NewID("tsk-"), UserID: req.UserID, Status: Pending, Message: req.Message, GitURL: repo.URL, GitBranch: repo.Ref(),
		LeaseOwner: NewID("api-"), LeaseUntil: now.Add(s.settings.Lease), CreatedAt: now,
	}
	if req.Model != nil {
		t.ModelProvider, t.ModelID = req.Model.ProviderID, req.Model.ModelID
	}
	j := &job{task: t, gitURL: req.GitURL, done: make(chan struct{})}
	if req.SandboxID != "" {
		box, err := s.Sandboxes.Get(ctx, req.UserID, req.SandboxID)
		if errors.Is(err, ErrNotFound) {
			return nil, nil, notFound(req.SandboxID)
		}
		if err != nil {
			return nil, nil, err
		}
		if req.Provider != "" && req.Provider != box.Provider {
			return nil, nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the sandbox is at %s; leave provider out", box.Provider)
		}
		j.backend, err = s.Backends.Backend(box.Provider)
		j.task.SandboxID, j.task.Provider = &box.ID, box.Provider
		return j, nil, err
	}
	name, backend, err := s.Backends.Select(ctx, req.Provider, use)
	if err != nil {
		return nil, nil, err
	}
	id := NewID(prefix)
	j.backend, j.task.Provider, j.task.SandboxID, j.task.NewSandbox = backend, name, &id, true
	return j, &Sandbox{
		ID: id, UserID: req.UserID, Provider: name, Name: printable.Line(req.Message, nameOf), Slug: id, GithubURL: repo.URL, GitBranch: repo.Ref(), RepoName: repo.Name(),
		Status: SandboxStarting, CreatedAt: now, UpdatedAt: now,
	}, nil
}

func notFound(sandboxID string) error {
	return sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no sandbox %q", printable.Line(sandboxID, sandbox.MaxIDLength))
}

// admit makes room for jobs in this process, or for none of them.
func (s *Service) admit(jobs ...*job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return sandbox.Errorf(sandbox.CodeShuttingDown, "the API is shutting down; try again")
	}
	if len(s.jobs)+len(jobs) > 5*s.settings.Concurrency {
		return sandbox.Errorf(sandbox.CodeTooManyRequests, "too many tasks wait; try again later")
	}
	own := len(jobs)
	for _, j := range s.jobs {
		if len(jobs) > 0 && j.task.UserID == jobs[0].task.UserID {
			own++
		}
	}
	if own > s.settings.Concurrency { // the rest is for others
		return sandbox.Errorf(sandbox.CodeTooManyRequests, "%d of your tasks run or wait; try again when some have ended", own-len(jobs))
	}
	for _, j := range jobs {
		s.jobs[j.task.ID] = j
	}
	s.running.Add(len(jobs))
	return nil
}

// forget ends what admit began.
func (s *Service) forget(j *job) {
	s.mu.Lock()
	if s.jobs[j.task.ID] == j { // it may be taken up anew
		delete(s.jobs, j.task.ID)
	}
	s.mu.Unlock()
	s.running.Done()
}

// start runs a job that was admitted. It outlives what asked for it.
func (s *Service) start(asked context.Context, j *job) {
	ctx, cancel := context.WithCancelCause(timeline.Branch(s.life, asked,
		"userId", j.task.UserID, "provider", j.task.Provider, "taskId", j.task.ID, "sandboxId", j.sandboxID(), "sessionId", j.task.SessionID))
	timeline.Note(asked, "taskId", j.task.ID)
	s.mu.Lock()
	j.cancel = cancel
	s.mu.Unlock()
	go func() {
		defer s.forget(j)
		defer close(j.done)
		defer cancel(nil)
		s.run(ctx, j)
	}()
}

// find returns a task's job, if it runs in this process.
func (s *Service) find(taskID string) (*job, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.jobs[taskID]
	return j, ok && j.cancel != nil
}

// Active is how many tasks run or wait in this process.
func (s *Service) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs)
}

// lookEvery is how often a reader looks for what another process wrote.
const lookEvery = time.Second

// Wait returns how a user's task ended, when it has. Errors: task_not_found; and
// ctx's cause.
func (s *Service) Wait(ctx context.Context, userID, id string) (Result, error) {
	if j, ok := s.find(id); ok && j.task.UserID == userID {
		select {
		case <-j.done:
			if j.result != nil {
				return *j.result, nil
			}
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
	heard, leave := s.bells.listen(id)
	defer leave()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		t, err := s.Get(ctx, userID, id)
		switch {
		case err == nil && t.Status.Final():
			return resultOf(t), nil
		case err != nil && sandbox.HasCode(err, sandbox.CodeTaskNotFound):
			return Result{}, err
		}
		select {
		case <-heard:
		case <-tick.C:
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
}

// details are a task's metadata.
type details struct {
	CreatedNewSandbox bool         `json:"createdNewSandbox"`
	MessageID         string       `json:"messageId,omitempty"`
	Code              sandbox.Code `json:"code,omitempty"` // of the error
}

func (d details) text() string {
	raw, err := json.Marshal(d)
	if err != nil {
		panic(err) // texts and a bool always can be
	}
	return string(raw)
}

// resultOf reads a result from the row of a task that has ended.
func resultOf(t Task) Result {
	var d details
	_ = json.Unmarshal([]byte(t.Metadata), &d) // we wrote it
	r := Result{TaskID: t.ID, SessionID: t.SessionID, MessageID: d.MessageID, Response: t.Response, Parts: []json.RawMessage{}}
	if t.SandboxID != nil {
		r.SandboxID = *t.SandboxID
	}
	if t.Response != "" {
		if raw, err := json.Marshal(map[string]string{"type": "text", "text": t.Response}); err == nil {
			r.Parts = append(r.Parts, raw)
		}
	}
	switch t.Status {
	case Failed:
		code := d.Code
		if code == "" {
			code = sandbox.CodeInternal
		}
		r.Err = sandbox.Errorf(code, "%s", t.Error)
	case Cancelled:
		r.Err = sandbox.Errorf(sandbox.CodeTaskCancelled, "the task was cancelled")
	default:
	}
	return r
}

// Get returns a user's task. Errors: task_not_found.
func (s *Service) Get(ctx context.Context, userID, id string) (Task, error) {
	t, err := s.Tasks.Get(ctx, userID, id)
	if errors.Is(err, ErrNotFound) {
		err = noTask(id)
	}
	return t, err
}

func noTask(id string) error {
	return sandbox.Errorf(sandbox.CodeTaskNotFound, "there is no task %q", printable.Line(id, maxName))
}

// List returns a user's tasks, the newest first.
func (s *Service) List(ctx context.Context, userID string, page Page) ([]Task, error) {
	return s.Tasks.List(ctx, userID, page)
}

// Cancel ends a user's task, wherever it runs, and stops its agent. Errors:
// task_not_found, task_ended.
func (s *Service) Cancel(ctx context.Context, userID, id string) error {
	e := entry{Type: EventError, Message: "the task was cancelled", Code: string(sandbox.CodeTaskCancelled)}
	err := s.Tasks.Cancel(ctx, userID, id, time.Now(), e.event())
	switch {
	case errors.Is(err, ErrNotFound):
		return noTask(id)
	case errors.Is(err, ErrFinal):
		return sandbox.Errorf(sandbox.CodeTaskEnded, "the task has ended already")
	case err != nil:
		return err
	}
	s.figures.ended[string(Cancelled)].Inc()
	s.bells.ring(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil && j.cancel != nil {
		j.cancel(ErrLeaseLost) // and clears up
		return nil
	}
	if !s.closed { // another process does that, unless it is gone
		s.running.Go(func() { s.clearAfter(userID, id) }) //nolint:contextcheck // as a task does
	}
	return nil
}

// clearTime bounds the clearing up behind a task.
const clearTime = 30 * time.Second

// clearAfter clears up behind a cancelled task of another process when that must
// have noticed.
func (s *Service) clearAfter(userID, id string) {
	select {
	case <-time.After(s.settings.Lease):
	case <-s.life.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), clearTime)
	defer cancel()
	t, err := s.Tasks.Get(ctx, userID, id)
	if err != nil {
		s.Log.Warn("a cancelled task could not be cleared up", "taskId", id, "error", err)
		return
	}
	j := &job{task: t}
	if j.backend, err = s.Backends.Backend(t.Provider); err == nil {
		s.clear(ctx, j)
	}
}

// clear stops what a task began, if it was cancelled: a job of another process is
// left alone.
func (s *Service) clear(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
	defer cancel()
	t, err := s.Tasks.Get(ctx, j.task.UserID, j.task.ID)
	if err != nil || t.Status != Cancelled || t.SandboxID == nil || j.backend == nil {
		return
	}
	if session := cmp.Or(j.task.SessionID, t.SessionID); session != "" {
		if err := abort(ctx, j.backend, *t.SandboxID, session); err != nil {
			s.Log.WarnContext(ctx, "a cancelled task's agent could not be stopped", "taskId", t.ID, "sandboxId", *t.SandboxID, "error", err)
		}
		return
	}
	if t.NewSandbox {
		s.discard(ctx, j.backend, t)
	}
}

// discard deletes a sandbox that was made for a task which never came to use it.
func (s *Service) discard(ctx context.Context, backend sandbox.Backend, t Task) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
	err := backend.Delete(call, *t.SandboxID)
	cancel()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	id := *t.SandboxID
	if err != nil {
		s.Log.WarnContext(ctx, "the sandbox of a failed task could not be deleted", "taskId", t.ID, "sandboxId", id, "error", err)
		status, message := SandboxError, "it was made for a task that failed; delete it"
		_ = s.Sandboxes.Update(ctx, id, time.Now(), SandboxChange{Status: &status, ErrorMessage: &message})
		return
	}
	if err := s.Sandboxes.Delete(ctx, t.UserID, id); err != nil {
		s.Log.WarnContext(ctx, "the record of a deleted sandbox could not be deleted", "sandboxId", id, "error", err)
	}
}

// Follow calls give for each event of a user's task after a number, in their
// order and each once, until the task has ended, and quiet when nothing happened
// for every. It returns nil at the end of the task, the error of give or quiet,
// or ctx's cause. Errors: task_not_found.
func (s *Service) Follow(ctx context.Context, userID, id string, after int64, every time.Duration, give func(Event) error, quiet func() error) error {
	if _, err := s.Get(ctx, userID, id); err != nil {
		return err
	}
	heard, leave := s.bells.listen(id)
	defer leave()
	look, still := time.NewTicker(lookEvery), time.NewTicker(every)
	defer look.Stop()
	defer still.Stop()
	for {
		t, err := s.Get(ctx, userID, id)
		final := err == nil && t.Status.Final() // read before the events: none come after
		if err == nil && after < t.EventSeq {
			if after, err = s.give(ctx, id, after, give); err != nil {
				return err
			}
			still.Reset(every)
		}
		if final && after >= t.EventSeq {
			return nil
		}
		select {
		case <-heard:
		case <-look.C:
		case <-still.C:
			if err := quiet(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// perRead is how many events are read at once.
const perRead = 500

// give gives the events after a number, and returns that of the last one. A
// database that is away is asked again later.
func (s *Service) give(ctx context.Context, id string, after int64, give func(Event) error) (int64, error) {
	for {
		events, err := s.Tasks.Events(ctx, id, after, perRead)
		if err != nil {
			s.Log.WarnContext(ctx, "a task's events cannot be read; it is tried again", "taskId", id, "error", err)
			return after, nil // the reader waits, as for an event
		}
		for _, e := range events {
			if err := give(e); err != nil {
				return after, err
			}
			after = e.Seq
		}
		if len(events) < perRead {
			return after, nil
		}
	}
}
