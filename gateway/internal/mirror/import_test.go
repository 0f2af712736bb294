package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// asWorker puts an object as the worker does.
func asWorker(t testing.TB, s store.Store, path, content string) {
	t.Helper()
	storetest.MustPut(t, s, "workspaces/box/"+path, []byte(content), store.PutOptions{
		Metadata: map[string]string{"lastModified": "2025-08-01T09:59:51.123Z"},
	})
}

func mustImport(t testing.TB, m *mirror.Mirror, tree snapshot.Tree) int64 {
	t.Helper()
	files, err := m.Import(context.Background(), ref, tree)
	if err != nil {
		t.Fatalf("importing: %v", err)
	}
	return files
}

func TestWhatTheWorkerStoredIsImportedByteForByte(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		files := map[string]string{
			"README.md": "text", "src/deep/er/a.bin": string(storetest.Content(5, 100_000)), "src/b": "\xff\x00\xfe", "empty": "",
			"large": string(storetest.Content(6, 5<<20)), "src/large2": string(storetest.Content(7, 2<<20)), "ünï/世界 🎉": "x",
			"build/kept": "an excluded name", "a-b": "sorts between", "a/b": "in a",
		}
		for path, content := range files {
			asWorker(t, s, path, content)
		}
		tree := newMemTree()
		m := mirrorOn(t, s, tree)
		if n := mustImport(t, m, tree); n != int64(len(files)) {
			t.Errorf("%d files were imported", n)
		}
		if diff := cmp.Diff(files, tree.files()); diff != "" {
			t.Fatalf("the workspace differs (-want +got):\n%s", diff)
		}
		want := time.Date(2025, 8, 1, 9, 59, 51, 123_000_000, time.UTC).UnixNano()
		for path, n := range tree.nodes {
			switch {
			case n.Type == snapshot.File && (n.Mode != 0o644 || n.ModifiedNs != want):
				t.Errorf("%q has the mode %o and the time %d", path, n.Mode, n.ModifiedNs)
			case n.Type == snapshot.Directory && n.Mode != 0o755:
				t.Errorf("%q has the mode %o", path, n.Mode)
			}
		}
		if last, err := m.Last(t.Context(), ref); last != (mirror.Result{Files: int64(len(files)), Bytes: sizeOf(files)}) || err != nil {
			t.Errorf("the last result is %+v, %v", last, err)
		}
	})
}

func TestAfterAnImportOnlyChangesAreSentAndOnlyWhatIsGoneIsDeleted(t *testing.T) {
	s := openDirectory(t)
	for _, path := range []string{"same", "edited", "gone", "build/same", "build/gone", "late"} {
		asWorker(t, s, path, "theirs")
	}
	tree := newMemTree()
	m := mirrorOn(t, s, tree)
	mustImport(t, m, tree)
	// At once, while all times are fresh.
	for range 2 {
		if result := mustSync(t, m, tree); result.Sent != 0 || result.Files != 4 || result.Skipped != 2 || len(tree.reads) != 0 {
			t.Errorf("right after, the result is %+v, and %q are read", result, tree.reads)
		}
	}
	tree.file("edited", "mine!!") // of the same size
	tree.remove("gone")
	tree.remove("build/gone")
	asWorker(t, s, "new", "theirs")
	tree.now += 10
	result := mustSync(t, m, tree)
	wantObjects(t, s, map[string]string{"same": "theirs", "edited": "mine!!", "build/same": "theirs", "late": "theirs", "new": "theirs"})
	if result != (mirror.Result{Files: 3, Skipped: 1, Bytes: 18, Sent: 6, Deleted: 2}) {
		t.Errorf("the result is %+v", result)
	}
	// From here on they are as any other: a changed ctime is noticed.
	tree.nodes["late"].content = []byte("LATE!!")
	tree.nodes["late"].ChangedNs++
	tree.remove("same")
	tree.remove("build")
	mustSync(t, m, tree)
	wantObjects(t, s, map[string]string{"edited": "mine!!", "late": "LATE!!", "new": "theirs"})
}

func TestAnImportOfAnOwnMirrorKnowsItAgain(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	want, _ := sample(tree)
	mustSync(t, mirrorOn(t, s, tree), tree)
	again := newMemTree()
	m := mirrorOn(t, s, again)
	if n := mustImport(t, m, again); n != int64(len(want)) {
		t.Errorf("%d files were imported", n)
	}
	if diff := cmp.Diff(want, again.files()); diff != "" {
		t.Fatalf("the workspace differs (-want +got):\n%s", diff)
	}
	if result := mustSync(t, m, again); result.Sent != 0 || result.Files != int64(len(want)) {
		t.Errorf("then the result is %+v", result)
	}
}

func TestMoreFilesThanAPageHoldsAreSyncedAndImported(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		tree, again := manyFiles(1105), newMemTree()
		m := mirrorOn(t, s, tree)
		if result := mustSync(t, m, tree); result.Files != 1105 {
			t.Errorf("the result is %+v", result)
		}
		if n := mustImport(t, mirrorOn(t, s, again), again); n != 1105 {
			t.Errorf("%d files were imported", n)
		}
		if diff := cmp.Diff(tree.files(), again.files()); diff != "" {
			t.Errorf("the workspace differs (-want +got):\n%s", diff)
		}
		for path := range tree.files() {
			tree.remove(path)
		}
		if result := mustSync(t, m, tree); result.Deleted != 1105 {
			t.Errorf("after removing them the result is %+v", result)
		}
	})
}

