// Package clienttest holds what every sandbox.Backend must do, as a suite of
// tests that runs against a real gateway and against a fake of the Cloudflare
// worker, and that fake.
package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Capabilities are where backends may differ. What is false must be refused as
// unsupported.
type Capabilities struct {
	// Provider is what Info.Provider says.
	Provider string
	// GitURL is a repository that sandboxes of the backend can clone, with a
	// README.md in it.
	GitURL string
	// UnknownSession is the code of a message to a session that does not exist.
	UnknownSession sandbox.Code

	List, Hibernate, Snapshots, Logs, Exec, Stats, Files, UI bool
	// Delete says that OpenCode's own DELETE routes can be used, and Events that
	// a turn's events can be watched. Neither is refused as a call of its own.
	Delete, Events bool
}

// Gateway are the capabilities of a gateway.
func Gateway(gitURL string) Capabilities {
	return Capabilities{
		Provider: "docker", GitURL: gitURL, UnknownSession: sandbox.CodeSessionNotFound,
		List: true, Hibernate: true, Snapshots: true, Logs: true, Exec: true, Stats: true, Files: true, UI: true,
		Delete: true, Events: true,
	}
}

// CloudflareWorker are the capabilities of the worker.
func CloudflareWorker(gitURL string) Capabilities {
	return Capabilities{Provider: sandbox.ProviderCloudflare, GitURL: gitURL, UnknownSession: sandbox.CodeOpenCodeFailed}
}

// patience bounds each test of the suite: containers may have to boot.
const patience = 5 * time.Minute

// suite is one run. Its tests share one sandbox: a real one takes seconds to boot.
type suite struct {
	backend sandbox.Backend
	caps    Capabilities
	id      string
}

// Run runs the suite against a backend whose model echoes. newClient is called
// once, and closes what it makes with the test. Sandboxes with ids that begin with
// "clienttest-" are made and deleted.
func Run(t *testing.T, newClient func(*testing.T) sandbox.Backend, caps Capabilities) {
	t.Helper()
	s := &suite{backend: newClient(t), caps: caps, id: "clienttest-1"}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, id := range []string{s.id, "clienttest-git"} {
			if err := s.backend.Delete(ctx, id); err != nil {
				t.Errorf("deleting %s: %v", id, err)
			}
		}
	})
	for _, test := range []struct {
		name string
		run  func(context.Context, *testing.T)
	}{
		{"it is healthy", s.health},
		{"what does not exist is not found, and deleting it is a success", s.unknown},
		{"a create answers when the sandbox runs, and can be repeated", s.create},
		{"another owner's id is refused", s.owner},
		{"ids that the contract does not allow are refused", s.ids},
		{"a message is answered with its parts, in a session that goes on", s.message},
		{"a message that cannot be answered is an error", s.badMessages},
		{"a sync stores the workspace", s.sync},
		{"a wake of what runs is a success", s.wake},
		{"a list holds the sandbox", s.list},
		{"logs are the lines asked for", s.logs},
		{"a command gives its output and exit code", s.exec},
		{"stats are figures", s.stats},
		{"a way into the web UI is given until its session ends", s.ui},
		{"files are written, read, listed and deleted", s.files},
		{"snapshots are listed", s.snapshots},
		{"a hibernated sandbox sleeps and wakes", s.hibernate},
		{"a session of OpenCode through the transport", s.session},
		{"events through the transport", s.events},
		{"paths that leave the sandbox are refused", s.paths},
		{"a call ends with its context", s.cancelled},
		{"a repository is cloned once", s.git},
		{"a deleted sandbox is gone", s.gone},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			test.run(ctx, t)
		})
	}
}

// must fails the test unless err is nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode checks that err is an *Error with a code.
func wantCode(t *testing.T, what string, err error, code sandbox.Code) {
	t.Helper()
	if !sandbox.HasCode(err, code) {
		t.Errorf("%s: error %v, want %s", what, err, code)
	}
}

// can says whether a call that needs a capability succeeded. Without it the call
// must have been refused with a sentence that says so.
func can(t *testing.T, has bool, err error) bool {
	t.Helper()
	if has {
		must(t, err)
		return true
	}
	wantCode(t, "a call that the backend cannot do", err, sandbox.CodeUnsupported)
	if e, ok := errors.AsType[*sandbox.Error](err); ok && !strings.Contains(e.Message, " cannot ") {
		t.Errorf("the message %q does not say what cannot be done", e.Message)
	}
	return false
}

func (s *suite) health(ctx context.Context, t *testing.T) {
	must(t, s.backend.Health(ctx))
}

