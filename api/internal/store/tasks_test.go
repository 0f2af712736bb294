package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
)

func newTask(id, user string, made time.Duration) task.Task {
	return task.Task{ID: id, UserID: user, Provider: "docker", Status: task.Pending, Message: "do " + id, CreatedAt: noon().Add(made)}
}

func newSandbox(id, user string) *task.Sandbox {
	return &task.Sandbox{ID: id, UserID: user, Provider: "docker", Name: id, Slug: id, Status: task.SandboxStarting, CreatedAt: noon(), UpdatedAt: noon()}
}

func mustCreate(t testing.TB, s *store.Store, row task.Task, with *task.Sandbox) {
	t.Helper()
	if err := s.Tasks().Create(t.Context(), row, with); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t testing.TB, s *store.Store, user, id string) task.Task {
	t.Helper()
	row, err := s.Tasks().Get(t.Context(), user, id)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func numbers(events []task.Event) (seqs []int64) {
	for _, e := range events {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

func TestATaskIsKeptWithItsSandboxOrNotAtAll(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		id := "task-1"
		in := newTask("t1", "u1", 0)
		in.SandboxID, in.GitURL, in.GitBranch, in.ModelProvider, in.ModelID, in.SessionID = &id, "https://x", "main", "p", "m", "ses"
		in.Metadata, in.NewSandbox, in.LeaseOwner, in.LeaseUntil = `{"a":"é\u0000"}`, true, "me", noon().Add(time.Minute)
		mustCreate(t, s, in, newSandbox(id, "u1"))
		in.CreatedAt, in.LeaseUntil = kept(in.CreatedAt), kept(in.LeaseUntil)
		same(t, "the task", in, mustGet(t, s, "u1", "t1"))

		// The second fails at the task, and so has no sandbox either.
		want(t, s.Tasks().Create(t.Context(), in, newSandbox("task-2", "u1")), task.ErrExists)
		_, err := s.Sandboxes().Get(t.Context(), "u1", "task-2")
		want(t, err, task.ErrNotFound)
		_, err = s.Tasks().Get(t.Context(), "u2", "t1")
		want(t, err, task.ErrNotFound)

		if err := s.Sandboxes().Delete(t.Context(), "u1", id); err != nil {
			t.Fatal(err)
		}
		if got := mustGet(t, s, "u1", "t1"); got.SandboxID != nil {
			t.Errorf("the task names a sandbox that is gone: %q", *got.SandboxID)
		}
	})
}

func TestListsArePagedAndOfOneUser(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		addUser(t, s, "u2")
		for i := range 5 {
			mustCreate(t, s, newTask(fmt.Sprintf("t%d", i), "u1", time.Duration(i)*time.Second), nil)
		}
		mustCreate(t, s, newTask("tx", "u2", 0), nil)
		list := func(user string, limit, offset int) (ids []string) {
			rows, err := s.Tasks().List(t.Context(), user, task.Page{Limit: limit, Offset: offset})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rows {
				ids = append(ids, r.ID)
			}
			return ids
		}
		for _, c := range []struct {
			user          string
			limit, offset int
			want          []string
		}{
			{"u1", 2, 0, []string{"t4", "t3"}},
			{"u1", 2, 4, []string{"t0"}},
			{"u1", 2, 9, nil},
			{"u2", 10, 0, []string{"tx"}},
			{"u3", 10, 0, nil},
		} {
			if got := list(c.user, c.limit, c.offset); !slices.Equal(got, c.want) {
				t.Errorf("%+v: got %v", c, got)
			}
		}
	})
}

