package opencode_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake serves routes ("METHOD /path?query" → status and body) and returns a
// client of it. What is asked beyond them is an error of the test.
type fake map[string]string

func (routes fake) client(t *testing.T) *opencode.Client {
	t.Helper()
	return clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "opencode" || password != "secret" {
			t.Errorf("%s: authorized as %q %q", r.URL, user, password)
		}
		body, _ := io.ReadAll(r.Body)
		key := strings.TrimSpace(r.Method + " " + r.RequestURI + " " + string(body))
		reply, ok := routes[key]
		if !ok {
			t.Errorf("asked for %s", key)
		}
		if len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: content type %q", key, r.Header.Get("Content-Type"))
		}
		_, _ = io.WriteString(w, reply)
	})
}

func clientOf(t *testing.T, h http.HandlerFunc) *opencode.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return opencode.New(transport, s.URL, "secret")
}

func same(t *testing.T, want, got any, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The replies are as OpenCode 1.18.33 gave them, shortened.
func TestRequestsAndRepliesHaveOpenCodesShapes(t *testing.T) {
	const (
		session   = `{"id":"ses_1","slug":"s","directory":"/w","title":"Agent Task","time":{"created":1}}`
		child     = `{"id":"ses_2","parentID":"ses_1","directory":"/w","title":"sub"}`
		text      = `{"type":"text","text":"echo: hi","id":"prt_1"}`
		assistant = `{"info":{"parentID":"msg_1","role":"assistant","agent":"build","modelID":"m","providerID":"p","finish":"stop","id":"msg_2","sessionID":"ses_1"},"parts":[` + text + `]}`
		failed    = `{"info":{"role":"assistant","id":"msg_3","sessionID":"ses_1","error":{"name":"APIError","data":{"message":"invalid\u001b[31m key","statusCode":401,"responseHeaders":{"x":"y"}}}},"parts":[]}`
	)
	c := fake{
		`POST /session {"title":"Agent Task"}`: session,
		`GET /session/ses_1`:                   session,
		`GET /session/ses_2`:                   child,
		`POST /session/ses_1/message {"model":{"providerID":"p","modelID":"m"},"agent":"build","parts":[{"text":"hi","type":"text"}]}`: assistant,
		`POST /session/ses_1/prompt_async {"parts":[{"text":"hi","type":"text"}]}`:                                                     ``,
		`POST /session/ses_1/abort`:                     `true`,
		`GET /session/ses_1/message?limit=2`:            `[` + assistant + `,` + failed + `]`,
		`GET /session/status`:                           `{"ses_1":{"type":"retry","attempt":2,"message":"scripted\u0000 500","next":1},"ses_2":{"type":"busy"}}`,
		`GET /permission`:                               `[{"id":"per_1","sessionID":"ses_1","permission":"bash","patterns":["ls"],"metadata":{},"always":[]}]`,
		`POST /permission/per_1/reply {"reply":"once"}`: `true`,
		`GET /question`:                                 `[{"id":"que_1","sessionID":"ses_1","questions":[{"question":"Which?","header":"W","options":[{"label":"a","description":"b"}]}]}]`,
		`POST /question/que_1/reject`:                   `true`,
		`GET /agent`:                                    `[{"name":"build","mode":"primary","permission":[]},{"name":"title","mode":"primary","hidden":true}]`,
		`GET /config/providers`:                         `{"providers":[{"id":"p","key":"secret","models":{"n":{},"m":{"name":"M"}}}],"default":{"p":"m"}}`,
	}.client(t)
	ctx := t.Context()

	wantSession := opencode.Session{ID: "ses_1"}
	created, err := c.CreateSession(ctx, "Agent Task")
	same(t, wantSession, created, err)
	found, err := c.GetSession(ctx, "ses_1")
	same(t, wantSession, found, err)
	sub, err := c.GetSession(ctx, "ses_2")
	same(t, opencode.Session{ID: "ses_2", ParentID: "ses_1"}, sub, err)

	wantMessage := opencode.Message{
		Info:  opencode.Info{ID: "msg_2", SessionID: "ses_1", ParentID: "msg_1", Role: "assistant", Finish: "stop", ProviderID: "p", ModelID: "m", Agent: "build"},
		Parts: []json.RawMessage{json.RawMessage(text)},
	}
	message, err := c.PromptMessage(ctx, "ses_1", opencode.Prompt{Text: "hi", Agent: "build", Model: &sandbox.Model{ProviderID: "p", ModelID: "m"}})
	same(t, wantMessage, message, err)
	same(t, nil, nil, c.PromptAsync(ctx, "ses_1", opencode.Prompt{Text: "hi"}))
	same(t, nil, nil, c.Abort(ctx, "ses_1"))
	messages, err := c.Messages(ctx, "ses_1", 2)
	same(t, []opencode.Message{wantMessage, {
		Info: opencode.Info{
			ID: "msg_3", SessionID: "ses_1", Role: "assistant",
			Error: &opencode.Failure{Name: "APIError", Message: "invalid [31m key", StatusCode: 401},
		},
		Parts: []json.RawMessage{},
	}}, messages, err)

	status, err := c.SessionStatus(ctx)
	same(t, map[string]opencode.Status{"ses_1": {Type: "retry", Message: "scripted  500"}, "ses_2": {Type: "busy"}}, status, err)
	permissions, err := c.Permissions(ctx)
	same(t, []opencode.PermissionRequest{{ID: "per_1", SessionID: "ses_1"}}, permissions, err)
	same(t, nil, nil, c.ReplyPermission(ctx, "per_1", opencode.ReplyOnce))
	questions, err := c.Questions(ctx)
	same(t, []opencode.Question{{ID: "que_1", SessionID: "ses_1"}}, questions, err)
	same(t, nil, nil, c.RejectQuestion(ctx, "que_1"))
	agents, err := c.Agents(ctx)
	same(t, []opencode.Agent{{Name: "build"}, {Name: "title", Hidden: true}}, agents, err)
	providers, err := c.Providers(ctx)
	same(t, []opencode.Provider{{ID: "p", Models: []string{"m", "n"}}}, providers, err)
}

func TestErrorsOfOpenCodeAreTyped(t *testing.T) {
	for name, tt := range map[string]struct {
		status            int
		contentType, body string
		want              opencode.Error
	}{
		"a named error":           {404, "application/json", `{"name":"NotFoundError","data":{"message":"Session not found: ses_1"}}`, opencode.Error{Status: 404, Name: "NotFoundError", Message: "Session not found: ses_1"}},
		"a tagged error":          {404, "application/json", `{"_tag":"QuestionNotFoundError","message":"gone"}`, opencode.Error{Status: 404, Name: "QuestionNotFoundError", Message: "gone"}},
		"an error with reference": {500, "application/json", `{"name":"UnknownError","data":{"message":"Unexpected","ref":"err_1"}}`, opencode.Error{Status: 500, Name: "UnknownError", Message: "Unexpected [err_1]"}},
		"plain text":              {415, "text/plain", "Unsupported\r\n\x1b[2Jcontent", opencode.Error{Status: 415, Message: "Unsupported   [2Jcontent"}},
		"a page":                  {502, "text/html", "<html>", opencode.Error{Status: 502, Message: "bad gateway"}},
		"nothing":                 {401, "", "", opencode.Error{Status: 401, Message: "unauthorized"}},
		"a redirect":              {302, "", "", opencode.Error{Status: 302, Message: "found"}},
		"a flood":                 {500, "text/plain", strings.Repeat("x", 1<<20), opencode.Error{Status: 500, Message: strings.Repeat("x", 1997) + "…"}},
		"HTML as a success":       {200, "text/html", "<html>", opencode.Error{Status: 200, Name: opencode.NameInvalidReply}},
		"nothing as a success":    {200, "", "", opencode.Error{Status: 200, Name: opencode.NameInvalidReply}},
		"another shape":           {200, "application/json", `[1]`, opencode.Error{Status: 200, Name: opencode.NameInvalidReply}},
	} {
		t.Run(name, func(t *testing.T) {
			c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/session/ses_1" {
					t.Errorf("the client went to %s", r.URL)
				}
				w.Header().Set("Location", "/elsewhere")
				w.Header().Set("Content-Type", tt.contentType)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			_, err := c.GetSession(t.Context(), "ses_1")
			got, ok := errors.AsType[*opencode.Error](err)
			if !ok {
				t.Fatalf("error %v is not typed", err)
			}
			if tt.want.Name == opencode.NameInvalidReply {
				tt.want.Message = got.Message
			}
			same(t, tt.want, *got, nil)
			if opencode.IsNotFound(err) != (tt.status == 404) {
				t.Errorf("IsNotFound is %v", opencode.IsNotFound(err))
			}
		})
	}
}

