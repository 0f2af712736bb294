package server_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/container/internal/server"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const token = "secret"

// stub answers what a test sets.
type stub struct {
	err     error
	panics  bool
	pending bool
	grace   time.Duration
	body    string
	mode    fs.FileMode
	hold    chan struct{} // what keeps a command and a removal from ending
	begun   chan struct{}
	given   guest.Mark
	renewed int
}

func (s *stub) wait() {
	if s.hold != nil {
		s.begun <- struct{}{}
		<-s.hold
	}
}

func (s *stub) Start(context.Context, guest.StartRequest) (guest.Applied, error) {
	return guest.Applied{Written: []string{}}, s.err
}

func (s *stub) Configure(context.Context, guest.Config) (guest.Applied, error) {
	return guest.Applied{Written: []string{}, Pending: s.pending}, s.err
}

func (s *stub) Stop(_ context.Context, grace time.Duration) error { s.grace = grace; return s.err }
func (s *stub) Status() guest.OpenCode                            { return guest.OpenCode{State: guest.StateReady} }
func (s *stub) PendingConfig() bool                               { return s.pending }

func (s *stub) Busy(context.Context) []string {
	if s.panics {
		panic("a bug")
	}
	return []string{"turn: ses_1"}
}

func (s *stub) Run(_ context.Context, _ guest.ExecRequest, emit func(guest.ExecEvent) error) {
	s.wait()
	_ = emit(guest.ExecEvent{Type: guest.EventStdout, Data: []byte("hi")})
	_ = emit(guest.ExecEvent{Type: guest.EventExit, ExitCode: 3})
}

func (s *stub) OpenFile(string) (*os.File, *guest.Listing, error) {
	return nil, &guest.Listing{Entries: []guest.Entry{}}, s.err
}

func (s *stub) Write(_ string, mode fs.FileMode, content io.Reader) error {
	raw, err := io.ReadAll(content)
	s.body, s.mode = string(raw), mode
	return errors.Join(err, s.err)
}
func (s *stub) Remove(string) error { s.wait(); return s.err }

// marks is a stub's mark of the disk.
type marks struct{ s *stub }

func (m marks) Status() (guest.MarkStatus, error) {
	return guest.MarkStatus{Mark: guest.Mark{Incarnation: "abc", Generation: 2}}, m.s.err
}

func (m marks) Give(mark guest.Mark) error { m.s.given = mark; return m.s.err }
func (m marks) Renew()                     { m.s.renewed++ }

func ask(t *testing.T, s *stub, method, target, body, bearer string) (*http.Response, string) {
	t.Helper()
	srv := &server.Server{
		OpenCode: s, Commands: s, Files: s, Mark: marks{s}, Token: sha256.Sum256([]byte(token)), Log: slog.New(slog.DiscardHandler),
	}
	req := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	req.Host = "127.0.0.1:4095"
	if bearer != "" {
		req.Header.Set("Authorization", bearer)
	}
	rec := httptest.NewRecorder()
	srv.Handler().ServeHTTP(rec, req)
	return rec.Result(), rec.Body.String()
}

