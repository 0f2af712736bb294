// Package turn runs one headless turn of OpenCode: it finds or makes the
// session, sends the message, answers what would hang without a person, notices
// a model that is being retried, and ends every turn by its deadline.
package turn

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Policy says what becomes of a permission request in a headless turn.
type Policy string

// The policies. Questions are rejected under either: nobody is there to answer.
const (
	Allow Policy = "allow" // the tool runs, this once
	Deny  Policy = "deny"  // the tool call is refused, which ends the turn
)

// Runner runs turns. Its fields are settings, not to be changed while it is in
// use; the zero Runner works. Safe for concurrent use.
type Runner struct {
	// Deadline bounds a turn whose request has none (default 10 min).
	Deadline time.Duration
	// PollEvery is how often a running turn is looked at (default 500 ms).
	PollEvery time.Duration
	// Policy answers permission requests (default Allow).
	Policy Policy
	// Logger gets what the turn survives; nil means nobody.
	Logger *slog.Logger
}

// Bounds on what a turn does beside waiting.
const (
	defaultDeadline  = 10 * time.Minute
	defaultPollEvery = 500 * time.Millisecond
	abortTimeout     = 5 * time.Second
	pollTimeout      = 5 * time.Second
	ownTimeout       = 30 * time.Second // to find the answer in a long session
	sessionTitle     = "Agent Task"
	maxReason        = 2000 // bytes of why a tool failed
	maxName          = 64   // bytes of a name that a message repeats
)

// Request is one turn. SessionID empty means a new session; Model and Agent
// unset mean the session's own; Deadline 0 means the Runner's.
type Request struct {
	Message   string
	SessionID string
	Model     *sandbox.Model
	Agent     string
	Deadline  time.Duration
	// Secrets are what no error may repeat: a provider can have repeated them.
	Secrets []string
}

// Result is a turn that ended by itself. Parts are OpenCode's, byte for byte,
// and never nil. Response joins their text with line breaks. When the turn
// failed ErrText says why, and Err how OpenCode or the provider named it; a turn
// without any text is a failure too.
type Result struct {
	SessionID      string
	CreatedSession bool
	Response       string
	Parts          []json.RawMessage
	Err            *sandbox.ErrorDetails
	ErrText        string
}

// Run runs one turn and returns when it is over or its deadline has passed, in
// which case it is aborted. onSession, if not nil, is called once, when the
// session is known and the message is about to be sent.
//
// Ending ctx stops the waiting, not the turn: give it the life of the sandbox's
// incarnation, so that a caller who leaves does not leave a turn without anybody
// to answer for it. The error is then ctx's cause.
//
// The answer is that to this turn's own message, also if other messages came into the
// session meanwhile. OpenCode may answer several together, in one answer to the last of
// them: the others are session_busy then.
//
// Errors are sandbox.Errors: session_not_found, session_busy, model_unknown, agent_unknown,
// turn_deadline (with the last reason that OpenCode gave for retrying),
// opencode_down and opencode_failed. From the moment the session is known they
// carry its id.
func (r *Runner) Run(ctx context.Context, oc *opencode.Client, req Request, onSession func(sessionID string)) (Result, error) {
	deadline := req.Deadline
	if deadline <= 0 {
		deadline = r.Deadline
	}
	if deadline <= 0 {
		deadline = defaultDeadline
	}
	turnCtx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	t := &turn{runner: r, oc: oc, req: req, deadline: deadline, mark: rand.Text(), result: Result{Parts: []json.RawMessage{}}}
	err := t.open(turnCtx)
	if err == nil {
		if onSession != nil {
			onSession(t.result.SessionID)
		}
		err = t.wait(ctx, turnCtx)
	}
	if err != nil {
		return t.result, t.explain(ctx, turnCtx, err)
	}
	t.result.ErrText = t.discreet(t.result.ErrText)
	if t.result.Err != nil {
		t.result.Err.Message = t.discreet(t.result.Err.Message)
	}
	return t.result, nil
}

// turn is one run of a Runner.
type turn struct {
	runner   *Runner
	oc       *opencode.Client
	req      Request
	deadline time.Duration
	result   Result
	watcher  *watcher
	mark     string // of its message
}

// discreet takes out of a text what the request calls secret.
func (t *turn) discreet(text string) string { return redact.Text(text, t.req.Secrets...) }

