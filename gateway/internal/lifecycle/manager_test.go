package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func request(id string) sandbox.CreateRequest {
	return sandbox.CreateRequest{ID: id, UserID: "user_1"}
}

func (w *world) mustCreate(m *Manager, id string) {
	w.t.Helper()
	if _, err := m.Create(w.t.Context(), request(id)); err != nil {
		w.t.Fatal(err)
	}
}

// until waits for what happens in another goroutine.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestWhateverStepOfACreateFailsNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"store.Create", "Create", "Start", guest.RouteOpenCode, guest.RouteStart, guest.RouteExec, "store.Update"} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(func(s *Settings) { s.Deadlines.Guest = time.Second })
			w.setFail(step, errInjected)
			req := request("a")
			req.GitURL = "https://example.test/r.git"
			_, err := m.Create(t.Context(), req)
			if err == nil || !strings.Contains(err.Error(), "step ") {
				t.Fatalf("error = %v, want one that names the step", err)
			}
			w.setFail(step, nil)
			if left := w.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
			if _, err := m.Get(t.Context(), "a"); !sandbox.HasCode(err, sandbox.CodeSandboxNotFound) {
				t.Errorf("get after the failure: %v", err)
			}
			if _, err := m.Create(t.Context(), req); err != nil {
				t.Errorf("the id cannot be used again: %v", err)
			}
		})
	}
}

func TestAFailedCloneFailsTheCreateInGitsWordsWithoutTheCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.execReply.ExitCode = 128
	w.execStderr = "fatal: Authentication failed for 'https://u:hunter2@example.test/r.git'\x1b[31m"
	req := request("a")
	req.GitURL = "https://u:hunter2@example.test/r.git"
	_, err := m.Create(t.Context(), req)
	if !sandbox.HasCode(err, sandbox.CodeCloneFailed) {
		t.Fatalf("error = %v", err)
	}
	e, _ := errors.AsType[*sandbox.Error](err)
	if !strings.Contains(e.Message, "Authentication failed") || strings.Contains(e.Error(), "hunter2") || strings.Contains(e.Message, "\x1b") {
		t.Errorf("message = %q", e.Message)
	}
	if left := w.left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestTwoCreatesOfOneIDGiveOneSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := m.Create(t.Context(), request("a")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := w.count("Create"); n != 1 {
		t.Errorf("%d containers were made", n)
	}
	req := request("a")
	req.UserID = "somebody else"
	if _, err := m.Create(t.Context(), req); !sandbox.HasCode(err, sandbox.CodeOwnerConflict) {
		t.Errorf("another owner: %v", err)
	}
}

func TestADeleteEndsACreateAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"store.Create", "Create", "Start", guest.RouteStart} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager()
			entered, release := w.hold(step)
			defer release()
			created := make(chan error, 1)
			go func() {
				_, err := m.Create(t.Context(), request("a"))
				created <- err
			}()
			<-entered
			if err := m.Delete(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if err := <-created; !sandbox.HasCode(err, sandbox.CodeSandboxDeleted) {
				t.Errorf("the create answered %v", err)
			}
			if left := w.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

func TestACreateGoesOnWhenItsCallerLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	entered, release := w.hold(guest.RouteStart)
	ctx, leave := context.WithCancel(t.Context())
	created := make(chan error, 1)
	go func() {
		_, err := m.Create(ctx, request("a"))
		created <- err
	}()
	<-entered
	leave()
	if err := <-created; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that left got %v", err)
	}
	release()
	w.mustCreate(m, "a")
	if n := w.count("Create"); n != 1 {
		t.Errorf("%d containers were made", n)
	}
}

func TestNothingOfADeletedSandboxLivesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	old, err := m.Use(t.Context(), "a", Looking)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(context.Cause(old.Life), ErrDeleted) {
		t.Error("the life of the old one goes on")
	}
	if !slices.Contains(w.dropped, old.Run) {
		t.Error("its connections were not dropped")
	}
	req := request("a")
	req.UserID = "user_2"
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	fresh, err := m.Use(t.Context(), "a", Looking)
	if err != nil {
		t.Fatal(err)
	}
	if fresh.Incarnation == old.Incarnation || fresh.Password == old.Password || fresh.Life.Err() != nil {
		t.Error("the new one has something of the old")
	}
	before := len(w.told())
	m.Tell(old, sandbox.EventSessionMessage, nil)
	if len(w.told()) != before {
		t.Error("a notice of the old one was sent in the name of the new")
	}
}

