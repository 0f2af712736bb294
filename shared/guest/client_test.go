package guest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake serves a guest that a test makes up.
func fake(t *testing.T, handle http.HandlerFunc) *guest.Client {
	t.Helper()
	srv := httptest.NewServer(handle)
	transport := &http.Transport{MaxResponseHeaderBytes: 64 << 10}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		srv.CloseClientConnections()
		srv.Close()
	})
	return guest.NewClient(transport, srv.URL, "tok")
}

func wantCode(t *testing.T, err error, code sandbox.Code) {
	t.Helper()
	if !sandbox.HasCode(err, code) {
		t.Errorf("got %v, want %s", err, code)
	}
}

// flood writes without end.
func flood(w io.Writer, piece string) {
	for {
		if _, err := io.WriteString(w, piece); err != nil {
			return
		}
	}
}

// drip writes a byte now and then, without end.
func drip(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// calls are all methods, so that each hostile guest meets each of them.
func calls(c *guest.Client) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"status": func(ctx context.Context) error { _, err := c.Status(ctx); return err },
		"start":  func(ctx context.Context) error { _, err := c.Start(ctx, guest.StartRequest{}); return err },
		"config": func(ctx context.Context) error { _, err := c.PutConfig(ctx, guest.Config{}); return err },
		"stop":   func(ctx context.Context) error { _, err := c.Stop(ctx, guest.StopRequest{}); return err },
		"exec": func(ctx context.Context) error {
			return c.Exec(ctx, guest.ExecRequest{Command: []string{"x"}}, func(guest.ExecEvent) error { return nil })
		},
		"read": func(ctx context.Context) error {
			f, err := c.ReadFile(ctx, "x")
			if err != nil {
				return err
			}
			defer f.Close()
			if f.Body != nil {
				_, err = io.Copy(io.Discard, f.Body)
			}
			return err
		},
	}
}

func TestHostileGuests(t *testing.T) {
	for name, tc := range map[string]struct {
		handle http.HandlerFunc
		code   sandbox.Code
	}{
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				t.Error("a redirect was followed")
			}
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, sandbox.CodeGuestFailed},
		"sends huge headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}, sandbox.CodeGuestFailed},
		"floods": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "directory")
			flood(w, strings.Repeat("x", 32<<10))
		}, sandbox.CodeGuestFailed},
		"floods with an error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			flood(w, strings.Repeat("x", 32<<10))
		}, sandbox.CodeGuestFailed},
		"drips": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(guest.TypeHeader, "directory")
			drip(w, r)
		}, sandbox.CodeDeadline},
		"drips an error": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			drip(w, r)
		}, sandbox.CodeDeadline},
		"never answers": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // or the server does not notice that the client left
			<-r.Context().Done()
		}, sandbox.CodeDeadline},
		"answers with HTML": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html>")
		}, sandbox.CodeGuestFailed},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, sandbox.CodeGuestFailed},
		"passes for the gateway": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"error":"mine","code":"owner_conflict"}`)
		}, sandbox.CodeGuestFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for method, call := range calls(fake(t, tc.handle)) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				began := time.Now()
				err := call(ctx)
				cancel()
				if !sandbox.HasCode(err, tc.code) {
					t.Errorf("%s: got %v, want %s", method, err, tc.code)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("%s took %s", method, took)
				}
			}
		})
	}
}

func TestAFloodDoesNotGrowMemory(t *testing.T) {
	event := `{"type":"stdout","data":"` + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 32<<10)) + "\"}\n"
	c := fake(t, func(w http.ResponseWriter, _ *http.Request) { flood(w, event) })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var got int64
	err := c.Exec(t.Context(), guest.ExecRequest{Command: []string{"x"}, MaxOutput: 16 << 20}, func(e guest.ExecEvent) error {
		got += int64(len(e.Data))
		return nil
	})
	wantCode(t, err, sandbox.CodeGuestFailed)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got > 16<<20 {
		t.Errorf("%d bytes came through", got)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestExecStreams(t *testing.T) {
	exit := `{"type":"exit","exitCode":3}` + "\n"
	for name, tc := range map[string]struct {
		body string
		code sandbox.Code
	}{
		"well-formed":              {`{"type":"stdout","data":"aGk="}` + "\n" + exit, ""},
		"an unknown event":         {`{"type":"later"}` + "\n" + exit, ""},
		"no exit":                  {`{"type":"stdout","data":"aGk="}` + "\n", sandbox.CodeGuestFailed},
		"nothing":                  {"", sandbox.CodeGuestFailed},
		"no JSON":                  {"hello\n" + exit, sandbox.CodeGuestFailed},
		"a line beyond its bound":  {`{"type":"stdout","data":"` + strings.Repeat("A", 300<<10) + `"}` + "\n" + exit, sandbox.CodeGuestFailed},
		"a stream beyond its most": {strings.Repeat(`{"type":"stderr","data":"`+strings.Repeat("A", 100<<10)+`"}`+"\n", 20) + exit, sandbox.CodeGuestFailed},
		"empty events for ever":    {strings.Repeat(`{"type":"stdout"}`+"\n", 1<<20), sandbox.CodeGuestFailed},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.body) })
			var last guest.ExecEvent
			req := guest.ExecRequest{Command: []string{"x"}, MaxOutput: 64 << 10}
			err := c.Exec(t.Context(), req, func(e guest.ExecEvent) error { last = e; return nil })
			if tc.code != "" {
				wantCode(t, err, tc.code)
				return
			}
			if err != nil || last.Type != "exit" || last.ExitCode != 3 {
				t.Errorf("%v, last %+v", err, last)
			}
		})
	}
}

