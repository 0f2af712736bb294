package lifecycle

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func (w *world) mustHibernate(m *Manager, id string, tier sandbox.Tier) {
	w.t.Helper()
	resp, err := m.Hibernate(w.t.Context(), id, tier, false)
	if err != nil || resp.Tier != tier || resp.Status != sandbox.StatusSleeping {
		w.t.Fatalf("hibernating: %+v %v", resp, err)
	}
}

func (w *world) mustUse(m *Manager, id string) Handle {
	w.t.Helper()
	h, err := m.Use(w.t.Context(), id, Looking)
	if err != nil {
		w.t.Fatal(err)
	}
	h.Release()
	return h
}

func TestASandboxIsIdleForTooLong(t *testing.T) {
	t.Parallel()
	all := Idle{Freeze: time.Minute, Stop: time.Hour, Archive: 24 * time.Hour}
	for name, c := range map[string]struct {
		idle  Idle
		state state
		after time.Duration
		want  sandbox.Tier
	}{
		"one that was used just now stays":                      {all, stateRunning, time.Second, ""},
		"one that runs is frozen":                               {all, stateRunning, time.Minute, sandbox.TierFrozen},
		"one that is frozen stays for a while":                  {all, stateFrozen, time.Minute, ""},
		"one that is frozen is stopped":                         {all, stateFrozen, time.Hour, sandbox.TierStopped},
		"one that is stopped stays for a while":                 {all, stateStopped, time.Hour, ""},
		"one that is stopped is archived":                       {all, stateStopped, 24 * time.Hour, sandbox.TierArchived},
		"one that runs is archived at once if it must be":       {all, stateRunning, 24 * time.Hour, sandbox.TierArchived},
		"one that is archived stays":                            {all, stateArchived, 240 * time.Hour, ""},
		"one without freezing is stopped":                       {Idle{Stop: time.Hour}, stateRunning, 2 * time.Hour, sandbox.TierStopped},
		"one without any time stays":                            {Idle{}, stateRunning, 1000 * time.Hour, ""},
		"one that is being created is left alone":               {all, stateCreating, 24 * time.Hour, ""},
		"one whose workspace is lost is left alone":             {all, stateLost, 24 * time.Hour, ""},
		"one that is stopped is not frozen":                     {Idle{Freeze: time.Minute}, stateStopped, time.Hour, ""},
		"one that is frozen is archived if it is never stopped": {Idle{Archive: time.Hour}, stateFrozen, time.Hour, sandbox.TierArchived},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, due := c.idle.due(c.state, c.after); got != c.want || due != (c.want != "") {
				t.Errorf("got %q %v, want %q", got, due, c.want)
			}
		})
	}
}

func TestEveryTierIsLeftByARequest(t *testing.T) {
	t.Parallel()
	for _, tier := range []sandbox.Tier{sandbox.TierFrozen, sandbox.TierStopped, sandbox.TierArchived} {
		t.Run(string(tier), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager()
			w.mustCreate(m, "a")
			w.mustHibernate(m, "a", tier)
			info, err := m.Get(t.Context(), "a")
			if err != nil || info.Tier != tier || info.Status != sandbox.StatusSleeping {
				t.Errorf("asleep: %+v %v", info, err)
			}
			if held := w.left(); tier == sandbox.TierArchived && (strings.Contains(held, "container") || strings.Contains(held, "volume")) {
				t.Errorf("an archived sandbox has %s", held)
			}
			creates := w.count("Create")
			var group sync.WaitGroup
			for range 5 {
				group.Go(func() { w.mustUse(m, "a") })
			}
			group.Wait()
			if info, _ := m.Get(t.Context(), "a"); info.Tier != sandbox.TierRunning || info.Status != sandbox.StatusRunning {
				t.Errorf("awake: %+v", info)
			}
			if n := w.count("Create") - creates; n > 1 || n == 1 != (tier == sandbox.TierArchived) {
				t.Errorf("%d containers were made for five requests", n)
			}
			want := []string{"sandbox.created a", "sandbox.hibernated a", "sandbox.woken a"}
			got := slices.DeleteFunc(w.told(), func(s string) bool { return strings.HasPrefix(s, "workspace.") })
			if !slices.Equal(got, want) {
				t.Errorf("told %v", got)
			}
		})
	}
}

