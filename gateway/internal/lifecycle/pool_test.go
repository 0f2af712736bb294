package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// once is a pool that is filled once: what is taken is not replaced.
func once(size int) func(*Settings) {
	return func(s *Settings) {
		s.Pool.Size, s.Pool.Pause, s.Pool.LookEvery, s.Pool.Retry = size, time.Hour, time.Hour, time.Millisecond
	}
}

// restless is a pool that is always looked at and filled at once.
func restless(s *Settings) {
	s.Pool.Size, s.Pool.Pause, s.Pool.LookEvery, s.Pool.Retry = 1, 0, time.Millisecond, time.Millisecond
}

func (m *Manager) ahead() []string {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	var all []string
	for _, mem := range m.pool.ready {
		all = append(all, mem.cont.ID)
	}
	return all
}

func (w *world) pooled(m *Manager, n int) []string {
	w.t.Helper()
	until(w.t, fmt.Sprint(n, " are ready ahead"), func() bool { return len(m.ahead()) == n })
	return m.ahead()
}

func (w *world) recordOf(id string) Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[id].Record
}

func (w *world) containerOf(id string) Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.SandboxID == id {
			return *c
		}
	}
	return Container{}
}

func TestACreateTakesAContainerThatIsReadyAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(once(1), func(s *Settings) { s.Defaults = Config{OpenCode: map[string]any{"model": "p/m"}} })
	ahead := w.pooled(m, 1)
	if list := m.List(Filter{}); len(list.Sandboxes) > 0 || m.occupied.Load() != 0 {
		t.Errorf("what is ready ahead counts as %+v, %d", list, m.occupied.Load())
	}
	before := time.Now()
	w.mustCreate(m, "a")
	c, rec := w.containerOf("a"), w.recordOf("a")
	if c.ID != ahead[0] || c.State != ContainerRunning || w.count("Create") != 1 {
		t.Errorf("the container is %+v of %d made, ready was %v", c, w.count("Create"), ahead)
	}
	if rec.Phase != PhaseReady || rec.ContainerID != c.ID || rec.Volume != c.Volume || rec.CreatedAt.Before(before) {
		t.Errorf("the record is %+v", rec)
	}
	w.mu.Lock()
	starts, behind := slices.Clone(w.starts), w.background[c.ID]
	w.mu.Unlock()
	if behind {
		t.Error("it has the processors only that nobody else wants")
	}
	if len(starts) != 1 || !starts[0].Warm || string(starts[0].Config.OpenCode) != `{"model":"p/m"}` || starts[0].Password != rec.Secrets.Password {
		t.Errorf("OpenCode was started %d times, first with %+v", len(starts), starts)
	}
	if h, err := m.Use(t.Context(), "a", Working); err != nil || h.Run.ID != c.ID {
		t.Errorf("%+v, %v", h, err)
	} else {
		h.Release()
	}
	m.reconcile(t.Context()) // nothing of it is an orphan
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestNoContainerServesTwoSandboxes(t *testing.T) {
	t.Parallel()
	const size, creates = 3, 8
	w := newWorld(t)
	m := w.manager(once(size))
	w.pooled(m, size)
	var group sync.WaitGroup
	for i := range creates {
		group.Go(func() {
			if _, err := m.Create(t.Context(), request(fmt.Sprint("a", i))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := map[string]bool{}
	for i := range creates {
		rec := w.recordOf(fmt.Sprint("a", i))
		for _, what := range []string{rec.ContainerID, rec.Volume, rec.Secrets.Token, rec.Secrets.Password} {
			if seen[what] || what == "" {
				t.Errorf("%q is there twice", what)
			}
			seen[what] = true
		}
	}
	if n := w.count("Create"); n != creates {
		t.Errorf("%d containers were made", n)
	}
}

func TestAConfigOrFilesOfItsOwnReachTheSandboxFromThePool(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request  func(*sandbox.CreateRequest)
		mirrored bool
		starts   int // after the one that warmed it
		reload   bool
		written  int
	}{
		"nothing":    {},
		"a config":   {request: func(r *sandbox.CreateRequest) { r.Config = []byte(`{"model":"own/m","agents_md":"x"}`) }, starts: 1, written: 2},
		"repository": {request: func(r *sandbox.CreateRequest) { r.GitURL = "https://example.test/r.git" }, starts: 1, reload: true},
		"a mirror":   {mirrored: true, starts: 1, reload: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.mirrors["a"] = c.mirrored
			m := w.manager(once(1))
			ahead := w.pooled(m, 1)
			req := request("a")
			if c.request != nil {
				c.request(&req)
			}
			resp, err := m.Create(t.Context(), req)
			if err != nil || resp.FilesWritten != c.written {
				t.Fatalf("%+v, %v", resp, err)
			}
			if got := w.containerOf("a").ID; got != ahead[0] {
				t.Errorf("the container is %s", got)
			}
			if c.mirrored != (w.count("Import") == 1) || (req.GitURL != "") != (w.count(guest.RouteExec) == 1) {
				t.Errorf("%d imports, %d commands", w.count("Import"), w.count(guest.RouteExec))
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.starts) != 1+c.starts || c.starts > 0 && w.starts[1].Reload != c.reload {
				t.Errorf("the starts are %+v", w.starts)
			}
		})
	}
}

func TestAnotherDirectoryTakesNothingFromThePool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(once(1))
	ahead := w.pooled(m, 1)
	req := request("a")
	req.Directory = "sub"
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if now := m.ahead(); !slices.Equal(now, ahead) || w.containerOf("a").ID == ahead[0] {
		t.Errorf("ready are %v", now)
	}
}

func TestAMemberThatIsOfNoUseIsThrownAwayAndTheCreateSucceeds(t *testing.T) {
	t.Parallel()
	broken := sandbox.Errorf(sandbox.CodeGuestFailed, "broken")
	for name, spoil := range map[string]func(w *world, id string){
		"gone":               func(w *world, id string) { delete(w.containers, id) },
		"of another image":   func(w *world, id string) { w.outdated = id },
		"restarted":          func(w *world, _ string) { w.restarts = 1 },
		"frozen for good":    func(w *world, _ string) { w.fail["Unpause"] = errInjected },
		"silent":             func(w *world, _ string) { w.fail["/session/status"] = broken },
		"not to be renamed":  func(w *world, _ string) { w.fail["Rename"] = errInjected },
		"dead at its config": func(w *world, id string) { w.fail["Import"] = broken; w.mirrors["a"] = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(once(1))
			ahead := w.pooled(m, 1)
			w.mu.Lock()
			spoil(w, ahead[0])
			w.mu.Unlock()
			if name == "dead at its config" {
				// Only the member is: the second try of the same succeeds.
				entered, release := w.hold("Import")
				go func() {
					<-entered
					w.setFail("Import", nil)
					release()
				}()
			}
			w.mustCreate(m, "a")
			rec := w.recordOf("a")
			if rec.ContainerID == ahead[0] || strings.Contains(rec.Volume, memberPrefix) {
				t.Errorf("the record has %s and %s", rec.ContainerID, rec.Volume)
			}
			w.mu.Lock()
			w.fail = map[string]error{}
			w.mu.Unlock()
			if err := m.Delete(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if left := w.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

func TestAHalfWarmMemberIsNeverReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setFail(guest.RouteStart, sandbox.Errorf(sandbox.CodeOpenCodeDown, "the turn reached no model"))
	m := w.manager(restless)
	until(t, "it was tried thrice", func() bool { return w.count("Create") >= 3 })
	if n := m.ahead(); len(n) > 0 {
		t.Errorf("%v are ready", n)
	}
	w.setFail(guest.RouteStart, nil)
	w.pooled(m, 1)
}

func TestFailuresAreSpacedOutUntilTheEngineIsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setFail("Create", errInjected)
	m := w.manager(restless, func(s *Settings) { s.Pool.Retry = time.Hour })
	until(t, "it was tried since the engine was heard first", func() bool {
		heard := w.count("List") > 0
		m.pool.mu.Lock()
		defer m.pool.mu.Unlock()
		return heard && time.Until(m.pool.notBefore) > time.Minute
	})
	tried := w.count("Create")
	for range 3 {
		m.pool.nudge() // does not make it more often
	}
	w.setFail("Create", nil)
	w.mustCreate(m, "a")
	if n := w.count("Create"); n != tried+1 {
		t.Errorf("%d containers were tried after %d", n, tried)
	}
	m.pool.heal()
	w.pooled(m, 1)
}

func TestAPoolThatIsOffMakesNothingAndRemovesWhatIsThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.leaveMember("c1", ".pool-old")
	m := w.manager()
	until(t, "nothing is left", func() bool { m.reconcile(t.Context()); return w.left() == "" })
	w.mustCreate(m, "a")
	if n := w.count("Create"); n != 1 {
		t.Errorf("%d containers were made", n)
	}
}

// leaveMember puts a member there that another gateway has made.
func (w *world) leaveMember(id, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	volume := volumePrefix + name
	w.containers[id] = &Container{ID: id, SandboxID: name, State: ContainerPaused, Volume: volume}
	w.volumes[volume], w.volumes[volume+freeSuffix] = true, true
}

func TestWhatIsOldOrOfAnotherImageIsReplaced(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"another image": time.Hour, "old": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(restless, func(s *Settings) { s.Pool.Age = age })
			until(t, "one is ready", func() bool { return len(m.ahead()) > 0 })
			first := m.ahead()[0]
			if name == "another image" {
				w.mu.Lock()
				w.outdated = first
				w.mu.Unlock()
			}
			until(t, "another has its place", func() bool {
				now := m.ahead()
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(now) > 0 && !slices.Contains(now, first) && w.containers[first] == nil
			})
		})
	}
}

func TestAMemberThatEndsByItselfIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(restless, func(s *Settings) { s.Pool.LookEvery = time.Hour })
	first := w.pooled(m, 1)[0]
	until(t, "the engine is listened to", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.events != nil
	})
	w.mu.Lock()
	name := w.containers[first].SandboxID
	w.mu.Unlock()
	w.kill(name, 137)
	until(t, "another is ready", func() bool { now := m.ahead(); return len(now) == 1 && now[0] != first })
}

func TestAPoolLeavesNothingWhenTheGatewayCloses(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"", "CreateVolume", "Create", "Start", guest.RouteStart, "Pause"} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var entered <-chan struct{}
			release := func() {}
			if step != "" {
				entered, release = w.hold(step)
			}
			m := w.manager(once(2))
			if step == "" {
				w.pooled(m, 2)
			} else {
				<-entered
			}
			m.shutdown(ErrClosing)
			release()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := m.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if left := w.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

func TestWhateverStepOfACreateFromThePoolFailsNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"store.Create", "Begin", "Mirrored", guest.RouteExec, guest.RouteStart, "store.Update"} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(once(1))
			w.pooled(m, 1)
			w.setFail(step, sandbox.Errorf(sandbox.CodeInvalidRequest, "injected"))
			req := request("a")
			req.GitURL = "https://example.test/r.git"
			if _, err := m.Create(t.Context(), req); err == nil || !strings.Contains(err.Error(), "step ") {
				t.Fatalf("error = %v, want one that names the step", err)
			}
			w.setFail(step, nil)
			if left := w.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
			if _, err := m.Create(t.Context(), req); err != nil {
				t.Errorf("the id cannot be used again: %v", err)
			}
		})
	}
}

