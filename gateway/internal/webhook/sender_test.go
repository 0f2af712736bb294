package webhook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/webhook"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	token    = "s3cret-token"
	deadline = 20 * time.Second
)

type received struct {
	Method, Path, Authorization, ContentType string
	Event                                    sandbox.Event
	Data                                     map[string]any
	Timestamp                                string
}

func (r received) sandbox() string { return fmt.Sprint(r.Data["sandboxId"]) }

// api is a receiver that decides over each request and keeps what it took.
type api struct {
	*httptest.Server
	mu    sync.Mutex
	tries int
	taken []received
}

// serve runs a receiver. decide gives the status for the n-th request, from 1,
// or 0 when it has answered itself. It may block and set headers.
func serve(t *testing.T, decide func(n int, w http.ResponseWriter, r *http.Request, got received) int) *api {
	t.Helper()
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Event     sandbox.Event
			Data      map[string]any
			Timestamp string
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		got := received{r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), body.Event, body.Data, body.Timestamp}
		a.mu.Lock()
		a.tries++
		n := a.tries
		a.mu.Unlock()
		status := decide(n, w, r, got)
		if status/100 == 2 {
			a.mu.Lock()
			a.taken = append(a.taken, got)
			a.mu.Unlock()
		}
		if status != 0 {
			w.WriteHeader(status)
		}
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) got() []received {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.taken)
}

func (a *api) attempts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tries
}

func always(status int) func(int, http.ResponseWriter, *http.Request, received) int {
	return func(int, http.ResponseWriter, *http.Request, received) int { return status }
}

// fast are settings whose waits a test can sit through.
func fast(url string) webhook.Settings {
	return webhook.Settings{URL: url, Token: token, FirstWait: time.Millisecond, MaxWait: 5 * time.Millisecond}
}

func start(t *testing.T, s webhook.Settings, log *slog.Logger) *webhook.Sender {
	t.Helper()
	sender, err := webhook.New(s, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // what a test left over is not waited for
		_ = sender.Close(ctx)
	})
	return sender
}

func drain(t *testing.T, s *webhook.Sender) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := s.Close(ctx); err != nil || ctx.Err() != nil {
		t.Fatal("it did not end by itself: ", err, ctx.Err())
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("never came: " + what)
		}
	}
}

func TestAnEventArrivesAsTheContractSays(t *testing.T) {
	a := serve(t, always(http.StatusOK))
	s := start(t, fast(a.URL+"/"), nil)
	data := map[string]any{"userId": "user_1", "filesWritten": 2, "provider": "other"}
	s.Send("box-1", "inc-1", sandbox.EventSandboxCreated, data)
	data["userId"] = "changed later"
	drain(t, s)
	got := a.got()
	if len(got) != 1 {
		t.Fatalf("%d events", len(got))
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", got[0].Timestamp); err != nil {
		t.Error(err)
	}
	got[0].Timestamp = ""
	want := received{
		Method: http.MethodPost, Path: "/api/v2/cloudflare/webhook", Authorization: "Bearer " + token, ContentType: "application/json",
		Event: sandbox.EventSandboxCreated,
		Data:  map[string]any{"sandboxId": "box-1", "userId": "user_1", "filesWritten": 2.0, "provider": "docker"},
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Error(diff)
	}
	if st := s.Stats(); st != (webhook.Stats{Sent: 1}) {
		t.Errorf("stats %+v", st)
	}
}

