package sandboxes_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestASandboxIsThereAtOnceAndMadeInTheBackground(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	release := make(chan struct{})
	w.gateway.creating = func(context.Context) error { <-release; return nil }
	row, err := w.Create(t.Context(), "u1", sandboxes.NewSandbox{
		Name: " My Sandbox! ", Description: "two\nlines", GithubURL: "https://user:s3cret@github.com/acme/tool.git", GitBranch: "main",
	})
	want(t, err, "")
	if row.Status != task.SandboxStarting || row.Name != "My Sandbox!" || row.Slug != "my-sandbox" || row.RepoName != "tool" ||
		row.GithubURL != "https://github.com/acme/tool.git" || row.Provider != "docker" || !regexp.MustCompile(`^sbx-[a-z0-9]{26}$`).MatchString(row.ID) {
		t.Errorf("%+v", row)
	}
	close(release)
	made := w.await(t, row.ID)
	if made.Status != task.SandboxRunning || made.Tier != "running" || made.StartedAt == nil || made.ConfigHash != `u1{"v":1}` {
		t.Errorf("%+v", made)
	}
	req := sandbox.CreateRequest{
		ID: row.ID, UserID: "u1", Config: []byte(`{"v":1}`), GitURL: "https://user:s3cret@github.com/acme/tool.git", GitBranch: "main",
	}
	if diff := cmp.Diff([]sandbox.CreateRequest{req}, w.gateway.creates); diff != "" {
		t.Errorf("creates (-want +got):\n%s", diff)
	}
	twin := w.create(t, sandboxes.NewSandbox{Name: "my sandbox"})
	if !regexp.MustCompile(`^my-sandbox-[a-z0-9]{8}$`).MatchString(twin.Slug) {
		t.Errorf("the twin's slug is %q", twin.Slug)
	}
}

