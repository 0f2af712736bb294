package mirror_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func sizeOf(files map[string]string) (size int64) {
	for _, content := range files {
		size += int64(len(content))
	}
	return size
}

func TestASyncMakesTheMirrorEqualToTheWorkspace(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		tree := newMemTree()
		want, skipped := sample(tree)
		m := mirrorOn(t, s, tree)
		if exists, err := m.Exists(t.Context(), ref.ID); exists || err != nil {
			t.Errorf("before the first sync there is a mirror: %v, %v", exists, err)
		}
		result := mustSync(t, m, tree)
		wantObjects(t, s, want)
		expected := mirror.Result{Files: int64(len(want)), Skipped: skipped, Bytes: sizeOf(want), Sent: sizeOf(want)}
		if result != expected {
			t.Errorf("the result is %+v, want %+v", result, expected)
		}
		expected.Sent = 0
		if last, err := m.Last(t.Context(), ref); last != expected || err != nil {
			t.Errorf("the last result is %+v, %v, want %+v", last, err, expected)
		}
		if exists, err := m.Exists(t.Context(), ref.ID); !exists || err != nil {
			t.Errorf("after the first sync there is a mirror: %v, %v", exists, err)
		}
		_, info := storetest.MustGet(t, s, "workspaces/box/main.go")
		if diff := cmp.Diff(map[string]string{"lastmodified": "2023-11-14T22:13:20.000Z"}, info.Metadata); diff != "" {
			t.Errorf("the metadata differs (-want +got): %s", diff)
		}
		// Only changes are sent from then on, and deletions followed.
		tree.now += 10
		mustSync(t, m, tree) // what was changed in the second of the first listing
		tree.file("main.go", "changed")
		tree.file("src/new", "new")
		tree.remove("targets")
		tree.rename("binary", "src/renamed")
		tree.nodes["empty"].ChangedNs = (tree.now - 5) * 1e9 // as after a chmod
		want = maps.Collect(func(yield func(string, string) bool) {
			for path, content := range tree.files() {
				if _, was := want[path]; (was || path == "src/new" || path == "src/renamed") && !yield(path, content) {
					return
				}
			}
		})
		result = mustSync(t, m, tree)
		wantObjects(t, s, want)
		expected = mirror.Result{Files: int64(len(want)), Skipped: skipped, Bytes: sizeOf(want), Sent: 7 + 3 + 70_000, Deleted: 2}
		if result != expected {
			t.Errorf("the second result is %+v, want %+v", result, expected)
		}
		if err := m.Delete(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		if left := storetest.MustList(t, s, ""); len(left) != 0 {
			t.Errorf("after a delete %q are left", left)
		}
		if err := m.Delete(t.Context(), ref); err != nil {
			t.Errorf("a second delete: %v", err)
		}
		if last, err := m.Last(t.Context(), ref); last != (mirror.Result{}) || err != nil {
			t.Errorf("after a delete the last result is %+v, %v", last, err)
		}
	})
}

func TestAnUnchangedSyncReadsAndSendsNothing(t *testing.T) {
	faults := storetest.NewFaults(openDirectory(t))
	tree := newMemTree()
	sample(tree)
	tree.now += 10
	m := mirrorOn(t, faults, tree)
	first := mustSync(t, m, tree)
	tree.reads = nil
	before := faults.Calls()
	again := mustSync(t, m, tree)
	if log := faults.Log()[before:]; !cmp.Equal(log, []string{"Get mirrors/box/index"}) || len(tree.reads) != 0 {
		t.Errorf("an unchanged sync made the calls %q and read %q", log, tree.reads)
	}
	first.Sent = 0
	if again != first {
		t.Errorf("an unchanged sync is %+v, want %+v", again, first)
	}
}

func TestAFileThatChangesInTheSecondOfTheListingIsSentAgain(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "one")
	m := mirrorOn(t, s, tree)
	mustSync(t, m, tree)
	tree.nodes["a"].content = []byte("two") // with the same times
	tree.now += 10
	mustSync(t, m, tree)
	wantObjects(t, s, map[string]string{"a": "two"})
	tree.reads = nil
	mustSync(t, m, tree)
	if len(tree.reads) != 0 {
		t.Errorf("once it is settled, %q are read", tree.reads)
	}
}

