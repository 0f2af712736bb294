package crash

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// born is what the stub of OpenCode writes at its first start, and never again.
const born = ".local/share/opencode/storage/born"

// tree is what a home has that must survive, by paths below it: type, mode,
// time and content of each entry.
type tree map[string]string

// node is an entry that a version has.
type node struct {
	mode    fs.FileMode
	content string // of a file, or a link's target
}

// version returns the n-th version of what is in a home, but for what OpenCode
// writes: some of it changes from one to the next, appears or goes.
func version(n int) map[string]node {
	is := fmt.Sprintf("version %d", n)
	only := fmt.Sprintf("only-%d.txt", n)
	return map[string]node{
		"workspace":              {fs.ModeDir | 0o755, ""},
		"workspace/version.txt":  {0o644, is},
		"workspace/kept.sh":      {0o755, "#!/bin/sh\n"},
		"workspace/src":          {fs.ModeDir | 0o750, ""},
		"workspace/src/" + only:  {0o600 + fs.FileMode(n%2)*0o40, is},
		"workspace/latest":       {fs.ModeSymlink | 0o777, "src/" + only},
		"workspace/empty":        {fs.ModeDir | 0o700 + fs.FileMode(n%2)*0o55, ""},
		"workspace/.git":         {fs.ModeDir | 0o755, ""},
		"workspace/.git/HEAD":    {0o644, is},
		".local/share/opencode":  {fs.ModeDir | 0o755, ""},
		conversation:             {0o600, strings.Repeat(is+"\n", 100)},
		filepath.Dir(born):       {fs.ModeDir | 0o755, ""},
		"workspace/src/zero.txt": {0o644, ""},
	}
}

// conversation is a file of OpenCode's state.
const conversation = ".local/share/opencode/conversation"

// write makes a home what a version is, as whoever works in it would.
func write(t *testing.T, home string, n int) {
	t.Helper()
	want := version(n)
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(read(t, home)))) {
		if _, keeps := want[path]; !keeps && path != born {
			check(t, os.Remove(filepath.Join(home, path)))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		at, full := want[path], filepath.Join(home, path)
		switch at.mode.Type() {
		case fs.ModeDir:
			check(t, os.MkdirAll(full, 0o755))
			check(t, os.Chmod(full, at.mode.Perm()))
		case fs.ModeSymlink:
			_ = os.Remove(full) // it is there but for the first time
			check(t, os.Symlink(at.content, full))
		default:
			if was, err := os.ReadFile(full); err == nil && string(was) == at.content {
				continue
			}
			check(t, os.WriteFile(full, []byte(at.content), at.mode.Perm()))
			check(t, os.Chmod(full, at.mode.Perm()))
			check(t, os.Chtimes(full, time.Time{}, timeOf(at.content)))
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// timeOf is the time of a file with a content.
func timeOf(content string) time.Time {
	return time.Date(2001, 2, 3, 4, 5, 6, 1000+len(content), time.UTC).Add(time.Duration(len(content)) * time.Hour)
}

// treeOf is what read returns of a home that is a version; bornAs is what is
// at born.
func treeOf(n int, bornAs string) tree {
	want := tree{born: bornAs}
	for path, at := range version(n) {
		modified := time.Time{}
		if at.mode.IsRegular() {
			modified = timeOf(at.content)
		}
		want[path] = describe(at.mode, modified, at.content)
	}
	return want
}

func describe(mode fs.FileMode, modified time.Time, content string) string {
	if mode.IsRegular() {
		return fmt.Sprintf("%s %s %q", mode, modified.UTC().Format(time.RFC3339Nano), content)
	}
	return fmt.Sprintf("%s %q", mode, content)
}

// read returns what a home has, as far as it is of a version's kind.
func read(t *testing.T, home string) tree {
	t.Helper()
	got := tree{}
	files := os.DirFS(home)
	for _, folder := range []string{"workspace", ".local/share/opencode"} {
		check(t, fs.WalkDir(files, folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			var content string
			switch info.Mode().Type() {
			case fs.ModeDir:
			case fs.ModeSymlink:
				content, err = fs.ReadLink(files, path)
			default:
				var raw []byte
				raw, err = fs.ReadFile(files, path)
				content = string(raw)
			}
			got[path] = describe(info.Mode(), info.ModTime(), content)
			return err
		}))
	}
	return got
}

// mirrored checks that a sandbox's mirror in the store is what is to be mirrored
// of a version, and nothing else.
func (w *world) mirrored(t *testing.T, id string, n int) {
	t.Helper()
	want, got := map[string]string{}, map[string]string{}
	for path, at := range version(n) {
		inside, ok := strings.CutPrefix(path, "workspace/")
		if ok && at.mode.IsRegular() && !strings.HasPrefix(inside, ".git/") {
			want[inside] = at.content
		}
	}
	prefix := "workspaces/" + id + "/"
	for _, key := range storetest.MustList(t, w.store, prefix) {
		content, _ := storetest.MustGet(t, w.store, key)
		got[strings.TrimPrefix(key, prefix)] = string(content)
	}
	if !maps.Equal(want, got) {
		t.Errorf("the mirror is %q, want version %d: %q", got, n, want)
	}
}

// nowhere is a tree into which a snapshot is restored to see that it is whole.
type nowhere struct{ snapshot.Tree }

// Restore implements snapshot.Tree.
func (nowhere) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	for entry, err := range entries {
		if err != nil {
			return err
		}
		if entry.Content == nil {
			continue
		}
		if _, err := io.Copy(io.Discard, entry.Content); err != nil {
			return err
		}
	}
	return nil
}
