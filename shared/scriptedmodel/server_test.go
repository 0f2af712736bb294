package scriptedmodel_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

// deadline bounds everything a test waits for.
const deadline = 20 * time.Second

type message = map[string]any

func user(text string) message { return message{"role": "user", "content": text} }

func result(text string) message {
	return message{"role": "tool", "tool_call_id": "call_x", "content": text}
}

// start serves a scripted model until the test ends.
func start(t *testing.T, opts scriptedmodel.Options) *scriptedmodel.Server {
	t.Helper()
	s := scriptedmodel.New(opts)
	if err := s.Start(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// response is an HTTP response whose body the test's end closes.
type response struct {
	StatusCode int
	Header     http.Header
	Body       io.ReadCloser
}

// ask posts a chat completion the way OpenCode does, offering its tools.
func ask(ctx context.Context, t *testing.T, s *scriptedmodel.Server, stream bool, messages ...message) response {
	t.Helper()
	tools := make([]any, 0, 3)
	for _, name := range []string{"bash", "write", "question"} {
		tools = append(tools, map[string]any{"type": "function", "function": map[string]any{"name": name, "parameters": map[string]any{}}})
	}
	return post(ctx, t, s, map[string]any{
		"model": scriptedmodel.ModelID, "stream": stream, "messages": messages, "tools": tools,
		"stream_options": map[string]any{"include_usage": true},
	})
}

func post(ctx context.Context, t *testing.T, s *scriptedmodel.Server, body map[string]any) response {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/chat/completions", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer the-key")
	req.Header.Set("X-Session-Id", "ses_1")
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := (&http.Client{Transport: tr, Timeout: deadline}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return response{resp.StatusCode, resp.Header, resp.Body}
}

// reply is what a client makes of an answer.
type reply struct {
	Text, Tool, Args, Finish string
	Chunks                   int
	Error                    string
	Usage, Done              bool
}

type wireChoice struct {
	Delta, Message struct {
		Content   string
		ToolCalls []struct {
			ID       string
			Function struct{ Name, Arguments string }
		} `json:"tool_calls"`
	}
	FinishReason string `json:"finish_reason"`
}

type wire struct {
	Choices []wireChoice
	Usage   *struct {
		TotalTokens int `json:"total_tokens"`
	}
	Error *struct{ Message, Type, Code string }
}

func (r *reply) add(w wire) {
	for _, c := range w.Choices {
		if c.Delta.Content+c.Message.Content != "" {
			r.Chunks++
		}
		r.Text += c.Delta.Content + c.Message.Content
		for _, tc := range append(c.Delta.ToolCalls, c.Message.ToolCalls...) {
			r.Tool += tc.Function.Name
			r.Args += tc.Function.Arguments
		}
		r.Finish += c.FinishReason
	}
	r.Usage = r.Usage || w.Usage != nil && w.Usage.TotalTokens > 0
	if w.Error != nil {
		r.Error = w.Error.Message
	}
}

// read reads a whole answer; the error is that of a connection cut off.
func read(t *testing.T, resp response) (reply, error) {
	t.Helper()
	var r reply
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return r, err
		}
		var w wire
		if err := json.Unmarshal(b, &w); err != nil {
			t.Fatalf("answer is not JSON: %v\n%s", err, b)
		}
		r.add(w)
		return r, nil
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			r.Done = true
			continue
		}
		var w wire
		if err := json.Unmarshal([]byte(data), &w); err != nil {
			t.Fatalf("event is not JSON: %v\n%s", err, data)
		}
		r.add(w)
	}
	return r, lines.Err()
}