func TestNothingIsStoppedThatCannotBeStored(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"store.Ready", "Snapshot", "store.Update"} {
		for _, from := range []sandbox.Tier{sandbox.TierRunning, sandbox.TierFrozen} {
			t.Run(string(from)+" with a failing "+step, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				m := w.manager()
				w.mustCreate(m, "a")
				if from == sandbox.TierFrozen {
					w.mustHibernate(m, "a", from)
				}
				w.setFail(step, sandbox.Errorf(sandbox.CodeStoreAway, "away"))
				_, err := m.Hibernate(t.Context(), "a", sandbox.TierArchived, false)
				if !sandbox.HasCode(err, sandbox.CodeStoreAway) {
					t.Fatalf("the error is %v", err)
				}
				if info, _ := m.Get(t.Context(), "a"); info.Tier != from {
					t.Errorf("it is %s, and was %s", info.Tier, from)
				}
				if held := w.left(); !strings.Contains(held, "container") || !strings.Contains(held, "volume") {
					t.Errorf("what it had is gone: %s", held)
				}
				w.setFail(step, nil)
				w.mustUse(m, "a")
				w.mustHibernate(m, "a", sandbox.TierArchived)
			})
		}
	}
}

func TestAWakeThatFailsLeavesTheSandboxWhereItWas(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"Create", "Start", guest.RouteOpenCode, "Restore1", "Restore2", guest.RouteStart, "store.Update"} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(func(s *Settings) { s.Deadlines.Guest = time.Second })
			w.mustCreate(m, "a")
			w.mustHibernate(m, "a", sandbox.TierArchived)
			before := w.left()
			w.setFail(step, errInjected)
			if _, err := m.Use(t.Context(), "a", Looking); err == nil || !strings.Contains(err.Error(), "step ") {
				t.Fatalf("the error is %v", err)
			}
			info, _ := m.Get(t.Context(), "a")
			if left := w.left(); left != before || info.Tier != sandbox.TierArchived || !strings.Contains(info.LastError, "step ") {
				t.Errorf("left %s, %+v", left, info)
			}
			w.setFail(step, nil)
			w.mustUse(m, "a")
		})
	}
}

func TestABusySandboxIsNotPutToSleep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery = 5 * time.Millisecond
		s.Idle = Idle{Stop: 20 * time.Millisecond, MaxAwake: time.Hour}
	})
	w.mu.Lock()
	w.status.Busy = true
	w.mu.Unlock()
	w.mustCreate(m, "a")
	asked := w.count(guest.RouteStatus)
	until(t, "it was asked several times", func() bool { return w.count(guest.RouteStatus) > asked+5 })
	if st := m.find("a").current(); st != stateRunning {
		t.Errorf("it is %s", st)
	}
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, false); !sandbox.HasCode(err, sandbox.CodeSandboxBusy) {
		t.Errorf("hibernating without force: %v", err)
	}
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, true); err != nil {
		t.Errorf("hibernating with force: %v", err)
	}
}

func TestASandboxThatIsBusyForEverIsNotBelieved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery = 5 * time.Millisecond
		s.Idle = Idle{Freeze: 10 * time.Millisecond, MaxAwake: 50 * time.Millisecond}
	})
	w.mu.Lock()
	w.status.Busy = true
	w.mu.Unlock()
	w.mustCreate(m, "a")
	until(t, "it is stopped", func() bool { return m.find("a").current() == stateStopped })
	told := w.told()
	if at := slices.Index(told, "sandbox.error a"); at < 0 || at > slices.Index(told, "sandbox.hibernated a") {
		t.Errorf("told %v, want an error before the hibernation", told)
	}
}

func TestASandboxInUseIsNotPutToSleep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery = 5 * time.Millisecond
		s.Idle = Idle{Freeze: 10 * time.Millisecond}
	})
	w.mustCreate(m, "a")
	h, err := m.Use(t.Context(), "a", Looking)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierStopped, false); !sandbox.HasCode(err, sandbox.CodeSandboxBusy) {
		t.Errorf("hibernating: %v", err) // after a second of waiting, many looks long
	}
	if st := m.find("a").current(); st != stateRunning {
		t.Errorf("it is %s while it is used", st)
	}
	h.Release()
	until(t, "it is frozen", func() bool { return m.find("a").current() == stateFrozen })
}