func TestWhatCannotBeASandboxIsRefusedUnsaved(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	for name, c := range map[string]struct {
		user string
		n    sandboxes.NewSandbox
		code sandbox.Code
	}{
		"no name":                       {"u1", sandboxes.NewSandbox{Name: "  "}, sandbox.CodeInvalidRequest},
		"a long name":                   {"u1", sandboxes.NewSandbox{Name: strings.Repeat("é", 101)}, sandbox.CodeInvalidRequest},
		"a name of two lines":           {"u1", sandboxes.NewSandbox{Name: "a\nb"}, sandbox.CodeInvalidRequest},
		"a name that is no text":        {"u1", sandboxes.NewSandbox{Name: "a\xff"}, sandbox.CodeInvalidRequest},
		"a long description":            {"u1", sandboxes.NewSandbox{Name: "n", Description: strings.Repeat("d", 2001)}, sandbox.CodeInvalidRequest},
		"a NUL in the description":      {"u1", sandboxes.NewSandbox{Name: "n", Description: "\x00"}, sandbox.CodeInvalidRequest},
		"a branch of nothing":           {"u1", sandboxes.NewSandbox{Name: "n", GitBranch: "main"}, sandbox.CodeInvalidRequest},
		"a file as repository":          {"u1", sandboxes.NewSandbox{Name: "n", GithubURL: "file:///etc"}, sandbox.CodeInvalidGitURL},
		"an option as repository":       {"u1", sandboxes.NewSandbox{Name: "n", GithubURL: "--upload-pack=x"}, sandbox.CodeInvalidGitURL},
		"a branch that git has not":     {"u1", sandboxes.NewSandbox{Name: "n", GithubURL: "https://x.test/a", GitBranch: "-x"}, sandbox.CodeInvalidGitURL},
		"credentials that must be kept": {"u1", sandboxes.NewSandbox{Name: "n", GithubURL: "https://tok@x.test/a", Later: true}, sandbox.CodeInvalidGitURL},
		"a provider that is missing":    {"u1", sandboxes.NewSandbox{Name: "n", Provider: "cloudflare"}, sandbox.CodeProviderMissing},
		"a user who is not":             {"nobody", sandboxes.NewSandbox{Name: "n"}, sandbox.CodeUserNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Create(t.Context(), c.user, c.n)
			want(t, err, c.code)
			if err != nil && strings.Contains(err.Error(), "tok") {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
	if len(w.rows.kept) != 0 || len(w.gateway.creates) != 0 {
		t.Errorf("kept %v, made %v", w.rows.kept, w.gateway.creates)
	}
}

func TestASandboxThatCannotBeMadeSaysWhyAndCanBeStartedAgain(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	w.gateway.fail = sandbox.Errorf(sandbox.CodeCloneFailed, "git found no \x1brepository").WithCause(errors.New("secret cause"))
	row := w.create(t, sandboxes.NewSandbox{GithubURL: "https://x.test/a"})
	if row.Status != task.SandboxError || row.ErrorMessage != "git found no  repository" || row.StartedAt != nil {
		t.Errorf("%+v", row)
	}
	_, err := w.Exec(t.Context(), "u1", row.ID, sandbox.ExecRequest{Command: []string{"ls"}})
	want(t, err, sandbox.CodeConflict)
	w.gateway.set(func(b *backend) { b.fail = nil })
	row, err = w.Start(t.Context(), "u1", row.ID)
	if err != nil || row.Status != task.SandboxStarting || row.ErrorMessage != "" {
		t.Errorf("%+v, %v", row, err)
	}
	if row = w.await(t, row.ID); row.Status != task.SandboxRunning || w.gateway.creates[1].GitURL != "https://x.test/a" {
		t.Errorf("%+v", row)
	}
}

func TestOneThatIsForLaterIsMadeWhenItIsStarted(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	row := w.create(t, sandboxes.NewSandbox{Later: true})
	got, err := w.Get(t.Context(), "u1", row.ID)
	if err != nil || got.Status != task.SandboxCreated || len(w.gateway.creates) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = w.Start(t.Context(), "u1", row.ID)
	want(t, err, "")
	if row = w.await(t, row.ID); row.Status != task.SandboxRunning || len(w.gateway.creates) != 1 {
		t.Errorf("%+v", row)
	}
}

func TestNobodyReachesAnothersSandbox(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	id := w.create(t, sandboxes.NewSandbox{}).ID
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"get":     func() error { _, err := w.Get(ctx, "u2", id); return err },
		"delete":  func() error { return w.Delete(ctx, "u2", id) },
		"start":   func() error { _, err := w.Start(ctx, "u2", id); return err },
		"stop":    func() error { _, err := w.Stop(ctx, "u2", id); return err },
		"pause":   func() error { _, err := w.Pause(ctx, "u2", id); return err },
		"restart": func() error { _, err := w.Restart(ctx, "u2", id); return err },
		"sync":    func() error { _, err := w.Sync(ctx, "u2", id); return err },
		"logs":    func() error { _, err := w.Logs(ctx, "u2", id, 1); return err },
		"stats":   func() error { _, err := w.Stats(ctx, "u2", id); return err },
		"ui":      func() error { _, err := w.UI(ctx, "u2", id, "s"); return err },
		"exec": func() error {
			_, err := w.Exec(ctx, "u2", id, sandbox.ExecRequest{Command: []string{"ls"}})
			return err
		},
		"read":     func() error { _, err := w.ReadFile(ctx, "u2", id, "a"); return err },
		"list":     func() error { _, err := w.ListFiles(ctx, "u2", id, "a"); return err },
		"write":    func() error { return w.WriteFile(ctx, "u2", id, "a", 0, strings.NewReader(""), 0) },
		"remove":   func() error { return w.DeleteFile(ctx, "u2", id, "a") },
		"opencode": func() error { _, _, err := w.OpenCode(ctx, "u2", id); return err },
		"check":    func() error { return w.Check(ctx, "u2", id) },
	} {
		t.Run(name, func(t *testing.T) { want(t, call(), sandbox.CodeSandboxNotFound) })
	}
	if _, err := w.rows.Find(ctx, id); err != nil {
		t.Error(err)
	}
}

func TestALookTellsWhatTheProviderSays(t *testing.T) {
	began := time.Now()
	now := began
	w := newWorld(t, sandboxes.Settings{Now: func() time.Time { return now }, LookTimeout: 20 * time.Millisecond})
	for _, c := range []struct {
		name    string
		before  task.SandboxStatus
		never   bool // it has never run
		heard   *sandbox.Info
		age     time.Duration
		fail    error
		after   task.SandboxStatus
		message string
	}{
		{name: "it sleeps", before: "running", heard: &sandbox.Info{Status: "sleeping", Tier: "frozen"}, after: "sleeping"},
		{name: "it sleeps because it was stopped", before: "stopped", heard: &sandbox.Info{Status: "sleeping", Tier: "stopped"}, after: "stopped"},
		{name: "it has woken", before: "sleeping", heard: &sandbox.Info{Status: "running", Tier: "running"}, after: "running"},
		{name: "it is still made", before: "starting", never: true, heard: &sandbox.Info{Status: "creating"}, after: "starting"},
		{name: "it was made by a process that is gone", before: "starting", never: true, heard: &sandbox.Info{Status: "running"}, after: "running"},
		{name: "it has failed", before: "running", heard: &sandbox.Info{Status: "error", LastError: "out of\ndisk"}, after: "error", message: "out of disk"},
		{name: "a status that nobody knows", before: "running", heard: &sandbox.Info{Status: "dancing"}, after: "running"},
		{name: "it is not there yet", before: "starting", never: true, age: time.Minute, after: "starting"},
		{name: "it never came", before: "starting", never: true, age: 3 * time.Minute, after: "error", message: "the sandbox's provider does not have it any more; delete it and make another"},
		{name: "it is gone", before: "running", after: "error", message: "the sandbox's provider does not have it any more; delete it and make another"},
		{name: "the provider is away", before: "running", fail: sandbox.Errorf(sandbox.CodeBackendAway, "away"), after: "running"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now = began
			row := task.Sandbox{ID: "sbx-1", UserID: "u1", Provider: "docker", Status: c.before, UpdatedAt: began}
			if !c.never {
				row.StartedAt = &began
			}
			w.rows.kept["sbx-1"], w.gateway.infos, w.gateway.fail = row, map[string]sandbox.Info{}, c.fail
			if c.heard != nil {
				w.gateway.infos["sbx-1"] = *c.heard
			}
			now = began.Add(c.age)
			got, err := w.Get(t.Context(), "u1", "sbx-1")
			want(t, err, "")
			if got.Status != c.after || got.ErrorMessage != c.message || w.rows.kept["sbx-1"].Status != c.after {
				t.Errorf("%s %q", got.Status, got.ErrorMessage)
			}
			if (c.after == "running") != (got.StartedAt != nil) && c.never {
				t.Errorf("started at %v", got.StartedAt)
			}
		})
	}
	t.Run("a provider that hangs", func(t *testing.T) {
		w.gateway.getting = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		w.rows.kept["sbx-1"] = task.Sandbox{ID: "sbx-1", UserID: "u1", Provider: "docker", Status: "running", StartedAt: &began}
		got, err := w.Get(t.Context(), "u1", "sbx-1")
		if err != nil || got.Status != task.SandboxRunning {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestAListShowsTheGatewaysStatusesAndGoesWithoutThem(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	a := w.create(t, sandboxes.NewSandbox{Name: "a"})
	w.create(t, sandboxes.NewSandbox{Name: "b", Later: true})
	w.gateway.set(func(g *backend) { g.put(a.ID, sandbox.StatusSleeping, sandbox.TierFrozen) })
	list := func() string {
		t.Helper()
		rows, n, err := w.List(t.Context(), task.SandboxFilter{UserID: "u1"})
		if err != nil || n != 2 {
			t.Fatal(n, err)
		}
		return string(rows[0].Status) + " " + rows[0].Tier + ", " + string(rows[1].Status)
	}
	if got := list(); got != "sleeping frozen, created" {
		t.Error(got)
	}
	w.gateway.set(func(g *backend) { g.fail = sandbox.Errorf(sandbox.CodeBackendAway, "away") })
	if got := list(); got != "running running, created" {
		t.Error(got)
	}
}

func TestADeleteIsOfTheSandboxFirst(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	row := w.create(t, sandboxes.NewSandbox{})
	w.gateway.fail = sandbox.Errorf(sandbox.CodeBackendAway, "away")
	want(t, w.Delete(t.Context(), "u1", row.ID), sandbox.CodeBackendAway)
	if kept, err := w.rows.Find(t.Context(), row.ID); err != nil || kept.Status != task.SandboxRunning {
		t.Errorf("%+v, %v", kept, err)
	}
	w.gateway.fail = sandbox.Errorf(sandbox.CodeSandboxNotFound, "gone already")
	want(t, w.Delete(t.Context(), "u1", row.ID), "")
	want(t, w.Delete(t.Context(), "u1", row.ID), sandbox.CodeSandboxNotFound)
}

func TestADeleteEndsTheMaking(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	began := make(chan struct{})
	w.gateway.creating = func(ctx context.Context) error { close(began); <-ctx.Done(); return ctx.Err() }
	row, err := w.Create(t.Context(), "u1", sandboxes.NewSandbox{Name: "n"})
	want(t, err, "")
	<-began
	_, err = w.Exec(t.Context(), "u1", row.ID, sandbox.ExecRequest{Command: []string{"ls"}})
	want(t, err, sandbox.CodeSettling)
	want(t, w.Delete(t.Context(), "u1", row.ID), "")
	if _, err := w.rows.Find(t.Context(), row.ID); !errors.Is(err, task.ErrNotFound) || len(w.gateway.deleted) != 1 {
		t.Errorf("%v, deleted %v", err, w.gateway.deleted)
	}
}

func TestASandboxWhoseRecordWentMeanwhileIsRemoved(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	began, release := make(chan struct{}), make(chan struct{})
	w.gateway.creating = func(context.Context) error { close(began); <-release; return nil }
	row, err := w.Create(t.Context(), "u1", sandboxes.NewSandbox{Name: "n"})
	want(t, err, "")
	<-began
	if err := w.rows.Delete(t.Context(), "u1", row.ID); err != nil { // as another process does
		t.Fatal(err)
	}
	close(release)
	want(t, w.Close(t.Context()), "")
	if diff := cmp.Diff([]string{row.ID}, w.gateway.deleted); diff != "" {
		t.Error(diff)
	}
}

func TestClosingWaitsAndThenGivesUp(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	w.gateway.creating = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	row, err := w.Create(t.Context(), "u1", sandboxes.NewSandbox{Name: "n"})
	want(t, err, "")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Close(over); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if kept, err := w.rows.Find(t.Context(), row.ID); err != nil || kept.Status != task.SandboxStarting {
		t.Errorf("%+v, %v", kept, err)
	}
	_, err = w.Create(t.Context(), "u1", sandboxes.NewSandbox{Name: "m"})
	want(t, err, sandbox.CodeShuttingDown)
	if len(w.rows.kept) != 1 {
		t.Errorf("%d records", len(w.rows.kept))
	}
}

func TestSleepingAndWaking(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	id, ctx := w.create(t, sandboxes.NewSandbox{}).ID, t.Context()
	step := func(name string, call func(context.Context, string, string) (task.Sandbox, error), status, tier string) {
		t.Helper()
		row, err := call(ctx, "u1", id)
		if err != nil || string(row.Status) != status || row.Tier != tier {
			t.Errorf("%s: %s %s, %v", name, row.Status, row.Tier, err)
		}
	}
	step("pause", w.Pause, "sleeping", "frozen")
	step("unpause", w.Start, "running", "running")
	step("stop", w.Stop, "stopped", "stopped")
	step("a look", w.Get, "stopped", "stopped")
	w.config = `{"v":2}`
	step("start", w.Start, "running", "running")
	step("restart", w.Restart, "running", "running")
	w.config = ""
	step("start without a config", w.Start, "running", "running")
	sleeps := []sandbox.HibernateRequest{{Tier: "frozen"}, {Tier: "stopped"}, {Tier: "stopped", Force: true}}
	if diff := cmp.Diff(sleeps, w.gateway.sleeps); diff != "" {
		t.Errorf("sleeps (-want +got):\n%s", diff)
	}
	// The config goes along once, when it has changed; one that is gone too, or the
	// sandbox would keep what it has.
	wakes := []sandbox.WakeRequest{{}, {Config: []byte(`{"v":2}`)}, {}, {Config: []byte(`{"agents_md":""}`)}}
	if diff := cmp.Diff(wakes, w.gateway.wakes); diff != "" {
		t.Errorf("wakes (-want +got):\n%s", diff)
	}
}

func TestWhatTheBackendSaysIsPassedOnClean(t *testing.T) {
	w := newWorld(t, sandboxes.Settings{})
	id, ctx := w.create(t, sandboxes.NewSandbox{}).ID, t.Context()
	logs, err := w.Logs(ctx, "u1", id, 10)
	if err != nil || logs.Logs != "a\\x1b[31mb\n" {
		t.Errorf("%q, %v", logs.Logs, err)
	}
	if _, err := w.Sync(ctx, "u1", id); err != nil || w.rows.kept[id].WorkspaceSyncedAt == nil {
		t.Error(err)
	}
	for _, req := range []sandbox.ExecRequest{{}, {Command: []string{""}}, {Command: []string{"ls"}, TimeoutMs: -1}} {
		_, err := w.Exec(ctx, "u1", id, req)
		want(t, err, sandbox.CodeInvalidRequest)
	}
	for said, told := range map[sandbox.Code]sandbox.Code{
		sandbox.CodeUnauthorized: sandbox.CodeBackendFailed, sandbox.CodeRouteNotFound: sandbox.CodeBackendFailed,
		sandbox.CodeUnsupported: sandbox.CodeUnsupported, sandbox.CodeSandboxBusy: sandbox.CodeSandboxBusy,
	} {
		w.gateway.fail = sandbox.Errorf(said, "said")
		_, err := w.Exec(ctx, "u1", id, sandbox.ExecRequest{Command: []string{"ls"}})
		want(t, err, told)
		_, err = w.Sync(ctx, "u1", id)
		want(t, err, told)
		_, err = w.Stop(ctx, "u1", id)
		want(t, err, told)
	}
}
