package turn_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// fake is an OpenCode whose turn is a script. Its lists can be changed while a
// turn runs; what it was told is kept.
type fake struct {
	t *testing.T
	// message answers POST /session/ses_root/message.
	message http.HandlerFunc

	mu          sync.Mutex
	status      string
	permissions string
	questions   string
	asked       []string // "METHOD /path body" of everything that changes something
	told        chan string
	broken      bool // every look fails
}

// parents are the sessions that exist, with their parents.
func parentOf(id string) (string, bool) {
	parent, ok := map[string]string{
		"ses_root": "", "ses_child": "ses_root", "ses_grandchild": "ses_child",
		"ses_other": "", "ses_stranger": "ses_other", "ses_loop": "ses_loop",
	}[id]
	return parent, ok
}

func newFake(t *testing.T, message http.HandlerFunc) *fake {
	t.Helper()
	return &fake{t: t, message: message, status: "{}", permissions: "[]", questions: "[]", told: make(chan string, 1000)}
}

func (f *fake) set(status, permissions, questions string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.permissions, f.questions = status, permissions, questions
}

func (f *fake) client() *opencode.Client {
	s := httptest.NewServer(f)
	f.t.Cleanup(s.Close)
	transport := &http.Transport{}
	f.t.Cleanup(transport.CloseIdleConnections)
	return opencode.New(transport, s.URL, "secret")
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	looks := map[string]string{"/session/status": f.status, "/permission": f.permissions, "/question": f.questions}
	look, isLook := looks[r.URL.Path]
	if r.Method == http.MethodPost {
		entry := strings.TrimSpace(r.URL.Path + " " + string(body))
		f.asked = append(f.asked, entry)
		f.told <- entry
	}
	broken := f.broken
	f.mu.Unlock()
	id := strings.TrimPrefix(r.URL.Path, "/session/")
	switch {
	case isLook && broken:
		http.Error(w, "broken", http.StatusInternalServerError)
	case isLook:
		_, _ = io.WriteString(w, look)
	case r.URL.Path == "/agent":
		_, _ = io.WriteString(w, `[{"name":"plan"},{"name":"build"},{"name":"title","hidden":true}]`)
	case r.URL.Path == "/config/providers":
		_, _ = io.WriteString(w, `{"providers":[{"id":"p","models":{"m2":{},"m1":{}}},{"id":"q\u001b[31m","models":{}}],"default":{}}`)
	case r.URL.Path == "/session":
		_, _ = io.WriteString(w, `{"id":"ses_root","title":"Agent Task"}`)
	case r.URL.Path == "/session/ses_root/message":
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		f.message(w, r)
	case r.Method == http.MethodPost:
		_, _ = io.WriteString(w, "true")
	default:
		parent, ok := parentOf(id)
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"name":"NotFoundError","data":{"message":"Session not found"}}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"id":%q,"parentID":%q}`, id, parent)
	}
}

// await returns when OpenCode was told that.
func (f *fake) await(want string) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-f.told:
			if got == want {
				return
			}
		case <-deadline:
			f.t.Errorf("OpenCode was never told %s", want)
			return
		}
	}
}

func (f *fake) wasTold(what string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.asked, what)
}

// says answers a message at once.
func says(reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, reply) }
}

const finished = `{"info":{"id":"msg_1","finish":"stop"},"parts":[{"type":"text","text":"done"}]}`

// until answers a message when the channel closes, or never if the client leaves.
func until(ready <-chan struct{}, reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
			_, _ = io.WriteString(w, reply)
		case <-r.Context().Done():
		}
	}
}

func quick() *turn.Runner {
	return &turn.Runner{Deadline: patience, PollEvery: time.Millisecond}
}

func sandboxError(t *testing.T, err error) *sandbox.Error {
	t.Helper()
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok {
		t.Fatalf("error %v is no sandbox error", err)
	}
	return e
}

func TestANewSessionIsMadeAndKnownBeforeTheMessageIsSent(t *testing.T) {
	f := newFake(t, says(finished))
	var known []string
	res, err := quick().Run(t.Context(), f.client(), turn.Request{
		Message: "hi", Model: &sandbox.Model{ProviderID: "p", ModelID: "m1"}, Agent: "build",
	}, func(id string) {
		if f.wasTold("/session/ses_root/message") {
			t.Error("the message was sent first")
		}
		known = append(known, id)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := turn.Result{
		SessionID: "ses_root", CreatedSession: true, Response: "done",
		Parts: []json.RawMessage{json.RawMessage(`{"type":"text","text":"done"}`)},
	}
	if diff := cmp.Diff(want, res); diff != "" || !slices.Equal(known, []string{"ses_root"}) {
		t.Errorf("known %v, result (-want +got):\n%s", known, diff)
	}
	wantAsked := []string{
		`/session {"title":"Agent Task"}`,
		`/session/ses_root/message {"model":{"providerID":"p","modelID":"m1"},"agent":"build","parts":[{"text":"hi","type":"text"}]}`,
	}
	if diff := cmp.Diff(wantAsked, f.asked); diff != "" {
		t.Errorf("OpenCode was told (-want +got):\n%s", diff)
	}
}

func TestAKnownSessionIsUsedAgain(t *testing.T) {
	f := newFake(t, says(finished))
	res, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi", SessionID: "ses_root"}, nil)
	if err != nil || res.CreatedSession || res.SessionID != "ses_root" {
		t.Errorf("%+v, %v", res, err)
	}
	if len(f.asked) != 1 {
		t.Errorf("OpenCode was told %q", f.asked)
	}
}

func TestWhatDoesNotExistIsSaidBeforeAnythingIsSent(t *testing.T) {
	for name, tt := range map[string]struct {
		req  turn.Request
		code sandbox.Code
		says string
	}{
		"a session":             {turn.Request{SessionID: "ses_none"}, sandbox.CodeSessionNotFound, "ses_none"},
		"a session of no form":  {turn.Request{SessionID: "../../x"}, sandbox.CodeSessionNotFound, "../../x"},
		"a model":               {turn.Request{Model: &sandbox.Model{ProviderID: "p", ModelID: "m9"}}, sandbox.CodeModelUnknown, "it has m1, m2"},
		"a provider":            {turn.Request{Model: &sandbox.Model{ProviderID: "z", ModelID: "m"}}, sandbox.CodeModelUnknown, "there is p, q[31m"},
		"an agent":              {turn.Request{Agent: "nobody"}, sandbox.CodeAgentUnknown, "there is build, plan"},
		"an agent of a session": {turn.Request{Agent: "nobody", SessionID: "ses_root"}, sandbox.CodeAgentUnknown, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, says(finished))
			_, err := quick().Run(t.Context(), f.client(), tt.req, func(string) { t.Error("onSession was called") })
			if e := sandboxError(t, err); e.Code != tt.code || !strings.Contains(e.Message, tt.says) {
				t.Errorf("%v, want %s with %q", err, tt.code, tt.says)
			}
			if len(f.asked) != 0 {
				t.Errorf("OpenCode was told %q", f.asked)
			}
		})
	}
}

func TestARepliesOutcomeIsNeverAnEmptySuccess(t *testing.T) {
	for name, tt := range map[string]struct {
		reply, response, errText string
		details                  *sandbox.ErrorDetails
	}{
		"several texts, joined": {
			`{"info":{"id":"msg_1","finish":"stop"},"parts":[{"type":"step-start"},{"type":"text","text":"one"},{"type":"text","text":"hidden","synthetic":true},{"type":"text","text":"old","ignored":true},{"type":"reasoning","text":"hm"},{"type":"text","text":"two"}]}`,
			"one\ntwo", "", nil,
		},
		"the provider refused": {
			`{"info":{"id":"msg_1","error":{"name":"APIError","data":{"message":"invalid api key","statusCode":401}}},"parts":[]}`,
			"", "the provider answered 401: invalid api key (APIError)",
			&sandbox.ErrorDetails{Name: "APIError", Message: "invalid api key", StatusCode: 401},
		},
		"a failure after some text": {
			`{"info":{"id":"msg_1","error":{"name":"MessageAbortedError","data":{"message":"Aborted"}}},"parts":[{"type":"text","text":"half"}]}`,
			"half", "the turn failed: Aborted (MessageAbortedError)",
			&sandbox.ErrorDetails{Name: "MessageAbortedError", Message: "Aborted"},
		},
		"a failure without words": {
			`{"info":{"id":"msg_1","error":{}},"parts":[]}`,
			"", "the turn failed: no reason given (unnamed error)", &sandbox.ErrorDetails{},
		},
		"a status without words": {
			`{"info":{"id":"msg_1","error":{"name":"APIError","data":{"statusCode":503}}},"parts":[]}`,
			"", "the provider answered 503: Service Unavailable (APIError)", &sandbox.ErrorDetails{Name: "APIError", StatusCode: 503},
		},
		"a model that said nothing": {
			`{"info":{"id":"msg_1","finish":"stop"},"parts":[{"type":"step-start"},{"type":"text","text":""}]}`,
			"", "the turn ended without an answer: the model wrote no text (finish: stop)", &sandbox.ErrorDetails{Name: "EmptyResponse"},
		},
		"aborted by somebody": {
			`{"info":{"id":"msg_1"},"parts":[]}`,
			"", "the turn was aborted before the model answered", &sandbox.ErrorDetails{Name: "EmptyResponse"},
		},
		"ended by a refused tool": {
			`{"info":{"id":"msg_1","finish":"tool-calls"},"parts":[{"type":"tool","state":{"status":"error","error":"The user rejected\u001b[2J it"}}]}`,
			"", "the turn ended without an answer: The user rejected[2J it", &sandbox.ErrorDetails{Name: "EmptyResponse"},
		},
		"parts of other kinds": {
			`{"info":{"id":"msg_1","finish":"stop"},"parts":[1,"x",null,{"type":"text","text":"here"},{"type":7}]}`,
			"here", "", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := quick().Run(t.Context(), newFake(t, says(tt.reply)).client(), turn.Request{Message: "hi"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.details != nil && tt.details.Name == "EmptyResponse" {
				tt.details.Message = tt.errText
			}
			if diff := cmp.Diff(tt.details, res.Err); diff != "" || res.Response != tt.response || res.ErrText != tt.errText || res.Parts == nil {
				t.Errorf("response %q, text %q, details (-want +got):\n%s", res.Response, res.ErrText, diff)
			}
		})
	}
}

func TestAReplyThatIsNoneIsAFailureOfOpenCode(t *testing.T) {
	for name, tt := range map[string]struct {
		message http.HandlerFunc
		code    sandbox.Code
		says    string
	}{
		"a server error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"name":"UnknownError","data":{"message":"Unexpected server error.","ref":"err_1"}}`)
		}, sandbox.CodeOpenCodeFailed, "Unexpected server error. [err_1] (UnknownError)"},
		"a page":      {says("<html>"), sandbox.CodeOpenCodeFailed, "no usable answer"},
		"{}":          {says("{}"), sandbox.CodeOpenCodeFailed, "no usable answer"},
		"gone midway": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, sandbox.CodeOpenCodeDown, "went away during the turn"},
		"no such session any more": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
		}, sandbox.CodeSessionNotFound, "deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := quick().Run(t.Context(), newFake(t, tt.message).client(), turn.Request{Message: "hi"}, nil)
			if e := sandboxError(t, err); e.Code != tt.code || e.SessionID != "ses_root" || !strings.Contains(e.Message, tt.says) {
				t.Errorf("%v of session %q", err, e.SessionID)
			}
		})
	}
}

