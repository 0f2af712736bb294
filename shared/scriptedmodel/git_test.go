package scriptedmodel_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

func startGit(t *testing.T) *scriptedmodel.GitServer {
	t.Helper()
	s, err := scriptedmodel.StartGit(t.Context(), "127.0.0.1:0", "", nil)
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

func git(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // the arguments are the test's own
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestTheDemoRepositoryCanBeCloned(t *testing.T) {
	s := startGit(t)
	for _, version := range []string{"0", "1", "2"} {
		dir := filepath.Join(t.TempDir(), "clone")
		if out, err := git(t, "-c", "protocol.version="+version, "clone", s.URL(), dir); err != nil {
			t.Fatalf("version %s: %v\n%s", version, err, out)
		}
		log, err := git(t, "-C", dir, "log", "--format=%s")
		if err != nil || log != "Greet by name\nSay what this is\n" {
			t.Errorf("version %s: log %q, %v", version, log, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "shallow")
	if out, err := git(t, "clone", "--depth", "1", "-b", "feature", s.URL(), dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"README.md", "greet.py", "farewell.py"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestTheDemoRepositoryHasTheSameCommitsEveryTime(t *testing.T) {
	first, err := git(t, "ls-remote", startGit(t).URL())
	if err != nil {
		t.Fatal(err, first)
	}
	second, err := git(t, "ls-remote", startGit(t).URL())
	if err != nil || first != second || !strings.Contains(first, "refs/heads/feature") {
		t.Errorf("%v\n%s\n%s", err, first, second)
	}
}

func TestOtherRepositoriesAndServicesAreRefusedInGitsWords(t *testing.T) {
	s := startGit(t)
	base := strings.TrimSuffix(s.URL(), "/demo.git")
	for _, path := range []string{"/x.git", "/../demo.git", "/demo.git/", "/etc"} {
		out, err := git(t, "clone", base+path, filepath.Join(t.TempDir(), "x"))
		if err == nil || !strings.Contains(out, "access denied or repository not exported: "+path) {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
	dir := filepath.Join(t.TempDir(), "clone")
	if out, err := git(t, "clone", s.URL(), dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := git(t, "-C", dir, "push", "origin", "HEAD:other"); err == nil {
		t.Errorf("a push went through:\n%s", out)
	}
}

func TestAGitServerSurvivesNonsense(t *testing.T) {
	s := startGit(t)
	addr := strings.TrimSuffix(strings.TrimPrefix(s.URL(), "git://"), "/demo.git")
	for _, junk := range []string{"GET / HTTP/1.1\r\n\r\n", "0000", "0004", "ffff", "-001", "zzzz"} {
		conn := dial(t, addr)
		if _, err := io.WriteString(conn, junk); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); n != 0 {
			t.Errorf("%q answered %d bytes (%v)", junk, n, err)
		}
	}
	if out, err := git(t, "ls-remote", s.URL()); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCloseEndsConnectionsUnderWay(t *testing.T) {
	s := startGit(t)
	addr := strings.TrimSuffix(strings.TrimPrefix(s.URL(), "git://"), "/demo.git")
	silent, talking := dial(t, addr), dial(t, addr)
	request := "git-upload-pack /demo.git\x00host=x\x00"
	if _, err := fmt.Fprintf(talking, "%04x%s", len(request)+4, request); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(talking, make([]byte, 4)); err != nil { // git runs
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, conn := range []net.Conn{silent, talking} {
		if _, err := io.Copy(io.Discard, conn); os.IsTimeout(err) {
			t.Error("the connection stayed open")
		}
	}
}

func TestManyClonesAtOnce(t *testing.T) {
	s := startGit(t)
	var wg sync.WaitGroup
	for range 24 {
		wg.Go(func() {
			if out, err := git(t, "ls-remote", s.URL()); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return conn
}