func TestTimesSortToTheMillisecond(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		second := noon().Truncate(time.Second)
		// In the order of time, and of no other thing.
		made := []time.Duration{-time.Millisecond, 0, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 110 * time.Millisecond, 999 * time.Millisecond, time.Second, 10 * time.Second}
		var want []string
		for i, d := range made {
			row := newTask(fmt.Sprintf("t%d", (i*7)%len(made)), "u1", 0)
			row.CreatedAt = second.Add(d)
			mustCreate(t, s, row, nil)
			want = append(want, row.ID)
		}
		rows, err := s.Tasks().List(t.Context(), "u1", task.Page{Limit: 20})
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(want)
		var got []string
		for i, r := range rows {
			got = append(got, r.ID)
			if d := made[len(made)-1-i]; !r.CreatedAt.Equal(second.Add(d)) {
				t.Errorf("%s after the second comes back as %s", d, r.CreatedAt)
			}
		}
		same(t, "the order", want, got)
		// A lease is over at its very millisecond, and not before.
		_, err = s.Tasks().Claim(t.Context(), "me", second.Add(-2*time.Millisecond), second)
		if !errors.Is(err, task.ErrNotFound) {
			t.Errorf("claimed early: %v", err)
		}
		claimed, err := s.Tasks().Claim(t.Context(), "me", second.Add(-time.Millisecond), second.Add(time.Hour))
		if err != nil || claimed.ID != want[len(want)-1] {
			t.Errorf("%+v, %v", claimed, err)
		}
	})
}

func TestATaskIsClaimedByOneWhileItsLeaseLasts(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		const count, claimers = 20, 8
		for i := range count {
			mustCreate(t, s, newTask(fmt.Sprintf("t%02d", i), "u1", 0), nil)
		}
		now := noon().Add(time.Minute)
		var mu sync.Mutex
		claimed := map[string]string{}
		var group sync.WaitGroup
		for i := range claimers {
			group.Go(func() {
				for n := 0; ; n++ {
					owner := fmt.Sprintf("o%d-%d", i, n)
					got, err := s.Tasks().Claim(t.Context(), owner, now, now.Add(time.Minute))
					if errors.Is(err, task.ErrNotFound) {
						return
					}
					if err != nil || got.Status != task.Running || got.LeaseOwner != owner || got.Attempts != 1 {
						t.Errorf("%+v, %v", got, err)
						return
					}
					mu.Lock()
					if other, twice := claimed[got.ID]; twice {
						t.Errorf("%s is claimed by %s and %s", got.ID, other, owner)
					}
					claimed[got.ID] = owner
					mu.Unlock()
				}
			})
		}
		group.Wait()
		// Of many who claim at the same moment some may find nothing left for them.
		if len(claimed) != count {
			t.Fatalf("%d of %d claimed", len(claimed), count)
		}

		// Once the lease is over somebody else runs it, and the former can do nothing.
		was := task.Lease{TaskID: "t00", Owner: claimed["t00"]}
		for id, owner := range claimed {
			if id != "t00" {
				if err := s.Tasks().Renew(t.Context(), task.Lease{TaskID: id, Owner: owner}, now.Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
		}
		later := now.Add(2 * time.Minute)
		got, err := s.Tasks().Claim(t.Context(), "next", later, later.Add(time.Minute))
		if err != nil || got.ID != "t00" || got.Attempts != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		want(t, s.Tasks().Start(t.Context(), was), task.ErrLeaseLost)
		want(t, s.Tasks().Renew(t.Context(), was, later.Add(time.Hour)), task.ErrLeaseLost)
		want(t, s.Tasks().Note(t.Context(), was, task.Progress{}), task.ErrLeaseLost)
		_, err = s.Tasks().Append(t.Context(), was, later, task.Event{Type: "chunk", Data: "{}"})
		want(t, err, task.ErrLeaseLost)
		want(t, s.Tasks().Finish(t.Context(), was, task.Outcome{Status: task.Completed, At: later}), task.ErrLeaseLost)
		want(t, s.Tasks().Renew(t.Context(), task.Lease{TaskID: "t00"}, later), task.ErrLeaseLost)
	})
}