func TestADeleteThatTheEnginePreventsIsFinishedLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail("Remove", errInjected)
	if err := m.Delete(t.Context(), "a"); !sandbox.HasCode(err, sandbox.CodeEngineAway) {
		t.Fatalf("delete: %v", err)
	}
	if _, err := m.Get(t.Context(), "a"); !sandbox.HasCode(err, sandbox.CodeSandboxNotFound) {
		t.Errorf("callers still see it: %v", err)
	}
	w.setFail("Remove", nil)
	until(t, "nothing is left", func() bool {
		m.reconcile(t.Context()) // passes over one that somebody is at
		return w.left() == ""
	})
	w.mustCreate(m, "a")
}

func TestRequestsForAStoppedSandboxShareOneStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.die(m, "a", 137)
	until(t, "the death is noticed", func() bool {
		info, err := m.Get(t.Context(), "a")
		return err == nil && info.Status == sandbox.StatusStopped && strings.Contains(info.LastError, "137")
	})
	entered, release := w.hold("Start")
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if _, err := m.Use(t.Context(), "a", Looking); err != nil {
				t.Error(err)
			}
		})
	}
	<-entered
	release()
	group.Wait()
	if n := w.count("Start"); n != 2 {
		t.Errorf("started %d times, want once more", n-1)
	}
	if !slices.Contains(w.told(), "sandbox.stopped a") || !slices.Contains(w.told(), "sandbox.woken a") {
		t.Errorf("notices: %v", w.told())
	}
}

func TestRequestsThatWaitShareOneFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.MaxHeld = 3 })
	w.mustCreate(m, "a")
	w.die(m, "a", 1)
	entered, release := w.hold("Start")
	w.setFail("Start", errInjected)
	results := make(chan error, 4)
	use := func() { _, err := m.Use(t.Context(), "a", Looking); results <- err }
	go use()
	<-entered
	go use()
	go use()
	b := m.find("a")
	until(t, "all of them wait", func() bool { return b.held.Load() == 3 })
	go use()
	if err := <-results; !sandbox.HasCode(err, sandbox.CodeNoCapacity) {
		t.Errorf("one too many: %v", err)
	}
	release()
	for range 3 {
		if err := <-results; !sandbox.HasCode(err, sandbox.CodeEngineAway) {
			t.Errorf("waiting request: %v", err)
		}
	}
	if n := w.count("Start"); n != 2 {
		t.Errorf("started %d times, want one failing try for all", n-1)
	}
	w.setFail("Start", nil)
	if _, err := m.Use(t.Context(), "a", Looking); err != nil {
		t.Errorf("it does not heal: %v", err)
	}
}

func TestNoMoreSandboxesRunThanMay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.MaxRunning = 2 })
	w.mustCreate(m, "a")
	w.mustCreate(m, "b")
	_, err := m.Create(t.Context(), request("c"))
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || e.Code != sandbox.CodeNoCapacity || e.RetryAfter == 0 {
		t.Fatalf("the third: %v", err)
	}
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.mustCreate(m, "c")
}

func TestARestartPutsStoreAndEngineTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.manager()
	for _, id := range []string{"runs", "exited", "vanished", "lost"} {
		w.mustCreate(first, id)
	}
	_ = first.Close(t.Context())

	w.mu.Lock()
	for id, c := range w.containers {
		switch c.SandboxID {
		case "exited":
			c.State = ContainerExited
		case "vanished":
			delete(w.containers, id)
		case "lost":
			delete(w.containers, id)
			delete(w.volumes, w.records["lost"].Record.Volume)
		}
	}
	// What a kill -9 leaves: a create that never answered, a delete cut short,
	// and things whose record is gone.
	w.containers["half-c"] = &Container{ID: "half-c", SandboxID: "half", State: ContainerRunning}
	w.volumes["half-volume"] = true
	w.records["half"] = Stored{Record{SandboxID: "half", Phase: PhaseCreating, Volume: "half-volume"}, "1"}
	w.records["dying"] = Stored{Record{SandboxID: "dying", Phase: PhaseDeleting, Volume: "dying-volume"}, "1"}
	w.volumes["dying-volume"] = true
	w.containers["orphan-c"] = &Container{ID: "orphan-c", SandboxID: "orphan", State: ContainerExited}
	// A volume without a record may be all that is left of somebody's work.
	w.volumes["agentpod-kept.1"], w.volumes["agentpod-runs.left"] = true, true
	w.mu.Unlock()

	m := w.manager()
	status := func(id string) sandbox.Status {
		info, err := m.Get(t.Context(), id)
		if err != nil {
			return ""
		}
		return info.Status
	}
	until(t, "the orphans are gone and the running one is adopted", func() bool {
		left := w.left()
		return status("runs") == sandbox.StatusRunning && !strings.Contains(left, "half") && !strings.Contains(left, "dying") && !strings.Contains(left, "orphan") && !strings.Contains(left, "runs.left")
	})
	for _, id := range []string{"runs", "exited", "vanished"} {
		if _, err := m.Use(t.Context(), id, Looking); err != nil {
			t.Errorf("%s cannot be used: %v", id, err)
		}
	}
	if _, err := m.Use(t.Context(), "lost", Looking); !sandbox.HasCode(err, sandbox.CodeWorkspaceLost) {
		t.Errorf("lost: %v", err)
	}
	if got := status("lost"); got != sandbox.StatusError {
		t.Errorf("status of the lost one = %s", got)
	}
	for _, id := range []string{"runs", "exited", "vanished", "lost"} {
		if err := m.Delete(t.Context(), id); err != nil {
			t.Errorf("deleting %s: %v", id, err)
		}
	}
	if left := w.left(); left != "volume agentpod-kept.1" {
		t.Errorf("left behind: %s", left)
	}
}

