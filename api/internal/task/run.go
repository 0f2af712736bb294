package task

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// job is a task that this process runs.
type job struct {
	task    Task
	backend sandbox.Backend
	gitURL  string // with the credentials that are kept nowhere
	journal *journal
	text    *transcript
	asleep  bool                      // the sandbox was not yet brought up by this job
	works   atomic.Bool               // its agent does
	renewed atomic.Pointer[time.Time] // when the lease was, for the last time
	done    chan struct{}
	result  *Result // set before done is closed, if this process ended the task
	cancel  context.CancelCauseFunc
}

func (j *job) lease() Lease { return Lease{TaskID: j.task.ID, Owner: j.task.LeaseOwner} }

func (j *job) sandboxID() string {
	if j.task.SandboxID == nil {
		return ""
	}
	return *j.task.SandboxID
}

const (
	// renewals is how often a lease is renewed in its time.
	renewals = 4
	// maxAttempts is how many processes may take up a task: one that brings down
	// each must end.
	maxAttempts = 5
	// endTime bounds how long the end of a task is offered to a database that is
	// away. After it the lease is over, and the task is taken up again.
	endTime = 2 * time.Minute
)

// run runs a job to its end, or until ctx ends.
func (s *Service) run(ctx context.Context, j *job) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	lost := func() { stop(ErrLeaseLost) }
	j.asleep = true
	began := time.Now()
	j.renewed.Store(&began)
	j.journal = newJournal(s.Tasks, j.lease(), j.task.EventSeq, func() { s.bells.ring(j.task.ID) }, lost, s.Log)
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	renewed, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(renewed)
		s.renew(background, j.lease(), &j.renewed, lost)
	}()
	writing, stopWriting := context.WithCancel(background)
	go func() {
		defer close(written)
		j.journal.run(writing)
	}()
	err := s.work(ctx, j)
	stopWriting()
	<-written
	s.conclude(ctx, j, err)
	end()
	<-renewed
	switch {
	case j.result != nil:
	case errors.Is(context.Cause(ctx), errClosing):
		s.giveUp(ctx, j)
	default:
		s.clear(ctx, j)
	}
}

// renew keeps a lease until ctx ends.
func (s *Service) renew(ctx context.Context, lease Lease, renewed *atomic.Pointer[time.Time], lost func()) {
	tick := time.NewTicker(s.settings.Lease / renewals)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		call, cancel := context.WithTimeout(ctx, s.settings.Lease/renewals)
		now := time.Now()
		err := s.Tasks.Renew(call, lease, now.Add(s.settings.Lease))
		cancel()
		switch {
		case errors.Is(err, ErrLeaseLost):
			lost()
			return
		case err == nil:
			renewed.Store(&now)
		case ctx.Err() == nil:
			s.Log.WarnContext(ctx, "a task's lease cannot be renewed; it is tried again", "taskId", lease.TaskID, "error", err)
		}
	}
}

// giveUp lets another process have the task at once.
func (s *Service) giveUp(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if last, err := j.journal.last(ctx); err == nil && len(last) > 0 {
		_, _ = s.Tasks.Append(ctx, j.lease(), time.Now(), last...)
	}
	if err := s.Tasks.Renew(ctx, j.lease(), time.Now().Add(-time.Second)); err != nil && !errors.Is(err, ErrLeaseLost) {
		s.Log.WarnContext(ctx, "a task could not be given up; it is taken up when its lease is over", "taskId", j.task.ID, "error", err)
	}
}

// work does what is left to do of a task, and returns its failure. It is asked
// again while a backend or the database is away, for a while.
func (s *Service) work(ctx context.Context, j *job) error {
	if j.backend == nil {
		return sandbox.Errorf(sandbox.CodeProviderMissing, "the task's provider, %s, is not configured any more", j.task.Provider)
	}
	if j.task.Attempts > maxAttempts {
		return sandbox.Errorf(sandbox.CodeInternal, "the task was taken up %d times and brought to no end", j.task.Attempts)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, s.settings.Timeout+s.settings.Raising)
	defer cancel()
	err := provider.Patiently(ctx, s.settings.Patience,
		func() error { return deleted(s.attempt(ctx, j)) },
		func() { j.journal.status("the sandbox cannot be reached; trying again") })
	if err != nil && ctx.Err() != nil {
		return s.outOfTime(ctx, j)
	}
	return err
}