func TestAnErrorOfTheCallerEndsAnExec(t *testing.T) {
	c := fake(t, func(w http.ResponseWriter, _ *http.Request) { flood(w, `{"type":"stdout","data":"aGk="}`+"\n") })
	enough := errors.New("enough")
	err := c.Exec(t.Context(), guest.ExecRequest{Command: []string{"x"}}, func(guest.ExecEvent) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsOfSandboxdKeepCodeAndWords(t *testing.T) {
	for _, code := range []sandbox.Code{
		sandbox.CodeInvalidRequest, sandbox.CodeFileNotFound, sandbox.CodeConfigRejected, sandbox.CodeBootFailed,
		sandbox.CodeOpenCodeDown, sandbox.CodeDiskFull, sandbox.CodeConflict, sandbox.CodeTooLarge, sandbox.CodeDeadline,
		sandbox.CodeTooManyRequests,
	} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code.Status())
			_, _ = fmt.Fprintf(w, `{"error":"what\u001b[31m happened %s","code":%q}`, strings.Repeat("x", 10<<10), code)
		})
		for method, call := range calls(c) {
			err := call(t.Context())
			wantCode(t, err, code)
			failure, ok := errors.AsType[*sandbox.Error](err)
			if !ok || !strings.HasPrefix(failure.Message, "what [31m happened xxx") || len(failure.Message) > 4<<10 {
				t.Errorf("%s: %v", method, err)
			}
		}
	}
}

func TestAFileIsExactlyAsLongAsAnnounced(t *testing.T) {
	for name, tc := range map[string]struct {
		handle http.HandlerFunc
		want   string
		code   sandbox.Code
	}{
		"as announced": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "file")
			_, _ = io.WriteString(w, "bytes")
		}, "bytes", ""},
		"empty": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "file")
			w.Header().Set("Content-Length", "0")
		}, "", ""},
		"shorter": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "file")
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "bytes")
		}, "bytes", sandbox.CodeGuestFailed},
		"unannounced": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "file")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "bytes")
		}, "", sandbox.CodeGuestFailed},
		"longer": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Sandbox-Entry: file\r\nContent-Length: 5\r\n\r\nbytesMORE")
		}, "bytes", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := fake(t, tc.handle).ReadFile(t.Context(), "x")
			var got []byte
			if err == nil {
				got, err = io.ReadAll(f.Body)
				_ = f.Close()
			}
			if string(got) != tc.want {
				t.Errorf("got %q", got)
			}
			if tc.code != "" {
				wantCode(t, err, tc.code)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAListingIsBounded(t *testing.T) {
	c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(guest.TypeHeader, "directory")
		_, _ = io.WriteString(w, `{"entries":[{}`+strings.Repeat(",{}", guest.MaxEntries+50)+`]}`)
	})
	f, err := c.ReadFile(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Listing.Entries) != guest.MaxEntries || !f.Listing.Truncated {
		t.Errorf("%d entries, truncated %v", len(f.Listing.Entries), f.Listing.Truncated)
	}
}

func TestAListingOfMillionsCostsNoMoreThanItsBytes(t *testing.T) {
	c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(guest.TypeHeader, "directory")
		_, _ = io.WriteString(w, `{"entries":[{}`+strings.Repeat(",{}", 2_500_000)+`]}`)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := c.ReadFile(t.Context(), "x")
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Listing.Entries) != guest.MaxEntries || !f.Listing.Truncated {
		t.Errorf("%d entries, truncated %v", len(f.Listing.Entries), f.Listing.Truncated)
	}
	// All entries would be 200 MB, and as much again while the slice grows.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 150<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

func TestWhatIsNoListingIsRefused(t *testing.T) {
	for _, body := range []string{`[]`, `{"entries":5}`, `{"entries":{"a":1}}`, `{"entries":[5]}`} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(guest.TypeHeader, "directory")
			_, _ = io.WriteString(w, body)
		})
		_, err := c.ReadFile(t.Context(), "x")
		wantCode(t, err, sandbox.CodeGuestFailed)
	}
}