func TestEventsHaveTheFormOfTheWorkersOwn(t *testing.T) {
	// testdata/webhooks.json is what the worker was seen to send.
	b, err := os.ReadFile(filepath.Join("testdata", "webhooks.json"))
	if err != nil {
		t.Fatal(err)
	}
	var fixtures map[sandbox.Event]struct {
		Method, Path string
		Headers      map[string]string
		Body         struct {
			Event     sandbox.Event
			Data      map[string]any
			Timestamp string
		}
	}
	if err := json.Unmarshal(b, &fixtures); err != nil {
		t.Fatal(err)
	}
	if len(fixtures) == 0 {
		t.Fatal("no fixtures")
	}
	a := serve(t, always(http.StatusOK))
	s := start(t, fast(a.URL), nil)
	for event, f := range fixtures {
		s.Send(fmt.Sprint(f.Body.Data["sandboxId"]), "", event, f.Body.Data)
	}
	drain(t, s)
	for _, got := range a.got() {
		f := fixtures[got.Event]
		f.Body.Data["provider"] = "docker" // the one thing that differs
		if diff := cmp.Diff(f.Body.Data, got.Data); diff != "" {
			t.Errorf("%s: %s", got.Event, diff)
		}
		auth := strings.ReplaceAll(f.Headers["authorization"], "<AGENTPOD_API_TOKEN>", token)
		if got.Method != f.Method || got.Path != f.Path || got.Authorization != auth || got.ContentType != f.Headers["content-type"] ||
			len(got.Timestamp) != len(f.Body.Timestamp) {
			t.Errorf("%+v", got)
		}
	}
	if len(a.got()) != len(fixtures) {
		t.Errorf("%d of %d events", len(a.got()), len(fixtures))
	}
}

func TestEventsOfASandboxKeepTheirOrderThroughFailures(t *testing.T) {
	a := serve(t, func(n int, _ http.ResponseWriter, _ *http.Request, _ received) int {
		return []int{500, 200, 502, 429, 200}[n%5]
	})
	s := start(t, fast(a.URL), nil)
	const each = 30
	for i := range each {
		for _, id := range []string{"a", "b", "c"} {
			s.Send(id, "", sandbox.EventSessionMessage, map[string]any{"n": i})
		}
	}
	drain(t, s)
	next := map[string]float64{}
	for _, got := range a.got() {
		if got.Data["n"] != next[got.sandbox()] {
			t.Fatalf("sandbox %s: event %v came when %v was next", got.sandbox(), got.Data["n"], next[got.sandbox()])
		}
		next[got.sandbox()]++
	}
	if st := s.Stats(); st != (webhook.Stats{Sent: 3 * each}) {
		t.Errorf("stats %+v", st)
	}
}

func TestASandboxWhoseEventHangsHoldsUpNoOther(t *testing.T) {
	a := serve(t, func(_ int, _ http.ResponseWriter, r *http.Request, got received) int {
		if got.sandbox() == "stuck" {
			<-r.Context().Done()
		}
		return http.StatusOK
	})
	settings := fast(a.URL)
	settings.AttemptTimeout, settings.Concurrency = deadline, 2
	s := start(t, settings, nil)
	s.Send("stuck", "", sandbox.EventSandboxCreated, nil)
	await(t, "the stuck request", func() bool { return a.attempts() == 1 })
	for i := range 20 {
		s.Send(fmt.Sprint("fine-", i), "", sandbox.EventSandboxCreated, nil)
	}
	await(t, "the others' events", func() bool { return s.Stats() == webhook.Stats{Sent: 20, Queued: 1} })
}

func TestRequestsUnderWayAreBounded(t *testing.T) {
	release := make(chan struct{})
	a := serve(t, func(int, http.ResponseWriter, *http.Request, received) int {
		<-release
		return http.StatusOK
	})
	settings := fast(a.URL)
	settings.Concurrency = 3
	s := start(t, settings, nil)
	for i := range 10 {
		s.Send(fmt.Sprint(i), "", sandbox.EventSandboxCreated, nil)
	}
	await(t, "three requests", func() bool { return a.attempts() == 3 })
	if q := s.Stats().Queued; q != 10 {
		t.Errorf("%d queued", q)
	}
	close(release)
	drain(t, s)
	if n := len(a.got()); n != 10 {
		t.Errorf("%d events", n)
	}
}

func TestAHangingAPIIsGivenUpAttemptByAttempt(t *testing.T) {
	a := serve(t, func(n int, _ http.ResponseWriter, r *http.Request, _ received) int {
		if n < 3 {
			<-r.Context().Done() // the sender hangs up
		}
		return http.StatusOK
	})
	settings := fast(a.URL)
	settings.AttemptTimeout = 50 * time.Millisecond
	s := start(t, settings, nil)
	s.Send("a", "", sandbox.EventSandboxCreated, nil)
	drain(t, s)
	if a.attempts() != 3 || s.Stats().Sent != 1 {
		t.Errorf("%d attempts, %+v", a.attempts(), s.Stats())
	}
}

