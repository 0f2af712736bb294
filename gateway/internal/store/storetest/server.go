package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

const (
	buildTime = 10 * time.Minute // a first build loads and compiles a lot
	startTime = 30 * time.Second
	stopTime  = 10 * time.Second
)

// Server is a versitygw of the test's own, on a directory. Its version is pinned
// in testdata/versitygw; Go's build cache keeps the program.
type Server struct {
	Endpoint  string
	Bucket    string
	AccessKey string
	SecretKey string
	// Address is the host and port that it listens on.
	Address string
	// Folder is where the server keeps the bucket's objects.
	Folder string

	binary  string
	args    []string
	output  *lockedBuffer
	command *exec.Cmd
	exited  chan struct{}
}

// ServerOptions are what can be different about a server.
type ServerOptions struct {
	// CertFile and KeyFile make it serve TLS.
	CertFile, KeyFile string
	// Domain makes it understand requests to BUCKET.Domain.
	Domain string
}

// StartServer starts a server with an empty bucket. The test's clean-up stops it.
func StartServer(t testing.TB, opts ServerOptions) *Server {
	t.Helper()
	folder := t.TempDir()
	s := &Server{
		Bucket: "agentpod", AccessKey: "access", SecretKey: "a-secret-of-the-test",
		Folder: filepath.Join(folder, "objects", "agentpod"), binary: buildServer(t), Address: freeAddress(t),
	}
	for _, name := range []string{"objects/agentpod", "attributes"} {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.args = []string{"--port", s.Address, "--access", s.AccessKey, "--secret", s.SecretKey, "--keep-alive", "--quiet"}
	s.Endpoint = "http://" + s.Address
	if opts.CertFile != "" {
		s.args = append(s.args, "--cert", opts.CertFile, "--key", opts.KeyFile)
		s.Endpoint = "https://" + s.Address
	}
	if opts.Domain != "" {
		_, port, _ := net.SplitHostPort(s.Address)
		s.args = append(s.args, "--virtual-domain", opts.Domain+":"+port)
		s.Endpoint = strings.Replace(s.Endpoint, "127.0.0.1", opts.Domain, 1) // whoever dials has to know
	}
	s.args = append(s.args, "posix")
	objects := filepath.Dir(s.Folder)
	if err := unix.Setxattr(objects, "user.agentpod", []byte("x"), 0); err != nil {
		s.args = append(s.args, "--sidecar", filepath.Join(folder, "attributes")) // this file system keeps no attributes
	}
	s.args = append(s.args, objects)
	s.Start(t)
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// Settings returns how to reach the bucket.
func (s *Server) Settings() store.S3Settings {
	return store.S3Settings{
		Endpoint: s.Endpoint, Region: "us-east-1", Bucket: s.Bucket,
		AccessKey: s.AccessKey, SecretKey: s.SecretKey,
	}
}

// buildServer returns the path of the program.
func buildServer(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	here, err := run(ctx, "", "go", "list", "-f", "{{.Dir}}", "github.com/agentpod/agentpod/gateway/internal/store/storetest")
	if err != nil {
		t.Fatalf("finding the S3 server's module: %v", err)
	}
	binary, err := run(ctx, filepath.Join(here, "testdata", "versitygw"), "go", "tool", "-n", "versitygw")
	if err != nil {
		t.Fatalf("building the S3 server: %v", err)
	}
	return binary
}

// run returns what a command prints.
func run(ctx context.Context, folder, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...) //nolint:gosec // go, with arguments from this file
	command.Dir = folder
	command.Env = command.Environ()
	if folder != "" { // a module that is not in the workspace
		command.Env = append(command.Env, "GOWORK=off", "GOFLAGS=-mod=readonly")
	}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", command, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// Start starts the server again, at the same address and with what it had stored.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.output = &lockedBuffer{}
	s.command = exec.Command(s.binary, s.args...) //nolint:gosec,noctx // the program built above; Stop ends it
	s.command.Stdout, s.command.Stderr = s.output, s.output
	// A test that is killed takes its server along.
	s.command.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := s.command.Start(); err != nil {
		t.Fatalf("starting the S3 server: %v", err)
	}
	exited := make(chan struct{})
	s.exited = exited
	command := s.command
	go func() {
		_ = command.Wait() // killed, as a rule
		close(exited)
	}()
	s.await(t)
}

// await waits until the server accepts connections.
func (s *Server) await(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for {
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Address)
		if err == nil {
			_ = connection.Close()
			return
		}
		select {
		case <-ticks.C:
		case <-s.exited:
			t.Fatalf("the S3 server ended: %s", s.output)
		case <-ctx.Done():
			t.Fatalf("the S3 server does not answer: %s", s.output)
		}
	}
}

// Stop kills the server, as a power cut would. Start starts it again.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("stopping the S3 server: %v", err)
	}
	select {
	case <-s.exited:
	case <-time.After(stopTime):
		t.Errorf("the S3 server does not end")
	}
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
