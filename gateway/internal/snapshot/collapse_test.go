package snapshot_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// fill makes so many files of so many bytes in the workspace, and OpenCode's
// state beside it.
func fill(tree *memTree, files, size int) {
	tree.now += 10
	state(tree)
	tree.dir("workspace")
	for i := range files {
		tree.file(fmt.Sprintf("workspace/f%d", i), strings.Repeat("x", size))
	}
}

// state is what a home has that nobody has worked in: more than any test's files.
func state(tree *memTree) {
	for _, dir := range []string{".local", ".local/share"} {
		tree.dir(dir)
	}
	tree.file(".local/share/opencode.db", strings.Repeat("y", 50_000))
	for i := range 30 {
		tree.file(fmt.Sprintf(".local/share/s%d", i), "state")
	}
}

// empty makes the home what a new disk is once OpenCode has run on it.
func empty(tree *memTree) {
	tree.now += 10
	clear(tree.nodes)
	state(tree)
	tree.dir("workspace")
}

func ids(t *testing.T, e *snapshot.Engine) []string {
	t.Helper()
	list, err := e.List(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range list {
		out = append(out, s.ID)
	}
	return out
}

// goOn takes so many snapshots of a home in which there is a little work, and
// collects what they do not use.
func goOn(t *testing.T, e *snapshot.Engine, tree *memTree, rounds int) {
	t.Helper()
	for i := range rounds {
		tree.now += 10
		tree.file("workspace/new", fmt.Sprint(i))
		if s := mustTake(t, e, ref, tree); s.Collapsed {
			t.Errorf("round %d: %+v", i, s)
		}
		if _, err := e.Collect(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheSnapshotBeforeACollapseStays(t *testing.T) {
	for _, keep := range []int{1, 3} {
		t.Run(fmt.Sprintf("of %d", keep), func(t *testing.T) {
			d, _ := openStore(t)
			tree := newMemTree()
			settings := small()
			settings.Keep = keep
			e := snapshot.New(d, newSealer(t, "key"), settings)
			e.SetClock(tree.clock)
			for i := range 4 {
				fill(tree, 30+i, 100)
				if s := mustTake(t, e, ref, tree); s.Collapsed || s.Before != "" {
					t.Errorf("a home that grows: %+v", s)
				}
			}
			good, want := ids(t, e)[0], tree.picture()
			empty(tree)
			fallen := mustTake(t, e, ref, tree)
			if !fallen.Collapsed || fallen.Before != good {
				t.Errorf("the collapse is %+v, and %s was before", fallen, good)
			}
			tree.now += 10
			if again := mustTake(t, e, ref, tree); again.Collapsed {
				t.Errorf("it is told twice: %+v", again)
			}
			goOn(t, e, tree, 10)
			list := ids(t, e)
			if len(list) != keep+1 || list[keep] != good || slices.Index(list, good) != keep {
				t.Errorf("kept are %q, and %s was before the collapse", list, good)
			}
			wantRestored(t, e, ref, good, want)
			wantRestored(t, e, ref, "", tree.picture())
			// Another process goes on with it.
			goOn(t, e, tree, 3)
			wantRestored(t, engineOn(t, d, nil), ref, good, want)
			if err := e.Delete(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
			if left := storetest.MustList(t, d, ""); len(left) != 0 {
				t.Errorf("a deletion leaves %q", left)
			}
		})
	}
}

func TestWhatIsACollapse(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after func(*memTree)
		want          bool
	}{
		"everything goes": {func(tree *memTree) { fill(tree, 20, 100) }, empty, true},
		"the state goes, too": {func(tree *memTree) { fill(tree, 20, 100) }, func(tree *memTree) {
			clear(tree.nodes)
		}, true},
		"a twentieth is left": {func(tree *memTree) { fill(tree, 20, 100) }, func(tree *memTree) {
			empty(tree)
			tree.file("workspace/f0", "x")
		}, false},
		"less than a twentieth is left": {func(tree *memTree) { fill(tree, 21, 100) }, func(tree *memTree) {
			empty(tree)
			tree.file("workspace/f0", "x")
		}, true},
		"there was little": {func(tree *memTree) { fill(tree, 19, 100) }, empty, false},
		"there was nothing": {func(tree *memTree) { empty(tree) }, func(tree *memTree) {
			clear(tree.nodes)
		}, false},
		"only the state goes": {func(tree *memTree) { fill(tree, 30, 100) }, func(tree *memTree) {
			tree.remove(".local")
		}, false},
		"all is in an archive": {func(tree *memTree) { fill(tree, 40, 100) }, func(tree *memTree) {
			empty(tree)
			tree.file("workspace/all.tar", strings.Repeat("x", 4000))
		}, false},
		"dependencies are removed": {func(tree *memTree) { fill(tree, 1000, 10) }, func(tree *memTree) {
			empty(tree)
			fill(tree, 20, 10)
		}, false},
		"another project takes its place": {func(tree *memTree) { fill(tree, 40, 100) }, func(tree *memTree) {
			empty(tree)
			tree.dir("other")
			for i := range 20 {
				tree.file(fmt.Sprintf("other/f%d", i), "")
			}
		}, false},
		"it is moved": {func(tree *memTree) { fill(tree, 40, 100) }, func(tree *memTree) {
			tree.rename("workspace", "elsewhere")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := openStore(t)
			tree := newMemTree()
			e := engineOn(t, d, tree)
			tc.before(tree)
			mustTake(t, e, ref, tree)
			tree.now += 10
			tc.after(tree)
			if s := mustTake(t, e, ref, tree); s.Collapsed != tc.want {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestALaterCollapseTakesThePlaceUnlessLittleCameBack(t *testing.T) {
	for name, tc := range map[string]struct {
		later    int // files before the second collapse, of which the first had 1000
		replaces bool
	}{
		"as much came back":      {1000, true},
		"a tenth came back":      {100, true},
		"next to nothing did so": {25, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := openStore(t)
			tree := newMemTree()
			e := engineOn(t, d, tree)
			fill(tree, 1000, 10)
			first := mustTake(t, e, ref, tree)
			empty(tree)
			mustTake(t, e, ref, tree)
			goOn(t, e, tree, 5)
			fill(tree, tc.later, 10)
			second := mustTake(t, e, ref, tree)
			want := tree.picture()
			empty(tree)
			if s := mustTake(t, e, ref, tree); !s.Collapsed || s.Before != second.ID {
				t.Errorf("the second collapse is %+v", s)
			}
			goOn(t, e, tree, 5)
			list := ids(t, e)
			kept, gone := first.ID, second.ID
			if tc.replaces {
				kept, gone = gone, kept
				wantRestored(t, e, ref, kept, want)
			}
			if len(list) != 4 || list[3] != kept || slices.Contains(list, gone) {
				t.Errorf("kept are %q; the first was before with %s, the second with %s", list, first.ID, second.ID)
			}
		})
	}
}

func TestACollapseJustAfterTheKeyWasChangedIsTold(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	fill(tree, 30, 100)
	good, want := mustTake(t, engineOn(t, d, tree), ref, tree), tree.picture()
	empty(tree)
	e := snapshot.New(d, ring{newSealer(t, "new"), newSealer(t, "key")}, small())
	e.SetClock(tree.clock)
	if s := mustTake(t, e, ref, tree); !s.Collapsed || s.Before != good.ID {
		t.Errorf("got %+v", s)
	}
	goOn(t, e, tree, 5)
	wantRestored(t, e, ref, good.ID, want)
}

// A damaged snapshot that stayed for ever would keep anything from being
// collected for ever.
func TestADamagedSnapshotFromBeforeACollapseGoes(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	e := engineOn(t, d, tree)
	fill(tree, 30, 100)
	good := mustTake(t, e, ref, tree)
	empty(tree)
	mustTake(t, e, ref, tree)
	goOn(t, e, tree, 5)
	if err := d.Delete(t.Context(), "snapshots/box/manifests/"+good.ID); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Collect(t.Context(), ref); !errors.Is(err, snapshot.ErrDamaged) || n != 0 {
		t.Errorf("%d were removed, %v", n, err)
	}
	goOn(t, e, tree, 1)
	if list := ids(t, e); len(list) != 3 || slices.Contains(list, good.ID) {
		t.Errorf("kept are %q", list)
	}
}

// A former version knows the fields of these types, and no others.
func TestAFormerVersionReadsThePointerAfterACollapse(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	e := engineOn(t, d, tree)
	fill(tree, 30, 100)
	good := mustTake(t, e, ref, tree)
	empty(tree)
	mustTake(t, e, ref, tree)
	var doc struct {
		Version int    `json:"version"`
		Sealed  []byte `json:"sealed"`
	}
	raw, _ := storetest.MustGet(t, d, "snapshots/box/current.json")
	if err := json.Unmarshal(raw, &doc); err != nil || doc.Version != 1 {
		t.Fatalf("version %d, %v", doc.Version, err)
	}
	key := newSealer(t, "key")
	place := []byte("agentpod snapshot 1\x00snapshots/box/current.json\x00" + ref.Incarnation)
	plain, err := key.Open(doc.Sealed, place)
	if err != nil {
		t.Fatal(err)
	}
	var pointer struct {
		Snapshots []map[string]any `json:"snapshots"`
	}
	if err := json.Unmarshal(plain, &pointer); err != nil || len(pointer.Snapshots) != 2 {
		t.Fatalf("%s, %v", plain, err)
	}
	newest, before := pointer.Snapshots[0], pointer.Snapshots[1]
	if _, there := newest["beforeCollapse"]; there || fmt.Sprint(before["beforeCollapse"]) != "map[bytes:3000 files:30]" {
		t.Errorf("the pointer has %s", plain)
	}
	// What it writes has the field no more: then the snapshot has no longer a
	// place of its own, and is whole until its turn comes.
	delete(before, "beforeCollapse")
	plain, err = json.Marshal(pointer)
	if err != nil {
		t.Fatal(err)
	}
	written, err := json.Marshal(map[string]any{"version": 1, "keyId": "key", "incarnation": ref.Incarnation, "sealed": key.Seal(plain, place)})
	if err != nil {
		t.Fatal(err)
	}
	storetest.MustPut(t, d, "snapshots/box/current.json", written, store.PutOptions{})
	if list := ids(t, e); len(list) != 2 || list[1] != good.ID {
		t.Errorf("listed are %q", list)
	}
	goOn(t, e, tree, 3)
	if list := ids(t, e); len(list) != 3 || slices.Contains(list, good.ID) {
		t.Errorf("kept are %q", list)
	}
}

func TestNoFailureOfTheStoreLosesTheSnapshotBeforeACollapse(t *testing.T) {
	scene := func(t *testing.T) (*store.Directory, *storetest.Faults, *memTree, string, map[string]seen) {
		t.Helper()
		d, _ := openStore(t)
		tree := newMemTree()
		fill(tree, 30, 100)
		good, want := mustTake(t, engineOn(t, d, tree), ref, tree), tree.picture()
		empty(tree)
		return d, storetest.NewFaults(d), tree, good.ID, want
	}
	_, dry, tree, _, _ := scene(t)
	mustTake(t, engineOn(t, dry, tree), ref, tree)
	for call := 1; call <= dry.Calls(); call++ {
		for _, fault := range storetest.EveryFault() {
			t.Run(fmt.Sprintf("call %d, %s", call, fault), func(t *testing.T) {
				d, faults, tree, good, want := scene(t)
				faults.Fail(call, fault)
				s, err := engineOn(t, faults, tree).Take(t.Context(), ref, tree)
				faults.Up()
				e := engineOn(t, d, tree)
				if told := err == nil && s.Collapsed; !told {
					// It is told by the next one, unless it was committed: then the
					// snapshot is kept all the same.
					tree.now += 10
					tree.file("workspace/new", "x")
					mustTake(t, e, ref, tree)
				}
				goOn(t, e, tree, 5)
				wantRestored(t, e, ref, good, want)
			})
		}
	}
}
