package sandbox_test

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

// newWorker makes a client of a worker.
func newWorker(t *testing.T, address string, deadlines sandbox.Deadlines, records sandbox.Records) *sandbox.WorkerClient {
	t.Helper()
	c, err := sandbox.NewWorker(sandbox.ClientSettings{
		BaseURL: address, Token: clientToken, Deadlines: deadlines, Log: slog.New(slog.DiscardHandler),
	}, records)
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

func TestTheClientConformsToTheWorker(t *testing.T) {
	t.Parallel()
	clienttest.Run(t, func(t *testing.T) sandbox.Backend {
		return newWorker(t, clienttest.StartWorker(t).URL, sandbox.Deadlines{}, nil)
	}, clienttest.CloudflareWorker("https://git.test/demo.git"))
}

//go:embed clienttest/testdata
var copies embed.FS

func TestTheFakesRecordingsAreTheContracts(t *testing.T) {
	t.Parallel()
	entries, err := copies.ReadDir("clienttest/testdata")
	if err != nil || len(entries) < 20 {
		t.Fatalf("%d recordings, %v", len(entries), err)
	}
	for _, entry := range entries {
		original, err := os.ReadFile(filepath.Join("testdata", "worker", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if copied, err := copies.ReadFile("clienttest/testdata/" + entry.Name()); err != nil || !bytes.Equal(copied, original) {
			t.Errorf("%s differs from testdata/worker: %v", entry.Name(), err)
		}
	}
}

// asked is what the fake was asked, without health.
func asked(w *clienttest.Worker) []string {
	var list []string
	for _, r := range w.Requests() {
		list = append(list, r.Method+" "+r.Path+" "+r.Body)
	}
	return list
}

func create(t *testing.T, c sandbox.Backend, req sandbox.CreateRequest) sandbox.CreateResponse {
	t.Helper()
	made, err := c.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestTheWorkerIsAskedInItsOwnWay(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	ms := int64(1)
	made := create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u", GitURL: "https://me:hunter2@git.test/x.git", Idle: &sandbox.Idle{StopAfterMs: &ms}})
	if len(made.Warnings) != 1 || !strings.Contains(made.Warnings[0], "idle") {
		t.Errorf("warnings %q", made.Warnings)
	}
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u", GitURL: "https://git.test/x.git", GitBranch: "main"})
	if _, err := c.Wake(t.Context(), "a", sandbox.WakeRequest{}); err != nil {
		t.Fatal(err)
	}
	info, err := c.Get(t.Context(), "a")
	if err != nil || info.GitURL != "https://git.test/x.git" {
		t.Errorf("got %+v, %v", info, err)
	}
	want := []string{
		`POST /sandbox {"id":"a","userId":"u","gitUrl":"https://me:hunter2@git.test/x.git"}`,
		`POST /sandbox {"id":"a","userId":"u"}`,
		`POST /sandbox/a/wake {}`,
		`GET /sandbox/a `,
	}
	if got := asked(w); !slices.Equal(got, want) {
		t.Errorf("asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, r := range w.Requests() {
		if r.Header.Get("Authorization") != "Bearer "+clientToken {
			t.Errorf("%s %s came with %q", r.Method, r.Path, r.Header.Get("Authorization"))
		}
	}
}

func TestATurnWithoutAnswerIsAFailureWithItsSession(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	w.Break(http.MethodPost, "/message", 1, clienttest.NoParts)
	reply, err := c.Message(t.Context(), "a", sandbox.MessageRequest{Message: "x"})
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || e.Code != sandbox.CodeOpenCodeFailed || !strings.HasPrefix(e.SessionID, "ses_") || reply.Parts == nil {
		t.Errorf("got %+v, %v", reply, err)
	}
	w.Break(http.MethodPost, "/message", 1, answer(200, `{"sessionId":"ses_1","response":"","parts":null,"error":"the model said no"}`))
	if reply, err := c.Message(t.Context(), "a", sandbox.MessageRequest{Message: "x"}); err != nil || reply.Error != "the model said no" || reply.Parts == nil {
		t.Errorf("got %+v, %v", reply, err)
	}
}

func TestWhatAWorkerHasIsKnownFromItsRecords(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	kept := &sandbox.MemoryRecords{}
	first := newWorker(t, w.URL, sandbox.Deadlines{}, kept)
	create(t, first, sandbox.CreateRequest{ID: "synced", UserID: "u", Directory: "/home/user/workspace/x"})
	create(t, first, sandbox.CreateRequest{ID: "unsynced", UserID: "u"})
	if _, err := first.Sync(t.Context(), "synced"); err != nil {
		t.Fatal(err)
	}
	forgot := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	remembers := newWorker(t, w.URL, sandbox.Deadlines{}, kept)
	status := func(c sandbox.Backend, id string) string {
		info, err := c.Get(t.Context(), id)
		if err != nil {
			return string(sandbox.CodeOf(err))
		}
		return string(info.Status)
	}
	for name, tt := range map[string]struct{ got, want string }{
		"a record":                           {status(remembers, "synced"), "running"},
		"a record without a workspace":       {status(remembers, "unsynced"), "running"},
		"a workspace without a record":       {status(forgot, "synced"), "sleeping"},
		"neither":                            {status(forgot, "unsynced"), "sandbox_not_found"},
		"an id that nobody has ever used":    {status(remembers, "unheard-of"), "sandbox_not_found"},
		"an id that the contract has none":   {status(remembers, "www"), "invalid_id"},
		"another backend's client's records": {status(newWorker(t, w.URL, sandbox.Deadlines{}, &sandbox.MemoryRecords{}), "synced"), "sleeping"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s, want %s", name, tt.got, tt.want)
		}
	}
	if _, err := forgot.Wake(t.Context(), "synced", sandbox.WakeRequest{}); err != nil || status(forgot, "synced") != "running" {
		t.Errorf("after a wake: %v, %s", err, status(forgot, "synced"))
	}
	create(t, forgot, sandbox.CreateRequest{ID: "synced", UserID: "u2"}) // nobody knows whose it was
	if info, err := forgot.Get(t.Context(), "synced"); err != nil || info.UserID != "u2" || info.CreatedAt.IsZero() {
		t.Errorf("got %+v, %v", info, err)
	}
	if err := remembers.Delete(t.Context(), "synced"); err != nil || status(remembers, "synced") != "sandbox_not_found" {
		t.Errorf("after the delete: %v, %s", err, status(remembers, "synced"))
	}
	// A record is the truth until its keeper says otherwise.
	if err := kept.PutRecord(t.Context(), sandbox.Record{SandboxID: "unsynced", UserID: "u", Status: sandbox.StatusStopped}); err != nil {
		t.Fatal(err)
	}
	if got := status(remembers, "unsynced"); got != "stopped" {
		t.Errorf("status %s", got)
	}
	if _, err := remembers.Message(t.Context(), "unsynced", sandbox.MessageRequest{Message: "x"}); err != nil || status(remembers, "unsynced") != "running" {
		t.Errorf("after a message: %v, %s", err, status(remembers, "unsynced"))
	}
}

// brokenRecords fail.
type brokenRecords struct{ read, write bool }

func (b brokenRecords) Record(context.Context, string) (sandbox.Record, bool, error) {
	if b.read {
		return sandbox.Record{}, false, errors.New("the database is away")
	}
	return sandbox.Record{}, false, nil
}

func (b brokenRecords) PutRecord(context.Context, sandbox.Record) error {
	if b.write {
		return errors.New("the database is away")
	}
	return nil
}

func (b brokenRecords) DeleteRecord(ctx context.Context, _ string) error {
	return b.PutRecord(ctx, sandbox.Record{})
}

func TestRecordsThatCannotBeReadAreAnErrorAndThoseThatCannotBeKeptAreNot(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, brokenRecords{read: true})
	if _, err := c.Create(t.Context(), sandbox.CreateRequest{ID: "a", UserID: "u"}); !sandbox.HasCode(err, sandbox.CodeInternal) {
		t.Errorf("create: %v", err)
	} else if e, ok := errors.AsType[*sandbox.Error](err); !ok || strings.Contains(e.Message, "database") {
		t.Errorf("create tells its caller about the database: %v", err)
	}
	if len(w.Requests()) != 0 {
		t.Errorf("asked %v", asked(w))
	}
	c = newWorker(t, w.URL, sandbox.Deadlines{}, brokenRecords{write: true})
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	if err := c.Delete(t.Context(), "a"); !sandbox.HasCode(err, sandbox.CodeInternal) {
		t.Errorf("delete: %v", err)
	}
}

func TestNoDeleteAndNoPageGoesThroughTheWorkersProxy(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	if _, err := c.Sync(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	before := len(w.Requests())
	transport, base, err := c.OpenCode("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"DELETE", "delete", "Delete", "dElEtE"} {
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/session/ses_1", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !sandbox.HasCode(err, sandbox.CodeUnsupported) {
			t.Errorf("%s: error %v", method, err)
		}
	}
	if len(w.Requests()) != before || !w.Stored("a") {
		t.Errorf("asked %v, stored: %v", asked(w), w.Stored("a"))
	}
	for _, path := range []string{"", "/", "/assets/x.js"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !sandbox.HasCode(err, sandbox.CodeUnsupported) || strings.Contains(err.Error(), "worker.test") {
			t.Errorf("%q: error %v", path, err)
		}
	}
}

// prompt sends a message through OpenCode.
func prompt(t *testing.T, c sandbox.Backend, id string) {
	t.Helper()
	transport, base, err := c.OpenCode(id)
	if err != nil {
		t.Fatal(err)
	}
	oc := opencode.New(transport, base, "")
	session, err := oc.CreateSession(t.Context(), "Agent Task")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oc.PromptMessage(t.Context(), session.ID, opencode.Prompt{Text: "hello"}); err != nil {
		t.Fatal(err)
	}
}

func syncs(w *clienttest.Worker) int {
	n := 0
	for _, r := range w.Requests() {
		if strings.HasSuffix(r.Path, "/sync") {
			n++
		}
	}
	return n
}

func TestASyncFollowsAProxiedMessage(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	prompt(t, c, "a")
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !w.Stored("a") || syncs(w) != 1 {
		t.Errorf("stored: %v after %d syncs", w.Stored("a"), syncs(w))
	}
	prompt(t, c, "a") // after the Close
	if err := c.Close(t.Context()); err != nil || syncs(w) != 1 {
		t.Errorf("%d syncs, %v", syncs(w), err)
	}
}

func TestMessagesDuringASyncAreFollowedByOneMore(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	entered, release := make(chan struct{}), make(chan struct{})
	w.Break(http.MethodPost, "/sync", 1, func(rw http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		answer(200, `{"success":true,"sandboxId":"a"}`)(rw, r)
	})
	prompt(t, c, "a")
	<-entered
	for range 5 {
		prompt(t, c, "a")
	}
	close(release)
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if syncs(w) != 2 || !w.Stored("a") {
		t.Errorf("%d syncs, stored: %v", syncs(w), w.Stored("a"))
	}
}

func TestADeleteEndsTheSyncBeforeIt(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	create(t, c, sandbox.CreateRequest{ID: "a", UserID: "u"})
	entered, left := make(chan struct{}), make(chan struct{})
	w.Break(http.MethodPost, "/sync", 1, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	})
	prompt(t, c, "a")
	<-entered
	if err := c.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	<-left
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := asked(w); !strings.HasPrefix(got[len(got)-1], "DELETE /sandbox/a") || w.Stored("a") {
		t.Errorf("asked %v, stored: %v", got, w.Stored("a"))
	}
}

func TestACloseEndsWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	w.Break(http.MethodPost, "/sync", 0, clienttest.Hang)
	for i := range 20 {
		id := fmt.Sprintf("a%d", i)
		create(t, c, sandbox.CreateRequest{ID: id, UserID: "u"})
		prompt(t, c, id)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Close(ctx); !sandbox.HasCode(err, sandbox.CodeDeadline) {
		t.Errorf("error %v", err)
	}
	if n := syncs(w); n > 4 {
		t.Errorf("%d syncs at once", n)
	}
}

func TestADotSegmentThatWouldReachAnotherSandboxIsNeverSent(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorker(t, w.URL, sandbox.Deadlines{}, nil)
	for _, id := range []string{"mine", "theirs"} {
		create(t, c, sandbox.CreateRequest{ID: id, UserID: "u"})
		if _, err := c.Sync(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	transport, base, err := c.OpenCode("mine")
	if err != nil {
		t.Fatal(err)
	}
	before := len(w.Requests())
	const evil = "/session/%2e%2e/.%2E/%2E%2e/theirs/sync"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+evil, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	if !sandbox.HasCode(err, sandbox.CodeInvalidPath) || len(w.Requests()) != before {
		t.Errorf("error %v, asked %v", err, asked(w)[before:])
	}
	// Without the check the worker would have done it.
	bare := &http.Transport{DisableKeepAlives: true}
	if resp, err = bare.RoundTrip(req.Clone(t.Context())); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if got := w.Requests()[before]; resp.StatusCode != http.StatusOK || got.Path != "/sandbox/theirs/sync" {
		t.Errorf("%s reached %s with %d: the fake is too kind", got.Target, got.Path, resp.StatusCode)
	}
}
