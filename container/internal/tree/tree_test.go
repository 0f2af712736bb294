package tree_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/container/internal/server"
	"github.com/agentpod/agentpod/container/internal/tree"
	"github.com/agentpod/agentpod/shared/guest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// supervisor is OpenCode's, of which the tree's routes only need the state.
type supervisor struct {
	server.OpenCode
	state string
}

func (s *supervisor) Status() guest.OpenCode { return guest.OpenCode{State: s.state} }

// box is a home behind the real routes and the real client.
type box struct {
	*guest.Client
	home string
	oc   *supervisor
}

type testingT interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func newBox(t *testing.T, home, python string) *box {
	t.Helper()
	b, done := open(t, home, python)
	t.Cleanup(done)
	return b
}

func open(t testingT, home, python string) (*box, func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	table := process.NewTable(log)
	below, err := tree.Open(home, table, python)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := table.HandleSignals(ctx, func() {})
	b := &box{home: home, oc: &supervisor{state: guest.StateStopped}}
	srv := &server.Server{OpenCode: b.oc, Tree: below, Token: sha256.Sum256([]byte("tok")), Log: log}
	web := httptest.NewServer(srv.Handler())
	transport := &http.Transport{}
	b.Client = guest.NewClient(transport, web.URL, "tok")
	return b, func() {
		transport.CloseIdleConnections()
		web.Close()
		cancel()
		<-signals
		if err := below.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// home makes a folder that is removed whatever modes are in it.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { unlock(dir) })
	return dir
}

func unlock(dir string) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(name, 0o700) //nolint:gosec // G122: nobody else is there
		}
		return nil
	})
}

// node is what one entry has to be.
type node struct {
	Type, Target, Sum string
	Mode              uint32
	Size, Modified    int64
}

func sum(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

// snapshot lists and reads everything.
func (b *box) snapshot(t testingT) ([]guest.TreeEntry, map[string]node) {
	t.Helper()
	ctx := context.Background()
	var entries []guest.TreeEntry
	nodes := map[string]node{}
	var files []string
	end, err := b.Tree(ctx, 1_000_000, func(e guest.TreeEntry) error {
		if dir := filepath.Dir(e.Path); dir != "." && nodes[dir].Type != guest.TreeDirectory {
			t.Errorf("%q comes before its folder", e.Path)
		}
		entries = append(entries, e)
		nodes[e.Path] = node{Type: e.Type, Target: e.Target, Mode: e.Mode, Size: e.Size, Modified: e.ModifiedNs}
		if e.Type == guest.TreeFile {
			files = append(files, e.Path)
		}
		return nil
	})
	if err != nil || end.Entries != int64(len(nodes)) {
		t.Fatalf("list: %v, %+v", err, end)
	}
	err = b.ReadTree(ctx, files, 1<<40, func(path string, size int64, r io.Reader) error {
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err != nil || n != size {
			t.Errorf("read %q: %d of %d bytes, %v", path, n, size, err)
		}
		one := nodes[path]
		one.Sum = fmt.Sprintf("%x", h.Sum(nil))
		nodes[path] = one
		return nil
	})
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return entries, nodes
}

// copyTo restores a box's entries in another.
func (b *box) copyTo(t testingT, other *box, entries []guest.TreeEntry) {
	t.Helper()
	ctx := context.Background()
	var seq iter.Seq2[guest.RestoreEntry, error] = func(yield func(guest.RestoreEntry, error) bool) {
		for _, e := range entries {
			if e.Type != guest.TreeFile {
				if !yield(guest.RestoreEntry{TreeEntry: e}, nil) {
					return
				}
				continue
			}
			err := b.ReadTree(ctx, []string{e.Path}, 1<<40, func(_ string, _ int64, r io.Reader) error {
				if !yield(guest.RestoreEntry{TreeEntry: e, Content: r}, nil) {
					return io.ErrClosedPipe
				}
				return nil
			})
			if err != nil {
				t.Errorf("read while restoring: %v", err)
				return
			}
		}
	}
	restored, err := other.RestoreTree(ctx, seq)
	if err != nil || restored.Files+restored.Directories+restored.Symlinks != int64(len(entries)) {
		t.Fatalf("restore: %v, %+v", err, restored)
	}
}

func same(t testingT, what string, want, got map[string]node) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Fatalf("%s: %q is %+v, want %+v", what, path, got[path], want[path])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d entries, want %d", what, len(got), len(want))
	}
}

// wish is an entry of a random tree.
type wish struct {
	path string
	node
	content []byte
}