func TestAFileThatChangesWhileItIsReadIsSentAgain(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "one")
	tree.file("b", "two")
	tree.now += 10
	m := mirrorOn(t, s, tree)
	tree.stop = func(path string) error {
		tree.nodes["a"].content, tree.nodes["a"].Size = []byte("longer"), 6
		delete(tree.nodes, "b")
		return nil
	}
	result := mustSync(t, m, tree)
	if result.Files != 1 || result.Bytes != 6 {
		t.Errorf("the result is %+v", result)
	}
	wantObjects(t, s, map[string]string{"a": "longer"})
	tree.reads, tree.stop = nil, nil
	mustSync(t, m, tree)
	if !cmp.Equal(tree.reads, []string{"a"}) {
		t.Errorf("%q are read again", tree.reads)
	}
}

func TestAFileThatVanishesBeforeItIsReadVanishesFromTheMirror(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "one")
	tree.file("b", "two")
	m := mirrorOn(t, s, tree)
	mustSync(t, m, tree)
	storetest.MustPut(t, s, "workspaces/box/c", []byte("foreign"), store.PutOptions{})
	tree.now += 10
	tree.file("a", "changed")
	tree.file("c", "new")
	tree.stop = func(string) error { delete(tree.nodes, "a"); delete(tree.nodes, "c"); return nil }
	result := mustSync(t, m, tree)
	if result.Files != 1 || result.Deleted != 1 {
		t.Errorf("the result is %+v", result)
	}
	wantObjects(t, s, map[string]string{"b": "two", "c": "foreign"})
}

func TestFilesBecomeFoldersAndFoldersFiles(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		tree := newMemTree()
		tree.file("a", "a file")
		tree.file("b/c/d", "in a folder")
		tree.file("b/e", "in a folder")
		m := mirrorOn(t, s, tree)
		mustSync(t, m, tree)
		tree.now += 10
		tree.remove("a")
		tree.remove("b")
		tree.file("a/x/y", "in a folder now")
		tree.file("b", "a file now")
		mustSync(t, m, tree)
		wantObjects(t, s, tree.files())
	})
}

func TestOnlyOwnObjectsAreDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		foreign := func(path string) {
			storetest.MustPut(t, s, "workspaces/box/"+path, []byte("foreign "+path), store.PutOptions{})
		}
		foreign("theirs")
		foreign("both")
		tree := newMemTree()
		for _, path := range []string{"both", "mine", "replaced", "large"} {
			tree.file(path, "mine "+path)
		}
		tree.file("large", string(storetest.Content(3, 20<<20))) // in parts
		m := mirrorOn(t, s, tree)
		mustSync(t, m, tree)
		want := tree.files()
		want["theirs"] = "foreign theirs"
		wantObjects(t, s, want)
		foreign("replaced")
		for path := range tree.files() {
			tree.remove(path)
		}
		result := mustSync(t, m, tree)
		wantObjects(t, s, map[string]string{"theirs": "foreign theirs", "replaced": "foreign replaced"})
		if result != (mirror.Result{Deleted: 3}) {
			t.Errorf("the result is %+v", result)
		}
		// Other sandboxes' are out of reach.
		storetest.MustPut(t, s, "workspaces/box2/x", []byte("x"), store.PutOptions{})
		if err := m.Delete(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		if left := storetest.MustList(t, s, ""); !cmp.Equal(left, []string{"workspaces/box2/x"}) {
			t.Errorf("%q are left", left)
		}
	})
}

func TestWithALostOrDamagedIndexEverythingIsSentAgainAndNothingIsDeleted(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, s store.Store){
		"lost": func(t *testing.T, s store.Store) {
			if err := s.Delete(t.Context(), "mirrors/box/index"); err != nil {
				t.Fatal(err)
			}
		},
		"empty": func(t *testing.T, s store.Store) {
			storetest.MustPut(t, s, "mirrors/box/index", nil, store.PutOptions{})
		},
		"cut": func(t *testing.T, s store.Store) {
			raw, _ := storetest.MustGet(t, s, "mirrors/box/index")
			storetest.MustPut(t, s, "mirrors/box/index", raw[:len(raw)-1], store.PutOptions{})
		},
		"of another sandbox": func(t *testing.T, s store.Store) {
			other := newMemTree()
			other.file("x", "x")
			if _, err := mirrorOn(t, s, other).Sync(t.Context(), snapshot.Ref{ID: "other", Incarnation: ref.Incarnation}, other); err != nil {
				t.Fatal(err)
			}
			raw, _ := storetest.MustGet(t, s, "mirrors/other/index")
			storetest.MustPut(t, s, "mirrors/box/index", raw, store.PutOptions{})
		},
		"of another version": func(t *testing.T, s store.Store) {
			storetest.MustPut(t, s, "mirrors/box/index", []byte(`{"version":2,"incarnation":"first"}`+"\n"), store.PutOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openDirectory(t)
			tree := newMemTree()
			tree.file("a", "a")
			tree.file("b", "b")
			tree.now += 10
			m := mirrorOn(t, s, tree)
			mustSync(t, m, tree)
			tree.remove("b")
			harm(t, s)
			tree.reads = nil
			if result := mustSync(t, m, tree); result != (mirror.Result{Files: 1, Bytes: 1, Sent: 1}) {
				t.Errorf("the result is %+v", result)
			}
			wantObjects(t, s, map[string]string{"a": "a", "b": "b"})
			tree.reads = nil
			mustSync(t, m, tree)
			if len(tree.reads) != 0 {
				t.Errorf("then %q are read", tree.reads)
			}
		})
	}
}