// deleted says it if a sandbox is not there: a task is only sent to one that was.
func deleted(err error) error {
	if sandbox.HasCode(err, sandbox.CodeSandboxNotFound) || sandbox.HasCode(err, sandbox.CodeSandboxDeleted) {
		return sandbox.Errorf(sandbox.CodeSandboxDeleted, "the task's sandbox was deleted").WithCause(err)
	}
	return err
}

// outOfTime words the end of a job's context, and stops the agent if it was the
// task's own time that ran out.
func (s *Service) outOfTime(ctx context.Context, j *job) error {
	if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	if j.task.SessionID != "" {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
		defer cancel()
		if err := abort(call, j.backend, j.sandboxID(), j.task.SessionID); err != nil {
			s.Log.WarnContext(ctx, "a task's agent could not be stopped", "taskId", j.task.ID, "error", err)
		}
	}
	return sandbox.Errorf(sandbox.CodeTurnDeadline, "the task did not end within %s", s.settings.Timeout+s.settings.Raising)
}

func abort(ctx context.Context, backend sandbox.Backend, sandboxID, sessionID string) error {
	oc, err := client(backend, sandboxID)
	if err != nil {
		return err
	}
	return oc.Abort(ctx, sessionID)
}

// client makes a client of a sandbox's OpenCode. The backend has the password.
func client(backend sandbox.Backend, sandboxID string) (*opencode.Client, error) {
	transport, base, err := backend.OpenCode(sandboxID)
	if err != nil {
		return nil, err
	}
	return opencode.New(transport, base, ""), nil
}

// attempt goes on from where the task is: it has a sandbox, a session, or an
// agent at work, and each is known before the next is begun.
func (s *Service) attempt(ctx context.Context, j *job) error {
	if err := s.begin(ctx, j); err != nil {
		return err
	}
	if j.sandboxID() == "" {
		return sandbox.Errorf(sandbox.CodeSandboxDeleted, "the task's sandbox was deleted")
	}
	oc, err := client(j.backend, j.sandboxID())
	if err != nil {
		return err
	}
	if j.task.SessionID != "" {
		done, err := s.resume(ctx, j, oc)
		if done || err != nil {
			return err
		}
	} else if err := s.openSession(ctx, j, oc); err != nil {
		return err
	}
	return s.prompt(ctx, j, oc)
}