// open checks everything that OpenCode does not check, and finds or makes the
// session. An unknown model must be caught here: OpenCode would store it, and
// the session's next message would fail as well.
func (t *turn) open(ctx context.Context) error {
	if t.req.SessionID != "" {
		if _, err := t.oc.GetSession(ctx, t.req.SessionID); err != nil {
			if opencode.IsNotFound(err) {
				return sandbox.Errorf(sandbox.CodeSessionNotFound, "no session %q in this sandbox; leave sessionId out to begin one", t.req.SessionID)
			}
			return fmt.Errorf("looking for the session: %w", err)
		}
		t.result.SessionID = t.req.SessionID
	}
	if err := checkModel(ctx, t.oc, t.req.Model); err != nil {
		return err
	}
	if err := checkAgent(ctx, t.oc, t.req.Agent); err != nil {
		return err
	}
	if t.req.SessionID != "" {
		return nil
	}
	session, err := t.oc.CreateSession(ctx, sessionTitle)
	if err != nil {
		return fmt.Errorf("creating the session: %w", err)
	}
	t.result.SessionID, t.result.CreatedSession = session.ID, true
	return nil
}

// errGivenUp stands for the error that explain finds in the contexts.
var errGivenUp = errors.New("the wait for the turn ended")

type reply struct {
	message opencode.Message
	err     error
}

// wait sends the message and watches the session until the reply is there or
// the deadline has passed. Both goroutines have ended when it returns.
func (t *turn) wait(ctx, turnCtx context.Context) error {
	// The prompt outlives the deadline until the abort is sent: a connection
	// closed first would leave nobody to see a reply that comes at the last moment.
	promptCtx, stopPrompt := context.WithCancel(ctx)
	replies := make(chan reply, 1)
	go func() {
		message, err := t.oc.PromptMessage(promptCtx, t.result.SessionID, opencode.Prompt{
			Text: t.req.Message, Model: t.req.Model, Agent: t.req.Agent, Mark: t.mark,
		})
		replies <- reply{message, err}
	}()
	t.watcher = newWatcher(t.runner, t.oc, t.result.SessionID)
	watchCtx, stopWatching := context.WithCancel(turnCtx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watcher.run(watchCtx)
	}()

	var got reply
	select {
	case got = <-replies:
		stopWatching()
	case <-turnCtx.Done():
		stopWatching()
		got = t.giveUp(ctx, replies, stopPrompt)
	}
	stopPrompt()
	<-watched
	if got.err == nil {
		got.message, got.err = t.own(ctx, got.message)
	}
	if got.err != nil {
		return got.err
	}
	t.result.take(got.message, t.watcher.reason())
	return nil
}

// own returns the answer to this turn's message. OpenCode gives each caller that waits
// the session's last message, whichever message that answers.
func (t *turn) own(ctx context.Context, last opencode.Message) (opencode.Message, error) {
	if last.Info.ParentID == "" {
		return last, nil // it was ended before the model was asked
	}
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	asked, err := t.oc.Message(ctx, t.result.SessionID, last.Info.ParentID)
	if err != nil {
		// It is this one's as good as always, and the turn is over.
		t.runner.log().WarnContext(ctx, "which message was answered is not known", "sessionId", t.result.SessionID, "error", err)
		return last, nil
	}
	if asked.Carries(t.mark) {
		return last, nil
	}
	all, err := t.oc.Messages(ctx, t.result.SessionID, 0)
	if err != nil {
		return last, fmt.Errorf("looking for the answer: %w", err)
	}
	mine := ""
	for _, m := range all {
		if m.Carries(t.mark) {
			mine = m.Info.ID
		}
	}
	for _, m := range slices.Backward(all) {
		if mine != "" && m.Info.ParentID == mine {
			return m, nil
		}
	}
	return last, sandbox.Errorf(sandbox.CodeSessionBusy, "other messages came into the session %s meanwhile, and OpenCode has answered them together: the answer is in the session; send messages one after another", t.result.SessionID)
}

// giveUp ends a turn past its deadline. A reply that came at the last moment
// still counts; what the abort brings about does not.
func (t *turn) giveUp(ctx context.Context, replies <-chan reply, stopPrompt context.CancelFunc) reply {
	select {
	case got := <-replies:
		return got
	default:
	}
	if ctx.Err() == nil {
		t.abort(ctx)
	}
	stopPrompt()
	<-replies
	return reply{err: errGivenUp}
}

func (t *turn) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	if err := t.oc.Abort(ctx, t.result.SessionID); err != nil {
		t.runner.log().WarnContext(ctx, "a turn past its deadline could not be aborted", "sessionId", t.result.SessionID, "error", err)
	}
}