func TestEveryFlippedByteOfAnIndexIsFound(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "a")
	m := mirrorOn(t, s, tree)
	mustSync(t, m, tree)
	raw, _ := storetest.MustGet(t, s, "mirrors/box/index")
	if strings.Contains(string(raw), `"a"`) {
		t.Error("names can be read")
	}
	want, err := m.Last(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for at := range raw {
		flipped := []byte(string(raw))
		flipped[at] ^= 1
		storetest.MustPut(t, s, "mirrors/box/index", flipped, store.PutOptions{})
		got, err := m.Last(t.Context(), ref)
		readable := err == nil && got == want // in the key's id, which is only told
		if !errors.Is(err, snapshot.ErrDamaged) && !errors.Is(err, snapshot.ErrSuperseded) && !readable {
			t.Errorf("at %d: %+v, %v", at, got, err)
		}
	}
}

func TestAnIndexIsSealedAnewWithANewKey(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "a")
	tree.now += 10
	mustSync(t, mirrorOn(t, s, tree), tree)
	both := mirror.New(s, ring{newSealer(t, "new"), newSealer(t, "key")}, mirror.Settings{})
	both.SetClock(tree.clock)
	tree.reads = nil
	if result := mustSync(t, both, tree); result.Sent != 0 || result.Files != 1 || len(tree.reads) != 0 {
		t.Errorf("the result is %+v, and %q are read", result, tree.reads)
	}
	if last, err := mirror.New(s, newSealer(t, "new"), mirror.Settings{}).Last(t.Context(), ref); last.Files != 1 || err != nil {
		t.Errorf("with the new key alone: %+v, %v", last, err)
	}
}

// ring seals with its first key and opens with any.
type ring []sealer

func (r ring) Seal(plain, context []byte) []byte { return r[0].Seal(plain, context) }
func (r ring) KeyID() string                     { return r[0].KeyID() }
func (r ring) Open(sealed, context []byte) (plain []byte, err error) {
	for _, s := range r {
		if plain, err = s.Open(sealed, context); err == nil {
			return plain, nil
		}
	}
	return nil, err
}

func TestWhatIsExcludedCanBeChosen(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("vendor/x", "x")
	tree.file(".git/y", "y")
	for _, c := range []struct {
		exclude []string
		want    map[string]string
	}{
		{nil, map[string]string{"vendor/x": "x"}},
		{[]string{}, map[string]string{"vendor/x": "x", ".git/y": "y"}},
		{[]string{"vendor"}, map[string]string{".git/y": "y"}}, // what was sent goes
	} {
		m := mirror.New(s, newSealer(t, "key"), mirror.Settings{Exclude: c.exclude})
		mustSync(t, m, tree)
		wantObjects(t, s, c.want)
	}
}

