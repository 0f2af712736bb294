// Package storetest gives tests real databases: a Postgres server of the test
// binary's own, and SQLite files.
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/api/internal/store"
)

const (
	startTime = time.Minute
	stopTime  = 30 * time.Second
)

// Server is a Postgres server. It listens on a socket in its own folder, so it
// takes no port. Its data do not survive a power cut.
type Server struct {
	folder   string
	programs string
	owner    *syscall.Credential // nil for who runs the test

	command *exec.Cmd
	output  *lockedBuffer
	exited  chan struct{}
}

// Main is what a TestMain does: it starts a server for all tests, hands it over,
// runs them, removes the server, looks for goroutines that were left, and exits.
func Main(m goleak.TestingM, hand func(*Server)) {
	server, err := Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need the programs of a Postgres server (Debian's package postgresql):", err)
		os.Exit(1)
	}
	hand(server)
	goleak.VerifyTestMain(closing{m, server})
}

// closing closes the server when the tests have run.
type closing struct {
	tests  goleak.TestingM
	server *Server
}

// Run implements goleak.TestingM.
func (c closing) Run() int {
	code := c.tests.Run()
	if err := c.server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// Start makes a server and starts it. Close removes it.
func Start() (*Server, error) {
	programs, err := findPrograms()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "agentpod-pg")
	if err != nil {
		return nil, fmt.Errorf("making the server's folder: %w", err)
	}
	s := &Server{folder: folder, programs: programs}
	if err := s.initialize(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if err := s.Up(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// findPrograms returns the folder of initdb and postgres: that of PATH, or the
// newest of Debian's.
func findPrograms() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.Join(errors.New("there is no initdb"), err)
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// initialize makes the server's data. Postgres refuses to run as root; then it
// runs as its package's user, or as nobody.
func (s *Server) initialize() error {
	if os.Getuid() == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			if owner, err = user.Lookup("nobody"); err != nil {
				return fmt.Errorf("finding a user for the server: %w", err)
			}
		}
		uid, uidErr := strconv.ParseUint(owner.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(owner.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr, os.Chown(s.folder, int(uid), int(gid))); err != nil {
			return fmt.Errorf("giving the server its folder: %w", err)
		}
		s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(s.programs, "initdb"), //nolint:gosec // found above
		"--pgdata", s.data(), "--username", "test", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	command.Dir, command.SysProcAttr = s.folder, &syscall.SysProcAttr{Credential: s.owner}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("making the server's data: %w: %s", err, out)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.folder, "data") }

// Up starts the server and waits until it answers. It may be used after Down.
func (s *Server) Up() error {
	s.output = &lockedBuffer{}
	s.command = exec.Command(filepath.Join(s.programs, "postgres"), "-D", s.data(), "-k", s.folder, //nolint:gosec,noctx // found above; Down ends it
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=200", "-c", "timezone=America/New_York")
	s.command.Dir = s.folder
	s.command.Stdout, s.command.Stderr = s.output, s.output
	// A test that is killed takes its server along.
	s.command.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner, Pdeathsig: syscall.SIGQUIT}
	if err := s.command.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	command, exited := s.command, make(chan struct{})
	s.exited = exited
	go func() {
		_ = command.Wait() // its log says why
		close(exited)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := pgx.Connect(ctx, s.url("postgres")); err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-exited:
			return fmt.Errorf("the server ended: %s", s.output)
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %s", s.output)
		}
	}
}

// Down stops the server at once, cutting connections; its data stay.
func (s *Server) Down() error {
	if s.command == nil || s.command.Process == nil {
		return nil
	}
	if err := s.command.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping the server: %w", err)
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(stopTime):
		return errors.Join(errors.New("the server did not stop"), s.command.Process.Kill())
	}
}

// Close stops the server and removes its data.
func (s *Server) Close() error {
	return errors.Join(s.Down(), os.RemoveAll(s.folder))
}

func (s *Server) url(database string) string {
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {s.folder}, "user": {"test"}}.Encode()}).String()
}

// URL makes an empty database and returns its URL.
func (s *Server) URL(t testing.TB) string {
	t.Helper()
	name := "t" + strings.ToLower(rand.Text())
	conn, err := pgx.Connect(t.Context(), s.url("postgres"))
	if err != nil {
		t.Fatalf("reaching the test's server: %v: %s", err, s.output)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("making a database: %v", err)
	}
	return s.url(name)
}

// FileURL returns the URL of an SQLite file that does not exist yet.
func FileURL(t testing.TB) string {
	t.Helper()
	return "sqlite:" + filepath.Join(t.TempDir(), "a b%?.db") // a name that has to be escaped
}

// Open opens a store. The test's clean-up closes it.
func Open(t testing.TB, databaseURL string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Each runs a test on an empty store of either kind.
func Each(t *testing.T, server *Server, test func(t *testing.T, s *store.Store)) {
	t.Helper()
	EachURL(t, server, func(t *testing.T, url string) { test(t, Open(t, url)) })
}

// EachURL runs a test with the URL of an empty database of either kind.
func EachURL(t *testing.T, server *Server, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("on Postgres", func(t *testing.T) {
		t.Parallel()
		test(t, server.URL(t))
	})
	t.Run("on SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, FileURL(t))
	})
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

// Write adds to the buffer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

// String returns what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