func TestWhatBelongsToAnUnreadableRecordIsNotTakenForOrphaned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.unreadable["a"] = errors.New("damaged")
	w.containers["x"] = &Container{ID: "x", SandboxID: "a", State: ContainerExited}
	w.volumes["agentpod-a.v"] = true
	m := w.manager()
	until(t, "the first reconcile", func() bool { return w.count("Volumes") > 0 })
	if left := w.left(); left != "container x, volume agentpod-a.v" {
		t.Errorf("left: %s", left)
	}
	info, err := m.Get(t.Context(), "a")
	if err != nil || info.Status != sandbox.StatusError || !strings.Contains(info.LastError, "damaged") {
		t.Errorf("get: %+v, %v", info, err)
	}
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Errorf("it cannot be deleted: %v", err)
	}
	m.reconcile(t.Context())
	if left := w.left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestAContainerRemovedBehindOurBackIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mu.Lock()
	clear(w.containers)
	w.mu.Unlock()
	m.reconcile(t.Context())
	info, err := m.Get(t.Context(), "a")
	if err != nil || info.Status != sandbox.StatusStopped || !strings.Contains(info.LastError, "removed outside") {
		t.Errorf("get: %+v, %v", info, err)
	}
	if _, err := m.Use(t.Context(), "a", Looking); err != nil {
		t.Errorf("it does not come back on its volume: %v", err)
	}
}

func TestAConfigThatOpenCodeRejectsIsNotKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail(guest.RouteConfig, sandbox.Errorf(sandbox.CodeConfigRejected, "model must be a string"))
	_, err := m.Wake(t.Context(), "a", []byte(`{"model":1}`), "")
	if !sandbox.HasCode(err, sandbox.CodeConfigRejected) || !strings.Contains(err.Error(), "model must be a string") {
		t.Fatalf("wake: %v", err)
	}
	if got := w.records["a"].Record.Secrets.Config; got != nil {
		t.Errorf("record has %s", got)
	}
	w.setFail(guest.RouteConfig, nil)
	if _, err := m.Wake(t.Context(), "a", []byte(`{"model":"x/y"}`), ""); err != nil {
		t.Fatal(err)
	}
	if got := string(w.records["a"].Record.Secrets.Config); got != `{"model":"x/y"}` {
		t.Errorf("record has %s", got)
	}
}

func TestAnEmptyWorkspaceIsFilledByALaterCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	req := request("a")
	req.GitURL = "https://example.test/r.git"
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.listing = []guest.Entry{{Name: "README.md", Type: "file"}}
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if len(w.execs) != 1 {
		t.Errorf("%d commands were run, want one clone", len(w.execs))
	}
}

func TestALaterCloneIsNotGivenCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	req := request("a")
	req.GitURL = "https://u:hunter2@example.test/r.git"
	_, err := m.Create(t.Context(), req)
	if !sandbox.HasCode(err, sandbox.CodeConflict) || !strings.Contains(err.Error(), "create a new sandbox with this gitUrl") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if len(w.execs) != 0 {
		t.Errorf("run in it: %+v", w.execs)
	}
	w.listing = []guest.Entry{{Name: "README.md", Type: "file"}}
	if _, err := m.Create(t.Context(), req); err != nil { // as a caller asks again whose answer was lost
		t.Errorf("a workspace that is filled: %v", err)
	}
}