func (s *suite) unknown(ctx context.Context, t *testing.T) {
	_, err := s.backend.Get(ctx, "clienttest-unknown")
	wantCode(t, "get", err, sandbox.CodeSandboxNotFound)
	must(t, s.backend.Delete(ctx, "clienttest-unknown"))
	must(t, s.backend.Delete(ctx, "clienttest-unknown"))
}

func (s *suite) create(ctx context.Context, t *testing.T) {
	for range 2 {
		made, err := s.backend.Create(ctx, sandbox.CreateRequest{ID: s.id, UserID: "user_1"})
		must(t, err)
		if made.SandboxID != s.id || made.Status != sandbox.StatusRunning ||
			made.OpenCodeURL != "/sandbox/"+s.id+"/opencode" || made.ServerPort != sandbox.OpenCodePort {
			t.Errorf("created %+v", made)
		}
	}
	info, err := s.backend.Get(ctx, s.id)
	must(t, err)
	if info.SandboxID != s.id || info.UserID != "user_1" || info.Status != sandbox.StatusRunning || info.Provider != s.caps.Provider {
		t.Errorf("got %+v", info)
	}
	if age := time.Since(info.CreatedAt.Time); age < -time.Minute || age > patience {
		t.Errorf("created at %v", info.CreatedAt)
	}
}

func (s *suite) owner(ctx context.Context, t *testing.T) {
	_, err := s.backend.Create(ctx, sandbox.CreateRequest{ID: s.id, UserID: "user_2"})
	wantCode(t, "another owner", err, sandbox.CodeOwnerConflict)
	_, err = s.backend.Create(ctx, sandbox.CreateRequest{ID: "clienttest-nobody"})
	wantCode(t, "no owner", err, sandbox.CodeInvalidRequest)
}

func (s *suite) ids(ctx context.Context, t *testing.T) {
	for _, id := range []string{"", "..", "a/b", "www", "a%2fb", "-a", strings.Repeat("a", 64)} {
		_, err := s.backend.Create(ctx, sandbox.CreateRequest{ID: id, UserID: "user_1"})
		wantCode(t, fmt.Sprintf("create %q", id), err, sandbox.CodeInvalidID)
		_, err = s.backend.Get(ctx, id)
		wantCode(t, fmt.Sprintf("get %q", id), err, sandbox.CodeInvalidID)
		wantCode(t, fmt.Sprintf("delete %q", id), s.backend.Delete(ctx, id), sandbox.CodeInvalidID)
		_, err = s.backend.Wake(ctx, id, sandbox.WakeRequest{})
		wantCode(t, fmt.Sprintf("wake %q", id), err, sandbox.CodeInvalidID)
		_, err = s.backend.Message(ctx, id, sandbox.MessageRequest{Message: "hello"})
		wantCode(t, fmt.Sprintf("message %q", id), err, sandbox.CodeInvalidID)
		_, err = s.backend.Sync(ctx, id)
		wantCode(t, fmt.Sprintf("sync %q", id), err, sandbox.CodeInvalidID)
		_, _, err = s.backend.OpenCode(id)
		wantCode(t, fmt.Sprintf("OpenCode %q", id), err, sandbox.CodeInvalidID)
	}
}

func (s *suite) message(ctx context.Context, t *testing.T) {
	first, err := s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: "hello one"})
	must(t, err)
	if first.Response != "echo: hello one" || len(first.Parts) == 0 || !strings.HasPrefix(first.SessionID, "ses_") || first.Error != "" {
		t.Errorf("got %+v", first)
	}
	second, err := s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: "and \"two\"", SessionID: first.SessionID})
	must(t, err)
	if second.Response != "echo: and \"two\"" || second.SessionID != first.SessionID {
		t.Errorf("got %+v", second)
	}
}

func (s *suite) badMessages(ctx context.Context, t *testing.T) {
	_, err := s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: " "})
	wantCode(t, "an empty message", err, sandbox.CodeInvalidRequest)
	_, err = s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: "x", SessionID: "ses_doesnotexist000000000000"})
	wantCode(t, "an unknown session", err, s.caps.UnknownSession)
	reply, err := s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: "x", Model: &sandbox.Model{ProviderID: "nope", ModelID: "nope"}})
	if err == nil {
		t.Errorf("an unknown model answered %+v", reply)
	}
	_, err = s.backend.Message(ctx, s.id, sandbox.MessageRequest{Message: "x", Config: []byte("{x")})
	wantCode(t, "a config that is no JSON", err, sandbox.CodeInvalidRequest)
}

