package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/linktest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const clientToken = "s3cret-token-of-this-test"

// newGateway makes a client of a server that speaks as far as a test needs.
func newGateway(t *testing.T, address string, settings sandbox.ClientSettings) *sandbox.GatewayClient {
	t.Helper()
	settings.BaseURL, settings.Token = address, clientToken
	c, err := sandbox.NewGateway(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestSettingsThatCannotWorkAreRefusedWithoutASecret(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ address, token, want string }{
		"no address":             {"", "t", "http://"},
		"no scheme":              {"gateway:8787", "t", "http://"},
		"another scheme":         {"ftp://gateway", "t", "http://"},
		"no host":                {"http:///x", "t", "http://"},
		"a password":             {"http://u:hunter2@gateway", "t", "no user"},
		"a password and no URL":  {"http://u:hunter2@gate way", "t", "not a URL"},
		"a query":                {"http://gateway?x=1", "t", "query"},
		"a fragment":             {"http://gateway#x", "t", "fragment"},
		"a dot segment":          {"http://gateway/a/../b", "t", "dot segment"},
		"a token with a newline": {"http://gateway", "hunter2\nX: y", "token"},
		"no token":               {"http://gateway", "", "token is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := sandbox.NewGateway(sandbox.ClientSettings{BaseURL: tt.address, Token: tt.token})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
			if _, err := sandbox.NewWorker(sandbox.ClientSettings{BaseURL: tt.address, Token: tt.token}, nil); (err == nil) != (name == "no token") {
				t.Errorf("the worker's client: %v", err)
			}
		})
	}
}