func TestAnAnswerThatNeverEndsIsNotRead(t *testing.T) {
	ended := make(chan struct{}, 1)
	a := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request, _ received) int {
		w.WriteHeader(http.StatusOK)
		for {
			if _, err := w.Write(bytes.Repeat([]byte("x"), 32<<10)); err != nil {
				ended <- struct{}{}
				return 0
			}
		}
	})
	settings := fast(a.URL)
	settings.AttemptTimeout = time.Hour // so this does not end it
	s := start(t, settings, nil)
	s.Send("a", "", sandbox.EventSandboxCreated, nil)
	drain(t, s)
	<-ended
	if st := s.Stats(); st.Sent != 1 {
		t.Errorf("%+v", st)
	}
}

func TestARefusalIsNotRetriedAndTheNextEventFollows(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 409, 301, 307} {
		a := serve(t, func(n int, w http.ResponseWriter, _ *http.Request, _ received) int {
			if n == 1 {
				w.Header().Set("Location", "/elsewhere")
				return status
			}
			return http.StatusNoContent
		})
		s := start(t, fast(a.URL), nil)
		s.Send("a", "", sandbox.EventSandboxCreated, nil)
		s.Send("a", "", sandbox.EventSandboxDeleted, nil)
		drain(t, s)
		if got := a.got(); len(got) != 1 || got[0].Event != sandbox.EventSandboxDeleted || a.attempts() != 2 {
			t.Errorf("%d: %d attempts, %+v", status, a.attempts(), got)
		}
		if st := s.Stats(); st != (webhook.Stats{Sent: 1, Failed: 1}) {
			t.Errorf("%d: %+v", status, st)
		}
	}
}

func TestTheTokenIsNeverLogged(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a := serve(t, func(n int, w http.ResponseWriter, r *http.Request, _ received) int {
		if n%2 == 0 {
			http.Error(w, r.Header.Get("Authorization"), http.StatusUnauthorized)
			return 0
		}
		return http.StatusInternalServerError
	})
	s := start(t, fast(a.URL), log)
	s.Send("a", "", sandbox.EventSandboxCreated, nil)
	s.Send("a", "", sandbox.EventSandboxError, map[string]any{"bad": make(chan int)})
	drain(t, s)
	a.Close() // refused connections have their own words
	settings := fast(a.URL)
	settings.GiveUpAfter = 50 * time.Millisecond
	s = start(t, settings, log)
	s.Send("b", "", sandbox.EventSandboxCreated, nil)
	await(t, "the end of the retries", func() bool { return s.Stats().Failed == 1 })
	settings.Token = token + "\n" // no valid header
	s = start(t, settings, log)
	s.Send("c", "", sandbox.EventSandboxCreated, nil)
	await(t, "the end of the retries", func() bool { return s.Stats().Failed == 1 })
	drain(t, s)
	for _, want := range []string{"webhook attempt failed", "webhook event not delivered", "webhook event dropped", "refused"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if strings.Contains(logged.String(), token) {
		t.Errorf("the log holds the token:\n%s", &logged)
	}
}

func TestWithoutURLOrTokenNothingHappens(t *testing.T) {
	for _, settings := range []webhook.Settings{{}, {URL: "http://127.0.0.1:1"}, {Token: token}} {
		s := start(t, settings, nil)
		s.Send("a", "", sandbox.EventSandboxCreated, nil)
		s.Drop("a", "")
		if st := s.Stats(); s.Enabled() || st != (webhook.Stats{}) {
			t.Errorf("%+v: %+v", settings, st)
		}
		drain(t, s)
	}
}

func TestAURLThatCannotBeIsRefusedWithoutRepeatingIt(t *testing.T) {
	for _, url := range []string{"ftp://u:hunter2@api", "api.example.com", "http://", "http://u:hunter2@ho st", "://hunter2"} {
		if _, err := webhook.New(webhook.Settings{URL: url, Token: token}, nil); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