func (s *suite) sync(ctx context.Context, t *testing.T) {
	synced, err := s.backend.Sync(ctx, s.id)
	must(t, err)
	if !synced.Success || synced.SandboxID != s.id || synced.Timestamp.IsZero() {
		t.Errorf("got %+v", synced)
	}
	info, err := s.backend.Get(ctx, s.id)
	must(t, err)
	if !info.HasWorkspace {
		t.Error("there is no workspace after the sync")
	}
}

func (s *suite) wake(ctx context.Context, t *testing.T) {
	woken, err := s.backend.Wake(ctx, s.id, sandbox.WakeRequest{})
	must(t, err)
	if !woken.Success || woken.SandboxID != s.id || woken.Status != sandbox.StatusRunning || woken.ServerPort != sandbox.OpenCodePort {
		t.Errorf("got %+v", woken)
	}
	_, err = s.backend.Wake(ctx, s.id, sandbox.WakeRequest{Config: []byte(`{"agents_md":"# Rules\n"}`)})
	must(t, err)
}

func (s *suite) list(ctx context.Context, t *testing.T) {
	page, err := s.backend.List(ctx, sandbox.ListOptions{UserID: "user_1", Status: sandbox.StatusRunning, Limit: 100})
	if !can(t, s.caps.List, err) {
		return
	}
	found := false
	for _, info := range page.Sandboxes {
		found = found || info.SandboxID == s.id
	}
	if !found {
		t.Errorf("the list is %+v", page)
	}
	none, err := s.backend.List(ctx, sandbox.ListOptions{UserID: "nobody & nothing"})
	must(t, err)
	if len(none.Sandboxes) != 0 {
		t.Errorf("nobody has %+v", none)
	}
}

func (s *suite) logs(ctx context.Context, t *testing.T) {
	logs, err := s.backend.Logs(ctx, s.id, 7)
	if can(t, s.caps.Logs, err) && logs.Tail != 7 {
		t.Errorf("got %+v", logs)
	}
}

func (s *suite) exec(ctx context.Context, t *testing.T) {
	got, err := s.backend.Exec(ctx, s.id, sandbox.ExecRequest{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, TimeoutMs: 60_000})
	if can(t, s.caps.Exec, err) && (got.ExitCode != 3 || got.Stdout != "out\n" || got.Stderr != "err\n") {
		t.Errorf("got %+v", got)
	}
}

func (s *suite) stats(ctx context.Context, t *testing.T) {
	stats, err := s.backend.Stats(ctx, s.id)
	if can(t, s.caps.Stats, err) && (stats.MemoryUsage == 0 || stats.MemoryLimit < stats.MemoryUsage) {
		t.Errorf("got %+v", stats)
	}
}

func (s *suite) ui(ctx context.Context, t *testing.T) {
	const session = "a session & more"
	way, err := s.backend.UI(ctx, s.id, session)
	if !can(t, s.caps.UI, err) {
		can(t, false, s.backend.EndUI(ctx, s.id, session))
		return
	}
	if left := time.Until(way.ExpiresAt.Time); !strings.HasPrefix(way.URL, "http") || left <= 0 || left > time.Hour {
		t.Errorf("a way that is good for %s", left)
	}
	must(t, s.backend.EndUI(ctx, s.id, session))
	must(t, s.backend.EndUI(ctx, s.id, session))
	must(t, s.backend.EndUI(ctx, "clienttest-unknown", session))
	_, err = s.backend.UI(ctx, s.id, session)
	wantCode(t, "a session that was ended", err, sandbox.CodeForbidden)
	_, err = s.backend.UI(ctx, s.id, "")
	must(t, err)
	_, err = s.backend.UI(ctx, "clienttest-unknown", "")
	wantCode(t, "a sandbox that does not exist", err, sandbox.CodeSandboxNotFound)
	_, err = s.backend.UI(ctx, "a/b", "")
	wantCode(t, "an id that is none", err, sandbox.CodeInvalidID)
	wantCode(t, "an id that is none", s.backend.EndUI(ctx, "a/b", session), sandbox.CodeInvalidID)
	wantCode(t, "no session", s.backend.EndUI(ctx, s.id, ""), sandbox.CodeInvalidRequest)
}

