package lifecycle

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func (w *world) mustWork(m *Manager, id string) {
	w.t.Helper()
	h, err := m.Use(w.t.Context(), id, Working)
	if err != nil {
		w.t.Fatal(err)
	}
	h.Release()
}

func TestWorkIsStoredInTimeThoughItsSandboxIsAskedAllTheTime(t *testing.T) {
	t.Parallel()
	for name, busy := range map[string]bool{"of one that is idle": false, "of one that is busy": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager(func(s *Settings) {
				s.LookEvery, s.Idle = 5*time.Millisecond, Idle{}
				s.PersistPause, s.PersistMost = time.Hour, 50*time.Millisecond
			})
			w.mu.Lock()
			w.status.Busy = busy
			w.mu.Unlock()
			w.mustCreate(m, "a")
			for range 3 {
				before := w.count("Snapshot")
				w.mustWork(m, "a")
				until(t, "the work is stored", func() bool {
					w.mustUse(m, "a")
					return w.count("Snapshot") > before
				})
			}
		})
	}
}

func TestWhatCannotBeStoredHasItsAgeStill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.LookEvery, s.Idle, s.PersistRetry = 5*time.Millisecond, Idle{}, 0 })
	w.mustCreate(m, "a")
	unstored := func() time.Time { info, _ := m.Get(t.Context(), "a"); return info.UnstoredSince.Time }
	until(t, "the new sandbox is stored", func() bool { return unstored().IsZero() && m.oldestUnstored().IsZero() })
	w.setFail("Snapshot", sandbox.Errorf(sandbox.CodeStoreAway, "away"))
	w.mustWork(m, "a")
	since := unstored()
	failed := w.count("Snapshot")
	until(t, "it has failed several times", func() bool { return w.count("Snapshot") > failed+3 })
	if now := unstored(); since.IsZero() || !now.Equal(since) || !m.oldestUnstored().Equal(since) {
		t.Errorf("it is unstored since %s, and was since %s", now, since)
	}
	w.setFail("Snapshot", nil)
	until(t, "it is stored", func() bool { return unstored().IsZero() })
}

func TestWhatFailedAsSomethingWasAwayIsTriedAgainWhenItIsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) {
		s.LookEvery, s.ProbeEvery, s.PersistRetry, s.Idle = 5*time.Millisecond, 5*time.Millisecond, time.Hour, Idle{Stop: 20 * time.Millisecond}
	})
	w.setFail("Snapshot", sandbox.Errorf(sandbox.CodeStoreAway, "away"))
	w.setFail("store.Ready", sandbox.Errorf(sandbox.CodeStoreAway, "away"))
	w.mustCreate(m, "a")
	until(t, "storing has failed", func() bool { info, _ := m.Get(t.Context(), "a"); return info.LastError != "" })
	w.setFail("Snapshot", nil)
	w.setFail("store.Ready", nil)
	w.setFail("Stop", sandbox.Errorf(sandbox.CodeEngineAway, "away"))
	until(t, "it is stored, and cannot be stopped", func() bool {
		info, _ := m.Get(t.Context(), "a")
		return info.UnstoredSince.IsZero() && strings.Contains(info.LastError, "away")
	})
	w.setFail("Stop", nil)
	m.back(sandbox.CodeEngineAway) // as when the engine is heard again
	until(t, "it is stopped", func() bool { return m.find("a").current() == stateStopped })
}

func TestAFrozenSandboxIsStoredOnceThatIsPossibleAndStaysFrozen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(func(s *Settings) { s.LookEvery, s.ProbeEvery, s.Idle = 5*time.Millisecond, 5*time.Millisecond, Idle{} })
	away := sandbox.Errorf(sandbox.CodeStoreAway, "away")
	w.setFail("store.Ready", away)
	w.setFail("Snapshot", away)
	w.mustCreate(m, "a")
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, false); !sandbox.HasCode(err, sandbox.CodeStoreAway) || !strings.Contains(err.Error(), "force") {
		t.Errorf("without force: %v", err)
	}
	if st := m.find("a").current(); st != stateRunning {
		t.Errorf("it is %s", st)
	}
	resp, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, true)
	if err != nil || !resp.Unstored || resp.Tier != sandbox.TierFrozen {
		t.Fatalf("with force: %+v %v", resp, err)
	}
	w.setFail("store.Ready", nil)
	w.setFail("Snapshot", nil)
	until(t, "it is stored and frozen", func() bool {
		info, _ := m.Get(t.Context(), "a")
		return info.UnstoredSince.IsZero() && info.Tier == sandbox.TierFrozen && w.count("Pause") == 2
	})
	resp, err = m.Hibernate(t.Context(), "a", sandbox.TierFrozen, true)
	if err != nil || resp.Unstored {
		t.Errorf("afterwards: %+v %v", resp, err)
	}
}

func TestAPauseOfWhichNothingIsKnownCountsAsOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.setFail("Pause", errInjected)
	w.setFail("Inspect", errInjected)
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, false); !sandbox.HasCode(err, sandbox.CodeEngineAway) {
		t.Errorf("the error is %v", err)
	}
	if st := m.find("a").current(); st != stateFrozen {
		t.Errorf("it is %s", st)
	}
	w.setFail("Pause", nil)
	w.setFail("Inspect", nil)
	w.mustUse(m, "a")
	if n := w.count("Unpause"); n != 1 {
		t.Errorf("it was thawed %d times for the request", n)
	}
	w.setFail("Pause", errInjected)
	if _, err := m.Hibernate(t.Context(), "a", sandbox.TierFrozen, false); err == nil || m.find("a").current() != stateRunning {
		t.Errorf("a pause that has failed for sure: %v, and it is %s", err, m.find("a").current())
	}
}