func TestNamesThatTheStoreCannotHoldAreSkippedAndLoggedOnce(t *testing.T) {
	// A file system's server cannot hold an object in the place of a folder.
	s := openS3(t)
	storetest.MustPut(t, s, "workspaces/box/a", []byte("foreign"), store.PutOptions{})
	tree := newMemTree()
	tree.file("a/b", "cannot be")
	tree.file("a/large", string(storetest.Content(4, 3<<20)))
	tree.file("bad\xff", "cannot be")
	tree.file("good", "good")
	var logged strings.Builder
	m := mirror.New(s, newSealer(t, "key"), mirror.Settings{Log: slog.New(slog.NewTextHandler(&logged, nil))})
	if result := mustSync(t, m, tree); result != (mirror.Result{Files: 1, Skipped: 3, Bytes: 4, Sent: 4}) {
		t.Errorf("the result is %+v", result)
	}
	wantObjects(t, s, map[string]string{"a": "foreign", "good": "good"})
	if n := strings.Count(logged.String(), "\n"); n != 1 || !strings.Contains(logged.String(), "count=3") {
		t.Errorf("logged was %s", logged.String())
	}
	// Once there is room, it is taken.
	if err := s.Delete(t.Context(), "workspaces/box/a"); err != nil {
		t.Fatal(err)
	}
	if result := mustSync(t, m, tree); result.Files != 3 || result.Skipped != 1 {
		t.Errorf("the result is %+v", result)
	}
}

// hostileTree lists and sends what it is told to.
type hostileTree struct {
	*memTree
	list []snapshot.Entry
	read func(paths []string, fn func(string, int64, io.Reader) error) error
}

func (h hostileTree) List(_ context.Context, fn func(snapshot.Entry) error) error {
	for _, e := range h.list {
		_ = fn(e) // goes on all the same
	}
	return nil
}

func (h hostileTree) Read(_ context.Context, paths []string, fn func(string, int64, io.Reader) error) error {
	return h.read(paths, fn)
}

func TestAHostileTreeIsRefused(t *testing.T) {
	file := func(path string) snapshot.Entry { return snapshot.Entry{Path: path, Type: snapshot.File, Size: 4} }
	content := func(size int64, text string) func([]string, func(string, int64, io.Reader) error) error {
		return func(paths []string, fn func(string, int64, io.Reader) error) error {
			for _, path := range paths {
				_ = fn(path, size, strings.NewReader(text))
			}
			return nil
		}
	}
	large := strings.Repeat("x", 2<<20)
	honest := content(4, "good")
	for name, c := range map[string]struct {
		list []snapshot.Entry
		read func([]string, func(string, int64, io.Reader) error) error
		want error
	}{
		"a path twice":              {[]snapshot.Entry{file("a"), file("b"), file("a")}, honest, snapshot.ErrTree},
		"a parent":                  {[]snapshot.Entry{file("../other/x")}, honest, snapshot.ErrTree},
		"a parent that is excluded": {[]snapshot.Entry{file(".git/../x")}, honest, snapshot.ErrTree},
		"an absolute path":          {[]snapshot.Entry{file("/etc/passwd")}, honest, snapshot.ErrTree},
		"an empty path":             {[]snapshot.Entry{file("")}, honest, snapshot.ErrTree},
		"a NUL":                     {[]snapshot.Entry{file("a\x00b")}, honest, snapshot.ErrTree},
		"a device":                  {[]snapshot.Entry{{Path: "a", Type: 7}}, honest, snapshot.ErrTree},
		"a negative size":           {[]snapshot.Entry{{Path: "a", Type: snapshot.File, Size: -1}}, honest, snapshot.ErrTree},
		"a folder with a size":      {[]snapshot.Entry{{Path: "a", Type: snapshot.Directory, Size: 1}}, honest, snapshot.ErrTree},
		"sizes that overflow":       {[]snapshot.Entry{{Path: "a", Type: snapshot.File, Size: 1 << 62}, {Path: "b", Type: snapshot.File, Size: 1 << 62}}, honest, snapshot.ErrTree},
		"more bytes than allowed":   {[]snapshot.Entry{{Path: "a", Type: snapshot.File, Size: 5 << 20}}, honest, snapshot.ErrLimit},
		"more entries than allowed": {make([]snapshot.Entry, 0), honest, snapshot.ErrLimit},
		"fewer bytes than said":     {[]snapshot.Entry{file("a")}, content(4, "goo"), snapshot.ErrTree},
		"more bytes than said":      {[]snapshot.Entry{file("a")}, content(4, "goods"), snapshot.ErrTree},
		"fewer bytes, large":        {[]snapshot.Entry{file("a")}, content(2<<20, large[1:]), snapshot.ErrTree},
		"more bytes, large":         {[]snapshot.Entry{file("a")}, content(2<<20-1, large), snapshot.ErrTree},
		"growing beyond the limit":  {[]snapshot.Entry{file("a"), file("b"), file("c")}, content(2<<20, large), snapshot.ErrLimit},
		"an endless size":           {[]snapshot.Entry{file("a")}, content(1<<62, large), snapshot.ErrTree},
		"nothing is sent":           {[]snapshot.Entry{file("a")}, func([]string, func(string, int64, io.Reader) error) error { return nil }, snapshot.ErrTree},
		"a file is sent twice": {[]snapshot.Entry{file("a")}, func(_ []string, fn func(string, int64, io.Reader) error) error {
			return errors.Join(fn("a", 4, strings.NewReader("good")), fn("a", 4, strings.NewReader("good")))
		}, snapshot.ErrTree},
		"another file is sent": {[]snapshot.Entry{file("a")}, func(_ []string, fn func(string, int64, io.Reader) error) error {
			return fn("../x", 4, strings.NewReader("good"))
		}, snapshot.ErrTree},
	} {
		t.Run(name, func(t *testing.T) {
			s := openDirectory(t)
			m := mirror.New(s, newSealer(t, "key"), mirror.Settings{MaxEntries: 100, MaxBytes: 4 << 20})
			if name == "more entries than allowed" {
				for i := range 101 {
					c.list = append(c.list, snapshot.Entry{Path: fmt.Sprintf(".git/%d", i), Type: snapshot.File})
				}
			}
			_, err := m.Sync(t.Context(), ref, hostileTree{list: c.list, read: c.read})
			if !errors.Is(err, c.want) {
				t.Errorf("the error is %v", err)
			}
			for _, key := range storetest.MustList(t, s, "") {
				if key != "mirrors/box/index" && !strings.HasPrefix(key, "workspaces/box/") {
					t.Errorf("it made %q", key)
				}
			}
		})
	}
}