func (s *suite) files(ctx context.Context, t *testing.T) {
	const folder = "workspace/a folder #1"
	content := bytes.Repeat([]byte{0, 255, '\n', 'x'}, 50_000)
	names := []string{"plain.json", "a b&c?d.txt", "100%.txt", "%41", "ümläut;x", "...", "q\"uote"}
	for _, name := range names {
		err := s.backend.WriteFile(ctx, s.id, folder+"/"+name, 0o600, bytes.NewReader(content), int64(len(content)))
		if !can(t, s.caps.Files, err) {
			s.noFiles(ctx, t)
			return
		}
		file, err := s.backend.ReadFile(ctx, s.id, folder+"/"+name)
		must(t, err)
		got, err := io.ReadAll(file.Body)
		must(t, err)
		must(t, file.Close())
		if file.Size != int64(len(content)) || !bytes.Equal(got, content) {
			t.Errorf("%q came back as %d bytes of %d", name, len(got), file.Size)
		}
	}
	must(t, s.backend.WriteFile(ctx, s.id, folder+"/empty", 0, strings.NewReader(""), 0))
	must(t, s.backend.WriteFile(ctx, s.id, folder+"/unknown size", 0, strings.NewReader("abc"), -1))
	listing, err := s.backend.ListFiles(ctx, s.id, folder)
	must(t, err)
	sizes := map[string]int64{}
	for _, e := range listing.Entries {
		sizes[e.Name] = e.Size
	}
	for _, name := range names {
		if sizes[name] != int64(len(content)) {
			t.Errorf("%q is listed with %d bytes", name, sizes[name])
		}
	}
	if sizes["unknown size"] != 3 || len(listing.Entries) != len(names)+2 {
		t.Errorf("listed %+v", listing.Entries)
	}
	if _, err := s.backend.ListFiles(ctx, s.id, ""); err != nil {
		t.Errorf("the home folder: %v", err)
	}
	_, err = s.backend.ReadFile(ctx, s.id, folder)
	wantCode(t, "reading a folder", err, sandbox.CodeInvalidRequest)
	_, err = s.backend.ListFiles(ctx, s.id, folder+"/empty")
	wantCode(t, "listing a file", err, sandbox.CodeInvalidRequest)
	for _, path := range []string{"../x", "workspace/../../x", "workspace/./x", "/etc/passwd", `workspace\x`, "workspace/a\nb", "workspace/%2e%2e/x"} {
		_, err := s.backend.ReadFile(ctx, s.id, path)
		wantCode(t, fmt.Sprintf("reading %q", path), err, sandbox.CodeInvalidPath)
	}
	must(t, s.backend.DeleteFile(ctx, s.id, folder))
	_, err = s.backend.ReadFile(ctx, s.id, folder+"/empty")
	wantCode(t, "reading what was deleted", err, sandbox.CodeFileNotFound)
}

// noFiles checks the rest of what a backend without files must refuse.
func (s *suite) noFiles(ctx context.Context, t *testing.T) {
	_, err := s.backend.ReadFile(ctx, s.id, "workspace/a")
	can(t, false, err)
	_, err = s.backend.ListFiles(ctx, s.id, "workspace")
	can(t, false, err)
	can(t, false, s.backend.DeleteFile(ctx, s.id, "workspace/a"))
}

func (s *suite) snapshots(ctx context.Context, t *testing.T) {
	_, err := s.backend.Snapshots(ctx, s.id)
	if !can(t, s.caps.Snapshots, err) {
		_, err := s.backend.Wake(ctx, s.id, sandbox.WakeRequest{Snapshot: "x"})
		can(t, false, err)
	}
}

func (s *suite) hibernate(ctx context.Context, t *testing.T) {
	slept, err := s.backend.Hibernate(ctx, s.id, sandbox.HibernateRequest{Tier: sandbox.TierStopped, Force: true})
	if !can(t, s.caps.Hibernate, err) {
		return
	}
	if slept.Status != sandbox.StatusSleeping || slept.Tier != sandbox.TierStopped {
		t.Errorf("got %+v", slept)
	}
	info, err := s.backend.Get(ctx, s.id)
	must(t, err)
	if info.Status != sandbox.StatusSleeping || info.LastSnapshot == nil {
		t.Errorf("got %+v", info)
	}
	snapshots, err := s.backend.Snapshots(ctx, s.id)
	must(t, err)
	if len(snapshots) == 0 || snapshots[0].ID != info.LastSnapshot.ID {
		t.Errorf("snapshots %+v, the last is %+v", snapshots, info.LastSnapshot)
	}
	_, err = s.backend.Wake(ctx, s.id, sandbox.WakeRequest{})
	must(t, err)
}

