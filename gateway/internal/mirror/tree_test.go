package mirror_test

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

	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
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

var ref = snapshot.Ref{ID: "box", Incarnation: "first"} //nolint:gochecknoglobals // a constant

func openDirectory(t testing.TB) store.Store {
	t.Helper()
	d, err := store.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// openS3 returns a store on a server of its own.
func openS3(t testing.TB) store.Store {
	t.Helper()
	s, err := store.NewS3(storetest.StartServer(t, storetest.ServerOptions{}).Settings())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return store.NewRetrier(s, store.Policy{})
}

// onBoth runs a test on both stores.
func onBoth(t *testing.T, test func(t *testing.T, s store.Store)) {
	t.Helper()
	t.Run("in a directory", func(t *testing.T) { test(t, openDirectory(t)) })
	t.Run("in S3", func(t *testing.T) { test(t, openS3(t)) })
}

func mirrorOn(t testing.TB, s store.Store, tree *memTree) *mirror.Mirror {
	t.Helper()
	m := mirror.New(s, newSealer(t, "key"), mirror.Settings{})
	if tree != nil {
		m.SetClock(tree.clock)
	}
	return m
}

func mustSync(t testing.TB, m *mirror.Mirror, tree snapshot.Tree) mirror.Result {
	t.Helper()
	r, err := m.Sync(context.Background(), ref, tree)
	if err != nil {
		t.Fatalf("syncing: %v", err)
	}
	return r
}

// objects returns the content of all objects in the mirror by their paths.
func objects(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, key := range storetest.MustList(t, s, "workspaces/"+ref.ID+"/") {
		content, _ := storetest.MustGet(t, s, key)
		all[strings.TrimPrefix(key, "workspaces/"+ref.ID+"/")] = string(content)
	}
	return all
}

func wantObjects(t testing.TB, s store.Store, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, objects(t, s)); diff != "" {
		t.Fatalf("the mirror differs (-want +got):\n%s", diff)
	}
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

func (m *memTree) make(path string, kind snapshot.Type, target string, content []byte) {
	for at, c := range path { // the folders that it is in
		if c == '/' && m.nodes[path[:at]] == nil {
			m.dir(path[:at])
		}
	}
	n := m.nodes[path]
	if n == nil || n.Type != kind {
		m.inode++
		n = &node{Entry: snapshot.Entry{Path: path, Type: kind, Inode: m.inode}}
		m.nodes[path] = n
	}
	n.Mode, n.Target, n.content, n.Size = 0o644, target, content, int64(len(content))
	n.ModifiedNs, n.ChangedNs = m.now*1e9, m.now*1e9
}

func (m *memTree) file(path, content string) { m.make(path, snapshot.File, "", []byte(content)) }
func (m *memTree) dir(path string)           { m.make(path, snapshot.Directory, "", nil) }
func (m *memTree) link(path, target string)  { m.make(path, snapshot.Symlink, target, nil) }

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

// files returns the content of all files by their paths.
func (m *memTree) files() map[string]string {
	all := map[string]string{}
	for path, n := range m.nodes {
		if n.Type == snapshot.File {
			all[path] = string(n.content)
		}
	}
	return all
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
		m.inode++
		n := &node{Entry: r.Entry}
		n.Inode, n.ChangedNs = m.inode, m.now*1e9
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

// sample fills a tree with what is mirrored and what is not. It returns what the
// mirror is to hold, and how many entries are skipped.
func sample(m *memTree) (want map[string]string, skipped int64) {
	for _, path := range []string{
		"main.go", ".gitignore", "builder/a", "targets/b/c", "src/deep/er/f", "with space", "ünïcödé/世界", "per%cent", "src/.git2/x", "new\nline",
	} {
		m.file(path, "content of "+path)
	}
	m.file("empty", "")
	m.file("binary", string(storetest.Content(1, 70_000)))
	m.file("large", string(storetest.Content(2, 3<<20)))
	m.dir("folder/without/files")
	want = m.files()
	for _, path := range []string{
		".git/HEAD", "src/.git/objects/xx", "build/out", "a/b/target/c/d", "node_modules/x/index.js", ".DS_Store", "src/.DS_Store", "dist", // a file
		"bad\xffname", "control\x01", strings.Repeat("long/", 210) + "f",
	} {
		m.file(path, "not mirrored")
		skipped++
	}
	m.link("link", "main.go")
	m.link(".git/link", "../main.go")
	return want, skipped + 2
}