func TestAnOpenCodeThatIsNotThereIsDown(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	_, err := quick().Run(t.Context(), opencode.New(&http.Transport{}, s.URL, "secret"), turn.Request{Message: "hi"}, nil)
	if e := sandboxError(t, err); e.Code != sandbox.CodeOpenCodeDown || e.SessionID != "" {
		t.Errorf("%v", err)
	}
}

func TestATransportsOwnReasonIsKept(t *testing.T) {
	away := sandbox.Errorf(sandbox.CodeEngineAway, "the engine does not answer")
	_, err := quick().Run(t.Context(), opencode.New(failing{away}, "http://x", "secret"), turn.Request{Message: "hi"}, nil)
	if e := sandboxError(t, err); e.Code != sandbox.CodeEngineAway {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

func TestTheDeadlineAbortsARetriedTurnAndTellsTheReason(t *testing.T) {
	for name, tt := range map[string]struct {
		status string
		says   string
	}{
		"retried":             {`{"ses_root":{"type":"retry","message":"rate limit\u001b[0m reached"}}`, "last said: rate limit[0m reached"},
		"a subagent retried":  {`{"ses_grandchild":{"type":"retry","message":"overloaded"}}`, "last said: overloaded"},
		"another's retry":     {`{"ses_other":{"type":"retry","message":"not ours"},"ses_root":{"type":"busy"}}`, "was aborted"},
		"stalled":             {`{"ses_root":{"type":"busy"}}`, "was aborted"},
		"a status that lies":  {`{"ses_loop":{"type":"retry","message":"x"},"ses_none":{"type":"retry","message":"x"},"../y":{"type":"retry","message":"x"}}`, "was aborted"},
		"a status of nothing": {`[]`, "was aborted"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, until(nil, ""))
			f.set(tt.status, "[]", "[]")
			began := time.Now()
			_, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi", Deadline: 300 * time.Millisecond}, nil)
			e := sandboxError(t, err)
			if e.Code != sandbox.CodeTurnDeadline || e.SessionID != "ses_root" || !strings.HasSuffix(e.Message, tt.says) {
				t.Errorf("%v", err)
			}
			if took := time.Since(began); took > patience {
				t.Errorf("it took %s", took)
			}
			if !f.wasTold("/session/ses_root/abort") {
				t.Error("the turn was not aborted")
			}
		})
	}
}

