package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/api/internal/webhook"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// tell sends an event as a provider does.
func (w world) tell(t testing.TB, provider, event, data string, at time.Time) (*http.Response, string) {
	t.Helper()
	body := fmt.Sprintf(`{"event":%q,"data":%s,"timestamp":%q}`, event, data, at.UTC().Format("2006-01-02T15:04:05.000Z"))
	return w.send(t, "POST", webhookPath, body, "Authorization", "Bearer "+hookTokens()[provider], "Content-Type", "application/json")
}

// told is tell for what must be taken.
func (w world) told(t testing.TB, provider, event, data string, at time.Time) {
	t.Helper()
	if resp, body := w.tell(t, provider, event, data, at); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"success":true`) {
		t.Fatalf("%s: %d %s", event, resp.StatusCode, body)
	}
}

// keep makes the record of a sandbox.
func (w world) keep(t testing.TB, user, provider, id string) task.Sandbox {
	t.Helper()
	must(t, w.store.Sandboxes().Create(t.Context(), task.Sandbox{
		ID: id, UserID: user, Provider: provider, Name: "n", Slug: id, Status: task.SandboxStarting,
		CreatedAt: w.clock.Now(), UpdatedAt: w.clock.Now(),
	}))
	return w.record(t, user, id)
}

func (w world) record(t testing.TB, user, id string) task.Sandbox {
	t.Helper()
	row, err := w.store.Sandboxes().Get(t.Context(), user, id)
	must(t, err)
	return row
}

func TestTheWorkersWebhooksAreTaken(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("testdata", "worker", "webhooks.json"))
	must(t, err)
	var recordings map[string]struct {
		Method, Path string
		Body         struct {
			Event     string
			Data      json.RawMessage
			Timestamp time.Time
		}
	}
	must(t, json.Unmarshal(raw, &recordings))
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, _ := w.join(t, "ada@example.com")
		for _, id := range []string{"sbx-plain", "sbx-cfg", "unknown1"} {
			w.keep(t, ada, "cloudflare", id)
		}
		for _, want := range []struct {
			name, id string
			status   task.SandboxStatus
			moved    func(task.Sandbox) *time.Time
		}{
			{"sandbox.deleted", "unknown1", task.SandboxStopped, func(s task.Sandbox) *time.Time { return s.EventAt }},
			{"sandbox.created", "sbx-plain", task.SandboxRunning, func(s task.Sandbox) *time.Time { return s.StartedAt }},
			{"session.message", "sbx-cfg", "", func(s task.Sandbox) *time.Time { return s.LastActiveAt }},
			{"workspace.synced", "sbx-cfg", "", func(s task.Sandbox) *time.Time { return s.WorkspaceSyncedAt }},
			{"sandbox.woken", "sbx-cfg", task.SandboxRunning, func(s task.Sandbox) *time.Time { return s.StartedAt }},
		} {
			name := want.name
			recording, ok := recordings[name]
			if !ok || recording.Method != http.MethodPost || recording.Path != webhookPath || recording.Body.Event != name {
				t.Fatalf("%s: %+v", name, recording)
			}
			w.clock.pass(recording.Body.Timestamp.Add(5 * time.Second).Sub(w.clock.Now()))
			w.told(t, "cloudflare", name, string(recording.Body.Data), recording.Body.Timestamp)
			got := w.record(t, ada, want.id)
			if want.status != "" && got.Status != want.status {
				t.Errorf("%s: the sandbox is %s", name, got.Status)
			}
			if at := want.moved(got); at == nil || !at.Equal(recording.Body.Timestamp) {
				t.Errorf("%s: %v", name, at)
			}
		}
		if len(recordings) != 5 {
			t.Errorf("there are %d recordings", len(recordings))
		}
	})
}

func TestWhatEachEventMeans(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, _ := w.join(t, "ada@example.com")
		for i, c := range []struct {
			event, data           string
			status                task.SandboxStatus
			tier, why             string
			started, active, sync bool
		}{
			{"sandbox.created", `"filesWritten":3`, task.SandboxRunning, "running", "", true, true, false},
			{"sandbox.started", `"x":1`, task.SandboxRunning, "running", "", true, true, false},
			{"sandbox.woken", `"tier":"archived","restoredFiles":2`, task.SandboxRunning, "running", "", true, true, false},
			{"sandbox.hibernated", `"tier":"frozen"`, task.SandboxSleeping, "frozen", "", false, false, false},
			{"sandbox.hibernated", `"tier":"archived"`, task.SandboxSleeping, "archived", "", false, false, false},
			{"sandbox.hibernated", `"tier":"elsewhere"`, task.SandboxSleeping, "", "", false, false, false},
			{"sandbox.hibernated", `"tier":{"a":1}`, task.SandboxSleeping, "", "", false, false, false},
			{"sandbox.stopped", `"reason":"the container ended with exit code 1"`, task.SandboxStopped, "stopped", "the container ended with exit code 1", false, false, false},
			{"sandbox.error", `"reason":"a\u001b[31mb\u0000\nc"`, task.SandboxError, "", "a [31mb  c", false, false, false},
			{"sandbox.error", `"reason":["x"],"error":"the worker's word"`, task.SandboxError, "", "the worker's word", false, false, false},
			{"sandbox.error", `"reason":"` + strings.Repeat("x", 10_000) + `"`, task.SandboxError, "", strings.Repeat("x", 497) + "…", false, false, false},
			{"sandbox.error", `"x":1`, task.SandboxError, "", "its provider says that it failed, and not why", false, false, false},
			{"sandbox.deleted", `"x":1`, task.SandboxStopped, "", "it was deleted at its provider", false, false, false},
			{"session.created", `"sessionId":"ses_1"`, task.SandboxStarting, "", "", false, true, false},
			{"session.message", `"sessionId":"ses_1"`, task.SandboxStarting, "", "", false, true, false},
			{"workspace.synced", `"syncedFiles":1,"totalSize":15`, task.SandboxStarting, "", "", false, false, true},
		} {
			id := fmt.Sprintf("sbx-%d", i)
			want := w.keep(t, ada, "docker", id)
			at := w.clock.Now().UTC().Truncate(time.Millisecond)
			// Whatever else stands in data changes nothing.
			w.told(t, "docker", c.event, `{"sandboxId":"`+id+`","userId":"eve","user_id":"eve","id":"x","provider":"cloudflare","name":"y","status":"running",
				"workerUrl":"http://evil.example","config_hash":"z",`+c.data+`}`, at)
			want.Status, want.Tier, want.ErrorMessage = c.status, c.tier, c.why
			if c.started {
				want.StartedAt = &at
			}
			if c.active {
				want.LastActiveAt = &at
			}
			if c.sync {
				want.WorkspaceSyncedAt = &at
			}
			got := w.record(t, ada, id)
			if (got.EventAt != nil) != (c.status != task.SandboxStarting) {
				t.Errorf("%s %s: told at %v", c.event, c.data, got.EventAt)
			}
			want.EventAt, want.EventKey, want.UpdatedAt = got.EventAt, got.EventKey, got.UpdatedAt
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %.80s (-want +got):\n%s", c.event, c.data, diff)
			}
		}
	})
}

func TestTheOrderOfEventsDoesNotMatter(t *testing.T) {
	t.Parallel()
	type notice struct {
		event, more string
		at          int // milliseconds
	}
	// Several of one moment, and of one kind in one moment.
	notices := []notice{
		{"sandbox.created", ``, 0},
		{"session.created", ``, 10},
		{"session.message", ``, 40},
		{"workspace.synced", ``, 25},
		{"workspace.synced", ``, 35},
		{"sandbox.hibernated", `,"tier":"frozen"`, 20},
		{"sandbox.hibernated", `,"tier":"stopped"`, 20},
		{"sandbox.woken", `,"tier":"stopped"`, 20},
		{"sandbox.error", `,"reason":"one"`, 30},
		{"sandbox.error", `,"reason":"two"`, 30},
		{"sandbox.started", ``, 30},
		{"sandbox.deleted", ``, 5},
	}
	const tries = 60
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, _ := w.join(t, "ada@example.com")
		began := w.clock.Now().Truncate(time.Millisecond)
		var first task.Sandbox
		for try := range tries {
			// The same orders in every run, but for every third try: all at once.
			random := rand.New(rand.NewPCG(1, uint64(try)))
			id := fmt.Sprintf("sbx-%d", try)
			w.keep(t, ada, "docker", id)
			order := random.Perm(len(notices))
			for range 4 { // some come again
				order = append(order, random.IntN(len(notices)))
			}
			var all sync.WaitGroup
			for _, i := range order {
				n := notices[i]
				all.Go(func() {
					resp, body := w.tell(t, "docker", n.event, `{"sandboxId":"`+id+`"`+n.more+`}`, began.Add(time.Duration(n.at)*time.Millisecond))
					if resp.StatusCode != http.StatusOK {
						t.Errorf("%s: %d %s", n.event, resp.StatusCode, body)
					}
				})
				if try%3 != 2 {
					all.Wait()
				}
			}
			all.Wait()
			got := w.record(t, ada, id)
			if try == 0 {
				first = got
				if got.Status != task.SandboxError || got.Tier != "" || !got.StartedAt.Equal(began.Add(30*time.Millisecond)) ||
					!got.LastActiveAt.Equal(began.Add(40*time.Millisecond)) || !got.WorkspaceSyncedAt.Equal(began.Add(35*time.Millisecond)) {
					t.Errorf("%+v", got)
				}
			}
			got.ID, got.Slug, got.CreatedAt, got.UpdatedAt = first.ID, first.Slug, first.CreatedAt, first.UpdatedAt
			if diff := cmp.Diff(first, got); diff != "" {
				t.Fatalf("in the order %v (-want +got):\n%s", order, diff)
			}
		}
	})
}

func TestAReplayChangesNothing(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, _ := w.join(t, "ada@example.com")
		w.keep(t, ada, "docker", "sbx-1")
		at := w.clock.Now()
		w.told(t, "docker", "sandbox.hibernated", `{"sandboxId":"sbx-1","tier":"stopped"}`, at)
		// The API has woken it since.
		running := task.SandboxRunning
		must(t, s.Sandboxes().Update(t.Context(), "sbx-1", at.Add(time.Second), task.SandboxChange{Status: &running}))
		was := w.record(t, ada, "sbx-1")
		w.clock.pass(time.Minute)
		w.told(t, "docker", "sandbox.hibernated", `{"sandboxId":"sbx-1","tier":"stopped"}`, at)
		if diff := cmp.Diff(was, w.record(t, ada, "sbx-1")); diff != "" {
			t.Errorf("a replay changed (-was +is):\n%s", diff)
		}
		w.clock.pass(5 * time.Minute)
		// Without a Date, it may be from a clock that is off.
		if resp, body := w.tell(t, "docker", "sandbox.hibernated", `{"sandboxId":"sbx-1","tier":"stopped"}`, at); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("a replay after long: %d %s", resp.StatusCode, body)
		}
	})
}

func TestAClockThatIsOffIsNoEndOfAnEvent(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, _ := w.join(t, "ada@example.com")
		w.keep(t, ada, "docker", "sbx-1")
		now := w.clock.Now()
		tell := func(happened, sent time.Time) *http.Response {
			t.Helper()
			body := fmt.Sprintf(`{"event":"sandbox.hibernated","data":{"sandboxId":"sbx-1","tier":"stopped"},"timestamp":%q}`, happened.UTC().Format(time.RFC3339Nano))
			resp, _ := w.send(t, "POST", webhookPath, body,
				"Authorization", "Bearer "+hookTokens()["docker"], "Date", sent.UTC().Format(http.TimeFormat))
			return resp
		}
		for name, c := range map[string]struct{ happened, sent time.Duration }{
			"a clock that is behind":                          {-10 * time.Minute, -10 * time.Minute},
			"a clock that is ahead":                           {10 * time.Minute, 10 * time.Minute},
			"an event of a clock that was ahead, and was set": {10 * time.Minute, 0},
		} {
			resp := tell(now.Add(c.happened), now.Add(c.sent))
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(sandbox.ErrorHeader) != string(sandbox.CodeClockSkew) || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %d %v", name, resp.StatusCode, resp.Header)
			}
			if status := w.record(t, ada, "sbx-1").Status; status != task.SandboxStarting {
				t.Fatalf("%s: the sandbox is %s", name, status)
			}
		}
		// The same event, when it had to wait for the clocks to be set.
		if resp := tell(now.Add(-50*time.Minute), now); resp.StatusCode != http.StatusOK {
			t.Errorf("an event that had to wait: %d", resp.StatusCode)
		}
		if status := w.record(t, ada, "sbx-1").Status; status != task.SandboxStopped && status != task.SandboxSleeping {
			t.Errorf("the sandbox is %s", status)
		}
	})
}

func TestWhoMayTell(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, asAda := w.join(t, "ada@example.com")
		was := w.keep(t, ada, "docker", "sbx-1")
		body := fmt.Sprintf(`{"event":"sandbox.deleted","data":{"sandboxId":"sbx-1","provider":"docker"},"timestamp":%q}`, w.clock.Now().UTC().Format(time.RFC3339))
		docker := "Bearer " + hookTokens()["docker"]
		for name, c := range map[string]struct {
			headers []string
			status  int
		}{
			"nobody":                           {nil, 401},
			"an empty token":                   {[]string{"Authorization", "Bearer "}, 401},
			"a wrong token":                    {[]string{"Authorization", docker + "x"}, 401},
			"another scheme":                   {[]string{"Authorization", "Basic " + hookTokens()["docker"]}, 401},
			"the service credential":           {[]string{"Authorization", "Bearer " + serviceToken}, 401},
			"a signed-in user":                 {asAda, 401},
			"a signed-in user's cookie":        {[]string{"Cookie", cookie(strings.TrimPrefix(asAda[1], "Bearer "))}, 401},
			"a foreign host":                   {[]string{"Authorization", docker, "Host", "evil.test"}, 403},
			"a page, with a token":             {[]string{"Authorization", docker, "Origin", "https://evil.example"}, 403},
			"the other provider, which has it": {[]string{"Authorization", "Bearer " + hookTokens()["cloudflare"]}, 200},
		} {
			resp, got := w.send(t, "POST", webhookPath, body, c.headers...)
			if resp.StatusCode != c.status {
				t.Errorf("%s: %d %s", name, resp.StatusCode, got)
			}
			if diff := cmp.Diff(was, w.record(t, ada, "sbx-1")); diff != "" {
				t.Fatalf("%s changed (-was +is):\n%s", name, diff)
			}
		}
		if resp, got := w.send(t, "POST", webhookPath, body, "Authorization", docker); resp.StatusCode != http.StatusOK || w.record(t, ada, "sbx-1").Status != task.SandboxStopped {
			t.Errorf("its own provider: %d %s", resp.StatusCode, got)
		}
	})
}

func TestWithoutWebhookTokensNobodyMayTell(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	hooks, err := webhook.New(webhook.Settings{Tokens: map[string]string{"docker": "", "cloudflare": ""}}, w.store.Sandboxes(), w.api.Log)
	must(t, err)
	w.api.Webhooks = hooks
	for _, header := range []string{"", "Bearer", "Bearer ", "Bearer x"} {
		if resp, body := w.send(t, "POST", webhookPath, `{}`, "Authorization", header); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%q: %d %s", header, resp.StatusCode, body)
		}
	}
	if _, err := webhook.New(webhook.Settings{Tokens: map[string]string{"docker": "same", "cloudflare": "same"}}, w.store.Sandboxes(), w.api.Log); err == nil ||
		strings.Contains(err.Error(), "same\"") {
		t.Errorf("one token for both: %v", err)
	}
}

func TestWhatIsNoWebhook(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		var logged bytes.Buffer
		w := newWorld(t, s, options{log: &logged})
		ada, _ := w.join(t, "ada@example.com")
		w.keep(t, ada, "docker", "sbx-1")
		now := w.clock.Now()
		at := func(d time.Duration) string { return now.Add(d).UTC().Format(time.RFC3339Nano) }
		body := func(event, data, timestamp string) string {
			return fmt.Sprintf(`{"event":%s,"data":%s,"timestamp":%s}`, event, data, timestamp)
		}
		quote := func(s string) string { return `"` + s + `"` }
		const event, data = `"sandbox.error"`, `{"sandboxId":"sbx-1"}`
		for name, c := range map[string]struct {
			body   string
			status int
			says   string
			logs   string
		}{
			"one from long ago":              {body(event, data, quote(at(-5*time.Minute-time.Second))), 503, "5m0s", ""},
			"one from the future":            {body(event, data, quote(at(5*time.Minute+time.Second))), 503, "5m0s", ""},
			"an old one that is unknown":     {body(`"x.y"`, data, quote(at(-time.Hour))), 503, "5m0s", ""},
			"a time that is none":            {body(event, data, `"yesterday"`), 400, "timestamp must be a time", ""},
			"no time":                        {`{"event":"sandbox.error","data":{"sandboxId":"sbx-1"}}`, 400, "timestamp must be a time", ""},
			"a number as a time":             {body(event, data, `17`), 400, "timestamp", ""},
			"no event":                       {body(`""`, data, quote(at(0))), 400, "event must name", ""},
			"an event that is none":          {body(`{}`, data, quote(at(0))), 400, "event", ""},
			"data that are a list":           {body(event, `[]`, quote(at(0))), 400, "data", ""},
			"a list":                         {`[]`, 400, "must be a JSON object", ""},
			"nothing":                        {``, 400, "timestamp must be a time", ""},
			"bad JSON":                       {`{"event":`, 400, "not valid JSON", ""},
			"a huge body":                    {body(event, `{"sandboxId":"sbx-1","reason":"`+strings.Repeat("x", 256<<10)+`"}`, quote(at(0))), 413, "262144", ""},
			"an unknown event":               {body(`"sandbox.\u001b[2Jdanced"`, data, quote(at(0))), 200, "", "sandbox. [2Jdanced"},
			"an event in capitals":           {body(`"SANDBOX.ERROR"`, data, quote(at(0))), 200, "", "SANDBOX.ERROR"},
			"an unknown sandbox":             {body(event, `{"sandboxId":"sbx-nobody"}`, quote(at(0))), 200, "", "sbx-nobody"},
			"no sandbox":                     {body(event, `{}`, quote(at(0))), 200, "", "without a proper id"},
			"no data":                        {body(event, `null`, quote(at(0))), 200, "", "without a proper id"},
			"a sandbox that is a number":     {body(event, `{"sandboxId":1}`, quote(at(0))), 200, "", "without a proper id"},
			"a sandbox with a NUL":           {body(event, `{"sandboxId":"sbx-1\u0000\u202e' OR 1=1"}`, quote(at(0))), 200, "", "sbx-1  ' OR 1=1"},
			"a sandbox with a very long one": {body(event, `{"sandboxId":"`+strings.Repeat("a", 1000)+`"}`, quote(at(0))), 200, "", strings.Repeat("a", 97) + "…"},
		} {
			logged.Reset()
			resp, got := w.send(t, "POST", webhookPath, c.body, "Authorization", "Bearer "+hookTokens()["docker"])
			if resp.StatusCode != c.status || !strings.Contains(got, c.says) {
				t.Errorf("%s: %d %s", name, resp.StatusCode, got)
			}
			if c.status == http.StatusOK && !strings.Contains(logged.String(), c.logs) {
				t.Errorf("%s is not logged: %s", name, &logged)
			}
			if status := w.record(t, ada, "sbx-1").Status; status != task.SandboxStarting {
				t.Fatalf("%s: the sandbox is %s", name, status)
			}
		}
		for _, d := range []time.Duration{-5*time.Minute + time.Second, 5*time.Minute - time.Second} {
			if resp, got := w.send(t, "POST", webhookPath, body(event, data, quote(at(d))), "Authorization", "Bearer "+hookTokens()["docker"]); resp.StatusCode != http.StatusOK {
				t.Errorf("%s off: %d %s", d, resp.StatusCode, got)
			}
		}
	})
}
