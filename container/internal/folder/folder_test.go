package folder_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/container/internal/folder"
)

func home(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhateverIsThereBecomesAFolder(t *testing.T) {
	for name, tc := range map[string]struct {
		make  func(t *testing.T, dir string)
		aside string // the element that has to be moved
	}{
		"nothing": {func(*testing.T, string) {}, ""},
		"a folder": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
		}, ""},
		"a file": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.Mkdir(filepath.Join(dir, "a"), 0o700))
			must(t, os.WriteFile(filepath.Join(dir, "a", "b"), []byte("kept"), 0o600))
		}, "a/b"},
		"a file above": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("kept"), 0o600))
		}, "a"},
		"a link out": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.Symlink(t.TempDir(), filepath.Join(dir, "a")))
		}, "a"},
		"a link to itself": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.Symlink("a", filepath.Join(dir, "a")))
		}, "a"},
		"a link to a folder inside": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.Mkdir(filepath.Join(dir, "elsewhere"), 0o700))
			must(t, os.Symlink("elsewhere", filepath.Join(dir, "a")))
		}, ""},
		"a folder without permissions": {func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
			must(t, os.Chmod(filepath.Join(dir, "a", "b"), 0))
			must(t, os.Chmod(filepath.Join(dir, "a"), 0))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := home(t)
			tc.make(t, dir)
			for range 2 { // the second time there is nothing to do
				must(t, folder.Ensure(root, "a/b"))
			}
			for _, made := range []string{"a", "a/b"} {
				info, err := os.Stat(filepath.Join(dir, made))
				if err != nil || !info.IsDir() || info.Mode()&0o700 != 0o700 {
					t.Errorf("%s: %v, %v", made, info, err)
				}
			}
			moved, err := filepath.Glob(filepath.Join(dir, "*.moved-*"))
			must(t, err)
			below, err := filepath.Glob(filepath.Join(dir, "a", "*.moved-*"))
			must(t, err)
			moved = append(moved, below...)
			if tc.aside == "" && len(moved) > 0 {
				t.Errorf("moved %q", moved)
			}
			if tc.aside != "" && (len(moved) != 1 || !strings.HasPrefix(moved[0], filepath.Join(dir, tc.aside)+".moved-")) {
				t.Errorf("moved %q", moved)
			}
		})
	}
}

func TestWhatIsMovedAsideReplacesNothing(t *testing.T) {
	root, dir := home(t)
	for _, content := range []string{"first", "second", "third"} {
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o600))
		must(t, folder.Aside(root, "f"))
	}
	must(t, folder.Aside(root, "f")) // nothing there
	moved, err := filepath.Glob(filepath.Join(dir, "f.moved-*"))
	must(t, err)
	if len(moved) != 3 {
		t.Errorf("kept %q", moved)
	}
}

func TestALockedHomeIsUnlocked(t *testing.T) {
	_, dir := home(t)
	must(t, os.Chmod(dir, 0o055))
	must(t, folder.Unlock(dir))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
}