func TestATaskThatWasCreatedWithALeaseIsNotClaimed(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		in := newTask("t1", "u1", 0)
		in.LeaseOwner, in.LeaseUntil = "me", noon().Add(time.Minute)
		mustCreate(t, s, in, nil)
		_, err := s.Tasks().Claim(t.Context(), "other", noon(), noon().Add(time.Hour))
		want(t, err, task.ErrNotFound)
		lease := task.Lease{TaskID: "t1", Owner: "me"}
		if err := s.Tasks().Start(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		session, meta := "ses_1", `{"x":1}`
		if err := s.Tasks().Note(t.Context(), lease, task.Progress{SessionID: &session, Metadata: &meta}); err != nil {
			t.Fatal(err)
		}
		if got := mustGet(t, s, "u1", "t1"); got.Status != task.Running || got.SessionID != session || got.Metadata != meta || got.Attempts != 1 {
			t.Errorf("%+v", got)
		}
		// Given up, it is for anybody at once.
		if err := s.Tasks().Renew(t.Context(), lease, noon().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Tasks().Claim(t.Context(), "other", noon(), noon().Add(time.Hour)); err != nil || got.SessionID != session {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestATaskEndsOnceWhoeverEndsIt(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		for round := range 5 {
			id := fmt.Sprintf("t%d", round)
			in := newTask(id, "u1", 0)
			in.LeaseOwner, in.LeaseUntil = "me", noon().Add(time.Hour)
			mustCreate(t, s, in, nil)
			lease := task.Lease{TaskID: id, Owner: "me"}
			enders := []func() error{
				func() error {
					return s.Tasks().Finish(t.Context(), lease, task.Outcome{Status: task.Completed, Response: "4", At: noon()}, task.Event{Type: "done", Data: "{}"})
				},
				func() error {
					return s.Tasks().Finish(t.Context(), lease, task.Outcome{Status: task.Failed, Error: "no", At: noon()}, task.Event{Type: "error", Data: "{}"})
				},
				func() error {
					return s.Tasks().Cancel(t.Context(), "u1", id, noon(), task.Event{Type: "error", Data: "{}"})
				},
			}
			errs := make([]error, len(enders))
			var group sync.WaitGroup
			for i, f := range enders {
				group.Go(func() { errs[i] = f() })
			}
			group.Wait()
			ended := 0
			for _, err := range errs {
				switch {
				case err == nil:
					ended++
				case !errors.Is(err, task.ErrLeaseLost) && !errors.Is(err, task.ErrFinal):
					t.Fatal(err)
				}
			}
			got := mustGet(t, s, "u1", id)
			events, err := s.Tasks().Events(t.Context(), id, 0, 10)
			if err != nil || ended != 1 || len(events) != 1 || !got.Status.Final() || got.CompletedAt == nil || !got.CompletedAt.Equal(kept(noon())) {
				t.Fatalf("%d ended it; %+v; %+v; %v", ended, got, events, err)
			}
			if (got.Response == "4") != (got.Status == task.Completed) || (got.Error == "no") != (got.Status == task.Failed) {
				t.Errorf("a mixture of two ends: %+v", got)
			}
			want(t, s.Tasks().Cancel(t.Context(), "u1", id, noon()), task.ErrFinal)
			want(t, s.Tasks().Cancel(t.Context(), "u2", id, noon()), task.ErrNotFound)
		}
		if err := s.Tasks().Finish(t.Context(), task.Lease{}, task.Outcome{Status: task.Running}); err == nil {
			t.Error("running is no end")
		}
	})
}

func TestEventsAreNumberedWithoutAGap(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		in := newTask("t1", "u1", 0)
		in.LeaseOwner, in.LeaseUntil = "me", noon().Add(time.Hour)
		mustCreate(t, s, in, nil)
		lease := task.Lease{TaskID: "t1", Owner: "me"}
		const writers, each = 4, 10
		var group sync.WaitGroup
		for range writers {
			group.Go(func() {
				for range each {
					if _, err := s.Tasks().Append(t.Context(), lease, noon(), task.Event{Type: "chunk", Data: `{"content":"a"}`}, task.Event{Type: "status", Data: "{}"}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		added, err := s.Tasks().Append(t.Context(), lease, noon())
		if err != nil || added != nil {
			t.Errorf("nothing added is %v, %v", added, err)
		}
		if err := s.Tasks().Finish(t.Context(), lease, task.Outcome{Status: task.Completed, At: noon()}, task.Event{Type: "chunk", Data: "{}"}, task.Event{Type: "done", Data: "{}"}); err != nil {
			t.Fatal(err)
		}
		const all = writers*each*2 + 2
		var seqs []int64
		for after := int64(0); ; {
			page, err := s.Tasks().Events(t.Context(), "t1", after, 7)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			seqs = append(seqs, numbers(page)...)
			after = page[len(page)-1].Seq
		}
		if len(seqs) != all {
			t.Fatalf("%d events, want %d", len(seqs), all)
		}
		for i, seq := range seqs {
			if seq != int64(i+1) {
				t.Fatalf("the numbers are %v", seqs)
			}
		}
		last, err := s.Tasks().Events(t.Context(), "t1", all-1, 10)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the last event", []task.Event{{TaskID: "t1", Seq: all, Type: "done", Data: "{}", CreatedAt: kept(noon())}}, last)
	})
}

func TestAnEventLogIsBoundedAndStillEnds(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		for name, events := range map[string][]task.Event{
			"by bytes": slices.Repeat([]task.Event{{Type: "chunk", Data: strings.Repeat("x", task.MaxEventBytes/4)}}, 4),
			"by count": slices.Repeat([]task.Event{{Type: "chunk", Data: "{}"}}, task.MaxEvents+1),
		} {
			in := newTask(name, "u1", 0)
			in.LeaseOwner, in.LeaseUntil = "me", noon().Add(time.Hour)
			mustCreate(t, s, in, nil)
			lease := task.Lease{TaskID: name, Owner: "me"}
			_, err := s.Tasks().Append(t.Context(), lease, noon(), events...)
			want(t, err, task.ErrLogFull)
			added, err := s.Tasks().Append(t.Context(), lease, noon(), events[:3]...)
			if err != nil || !slices.Equal(numbers(added), []int64{1, 2, 3}) {
				t.Fatalf("%s: %v, %v", name, numbers(added), err)
			}
			if err := s.Tasks().Finish(t.Context(), lease, task.Outcome{Status: task.Completed, At: noon()}, events[0]); err != nil {
				t.Errorf("%s: a full log keeps the task from its end: %v", name, err)
			}
		}
	})
}

func TestATeamIsKeptWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		addUser(t, s, "u1")
		member := func(i int) task.NewMember {
			id := fmt.Sprintf("team-%d", i)
			row := newTask(fmt.Sprintf("t%d", i), "u1", 0)
			row.SandboxID = &id
			return task.NewMember{Role: fmt.Sprintf("role %d", i), Task: row, Sandbox: newSandbox(id, "u1")}
		}
		team := task.Team{ID: "team1", UserID: "u1", Provider: "docker", GitURL: "https://x", GitBranch: "main", CreatedAt: noon()}
		if err := s.Teams().Create(t.Context(), team, []task.NewMember{member(2), member(0), member(1)}); err != nil {
			t.Fatal(err)
		}
		got, members, err := s.Teams().Get(t.Context(), "u1", "team1")
		if err != nil {
			t.Fatal(err)
		}
		team.CreatedAt = kept(team.CreatedAt)
		same(t, "the team", team, got)
		var roles []string
		for i, m := range members {
			roles = append(roles, m.Agent.Role)
			if m.Agent.Position != int64(i) || m.Task.ID != m.Agent.TaskID || m.Task.SandboxID == nil {
				t.Errorf("%+v", m)
			}
		}
		same(t, "the roles", []string{"role 2", "role 0", "role 1"}, roles)
		_, _, err = s.Teams().Get(t.Context(), "u2", "team1")
		want(t, err, task.ErrNotFound)

		other := task.Team{ID: "team2", UserID: "u1", Provider: "docker", CreatedAt: noon()}
		want(t, s.Teams().Create(t.Context(), other, []task.NewMember{member(5), member(1)}), task.ErrExists)
		_, err = s.Tasks().Get(t.Context(), "u1", "t5")
		want(t, err, task.ErrNotFound)
		list, err := s.Teams().List(t.Context(), "u1", task.Page{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the list", []task.Team{team}, list)
	})
}

func TestSandboxesAreKeptListedAndChanged(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		b, ctx := s.Sandboxes(), t.Context()
		addUser(t, s, "u1")
		addUser(t, s, "u2")
		moment := noon()
		in := task.Sandbox{
			ID: "sbx-1", UserID: "u1", Provider: "cloudflare", Name: "n", Slug: "s", Description: "d", RepoName: "r", GithubURL: "g", GitBranch: "b",
			ResourceTierID: "rt", FlavorID: "f", AddonIDs: `["a"]`, ContainerID: "c", ContainerName: "cn", Region: "eu", Tier: "frozen", ErrorMessage: "e",
			StartedAt: &moment, EventAt: &moment, Status: task.SandboxSleeping, WorkerURL: "w", ConfigHash: "h", WorkspaceSyncedAt: &moment,
			LastActiveAt: &moment, CreatedAt: moment, UpdatedAt: moment,
		}
		if err := b.Create(ctx, in); err != nil {
			t.Fatal(err)
		}
		utc := kept(moment)
		in.StartedAt, in.EventAt, in.WorkspaceSyncedAt, in.LastActiveAt, in.CreatedAt, in.UpdatedAt = &utc, &utc, &utc, &utc, utc, utc
		got, err := b.Get(ctx, "u1", "sbx-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the record", in, got)
		want(t, b.Create(ctx, *newSandbox("sbx-1", "u2")), task.ErrExists)
		twin := newSandbox("sbx-2", "u1")
		twin.Slug = "s"
		want(t, b.Create(ctx, *twin), task.ErrExists)
		_, err = b.Get(ctx, "u2", "sbx-1")
		want(t, err, task.ErrNotFound)
		got, err = b.Find(ctx, "sbx-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the record of whoever it is", in, got)
		_, err = b.Find(ctx, "sbx-9")
		want(t, err, task.ErrNotFound)
		want(t, b.Create(ctx, *newSandbox("sbx-4", "nobody")), task.ErrNotFound)

		running := newSandbox("sbx-3", "u1")
		running.Status, running.CreatedAt = task.SandboxRunning, moment.Add(time.Hour)
		if err := b.Create(ctx, *running); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			filter task.SandboxFilter
			ids    string
			count  int64
		}{
			{task.SandboxFilter{UserID: "u1", Page: task.Page{Limit: 10}}, "sbx-3 sbx-1", 2},
			{task.SandboxFilter{UserID: "u1", Page: task.Page{Limit: 1, Offset: 1}}, "sbx-1", 2},
			{task.SandboxFilter{UserID: "u1", Statuses: []task.SandboxStatus{"running", "error"}, Page: task.Page{Limit: 10}}, "sbx-3", 1},
			{task.SandboxFilter{UserID: "u1", Statuses: []task.SandboxStatus{"running", "sleeping"}, Page: task.Page{Limit: 10}}, "sbx-3 sbx-1", 2},
			{task.SandboxFilter{UserID: "u2", Page: task.Page{Limit: 10}}, "", 0},
		} {
			rows, n, err := b.List(ctx, c.filter)
			ids := []string{}
			for _, r := range rows {
				ids = append(ids, r.ID)
			}
			if err != nil || strings.Join(ids, " ") != c.ids || n != c.count {
				t.Errorf("%+v: %v, %d, %v", c.filter, ids, n, err)
			}
		}

		status, text, later := task.SandboxError, "new", moment.Add(time.Minute)
		all := task.SandboxChange{
			Status: &status, Tier: &text, ErrorMessage: &text, ContainerID: &text, ContainerName: &text, Region: &text, WorkerURL: &text,
			ConfigHash: &text, StartedAt: &later, WorkspaceSyncedAt: &later, LastActiveAt: &later,
		}
		if err := b.Update(ctx, "sbx-1", later, all); err != nil {
			t.Fatal(err)
		}
		utcLater := kept(later)
		in.Status, in.Tier, in.ErrorMessage, in.ContainerID, in.ContainerName, in.Region, in.WorkerURL, in.ConfigHash = status, text, text, text, text, text, text, text
		in.StartedAt, in.WorkspaceSyncedAt, in.LastActiveAt, in.UpdatedAt = &utcLater, &utcLater, &utcLater, utcLater
		got, err = b.Get(ctx, "u1", "sbx-1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the changed record", in, got)
		want(t, b.Update(ctx, "sbx-9", later, all), task.ErrNotFound)
	})
}