func TestWhatWasDoneIsStoredOnceTheSandboxIsIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.LookEvery, s.Idle, s.PersistRetry = 5*time.Millisecond, Idle{}, 0 })
	w.mustCreate(m, "a")
	until(t, "the new sandbox is stored", func() bool { return w.count("Snapshot") == 1 && w.count("Sync") == 1 })
	w.mustUse(m, "a")
	h, err := m.Use(t.Context(), "a", Working)
	if err != nil {
		t.Fatal(err)
	}
	looks := func() { // several looks go by
		b := m.find("a")
		for range 5 {
			m.lookAt(b, time.Now(), false)
		}
	}
	looks()
	if n := w.count("Snapshot"); n != 1 {
		t.Errorf("%d snapshots while it is being worked in, or was only looked at", n)
	}
	h.Release()
	until(t, "the work is stored", func() bool { return w.count("Snapshot") == 2 })
	w.setFail("Snapshot", sandbox.Errorf(sandbox.CodeStoreAway, "away"))
	h, err = m.Use(t.Context(), "a", Working)
	if err != nil {
		t.Fatal(err)
	}
	h.Release()
	until(t, "it is tried again and again", func() bool { return w.count("Snapshot") > 4 })
	if info, _ := m.Get(t.Context(), "a"); !strings.Contains(info.LastError, "away") {
		t.Errorf("lastError = %q", info.LastError)
	}
	w.setFail("Snapshot", nil)
	until(t, "the error is over", func() bool { info, _ := m.Get(t.Context(), "a"); return info.LastError == "" })
}

func TestASandboxThatDiedIsStoredBeforeItIsRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.die(m, "a", 137)
	starts := w.count(guest.RouteStart)
	w.mustHibernate(m, "a", sandbox.TierArchived)
	if w.count("Snapshot") == 0 || w.count(guest.RouteStart) != starts {
		t.Errorf("%d snapshots; OpenCode was started %d times for it", w.count("Snapshot"), w.count(guest.RouteStart)-starts)
	}
	w.mustUse(m, "a")

	w.die(m, "a", 1)
	w.setFail("Snapshot", sandbox.Errorf(sandbox.CodeGuestFailed, "broken"))
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierArchived, false); !sandbox.HasCode(err, sandbox.CodeGuestFailed) {
		t.Errorf("the error is %v", err)
	}
	if held := w.left(); m.find("a").current() != stateStopped || !strings.Contains(held, "volume") {
		t.Errorf("it is %s and has %s", m.find("a").current(), held)
	}
}

func TestADiskThatIsGoneGivesWayToTheNewestSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierStopped)
	w.mu.Lock()
	clear(w.containers)
	clear(w.volumes)
	w.mu.Unlock()
	w.mustUse(m, "a")
	if w.count("Restore1") != 1 || w.count("Restore2") != 1 {
		t.Error("it was not restored")
	}
}

func TestAWakeTakesTheCurrentImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierStopped)
	w.mustUse(m, "a")
	if n := w.count("Create"); n != 1 {
		t.Errorf("%d containers were made of one image", n)
	}
	w.mustHibernate(m, "a", sandbox.TierStopped)
	w.oldImage = true
	w.mustUse(m, "a")
	if n := w.count("Create"); n != 2 || w.count("Restore1") != 0 {
		t.Errorf("%d containers were made of two images, %d restores", n, w.count("Restore1"))
	}
}

func TestTooManyFrozenSandboxesAreStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.LookEvery, s.Idle, s.MaxFrozen = 5*time.Millisecond, Idle{}, 2 })
	for _, id := range []string{"a", "b", "c", "d"} {
		w.mustCreate(m, id)
		w.mustUse(m, id)
	}
	for _, id := range []string{"d", "c", "b", "a"} {
		w.mustHibernate(m, id, sandbox.TierFrozen)
	}
	// Those that were used last stay.
	until(t, "two are stopped", func() bool {
		return m.find("a").current() == stateStopped && m.find("b").current() == stateStopped
	})
	if c, d := m.find("c").current(), m.find("d").current(); c != stateFrozen || d != stateFrozen {
		t.Errorf("c is %s, d is %s", c, d)
	}
}

