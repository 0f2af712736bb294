package store_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glebarez/sqlite"
	"github.com/google/go-cmp/cmp"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/migrations"
)

// server is the Postgres of all tests.
//
//nolint:gochecknoglobals // TestMain has no other way to hand it over
var server *storetest.Server

func TestMain(m *testing.M) {
	storetest.Main(m, func(s *storetest.Server) { server = s })
}

// noon is a moment in a zone that is not UTC, finer than what is kept.
func noon() time.Time {
	return time.Date(2026, 3, 29, 12, 0, 0, 123_456_789, time.FixedZone("far", 5*3600+1800))
}

// kept is a time as it comes back.
func kept(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// addUser keeps a user.
func addUser(t testing.TB, s *store.Store, id string) {
	t.Helper()
	_, err := s.Accounts().CreateUser(t.Context(), account.User{
		ID: id, Name: id, Email: id + "@example.com", Role: account.RoleUser, CreatedAt: noon(), UpdatedAt: noon(),
	}, "hash of "+id)
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("the error is %v, want %v", err, target)
	}
}

func same(t testing.TB, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// raw opens a database without migrating it.
func raw(t testing.TB, url string) (*sql.DB, string) {
	t.Helper()
	driver, dialect, name := "pgx", migrations.Postgres, url
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		driver, dialect, name = sqlite.DriverName, migrations.SQLite, path
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db, dialect
}

func TestMigrationsGoUpDownAndUp(t *testing.T) {
	t.Parallel()
	storetest.EachURL(t, server, func(t *testing.T, url string) {
		if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
			url = "sqlite:" + filepath.Join(filepath.Dir(path), "plain.db")
		}
		db, dialect := raw(t, url)
		tables := func() (n int) {
			query := "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
			if dialect == migrations.SQLite {
				query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
			}
			if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n - 1 // goose's own
		}
		const all = 13
		for _, step := range []struct {
			name   string
			do     func() error
			tables int
		}{
			{"up", func() error { return migrations.Up(t.Context(), db, dialect) }, all},
			{"up again", func() error { return migrations.Up(t.Context(), db, dialect) }, all},
			{"down", func() error { return migrations.Down(t.Context(), db, dialect) }, 0},
			{"down again", func() error { return migrations.Down(t.Context(), db, dialect) }, 0},
			{"up after down", func() error { return migrations.Up(t.Context(), db, dialect) }, all},
		} {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if n := tables(); n != step.tables {
				t.Errorf("%s: %d tables, want %d", step.name, n, step.tables)
			}
		}
	})
}

func TestThoseWhoStartAtOnceMigrateOnce(t *testing.T) {
	t.Parallel()
	storetest.EachURL(t, server, func(t *testing.T, url string) {
		const starters = 6
		errs := make([]error, starters)
		var group sync.WaitGroup
		for i := range starters {
			group.Go(func() {
				s, err := store.Open(t.Context(), url)
				if err == nil {
					_, err = s.Accounts().CountUsers(t.Context())
					err = errors.Join(err, s.Close())
				}
				errs[i] = err
			})
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	})
}

func TestABadURLIsRefusedWithoutRepeatingIt(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "mysql://u:hush@h/d", "postgres://u:hush@h:port/d", "sqlite:", "/hush", "postgres://u:hush@127.0.0.1:1/d?connect_timeout=1"} {
		_, err := store.Open(t.Context(), url)
		if err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestAnSQLiteFileInAMissingFolderIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "no", "such.db")); err == nil {
		t.Error("it was opened")
	}
}

func TestADatabaseThatIsAwayIsSaidToBe(t *testing.T) {
	t.Parallel()
	own, err := storetest.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := storetest.Open(t, own.URL(t))
	addUser(t, s, "u1")
	if err := own.Down(); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a server that is down answers")
	}
	if err := own.Up(); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("it is back, and yet: %v", err)
	}
	if n, err := s.Accounts().CountUsers(t.Context()); err != nil || n != 1 {
		t.Errorf("%d users, %v", n, err)
	}
}

func TestSQLiteFilesAreForTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	url := storetest.FileURL(t)
	storetest.Open(t, url)
	info, err := os.Stat(strings.TrimPrefix(url, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the mode is %o", mode)
	}
}

func TestOfManyFirstUsersOneIsAdmin(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		_, err := s.Accounts().CreateUser(t.Context(), account.User{ID: "service", Email: "s@x.invalid", Role: account.RoleService, CreatedAt: noon(), UpdatedAt: noon()}, "")
		if err != nil {
			t.Fatal(err)
		}
		const racers = 12
		users, errs := make([]account.User, racers), make([]error, racers)
		var group sync.WaitGroup
		for i := range racers {
			group.Go(func() {
				id := fmt.Sprintf("u%d", i)
				users[i], errs[i] = s.Accounts().CreateUser(t.Context(), account.User{
					ID: id, Name: id, Email: id + "@example.com", Role: account.RoleUser, CreatedAt: noon(), UpdatedAt: noon(),
				}, "hash")
			})
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		admins := 0
		for _, u := range users {
			if got, err := s.Accounts().UserByID(t.Context(), u.ID); err != nil || got.Role != u.Role {
				t.Errorf("%+v was kept as %+v, %v", u, got, err)
			}
			if u.Founder != (u.Role == account.RoleAdmin) {
				t.Errorf("%+v", u)
			}
			if u.Founder {
				admins++
			}
		}
		if admins != 1 {
			t.Errorf("%d admins", admins)
		}
		if n, err := s.Accounts().CountUsers(t.Context()); err != nil || n != racers {
			t.Errorf("%d users, %v", n, err)
		}
	})
}

