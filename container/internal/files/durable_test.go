package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk notes what is made durable, and what the home looks like at that moment.
type disk struct {
	home  string
	told  []string
	fails int // the number of the call that fails, from 1 on
}

var errDisk = errors.New("the disk is broken")

func (d *disk) sync(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	what := "a file of " + fmt.Sprint(info.Size()) + " bytes and mode " + info.Mode().String()
	if info.IsDir() {
		at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			return err
		}
		what = "the folder " + strings.TrimPrefix(at, d.home)
	}
	d.told = append(d.told, what+", where there is "+d.listing())
	if len(d.told) == d.fails {
		return errDisk
	}
	return nil
}

func (d *disk) wantTold(t *testing.T, want []string) {
	t.Helper()
	if !slices.Equal(want, d.told) {
		t.Errorf("made durable were\n%s\nwant\n%s", strings.Join(d.told, "\n"), strings.Join(want, "\n"))
	}
}

// listing is what the home has, with the contents of its files.
func (d *disk) listing() string {
	var all []string
	home := os.DirFS(d.home)
	err := fs.WalkDir(home, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || e.IsDir():
			return err
		case strings.HasSuffix(name, ".tmp"):
			all = append(all, "/"+path.Dir(name)+"/TEMPORARY")
		default:
			content, err := fs.ReadFile(home, name)
			all = append(all, "/"+name+"="+string(content))
			return err
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func onDisk(t *testing.T) (*Tree, *disk) {
	t.Helper()
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(home, "workspace"), 0o700); err != nil {
		t.Fatal(err)
	}
	tree, err := Open(home, filepath.Join(home, "workspace"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	d := &disk{home: home}
	tree.sync = d.sync
	return tree, d
}

func TestAWriteIsOnTheDiskBeforeItIsAcknowledged(t *testing.T) {
	tree, d := onDisk(t)
	write := func(content string) {
		t.Helper()
		if err := tree.Write("workspace/a/b/f", 0o640, io.MultiReader(strings.NewReader(content))); err != nil {
			t.Fatal(err)
		}
	}
	write("old")
	write("newer")
	want := []string{
		// The names of new folders, from above.
		"the folder /workspace, where there is ",
		"the folder /workspace/a, where there is ",
		// The content, before it has its name, and then the name.
		"a file of 3 bytes and mode -rw-r-----, where there is /workspace/a/b/TEMPORARY",
		"the folder /workspace/a/b, where there is /workspace/a/b/f=old",
		"a file of 5 bytes and mode -rw-r-----, where there is /workspace/a/b/TEMPORARY /workspace/a/b/f=old",
		"the folder /workspace/a/b, where there is /workspace/a/b/f=newer",
	}
	d.wantTold(t, want)
}

func TestARemovalIsOnTheDiskBeforeItIsAcknowledged(t *testing.T) {
	tree, d := onDisk(t)
	for _, name := range []string{"workspace/d/f", "top"} {
		if err := tree.Write(name, 0o600, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	d.told = nil
	for _, name := range []string{"workspace/d", "top"} {
		if err := tree.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"the folder /workspace, where there is /top=x", "the folder , where there is "}
	d.wantTold(t, want)
}

func TestWhatTheDiskDoesNotKeepIsNotAcknowledged(t *testing.T) {
	for fails, left := range map[int]string{
		1: "/workspace/f=old",   // the content
		2: "/workspace/f=newer", // the name
	} {
		tree, d := onDisk(t)
		if err := tree.Write("workspace/f", 0o600, strings.NewReader("old")); err != nil {
			t.Fatal(err)
		}
		d.told, d.fails = nil, fails
		if err := tree.Write("workspace/f", 0o600, strings.NewReader("newer")); !errors.Is(err, errDisk) {
			t.Errorf("call %d failed, and the write says %v", fails, err)
		}
		if got := d.listing(); got != left {
			t.Errorf("call %d failed, and there is %q, want %q", fails, got, left)
		}
	}
	tree, d := onDisk(t)
	if err := tree.Write("f", 0o600, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	d.told, d.fails = nil, 1
	if err := tree.Remove("f"); !errors.Is(err, errDisk) {
		t.Errorf("the removal says %v", err)
	}
}
