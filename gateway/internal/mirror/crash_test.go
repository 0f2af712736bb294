package mirror_test

import (
	"context"
	"fmt"
	"maps"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

const (
	foreignPath = "foreign/object"
	// sharedPath is of a foreign object too, and the workspace gets a file there.
	sharedPath = "src/shared"
)

// scene is a sandbox with a mirror, in which there is a foreign object too, and
// whose workspace was changed since in every way.
type scene struct {
	store  store.Store
	faults *storetest.Faults
	tree   *memTree
}

func newScene(t *testing.T, s store.Store) *scene {
	tree := newMemTree()
	for i := range 6 {
		tree.file(fmt.Sprintf("src/f%d", i), fmt.Sprintf("before %d", i))
	}
	tree.file("file", "becomes a folder")
	tree.file("folder/a", "becomes a file")
	tree.now += 10
	mustSync(t, mirrorOn(t, s, tree), tree)
	storetest.MustPut(t, s, "workspaces/box/"+foreignPath, []byte("theirs"), store.PutOptions{})
	storetest.MustPut(t, s, "workspaces/box/"+sharedPath, []byte("theirs"), store.PutOptions{})
	tree.now += 10
	tree.file("src/large", string(storetest.Content(9, 1<<20+1)))
	tree.file("src/f1", "changed")
	tree.file("src/new", "new")
	tree.file(sharedPath, "mine now")
	tree.remove("src/f2")
	tree.rename("src/f3", "src/renamed")
	tree.remove("file")
	tree.file("file/a", "in a folder")
	tree.remove("folder")
	tree.file("folder", "a file")
	return &scene{s, storetest.NewFaults(s), tree}
}

// mirrored is what is to be in the mirror in the end.
func (s *scene) mirrored() map[string]string {
	all := maps.Clone(s.tree.files())
	all[foreignPath] = "theirs"
	return all
}

// settled syncs without faults, as another process does.
func (s *scene) settled(t *testing.T) {
	t.Helper()
	s.tree.now += 10
	m := mirrorOn(t, s.store, s.tree)
	result := mustSync(t, m, s.tree)
	want := s.mirrored()
	if _, is := want[sharedPath]; !is && objects(t, s.store)[sharedPath] == "theirs" {
		want[sharedPath] = "theirs" // it never came so far that it was overwritten
	}
	wantObjects(t, s.store, want)
	if files := int64(len(s.tree.files())); result.Files != files {
		t.Errorf("the result is %+v, and there are %d files", result, files)
	}
	s.tree.reads = nil
	mustSync(t, m, s.tree)
	if len(s.tree.reads) != 0 {
		t.Errorf("an unchanged sync reads %q", s.tree.reads)
	}
}

func wipe(t *testing.T, s store.Store) {
	t.Helper()
	for _, prefix := range []string{"workspaces/", "mirrors/"} {
		if err := s.DeletePrefix(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoFailureOfTheStoreLeavesTheMirrorWrong(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		points := 0
		for name, then := range map[string]func(*scene){
			"the same workspace": func(*scene) {},
			"everything removed": func(s *scene) { s.tree.nodes = map[string]*node{} },
			"everything is again": func(s *scene) { // as before the sync that failed
				s.tree.remove("src/new")
				s.tree.remove("src/large")
				s.tree.remove(sharedPath)
				s.tree.rename("src/renamed", "src/f3")
				s.tree.file("src/f1", "before 1")
			},
		} {
			dry := newScene(t, s)
			mustSync(t, mirrorOn(t, dry.faults, dry.tree), dry.tree)
			calls := dry.faults.Calls()
			for call := 1; call <= calls; call++ {
				for _, fault := range storetest.EveryFault() {
					points++
					wipe(t, s)
					at := newScene(t, s)
					at.faults.Fail(call, fault)
					_, err := mirrorOn(t, at.faults, at.tree).Sync(context.Background(), ref, at.tree)
					if fault == storetest.Before && err == nil {
						// A failed write of the index is looked into, and no other call may fail.
						t.Errorf("%s, call %d, %s: no error", name, call, fault)
					}
					then(at)
					at.settled(t)
					if t.Failed() {
						t.Fatalf("%s, call %d, %s: %v", name, call, fault, err)
					}
				}
			}
			wipe(t, s)
		}
		t.Logf("%d points of failure", points)
	})
}

func TestNoFailureOfTheStoreLeavesAnImportWrong(t *testing.T) {
	s := openDirectory(t)
	paths := []string{"a", "b/c", "b/d/e", "f"}
	begin := func() *storetest.Faults {
		wipe(t, s)
		for _, path := range paths {
			asWorker(t, s, path, "theirs "+path)
		}
		asWorker(t, s, "large", string(storetest.Content(8, 2<<20)))
		return storetest.NewFaults(s)
	}
	faults := begin()
	mustImport(t, mirrorOn(t, faults, nil), newMemTree())
	points := 0
	for call := 1; call <= faults.Calls(); call++ {
		for _, fault := range storetest.EveryFault() {
			points++
			broken := begin()
			before := objects(t, s)
			broken.Fail(call, fault)
			_, err := mirrorOn(t, broken, nil).Import(t.Context(), ref, newMemTree())
			tree := newMemTree()
			m := mirrorOn(t, s, tree)
			if n := mustImport(t, m, tree); n != 5 {
				t.Errorf("call %d, %s (%v): %d files", call, fault, err, n)
			}
			wantObjects(t, s, before)
			if result := mustSync(t, m, tree); result.Sent != 0 || result.Deleted != 0 || result.Files != 5 {
				t.Errorf("call %d, %s (%v): %+v", call, fault, err, result)
			}
			tree.nodes = map[string]*node{}
			if result := mustSync(t, m, tree); result.Deleted != 5 {
				t.Errorf("call %d, %s (%v): then %+v", call, fault, err, result)
			}
		}
	}
	t.Logf("%d points of failure", points)
}

func TestNoFailureOfTheStoreLeavesADeleteOrABeginHalfDone(t *testing.T) {
	s := openDirectory(t)
	next := snapshot.Ref{ID: ref.ID, Incarnation: "second"}
	points := 0
	for name, do := range map[string]func(*mirror.Mirror) error{
		"delete": func(m *mirror.Mirror) error { return m.Delete(context.Background(), ref) },
		"begin":  func(m *mirror.Mirror) error { return m.Begin(context.Background(), next) },
	} {
		wipe(t, s)
		dry := newScene(t, s)
		if err := do(mirrorOn(t, dry.faults, nil)); err != nil {
			t.Fatal(err)
		}
		for call := 1; call <= dry.faults.Calls(); call++ {
			for _, fault := range storetest.EveryFault() {
				points++
				wipe(t, s)
				at := newScene(t, s)
				at.faults.Fail(call, fault)
				_ = do(mirrorOn(t, at.faults, nil))
				at.faults.Up()
				if err := do(mirrorOn(t, at.faults, nil)); err != nil {
					t.Errorf("%s, call %d, %s: again: %v", name, call, fault, err)
				}
				if left := storetest.MustList(t, s, ""); name == "delete" && len(left) != 0 {
					t.Errorf("%s, call %d, %s: %q are left", name, call, fault, left)
				}
				if _, err := mirrorOn(t, s, at.tree).Sync(t.Context(), next, at.tree); err != nil {
					t.Errorf("%s, call %d, %s: the next incarnation: %v", name, call, fault, err)
				}
			}
		}
	}
	t.Logf("%d points of failure", points)
}
