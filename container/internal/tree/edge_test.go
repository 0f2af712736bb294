package tree_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/mark"
	"github.com/agentpod/agentpod/container/internal/tree"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func write(t *testing.T, home, name, content string) {
	t.Helper()
	full := filepath.Join(home, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, b *box) (map[string]guest.TreeEntry, guest.TreeEnd) {
	t.Helper()
	got := map[string]guest.TreeEntry{}
	end, err := b.Tree(t.Context(), 1000, func(e guest.TreeEntry) error {
		got[e.Path] = e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, end
}

func TestWhatNoSnapshotHoldsIsNotListed(t *testing.T) {
	b := newBox(t, home(t), "")
	for _, name := range []string{
		".cache/x", ".npm/x", ".local/share/opencode/log/x", ".local/share/opencode/auth.json",
		".local/share/opencode/mcp-auth.json", ".local/state/agentpod/providers.json", ".config/opencode/node_modules/x",
		".local/share/opencode/opencode.db-shm", mark.File, mark.Temp,
	} {
		write(t, b.home, name, "secret")
	}
	kept := []string{"workspace/.cache/x", "workspace/node_modules/y", ".local/share/opencode/snapshot/z", "workspace/auth.json", ".cachet", "workspace/" + mark.File, mark.File + "s"}
	for _, name := range kept {
		write(t, b.home, name, "kept")
	}
	if err := unix.Mkfifo(filepath.Join(b.home, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(b.home, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	got, end := list(t, b)
	for _, name := range kept {
		if got[name].Type != guest.TreeFile {
			t.Errorf("%s is not listed", name)
		}
	}
	files := 0
	for _, e := range got {
		if e.Type == guest.TreeFile {
			files++
		}
	}
	if files != len(kept) {
		t.Errorf("%d files, want %d: %v", files, len(kept), got)
	}
	if end.Skipped != 2 || end.Reasons["fifo"] != 1 || end.Reasons["socket"] != 1 {
		t.Errorf("skipped %+v", end)
	}
}

func TestAModeThatIsOpenedUpIsListedAsItWas(t *testing.T) {
	asUser(t)
	b := newBox(t, home(t), "")
	write(t, b.home, "locked/file", "content")
	for _, name := range []string{"locked/file", "locked"} {
		if err := os.Chmod(filepath.Join(b.home, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		got, _ := list(t, b)
		if got["locked"].Mode != 0 || got["locked/file"].Mode != 0 || got["locked/file"].Type == "" {
			t.Errorf("%s: %+v", when, got)
		}
	}
	check("before")
	err := b.ReadTree(t.Context(), []string{"locked/file"}, 100, func(_ string, _ int64, r io.Reader) error {
		check("during")
		raw, err := io.ReadAll(r)
		if string(raw) != "content" {
			t.Errorf("read %q, %v", raw, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(b.home, "locked"))
	if err != nil || info.Mode().Perm() != 0 {
		t.Errorf("afterwards: %v, %v", info.Mode(), err)
	}
	check("after")
}

func TestOneFileThatFailsDoesNotHarmTheOthers(t *testing.T) {
	b := newBox(t, home(t), "")
	write(t, b.home, "good", "content")
	write(t, b.home, "outside/secret", "secret")
	if err := os.Symlink("outside", filepath.Join(b.home, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(b.home, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := map[string]error{}
	paths := []string{"none", "link/secret", "link", "fifo", "outside", "good/x", "good"}
	err := b.ReadTree(t.Context(), paths, 100, func(path string, _ int64, r io.Reader) error {
		_, got[path] = io.ReadAll(r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		want := guest.ErrTreeGone
		if path == "good" {
			want = nil
		}
		if !errors.Is(got[path], want) {
			t.Errorf("%s: %v, want %v", path, got[path], want)
		}
	}
}

func TestAFileThatChangesWhileItIsReadIsReported(t *testing.T) {
	for name, change := range map[string]func(string) error{
		"it grows":   func(f string) error { return os.Truncate(f, 64<<20) },
		"it shrinks": func(f string) error { return os.Truncate(f, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, home(t), "")
			write(t, b.home, "f", "x")
			file := filepath.Join(b.home, "f")
			// More than what fits between the two ends.
			if err := os.Truncate(file, 48<<20); err != nil {
				t.Fatal(err)
			}
			err := b.ReadTree(t.Context(), []string{"f"}, 1<<30, func(_ string, _ int64, r io.Reader) error {
				if err := change(file); err != nil {
					return err
				}
				if _, err := io.Copy(io.Discard, r); !errors.Is(err, guest.ErrTreeChanged) {
					t.Errorf("got %v", err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func sequence(entries ...guest.RestoreEntry) iter.Seq2[guest.RestoreEntry, error] {
	return func(yield func(guest.RestoreEntry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func file(path, content string) guest.RestoreEntry {
	return guest.RestoreEntry{
		TreeEntry: guest.TreeEntry{Path: path, Type: guest.TreeFile, Mode: 0o600, Size: int64(len(content))},
		Content:   strings.NewReader(content),
	}
}

func folder(path string) guest.RestoreEntry {
	return guest.RestoreEntry{TreeEntry: guest.TreeEntry{Path: path, Type: guest.TreeDirectory, Mode: 0o755}}
}

func TestARestoreFollowsNoLinkThatIsThere(t *testing.T) {
	b := newBox(t, home(t), "")
	outside := home(t)
	write(t, outside, "victim", "before")
	for name, target := range map[string]string{"dir": outside, "file": outside + "/victim"} {
		if err := os.Symlink(target, filepath.Join(b.home, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A folder that the stream did not name is a link: refused.
	_, err := b.RestoreTree(t.Context(), sequence(file("dir/victim", "after")))
	if !sandbox.HasCode(err, sandbox.CodeConflict) {
		t.Errorf("through a link: %v", err)
	}
	if _, err := b.RestoreTree(t.Context(), sequence(folder("dir"), file("dir/victim", "after"), file("file", "after"))); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(outside, "victim"))
	if err != nil || string(raw) != "before" {
		t.Errorf("outside: %q, %v", raw, err)
	}
	got, _ := list(t, b)
	if got["dir"].Type != guest.TreeDirectory || got["dir/victim"].Size != 5 || got["file"].Type != guest.TreeFile {
		t.Errorf("the home: %v", got)
	}
}

func TestARestoreThatFails(t *testing.T) {
	b := newBox(t, home(t), "")
	write(t, b.home, "full/x", "kept")
	source := errors.New("the store is away")
	for name, tc := range map[string]struct {
		entries iter.Seq2[guest.RestoreEntry, error]
		ok      func(error) bool
	}{
		"a folder that is not empty is in the way": {
			sequence(file("full", "")), func(err error) bool { return sandbox.HasCode(err, sandbox.CodeConflict) },
		},
		"its folder is missing": {
			sequence(file("none/x", "")), func(err error) bool { return sandbox.HasCode(err, sandbox.CodeFileNotFound) },
		},
		"a path leads out": {
			sequence(file("../x", "")), func(err error) bool { return sandbox.HasCode(err, sandbox.CodeInvalidRequest) },
		},
		"the source fails": {
			func(yield func(guest.RestoreEntry, error) bool) { yield(guest.RestoreEntry{}, source) },
			func(err error) bool { return errors.Is(err, source) },
		},
		"the content is short": {
			sequence(guest.RestoreEntry{
				TreeEntry: guest.TreeEntry{Path: "short", Type: guest.TreeFile, Size: 5000}, Content: strings.NewReader("x"),
			}),
			func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) },
		},
		"it fails early in a long stream": {
			func(yield func(guest.RestoreEntry, error) bool) {
				for i := range 100 {
					e := file(fmt.Sprintf("none/%d", i), strings.Repeat("x", 1<<20))
					if !yield(e, nil) {
						return
					}
				}
			},
			func(err error) bool { return sandbox.HasCode(err, sandbox.CodeFileNotFound) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := b.RestoreTree(t.Context(), tc.entries); !tc.ok(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	got, _ := list(t, b)
	if len(got) != 2 || got["full/x"].Size != 4 {
		t.Errorf("the home: %v", got)
	}
}

func TestARestoreOfNonsenseIsRefused(t *testing.T) {
	frame := func(kind guest.Frame, payload string) string {
		b := make([]byte, guest.FrameHeader)
		guest.PutFrameHeader(b, kind, len(payload))
		return string(b) + payload
	}
	entry := func(e guest.RestoreEntry) string { return frame(guest.FrameEntry, string(e.AppendJSON(nil))) }
	for name, stream := range map[string]string{
		"nothing":              "",
		"no end":               entry(folder("d")),
		"more than a size":     entry(file("f", "abc")) + frame(guest.FrameData, "abcd"),
		"less than a size":     entry(file("f", "abc")) + frame(guest.FrameEnd, ""),
		"cut in a file":        entry(file("f", "abc")) + "D\x00\x00\x00\x03a",
		"data without a file":  frame(guest.FrameData, "abc"),
		"an absolute path":     entry(file("/f", "")),
		"a frame of gigabytes": "N\xff\xff\xff\xff",
		"no JSON":              frame(guest.FrameEntry, "{"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := home(t)
			below, err := tree.Open(dir, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			defer below.Close()
			if _, err := below.Restore(t.Context(), strings.NewReader(stream)); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "f")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a part of a file is left: %v", err)
			}
		})
	}
}

const (
	databasePath = ".local/share/opencode/opencode.db"
	deadline     = 30 * time.Second
)

// python writes a database with a log, as a process that was killed leaves it.
func python(t *testing.T, script string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/usr/bin/python3", append([]string{"-I", "-c", script}, args...)...).CombinedOutput() //nolint:gosec // G204: the test's own script
	if err != nil {
		t.Fatalf("python: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func makeDatabase(t *testing.T, b *box) {
	t.Helper()
	write(t, b.home, ".local/share/opencode/x", "")
	python(t, `
import sqlite3, sys, os
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("CREATE TABLE t(x)")
db.executemany("INSERT INTO t VALUES(?)", [(i,) for i in range(1000)])
db.commit()
os._exit(0)`, filepath.Join(b.home, databasePath))
}

func TestTheDatabaseOfARunningOpenCodeIsCopied(t *testing.T) {
	dir := home(t)
	makeDatabase(t, &box{home: dir}) // before anything reaps
	b, done := open(t, dir, "")
	got, _ := list(t, b)
	if got[databasePath].Database || got[databasePath].Size == 0 || got[databasePath+"-wal"].Size == 0 {
		t.Errorf("stopped: %v", got)
	}
	b.oc.state = guest.StateReady
	got, _ = list(t, b)
	if _, ok := got[databasePath+"-wal"]; ok || !got[databasePath].Database {
		t.Fatalf("listed %v", got)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	err := b.ReadTree(t.Context(), []string{databasePath}, 1<<30, func(_ string, _ int64, r io.Reader) error {
		raw, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return os.WriteFile(copied, raw, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, ".local", "state", "agentpod"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	done() // or it would reap python
	count := python(t, `import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("SELECT sum(x) FROM t").fetchone()[0])`, copied)
	if count != "499500" {
		t.Errorf("the copy's rows sum up to %s", count)
	}
}

func TestADatabaseThatCannotBeCopiedIsAnErrorOfThatFile(t *testing.T) {
	b := newBox(t, home(t), "/none/python3")
	write(t, b.home, databasePath, "no database")
	write(t, b.home, "other", "content")
	b.oc.state = guest.StateReady
	got := map[string]error{}
	err := b.ReadTree(t.Context(), []string{databasePath, "other"}, 100, func(path string, _ int64, r io.Reader) error {
		_, got[path] = io.ReadAll(r)
		return nil
	})
	if err != nil || !errors.Is(got[databasePath], guest.ErrTreeFailed) || got["other"] != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTheMarkOfTheDiskIsNeitherReadNorRestored(t *testing.T) {
	b := newBox(t, home(t), "")
	marks := []string{mark.File, mark.Temp}
	for _, name := range marks {
		write(t, b.home, name, "mine")
	}
	write(t, b.home, "other", "content")
	read := map[string]error{}
	err := b.ReadTree(t.Context(), append(marks, "other"), 100, func(path string, _ int64, r io.Reader) error {
		_, read[path] = io.ReadAll(r)
		return nil
	})
	if err != nil || !errors.Is(read[mark.File], guest.ErrTreeGone) || !errors.Is(read[mark.Temp], guest.ErrTreeGone) || read["other"] != nil {
		t.Errorf("read %v, %v", read, err)
	}
	link := guest.RestoreEntry{TreeEntry: guest.TreeEntry{Path: mark.File, Type: guest.TreeSymlink, Target: "/"}}
	done, err := b.RestoreTree(t.Context(), sequence(
		file(mark.File, strings.Repeat("forged", 100<<10)), link, folder(mark.Temp), folder(mark.Temp+"/d"), file(mark.Temp+"/d/f", "x"),
		file("next", "behind"), folder(mark.File+".moved-1")))
	if err != nil || done.Files != 3 || done.Directories != 3 || done.Symlinks != 1 {
		t.Errorf("restored %+v, %v", done, err)
	}
	for name, want := range map[string]string{mark.File: "mine", mark.Temp: "mine", "next": "behind"} {
		if raw, err := os.ReadFile(filepath.Join(b.home, name)); err != nil || string(raw) != want {
			t.Errorf("%s has %q, %v", name, raw, err)
		}
	}
	if got, _ := list(t, b); len(got) != 3 || got["next"].Size != 6 || got["other"].Size != 7 || got[mark.File+".moved-1"].Type == "" {
		t.Errorf("listed %v", got)
	}
}
