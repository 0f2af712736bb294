package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
)

func TestAVisitIsOverWithItsSessionItsUserAndItsTime(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		ctx, visits, accounts := t.Context(), s.Visits(), s.Accounts()
		addUser(t, s, "u")
		_, err := accounts.CreateUser(ctx, account.User{ID: "banned", Email: "banned@example.com", Role: account.RoleUser, Banned: true, CreatedAt: noon(), UpdatedAt: noon()}, "")
		want(t, err, nil)
		for _, id := range []string{"box", "other"} {
			want(t, s.Sandboxes().Create(ctx, task.Sandbox{
				ID: id, UserID: "u", Provider: "docker", Name: id, Slug: id, Status: task.SandboxRunning, CreatedAt: noon(), UpdatedAt: noon(),
			}), nil)
		}
		for id, user := range map[string]string{"good": "u", "ended": "u", "expired": "u", "of-banned": "banned"} {
			end := noon().Add(time.Hour)
			if id == "expired" {
				end = noon().Add(time.Minute)
			}
			want(t, accounts.CreateSession(ctx, account.Session{
				ID: id, UserID: user, TokenHash: id, ExpiresAt: end, CreatedAt: noon(), UpdatedAt: noon(),
			}, 100), nil)
		}
		until := noon().Add(2 * time.Hour)
		for _, v := range [][2]string{{"good", "box"}, {"ended", "box"}, {"ended", "other"}, {"expired", "box"}, {"of-banned", "box"}, {"never-was", "box"}} {
			want(t, visits.Put(ctx, task.Visit{SessionID: v[0], SandboxID: v[1], Until: until}), nil)
		}
		want(t, visits.Put(ctx, task.Visit{SessionID: "good", SandboxID: "other", Until: noon().Add(time.Minute)}), nil)
		want(t, visits.Put(ctx, task.Visit{SessionID: "good", SandboxID: "none", Until: until}), task.ErrNotFound)
		over := func(now time.Time, limit int) string {
			t.Helper()
			found, err := visits.Over(ctx, now, limit)
			want(t, err, nil)
			names := []string{}
			for _, v := range found {
				if v.Provider != "docker" {
					t.Errorf("provider %q", v.Provider)
				}
				names = append(names, v.SessionID+"/"+v.SandboxID)
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		same(t, "at first", "never-was/box of-banned/box", over(noon(), 10))
		want(t, accounts.DeleteSession(ctx, "ended"), nil)
		same(t, "after a sign-out and a minute", "ended/box ended/other expired/box good/other never-was/box of-banned/box", over(noon().Add(time.Minute), 10))
		if got := over(noon().Add(time.Minute), 2); strings.Count(got, "/") != 2 {
			t.Errorf("of at most two: %s", got)
		}
		seen := map[string]bool{}
		for range 1000 {
			if seen[over(noon().Add(time.Minute), 1)] = true; len(seen) == 6 {
				break
			}
		}
		if len(seen) != 6 {
			t.Errorf("one at a time only %v are found", seen)
		}
		// One that was put again meanwhile is another.
		want(t, visits.Put(ctx, task.Visit{SessionID: "good", SandboxID: "other", Until: until}), nil)
		want(t, visits.Delete(ctx, task.Visit{SessionID: "good", SandboxID: "other", Until: noon().Add(time.Minute)}), nil)
		want(t, visits.Delete(ctx, task.Visit{SessionID: "expired", SandboxID: "box", Until: until}), nil)
		want(t, s.Sandboxes().Delete(ctx, "u", "box"), nil)
		same(t, "after the sandbox was deleted", "ended/other good/other", over(until, 10))
	})
}
