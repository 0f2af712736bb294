package snapshot_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sealer is what the gateway's is: AES-256-GCM with random nonces.
type sealer struct {
	aead cipher.AEAD
	id   string
}

func newSealer(t testing.TB, id string) sealer {
	t.Helper()
	key := sha256.Sum256([]byte(id))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return sealer{aead, id}
}

func (s sealer) Seal(plain, context []byte) []byte {
	return s.aead.Seal(nil, nil, plain, context) //nolint:gosec // the AEAD makes its own random nonces
}

func (s sealer) Open(sealed, context []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, context)
}
func (s sealer) KeyID() string { return s.id }

func openStore(t testing.TB) (*store.Directory, string) {
	t.Helper()
	folder := t.TempDir()
	d, err := store.OpenDirectory(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, folder
}

// node is something in a memTree.
type node struct {
	snapshot.Entry
	content []byte
}

// memTree is a tree in memory whose clock goes in whole seconds, as on a bad
// file system.
type memTree struct {
	nodes map[string]*node
	now   int64 // seconds
	inode uint64
	reads []string
	// stop, if set, is called before each file is sent.
	stop func(path string) error
}

var _ snapshot.Tree = (*memTree)(nil)

func newMemTree() *memTree { return &memTree{nodes: map[string]*node{}, now: 1_700_000_000} }

func (m *memTree) clock() time.Time { return time.Unix(m.now, 999_999_999) }

func (m *memTree) make(path string, kind snapshot.Type, mode uint32, target string, content []byte) {
	n := m.nodes[path]
	if n == nil || n.Type != kind {
		m.inode++
		n = &node{Entry: snapshot.Entry{Path: path, Type: kind, Inode: m.inode}}
		m.nodes[path] = n
	}
	n.Mode, n.Target, n.content, n.Size = mode, target, content, int64(len(content))
	n.ModifiedNs, n.ChangedNs = m.now*1e9, m.now*1e9
}

func (m *memTree) file(path, content string) { m.make(path, snapshot.File, 0o644, "", []byte(content)) }
func (m *memTree) dir(path string)           { m.make(path, snapshot.Directory, 0o755, "", nil) }

// remove takes away a path and all below it.
func (m *memTree) remove(path string) {
	maps.DeleteFunc(m.nodes, func(p string, _ *node) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

// rename moves a path and all below it; what is below keeps its times.
func (m *memTree) rename(from, to string) {
	for _, p := range slices.Sorted(maps.Keys(m.nodes)) {
		if p != from && !strings.HasPrefix(p, from+"/") {
			continue
		}
		n := m.nodes[p]
		delete(m.nodes, p)
		n.Path = to + strings.TrimPrefix(p, from)
		if p == from {
			n.ChangedNs = m.now * 1e9
		}
		m.nodes[n.Path] = n
	}
}

func (m *memTree) List(_ context.Context, fn func(snapshot.Entry) error) error {
	for _, n := range m.nodes { // in no order
		if err := fn(n.Entry); err != nil {
			return err
		}
	}
	return nil
}

func (m *memTree) Read(ctx context.Context, paths []string, fn func(string, int64, io.Reader) error) error {
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if m.stop != nil {
			if err := m.stop(p); err != nil {
				return err
			}
		}
		m.reads = append(m.reads, p)
		n := m.nodes[p]
		if n == nil || n.Type != snapshot.File {
			if err := fn(p, -1, nil); err != nil {
				return err
			}
			continue
		}
		if err := fn(p, n.Size, bytes.NewReader(n.content)); err != nil {
			return err
		}
	}
	return nil
}

func (m *memTree) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	for r, err := range entries {
		if err != nil {
			return err
		}
		if at := strings.LastIndexByte(r.Path, '/'); at >= 0 {
			if up := m.nodes[r.Path[:at]]; up == nil || up.Type != snapshot.Directory {
				return fmt.Errorf("%q comes before its directory", r.Path)
			}
		}
		if m.nodes[r.Path] != nil {
			return fmt.Errorf("%q comes twice", r.Path)
		}
		n := &node{Entry: r.Entry}
		if r.Content != nil {
			if n.content, err = io.ReadAll(r.Content); err != nil {
				return err
			}
			if int64(len(n.content)) != r.Size {
				return errors.New("the content has another size")
			}
		}
		m.nodes[r.Path] = n
	}
	return nil
}

// seen is what has to be the same after a restore.
type seen struct {
	Type       snapshot.Type
	Mode       uint32
	ModifiedNs int64
	Target     string
	Hash       string
}

func (m *memTree) picture() map[string]seen {
	all := make(map[string]seen, len(m.nodes))
	for p, n := range m.nodes {
		all[p] = seen{n.Type, n.Mode, n.ModifiedNs, n.Target, fmt.Sprintf("%d %x", len(n.content), sha256.Sum256(n.content))}
	}
	return all
}

var ref = snapshot.Ref{ID: "box", Incarnation: "first"} //nolint:gochecknoglobals // a constant

func engineOn(t testing.TB, s store.Store, tree *memTree) *snapshot.Engine {
	t.Helper()
	e := snapshot.New(s, newSealer(t, "key"), small())
	if tree != nil {
		e.SetClock(tree.clock)
	}
	return e
}

// small makes every kind of object of little data.
func small() snapshot.Settings {
	return snapshot.Settings{PackSize: 4096, SmallFile: 1024, Memory: 16384}
}

func mustTake(t testing.TB, e *snapshot.Engine, r snapshot.Ref, tree snapshot.Tree) snapshot.Snapshot {
	t.Helper()
	s, err := e.Take(context.Background(), r, tree)
	if err != nil {
		t.Fatalf("taking: %v", err)
	}
	return s
}

func wantRestored(t testing.TB, e *snapshot.Engine, r snapshot.Ref, id string, want map[string]seen) {
	t.Helper()
	got := newMemTree()
	if _, err := e.Restore(context.Background(), r, id, nil, got); err != nil {
		t.Fatalf("restoring: %v", err)
	}
	if diff := cmp.Diff(want, got.picture()); diff != "" {
		t.Fatalf("restored differently (-want +got):\n%s", diff)
	}
}

// sample fills a tree with everything that there is.
func sample(m *memTree) {
	m.dir("src")
	m.dir("src/empty")
	m.dir("src-other")
	for i := range 12 {
		m.file(fmt.Sprintf("src/f%d", i), strings.Repeat(fmt.Sprintf("line %d\n", i), 80+i))
	}
	m.file("src/none", "")
	m.file("src/\xff\nodd \"name", "odd")
	m.make("src/large", snapshot.File, 0o4755, "", noise(1, 10_000))
	m.make("src/larger", snapshot.File, 0, "", noise(2, 9000))
	m.make("src/same", snapshot.File, 0o600, "", noise(1, 10_000))
	m.make("link", snapshot.Symlink, 0o777, "../../outside", nil)
	m.make("src/loop", snapshot.Symlink, 0o777, "loop", nil)
	m.nodes["src/f3"].ModifiedNs = -5_000_000_001
}

// noise is content that does not compress.
func noise(seed byte, size int) []byte {
	out := make([]byte, 0, size+32)
	for block := sha256.Sum256([]byte{seed}); len(out) < size; block = sha256.Sum256(block[:]) {
		out = append(out, block[:]...)
	}
	return out[:size]
}