func TestWhatABackendDoesWrongIsAnErrorWithACode(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	elsewhere := serve(t, func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    sandbox.Code
		text    string // in the message
	}{
		"an error page":          {clienttest.HTMLError, sandbox.CodeBackendFailed, "answered with status 500"},
		"bare text":              {clienttest.BareError, sandbox.CodeBackendFailed, "answered with status 500"},
		"no such route":          {clienttest.PlainNotFound, sandbox.CodeRouteNotFound, "check its address"},
		"a page as a success":    {clienttest.Page, sandbox.CodeBackendFailed, "not the JSON expected"},
		"no answer":              {clienttest.Hang, sandbox.CodeDeadline, "in time"},
		"slow headers":           {clienttest.SlowHeaders, sandbox.CodeDeadline, "in time"},
		"huge headers":           {clienttest.HugeHeaders, sandbox.CodeBackendAway, "does not answer"},
		"a huge body":            {clienttest.HugeBody, sandbox.CodeBackendFailed, "larger than"},
		"a huge error":           {clienttest.HugeError, sandbox.CodeBackendFailed, "answered with status 500"},
		"a broken connection":    {clienttest.Drop, sandbox.CodeBackendAway, "does not answer"},
		"half a body":            {clienttest.CutOff, sandbox.CodeBackendAway, "broke off"},
		"a redirect":             {clienttest.Redirect(elsewhere), sandbox.CodeBackendFailed, "redirect"},
		"the token repeated":     {clienttest.EchoToken, sandbox.CodeBackendFailed, "answered with status 500"},
		"401":                    {clienttest.Status(401, ""), sandbox.CodeUnauthorized, "token"},
		"403":                    {clienttest.Status(403, ""), sandbox.CodeForbiddenHost, "token"},
		"405":                    {clienttest.Status(405, ""), sandbox.CodeMethodNotAllowed, "405"},
		"409":                    {clienttest.Status(409, ""), sandbox.CodeConflict, "409"},
		"413":                    {clienttest.Status(413, ""), sandbox.CodeTooLarge, "413"},
		"418":                    {clienttest.Status(418, ""), sandbox.CodeInvalidRequest, "418"},
		"429":                    {clienttest.Status(429, "60"), sandbox.CodeTooManyRequests, "429"},
		"503":                    {clienttest.Status(503, "60"), sandbox.CodeBackendAway, "503"},
		"504":                    {clienttest.Status(504, ""), sandbox.CodeDeadline, "504"},
		"a code of ours":         {answer(404, `{"error":"no such\u001b[31m thing","code":"snapshot_not_found"}`), sandbox.CodeSnapshotNotFound, "no such [31m thing"},
		"a code of nobody":       {answer(500, `{"error":"it burns","code":"arson"}`), sandbox.CodeBackendFailed, "it burns"},
		"an error of no code":    {answer(500, `{"success":false,"error":"FileNotFoundError","sandboxId":"x"}`), sandbox.CodeBackendFailed, "FileNotFoundError"},
		"an error of a shape":    {answer(500, `{"error":{"message":"x"}}`), sandbox.CodeBackendFailed, "500"},
		"a success that is none": {answer(200, `{"success":false}`), sandbox.CodeBackendFailed, "without success"},
		"another shape":          {answer(200, `[]`), sandbox.CodeBackendFailed, "not the JSON expected"},
		"nothing":                {answer(200, ``), sandbox.CodeBackendFailed, "not the JSON expected"},
		"no content":             {clienttest.Status(204, ""), sandbox.CodeBackendFailed, "not the JSON expected"},
	} {
		for _, dialect := range []string{"gateway", "worker"} {
			t.Run(name+" from a "+dialect, func(t *testing.T) {
				t.Parallel()
				fast := 20 * time.Second
				if tt.want == sandbox.CodeDeadline && !strings.Contains(name, "504") {
					fast = 50 * time.Millisecond
				}
				deadlines := sandbox.Deadlines{Look: fast, Boot: fast, Persist: fast, Work: fast}
				var c sandbox.Backend
				if address := serve(t, tt.handler); dialect == "gateway" {
					c = newGateway(t, address, sandbox.ClientSettings{Deadlines: deadlines})
				} else {
					c = newWorker(t, address, deadlines, nil)
				}
				_, createErr := c.Create(t.Context(), sandbox.CreateRequest{ID: "a", UserID: "u", GitURL: "https://x"})
				_, wakeErr := c.Wake(t.Context(), "a", sandbox.WakeRequest{})
				_, syncErr := c.Sync(t.Context(), "a")
				_, getErr := c.Get(t.Context(), "a")
				for call, err := range map[string]error{"create": createErr, "wake": wakeErr, "sync": syncErr, "get": getErr, "delete": c.Delete(t.Context(), "a")} {
					e, ok := errors.AsType[*sandbox.Error](err)
					if !ok || e.Code != tt.want || !strings.Contains(e.Message, tt.text) {
						t.Errorf("%s: error %v, want %s with %q", call, err, tt.want, tt.text)
					}
					if strings.Contains(fmt.Sprintf("%v %+v", err, errors.Unwrap(err)), clientToken) {
						t.Errorf("%s: the error holds the token: %v", call, err)
					}
				}
			})
		}
	}
	t.Cleanup(func() {
		if n := followed.Load(); n > 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

// answer serves one JSON reply.
func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// script is a transport that gives prepared answers, one a request.
type script struct {
	answers []func() (*http.Response, error)
	asked   int
	paths   []string
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	s.paths = append(s.paths, req.Method+" "+req.URL.Path)
	next := s.answers[min(s.asked, len(s.answers)-1)]
	s.asked++
	return next()
}

func says(status int, body string, header ...string) func() (*http.Response, error) {
	return func() (*http.Response, error) {
		rec := httptest.NewRecorder()
		for i := 0; i < len(header); i += 2 {
			rec.Header().Set(header[i], header[i+1])
		}
		rec.WriteHeader(status)
		_, _ = rec.WriteString(body)
		return rec.Result(), nil
	}
}

func breaks() (*http.Response, error) {
	return nil, errors.New("connection reset by peer, it said " + clientToken)
}

const success = `{"success":true,"sandboxId":"a","deleted":"a","status":"running"}`

func TestWhatIsSafeIsTriedAgain(t *testing.T) {
	t.Parallel()
	type answers = []func() (*http.Response, error)
	for name, tt := range map[string]struct {
		answers  answers
		tries    int
		code     sandbox.Code // of the error; empty for a success
		at, most time.Duration
	}{
		"a success":                    {answers{says(200, success)}, 1, "", 0, 0},
		"a broken connection":          {answers{breaks, says(200, success)}, 2, "", 100 * time.Millisecond, 201 * time.Millisecond},
		"two of them":                  {answers{breaks, breaks, says(200, success)}, 3, "", 300 * time.Millisecond, 602 * time.Millisecond},
		"three of them":                {answers{breaks}, 3, sandbox.CodeBackendAway, 300 * time.Millisecond, 602 * time.Millisecond},
		"503":                          {answers{says(503, ""), says(200, success)}, 2, "", 100 * time.Millisecond, 201 * time.Millisecond},
		"429 with patience":            {answers{says(429, "", "Retry-After", "7"), says(200, success)}, 2, "", 7 * time.Second, 7 * time.Second},
		"429 with too much patience":   {answers{says(429, "", "Retry-After", "11")}, 1, sandbox.CodeTooManyRequests, 0, 0},
		"503 for longer than is left":  {answers{says(503, "", "Retry-After", "9"), says(503, "", "Retry-After", "9"), says(503, "", "Retry-After", "9")}, 2, sandbox.CodeBackendAway, 9 * time.Second, 9 * time.Second},
		"a 502 of something between":   {answers{says(502, "<html>"), says(200, success)}, 2, "", 100 * time.Millisecond, 201 * time.Millisecond},
		"a 502 of the backend":         {answers{says(502, `{"error":"x","code":"boot_failed"}`)}, 1, sandbox.CodeBootFailed, 0, 0},
		"500":                          {answers{says(500, "")}, 1, sandbox.CodeBackendFailed, 0, 0},
		"404":                          {answers{says(404, `{"error":"x","code":"sandbox_not_found"}`)}, 1, sandbox.CodeSandboxNotFound, 0, 0},
		"nonsense":                     {answers{says(200, "x")}, 1, sandbox.CodeBackendFailed, 0, 0},
		"an answer broken off, then 1": {answers{says(503, "", "Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT"), says(200, success)}, 2, "", 100 * time.Millisecond, 201 * time.Millisecond},
	} {
		for call, do := range map[string]func(context.Context, sandbox.Backend) error{
			"get":    func(ctx context.Context, c sandbox.Backend) error { _, err := c.Get(ctx, "a"); return err },
			"delete": func(ctx context.Context, c sandbox.Backend) error { return c.Delete(ctx, "a") },
			"wake": func(ctx context.Context, c sandbox.Backend) error {
				_, err := c.Wake(ctx, "a", sandbox.WakeRequest{})
				return err
			},
			"ui's end": func(ctx context.Context, c sandbox.Backend) error { return c.EndUI(ctx, "a", "s") },
			"sync":     func(ctx context.Context, c sandbox.Backend) error { _, err := c.Sync(ctx, "a"); return err },
			"create": func(ctx context.Context, c sandbox.Backend) error {
				_, err := c.Create(ctx, sandbox.CreateRequest{ID: "a", UserID: "u"})
				return err
			},
		} {
			t.Run(name+" on "+call, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &script{answers: tt.answers}
					all := 15 * time.Second
					c := newGateway(t, "http://gateway.test", sandbox.ClientSettings{
						Transport: s, Deadlines: sandbox.Deadlines{Look: all, Boot: all, Persist: all},
					})
					began := time.Now()
					err := do(t.Context(), c)
					took := time.Since(began)
					if s.asked != tt.tries || took < tt.at || took > tt.most {
						t.Errorf("%d tries in %s, want %d in %s to %s", s.asked, took, tt.tries, tt.at, tt.most)
					}
					if tt.code == "" && err != nil || tt.code != "" && !sandbox.HasCode(err, tt.code) {
						t.Errorf("error %v, want %q", err, tt.code)
					}
					if err != nil && strings.Contains(err.Error(), clientToken) {
						t.Errorf("the error holds the token: %v", err)
					}
				})
			})
		}
	}
}