func TestAContainerThatCannotBeStartedIsMadeAnewOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		anew int
	}{
		"one that is broken":              {sandbox.Errorf(sandbox.CodeBootFailed, "task already exists"), 1},
		"one of an engine that is away":   {errInjected, 0},
		"one for which there is no place": {sandbox.Errorf(sandbox.CodeDiskFull, "full"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager()
			w.mustCreate(m, "a")
			w.mustHibernate(m, "a", sandbox.TierStopped)
			made := w.count("Create")
			w.setFail("Start", c.err)
			if _, err := m.Use(t.Context(), "a", Looking); err == nil {
				t.Error("it was started")
			}
			if n := w.count("Create") - made; n != c.anew {
				t.Errorf("%d containers were made for it, want %d", n, c.anew)
			}
			w.setFail("Start", nil)
			w.mustUse(m, "a")
			if w.count("Restore1") != 0 {
				t.Error("its disk was not used")
			}
		})
	}
}

func TestADiskIsKnownByItsMark(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mark   func(guest.Mark) guest.Mark
		former bool // the record is of a gateway that gave no marks
		taken  bool
	}{
		"it is as it was left":                {mark: func(m guest.Mark) guest.Mark { return m }, taken: true},
		"it is newer than its record":         {mark: func(m guest.Mark) guest.Mark { m.Generation++; return m }, taken: true},
		"it is an old copy":                   {mark: func(m guest.Mark) guest.Mark { m.Generation--; return m }},
		"its mark is beyond all counts":       {mark: func(m guest.Mark) guest.Mark { m.Generation = 1 << 62; return m }},
		"it was made anew":                    {mark: func(guest.Mark) guest.Mark { return guest.Mark{} }},
		"it is another sandbox's":             {mark: func(m guest.Mark) guest.Mark { m.Incarnation = "other"; return m }},
		"it has none, of a former version":    {mark: func(guest.Mark) guest.Mark { return guest.Mark{} }, former: true, taken: true},
		"it has one, of a version in between": {mark: func(m guest.Mark) guest.Mark { return m }, former: true, taken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.manager()
			w.mustCreate(m, "a")
			w.mustHibernate(m, "a", sandbox.TierStopped)
			b := m.find("a")
			volume := b.record().Volume
			w.mu.Lock()
			had := w.marks[volume]
			w.marks[volume] = c.mark(had)
			w.mu.Unlock()
			if had.Generation == 0 || had.Generation != b.record().Generation || had.Incarnation != b.record().Incarnation {
				t.Errorf("the disk has the mark %+v, the record says %d", had, b.record().Generation)
			}
			if c.former {
				b.mu.Lock()
				b.rec.Generation, b.generation = 0, 0
				b.mu.Unlock()
			}
			w.mustUse(m, "a")
			if restored := w.count("Restore1") == 1; restored == c.taken {
				t.Errorf("it was restored: %v", restored)
			}
			if left := w.left(); !strings.Contains(left, volume) {
				t.Errorf("its disk is gone: %s", left)
			}
			rec := b.record()
			w.mu.Lock()
			now := w.marks[rec.Volume]
			w.mu.Unlock()
			if now.Generation != rec.Generation || now.Incarnation != rec.Incarnation || !c.former && now.Generation <= had.Generation {
				t.Errorf("the disk has the mark %+v, the record says %d", now, rec.Generation)
			}
			if err := m.Delete(t.Context(), "a"); err != nil || w.left() != "" {
				t.Errorf("deleted: %v, left are %s", err, w.left())
			}
		})
	}
}

func TestAHomeThatShrinksToNothingIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierFrozen)
	if told := w.told(); slices.Contains(told, "sandbox.error a") {
		t.Errorf("told %v", told)
	}
	w.mu.Lock()
	w.collapsed = true
	w.mu.Unlock()
	w.mustWork(m, "a")
	w.mustHibernate(m, "a", sandbox.TierFrozen)
	if told := w.told(); !slices.Contains(told, "sandbox.error a") {
		t.Errorf("told %v", told)
	}
}

func TestADiskThatIsTooFullForAMarkIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	w.mustHibernate(m, "a", sandbox.TierStopped)
	w.mu.Lock()
	w.diskFull = true
	w.mu.Unlock()
	w.mustUse(m, "a")
	if w.count("Restore1") != 0 {
		t.Error("another disk took its place")
	}
}

func TestOnlySomeOfTheDisksThatAreGivenUpAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager()
	w.mustCreate(m, "a")
	for range 3 * maxGivenUp {
		w.mustHibernate(m, "a", sandbox.TierStopped)
		w.mu.Lock()
		clear(w.marks)
		w.mu.Unlock()
		w.mustUse(m, "a")
	}
	m.reconcile(t.Context())
	w.mu.Lock()
	volumes := len(w.volumes)
	w.mu.Unlock()
	if volumes != 1+maxGivenUp {
		t.Errorf("there are %d disks: %s", volumes, w.left())
	}
}