func TestACloneWithCredentialsIsOverBeforeOpenCodeStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	for n := range 20 { // beside each other the one is as often first as the other
		entered, release := w.hold(guest.RouteExec)
		req := request(fmt.Sprint("box-", n))
		req.GitURL = "https://u:hunter2@example.test/r.git"
		created := make(chan error, 1)
		go func() {
			_, err := m.Create(t.Context(), req)
			created <- err
		}()
		<-entered
		during := w.count(guest.RouteStart)
		release()
		if err := <-created; err != nil {
			t.Fatal(err)
		}
		if after := w.count(guest.RouteStart); during != n || after != n+1 {
			t.Fatalf("OpenCode was started %d times while git had the credentials, and %d times after", during-n, after-n)
		}
	}
}

func TestACallerThatSaysWhereADefaultKeyGoesIsRefusedByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.Defaults = parsed(t, `{"auth":{"anthropic":{"type":"api","key":"operators-key"}}}`)
	})
	const field = "config.provider.anthropic.options.baseURL"
	config := []byte(`{"provider":{"anthropic":{"options":{"baseURL":"https://x.test"}}}}`)
	refused := func(what string, err error) {
		t.Helper()
		if !sandbox.HasCode(err, sandbox.CodeInvalidRequest) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", what, err)
		}
	}
	req := request("a")
	req.Config = config
	_, err := m.Create(t.Context(), req)
	refused("create", err)
	w.mustCreate(m, "a")
	_, err = m.Wake(t.Context(), "a", config, "")
	refused("wake", err)
	_, err = m.Create(t.Context(), req)
	refused("create again", err)
	if got := m.Defaults().Credentials; !slices.Equal(got, []string{"anthropic"}) {
		t.Errorf("the defaults have credentials of %q", got)
	}
}

func TestOnlyASandboxThatHasBeenUsedMayStartBare(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.NoProjectConfig = true })
	w.mustCreate(m, "a")
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierStopped, true); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wake(t.Context(), "a", nil, ""); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.starts) != 2 || w.starts[0].MayBare || !w.starts[1].MayBare || !w.starts[0].NoProjectConfig || !w.starts[1].NoProjectConfig {
		t.Errorf("OpenCode was started with %+v", w.starts)
	}
}

func TestPagesOfTheListAreWholeAndInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	want := []string{"a", "b", "c", "d", "e"}
	for _, id := range slices.Backward(want) {
		w.mustCreate(m, id)
	}
	var got []string
	f := Filter{UserID: "user_1", Limit: 2}
	for {
		page := m.List(f)
		for _, s := range page.Sandboxes {
			got = append(got, s.SandboxID)
		}
		if f.Cursor = page.NextCursor; f.Cursor == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages give %v", got)
	}
	if page := m.List(Filter{UserID: "nobody", Limit: 2}); len(page.Sandboxes) != 0 {
		t.Errorf("another user's list has %v", page.Sandboxes)
	}
}

func TestEveryStateCanBeLeftAndDeleted(t *testing.T) {
	t.Parallel()
	for from, row := range transitions {
		if from != stateDeleting && !from.mayBecome(stateDeleting) {
			t.Errorf("%s cannot be deleted", from)
		}
		for _, to := range row.next {
			if _, ok := transitions[to]; !ok {
				t.Errorf("%s leads to %s, which is not in the table", from, to)
			}
		}
	}
}

func TestShutdownEndsWhatWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	entered, release := w.hold(guest.RouteStart)
	defer release()
	created := make(chan error, 1)
	go func() {
		_, err := m.Create(t.Context(), request("a"))
		created <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-created; sandbox.CodeOf(err).Status() != http.StatusServiceUnavailable {
		t.Errorf("the create answered %v", err)
	}
	if left := w.left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestAConfigThatIsBrokenCanBeReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.die(m, "a", 1)
	w.setFail(guest.RouteStart, sandbox.Errorf(sandbox.CodeConfigRejected, "what is on record is broken"))
	if _, err := m.Wake(t.Context(), "a", nil, ""); !sandbox.HasCode(err, sandbox.CodeConfigRejected) {
		t.Fatalf("wake with the broken one: %v", err)
	}
	w.acceptConfig(`"model": "good/one"`)
	resp, err := m.Wake(t.Context(), "a", []byte(`{"model":"good/one"}`), "")
	if err != nil || resp.FilesWritten != 1 {
		t.Fatalf("wake with a good one: %+v, %v", resp, err)
	}
	if got := string(w.records["a"].Record.Secrets.Config); got != `{"model":"good/one"}` {
		t.Errorf("record has %s", got)
	}
}