func TestRoutes(t *testing.T) {
	const good = "Bearer " + token
	full := &stub{err: sandbox.Errorf(sandbox.CodeDiskFull, "full")}
	for name, tc := range map[string]struct {
		stub                         *stub
		method, target, body, bearer string
		status                       int
		code                         string
	}{
		"no token":              {&stub{}, "GET", "/v1/status", "", "", 401, "unauthorized"},
		"a wrong token":         {&stub{}, "GET", "/v1/status", "", "Bearer x", 401, "unauthorized"},
		"another scheme":        {&stub{}, "GET", "/v1/status", "", "Basic " + token, 401, "unauthorized"},
		"unknown, no token":     {&stub{}, "GET", "/nope", "", "", 401, "unauthorized"},
		"unknown":               {&stub{}, "GET", "/nope", "", good, 404, "route_not_found"},
		"wrong method":          {&stub{}, "DELETE", "/v1/status", "", good, 405, "method_not_allowed"},
		"status":                {&stub{}, "GET", "/v1/status", "", good, 200, ""},
		"a panic":               {&stub{panics: true}, "GET", "/v1/status", "", good, 500, "internal"},
		"no JSON":               {&stub{}, "POST", "/v1/start", "{", good, 400, "invalid_request"},
		"a huge body":           {&stub{}, "POST", "/v1/start", strings.Repeat(" ", 33<<20), good, 413, "payload_too_large"},
		"a pending config":      {&stub{pending: true}, "PUT", "/v1/config", "{}", good, 202, ""},
		"a config":              {&stub{}, "PUT", "/v1/config", "{}", good, 200, ""},
		"an error with a code":  {full, "PUT", "/v1/files?path=a", "x", good, 503, "disk_full"},
		"an error without":      {&stub{err: errors.New("the password is x")}, "POST", "/v1/start", "{}", good, 500, "internal"},
		"a mode that is none":   {&stub{}, "PUT", "/v1/files?path=a&mode=999", "x", good, 400, "invalid_request"},
		"a mode that is setuid": {&stub{}, "PUT", "/v1/files?path=a&mode=4755", "x", good, 400, "invalid_request"},
		"an empty command":      {&stub{}, "POST", "/v1/exec", "{}", good, 400, "invalid_request"},
		"the mark":              {&stub{}, "GET", "/v1/mark", "", good, 200, ""},
		"a mark":                {&stub{}, "PUT", "/v1/mark", `{"incarnation":"a","generation":1}`, good, 204, ""},
		"a mark, disk full":     {full, "PUT", "/v1/mark", "{}", good, 503, "disk_full"},
		"a mark without JSON":   {&stub{}, "PUT", "/v1/mark", "{", good, 400, "invalid_request"},
		"a mark, no token":      {&stub{}, "PUT", "/v1/mark", "{}", "", 401, "unauthorized"},
		"a mark, wrong method":  {&stub{}, "DELETE", "/v1/mark", "", good, 405, "method_not_allowed"},
		"a removal":             {&stub{}, "DELETE", "/v1/files?path=a", "", good, 204, ""},
		"a folder":              {&stub{}, "GET", "/v1/files?path=a", "", good, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := ask(t, tc.stub, tc.method, tc.target, tc.body, tc.bearer)
			if resp.StatusCode != tc.status {
				t.Errorf("status %d: %s", resp.StatusCode, body)
			}
			if tc.code == "" {
				return
			}
			var failure guest.ErrorBody
			if err := json.Unmarshal([]byte(body), &failure); err != nil || failure.Code != tc.code || failure.Error == "" {
				t.Errorf("body %s, %v", body, err)
			}
			if strings.Contains(body, "password") {
				t.Error("the cause is shown")
			}
		})
	}
}

func TestOnlyLoopbackHostNamesAreServed(t *testing.T) {
	s := &stub{}
	srv := &server.Server{
		OpenCode: s, Commands: s, Files: s, Mark: marks{s}, Token: sha256.Sum256([]byte(token)), Log: slog.New(slog.DiscardHandler),
	}
	for host, want := range map[string]int{
		"127.0.0.1:4095": 200, "127.0.0.1": 200, "localhost:4095": 200, "LOCALHOST": 200, "[::1]:4095": 200, "[::1]": 200,
		"": 403, "evil.test": 403, "evil.test:4095": 403, "localhost.evil.test": 403, "172.18.0.5:4095": 403, "0.0.0.0:4095": 403,
	} {
		// Also without the token: what it says to a foreign name tells nothing.
		for _, bearer := range []string{"Bearer " + token, ""} {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, guest.RouteOpenCode, http.NoBody)
			req.Host = host
			req.Header.Set("Authorization", bearer)
			rec := httptest.NewRecorder()
			srv.Handler().ServeHTTP(rec, req)
			wanted := want
			if want == 200 && bearer == "" {
				wanted = 401
			}
			if rec.Code != wanted {
				t.Errorf("%q with %q: status %d, want %d", host, bearer, rec.Code, wanted)
			}
			if want == 403 && !strings.Contains(rec.Body.String(), string(sandbox.CodeForbiddenHost)) {
				t.Errorf("%q: %s", host, rec.Body)
			}
		}
	}
}

func TestCommandsAndTransfersAtOnceAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		method, target, body string
		most                 int
	}{
		"commands":  {http.MethodPost, "/v1/exec", `{"command":["x"]}`, 64},
		"transfers": {http.MethodDelete, "/v1/files?path=a", "", 32},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stub{hold: make(chan struct{}), begun: make(chan struct{})}
			handler := (&server.Server{
				OpenCode: s, Commands: s, Files: s, Mark: marks{s}, Token: sha256.Sum256([]byte(token)), Log: slog.New(slog.DiscardHandler),
			}).Handler()
			send := func() int {
				req := httptest.NewRequestWithContext(t.Context(), tc.method, tc.target, strings.NewReader(tc.body))
				req.Host = "127.0.0.1:4095"
				req.Header.Set("Authorization", "Bearer "+token)
				rec := httptest.NewRecorder()
				handler.ServeHTTP(rec, req)
				return rec.Code
			}
			answers := make(chan int, tc.most)
			for range tc.most {
				go func() { answers <- send() }()
				<-s.begun
			}
			if got := send(); got != http.StatusTooManyRequests {
				t.Errorf("one more: status %d", got)
			}
			close(s.hold)
			for range tc.most {
				if got := <-answers; got >= 300 {
					t.Errorf("status %d", got)
				}
			}
			go func() { answers <- send() }()
			<-s.begun
			if got := <-answers; got >= 300 {
				t.Errorf("afterwards: status %d", got)
			}
		})
	}
}

func TestAWriteHasAModeAndABody(t *testing.T) {
	s := &stub{}
	ask(t, s, "PUT", "/v1/files?path=a", "bytes", "Bearer "+token)
	if s.body != "bytes" || s.mode != 0o644 {
		t.Errorf("%q, %o", s.body, s.mode)
	}
	ask(t, s, "PUT", "/v1/files?path=a&mode=600", "", "Bearer "+token)
	if s.mode != 0o600 {
		t.Errorf("%o", s.mode)
	}
}

func TestAnExecIsOneObjectALine(t *testing.T) {
	_, body := ask(t, &stub{}, "POST", "/v1/exec", `{"command":["x"]}`, "Bearer "+token)
	want := `{"type":"stdout","data":"aGk="}` + "\n" + `{"type":"exit","exitCode":3}` + "\n"
	if body != want {
		t.Errorf("got %s", body)
	}
}

func TestAGraceIsBounded(t *testing.T) {
	for body, want := range map[string]time.Duration{
		"":                    2 * time.Second,
		`{"graceMs":50}`:      50 * time.Millisecond,
		`{"graceMs":9999999}`: time.Minute,
	} {
		s := &stub{}
		ask(t, s, "POST", "/v1/stop", body, "Bearer "+token)
		if s.grace != want {
			t.Errorf("%q gives %s, want %s", body, s.grace, want)
		}
	}
}

func TestTheMarkIsOneFlatObject(t *testing.T) {
	s := &stub{}
	if _, body := ask(t, s, "GET", "/v1/mark", "", "Bearer "+token); body != `{"incarnation":"abc","generation":2,"given":false}` {
		t.Errorf("got %s", body)
	}
	ask(t, s, "PUT", "/v1/mark", `{"incarnation":"x","generation":9}`, "Bearer "+token)
	if s.given != (guest.Mark{Incarnation: "x", Generation: 9}) {
		t.Errorf("given %+v", s.given)
	}
}

func TestAStopPutsTheMarkBackEvenIfItFails(t *testing.T) {
	for _, s := range []*stub{{}, {err: errors.New("a process outlived SIGKILL")}} {
		ask(t, s, "POST", "/v1/stop", "{}", "Bearer "+token)
		if s.renewed != 1 {
			t.Errorf("put back %d times", s.renewed)
		}
	}
}

func TestTokenHashes(t *testing.T) {
	for text, ok := range map[string]bool{
		strings.Repeat("ab", 32): true, strings.Repeat("AB", 32): true,
		"": false, strings.Repeat("ab", 31): false, strings.Repeat("ab", 33): false, strings.Repeat("zz", 32): false,
	} {
		if _, err := server.ParseTokenHash(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