func TestRoomIsMadeOfTheSandboxThatWasIdleLongest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery, s.MaxRunning, s.RoomAfter, s.PersistPause = 5*time.Millisecond, 3, 0, 0
		s.Idle = Idle{Freeze: time.Hour}
	})
	for _, id := range []string{"used", "idle", "idler"} {
		w.mustCreate(m, id)
	}
	h, err := m.Use(t.Context(), "used", Working)
	if err != nil {
		t.Fatal(err)
	}
	w.mustUse(m, "idle")
	until(t, "what the idle ones have is stored, which comes before any sleep", func() bool {
		return !slices.ContainsFunc([]string{"idle", "idler"}, func(id string) bool {
			b := m.find(id)
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.dirty || b.persisting
		})
	})
	until(t, "there is room for another", func() bool {
		_, err := m.Create(t.Context(), request("new"))
		if err != nil && !sandbox.HasCode(err, sandbox.CodeNoCapacity) {
			t.Fatal(err)
		}
		return err == nil
	})
	if st := m.find("idler").current(); st != stateFrozen {
		t.Errorf("the one that was idle longest is %s", st)
	}
	if st := m.find("used").current(); st != stateRunning {
		t.Errorf("the one that is used is %s", st)
	}
	h.Release()
}

func TestNoRoomIsMadeOfSandboxesThatNeverFreeze(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery, s.MaxRunning, s.RoomAfter, s.PersistPause, s.Idle = 5*time.Millisecond, 1, 0, 0, Idle{}
	})
	w.mustCreate(m, "a")
	looks := 0
	until(t, "it was looked at often", func() bool {
		if _, err := m.Create(t.Context(), request("b")); !sandbox.HasCode(err, sandbox.CodeNoCapacity) {
			t.Fatal(err)
		}
		looks++
		return looks > 20
	})
	if st := m.find("a").current(); st != stateRunning {
		t.Errorf("it is %s", st)
	}
}

func TestABusySandboxThatWasAdoptedIsNotPutToSleep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.status.Busy = true
	first := w.manager()
	w.mustCreate(first, "a")
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	second := w.manager(func(s *Settings) {
		s.LookEvery = 5 * time.Millisecond
		s.Idle = Idle{Freeze: 10 * time.Millisecond, MaxAwake: time.Hour}
	})
	asked := w.count(guest.RouteStatus)
	until(t, "it was asked several times", func() bool { return w.count(guest.RouteStatus) > asked+3 })
	if st := second.find("a").current(); st != stateRunning {
		t.Errorf("it is %s", st)
	}
}

func TestARestartFindsEveryTierAgain(t *testing.T) {
	t.Parallel()
	for _, tier := range []sandbox.Tier{sandbox.TierFrozen, sandbox.TierStopped, sandbox.TierArchived} {
		t.Run(string(tier), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			first := w.manager()
			w.mustCreate(first, "a")
			w.mustHibernate(first, "a", tier)
			if err := first.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			second := w.manager()
			until(t, "the tier is known", func() bool {
				info, err := second.Get(t.Context(), "a")
				return err == nil && info.Tier == tier && info.Status == sandbox.StatusSleeping
			})
			w.mustUse(second, "a")
		})
	}
}

func TestWhatAnArchivedSandboxHadIsRemovedAfterACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.manager()
	w.mustCreate(first, "a")
	w.setFail("Remove", errInjected) // the gateway ends between the record and the engine
	w.mustHibernate(first, "a", sandbox.TierArchived)
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.setFail("Remove", nil)
	second := w.manager()
	until(t, "container and volume are gone", func() bool {
		return !strings.Contains(w.left(), "container") && !strings.Contains(w.left(), "volume")
	})
	w.mustUse(second, "a")
}