func TestIDsOfAnotherFormAreNotSent(t *testing.T) {
	c := clientOf(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) })
	for _, id := range []string{"", "ses", "ses_/..", "..", "msg_1", "ses_1?x", "ses_1%2f", "ses_" + strings.Repeat("x", 200)} {
		_, err := c.GetSession(t.Context(), id)
		if !opencode.IsNotFound(err) {
			t.Errorf("session %q: %v", id, err)
		}
		if err := c.ReplyPermission(t.Context(), id, opencode.ReplyOnce); !opencode.IsNotFound(err) {
			t.Errorf("permission %q: %v", id, err)
		}
	}
}

// repeat yields before, then unit for ever.
type repeat struct{ before, unit string }

func (r repeat) serve(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, r.before)
	chunk := strings.Repeat(r.unit, 1+(32<<10)/len(r.unit))
	for {
		if _, err := io.WriteString(w, chunk); err != nil {
			return
		}
	}
}

func TestEndlessRepliesAreRefused(t *testing.T) {
	ask := map[string]func(*opencode.Client, context.Context) error{
		"a message": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.PromptMessage(ctx, "ses_1", opencode.Prompt{})
			return err
		},
		"messages": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.Messages(ctx, "ses_1", 0)
			return err
		},
		"agents": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.Agents(ctx)
			return err
		},
		"a status": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.SessionStatus(ctx)
			return err
		},
		"permissions": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.Permissions(ctx)
			return err
		},
		"questions": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.Questions(ctx)
			return err
		},
		"providers": func(c *opencode.Client, ctx context.Context) error {
			_, err := c.Providers(ctx)
			return err
		},
	}
	for name, tt := range map[string]struct {
		ask   string
		reply repeat
		want  string
	}{
		"a text without end":      {"a message", repeat{`{"info":{"id":"msg_1"},"parts":[{"type":"text","text":"`, "x"}, opencode.NameTooLarge},
		"parts without end":       {"a message", repeat{`{"info":{"id":"msg_1"},"parts":[1`, ",1"}, opencode.NameInvalidReply},
		"keys without end":        {"a message", repeat{`{"a":1`, `,"a":1`}, opencode.NameInvalidReply},
		"white space without end": {"agents", repeat{"", " "}, opencode.NameTooLarge},
		"messages without end":    {"messages", repeat{`[{"info":{"id":"msg_1"},"parts":[]}`, `,{"info":{"id":"msg_1"},"parts":[]}`}, opencode.NameInvalidReply},
		"statuses without end":    {"a status", repeat{`{"ses_1":{"type":"busy"}`, `,"ses_1":{"type":"busy"}`}, opencode.NameInvalidReply},
		"a status without end":    {"a status", repeat{`{"ses_1":{"type":"`, `x`}, opencode.NameTooLarge},
		"questions without end":   {"questions", repeat{`[{}`, `,{}`}, opencode.NameInvalidReply},
		"agents without end":      {"agents", repeat{`[{}`, `,{}`}, opencode.NameInvalidReply},
		"providers without end":   {"providers", repeat{`{"providers":[{}`, `,{}`}, opencode.NameInvalidReply},
		"models without end":      {"providers", repeat{`{"providers":[{"models":{"m":{}`, `,"m":{}`}, opencode.NameInvalidReply},
		"models of many":          {"providers", repeat{`{"providers":[{}`, `,{"models":{"a":0` + strings.Repeat(`,"a":0`, 100) + `}}`}, opencode.NameInvalidReply},
		"a provider without end":  {"providers", repeat{`{"providers":[{"a":0`, `,"a":0`}, opencode.NameInvalidReply},
		"permissions without end": {"permissions", repeat{`[{}`, `,{}`}, opencode.NameInvalidReply},
		"brackets without end":    {"permissions", repeat{``, `[`}, opencode.NameInvalidReply},
	} {
		t.Run(name, func(t *testing.T) {
			c := clientOf(t, tt.reply.serve)
			err := ask[tt.ask](c, t.Context())
			e, ok := errors.AsType[*opencode.Error](err)
			if !ok || e.Name != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestALostConnectionIsNotAnAnswer(t *testing.T) {
	c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"info":{"id":"msg_1"},"parts":[`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	_, err := c.PromptMessage(t.Context(), "ses_1", opencode.Prompt{})
	if _, ok := errors.AsType[*opencode.Error](err); ok || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want an unexpected end", err)
	}
	l, lerr := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if lerr != nil {
		t.Fatal(lerr)
	}
	_ = l.Close()
	_, err = opencode.New(&http.Transport{}, "http://"+l.Addr().String(), "secret").Agents(t.Context())
	if _, ok := errors.AsType[*net.OpError](err); !ok || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v, want the network's", err)
	}
}