func TestWhatIsNotSafeIsTriedOnce(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(context.Context, sandbox.Backend) error{
		"a create that clones": func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Create(ctx, sandbox.CreateRequest{ID: "a", UserID: "u", GitURL: "https://git.test/x.git"})
			return err
		},
		"a message": func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Message(ctx, "a", sandbox.MessageRequest{Message: "x"})
			return err
		},
		"a hibernate": func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Hibernate(ctx, "a", sandbox.HibernateRequest{})
			return err
		},
		"a command": func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Exec(ctx, "a", sandbox.ExecRequest{Command: []string{"x"}})
			return err
		},
		"a file's writing": func(ctx context.Context, c sandbox.Backend) error {
			return c.WriteFile(ctx, "a", "x", 0, strings.NewReader("x"), 1)
		},
		"a file's deletion": func(ctx context.Context, c sandbox.Backend) error { return c.DeleteFile(ctx, "a", "x") },
		"a health probe":    func(ctx context.Context, c sandbox.Backend) error { return c.Health(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, answers := range [][]func() (*http.Response, error){{breaks}, {says(503, "")}} {
				s := &script{answers: answers}
				c := newGateway(t, "http://gateway.test", sandbox.ClientSettings{Transport: s})
				if err := do(t.Context(), c); !sandbox.HasCode(err, sandbox.CodeBackendAway) {
					t.Errorf("error %v", err)
				}
				if s.asked != 1 {
					t.Errorf("asked %d times: %v", s.asked, s.paths)
				}
			}
		})
	}
}

func TestACallerThatGivesUpEndsAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: []func() (*http.Response, error){says(503, "", "Retry-After", "5")}}
		c := newGateway(t, "http://gateway.test", sandbox.ClientSettings{Transport: s})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := c.Get(ctx, "a")
		e, ok := errors.AsType[*sandbox.Error](err)
		if !ok || e.RetryAfter != 5*time.Second || time.Since(began) != time.Second || s.asked != 1 {
			t.Errorf("after %s and %d tries: %v", time.Since(began), s.asked, err)
		}
	})
}

func TestListsWithoutEndAreRefused(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("{},", 20_000) + "{}"
	for name, tt := range map[string]struct {
		body string
		do   func(context.Context, sandbox.Backend) error
	}{
		"parts": {`{"sessionId":"ses_1","response":"x","parts":[` + many + `]}`, func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Message(ctx, "a", sandbox.MessageRequest{Message: "x"})
			return err
		}},
		"sandboxes": {`{"sandboxes":[` + many + `]}`, func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.List(ctx, sandbox.ListOptions{})
			return err
		}},
		"snapshots": {`{"snapshots":[` + many + `]}`, func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.Snapshots(ctx, "a")
			return err
		}},
		"entries": {`{"entries":[` + many + `]}`, func(ctx context.Context, c sandbox.Backend) error {
			_, err := c.ListFiles(ctx, "a", "")
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newGateway(t, serve(t, answer(200, tt.body)), sandbox.ClientSettings{})
			if err := tt.do(t.Context(), c); !sandbox.HasCode(err, sandbox.CodeBackendFailed) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestAFileThatEndsEarlyIsAnError(t *testing.T) {
	t.Parallel()
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		switch r.URL.Path {
		case "/sandbox/a/files/short":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "abc")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/sandbox/a/files/stuck":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "abc")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_ = http.NewResponseController(w).Flush()
		}
	})
	c := newGateway(t, address, sandbox.ClientSettings{Deadlines: sandbox.Deadlines{Transfer: 2 * time.Second}})
	for path, want := range map[string]sandbox.Code{"short": sandbox.CodeBackendAway, "stuck": sandbox.CodeDeadline} {
		file, err := c.ReadFile(t.Context(), "a", path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(file.Body)
		if string(got) != "abc" || !sandbox.HasCode(err, want) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.ReadFile(t.Context(), "a", "no size"); !sandbox.HasCode(err, sandbox.CodeBackendFailed) {
		t.Errorf("a file without a size: %v", err)
	}
}

func TestAnUploadWhoseSourceFailsSaysSo(t *testing.T) {
	t.Parallel()
	c := newGateway(t, serve(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }), sandbox.ClientSettings{})
	broken := io.MultiReader(strings.NewReader("abc"), brokenReader{})
	if err := c.WriteFile(t.Context(), "a", "x", 0o644, broken, 10); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, fs.ErrClosed }

func TestTheTransportIsAReverseProxysAndKeepsWhatIsOurs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for name, want := range map[string]string{"Authorization": "Bearer " + clientToken, "Cookie": "", "X-Opencode-Directory": "/w", "Accept-Encoding": ""} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if r.RequestURI != "/base/sandbox/a/opencode/file%2Fname?directory=%2F&x" || r.Host == "api.test" {
			t.Errorf("asked for %s at %s", r.RequestURI, r.Host)
		}
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = io.WriteString(w, "last\n")
	})
	transport, base, err := newGateway(t, address+"/base/", sandbox.ClientSettings{}).OpenCode("a")
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = "api.test"
		},
	})
	t.Cleanup(front.Close)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, front.URL+"/file%2Fname?directory=%2F&x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Cookie": "session=1", "Authorization": "Bearer of-the-user", "X-Opencode-Directory": "/w"} {
		req.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first\n" {
		t.Fatalf("%q %v: it was held back", first, err)
	}
	close(release)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "last\n" {
		t.Errorf("%q %v", rest, err)
	}
	if req.Header.Get("Authorization") != "Bearer of-the-user" {
		t.Error("the caller's request was changed")
	}
}