func TestARecordThatIsThereAlreadyKeepsWhatIsItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(once(1))
	w.pooled(m, 1)
	w.mu.Lock()
	w.records["a"] = Stored{Record{SandboxID: "a", Volume: "its own"}, "1"}
	w.volumes["its own"] = true
	w.mu.Unlock()
	if _, err := m.Create(t.Context(), request("a")); !sandbox.HasCode(err, sandbox.CodeConflict) {
		t.Fatalf("error = %v", err)
	}
	if left := w.left(); left != "record a, volume its own" {
		t.Errorf("left: %s", left)
	}
}

func TestADeleteEndsACreateFromThePoolAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"store.Create", "Unpause", "/session/status", "Rename", "Begin", guest.RouteExec} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(once(1))
			w.pooled(m, 1)
			entered, release := w.hold(step)
			defer release()
			created := make(chan error, 1)
			go func() {
				req := request("a")
				req.GitURL = "https://example.test/r.git"
				_, err := m.Create(t.Context(), req)
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

func TestWhatAGatewayThatWasKilledHadAheadIsRemoved(t *testing.T) {
	t.Parallel()
	const name = ".pool-old"
	volume := volumePrefix + name
	for at, c := range map[string]struct {
		change func(w *world)
		left   string
	}{
		"ready":                 {change: func(*world) {}},
		"only begun":            {change: func(w *world) { delete(w.containers, "c1"); delete(w.volumes, volume) }},
		"without its container": {change: func(w *world) { delete(w.containers, "c1") }},
		"on record": {change: func(w *world) {
			w.records["a"] = Stored{Record{SandboxID: "a", Phase: PhaseCreating, ContainerID: "c1", Volume: volume}, "1"}
		}},
		"on record and not free": {change: func(w *world) {
			w.records["a"] = Stored{Record{SandboxID: "a", Phase: PhaseCreating, ContainerID: "c1", Volume: volume}, "1"}
			delete(w.volumes, volume+freeSuffix)
		}},
		"renamed": {change: func(w *world) {
			w.records["a"] = Stored{Record{SandboxID: "a", Phase: PhaseCreating, ContainerID: "c1", Volume: volume}, "1"}
			w.containers["c1"].SandboxID = "a"
		}},
		// It is a sandbox's, and the store has lost the record.
		"a sandbox without a record": {change: func(w *world) {
			w.containers["c1"].SandboxID = "a"
			delete(w.volumes, volume+freeSuffix)
		}, left: "volume " + volume},
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.leaveMember("c1", name)
			c.change(w)
			m := w.manager()
			until(t, "what is left is "+c.left, func() bool { m.reconcile(t.Context()); return w.left() == c.left })
		})
	}
}

func TestADeleteOfWhatCannotBeReadRemovesAPoolsVolume(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.leaveMember("c1", ".pool-old")
	w.containers["c1"].SandboxID = "a"
	delete(w.volumes, volumePrefix+".pool-old"+freeSuffix)
	w.records["a"] = Stored{}
	w.unreadable["a"] = errInjected
	m := w.manager()
	if err := m.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.containers)+len(w.volumes) > 0 {
		t.Errorf("left behind: %v, %v", w.containers, w.volumes)
	}
}

func TestBootsWithoutAPauseDoNotKeepThePoolEmptyForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(restless, func(s *Settings) { s.Pool.Pause = 20 * time.Millisecond })
	w.pooled(m, 1)
	if m.pool.take() == nil {
		t.Fatal("nothing is ready ahead")
	}
	until(t, "another is ready ahead", func() bool {
		m.pool.stir()
		return len(m.ahead()) == 1
	})
}