func TestTheDeadlineAlsoHoldsWhileTheReplyComesEndlessly(t *testing.T) {
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			if http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	})
	_, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi", Deadline: 50 * time.Millisecond}, nil)
	if e := sandboxError(t, err); e.Code != sandbox.CodeTurnDeadline {
		t.Errorf("%v", err)
	}
}

func TestTheDeadlineHoldsBeforeTheSessionIsKnown(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(s.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	_, err := quick().Run(t.Context(), opencode.New(transport, s.URL, "secret"), turn.Request{Message: "hi", Deadline: 20 * time.Millisecond}, nil)
	if e := sandboxError(t, err); e.Code != sandbox.CodeTurnDeadline || e.SessionID != "" {
		t.Errorf("%v", err)
	}
}

func TestTheRunnersDeadlineIsTheDefault(t *testing.T) {
	r := quick()
	r.Deadline = 20 * time.Millisecond
	_, err := r.Run(t.Context(), newFake(t, until(nil, "")).client(), turn.Request{Message: "hi"}, nil)
	if e := sandboxError(t, err); e.Code != sandbox.CodeTurnDeadline {
		t.Errorf("%v", err)
	}
}

func TestRequestsOfTheTurnAreAnsweredByPolicyAndOthersAreLeftAlone(t *testing.T) {
	const (
		permissions = `[{"id":"per_stranger","sessionID":"ses_stranger"},{"id":"per_loop","sessionID":"ses_loop"},{"id":"../x","sessionID":"ses_other"},` +
			`{"id":"per_root","sessionID":"ses_root"},{"id":"per_deep","sessionID":"ses_grandchild"}]`
		questions = `[{"id":"que_stranger","sessionID":"ses_other"},{"id":"que_child","sessionID":"ses_child"}]`
	)
	for policy, reply := range map[turn.Policy]string{turn.Allow: "once", turn.Deny: "reject", "": "once"} {
		t.Run("policy "+string(policy), func(t *testing.T) {
			ready := make(chan struct{})
			f := newFake(t, until(ready, finished))
			f.set("{}", permissions, questions)
			r := quick()
			r.Policy = policy
			go func() {
				defer close(ready)
				f.await(fmt.Sprintf(`/permission/per_root/reply {"reply":%q}`, reply))
				f.await(fmt.Sprintf(`/permission/per_deep/reply {"reply":%q}`, reply))
				f.await(`/question/que_child/reject`)
			}()
			if _, err := r.Run(t.Context(), f.client(), turn.Request{Message: "hi"}, nil); err != nil {
				t.Fatal(err)
			}
			for _, entry := range f.asked {
				if strings.Contains(entry, "stranger") || strings.Contains(entry, "loop") || strings.Contains(entry, "..") {
					t.Errorf("another's request was answered: %s", entry)
				}
			}
		})
	}
}

func TestALookThatFailsCostsNothingButTheLook(t *testing.T) {
	ready := make(chan struct{})
	f := newFake(t, until(ready, finished))
	f.broken = true
	f.set("{}", `[{"id":"per_1","sessionID":"ses_root"}]`, "[]")
	go func() {
		defer close(ready)
		f.await(`/session/ses_root/message {"parts":[{"text":"hi","type":"text"}]}`)
		f.mu.Lock()
		f.broken = false
		f.mu.Unlock()
		f.await(`/permission/per_1/reply {"reply":"once"}`)
	}()
	if res, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi"}, nil); err != nil || res.Response != "done" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestALookThatHangsDoesNotDelayTheReply(t *testing.T) {
	looking := make(chan struct{})
	var once sync.Once
	f := newFake(t, until(looking, finished))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/session/status" {
			once.Do(func() { close(looking) })
			<-r.Context().Done()
			return
		}
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	began := time.Now()
	if _, err := quick().Run(t.Context(), opencode.New(transport, s.URL, "secret"), turn.Request{Message: "hi"}, nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the reply took %s", took)
	}
}

func TestACallersEndStopsTheWaitAndNotTheTurn(t *testing.T) {
	deleted := sandbox.Errorf(sandbox.CodeSandboxDeleted, "the sandbox was deleted")
	for name, cause := range map[string]error{"deleted": deleted, "shut down": errors.New("stopping")} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, until(nil, ""))
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				f.await(`/session/ses_root/message {"parts":[{"text":"hi","type":"text"}]}`)
				cancel(cause)
			}()
			_, err := quick().Run(ctx, f.client(), turn.Request{Message: "hi"}, nil)
			if e, ok := errors.AsType[*sandbox.Error](err); ok {
				if e.Code != sandbox.CodeSandboxDeleted || e.SessionID != "ses_root" || deleted.SessionID != "" {
					t.Errorf("%v of session %q", err, e.SessionID)
				}
			} else if !errors.Is(err, cause) {
				t.Errorf("%v, want %v", err, cause)
			}
			if f.wasTold("/session/ses_root/abort") {
				t.Error("the turn was aborted")
			}
		})
	}
}
