package task

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// openSession brings the sandbox up and begins a session in it.
func (s *Service) openSession(ctx context.Context, j *job, oc *opencode.Client) error {
	if j.asleep {
		if err := s.bringUp(ctx, j); err != nil {
			return err
		}
		j.asleep = false
	}
	session, err := oc.CreateSession(ctx, "Agent Task")
	if err != nil {
		return openCodeError("beginning a session", err)
	}
	if err := s.Tasks.Note(ctx, j.lease(), Progress{SessionID: &session.ID}); err != nil {
		return storeAway(err)
	}
	j.task.SessionID = session.ID
	timeline.Note(ctx, "sessionId", session.ID)
	return nil
}

// bringUp makes the sandbox, or wakes the one that there is.
func (s *Service) bringUp(ctx context.Context, j *job) error {
	row, err := s.Sandboxes.Get(ctx, j.task.UserID, j.sandboxID())
	switch {
	case errors.Is(err, ErrNotFound):
		return sandbox.Errorf(sandbox.CodeSandboxDeleted, "the task's sandbox was deleted")
	case err != nil:
		return storeAway(err)
	case row.StartedAt != nil && row.Provider == provider.Cloudflare && s.worksIn(row.ID, j):
		return nil // a wake would put back what the other task has changed
	case row.StartedAt != nil:
		j.journal.status("waking the sandbox")
		_, _, err = s.Raise(ctx, row, "")
		return err
	}
	if j.gitURL == "" {
		j.gitURL = row.GithubURL
	}
	// A worker cannot clone twice, and nobody knows how far a create came.
	once := j.gitURL != "" && j.task.Provider == provider.Cloudflare
	if once && j.task.Attempts > 1 {
		return sandbox.Errorf(sandbox.CodeBackendFailed, "the API was restarted while the repository was cloned; send the message again")
	}
	j.journal.status("making a sandbox")
	_, _, err = s.Raise(ctx, row, j.gitURL)
	if once && sandbox.CodeOf(err).Passing() {
		return sandbox.Errorf(sandbox.CodeBackendFailed, "%s did not answer while the repository was cloned; send the message again", j.task.Provider).WithCause(err)
	}
	return err
}

// worksIn tells whether another task's agent works in a sandbox.
func (s *Service) worksIn(sandboxID string, but *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if j != but && j.works.Load() && j.sandboxID() == sandboxID {
			return true
		}
	}
	return false
}

// note keeps what was learnt of a sandbox. That it cannot be kept is no reason to
// fail a task: the provider tells it too.
func (s *Service) note(ctx context.Context, sandboxID string, change SandboxChange) {
	if err := s.Sandboxes.Update(ctx, sandboxID, time.Now(), change); err != nil {
		s.Log.WarnContext(ctx, "what was learnt of a sandbox could not be kept", "sandboxId", sandboxID, "error", err)
	}
}

// openCodeError makes the contract's error of one of OpenCode's client, whose
// transport gives those of the backend.
func openCodeError(doing string, err error) error {
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	if e, ok := errors.AsType[*opencode.Error](err); ok {
		return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "%s: %s", doing, e.Error())
	}
	return sandbox.Errorf(sandbox.CodeBackendAway, "%s: the sandbox does not answer", doing).WithCause(err)
}

// prompt sends the message and awaits the answer.
func (s *Service) prompt(ctx context.Context, j *job, oc *opencode.Client) error {
	j.journal.status("the agent works")
	var watching *watch
	if j.task.Provider == provider.Docker { // the worker's stream carries no text
		watching = s.watch(ctx, j, oc)
	}
	req := sandbox.MessageRequest{Message: j.task.Message, SessionID: j.task.SessionID, TimeoutMs: s.settings.Timeout.Milliseconds()}
	if j.task.ModelID != "" {
		req.Model = &sandbox.Model{ProviderID: j.task.ModelProvider, ModelID: j.task.ModelID}
	}
	j.works.Store(true)
	defer j.works.Store(false)
	reply, err := j.backend.Message(ctx, j.sandboxID(), req)
	watching.stop(ctx, err == nil)
	if err != nil {
		return err
	}
	j.text.parts(reply.Parts)
	if j.text.empty() {
		j.text.set("response", reply.Response)
	}
	now := time.Now()
	change := SandboxChange{LastActiveAt: &now}
	if reply.Sync.SyncedFiles > 0 {
		change.WorkspaceSyncedAt = &now
	}
	s.note(ctx, j.sandboxID(), change)
	j.keep(reply.Response, reply.Parts)
	if reply.Error != "" {
		return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "%s", reply.Error)
	}
	return nil
}

// keep makes the result of the agent's last message.
func (j *job) keep(response string, parts []json.RawMessage) {
	var first part
	if len(parts) > 0 {
		_ = json.Unmarshal(parts[0], &first) // a part without an id is none the worse
	}
	j.result = &Result{
		TaskID: j.task.ID, SandboxID: j.sandboxID(), SessionID: j.task.SessionID, MessageID: first.MessageID, Parts: parts,
		Response: clean(response),
	}
}

