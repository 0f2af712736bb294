package folder_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/folder"
)

// inTheWay are what code inside may have put where a file belongs.
func inTheWay() map[string]func(t *testing.T, name string) {
	return map[string]func(t *testing.T, name string){
		"nothing": func(*testing.T, string) {},
		"another file": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.WriteFile(name, []byte("other"), 0o000))
		},
		"a link to a file with the same content": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.WriteFile(name+".copy", []byte("content"), 0o600))
			must(t, os.Symlink(filepath.Base(name)+".copy", name))
		},
		"a link out": func(t *testing.T, name string) {
			t.Helper()
			out := filepath.Join(t.TempDir(), "out")
			must(t, os.WriteFile(out, []byte("content"), 0o600))
			must(t, os.Symlink(out, name))
		},
		"a link to itself": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.Symlink(filepath.Base(name), name))
		},
		"a FIFO": func(t *testing.T, name string) {
			t.Helper()
			must(t, unix.Mkfifo(name, 0o600))
		},
		"an empty folder": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.Mkdir(name, 0o700))
		},
		"a full folder": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.Mkdir(name, 0o700))
			must(t, os.WriteFile(filepath.Join(name, "kept"), []byte("kept"), 0o600))
		},
	}
}

func TestADurableFileReplacesWhateverIsThere(t *testing.T) {
	for _, at := range []string{"f", "f.new"} {
		for name, put := range inTheWay() {
			t.Run(name+" at "+at, func(t *testing.T) {
				root, dir := home(t)
				put(t, filepath.Join(dir, at))
				if same, err := folder.Holds(root, "f", []byte("content")); err != nil || same {
					t.Errorf("before: %v, %v", same, err)
				}
				for range 2 {
					must(t, folder.ReplaceDurably(root, "f", "f.new", []byte("content")))
				}
				if same, err := folder.Holds(root, "f", []byte("content")); err != nil || !same {
					t.Errorf("afterwards: %v, %v", same, err)
				}
				if info, err := os.Lstat(filepath.Join(dir, "f")); err != nil || info.Mode() != 0o600 {
					t.Errorf("%v, %v", info, err)
				}
				if _, err := os.Lstat(filepath.Join(dir, "f.new")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("what it was written by way of: %v", err)
				}
				moved, err := filepath.Glob(filepath.Join(dir, at) + ".moved-*")
				must(t, err)
				if full := name == "a full folder"; full != (len(moved) == 1) {
					t.Fatalf("moved aside: %q", moved)
				} else if full {
					kept, err := os.ReadFile(filepath.Join(moved[0], "kept"))
					if err != nil || string(kept) != "kept" {
						t.Errorf("%q, %v", kept, err)
					}
				}
			})
		}
	}
}

func TestOnlyTheRegularFileItselfIsOpened(t *testing.T) {
	for name, put := range inTheWay() {
		t.Run(name, func(t *testing.T) {
			root, dir := home(t)
			put(t, filepath.Join(dir, "f"))
			f, err := folder.OpenItself(root, "f")
			if err == nil {
				_ = f.Close()
			}
			switch name {
			case "another file": // which only root may read
				if err != nil && !errors.Is(err, os.ErrPermission) {
					t.Errorf("got %v", err)
				}
			case "nothing":
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("got %v", err)
				}
			default:
				if !errors.Is(err, folder.ErrNotRegular) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestAFileThatIsLinkedToBelowTheRootIsOpened(t *testing.T) {
	root, dir := home(t)
	must(t, os.WriteFile(filepath.Join(dir, "target"), nil, 0o600))
	must(t, os.Symlink("target", filepath.Join(dir, "f")))
	f, err := folder.OpenRegular(root, "f")
	must(t, err)
	must(t, f.Close())
}