func TestAWatcherIsThereBeforeTheRequestThatWokeTheSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierArchived)
	watcher, err := m.Watch("a")
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if !watcher.Asleep() {
		t.Error("it is not asleep")
	}
	joined := make(chan struct{})
	go func() {
		visit, err := watcher.Next(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		close(joined)
		visit.Joined()
	}()
	until(t, "the watcher waits", func() bool {
		b := m.find("a")
		b.mu.Lock()
		defer b.mu.Unlock()
		return watcher.waiting
	})
	w.mustUse(m, "a")
	select {
	case <-joined:
	default:
		t.Error("the request was let in before the watcher was there")
	}
	if w.count("Unpause") != 0 {
		t.Error("it was unpaused")
	}
}

func TestIdleTimesOfASandboxsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	never, soon, wrong := int64(0), int64(5), int64(-1)
	req := request("a")
	req.Idle = &sandbox.Idle{FreezeAfterMs: &never, StopAfterMs: &soon}
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	got := DefaultIdle().with(m.find("a").record().Idle)
	if got.Freeze != 0 || got.Stop != 5*time.Millisecond || got.Archive != DefaultIdle().Archive {
		t.Errorf("got %+v", got)
	}
	req = request("b")
	req.Idle = &sandbox.Idle{DeleteAfterMs: &wrong}
	if _, err := m.Create(t.Context(), req); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) || !strings.Contains(err.Error(), "idle.deleteAfterMs") {
		t.Errorf("the error is %v", err)
	}
}

func TestAMirrorWithoutARecordIsImported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mirrors["a"] = true
	req := request("a")
	req.GitURL = "https://example.test/r.git"
	if _, err := m.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if w.count("Import") != 1 || len(w.execs) != 0 {
		t.Errorf("%d imports, %d commands", w.count("Import"), len(w.execs))
	}
	w.mustCreate(m, "b")
	if w.count("Import") != 1 {
		t.Error("a mirror was imported that is not there")
	}
}

func TestAnUndoneCreateLeavesTheMirrorThatWasThereBefore(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"Create", "Start", "Begin", "Import", guest.RouteStart, "store.Update"} {
		t.Run("at "+step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager()
			w.mirrors["a"] = true
			w.setFail(step, errInjected)
			if _, err := m.Create(t.Context(), request("a")); err == nil {
				t.Fatal("it was created")
			}
			w.setFail(step, nil)
			m.reconcile(t.Context())
			until(t, "only the mirror is left", func() bool { return w.left() == "mirror a" })
			if err := m.Delete(t.Context(), "a"); err != nil || w.left() != "" {
				t.Errorf("after a delete: %v, %s", err, w.left())
			}
		})
	}
	t.Run("a create that a crash cut short", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.mirrors["a"] = true
		w.records["a"] = Stored{Record{SandboxID: "a", Phase: PhaseCreating, Volume: "agentpod-a.x"}, "1"}
		w.volumes["agentpod-a.x"] = true
		m := w.manager()
		m.reconcile(t.Context())
		until(t, "only the mirror is left", func() bool { return w.left() == "mirror a" })
	})
}

func TestWhoLeavesDuringAWakeDoesNotKeepTheSandboxAwake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierStopped)
	entered, release := w.hold(guest.RouteStart)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := m.Use(ctx, "a", Looking)
		left <- err
	}()
	<-entered
	cancel()
	if err := <-left; err == nil {
		t.Fatal("it was let in")
	}
	release()
	b := m.find("a")
	until(t, "it runs and nobody uses it", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.state == stateRunning && b.inUse == 0 && len(b.serial) == 0
	})
}

func TestAHibernationTellsWhatItReachedThoughSomebodyWaitsToWakeIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	for range 20 { // whoever waits is not always the first to go on
		entered, release := w.hold("RemoveVolume")
		var group sync.WaitGroup
		group.Go(func() { w.mustHibernate(m, "a", sandbox.TierArchived) })
		<-entered
		group.Go(func() { w.mustUse(m, "a") })
		until(t, "a request waits", func() bool { return m.find("a").held.Load() > 0 })
		release()
		group.Wait()
	}
}

