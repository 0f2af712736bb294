package store_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/linktest"
)

func TestAConnectionThatDiedSilentlyCostsNoCallItsDeadline(t *testing.T) {
	t.Parallel()
	direct, err := pgx.ParseConfig(server.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	link := linktest.Start(t, "unix", fmt.Sprintf("%s/.s.PGSQL.%d", direct.Host, direct.Port))
	through := url.URL{Scheme: "postgres", User: url.User(direct.User), Host: link.Address(), Path: direct.Database, RawQuery: "sslmode=disable"}
	s := storetest.Open(t, through.String())
	crowd(t, s)
	<-time.After(1100 * time.Millisecond) // a connection that was just used is not asked
	link.Silence()
	link.Speak() // for new connections
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}

// crowd uses many connections at the same time.
func crowd(t *testing.T, s *store.Store) {
	t.Helper()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if err := s.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestWhatSQLiteCommitsOutlivesAPowerCut(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.FileURL(t))
	mode, err := s.Pragma(t.Context(), "synchronous")
	if err != nil || mode != "2" {
		t.Errorf("synchronous is %s, want 2 (FULL): %v", mode, err)
	}
	if mode, err := s.Pragma(t.Context(), "journal_mode"); err != nil || !strings.EqualFold(mode, "wal") {
		t.Errorf("the journal is %s: %v", mode, err)
	}
}
