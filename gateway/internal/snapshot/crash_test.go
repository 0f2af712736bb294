package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// scene is a sandbox with snapshots, of which some content is no longer used,
// and with a tree that was changed since.
type scene struct {
	store  *store.Directory
	faults *storetest.Faults
	tree   *memTree
	before map[string]seen // the newest snapshot's
}

func newScene(t *testing.T) *scene {
	d, _ := openStore(t)
	s := &scene{store: d, faults: storetest.NewFaults(d), tree: newMemTree()}
	e := engineOn(t, d, s.tree)
	sample(s.tree)
	for i := range 4 {
		s.tree.now += 10
		s.tree.make("src/larger", snapshot.File, 0o644, "", noise(byte(10+i), 9000))
		mustTake(t, e, ref, s.tree)
	}
	s.before = s.tree.picture()
	s.tree.now += 10
	s.tree.make("src/larger", snapshot.File, 0o644, "", noise(20, 9000))
	s.tree.file("src/f1", "after")
	s.tree.remove("src/f2")
	return s
}

// engine is a new process on the store with the faults.
func (s *scene) engine(t *testing.T) *snapshot.Engine { return engineOn(t, s.faults, s.tree) }

// settled checks that after a failure everything is there, and that a
// collection leaves nothing that is not used.
func (s *scene) settled(t *testing.T, wants ...map[string]seen) {
	t.Helper()
	e := engineOn(t, s.store, s.tree)
	got := newMemTree()
	_, err := e.Restore(context.Background(), ref, "", nil, got)
	whole := errors.Is(err, snapshot.ErrNoSnapshot) && slices.ContainsFunc(wants, func(w map[string]seen) bool { return w == nil })
	for _, want := range wants {
		whole = whole || err == nil && want != nil && cmp.Equal(want, got.picture())
	}
	if !whole {
		t.Fatalf("afterwards neither the one nor the other is there: %v", err)
	}
	list, err := e.List(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if _, err := e.Restore(context.Background(), ref, one.ID, nil, newMemTree()); err != nil {
			t.Fatalf("snapshot %s: %v", one.ID, err)
		}
	}
	if _, err := e.Collect(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	faults := storetest.NewFaults(s.store) // tells what is read
	reader := engineOn(t, faults, s.tree)
	for _, one := range list {
		if _, err := reader.Restore(context.Background(), ref, one.ID, nil, newMemTree()); err != nil {
			t.Fatalf("after a collection, snapshot %s: %v", one.ID, err)
		}
	}
	for _, call := range faults.Log() {
		used[strings.TrimPrefix(call, "Get ")] = true
	}
	for _, key := range storetest.MustList(t, s.store, "snapshots/box/") {
		if !used[key] && key != "snapshots/box/current.json" {
			t.Errorf("%s is left, and nothing uses it", key)
		}
	}
}

func TestNoFailureOfTheStoreLosesAnything(t *testing.T) {
	points := 0
	for name, do := range map[string]struct {
		call  func(*scene, *snapshot.Engine) error
		after func(*scene) []map[string]seen
	}{
		"take": {
			func(s *scene, e *snapshot.Engine) error {
				_, err := e.Take(context.Background(), ref, s.tree)
				return err
			},
			func(s *scene) []map[string]seen { return []map[string]seen{s.before, s.tree.picture()} },
		},
		"collect": {
			func(_ *scene, e *snapshot.Engine) error {
				_, err := e.Collect(context.Background(), ref)
				return err
			},
			func(s *scene) []map[string]seen { return []map[string]seen{s.before} },
		},
		"restore": {
			func(_ *scene, e *snapshot.Engine) error {
				_, err := e.Restore(context.Background(), ref, "", nil, newMemTree())
				return err
			},
			func(s *scene) []map[string]seen { return []map[string]seen{s.before} },
		},
		"delete": {
			func(_ *scene, e *snapshot.Engine) error { return e.Delete(context.Background(), ref) },
			func(s *scene) []map[string]seen { return []map[string]seen{s.before, nil} },
		},
	} {
		dry := newScene(t)
		if err := do.call(dry, dry.engine(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for call := 1; call <= dry.faults.Calls(); call++ {
			for _, fault := range storetest.EveryFault() {
				points++
				t.Run(fmt.Sprintf("%s, call %d, %s", name, call, fault), func(t *testing.T) {
					s := newScene(t)
					s.faults.Fail(call, fault)
					err := do.call(s, s.engine(t))
					s.faults.Up()
					if err != nil && fault == storetest.ReplyLost && s.faults.Log()[call-1] == "Put snapshots/box/current.json" {
						t.Errorf("the pointer was replaced, and the error is %v", err)
					}
					if name == "take" && err == nil {
						s.settled(t, s.tree.picture())
					} else {
						s.settled(t, do.after(s)...)
					}
					// And it can be done again.
					if err := do.call(s, s.engine(t)); err != nil && name != "restore" {
						t.Errorf("again: %v", err)
					}
					if name == "delete" {
						if left := storetest.MustList(t, s.store, "snapshots/"); len(left) != 0 {
							t.Errorf("a delete that succeeded left %q", left)
						}
					}
				})
			}
		}
	}
	t.Logf("%d points were tried", points)
}

func TestAFlippedByteInAnyObjectIsFoundAndNamed(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	older := mustTake(t, e, ref, tree)
	before := tree.picture()
	tree.now += 10
	for path := range before { // the newest shares nothing with the one before
		if n := tree.nodes[path]; n.Type == snapshot.File && n.Size > 0 {
			n.content = append([]byte("new"), n.content...)
			n.Size += 3
		}
	}
	newest := mustTake(t, e, ref, tree)
	objects, tried := storetest.MustList(t, d, "snapshots/"), 0
	for _, key := range objects {
		ofNewest := strings.Contains(key, newest.ID)
		raw, _ := storetest.MustGet(t, d, key)
		for _, at := range []int{0, len(raw) / 2, len(raw) - 1} {
			tried++
			flipped := slices.Clone(raw)
			flipped[at] ^= 1
			storetest.MustPut(t, d, key, flipped, store.PutOptions{})
			got := newMemTree()
			_, err := e.Restore(t.Context(), ref, "", nil, got)
			var damage *snapshot.DamagedError
			switch {
			case ofNewest:
				if !errors.As(err, &damage) || damage.Key != key || !errors.Is(err, snapshot.ErrDamaged) {
					t.Errorf("%s at %d: %v", key, at, err)
				}
				whole := tree.picture()
				for path, is := range got.picture() {
					if whole[path] != is {
						t.Errorf("%s at %d: %q was restored wrongly", key, at, path)
					}
				}
				wantRestored(t, e, ref, older.ID, before)
			case strings.HasSuffix(key, ".json"):
				if at == len(raw)/2 && !errors.Is(err, snapshot.ErrDamaged) {
					t.Errorf("%s: %v", key, err)
				}
				if _, err := e.Take(t.Context(), ref, tree); err == nil {
					t.Errorf("%s: a snapshot was taken over it", key)
				}
			default:
				if err != nil {
					t.Errorf("%s is not the newest's: %v", key, err)
				}
			}
			storetest.MustPut(t, d, key, raw, store.PutOptions{})
		}
		// One that is missing is damage too, and one that is cut.
		if ofNewest {
			for _, size := range []int{0, len(raw) / 2} {
				storetest.MustPut(t, d, key, raw[:size], store.PutOptions{})
				if _, err := e.Restore(t.Context(), ref, "", nil, newMemTree()); !errors.Is(err, snapshot.ErrDamaged) {
					t.Errorf("%s, cut: %v", key, err)
				}
			}
			if err := d.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Restore(t.Context(), ref, "", nil, newMemTree()); !errors.Is(err, snapshot.ErrDamaged) {
				t.Errorf("%s, gone: %v", key, err)
			}
			storetest.MustPut(t, d, key, raw, store.PutOptions{})
		}
	}
	t.Logf("%d objects, %d flips", len(objects), tried)
	// A damaged manifest does not stop the next snapshot.
	storetest.MustPut(t, d, "snapshots/box/manifests/"+newest.ID, []byte("x"), store.PutOptions{})
	mustTake(t, e, ref, tree)
	wantRestored(t, e, ref, "", tree.picture())
}

func TestTheNextSnapshotDoesNotRelyOnADamagedPack(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	mustTake(t, e, ref, tree)
	for _, key := range storetest.MustList(t, d, "snapshots/box/packs/") {
		raw, _ := storetest.MustGet(t, d, key)
		raw[len(raw)/2] ^= 1
		storetest.MustPut(t, d, key, raw, store.PutOptions{})
		// Each restore stops at the first that it finds.
		if _, err := e.Restore(t.Context(), ref, "", nil, newMemTree()); !errors.Is(err, snapshot.ErrDamaged) {
			t.Fatalf("%s: %v", key, err)
		}
		tree.now += 10
		mustTake(t, e, ref, tree) // of the same files: they are all still there
		wantRestored(t, e, ref, "", tree.picture())
	}
}

func TestObjectsOfOthersAreRefused(t *testing.T) {
	refs := []snapshot.Ref{{ID: "a", Incarnation: "1"}, {ID: "b", Incarnation: "1"}, {ID: "a", Incarnation: "2"}}
	type stored map[string][]byte
	all := make([]stored, len(refs))
	ids := make([]string, len(refs))
	for i, r := range refs { // each in a store of its own, as one bucket at different times
		d, _ := openStore(t)
		tree := newMemTree()
		sample(tree)
		ids[i] = mustTake(t, engineOn(t, d, tree), r, tree).ID
		all[i] = stored{}
		for _, key := range storetest.MustList(t, d, "") {
			raw, _ := storetest.MustGet(t, d, key)
			all[i][strings.NewReplacer("snapshots/"+r.ID, "ID", ids[i], "SNAPSHOT").Replace(key)] = raw
		}
	}
	for other := 1; other < len(refs); other++ {
		for _, swapped := range slices.Sorted(maps.Keys(all[0])) {
			d, _ := openStore(t)
			for key, raw := range all[0] {
				if key == swapped {
					raw = all[other][key]
				}
				key = strings.NewReplacer("ID", "snapshots/a", "SNAPSHOT", ids[0]).Replace(key)
				storetest.MustPut(t, d, key, raw, store.PutOptions{})
			}
			_, err := engineOn(t, d, nil).Restore(t.Context(), refs[0], "", nil, newMemTree())
			if !errors.Is(err, snapshot.ErrDamaged) && !errors.Is(err, snapshot.ErrSuperseded) {
				t.Errorf("%s of %+v: %v", swapped, refs[other], err)
			}
		}
	}
}

func TestAPointerWithAnotherReadableIncarnationIsRefused(t *testing.T) {
	d, _ := openStore(t)
	e := engineOn(t, d, nil)
	if err := e.Begin(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	raw, _ := storetest.MustGet(t, d, "snapshots/box/current.json")
	edited := strings.Replace(string(raw), `"incarnation":"first"`, `"incarnation":"other"`, 1)
	storetest.MustPut(t, d, "snapshots/box/current.json", []byte(edited), store.PutOptions{})
	for incarnation, want := range map[string]error{"first": snapshot.ErrSuperseded, "other": snapshot.ErrDamaged} {
		if _, err := e.List(t.Context(), snapshot.Ref{ID: "box", Incarnation: incarnation}); !errors.Is(err, want) {
			t.Errorf("for %q: %v", incarnation, err)
		}
	}
}

func TestALateSnapshotOfAnOldIncarnationNeverLands(t *testing.T) {
	next := snapshot.Ref{ID: ref.ID, Incarnation: "second"}
	for _, had := range []bool{false, true} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprintf("had a snapshot: %v, successor begun: %v", had, begun), func(t *testing.T) {
				d, _ := openStore(t)
				old, tree := newMemTree(), newMemTree()
				sample(old)
				tree.file("mine", "mine")
				late, here := engineOn(t, d, old), engineOn(t, d, tree) // two processes
				if had {
					mustTake(t, late, ref, old)
					old.now += 10
					old.file("src/f1", "late")
				}
				done := false
				old.stop = func(string) error { // while the old one is read
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
				_, err := late.Take(t.Context(), ref, old)
				if !errors.Is(err, snapshot.ErrConflict) {
					t.Errorf("the late one: %v", err)
				}
				mustTake(t, here, next, tree)
				if err := late.Delete(t.Context(), ref); !errors.Is(err, snapshot.ErrSuperseded) {
					t.Errorf("a late delete: %v", err)
				}
				if _, err := late.Take(t.Context(), ref, old); !errors.Is(err, snapshot.ErrSuperseded) {
					t.Errorf("a later one: %v", err)
				}
				if n, err := here.Collect(t.Context(), next); n == 0 || err != nil {
					t.Errorf("what the late one left: %d, %v", n, err)
				}
				wantRestored(t, here, next, "", tree.picture())
			})
		}
	}
}

func TestACollectionOfAnotherProcessTakesNothingFromASnapshotInProgress(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	mine, others := engineOn(t, d, tree), engineOn(t, d, tree)
	mustTake(t, mine, ref, tree)
	tree.now += 10
	// The last file that is read comes after packs of this snapshot were stored.
	tree.make("src/large", snapshot.File, 0o644, "", noise(50, 40_000))
	tree.file("src/last", "last")
	tree.stop = func(path string) error {
		if path != "src/last" {
			return nil
		}
		_, err := others.Collect(t.Context(), ref)
		return err
	}
	_, err := mine.Take(t.Context(), ref, tree)
	tree.stop = nil
	if err != nil && !errors.Is(err, snapshot.ErrConflict) {
		t.Fatal(err)
	}
	if err != nil {
		mustTake(t, mine, ref, tree)
	}
	wantRestored(t, mine, ref, "", tree.picture())
}

func TestADeleteEndsASnapshotInProgress(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	deleted := make(chan error, 1)
	begun := false
	ended := make(chan struct{})
	_, err := e.Take(t.Context(), ref, contextTree{tree, func(ctx context.Context) error {
		if !begun {
			begun = true
			go func() { defer close(ended); deleted <- e.Delete(t.Context(), ref) }()
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	if !errors.Is(err, snapshot.ErrSuperseded) {
		t.Errorf("the snapshot: %v", err)
	}
	<-ended
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if left := storetest.MustList(t, d, ""); len(left) != 0 {
		t.Errorf("%q is left", left)
	}
}

// contextTree calls stop in List.
type contextTree struct {
	*memTree
	stop func(context.Context) error
}

func (c contextTree) List(ctx context.Context, _ func(snapshot.Entry) error) error {
	return c.stop(ctx)
}