// watch follows a session while its agent works.
type watch struct {
	cancel context.CancelFunc
	idle   chan struct{} // closed when the turn is over
	over   chan struct{} // closed when nothing is read any more
}

const (
	// subscribeTime is how long a prompt waits for the subscription before it.
	subscribeTime = 5 * time.Second
	// idleTime is how long the events of a turn that is over are awaited.
	idleTime = time.Second
)

// watch reads a session's events into the journal. It returns when it is
// subscribed, so that nothing of the prompt that follows is missed.
func (s *Service) watch(ctx context.Context, j *job, oc *opencode.Client) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel, idle: make(chan struct{}), over: make(chan struct{})}
	ready := make(chan struct{})
	connected := sync.OnceFunc(func() { close(ready) }) // a sandbox can say so twice
	go func() {
		defer close(w.over)
		err := oc.Events(ctx, func(e opencode.Event) error {
			switch e.Type {
			case opencode.EventConnected:
				connected()
			case opencode.EventIdle:
				var p struct{ SessionID string }
				if json.Unmarshal(e.Properties, &p) == nil && p.SessionID == j.task.SessionID {
					close(w.idle)
					return errIdle
				}
			default:
				if tool := j.text.event(j.task.SessionID, e); tool != "" {
					j.journal.status("using the tool " + tool)
				}
				j.journal.note(entry{Type: EventChunk, Content: j.text.rest()})
			}
			return nil
		})
		if ctx.Err() == nil && !errors.Is(err, errIdle) {
			// The answer itself has the text; only its increments are missed.
			s.Log.InfoContext(ctx, "a task's events broke off", "taskId", j.task.ID, "error", err)
		}
	}()
	select {
	case <-ready:
	case <-w.over:
	case <-time.After(subscribeTime):
	case <-ctx.Done():
	}
	return w
}

// errIdle ends the reading of events when the turn is over.
var errIdle = errors.New("the turn is over")

// stop ends the reading; of a turn that ended well its last events are awaited.
func (w *watch) stop(ctx context.Context, well bool) {
	if w == nil {
		return
	}
	if well {
		select {
		case <-w.idle:
		case <-w.over:
		case <-time.After(idleTime):
		case <-ctx.Done():
		}
	}
	w.cancel()
	<-w.over
}

// pollEvery is how often a session is looked at whose prompt somebody else sent,
// and settleTime how long one without an agent's answer may take to show that it
// is at work.
const (
	pollEvery  = 500 * time.Millisecond
	settleTime = 2 * time.Second
)

// resume goes on with a session of which it is not known how far it came. It
// returns done false if nothing was asked in it yet.
func (s *Service) resume(ctx context.Context, j *job, oc *opencode.Client) (done bool, err error) {
	var still time.Time // neither busy nor done since then
	for {
		messages, err := oc.Messages(ctx, j.task.SessionID, 0)
		if err != nil {
			return false, openCodeError("reading the session", err)
		}
		asked, last := j.read(messages)
		if last != nil && (last.Info.Error != nil || last.Info.Finish != "" && last.Info.Finish != "tool-calls") {
			return true, s.take(j, *last)
		}
		busy, err := s.busy(ctx, j, oc)
		if err != nil {
			return false, err
		}
		switch {
		case busy:
			still = time.Time{}
		case still.IsZero():
			still = time.Now()
		case time.Since(still) < settleTime:
		case !asked:
			return false, nil
		default:
			return true, sandbox.Errorf(sandbox.CodeOpenCodeFailed, "the agent was interrupted; its session has what it did, send another message to go on")
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// read takes a session's messages into the transcript, and returns whether there
// was a prompt, and the agent's last message.
func (j *job) read(messages []opencode.Message) (asked bool, last *opencode.Message) {
	for i, m := range messages {
		switch m.Info.Role {
		case roleUser:
			asked = true
		case roleAssistant:
			j.text.parts(m.Parts)
			last = &messages[i]
		}
	}
	j.journal.note(entry{Type: EventChunk, Content: j.text.rest()})
	return asked, last
}

// busy tells whether the agent works in a session, or is about to.
func (s *Service) busy(ctx context.Context, j *job, oc *opencode.Client) (bool, error) {
	status, err := oc.SessionStatus(ctx)
	if err != nil {
		return false, openCodeError("asking what the session does", err)
	}
	if status[j.task.SessionID].Type != "" && status[j.task.SessionID].Type != "idle" {
		return true, nil
	}
	info, err := j.backend.Get(ctx, j.sandboxID())
	return err == nil && info.Busy, nil // who cannot say is taken not to be
}

// take makes the result of a turn that ended while nobody waited for it.
func (s *Service) take(j *job, m opencode.Message) error {
	var texts []string
	for _, raw := range m.Parts {
		var p part
		if json.Unmarshal(raw, &p) == nil && p.isText() && p.Text != "" {
			texts = append(texts, p.Text)
		}
	}
	j.keep(strings.Join(texts, "\n"), m.Parts)
	j.result.MessageID = m.Info.ID
	switch {
	case m.Info.Error != nil:
		return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "%s: %s", m.Info.Error.Name, m.Info.Error.Message)
	case len(texts) == 0:
		return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "the agent gave no answer")
	}
	return nil
}
