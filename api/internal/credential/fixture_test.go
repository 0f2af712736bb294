package credential_test

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/seal"
)

// server is the Postgres of all tests.
//
//nolint:gochecknoglobals // TestMain has no other way to hand it over
var server *storetest.Server

func TestMain(m *testing.M) {
	storetest.Main(m, func(s *storetest.Server) { server = s })
}

const secret = "sk-a-secret-key-of-the-tests"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ring is a keyring of keys that are all one byte.
func ring(t testing.TB, current byte, former ...byte) *seal.Keyring {
	t.Helper()
	fill := func(b byte) [seal.KeySize]byte { return [seal.KeySize]byte(bytes.Repeat([]byte{b}, seal.KeySize)) }
	var before [][seal.KeySize]byte
	for _, b := range former {
		before = append(before, fill(b))
	}
	keys, err := seal.NewKeyring(fill(current), before...)
	must(t, err)
	return keys
}

// lockedBuffer is a log that several may write to.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// world is a service on a store, with the users ada and bob.
type world struct {
	*credential.Service
	store *store.Store
	log   *lockedBuffer
}

func newWorld(t testing.TB, s *store.Store, keys *seal.Keyring) world {
	t.Helper()
	for _, id := range []string{"ada", "bob"} {
		_, err := s.Accounts().CreateUser(t.Context(), account.User{ID: id, Name: id, Email: id + "@example.com", Role: account.RoleUser}, "")
		must(t, err)
	}
	return again(t, s, keys)
}

// again is another service on the same store.
func again(t testing.TB, s *store.Store, keys *seal.Keyring) world {
	t.Helper()
	log := &lockedBuffer{}
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	catalogue, err := credential.NewCatalogue("", nil, logger)
	must(t, err)
	now := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	return world{
		Service: credential.New(credential.Settings{Keys: keys, Catalogue: catalogue, Log: logger, Now: now}, s.Credentials(), s.Configs()),
		store:   s, log: log,
	}
}

func (w world) configure(t testing.TB, userID, providerID, key string) {
	t.Helper()
	_, err := w.Configure(t.Context(), userID, providerID, key)
	must(t, err)
}

func (w world) config(t testing.TB, userID string) (string, string) {
	t.Helper()
	config, hash, err := w.Config(t.Context(), userID)
	must(t, err)
	return string(config), hash
}
