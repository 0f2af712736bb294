package files_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/agentpod/agentpod/container/internal/files"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func open(t *testing.T) (*files.Tree, string) {
	t.Helper()
	base := t.TempDir()
	home := filepath.Join(base, "home")
	workspace := filepath.Join(home, "workspace")
	if err := os.MkdirAll(workspace, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := files.Open(home, workspace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	return tree, home
}

func wantCode(t *testing.T, err error, code sandbox.Code) {
	t.Helper()
	if !sandbox.HasCode(err, code) {
		t.Errorf("got error %v, want %s", err, code)
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	tree, home := open(t)
	content := bytes.Repeat([]byte{0, 255, 'x'}, 1000)
	if err := tree.Write("workspace/a/b/c.bin", 0o755, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	f, listing, err := tree.OpenFile("workspace/a/b/c.bin")
	if err != nil || listing != nil {
		t.Fatal(err, listing)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	info, err := os.Stat(filepath.Join(home, "workspace", "a", "b", "c.bin"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAFailedWriteLeavesTheOldFileAndNothingElse(t *testing.T) {
	tree, home := open(t)
	if err := tree.Write("workspace/f", 0o644, strings.NewReader("old")); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(strings.NewReader("new"), iotest.ErrReader(errors.New("the caller left")))
	if err := tree.Write("workspace/f", 0o644, broken); err == nil {
		t.Fatal("the write succeeded")
	}
	got, err := os.ReadFile(filepath.Join(home, "workspace", "f"))
	if err != nil || string(got) != "old" {
		t.Errorf("got %q, %v", got, err)
	}
	entries, err := os.ReadDir(filepath.Join(home, "workspace"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestADiskThatIsFullHasItsCode(t *testing.T) {
	tree, _ := open(t)
	err := tree.Write("workspace/f", 0o644, iotest.ErrReader(syscall.ENOSPC))
	wantCode(t, err, sandbox.CodeDiskFull)
}

func TestNoPathLeavesTheHome(t *testing.T) {
	tree, home := open(t)
	for link, target := range map[string]string{
		"up": "..", "abs": "/etc", "secret": "../secret", "loop": "loop", "deep": "workspace/../../secret",
	} {
		if err := os.Symlink(target, filepath.Join(home, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"..", "../secret", "/etc/passwd", "workspace/../../secret", "a\x00b",
		"up/secret", "abs/passwd", "secret", "loop", "deep",
	} {
		t.Run(name, func(t *testing.T) {
			if f, _, err := tree.OpenFile(name); err == nil {
				if f != nil {
					_ = f.Close()
				}
				t.Error("it was opened")
			} else {
				wantCode(t, err, sandbox.CodeInvalidRequest)
			}
		})
	}
	for _, name := range []string{"../x", "up/x", "abs/x", "/x"} {
		if err := tree.Write(name, 0o644, strings.NewReader("x")); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	if err := tree.Remove("up/secret"); err == nil {
		t.Error("a file outside was removed")
	}
	got, err := os.ReadFile(filepath.Join(filepath.Dir(home), "secret"))
	if err != nil || string(got) != "secret" {
		t.Errorf("the file outside: %q, %v", got, err)
	}
}

func TestWritingToALinkReplacesTheLink(t *testing.T) {
	tree, home := open(t)
	if err := os.Symlink("../secret", filepath.Join(home, "l")); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write("l", 0o644, strings.NewReader("mine")); err != nil {
		t.Fatal(err)
	}
	outside, _ := os.ReadFile(filepath.Join(filepath.Dir(home), "secret"))
	inside, _ := os.ReadFile(filepath.Join(home, "l"))
	if string(outside) != "secret" || string(inside) != "mine" {
		t.Errorf("outside %q, inside %q", outside, inside)
	}
}

func TestAFIFODoesNotHangARead(t *testing.T) {
	tree, home := open(t)
	if err := syscall.Mkfifo(filepath.Join(home, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := tree.OpenFile("fifo")
		done <- err
	}()
	select {
	case err := <-done:
		wantCode(t, err, sandbox.CodeInvalidRequest)
	case <-time.After(5 * time.Second):
		t.Fatal("it hangs")
	}
}

func TestAListingIsSortedTypedAndBounded(t *testing.T) {
	tree, home := open(t)
	dir := filepath.Join(home, "d")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "a", "bad\xff"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	_, listing, err := tree.OpenFile("d")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range listing.Entries {
		got = append(got, fmt.Sprintf("%s %s %o", e.Name, e.Type, e.Mode))
	}
	want := "a file 600|b file 600|bad\uFFFD file 600|link symlink 777|sub directory 755"
	if strings.Join(got, "|") != want || listing.Truncated {
		t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
	}
	if listing.Entries[0].Size != 5 || listing.Entries[0].ModifiedAt.IsZero() {
		t.Errorf("entry %+v", listing.Entries[0])
	}

	many := filepath.Join(home, "many")
	if err := os.Mkdir(many, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range guest.MaxEntries + 5 {
		if err := os.Symlink("x", filepath.Join(many, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	_, listing, err = tree.OpenFile("many")
	if err != nil || len(listing.Entries) != guest.MaxEntries || !listing.Truncated {
		t.Errorf("%d entries, truncated %v, %v", len(listing.Entries), listing.Truncated, err)
	}
}

func TestRemove(t *testing.T) {
	tree, home := open(t)
	if err := tree.Write("d/e/f", 0o644, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(".", filepath.Join(home, "self")); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove("d"); err != nil {
		t.Error(err)
	}
	wantCode(t, tree.Remove("d"), sandbox.CodeFileNotFound)
	for _, kept := range []string{"", ".", "workspace", "workspace/", "./workspace", "self/workspace", "self/self/workspace"} {
		wantCode(t, tree.Remove(kept), sandbox.CodeInvalidRequest)
	}
	if _, err := os.Stat(filepath.Join(home, "workspace")); errors.Is(err, fs.ErrNotExist) {
		t.Error("the workspace is gone")
	}
}

func TestAFolderIsNotWrittenOver(t *testing.T) {
	tree, _ := open(t)
	wantCode(t, tree.Write("workspace", 0o644, strings.NewReader("x")), sandbox.CodeConflict)
	wantCode(t, tree.Write("", 0o644, strings.NewReader("x")), sandbox.CodeConflict)
	if err := tree.Write("file", 0o644, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, tree.Write("file/below", 0o644, strings.NewReader("x")), sandbox.CodeConflict)
}

func TestWhatIsAbsentIsNotFound(t *testing.T) {
	tree, _ := open(t)
	_, _, err := tree.OpenFile("workspace/nope")
	wantCode(t, err, sandbox.CodeFileNotFound)
}