func TestAnEventOfAProviderChangesOnlyItsNewestKnowledge(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		b, ctx := s.Sandboxes(), t.Context()
		addUser(t, s, "u1")
		if err := b.Create(ctx, *newSandbox("sbx-1", "u1")); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			name, provider, id string
			event              time.Duration
			status             task.SandboxStatus
			applied            bool
			after              task.SandboxStatus
		}{
			{"the first", "docker", "sbx-1", 2 * time.Second, task.SandboxRunning, true, task.SandboxRunning},
			{"the first, replayed", "docker", "sbx-1", 2 * time.Second, task.SandboxRunning, true, task.SandboxRunning},
			{"a late one", "docker", "sbx-1", time.Second, task.SandboxStarting, false, task.SandboxRunning},
			{"another provider's", "cloudflare", "sbx-1", 3 * time.Second, task.SandboxError, false, task.SandboxRunning},
			{"one of no sandbox", "docker", "sbx-9", 3 * time.Second, task.SandboxError, false, task.SandboxRunning},
			{"a newer one", "docker", "sbx-1", 4 * time.Second, task.SandboxSleeping, true, task.SandboxSleeping},
		} {
			applied, err := b.Apply(ctx, step.provider, step.id, noon().Add(step.event), noon(), task.SandboxChange{Status: &step.status})
			if err != nil || applied != step.applied {
				t.Fatalf("%s: %v, %v", step.name, applied, err)
			}
			if got, err := b.Get(ctx, "u1", "sbx-1"); err != nil || got.Status != step.after {
				t.Errorf("%s: %s, %v", step.name, got.Status, err)
			}
		}
	})
}