func TestRequestsCarryTokenPathAndMode(t *testing.T) {
	c := fake(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer tok" || r.URL.Query().Get("path") != "a b/ü&?.txt" ||
			r.URL.Query().Get("mode") != "755" || string(body) != "bytes" || r.ContentLength != 5 {
			t.Errorf("%s %s, %q, length %d", r.Method, r.URL, body, r.ContentLength)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := c.WriteFile(t.Context(), "a b/ü&?.txt", 0o755, strings.NewReader("bytes"), 5); err != nil {
		t.Error(err)
	}
}

func TestRunCollectsTheOutput(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		want sandbox.ExecResponse
		code sandbox.Code
	}{
		"both streams": {
			`{"type":"stdout","data":"aGk="}` + "\n" + `{"type":"stderr","data":"bm8="}` + "\n" + `{"type":"stdout","data":"IQ=="}` + "\n" + `{"type":"exit","exitCode":3,"truncated":true,"timedOut":true}` + "\n",
			sandbox.ExecResponse{ExitCode: 3, Stdout: "hi!", Stderr: "no", Truncated: true, TimedOut: true},
			"",
		},
		"a rune over two events and bytes that are none": {
			`{"type":"stdout","data":"w/8="}` + "\n" + `{"type":"stderr","data":"ww=="}` + "\n" + `{"type":"stderr","data":"qQ=="}` + "\n" + `{"type":"exit"}` + "\n",
			sandbox.ExecResponse{Stdout: "\uFFFD", StdoutBase64: []byte("\xc3\xff"), Stderr: "é"},
			"",
		},
		"what could not be started": {
			`{"type":"exit","exitCode":127,"error":"no\u001bsuch\u202eprogram"}` + "\n",
			sandbox.ExecResponse{ExitCode: 127, Stderr: "no such program"},
			"",
		},
		"an error after output": {
			`{"type":"stderr","data":"bm8="}` + "\n" + `{"type":"exit","exitCode":1,"error":"gone"}` + "\n",
			sandbox.ExecResponse{ExitCode: 1, Stderr: "no\ngone"},
			"",
		},
		"no exit": {`{"type":"stdout","data":"aGk="}` + "\n", sandbox.ExecResponse{Stdout: "hi"}, sandbox.CodeGuestFailed},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.body) })
			got, err := c.Run(t.Context(), guest.ExecRequest{Command: []string{"x"}})
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if tc.code != "" {
				wantCode(t, err, tc.code)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatAGuestSaysOfItselfIsCleaned(t *testing.T) {
	bad, long := `a\u001b[2J\u202eb`, strings.Repeat("x", 5000)
	oc := `{"state":"owner","version":"` + bad + long + `","lastExit":"` + bad + long + `","pid":-1,"restarts":-1}`
	reasons := strings.Repeat(`"`+bad+long+`",`, 99) + `"x"`
	c := fake(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case guest.RouteStatus, guest.RouteStop:
			_, _ = io.WriteString(w, `{"opencode":`+oc+`,"busy":true,"reasons":[`+reasons+`]}`)
		case guest.RouteOpenCode:
			_, _ = io.WriteString(w, oc)
		default:
			_, _ = io.WriteString(w, `{"written":["`+bad+long+`"],"version":"`+bad+long+`"}`)
		}
	})
	ctx := t.Context()
	clean := func(what, text string, limit int) {
		t.Helper()
		if !strings.HasPrefix(text, "a [2J bxxx") || !strings.HasSuffix(text, "…") || len(text) > limit {
			t.Errorf("%s: %d bytes: %.40q", what, len(text), text)
		}
	}
	state := func(what string, got guest.OpenCode, err error) {
		t.Helper()
		if err != nil || got.State != guest.StateUnknown || got.PID != 0 || got.Restarts != 0 {
			t.Errorf("%s: %v, %+v", what, err, got)
		}
		clean(what, got.Version, 64)
		clean(what, got.LastExit, 256)
	}
	got, err := c.OpenCode(ctx)
	state("opencode", got, err)
	status, err := c.Status(ctx)
	state("status", status.OpenCode, err)
	if len(status.Reasons) != 32 {
		t.Errorf("%d reasons", len(status.Reasons))
	}
	for _, reason := range status.Reasons {
		clean("reason", reason, 256)
	}
	status, err = c.Stop(ctx, guest.StopRequest{})
	state("stop", status.OpenCode, err)
	for what, call := range map[string]func() (guest.Applied, error){
		"start":  func() (guest.Applied, error) { return c.Start(ctx, guest.StartRequest{}) },
		"config": func() (guest.Applied, error) { return c.PutConfig(ctx, guest.Config{}) },
	} {
		applied, err := call()
		if err != nil {
			t.Fatal(err)
		}
		clean(what, applied.Version, 64)
		clean(what, applied.Written[0], 512)
	}
}

func TestAStateThatSandboxdKnowsIsKept(t *testing.T) {
	for _, state := range []string{guest.StateStopped, guest.StateStarting, guest.StateReady, guest.StateRestarting} {
		c := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, `{"state":%q}`, state) })
		if got, err := c.OpenCode(t.Context()); err != nil || got.State != state {
			t.Errorf("%s: %+v, %v", state, got, err)
		}
	}
}