func TestADiskThatIsMissingForAWhileIsNotGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustCreate(m, "b")
	w.mustHibernate(m, "a", sandbox.TierStopped)
	w.die(m, "b", 1)
	var volumes map[string]bool
	var containers map[string]*Container
	take := func() { // another engine, or one whose disk is not mounted
		w.mu.Lock()
		defer w.mu.Unlock()
		volumes, w.volumes = w.volumes, map[string]bool{}
		containers, w.containers = w.containers, map[string]*Container{}
	}
	take()
	m.reconcile(t.Context())
	if st := m.find("b").current(); st != stateLost {
		t.Errorf("the one that was never stored is %s", st)
	}
	w.mustUse(m, "a") // it goes on from its snapshot
	w.mu.Lock()
	for v := range volumes {
		w.volumes[v] = true
	}
	_ = containers
	w.mu.Unlock()
	m.reconcile(t.Context())
	if left := w.left(); strings.Count(left, "volume agentpod-a.") != 2 || !strings.Contains(left, "volume agentpod-b.") {
		t.Errorf("a volume that came back was removed: %s", left)
	}
	w.mustUse(m, "b")
	for _, id := range []string{"a", "b"} {
		if err := m.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if left := w.left(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestWorkIsStoredHoweverBusyTheSandboxIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.status.Busy = true
	m := w.manager(func(s *Settings) {
		s.LookEvery, s.Idle, s.PersistPause, s.PersistMost = 5*time.Millisecond, Idle{}, 5*time.Millisecond, 50*time.Millisecond
	})
	w.mustCreate(m, "a")
	b := m.find("a")
	until(t, "it is stored", func() bool { return w.count("Snapshot") > 0 })
	until(t, "what goes on is to be stored too", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.dirty && !b.persisting
	})
}

func TestASandboxThatIsWokenStaysAwakeForAWhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.Idle = Idle{Freeze: time.Minute} })
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierFrozen)
	b := m.find("a")
	b.mu.Lock()
	b.lastActive = time.Now().Add(-time.Hour)
	b.mu.Unlock()
	if _, err := m.Wake(t.Context(), "a", nil, ""); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := m.dueLocked(b, m.settings.Idle, time.Now(), false); d.tier != "" {
		t.Errorf("it is to be %s at once", d.tier)
	}
}

func TestASandboxThatCannotBeStoredIsStoppedWithItsDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail("Snapshot", sandbox.Errorf(sandbox.CodeWorkspaceLimit, "too much"))
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierArchived, false); !sandbox.HasCode(err, sandbox.CodeWorkspaceLimit) {
		t.Fatalf("the error is %v", err)
	}
	if rec := m.find("a").record(); m.find("a").current() != stateStopped || rec.Tier != "" || !strings.Contains(w.left(), rec.Volume) {
		t.Errorf("it is %s, %+v, and has %s", m.find("a").current(), rec, w.left())
	}
	w.mustUse(m, "a")
}

func TestAFrozenSandboxIsShrunkOnceUntilItIsWoken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery = time.Millisecond
		s.Idle = Idle{Shrink: 10 * time.Millisecond}
	})
	w.mustCreate(m, "a")
	for round := 1; round <= 2; round++ {
		w.mustUse(m, "a")
		if got := w.count("Shrink"); got != round-1 {
			t.Fatalf("shrunk %d times while it runs", got)
		}
		w.mustHibernate(m, "a", sandbox.TierFrozen)
		until(t, "it is shrunk", func() bool { return w.count("Shrink") == round })
		looked := w.count("Shrink")
		until(t, "nobody is at it", func() bool {
			b := m.find("a")
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.shrunk && !b.looking
		})
		if got := w.count("Shrink"); got != looked {
			t.Errorf("it was shrunk again, %d times", got-looked)
		}
	}
}

func TestASandboxThatCannotBeShrunkIsLeftAloneAndWakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery = time.Millisecond
		s.Idle = Idle{Shrink: 10 * time.Millisecond}
	})
	w.mustCreate(m, "a")
	w.setFail("Shrink", sandbox.Errorf(sandbox.CodeUnsupported, "no swap"))
	w.mustUse(m, "a")
	w.mustHibernate(m, "a", sandbox.TierFrozen)
	until(t, "it was tried", func() bool { return w.count("Shrink") > 0 })
	w.mustUse(m, "a")
	if info, err := m.Get(t.Context(), "a"); err != nil || info.LastError != "" || info.Tier != sandbox.TierRunning {
		t.Errorf("%+v, %v", info, err)
	}
}
