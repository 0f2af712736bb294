package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
)

// diskTree is a tree in a directory, reached through an os.Root only.
type diskTree struct {
	t    testing.TB
	root *os.Root
}

var _ snapshot.Tree = diskTree{}

func newDiskTree(t testing.TB) diskTree {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return diskTree{t, root}
}

func mode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for bit, is := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			out |= is
		}
	}
	return out
}

func (d diskTree) List(_ context.Context, fn func(snapshot.Entry) error) error {
	return d.walk(".", fn)
}

// walk is fs.WalkDir for names that are not UTF-8.
func (d diskTree) walk(folder string, fn func(snapshot.Entry) error) error {
	open, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	names, err := open.Readdirnames(-1)
	if err := errors.Join(err, open.Close()); err != nil {
		return err
	}
	for _, name := range names {
		p := filepath.Join(folder, name)
		info, err := d.root.Lstat(p)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%q has no times", p)
		}
		e := snapshot.Entry{
			Path: p, Type: snapshot.File, Mode: mode(info.Mode()), ModifiedNs: stat.Mtim.Nano(), ChangedNs: stat.Ctim.Nano(), Inode: stat.Ino,
		}
		switch info.Mode().Type() {
		case 0:
			e.Size = info.Size()
		case fs.ModeDir:
			e.Type = snapshot.Directory
			err = d.walk(p, fn)
		case fs.ModeSymlink:
			e.Type = snapshot.Symlink
			e.Target, err = d.root.Readlink(p)
		default:
			continue
		}
		if err := errors.Join(err, fn(e)); err != nil {
			return err
		}
	}
	return nil
}

func (d diskTree) Read(_ context.Context, paths []string, fn func(string, int64, io.Reader) error) error {
	for _, p := range paths {
		if err := d.readOne(p, fn); err != nil {
			return err
		}
	}
	return nil
}

func (d diskTree) readOne(p string, fn func(string, int64, io.Reader) error) error {
	file, err := d.root.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return fn(p, -1, nil)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return fn(p, info.Size(), io.LimitReader(file, info.Size()))
}

func (d diskTree) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	var directories []snapshot.Entry
	for r, err := range entries {
		if err != nil {
			return err
		}
		switch r.Type {
		case snapshot.Directory:
			err = d.root.Mkdir(r.Path, 0o700)
			directories = append(directories, r.Entry)
		case snapshot.Symlink:
			err = errors.Join(d.root.Symlink(r.Target, r.Path), d.stamp(r.Entry))
		case snapshot.File:
			err = d.write(r)
		}
		if err != nil {
			return err
		}
	}
	for i := len(directories) - 1; i >= 0; i-- {
		if err := errors.Join(d.chmod(directories[i]), d.stamp(directories[i])); err != nil {
			return err
		}
	}
	return nil
}

func (d diskTree) write(r snapshot.Restored) error {
	file, err := d.root.OpenFile(r.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r.Content)
	return errors.Join(err, file.Close(), d.chmod(r.Entry), d.stamp(r.Entry))
}

func (d diskTree) chmod(e snapshot.Entry) error {
	return unix.Chmod(filepath.Join(d.root.Name(), e.Path), e.Mode)
}