// begin marks a new task running, and finds out what readers have of one that
// was begun before.
func (s *Service) begin(ctx context.Context, j *job) error {
	if j.text != nil {
		return nil
	}
	if j.task.Status == Pending {
		if err := s.Tasks.Start(ctx, j.lease()); err != nil {
			return storeAway(err)
		}
		j.task.Status = Running
	}
	var before strings.Builder
	for after := int64(0); after < j.task.EventSeq; {
		events, err := s.Tasks.Events(ctx, j.task.ID, after, perRead)
		if err != nil {
			return storeAway(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			var chunk entry
			if e.Type == EventChunk && json.Unmarshal([]byte(e.Data), &chunk) == nil {
				before.WriteString(chunk.Content)
			}
			after = e.Seq
		}
	}
	j.text = newTranscript(before.String())
	if j.task.EventSeq == 0 {
		j.journal.note(entry{Type: EventStart, TaskID: j.task.ID})
	} else {
		j.journal.status("the task is taken up again")
	}
	return nil
}

// storeAway makes an error that is tried again of one of the database's.
func storeAway(err error) error {
	if errors.Is(err, ErrLeaseLost) {
		return err
	}
	return sandbox.Errorf(sandbox.CodeStoreAway, "the API's database does not answer").WithCause(err)
}

// conclude ends the task in the database, unless it is somebody else's by now.
func (s *Service) conclude(ctx context.Context, j *job, failure error) {
	// Cancelled, taken up by somebody else, or shutting down: all that there is
	// belongs to whoever has the task then.
	if ctx.Err() != nil || errors.Is(failure, ErrLeaseLost) {
		j.result = nil
		return
	}
	if j.result == nil {
		j.result = &Result{TaskID: j.task.ID, SandboxID: j.sandboxID(), SessionID: j.task.SessionID}
	}
	if j.result.Parts == nil {
		j.result.Parts = []json.RawMessage{}
	}
	if failure != nil {
		j.result.Err = s.discreet(ctx, j, explain(failure))
		s.Log.InfoContext(ctx, "a task failed", "taskId", j.task.ID, "sandboxId", j.sandboxID(), "error", j.result.Err)
		if j.task.NewSandbox && j.task.SessionID == "" && j.sandboxID() != "" && j.backend != nil {
			s.discard(ctx, j.backend, j.task)
			j.result.SandboxID = ""
		}
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	for {
		err := s.finish(ctx, j)
		switch {
		case err == nil:
			ended := Completed
			if j.result.Err != nil {
				ended = Failed
			}
			s.figures.ended[string(ended)].Inc()
			s.Log.InfoContext(ctx, "a task ended", "taskId", j.task.ID, "sandboxId", j.result.SandboxID, "status", ended, "duration", time.Since(j.task.CreatedAt))
			s.bells.ring(j.task.ID)
			return
		case errors.Is(err, ErrLeaseLost): // or it is ended already
			j.result = nil
			return
		}
		s.Log.WarnContext(ctx, "the end of a task cannot be kept; it is tried again", "taskId", j.task.ID, "error", err)
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			j.result = nil
			return
		}
	}
}

// explain makes the contract's error of any error.
func explain(err error) *sandbox.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sandbox.Error](provider.Told(err)); ok {
		return e
	}
	return sandbox.Errorf(sandbox.CodeInternal, "something went wrong in the API; its log has the cause under the task's id").WithCause(err)
}

// discreet takes the user's keys out of an error: a provider may have repeated them,
// and the database keeps it.
func (s *Service) discreet(ctx context.Context, j *job, e *sandbox.Error) *sandbox.Error {
	if s.Config == nil || e.Code == sandbox.CodeStoreAway { // which are the API's own words
		return e
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	config, _, err := s.Config(ctx, j.task.UserID)
	if err != nil {
		s.Log.WarnContext(ctx, "a task's error is kept without its words: nobody can say which keys they must not repeat", "taskId", j.task.ID, "error", err)
		return &sandbox.Error{Code: e.Code, Message: "the task failed; its session has the reason"}
	}
	return e.Redacted(redact.Secrets(config)...)
}

// finish ends the task, with its last events.
func (s *Service) finish(ctx context.Context, j *job) error {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if j.text != nil {
		j.journal.note(entry{Type: EventChunk, Content: j.text.end()})
	}
	last, err := j.journal.last(call)
	if err != nil {
		return err
	}
	r := j.result
	d := details{CreatedNewSandbox: j.task.NewSandbox, MessageID: r.MessageID}
	o := Outcome{Status: Completed, Response: storable(r.Response), At: time.Now()}
	final := entry{Type: EventDone, TaskID: r.TaskID, SandboxID: r.SandboxID, SessionID: r.SessionID, MessageID: r.MessageID, CreatedNewSandbox: &d.CreatedNewSandbox}
	if r.Err != nil {
		o.Status, o.Error, d.Code = Failed, storable(r.Err.Message), r.Err.Code
		final = entry{Type: EventError, Message: r.Err.Message, Code: string(r.Err.Code)}
	}
	metadata := d.text()
	if err := s.Tasks.Note(call, j.lease(), Progress{Metadata: &metadata}); err != nil {
		return err
	}
	return s.Tasks.Finish(call, j.lease(), o, append(last, final.event())...)
}

// maxStored bounds what a row has of an answer, in bytes: lists have many. The
// session has all of it.
const maxStored = 256 << 10

// clean is a text without NUL, which not every database keeps.
func clean(text string) string { return strings.ReplaceAll(text, "\x00", "\ufffd") }

// storable is a text as a row has it: clean, and not too long.
func storable(text string) string {
	if len(text) > maxStored {
		cut := maxStored
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "\n… (the session has the rest)"
	}
	return clean(text)
}