func TestALateSyncOfAnOldIncarnationNeverLands(t *testing.T) {
	next := snapshot.Ref{ID: ref.ID, Incarnation: "second"}
	for _, had := range []bool{false, true} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprintf("had a mirror: %v, successor begun: %v", had, begun), func(t *testing.T) {
				s := openDirectory(t)
				old, tree := newMemTree(), newMemTree()
				tree.file("mine", "mine")
				old.file("first", "late")
				late, here := mirrorOn(t, s, old), mirrorOn(t, s, tree) // two processes
				if had {
					mustSync(t, late, old)
					old.now += 10
					old.file("second", "late")
				}
				done := false
				stop := func() error { // after the listing
					if done {
						return nil
					}
					done = true
					if err := here.Delete(t.Context(), ref); err != nil {
						t.Error(err)
					}
					if !begun {
						return nil
					}
					return here.Begin(t.Context(), next)
				}
				_, err := late.Sync(t.Context(), ref, listHook{old, stop})
				if !errors.Is(err, mirror.ErrConflict) {
					t.Errorf("the late one: %v", err)
				}
				if _, err := here.Sync(t.Context(), next, tree); err != nil {
					t.Fatal(err)
				}
				for doing, err := range map[string]error{
					"a late delete": late.Delete(t.Context(), ref),
					"a late sync":   second(late.Sync(t.Context(), ref, old)),
					"a late import": second(late.Import(t.Context(), ref, newMemTree())),
					"a late look":   second(late.Last(t.Context(), ref)),
				} {
					if !errors.Is(err, snapshot.ErrSuperseded) {
						t.Errorf("%s: %v", doing, err)
					}
				}
				wantObjects(t, s, map[string]string{"mine": "mine"})
				if last, err := here.Last(t.Context(), next); last.Files != 1 || err != nil {
					t.Errorf("the successor's: %+v, %v", last, err)
				}
			})
		}
	}
}

func second[T any](_ T, err error) error { return err }

// listHook calls then after a listing.
type listHook struct {
	*memTree
	then func() error
}

func (l listHook) List(ctx context.Context, fn func(snapshot.Entry) error) error {
	if err := l.memTree.List(ctx, fn); err != nil {
		return err
	}
	return l.then()
}

func TestALateSyncEndsAtTheNextWriteOfTheIndex(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	for i := range 5000 {
		tree.file(fmt.Sprintf("f%04d", i), "late")
	}
	late, here := mirrorOn(t, s, tree), mirrorOn(t, s, tree)
	tree.stop = func(string) error {
		tree.stop = nil
		if err := here.Delete(t.Context(), ref); err != nil {
			return err
		}
		return here.Begin(t.Context(), snapshot.Ref{ID: ref.ID, Incarnation: "second"})
	}
	if _, err := late.Sync(t.Context(), ref, tree); !errors.Is(err, mirror.ErrConflict) {
		t.Errorf("the late one: %v", err)
	}
	if len(tree.reads) != 2048 {
		t.Errorf("the late one read %d files", len(tree.reads))
	}
}