func (d diskTree) stamp(e snapshot.Entry) error {
	at := unix.NsecToTimespec(e.ModifiedNs)
	return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(d.root.Name(), e.Path), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

// picture is a listing with hashes, by way of memTree's.
func (d diskTree) picture() map[string]seen {
	d.t.Helper()
	m := newMemTree()
	err := d.List(context.Background(), func(e snapshot.Entry) error {
		n := &node{Entry: e}
		if e.Type == snapshot.File {
			raw, err := d.root.ReadFile(e.Path)
			if err != nil {
				return err
			}
			n.content = raw
		}
		m.nodes[e.Path] = n
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return m.picture()
}

func TestRealTreesRoundTrip(t *testing.T) {
	names := []string{"a", "b", "\xff\xfe", "new\nline", "quo\"te'", " ", "-rf", "ü", strings.Repeat("x", 255), "back\\slash"}
	rapid.Check(t, func(rt *rapid.T) {
		d, _ := openStore(t)
		defer d.Close()
		e := snapshot.New(d, newSealer(t, "key"), small())
		tree := newDiskTree(t)
		defer tree.root.Close()
		for round := range 2 {
			dirs := []string{"."}
			for p, s := range tree.picture() {
				if s.Type == snapshot.Directory {
					dirs = append(dirs, p)
				}
			}
			slices.Sort(dirs)
			for range rapid.IntRange(0, 12).Draw(rt, "entries") {
				p := filepath.Join(rapid.SampledFrom(dirs).Draw(rt, "dir"), rapid.SampledFrom(names).Draw(rt, "name"))
				at := snapshot.Entry{
					Path: p, Mode: uint32(rapid.IntRange(0, 0o7777).Draw(rt, "mode")),
					ModifiedNs: rapid.Int64Range(-1e18, 3e18).Draw(rt, "time"),
				}
				if round > 0 && rapid.Bool().Draw(rt, "remove") {
					_ = tree.root.RemoveAll(p) // what is there or not
				}
				if _, err := tree.root.Lstat(p); err == nil {
					continue
				} else if !errors.Is(err, fs.ErrNotExist) {
					continue // below what was removed
				}
				if in, err := tree.root.Lstat(filepath.Dir(p)); err != nil || !in.IsDir() {
					continue // removed, or something else by now
				}
				var err error
				switch rapid.IntRange(0, 3).Draw(rt, "kind") {
				case 0:
					err = tree.root.Mkdir(p, 0o700)
					dirs = append(dirs, p)
				case 1:
					err = tree.root.Symlink(rapid.SampledFrom([]string{"a", "..", "/etc/passwd", "\xff"}).Draw(rt, "target"), p)
				default:
					content := noise(byte(rapid.IntRange(0, 9).Draw(rt, "seed")), rapid.SampledFrom([]int{0, 1, 1024, 1025, 9000}).Draw(rt, "size"))
					err = errors.Join(tree.root.WriteFile(p, content, 0o600), tree.chmod(at), tree.stamp(at))
				}
				if err != nil {
					rt.Fatal(err)
				}
			}
			mustTake(t, e, ref, tree)
			got := newDiskTree(t)
			if _, err := e.Restore(context.Background(), ref, "", nil, got); err != nil {
				_ = got.root.Close()
				rt.Fatal(err)
			}
			diff := cmp.Diff(tree.picture(), got.picture())
			_ = got.root.Close()
			if diff != "" {
				rt.Fatalf("restored differently (-want +got):\n%s", diff)
			}
		}
	})
}

// bulk is a tree of files that do not compress, made while they are read.
type bulk struct {
	files int
	size  int64
}

func (b bulk) List(_ context.Context, fn func(snapshot.Entry) error) error {
	for i := range b.files {
		if err := fn(snapshot.Entry{Path: fmt.Sprintf("f%06d", i), Type: snapshot.File, Size: b.size, Inode: uint64(i)}); err != nil {
			return err
		}
	}
	return nil
}

func (b bulk) Read(_ context.Context, paths []string, fn func(string, int64, io.Reader) error) error {
	for _, p := range paths {
		var number uint64
		if _, err := fmt.Sscanf(p, "f%d", &number); err != nil {
			return err
		}
		if err := fn(p, b.size, io.LimitReader(&stream{state: number*2654435761 + 1}, b.size)); err != nil {
			return err
		}
	}
	return nil
}

func (b bulk) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	for r, err := range entries {
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r.Content); err != nil {
			return err
		}
	}
	return nil
}

// stream is noise without an end.
type stream struct{ state uint64 }

func (s *stream) Read(p []byte) (int, error) {
	for i := range p {
		s.state ^= s.state << 13
		s.state ^= s.state >> 7
		s.state ^= s.state << 17
		p[i] = byte(s.state)
	}
	return len(p), nil
}

// peak returns the most memory of Go's that was in use while fn ran, above what
// was in use before.
func peak(fn func()) uint64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				most.Store(max(most.Load(), now.HeapInuse+now.StackInuse))
			}
		}
	}()
	fn()
	close(stop)
	<-stopped
	return most.Load() - min(most.Load(), before.HeapInuse)
}

func TestMemoryStaysBoundedWithLargeAndSmallFiles(t *testing.T) {
	// Garbage that the collector has not come to yet counts here too.
	const takingLimit, restoringLimit = 150 << 20, 200 << 20
	for name, tree := range map[string]bulk{
		"250 MB in large files": {5, 50 << 20},
		"250 MB in small files": {25_000, 10 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := openStore(t)
			e := snapshot.New(d, newSealer(t, "key"), snapshot.Settings{})
			begun := time.Now()
			taking := peak(func() { mustTake(t, e, ref, tree) })
			took := time.Since(begun)
			begun = time.Now()
			restoring := peak(func() {
				if _, err := e.Restore(t.Context(), ref, "", nil, tree); err != nil {
					t.Error(err)
				}
			})
			t.Logf("taking: %v, at most %d MiB; restoring: %v, at most %d MiB", took, taking>>20, time.Since(begun), restoring>>20)
			if taking > takingLimit || restoring > restoringLimit {
				t.Errorf("that is more than %d and %d MiB", takingLimit>>20, restoringLimit>>20)
			}
		})
	}
}
