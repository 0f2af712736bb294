package scriptedmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// errReplied says that a reply is complete and nothing more may be sent.
var errReplied = errors.New("replied")

// errDropped says that the connection is to be cut.
var errDropped = errors.New("dropped by script")

// answer is one reply in the making. Streamed, everything goes out at once;
// otherwise it is gathered until finish.
type answer struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	req     *Request
	id      string
	started bool // the status has been sent
	buffer  strings.Builder
	calls   []toolCall
	bytes   int
}

type toolCall struct {
	Index    int    `json:"index"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

type delta struct {
	Role      string     `json:"role,omitempty"`
	Content   string     `json:"content,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

type choice struct {
	Index        int     `json:"index"`
	Delta        *delta  `json:"delta,omitempty"`
	Message      *delta  `json:"message,omitempty"`
	FinishReason *string `json:"finish_reason"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

type completion struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
}

func newAnswer(w http.ResponseWriter, rc *http.ResponseController, req *Request) *answer {
	return &answer{w: w, rc: rc, req: req, id: fmt.Sprintf("chatcmpl-%d", time.Now().UnixNano())}
}

// begin sends the headers, once.
func (a *answer) begin() error {
	if a.started {
		return nil
	}
	a.started = true
	if !a.req.Stream {
		a.w.Header().Set("Content-Type", "application/json")
		return a.flush()
	}
	a.w.Header().Set("Content-Type", "text/event-stream")
	a.w.Header().Set("Cache-Control", "no-cache")
	return a.chunk(delta{Role: "assistant"})
}

// text adds to the answer's text.
func (a *answer) text(s string) error {
	a.bytes += len(s)
	if !a.req.Stream {
		a.buffer.WriteString(s)
		return nil
	}
	if err := a.begin(); err != nil {
		return err
	}
	return a.chunk(delta{Content: s})
}

// line adds s to the answer's text, on a new line if there is text already.
func (a *answer) line(s string) error {
	if a.bytes > 0 {
		s = "\n" + s
	}
	return a.text(s)
}

// call adds a tool call: its name first, then its arguments in two pieces, as
// models do.
func (a *answer) call(name string, args json.RawMessage) error {
	c := toolCall{Index: len(a.calls), ID: fmt.Sprintf("call_%s_%d", strings.TrimPrefix(a.id, "chatcmpl-"), len(a.calls)), Type: "function"}
	c.Function.Name, c.Function.Arguments = name, string(args)
	a.calls = append(a.calls, c)
	a.bytes += len(args)
	if !a.req.Stream {
		return nil
	}
	if err := a.begin(); err != nil {
		return err
	}
	first := c
	first.Function.Arguments = ""
	if err := a.chunk(delta{ToolCalls: []toolCall{first}}); err != nil {
		return err
	}
	// A piece of JSON text must be whole UTF-8 to travel in a JSON string.
	half := len(args) / 2
	for half < len(args) && !utf8.RuneStart(args[half]) {
		half++
	}
	for _, piece := range []string{string(args[:half]), string(args[half:])} {
		if err := a.chunk(delta{ToolCalls: []toolCall{argsOnly(c.Index, piece)}}); err != nil {
			return err
		}
	}
	return nil
}

func argsOnly(index int, args string) toolCall {
	c := toolCall{Index: index, Type: "function"}
	c.Function.Arguments = args
	return c
}

// finish ends the reply the regular way.
func (a *answer) finish() error {
	reason := "stop"
	if len(a.calls) > 0 {
		reason = "tool_calls"
	}
	if !a.req.Stream {
		if !a.started {
			a.started = true
			a.w.Header().Set("Content-Type", "application/json")
		}
		c := a.completion("chat.completion")
		c.Choices = []choice{{Message: &delta{Role: "assistant", Content: a.buffer.String(), ToolCalls: a.calls}, FinishReason: &reason}}
		c.Usage = a.usage()
		return a.write(c, "", "\n")
	}
	if err := a.begin(); err != nil {
		return err
	}
	c := a.completion("chat.completion.chunk")
	c.Choices = []choice{{Delta: &delta{}, FinishReason: &reason}}
	if err := a.write(c, "data: ", "\n\n"); err != nil {
		return err
	}
	if a.req.StreamOptions.IncludeUsage {
		c.Choices, c.Usage = []choice{}, a.usage()
		if err := a.write(c, "data: ", "\n\n"); err != nil {
			return err
		}
	}
	return a.raw([]byte("data: [DONE]\n\n"))
}

// fail ends the reply with an error: as the status while none has been sent, as
// an event of the stream later.
func (a *answer) fail(status int, message string) error {
	if !a.started {
		a.started = true
		if status == http.StatusTooManyRequests {
			a.w.Header().Set("Retry-After", "1")
		}
		writeError(a.w, status, message)
		return errReplied
	}
	return errors.Join(a.write(errorBody(status, message), "data: ", "\n\n"), errReplied)
}

// html ends the reply with a page that no API should send.
func (a *answer) html() error {
	if !a.started {
		a.started = true
		a.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	}
	return errors.Join(a.raw([]byte("<!doctype html><html><head><title>Sign in</title></head><body><h1>Please sign in</h1></body></html>\n")), errReplied)
}

func (a *answer) completion(object string) completion {
	return completion{ID: a.id, Object: object, Created: time.Now().Unix(), Model: a.req.Model}
}

// usage is an estimate, kept low so that no client thinks its context full and
// begins to summarize in the middle of a script.
func (a *answer) usage() *usage {
	const most = 1000
	prompt := 0
	for _, m := range a.req.Messages {
		prompt += len(m.Content) / 4
	}
	u := &usage{PromptTokens: min(prompt+1, most), CompletionTokens: min(a.bytes/4+1, most)}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return u
}

func (a *answer) chunk(d delta) error {
	c := a.completion("chat.completion.chunk")
	c.Choices = []choice{{Delta: &d}}
	return a.write(c, "data: ", "\n\n")
}

func (a *answer) write(v any, before, after string) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return a.raw([]byte(before + string(b) + after))
}

func (a *answer) raw(b []byte) error {
	if err := a.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("bound a write: %w", err)
	}
	if _, err := a.w.Write(b); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return a.flush()
}

func (a *answer) flush() error {
	if err := a.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("flush the answer: %w", err)
	}
	return nil
}

func errorBody(status int, message string) map[string]any {
	kind, code := "server_error", "server_error"
	switch status {
	case http.StatusUnauthorized:
		kind, code = "invalid_request_error", "invalid_api_key"
	case http.StatusNotFound:
		kind, code = "invalid_request_error", "model_not_found"
	case http.StatusTooManyRequests:
		kind, code = "requests", "rate_limit_exceeded"
	default:
		if status < http.StatusInternalServerError {
			kind, code = "invalid_request_error", "invalid_request"
		}
	}
	return map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": code}}
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, errorBody(status, message))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that has gone needs no answer.
	_ = json.NewEncoder(w).Encode(v)
}