func TestUsersAreKeptAndFound(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		a := s.Accounts()
		in := account.User{
			ID: "u1", Name: "Ada'); DROP TABLE users;--", Email: "ada@example.com", EmailVerified: true, Image: "https://x", Role: account.RoleUser,
			Banned: true, CreatedAt: noon(), UpdatedAt: noon().Add(time.Hour),
		}
		created, err := a.CreateUser(t.Context(), in, "the hash")
		if err != nil {
			t.Fatal(err)
		}
		in.Role, in.Founder, in.CreatedAt, in.UpdatedAt = account.RoleAdmin, true, kept(in.CreatedAt), kept(in.UpdatedAt)
		same(t, "what was created", in, created)
		byEmail, hash, err := a.UserByEmail(t.Context(), "ada@example.com")
		if err != nil || hash != "the hash" {
			t.Fatalf("%q, %v", hash, err)
		}
		same(t, "by e-mail", in, byEmail)
		byID, err := a.UserByID(t.Context(), "u1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "by id", in, byID)
		_, err = a.CreateUser(t.Context(), account.User{ID: "u2", Email: "ada@example.com", Role: account.RoleUser}, "x")
		want(t, err, account.ErrEmailTaken)
		_, err = a.UserByID(t.Context(), "u2")
		want(t, err, account.ErrNotFound)
		_, _, err = a.UserByEmail(t.Context(), "nobody@example.com")
		want(t, err, account.ErrNotFound)
	})
}

func TestSessionsAreKeptRenewedAndEnded(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		a, ctx := s.Accounts(), t.Context()
		addUser(t, s, "u1")
		addUser(t, s, "u2")
		in := account.Session{
			ID: "s1", UserID: "u1", TokenHash: "h1", Remember: true, IPAddress: "127.0.0.1", UserAgent: "x",
			ExpiresAt: noon().Add(time.Hour), CreatedAt: noon(), UpdatedAt: noon(),
		}
		if err := a.CreateSession(ctx, in, 3); err != nil {
			t.Fatal(err)
		}
		in.ExpiresAt, in.CreatedAt, in.UpdatedAt = kept(in.ExpiresAt), kept(in.CreatedAt), kept(in.UpdatedAt)
		got, user, err := a.SessionByHash(ctx, "h1")
		if err != nil || user.ID != "u1" {
			t.Fatalf("%+v, %v", user, err)
		}
		same(t, "the session", in, got)

		later := noon().Add(time.Minute)
		if err := a.RenewSession(ctx, "s1", noon(), later, later.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		// Who has seen it before that does not renew it again.
		if err := a.RenewSession(ctx, "s1", noon(), later.Add(time.Hour), later); err != nil {
			t.Fatal(err)
		}
		got, _, err = a.SessionByHash(ctx, "h1")
		if err != nil || !got.UpdatedAt.Equal(kept(later)) || !got.ExpiresAt.Equal(kept(later.Add(time.Hour))) {
			t.Errorf("renewed: %+v, %v", got, err)
		}

		// Those that are over go, and the oldest beyond three; others' stay.
		add := func(id, user string, made, ends time.Duration) {
			t.Helper()
			if err := a.CreateSession(ctx, account.Session{
				ID: id, UserID: user, TokenHash: "h-" + id, CreatedAt: noon().Add(made), UpdatedAt: noon().Add(made), ExpiresAt: noon().Add(ends),
			}, 3); err != nil {
				t.Fatal(err)
			}
		}
		add("other", "u2", 0, time.Second)
		add("short", "u1", time.Second, 2*time.Second)
		add("s3", "u1", 3*time.Second, time.Hour)
		add("s4", "u1", 4*time.Second, time.Hour)
		add("s5", "u1", 5*time.Second, time.Hour)
		for hash, stays := range map[string]bool{"h1": false, "h-short": false, "h-s3": true, "h-s4": true, "h-s5": true, "h-other": true} {
			if _, _, err := a.SessionByHash(ctx, hash); (err == nil) != stays {
				t.Errorf("%s: %v, want it to stay: %v", hash, err, stays)
			}
		}
		for range 2 {
			if err := a.DeleteSession(ctx, "h-s5"); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err = a.SessionByHash(ctx, "h-s5")
		want(t, err, account.ErrNotFound)
		if err := a.CreateSession(ctx, account.Session{ID: "x", UserID: "no-such-user", TokenHash: "x"}, 3); err == nil {
			t.Error("a session of nobody was kept")
		}
	})
}

func TestADatabaseIsLookedAtAndNotChanged(t *testing.T) {
	storetest.EachURL(t, server, func(t *testing.T, url string) {
		path, file := strings.CutPrefix(url, "sqlite:")
		before, err := store.Look(t.Context(), url)
		if err != nil || before.Absent != file || before.Version != 0 || (before.Newest == 0) != file {
			t.Fatalf("%+v, %v", before, err)
		}
		if _, err := os.Stat(path); file && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a look made the file: %v", err)
		}
		if again, err := store.Look(t.Context(), url); err != nil || again.Version != 0 {
			t.Errorf("after a look it is %+v, %v", again, err)
		}
		storetest.Open(t, url)
		after, err := store.Look(t.Context(), url)
		if err != nil || after.Absent || after.Version == 0 || after.Version != after.Newest {
			t.Errorf("%+v, %v", after, err)
		}
		if after.Time.IsZero() != file || !file && time.Since(after.Time).Abs() > time.Minute {
			t.Errorf("its clock says %s", after.Time)
		}
	})
}
