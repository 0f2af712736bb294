package turn_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
)

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
	if diff := cmp.Diff(wantAsked, f.log()); diff != "" {
		t.Errorf("OpenCode was told (-want +got):\n%s", diff)
	}
}

func TestAKnownSessionIsUsedAgain(t *testing.T) {
	f := newFake(t, says(finished))
	res, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi", SessionID: "ses_root"}, nil)
	if err != nil || res.CreatedSession || res.SessionID != "ses_root" {
		t.Errorf("%+v, %v", res, err)
	}
	if len(f.log()) != 1 {
		t.Errorf("OpenCode was told %q", f.log())
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
		"a provider":            {turn.Request{Model: &sandbox.Model{ProviderID: "z", ModelID: "m"}}, sandbox.CodeModelUnknown, "there is p, q [31m"},
		"an agent":              {turn.Request{Agent: "nobody"}, sandbox.CodeAgentUnknown, "there is build, plan"},
		"an agent of a session": {turn.Request{Agent: "nobody", SessionID: "ses_root"}, sandbox.CodeAgentUnknown, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, says(finished))
			_, err := quick().Run(t.Context(), f.client(), tt.req, func(string) { t.Error("onSession was called") })
			if e := sandboxError(t, err); e.Code != tt.code || !strings.Contains(e.Message, tt.says) {
				t.Errorf("%v, want %s with %q", err, tt.code, tt.says)
			}
			if len(f.log()) != 0 {
				t.Errorf("OpenCode was told %q", f.log())
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
			"", "the turn ended without an answer: The user rejected [2J it", &sandbox.ErrorDetails{Name: "EmptyResponse"},
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
		"retried":             {`{"ses_root":{"type":"retry","message":"rate limit\u001b[0m reached"}}`, "last said: rate limit [0m reached"},
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
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice who leaves
		<-r.Context().Done()
	}))
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

func TestACallerGetsTheAnswerToItsOwnMessage(t *testing.T) {
	const theirs = `{"info":{"id":"msg_2","role":"user"},"parts":[{"type":"text","text":"theirs","metadata":{"agentpod":"OTHER"}}]},` +
		`{"info":{"id":"msg_4","role":"assistant","parentID":"msg_2","finish":"stop"},"parts":[{"type":"text","text":"for them"}]}`
	for name, c := range map[string]struct {
		session string // besides its message, which is MINE
		last    string
		want    string
		code    sandbox.Code
	}{
		"as the last one": {
			`{"info":{"id":"msg_1","role":"user"},"parts":[MINE]}`,
			`{"info":{"id":"msg_3","parentID":"msg_1","finish":"stop"},"parts":[{"type":"text","text":"for me"}]}`, "for me", "",
		},
		"although another was answered last": {
			`{"info":{"id":"msg_1","role":"user"},"parts":[MINE]},{"info":{"id":"msg_3","role":"assistant","parentID":"msg_1","finish":"stop"},"parts":[{"type":"text","text":"for me"}]},` + theirs,
			`{"info":{"id":"msg_4","parentID":"msg_2","finish":"stop"},"parts":[{"type":"text","text":"for them"}]}`, "for me", "",
		},
		"or none, if both were answered together": {
			`{"info":{"id":"msg_1","role":"user"},"parts":[MINE]},` + theirs,
			`{"info":{"id":"msg_4","parentID":"msg_2","finish":"stop"},"parts":[{"type":"text","text":"for them"}]}`, "", sandbox.CodeSessionBusy,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mine atomic.Pointer[string]
			f := newFake(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					raw, _ := io.ReadAll(r.Body)
					var prompt struct{ Parts []json.RawMessage }
					_ = json.Unmarshal(raw, &prompt)
					part := string(prompt.Parts[0])
					mine.Store(&part)
					_, _ = io.WriteString(w, c.last)
					return
				}
				all := "[" + strings.ReplaceAll(c.session, "MINE", *mine.Load()) + "]"
				id, one := strings.CutPrefix(r.URL.Path, "/session/ses_root/message/")
				if !one {
					_, _ = io.WriteString(w, all)
					return
				}
				var messages []json.RawMessage
				_ = json.Unmarshal([]byte(all), &messages)
				for _, m := range messages {
					if strings.Contains(string(m), `"id":"`+id+`"`) {
						_, _ = w.Write(m)
					}
				}
			})
			got, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi", SessionID: "ses_root"}, nil)
			if c.code != "" {
				if e := sandboxError(t, err); e.Code != c.code || e.SessionID != "ses_root" {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || got.Response != c.want {
				t.Errorf("%q %v, want %q", got.Response, err, c.want)
			}
		})
	}
}
