package workspace

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// gardener makes and changes a home at random, with plain system calls. The same
// seed does the same.
type gardener struct {
	t    *testing.T
	rand *rand.Rand
	home string

	folders []string // below the home, as they are now; the first is the home
	others  []string // files, links, and what else there is
	settled []folderEnd
}

// folderEnd is what a folder becomes once nothing is made in it any more.
type folderEnd struct {
	fd   int // O_PATH
	mode uint32
	time unix.Timespec
}

func newGardener(t *testing.T, home string, seed uint64) *gardener {
	t.Helper()
	return &gardener{t: t, rand: rand.New(rand.NewPCG(seed, 0)), home: home}
}

func (g *gardener) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// oneOf picks at random.
func oneOf[T any](g *gardener, all ...T) T { return all[g.rand.IntN(len(all))] }

// plant makes that many new entries.
func (g *gardener) plant(count int) {
	g.t.Helper()
	g.work(func() {
		for range count {
			g.make(g.newPath())
		}
	})
}

// tend changes that many things, whatever it happens to be.
func (g *gardener) tend(count int) {
	g.t.Helper()
	g.work(func() {
		for range count {
			g.look()
			g.edit()
		}
	})
}

// work does something while every folder can be used.
func (g *gardener) work(do func()) {
	g.t.Helper()
	relock, err := unlock(g.home)
	g.must(err)
	g.look()
	do()
	g.must(relock())
	for _, end := range slices.Backward(g.settled) {
		g.must(unix.Chmod(procPath(end.fd), end.mode))
		g.must(unix.UtimesNanoAt(unix.AT_FDCWD, procPath(end.fd), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, end.time}, 0))
		g.must(unix.Close(end.fd))
	}
	g.settled = nil
}

// look finds out what there is.
func (g *gardener) look() {
	g.t.Helper()
	g.folders, g.others = g.folders[:0], g.others[:0]
	g.must(filepath.WalkDir(g.home, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			g.folders = append(g.folders, name)
		default:
			g.others = append(g.others, name)
		}
		return nil
	}))
}

func (g *gardener) workspace() string { return filepath.Join(g.home, workspaceFolder) }

// newPath is one where nothing is yet, and that is not too deep for the calls
// that take a path.
func (g *gardener) newPath() string {
	for {
		folder := oneOf(g, g.folders...)
		if strings.Count(folder[len(g.home):], "/") > 6 {
			continue
		}
		if g.rand.IntN(3) > 0 && folder == g.home {
			folder = g.workspace()
		}
		path := folder + "/" + g.name()
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
}

func (g *gardener) name() string {
	if g.rand.IntN(2) == 0 {
		return oneOf(g, "a\nb", `q"u'o`, "\xff\xfe", " ", "-rf", "*", "ünï", strings.Repeat("n", 255), `back\slash`, "\t\x01", "...", "a", "b", "workspace", "~")
	}
	raw := make([]byte, 1+g.rand.IntN(30))
	for i := range raw {
		raw[i] = byte(1 + g.rand.IntN(255))
	}
	name := strings.ReplaceAll(string(raw), "/", "_")
	if strings.Trim(name, ".") == "" {
		return "dots"
	}
	return name
}

func (g *gardener) mode() uint32 {
	return oneOf(g, 0, 0o644, 0o755, uint32(g.rand.IntN(0o10000)), 0o7777)
}

// time is one between 1906 and 2191, to the nanosecond.
func (g *gardener) time() unix.Timespec {
	return unix.Timespec{Sec: -2_000_000_000 + g.rand.Int64N(9_000_000_000), Nsec: g.rand.Int64N(1e9)}
}

func (g *gardener) content(size int) []byte {
	content := make([]byte, size)
	if g.rand.IntN(4) == 0 {
		return content
	}
	for i := range content {
		content[i] = byte(g.rand.Uint32())
	}
	return content
}

// size is 0, or about one of the sizes where something changes.
func (g *gardener) size() int {
	return max(0, oneOf(g, 0, 0, 1, 100, 5000, 16<<10, 64<<10, 200_000, 1<<20)+g.rand.IntN(3)-1)
}

// make makes something at a path where nothing is.
func (g *gardener) make(path string) {
	g.t.Helper()
	switch g.rand.IntN(10) {
	case 0, 1, 2:
		g.must(os.Mkdir(path, 0o700))
		own(g.t, path)
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		g.must(err)
		g.settled = append(g.settled, folderEnd{fd, g.mode(), g.time()})
		g.folders = append(g.folders, path)
	case 3, 4:
		target := oneOf(g, ".", "..", "loop", "/etc/passwd", "../../../../..", "\xff\n", strings.Repeat("t", 4095), filepath.Base(path))
		g.must(os.Symlink(target, path))
		own(g.t, path)
		g.touch(path, g.time())
	case 5:
		g.must(unix.Mkfifo(path, 0o600)) // no snapshot has it
		own(g.t, path)
	default:
		g.file(path, g.content(g.size()), g.mode(), g.time())
	}
	if !slices.Contains(g.folders, path) {
		g.others = append(g.others, path)
	}
}

func (g *gardener) file(path string, content []byte, mode uint32, at unix.Timespec) {
	g.t.Helper()
	g.must(os.WriteFile(path, content, 0o600))
	own(g.t, path)
	g.must(unix.Chmod(path, mode))
	g.touch(path, at)
}

func (g *gardener) touch(path string, at unix.Timespec) {
	g.t.Helper()
	g.must(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}, unix.AT_SYMLINK_NOFOLLOW))
}

// edit changes one thing.
func (g *gardener) edit() {
	g.t.Helper()
	all := slices.Concat(g.folders, g.others)
	all = slices.DeleteFunc(all, func(path string) bool { return path == g.home || path == g.workspace() })
	if len(all) == 0 {
		g.make(g.newPath())
		return
	}
	path := oneOf(g, all...)
	info, err := os.Lstat(path)
	g.must(err)
	switch op := g.rand.IntN(10); {
	case op == 0:
		g.must(os.RemoveAll(path))
	case op == 1:
		g.must(os.RemoveAll(path))
		g.look()
		g.make(path) // perhaps something else than it was
	case op < 4:
		if to := g.newPath(); !strings.HasPrefix(to, path+"/") {
			g.must(os.Rename(path, to))
		}
	case op == 4 && info.Mode().IsRegular():
		g.must(os.Link(path, g.newPath()))
	case op < 7 && info.Mode().IsRegular():
		g.rewrite(path, int(info.Size()))
	case op == 7 && info.Mode().IsRegular():
		g.must(unix.Chmod(path, g.mode()))
	case op == 7 && info.IsDir():
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		g.must(err)
		g.settled = append(g.settled, folderEnd{fd, g.mode(), g.time()})
	default:
		g.make(g.newPath())
	}
}

// rewrite gives a file other bytes of the same size, with the same mtime.
func (g *gardener) rewrite(path string, size int) {
	g.t.Helper()
	var st unix.Stat_t
	g.must(unix.Lstat(path, &st))
	g.must(unix.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	g.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte{byte(g.rand.Uint32())}, size), 0)
	g.must(errors.Join(err, f.Close()))
	g.must(unix.Chmod(path, st.Mode&0o7777))
	g.touch(path, st.Mtim)
}