func randomTree(t *rapid.T) []wish {
	name := rapid.Custom(func(t *rapid.T) string {
		special := []string{"a\nb", `q"u'o`, "\xff\xfe", " ", "-rf", "*", "ünï", strings.Repeat("n", 255), "back\\slash", "\t\x01"}
		if rapid.Bool().Draw(t, "special") {
			return rapid.SampledFrom(special).Draw(t, "name")
		}
		raw := rapid.SliceOfN(rapid.ByteRange(1, 255), 1, 40).Draw(t, "bytes")
		out := strings.ReplaceAll(string(raw), "/", "_")
		if out == "." || out == ".." {
			return "dots"
		}
		return out
	})
	folders, wishes := []string{""}, []wish(nil)
	taken := map[string]bool{}
	for range rapid.IntRange(0, 25).Draw(t, "entries") {
		path := filepath.Join(rapid.SampledFrom(folders).Draw(t, "folder"), "x")
		path = strings.TrimSuffix(path, "x") + name.Draw(t, "name")
		if taken[path] {
			continue
		}
		taken[path] = true
		w := wish{path: path}
		w.Mode = rapid.Uint32Range(0, 0o7777).Draw(t, "mode")
		w.Modified = rapid.Int64Range(-2_000_000_000_000_000_000, 7_000_000_000_000_000_000).Draw(t, "mtime")
		switch w.Type = rapid.SampledFrom([]string{guest.TreeFile, guest.TreeDirectory, guest.TreeSymlink}).Draw(t, "type"); w.Type {
		case guest.TreeDirectory:
			folders = append(folders, path)
		case guest.TreeSymlink:
			w.Mode = 0o777
			w.Target = rapid.SampledFrom([]string{".", "..", "loop", "/etc/passwd", "../../../../..", "\xff\n", strings.Repeat("t", 4095)}).Draw(t, "target")
			if base := filepath.Base(path); rapid.Bool().Draw(t, "self") {
				w.Target = base // a loop
			}
		default:
			w.content = bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "content"), rapid.IntRange(0, 3000).Draw(t, "times"))
			if rapid.Bool().Draw(t, "zeros") {
				w.content = append(w.content, make([]byte, rapid.IntRange(0, 200_000).Draw(t, "zeros"))...)
			}
			w.Size, w.Sum = int64(len(w.content)), sum(w.content)
		}
		wishes = append(wishes, w)
	}
	return wishes
}

// grow makes the tree with plain system calls.
func grow(t testingT, dir string, wishes []wish) map[string]node {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]node{}
	for _, w := range wishes {
		name := dir + "/" + w.path
		want[w.path] = w.node
		switch w.Type {
		case guest.TreeDirectory:
			must(os.Mkdir(name, 0o700))
		case guest.TreeSymlink:
			must(os.Symlink(w.Target, name))
		default:
			must(os.WriteFile(name, w.content, 0o600))
		}
	}
	for _, w := range slices.Backward(wishes) {
		name := dir + "/" + w.path
		if w.Type != guest.TreeSymlink {
			must(unix.Chmod(name, w.Mode))
		}
		sec := w.Modified / 1e9
		if w.Modified%1e9 < 0 {
			sec--
		}
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: w.Modified - sec*1e9}}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW))
	}
	return want
}

func TestARandomTreeComesBackIdentical(t *testing.T) {
	asUser(t)
	rapid.Check(t, func(rt *rapid.T) {
		wishes := randomTree(rt)
		var boxes [2]*box
		for i := range boxes {
			dir := t.TempDir()
			b, done := open(rt, dir, "")
			boxes[i] = b
			rt.Cleanup(func() {
				done()
				unlock(dir)
			})
		}
		want := grow(rt, boxes[0].home, wishes)
		entries, got := boxes[0].snapshot(rt)
		same(rt, "the listing", want, got)
		_, got = boxes[0].snapshot(rt)
		same(rt, "the listing after it was read", want, got)
		boxes[0].copyTo(rt, boxes[1], entries)
		_, got = boxes[1].snapshot(rt)
		same(rt, "what was restored", want, got)
		// Once more over what is there, modes of 0000 included.
		boxes[0].copyTo(rt, boxes[1], entries)
		_, got = boxes[1].snapshot(rt)
		same(rt, "what was restored twice", want, got)
	})
}

// asUser runs the test again as uid 1000 without capabilities if this is root.
func asUser(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-rapid.nofailfile") //nolint:gosec // G204: this very program
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("as uid 1000: %v\n%s", err, out)
	}
}

func TestPathsLongerThanPathMaxComeBack(t *testing.T) {
	asUser(t)
	a, b := newBox(t, home(t), ""), newBox(t, home(t), "")
	root, err := os.OpenRoot(a.home)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 200)
	for range 60 {
		if err := root.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := root.OpenRoot(name)
		if err != nil {
			t.Fatal(err)
		}
		_ = root.Close()
		root = next
	}
	defer root.Close()
	if err := root.WriteFile("end", []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
	entries, want := a.snapshot(t)
	if len(entries) != 61 || len(entries[60].Path) < 3*unix.PathMax-1000 {
		t.Fatalf("%d entries", len(entries))
	}
	a.copyTo(t, b, entries)
	_, got := b.snapshot(t)
	same(t, "what was restored", want, got)
}

func TestALargeSparseFileStaysSparse(t *testing.T) {
	a, b := newBox(t, home(t), ""), newBox(t, home(t), "")
	f, err := os.Create(filepath.Join(a.home, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 77_777_777, 150 << 20} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(200 << 20); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	entries, want := a.snapshot(t)
	start := time.Now()
	a.copyTo(t, b, entries)
	t.Logf("200 MB read and restored in %v", time.Since(start))
	_, got := b.snapshot(t)
	same(t, "what was restored", want, got)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(b.home, "disk"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("it takes %d bytes, %v", st.Blocks*512, err)
	}
}

func TestAFolderOfFiveThousandComesBack(t *testing.T) {
	a, b := newBox(t, home(t), ""), newBox(t, home(t), "")
	for i := range 5000 {
		content := bytes.Repeat([]byte{byte(i)}, rand.IntN(3000))
		if err := os.WriteFile(filepath.Join(a.home, fmt.Sprintf("f%d", i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	entries, want := a.snapshot(t)
	t.Logf("listed and read in %v", time.Since(start))
	start = time.Now()
	a.copyTo(t, b, entries)
	t.Logf("restored, one request a file for reading, in %v", time.Since(start))
	_, got := b.snapshot(t)
	same(t, "what was restored", want, got)
}
