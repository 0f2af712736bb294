package scriptedmodel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// DemoRepository is the name of the repository that a GitServer serves.
	DemoRepository = "demo.git"

	gitRequestTimeout = 10 * time.Second
	gitTimeout        = 60 * time.Second
	gitConcurrency    = 16
	maxGitRequest     = 1024
)

// GitServer serves a small demo repository, read-only, over the git protocol:
// two commits on main, one more on the branch feature. Close it.
type GitServer struct {
	url    string
	dir    string
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // the server's life, ended by Close
	cancel context.CancelFunc
	l      net.Listener
	done   sync.WaitGroup
}

// StartGit makes the demo repository in a temporary folder and serves it on addr
// (host:port, port 0 for any) until ctx ends or Close is called. It needs the
// git command; of the user's git settings it takes nothing. host, when not
// empty, is what URL names instead of the address listened on.
func StartGit(ctx context.Context, addr, host string, logger *slog.Logger) (*GitServer, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp("", "scripted-git-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the demo repository: %w", err)
	}
	s := &GitServer{dir: dir, log: logger}
	if err := makeDemo(ctx, dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	var lc net.ListenConfig
	s.l, err = lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the git server: %w", err), os.RemoveAll(dir))
	}
	s.url = "git://" + publicAddr(s.l.Addr(), host) + "/" + DemoRepository
	life, cancel := context.WithCancel(ctx)
	s.ctx, s.cancel = life, cancel
	// Closing the listener is what ends Accept.
	context.AfterFunc(life, func() { _ = s.l.Close() })
	s.done.Go(s.serve)
	return s, nil
}

// URL is the demo repository's address, git://HOST:PORT/demo.git.
func (s *GitServer) URL() string { return s.url }

// Close ends the clones under way, waits for them and removes the repository.
// It may be called more than once.
func (s *GitServer) Close() error {
	s.cancel()
	s.done.Wait()
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the demo repository: %w", err)
	}
	return nil
}

func (s *GitServer) serve() {
	slots := make(chan struct{}, gitConcurrency)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		conn, err := s.l.Accept()
		if s.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil {
			s.log.Warn("git server cannot accept", "error", err)
			<-slots
			if wait(s.ctx, 100*time.Millisecond) != nil {
				return
			}
			continue
		}
		s.done.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			if err := s.handle(conn); err != nil {
				s.log.Warn("git request failed", "error", err)
			}
		})
	}
}

func (s *GitServer) handle(conn net.Conn) error {
	ctx, cancel := context.WithTimeout(s.ctx, gitTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(gitRequestTimeout)); err != nil {
		return fmt.Errorf("set a deadline: %w", err)
	}
	service, path, protocol, err := readGitRequest(conn)
	if err != nil {
		return err
	}
	if service != "git-upload-pack" || path != "/"+DemoRepository {
		if _, err := io.WriteString(conn, pktLine("ERR access denied or repository not exported: "+path)); err != nil {
			return fmt.Errorf("refuse a git request: %w", err)
		}
		return nil
	}
	if err := conn.SetDeadline(time.Now().Add(gitTimeout)); err != nil {
		return fmt.Errorf("set a deadline: %w", err)
	}
	return s.uploadPack(ctx, conn, protocol)
}

// uploadPack lets git itself talk to the client, over the connection's own file
// so that the command ends as soon as git does.
func (s *GitServer) uploadPack(ctx context.Context, conn net.Conn, protocol string) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("git needs a TCP connection, got %T", conn)
	}
	file, err := tcp.File()
	if err != nil {
		return fmt.Errorf("take the connection's file: %w", err)
	}
	defer func() { _ = file.Close() }()
	var stderr bytes.Buffer
	cmd := gitCommand(ctx, s.dir, "upload-pack", "--strict", "--timeout=30", filepath.Join(s.dir, DemoRepository))
	if protocol != "" {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+protocol)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, &stderr
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("git upload-pack: %w: %s", err, cut(stderr.String(), maxGitRequest))
	}
	return nil
}

// readGitRequest reads the one packet that opens the git protocol:
// "git-upload-pack /NAME\0host=HOST\0" and perhaps "\0version=2\0".
func readGitRequest(r io.Reader) (service, path, protocol string, err error) {
	size := make([]byte, 4)
	if _, err := io.ReadFull(r, size); err != nil {
		return "", "", "", fmt.Errorf("read a git request: %w", err)
	}
	n, err := strconv.ParseUint(string(size), 16, 16)
	if err != nil || n < 5 || n > maxGitRequest {
		return "", "", "", errors.New("not a git request")
	}
	line := make([]byte, n-4)
	if _, err := io.ReadFull(r, line); err != nil {
		return "", "", "", fmt.Errorf("read a git request: %w", err)
	}
	first, extra, _ := strings.Cut(string(line), "\x00")
	service, path, _ = strings.Cut(strings.TrimSuffix(first, "\n"), " ")
	for param := range strings.SplitSeq(extra, "\x00") {
		if param == "version=1" || param == "version=2" {
			protocol = param
		}
	}
	return service, path, protocol, nil
}

func pktLine(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

// gitCommand is git apart from the user's and the system's settings, with fixed
// names and dates, so that the repository has the same commits everywhere.
func gitCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // the arguments are this package's own
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), //nolint:forbidigo // git finds its parts by the PATH that it was found by
		"HOME=" + dir, "LC_ALL=C", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Demo", "GIT_AUTHOR_EMAIL=demo@example.com", "GIT_AUTHOR_DATE=2026-01-01T12:00:00Z",
		"GIT_COMMITTER_NAME=Demo", "GIT_COMMITTER_EMAIL=demo@example.com", "GIT_COMMITTER_DATE=2026-01-01T12:00:00Z",
	}
	return cmd
}

const demoReadme = `# Demo

A very small repository to try a sandbox with.

    python3 greet.py World
`

const demoProgram = `import sys


def greet(name):
    return f"Hello, {name}!"


if __name__ == "__main__":
    print(greet(sys.argv[1] if len(sys.argv) > 1 else "World"))
`

const demoFeature = `def farewell(name):
    return f"Goodbye, {name}!"
`

// makeDemo makes the demo repository, bare, under dir.
func makeDemo(ctx context.Context, dir string) error {
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return fmt.Errorf("make the demo repository: %w", err)
	}
	git := func(args ...string) error {
		if out, err := gitCommand(ctx, work, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("make the demo repository: git %s: %w: %s", args[0], err, cut(string(out), maxGitRequest))
		}
		return nil
	}
	commit := func(name, content, message string) error {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("make the demo repository: %w", err)
		}
		if err := git("add", "-A"); err != nil {
			return err
		}
		return git("commit", "-q", "-m", message)
	}
	for _, step := range []func() error{
		func() error { return git("init", "-q", "--template=", "-b", "main") },
		func() error { return commit("README.md", demoReadme, "Say what this is") },
		func() error { return commit("greet.py", demoProgram, "Greet by name") },
		func() error { return git("checkout", "-q", "-b", "feature") },
		func() error { return commit("farewell.py", demoFeature, "Say goodbye too") },
		func() error { return git("checkout", "-q", "main") },
		func() error {
			return git("clone", "-q", "--bare", "--template=", work, filepath.Join(dir, DemoRepository))
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