func TestTheTransportIsForOneSandboxAtOneBackend(t *testing.T) {
	t.Parallel()
	s := &script{answers: []func() (*http.Response, error){says(200, "")}}
	transport, base, err := newGateway(t, "http://gateway.test/base", sandbox.ClientSettings{Transport: s}).OpenCode("a")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*http.Request){
		"another host":              func(r *http.Request) { r.URL.Host = "evil.test" },
		"another scheme":            func(r *http.Request) { r.URL.Scheme = "https" },
		"another sandbox":           func(r *http.Request) { r.URL.Path = "/base/sandbox/b/opencode/session" },
		"an id that begins alike":   func(r *http.Request) { r.URL.Path = "/base/sandbox/ab/opencode" },
		"a name that begins alike":  func(r *http.Request) { r.URL.Path += "x" },
		"another route":             func(r *http.Request) { r.URL.Path = "/base/sandbox/a" },
		"an opaque address":         func(r *http.Request) { r.URL.Opaque = "/base/sandbox/b" },
		"a user":                    func(r *http.Request) { r.URL.User = url.User("x") },
		"a raw path of its own":     func(r *http.Request) { r.URL.Path += "/../.."; r.URL.RawPath = base + "/%2e%2e/%2e%2e" },
		"a CONNECT":                 func(r *http.Request) { r.Method = http.MethodConnect },
		"a query with a line break": func(r *http.Request) { r.URL.RawQuery = "a\r\nX: y" },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		change(req)
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !sandbox.HasCode(err, sandbox.CodeInvalidPath) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if s.asked != 0 {
		t.Errorf("sent %v", s.paths)
	}
}

func TestOfTwoThatAnswerOnOpenCodesPathTheGatewayIsKnownByItsMark(t *testing.T) {
	t.Parallel()
	const words = `{"error":"there is no sandbox","code":"sandbox_not_found"}`
	answers := map[string]struct {
		status int
		mark   string
		want   sandbox.Code // empty: OpenCode's own, passed on
	}{
		"the gateway's 404":  {404, "sandbox_not_found", sandbox.CodeSandboxNotFound},
		"OpenCode's 404":     {404, "", ""},
		"the gateway's 503":  {503, "sandbox_not_found", sandbox.CodeSandboxNotFound},
		"OpenCode's success": {200, "", ""},
	}
	for name, c := range answers {
		address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if c.mark != "" {
				w.Header().Set(sandbox.ErrorHeader, c.mark)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, words)
		})
		gateway, base, err := newGateway(t, address, sandbox.ClientSettings{}).OpenCode("a")
		if err != nil {
			t.Fatal(err)
		}
		get := func(to http.RoundTripper, base string) (int, string, error) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/session", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := to.RoundTrip(req)
			if err != nil {
				return 0, "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body), err
		}
		status, body, err := get(gateway, base)
		switch {
		case c.want != "" && (!sandbox.HasCode(err, c.want) || !strings.Contains(err.Error(), "there is no sandbox")):
			t.Errorf("%s: %d %v", name, status, err)
		case c.want == "" && (err != nil || status != c.status || body != words):
			t.Errorf("%s: %d %q %v", name, status, body, err)
		}
		// A worker passes on whatever a sandbox says, so there the mark means nothing.
		worker, err := sandbox.NewWorker(sandbox.ClientSettings{BaseURL: address}, nil)
		if err != nil {
			t.Fatal(err)
		}
		to, base, err := worker.OpenCode("a")
		if err != nil {
			t.Fatal(err)
		}
		if status, body, err := get(to, base); err != nil || status != c.status || body != words {
			t.Errorf("%s, from a worker: %d %q %v", name, status, body, err)
		}
		if err := worker.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestADeadlineTakesTheSilentConnectionsWithIt(t *testing.T) {
	t.Parallel()
	address := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"status":"ok"}`) })
	link := linktest.Start(t, "tcp", strings.TrimPrefix(address, "http://"))
	c := newGateway(t, "http://"+link.Address(), sandbox.ClientSettings{Deadlines: sandbox.Deadlines{Probe: 2 * time.Second}})
	crowd := func() {
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if err := c.Health(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	crowd()
	link.Silence()
	if err := c.Health(t.Context()); !sandbox.HasCode(err, sandbox.CodeDeadline) {
		t.Fatalf("while nothing is heard: %v", err)
	}
	link.Speak()
	crowd()
	if n := link.Late(); n != 0 {
		t.Errorf("%d requests after the silence were sent on connections that it had cut", n)
	}
}