func TestTemplatesAreTheUsersOwnAndEverybodys(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		addUser(t, s, "u1")
		addUser(t, s, "u2")
		u1, u2 := "u1", "u2"
		row := func(id string, user *string, made time.Duration) task.Template {
			return task.Template{
				ID: id, UserID: user, Name: "n", Description: "d", Icon: "i", Category: "c", Prompt: "p {{x}}",
				Placeholders: `[{"name":"x"}]`, CreatedAt: noon().Add(made), UpdatedAt: noon().Add(made),
			}
		}
		for _, r := range []task.Template{row("all", nil, 0), row("mine", &u1, time.Second), row("theirs", &u2, time.Second)} {
			if err := s.Templates().Save(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		want(t, s.Templates().Save(ctx, row("theirs", &u1, 0)), task.ErrExists)
		want(t, s.Templates().Save(ctx, row("all", &u1, 0)), task.ErrExists)
		again := row("mine", &u1, time.Hour)
		again.Prompt = "q"
		if err := s.Templates().Save(ctx, again); err != nil {
			t.Fatal(err)
		}
		list, err := s.Templates().List(ctx, "u1", task.Page{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		all := row("all", nil, 0)
		all.CreatedAt, all.UpdatedAt, again.CreatedAt, again.UpdatedAt = kept(all.CreatedAt), kept(all.UpdatedAt), kept(noon().Add(time.Second)), kept(again.UpdatedAt)
		same(t, "the list", []task.Template{all, again}, list)
		_, err = s.Templates().Get(ctx, "u1", "theirs")
		want(t, err, task.ErrNotFound)
		want(t, s.Templates().Delete(ctx, "u1", "all"), task.ErrNotFound)
		want(t, s.Templates().Delete(ctx, "u1", "theirs"), task.ErrNotFound)
		if err := s.Templates().Delete(ctx, "u1", "mine"); err != nil {
			t.Fatal(err)
		}
	})
}