func mustRead(t *testing.T, resp response) reply {
	t.Helper()
	r, err := read(t, resp)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestConfigMakesTheServerOpenCodesDefault(t *testing.T) {
	s := start(t, scriptedmodel.Options{APIKey: "k1"})
	var got struct {
		Model      string
		SmallModel string `json:"small_model"`
		Provider   map[string]struct {
			NPM     string
			Options struct{ BaseURL, APIKey string }
			Models  map[string]struct {
				ToolCall bool `json:"tool_call"`
				Limit    struct{ Context, Output int }
			}
		}
	}
	if err := json.Unmarshal(s.Config(), &got); err != nil {
		t.Fatal(err)
	}
	p := got.Provider["scripted"]
	if got.Model != "scripted/echo" || got.SmallModel != "scripted/echo" || p.NPM != "@ai-sdk/openai-compatible" ||
		p.Options.BaseURL != s.URL() || p.Options.APIKey != "k1" {
		t.Errorf("config %s", s.Config())
	}
	for _, id := range []string{"echo", "echo-2"} {
		if m := p.Models[id]; !m.ToolCall || m.Limit.Context == 0 || m.Limit.Output == 0 {
			t.Errorf("model %s: %+v", id, m)
		}
	}
}

func TestHostReplacesTheAddressInURLs(t *testing.T) {
	s := start(t, scriptedmodel.Options{Host: "model.internal"})
	if !strings.HasPrefix(s.URL(), "http://model.internal:") {
		t.Errorf("URL %q", s.URL())
	}
}

func TestOnlyOwnHostNamesAreServed(t *testing.T) {
	s := start(t, scriptedmodel.Options{Host: "model.internal"})
	at := strings.Replace(s.URL(), "model.internal", "127.0.0.1", 1) + "/models"
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL(), "http://"), ":")
	port, _, _ = strings.Cut(port, "/")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	for host, want := range map[string]int{
		"model.internal": 200, "MODEL.internal:" + port: 200, "127.0.0.1:" + port: 200, "localhost": 200, "[::1]:" + port: 200,
		"evil.test": 403, "evil.test:" + port: 403, "model.internal.evil.test": 403, "192.0.2.1": 403,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := (&http.Client{Transport: tr, Timeout: deadline}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", host, resp.StatusCode, want)
		}
	}
	if got := len(s.Requests()); got != 5 {
		t.Errorf("%d requests are recorded, want those that were served", got)
	}
}

func TestModelsAreListed(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+"/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: deadline}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct{ Data []struct{ ID string } }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if len(got.Data) != 2 || got.Data[0].ID != "echo" {
		t.Errorf("models %+v", got)
	}
}

func TestRequestsTellWhatArrived(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	mustRead(t, ask(t.Context(), t, s, true, user("run ls"), result("a")))
	got := s.Requests()
	if len(got) != 1 {
		t.Fatalf("%d requests", len(got))
	}
	got[0].At = time.Time{}
	want := scriptedmodel.Record{
		Method: "POST", Path: "/v1/chat/completions", Authorization: "Bearer the-key", SessionID: "ses_1",
		Model: "echo", Stream: true, Tools: []string{"bash", "write", "question"}, Messages: 2, ToolResults: 1, UserMessage: "run ls",
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Error(diff)
	}
	for range 600 {
		_ = post(t.Context(), t, s, map[string]any{"model": "other", "messages": []message{}}).Body.Close()
	}
	if n := len(s.Requests()); n != 512 {
		t.Errorf("%d requests kept, want the last 512", n)
	}
}

func TestBadRequestsAreAnsweredTheOpenAIWay(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for name, tc := range map[string]struct {
		body   map[string]any
		status int
	}{
		"an unknown model":             {map[string]any{"model": "gpt-9", "messages": []message{user("x")}}, 404},
		"content that is a number":     {map[string]any{"model": "echo", "messages": []message{{"role": "user", "content": 3}}}, 400},
		"messages that are not a list": {map[string]any{"model": "echo", "messages": "x"}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			resp := post(t.Context(), t, s, tc.body)
			if r := mustRead(t, resp); resp.StatusCode != tc.status || r.Error == "" {
				t.Errorf("status %d, %+v", resp.StatusCode, r)
			}
		})
	}
}

func TestCloseEndsAnswersUnderWayAndMayBeRepeated(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	resp := ask(t.Context(), t, s, true, user("stall"))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(t, resp); err == nil {
		t.Error("the stalled answer ended as if it were complete")
	}
}

func TestTheContextOfStartEndsTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := scriptedmodel.New(scriptedmodel.Options{})
	if err := s.Start(ctx, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	resp := ask(t.Context(), t, s, true, user("stall"))
	cancel()
	if _, err := read(t, resp); err == nil {
		t.Error("the stalled answer ended as if it were complete")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Start(t.Context(), "127.0.0.1:0"); err == nil {
		t.Error("a closed server started again")
	}
}

func TestAClientThatLeavesEndsItsAnswer(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for _, script := range []string{"stall", "flood 256MB", "chunks 1000 1h"} {
		ctx, cancel := context.WithCancel(t.Context())
		resp := ask(ctx, t, s, true, user(script))
		if _, err := io.ReadFull(resp.Body, make([]byte, 16)); err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		cancel()
		if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", script, err)
		}
	}
	// Close waits for every handler: it returns only if they have ended.
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestThePackageCommentListsTheWholeLanguage(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	flat := func(s string) string { return strings.Join(strings.Fields(strings.ReplaceAll(s, "//", "")), " ") }
	lines := strings.Split(strings.TrimSpace(scriptedmodel.Language()), "\n")
	if len(lines) < 12 {
		t.Errorf("only %d commands", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(flat(string(doc)), flat(line)) {
			t.Errorf("the package comment lacks: %s", line)
		}
	}
}