func TestAWakeThatFailsLeavesNothingRunning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.MaxRunning = 1 })
	w.mustCreate(m, "a")
	w.die(m, "a", 1)
	w.setFail(guest.RouteStart, errInjected)
	if _, err := m.Use(t.Context(), "a", Looking); err == nil {
		t.Fatal("no error")
	}
	m.reconcile(t.Context())
	info, err := m.Get(t.Context(), "a")
	if err != nil || info.Status != sandbox.StatusStopped || w.count("Stop") == 0 {
		t.Errorf("%+v, %v, stopped %d times", info, err, w.count("Stop"))
	}
	if strings.Contains(info.LastError, "guest_failed") || info.LastError == "" {
		t.Errorf("lastError = %q, want the sentence alone", info.LastError)
	}
	w.setFail(guest.RouteStart, nil)
	if _, err := m.Use(t.Context(), "a", Looking); err != nil {
		t.Fatal(err)
	}
	if info, _ := m.Get(t.Context(), "a"); info.LastError != "" {
		t.Errorf("lastError stays: %q", info.LastError)
	}
}

func TestADeleteWhoseCallerLeftIsFinished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	b := m.find("a")
	var release func()
	until(t, "what follows a create has ended", func() (ok bool) {
		release, ok = b.trySerial()
		return ok
	})
	ctx, leave := context.WithCancel(t.Context())
	deleted := make(chan error, 1)
	go func() { deleted <- m.Delete(ctx, "a") }()
	<-b.life.Done()
	leave()
	if err := <-deleted; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}
	release()
	until(t, "it is deleted all the same", func() bool { return w.left() == "" })
}

func TestACloneThatTakesLongKeepsNobodyFromBooting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.BootConcurrency = 1 })
	for name, directory := range map[string]string{"beside": "", "before": "sub"} {
		entered, release := w.hold(guest.RouteExec)
		slow := request("slow-" + name)
		slow.GitURL, slow.Directory = "https://example.test/r.git", directory
		created := make(chan error, 1)
		go func() {
			_, err := m.Create(t.Context(), slow)
			created <- err
		}()
		<-entered
		w.mustCreate(m, "quick-"+name)
		release()
		if err := <-created; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAWriteThatLandedThoughItFailedDoesNotBlockTheNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail("store.Update landed", errors.New("the folder could not be synced"))
	if _, err := m.Wake(t.Context(), "a", []byte(`{"model":"x/y"}`), ""); !sandbox.HasCode(err, sandbox.CodeStoreAway) {
		t.Fatalf("wake: %v", err)
	}
	w.setFail("store.Update landed", nil)
	if _, err := m.Wake(t.Context(), "a", []byte(`{"model":"x/z"}`), ""); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestAStoreThatCannotBeWrittenKeepsNothingFromBeingDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail("store.Update", errors.New("no space left"))
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestADeleteDuringAWakeIsNoFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.die(m, "a", 1)
	entered, release := w.hold(guest.RouteStart)
	defer release()
	woken := make(chan error, 1)
	go func() {
		_, err := m.Use(t.Context(), "a", Looking)
		woken <- err
	}()
	<-entered
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := <-woken; !sandbox.HasCode(err, sandbox.CodeSandboxDeleted) {
		t.Errorf("who waited got %v", err)
	}
	if slices.Contains(w.told(), "sandbox.error a") {
		t.Errorf("notices: %v", w.told())
	}
}

func TestAVolumeRemovedBehindOurBackIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mu.Lock()
	clear(w.containers)
	clear(w.volumes)
	w.mu.Unlock()
	until(t, "the container is missed, and then the volume", func() bool {
		m.reconcile(t.Context()) // passes over one that somebody is at
		info, err := m.Get(t.Context(), "a")
		return err == nil && info.Status == sandbox.StatusError && !info.HasWorkspace
	})
}

func TestACloneThatFailsInAWorkspaceThatWasEmptyLeavesItEmpty(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.execReply.ExitCode = 137
	req := request("a")
	req.GitURL = "https://example.test/r.git"
	if _, err := m.Create(t.Context(), req); !sandbox.HasCode(err, sandbox.CodeCloneFailed) {
		t.Fatalf("create: %v", err)
	}
	if n := len(w.execs); n != 2 || w.execs[1].Command[0] != "find" {
		t.Errorf("commands: %+v", w.execs)
	}
}