// openCode makes a client of the sandbox's OpenCode.
func (s *suite) openCode(t *testing.T) (client *opencode.Client, transport http.RoundTripper, base string) {
	t.Helper()
	transport, base, err := s.backend.OpenCode(s.id)
	must(t, err)
	return opencode.New(transport, base, "not the password"), transport, base
}

func (s *suite) session(ctx context.Context, t *testing.T) {
	oc, transport, base := s.openCode(t)
	session, err := oc.CreateSession(ctx, "Agent Task")
	must(t, err)
	message, err := oc.PromptMessage(ctx, session.ID, opencode.Prompt{Text: "through OpenCode"})
	must(t, err)
	if message.Info.SessionID != session.ID || !bytes.Contains(bytes.Join(rawParts(message), nil), []byte("echo: through OpenCode")) {
		t.Errorf("got %+v", message)
	}
	must(t, oc.PromptAsync(ctx, session.ID, opencode.Prompt{Text: "without waiting"}))
	must(t, oc.Abort(ctx, session.ID))
	if _, err := oc.PromptMessage(ctx, "ses_doesnotexist000000000000", opencode.Prompt{Text: "x"}); err == nil {
		t.Error("an unknown session answered")
	}

	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, base+"/session/"+session.ID, nil)
	must(t, err)
	resp, err := transport.RoundTrip(req)
	if can(t, s.caps.Delete, err) {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("deleting a session: %s", resp.Status)
		}
		if _, err := oc.GetSession(ctx, session.ID); !opencode.IsNotFound(err) {
			t.Errorf("the deleted session: %v", err)
		}
	}
}

func rawParts(m opencode.Message) [][]byte {
	parts := make([][]byte, 0, len(m.Parts))
	for _, p := range m.Parts {
		parts = append(parts, p)
	}
	return parts
}

func (s *suite) events(ctx context.Context, t *testing.T) {
	oc, _, _ := s.openCode(t)
	session, err := oc.CreateSession(ctx, "Agent Task")
	must(t, err)
	enough := errors.New("enough")
	var seen []string
	err = oc.Events(ctx, func(e opencode.Event) error {
		seen = append(seen, e.Type)
		switch {
		case e.Type == opencode.EventConnected && !s.caps.Events:
			return enough
		case e.Type == opencode.EventConnected:
			return oc.PromptAsync(ctx, session.ID, opencode.Prompt{Text: "watched"})
		case e.Type == opencode.EventIdle && strings.Contains(string(e.Properties), session.ID):
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("error %v after %v", err, seen)
	}
	if s.caps.Events && !strings.Contains(strings.Join(seen, " "), "message.part.") {
		t.Errorf("the turn's events were %v", seen)
	}
}

func (s *suite) paths(ctx context.Context, t *testing.T) {
	_, transport, base := s.openCode(t)
	for _, below := range []string{
		"/../../clienttest-2", "/%2e%2e/%2e%2e/clienttest-2/opencode/session", "/.%2E/..%2f..", "/%252e%252e/x", "/a%5c..%5cb", "/..;/x", "/a%00", "/%0d%0ax", "x",
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+below, nil)
		must(t, err)
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		wantCode(t, fmt.Sprintf("%q", below), err, sandbox.CodeInvalidPath)
	}
}

func (s *suite) cancelled(ctx context.Context, t *testing.T) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := s.backend.Get(ctx, s.id)
	wantCode(t, "get", err, sandbox.CodeDeadline)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("get: error %v does not say that the context ended", err)
	}
	oc, _, _ := s.openCode(t)
	if _, err := oc.CreateSession(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenCode: error %v does not say that the context ended", err)
	}
}

func (s *suite) git(ctx context.Context, t *testing.T) {
	const id = "clienttest-git"
	for range 2 {
		made, err := s.backend.Create(ctx, sandbox.CreateRequest{ID: id, UserID: "user_1", GitURL: s.caps.GitURL})
		must(t, err)
		if made.Status != sandbox.StatusRunning {
			t.Errorf("created %+v", made)
		}
	}
	if s.caps.Files {
		file, err := s.backend.ReadFile(ctx, id, "workspace/README.md")
		must(t, err)
		must(t, file.Close())
	}
	info, err := s.backend.Get(ctx, id)
	must(t, err)
	if info.GitURL != s.caps.GitURL {
		t.Errorf("got %+v", info)
	}
}

func (s *suite) gone(ctx context.Context, t *testing.T) {
	must(t, s.backend.Delete(ctx, s.id))
	_, err := s.backend.Get(ctx, s.id)
	wantCode(t, "get", err, sandbox.CodeSandboxNotFound)
	must(t, s.backend.Delete(ctx, s.id))
}