func TestBeginForgetsWhatAnEarlierIncarnationOwned(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "a")
	m := mirrorOn(t, s, tree)
	mustSync(t, m, tree)
	next := snapshot.Ref{ID: ref.ID, Incarnation: "second"}
	for range 2 {
		if err := m.Begin(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	if result, err := m.Sync(t.Context(), next, newMemTree()); result != (mirror.Result{}) || err != nil {
		t.Errorf("the result is %+v, %v", result, err)
	}
	wantObjects(t, s, map[string]string{"a": "a"})
}

func TestADeleteEndsASyncInProgress(t *testing.T) {
	s := openDirectory(t)
	tree := newMemTree()
	tree.file("a", "a")
	m := mirrorOn(t, s, tree)
	deleted := make(chan error, 1)
	_, err := m.Sync(t.Context(), ref, waitingTree{tree, func() { go func() { deleted <- m.Delete(t.Context(), ref) }() }})
	if !errors.Is(err, snapshot.ErrSuperseded) {
		t.Errorf("the sync: %v", err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if left := storetest.MustList(t, s, ""); len(left) != 0 {
		t.Errorf("%q is left", left)
	}
}

// waitingTree calls begin and waits for the end of its context in Read.
type waitingTree struct {
	*memTree
	begin func()
}

func (w waitingTree) Read(ctx context.Context, _ []string, _ func(string, int64, io.Reader) error) error {
	w.begin()
	<-ctx.Done()
	return ctx.Err()
}

// slowStore lets puts of files wait until they are released, or canceled.
type slowStore struct {
	store.Store
	begun, release chan struct{}
}

func (s slowStore) Put(ctx context.Context, key string, body io.Reader, size int64, opts store.PutOptions) (store.Info, error) {
	if strings.HasPrefix(key, "workspaces/") {
		s.begun <- struct{}{}
		select {
		case <-s.release:
		case <-ctx.Done():
			return store.Info{}, context.Cause(ctx)
		}
	}
	return s.Store.Put(ctx, key, body, size, opts)
}

func TestADeleteWaitsForWhatIsOnItsWay(t *testing.T) {
	for name, released := range map[string]bool{"that ends": true, "that does not end": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := slowStore{openDirectory(t), make(chan struct{}), make(chan struct{})}
				tree := newMemTree()
				tree.file("a", "a")
				m := mirrorOn(t, s, tree)
				synced, deleted := make(chan error, 1), make(chan error, 1)
				go func() { synced <- second(m.Sync(t.Context(), ref, tree)) }()
				<-s.begun
				began := time.Now()
				go func() { deleted <- m.Delete(t.Context(), ref) }()
				synctest.Wait()
				select {
				case err := <-deleted:
					t.Errorf("the delete did not wait: %v", err)
				default:
				}
				if released {
					close(s.release)
				}
				if err := <-synced; !errors.Is(err, snapshot.ErrSuperseded) {
					t.Errorf("the sync: %v", err)
				}
				if err := <-deleted; err != nil {
					t.Error(err)
				}
				if took := time.Since(began); !released && took != 20*time.Second || released && took != 0 {
					t.Errorf("it took %v", took)
				}
				if left := storetest.MustList(t, s, ""); len(left) != 0 {
					t.Errorf("%q is left", left)
				}
			})
		})
	}
}

func TestBadReferencesAreRefused(t *testing.T) {
	m := mirrorOn(t, openDirectory(t), nil)
	for _, bad := range []snapshot.Ref{{}, {ID: "box"}, {ID: "../x", Incarnation: "1"}, {ID: "a/b", Incarnation: "1"}} {
		if _, err := m.Sync(t.Context(), bad, newMemTree()); err == nil {
			t.Errorf("a sync of %+v", bad)
		}
		anybody := bad == snapshot.Ref{ID: "box"} // which a delete may name
		if err := m.Delete(t.Context(), bad); (err == nil) != anybody {
			t.Errorf("a delete of %+v: %v", bad, err)
		}
		if _, err := m.Last(t.Context(), bad); err == nil {
			t.Errorf("a look at %+v", bad)
		}
	}
	if _, err := m.Exists(t.Context(), "../x"); err == nil {
		t.Error("a look for ../x")
	}
}