// explain makes the error that a caller gets.
func (t *turn) explain(ctx, turnCtx context.Context, err error) error {
	e, ok := errors.AsType[*sandbox.Error](err)
	switch {
	case ctx.Err() != nil:
		if e, ok = errors.AsType[*sandbox.Error](context.Cause(ctx)); !ok {
			return fmt.Errorf("waiting for the turn of session %s: %w", t.result.SessionID, context.Cause(ctx))
		}
	case turnCtx.Err() != nil:
		e = t.deadlineError()
	case ok:
	case t.watcher != nil && opencode.IsNotFound(err):
		e = sandbox.Errorf(sandbox.CodeSessionNotFound, "the session was deleted before the message reached it")
	default:
		e = upstreamError(err, t.watcher != nil)
	}
	clone := e.Redacted(t.req.Secrets...)
	clone.SessionID = t.result.SessionID
	return clone
}

func (t *turn) deadlineError() *sandbox.Error {
	if t.watcher == nil {
		return sandbox.Errorf(sandbox.CodeTurnDeadline, "OpenCode did not get to the turn within %s", t.deadline)
	}
	if reason := t.watcher.reason(); reason != "" {
		return sandbox.Errorf(sandbox.CodeTurnDeadline, "the turn did not end within %s and was aborted; OpenCode had to retry the model, which last said: %s", t.deadline, reason)
	}
	return sandbox.Errorf(sandbox.CodeTurnDeadline, "the turn did not end within %s and was aborted", t.deadline)
}

// upstreamError tells an OpenCode that is not there from one that answers
// nonsense.
func upstreamError(err error, sent bool) *sandbox.Error {
	if e, ok := errors.AsType[*opencode.Error](err); ok {
		if e.Name == opencode.NameInvalidReply || e.Name == opencode.NameTooLarge {
			return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "OpenCode gave no usable answer: %s", e.Message).WithCause(err)
		}
		return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "%s; its log in the sandbox may say more", e.Error()).WithCause(err)
	}
	if sent {
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode went away during the turn; it is being restarted, and the session keeps what was done").WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode cannot be reached in the sandbox; it is being restarted, try again").WithCause(err)
}

func (r *Runner) log() *slog.Logger {
	if r.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Logger
}

// take fills the result from a turn's last message.
func (r *Result) take(m opencode.Message, retried string) {
	r.Parts = m.Parts
	var texts []string
	var refused string
	for _, raw := range m.Parts {
		var part struct {
			Type      string `json:"type"`
			Text      string `json:"text"`
			Synthetic bool   `json:"synthetic"`
			Ignored   bool   `json:"ignored"`
			State     struct {
				Status string `json:"status"`
				Error  string `json:"error"`
			} `json:"state"`
		}
		if json.Unmarshal(raw, &part) != nil {
			continue // a part of a kind that this does not know; the caller gets it all the same
		}
		switch {
		case part.Type == "text" && !part.Synthetic && !part.Ignored && part.Text != "":
			texts = append(texts, part.Text)
		case part.Type == "tool" && part.State.Status == "error":
			refused = printable.Line(part.State.Error, maxReason)
		}
	}
	r.Response = strings.Join(texts, "\n")
	if f := m.Info.Error; f != nil {
		r.Err = &sandbox.ErrorDetails{Name: f.Name, Message: f.Message, StatusCode: f.StatusCode}
		r.ErrText = failureText(f)
		return
	}
	if r.Response != "" {
		return
	}
	// OpenCode calls these a success: aborted while it retried, ended by a refused
	// tool, or a model that said nothing.
	switch {
	case m.Info.Finish == "" && retried != "":
		r.ErrText = "the turn was aborted; OpenCode had to retry the model, which last said: " + retried
	case m.Info.Finish == "":
		r.ErrText = "the turn was aborted before the model answered"
	case refused != "":
		r.ErrText = "the turn ended without an answer: " + refused
	default:
		r.ErrText = fmt.Sprintf("the turn ended without an answer: the model wrote no text (finish: %s)", printable.Line(m.Info.Finish, maxName))
	}
	r.Err = &sandbox.ErrorDetails{Name: "EmptyResponse", Message: r.ErrText}
}

func failureText(f *opencode.Failure) string {
	message := f.Message
	if message == "" {
		message = "no reason given"
	}
	name := f.Name
	if name == "" {
		name = "unnamed error"
	}
	if f.StatusCode == 0 {
		return fmt.Sprintf("the turn failed: %s (%s)", message, name)
	}
	if text := http.StatusText(f.StatusCode); f.Message == "" && text != "" {
		message = text
	}
	return fmt.Sprintf("the provider answered %d: %s (%s)", f.StatusCode, message, name)
}