func manyFiles(n int) *memTree {
	tree := newMemTree()
	for i := range n {
		tree.file(fmt.Sprintf("src/dir%02d/file%05d.txt", i%37, i), strings.Repeat(fmt.Sprintf("line of %d\n", i), 60))
	}
	tree.now += 10
	return tree
}

// keyStore lists keys besides those that it has.
type keyStore struct {
	store.Store
	keys []string
}

func (k keyStore) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for _, key := range k.keys {
			if !yield(store.Info{Key: key, Size: 1}, nil) {
				return
			}
		}
		for info, err := range k.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

func TestHostileKeysAreSkippedAndLogged(t *testing.T) {
	directory := openDirectory(t)
	asWorker(t, directory, "good", "good")
	asWorker(t, directory, "file", "is a folder too")
	asWorker(t, directory, "file/below/it", "below")
	asWorker(t, directory, strings.Repeat("n", 256), "too long a name")
	asWorker(t, directory, strings.Repeat("n", 255), "not too long a name")
	s := keyStore{directory, []string{
		"workspaces/box/../../etc/passwd", "workspaces/box//absolute", "workspaces/box/a//b", "workspaces/box/./a", "workspaces/box/a\x00b",
		"workspaces/box/folder/", "workspaces/box/", "workspaces/box/\xff", "workspaces/other/x", "/etc/passwd", "", "workspaces/box/good", // once more
		"workspaces/box/gone", // and not there when it is read
	}}
	var logged strings.Builder
	tree := newMemTree()
	m := mirror.New(s, newSealer(t, "key"), mirror.Settings{Log: slog.New(slog.NewTextHandler(&logged, nil))})
	if n := mustImport(t, m, tree); n != 3 {
		t.Errorf("%d files were imported", n)
	}
	want := map[string]string{"good": "good", "file/below/it": "below", strings.Repeat("n", 255): "not too long a name"}
	if diff := cmp.Diff(want, tree.files()); diff != "" {
		t.Errorf("the workspace differs (-want +got):\n%s", diff)
	}
	if n := strings.Count(logged.String(), "\n"); n != 1 || !strings.Contains(logged.String(), "count=13") {
		t.Errorf("logged was %s", logged.String())
	}
}

func TestAnImportIsBounded(t *testing.T) {
	s := openDirectory(t)
	for i := range 4 {
		asWorker(t, s, fmt.Sprint(i), strings.Repeat("x", 1000))
	}
	for name, settings := range map[string]mirror.Settings{
		"entries": {MaxEntries: 3}, "bytes": {MaxBytes: 3999}, "names": {MaxNames: 3},
	} {
		m := mirror.New(s, newSealer(t, "key"), settings)
		if _, err := m.Import(t.Context(), ref, newMemTree()); !errors.Is(err, snapshot.ErrLimit) {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	// An object that has grown since it was listed.
	grown := sizeStore{s}
	m := mirror.New(grown, newSealer(t, "key"), mirror.Settings{MaxBytes: 3999})
	if _, err := m.Import(t.Context(), ref, newMemTree()); !errors.Is(err, snapshot.ErrLimit) {
		t.Errorf("grown objects: %v", err)
	}
}

// sizeStore lists objects as if they were empty.
type sizeStore struct{ store.Store }

func (s sizeStore) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			info.Size = 0
			if !yield(info, err) {
				return
			}
		}
	}
}

func TestTimesThatMakeNoSenseAreNotBelieved(t *testing.T) {
	s := openDirectory(t)
	for i, said := range []string{"", "nonsense", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "-1"} {
		storetest.MustPut(t, s, fmt.Sprintf("workspaces/box/%d", i), nil, store.PutOptions{Metadata: map[string]string{"lastModified": said}})
	}
	tree := newMemTree()
	mustImport(t, mirrorOn(t, s, nil), tree)
	for path, n := range tree.nodes {
		info, err := s.Head(t.Context(), "workspaces/box/"+path)
		if err != nil {
			t.Fatal(err)
		}
		if n.ModifiedNs != info.Modified.UnixNano() {
			t.Errorf("%s has the time %v", path, time.Unix(0, n.ModifiedNs))
		}
	}
}

// lazyTree does not do all that it should.
type lazyTree struct {
	*memTree
	most int // entries that it takes
	read bool
}

func (l lazyTree) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	taken := 0
	for r, err := range entries {
		if taken == l.most || err != nil {
			break
		}
		taken++
		if l.read && r.Content != nil {
			buffer := make([]byte, r.Size)
			_, _ = r.Content.Read(buffer)
		}
	}
	return nil
}

func TestATreeThatDoesNotWriteAllFailsAnImport(t *testing.T) {
	s := openDirectory(t)
	for i := range 40 {
		asWorker(t, s, fmt.Sprintf("folder/%d", i), "content")
	}
	for name, tree := range map[string]lazyTree{
		"some files": {most: 5, read: true}, "some folders": {most: 0}, "without reading": {most: 100},
	} {
		if _, err := mirrorOn(t, s, nil).Import(t.Context(), ref, tree); !errors.Is(err, snapshot.ErrTree) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
