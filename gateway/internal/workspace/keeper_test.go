package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

// wipe empties a box's home but for the workspace's folder.
func (b *box) wipe(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(b.home)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(b.home, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(b.home, workspaceFolder)
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, folder)
}

// history is a sandbox with two snapshots, the second of which uses packs of the
// first.
type history struct {
	store        store.Store
	keeper       *Keeper
	ref          lifecycle.Ref
	older, newer lifecycle.Snapshot
	was, is      map[string]seen // what they hold
	target       *box            // to restore into
}

func newHistory(t *testing.T, s store.Store, ref lifecycle.Ref) *history {
	t.Helper()
	source := newBox(t)
	h := &history{store: s, keeper: newKeeper(t, s, smallPacks()), ref: ref, target: newBox(t)}
	mustBegin(t, h.keeper, ref)
	for i := range 10 {
		source.write(t, fmt.Sprintf("workspace/src/%d", i), fmt.Sprintf("the file %d of %s", i, ref.SandboxID))
	}
	source.write(t, "workspace/large", string(storetest.Content(7, 150_000)))
	source.write(t, ".config/opencode/state", "the state of "+ref.SandboxID)
	h.older = mustSnapshot(t, h.keeper, ref, source)
	h.was = picture(t, source.home)
	source.write(t, "workspace/later", "what came later")
	h.newer = mustSnapshot(t, h.keeper, ref, source)
	h.is = picture(t, source.home)
	return h
}

// try restores a snapshot. If that fails, nothing that is not in want may be there.
func (h *history) try(t *testing.T, id string, want map[string]seen) error {
	t.Helper()
	h.target.wipe(t)
	_, err := restore(t, h.keeper, h.ref, id, h.target)
	got := picture(t, h.target.home)
	if err == nil {
		wantSame(t, want, got)
		return nil
	}
	for path, s := range got {
		if s.Kind == "file" && want[path].Hash != s.Hash {
			t.Errorf("a restore that failed has left %q with other content", path)
		}
	}
	return err
}

// flipped does something while one byte of an object is another.
func flipped(t *testing.T, s store.Store, key string, at int, do func()) {
	t.Helper()
	raw := get(t, s, key)
	changed := slices.Clone(raw)
	changed[at] ^= 1
	put(t, s, key, changed)
	do()
	put(t, s, key, raw)
}

// wantDamaged checks that an error is snapshot_damaged, names the object, and
// offers a snapshot, or none.
func wantDamaged(t *testing.T, err error, key, offer string) {
	t.Helper()
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || e.Code != sandbox.CodeSnapshotDamaged {
		t.Errorf("the error is %v", err)
		return
	}
	if !strings.Contains(e.Message, key) {
		t.Errorf("it does not name the object: %s", e.Message)
	}
	call := `{"snapshot":"` + offer + `"}`
	if offer != "" && !strings.Contains(e.Message, "POST /sandbox/box/wake "+call) || offer == "" && strings.Contains(e.Message, "POST") {
		t.Errorf("what it offers: %s", e.Message)
	}
}

func TestAFlippedByteInAnyObjectIsFoundAndTheSnapshotBeforeIsOffered(t *testing.T) {
	h := newHistory(t, directory(t, t.TempDir()), refTo("box", "i1"))
	points := 0
	for _, key := range storetest.MustList(t, h.store, "snapshots/box/") {
		size := len(get(t, h.store, key))
		places := []int{0, size / 2, size - 1}
		if key == "snapshots/box/current.json" {
			places = []int{size / 2} // the rest of it has a test of its own
		}
		for _, at := range places {
			points++
			flipped(t, h.store, key, at, func() {
				newest, older := h.try(t, "", h.is), h.try(t, h.older.ID, h.was)
				switch {
				case strings.Contains(key, "manifests/"+h.older.ID):
					if newest != nil {
						t.Errorf("%s is of the older one alone, and the newest fails: %v", key, newest)
					}
					wantDamaged(t, older, key, "")
				case strings.Contains(key, h.newer.ID):
					wantDamaged(t, newest, key, h.older.ID)
					if older != nil {
						t.Errorf("%s is of the newest one alone, and the older fails: %v", key, older)
					}
				case strings.Contains(key, h.older.ID): // a pack of both
					wantDamaged(t, newest, key, h.older.ID)
					wantDamaged(t, older, key, "")
				default:
					wantDamaged(t, newest, key, "")
					wantDamaged(t, older, key, "")
				}
			})
			// By its id the newest is offered the same.
			flipped(t, h.store, "snapshots/box/manifests/"+h.newer.ID, 0, func() {
				wantDamaged(t, h.try(t, h.newer.ID, h.is), h.newer.ID, h.older.ID)
			})
		}
	}
	if err := h.try(t, "", h.is); err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes were flipped", points)
}

func TestNoFlippedByteOfThePointerIsBelieved(t *testing.T) {
	const key = "snapshots/box/current.json"
	h := newHistory(t, directory(t, t.TempDir()), refTo("box", "i1"))
	want := []lifecycle.Snapshot{h.newer, h.older}
	outcomes := map[string]int{}
	for at := range get(t, h.store, key) {
		flipped(t, h.store, key, at, func() {
			got, err := h.keeper.Snapshots(t.Context(), h.ref)
			switch {
			case err == nil: // it was of what is only for people to read
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("with byte %d flipped: %s", at, diff)
				}
				outcomes["harmless"]++
			case sandbox.HasCode(err, sandbox.CodeSnapshotDamaged):
				wantDamaged(t, err, key, "")
				outcomes["damaged"]++
			case sandbox.HasCode(err, sandbox.CodeSandboxDeleted): // whose it is
				outcomes["another incarnation's"]++
			default:
				t.Errorf("with byte %d flipped: %v", at, err)
			}
		})
	}
	t.Logf("%v", outcomes)
	if outcomes["damaged"] < 300 || outcomes["another incarnation's"] > len("incarnation")+len("i1") {
		t.Error("that is not what was meant")
	}
}

func TestAMissingObjectIsDamageToo(t *testing.T) {
	h := newHistory(t, directory(t, t.TempDir()), refTo("box", "i1"))
	for _, key := range storetest.MustList(t, h.store, "snapshots/box/packs/"+h.newer.ID+"/") {
		if err := h.store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		wantDamaged(t, h.try(t, "", h.is), key, h.older.ID)
	}
	if err := h.try(t, h.older.ID, h.was); err != nil {
		t.Error(err)
	}
}

func TestAnObjectOfAnotherSandboxIsRefused(t *testing.T) {
	s := directory(t, t.TempDir())
	// The incarnations are the same, so that it is the place that tells.
	box, other := newHistory(t, s, refTo("box", "i1")), newHistory(t, s, refTo("other", "i1"))
	keys := func(h *history) map[string]string {
		below := "snapshots/" + h.ref.SandboxID + "/"
		return map[string]string{
			"a pointer":  below + "current.json",
			"a manifest": below + "manifests/" + h.newer.ID,
			"a pack":     storetest.MustList(t, s, below+"packs/"+h.newer.ID+"/")[0],
		}
	}
	to := keys(box)
	for name, from := range keys(other) {
		t.Run(name, func(t *testing.T) {
			raw := get(t, s, to[name])
			put(t, s, to[name], get(t, s, from))
			offer := box.older.ID
			if name == "a pointer" {
				offer = ""
			}
			wantDamaged(t, box.try(t, "", box.is), to[name], offer)
			put(t, s, to[name], raw)
			if err := box.try(t, "", box.is); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("an older pack in the place of a newer one", func(t *testing.T) {
		raw := get(t, s, to["a pack"])
		put(t, s, to["a pack"], get(t, s, storetest.MustList(t, s, "snapshots/box/packs/"+box.older.ID+"/")[0]))
		wantDamaged(t, box.try(t, "", box.is), to["a pack"], box.older.ID)
		put(t, s, to["a pack"], raw)
	})
	t.Run("all of them together", func(t *testing.T) {
		for _, key := range storetest.MustList(t, s, "snapshots/other/") {
			put(t, s, strings.Replace(key, "/other/", "/box/", 1), get(t, s, key))
		}
		wantDamaged(t, box.try(t, "", box.is), to["a pointer"], "")
	})
	t.Run("a record", func(t *testing.T) {
		records := NewRecords(s, ring(t, 1))
		for _, id := range []string{"box", "other"} {
			mustCreate(t, records, record(id))
		}
		put(t, s, "sandboxes/box/record.json", get(t, s, "sandboxes/other/record.json"))
		listing := mustList(t, records)
		if len(listing.Stored) != 1 || listing.Stored[0].Record.SandboxID != "other" || !errors.Is(listing.Unreadable["box"], seal.ErrSeal) {
			t.Errorf("the listing is %+v", listing)
		}
	})
	if err := other.try(t, "", other.is); err != nil {
		t.Error(err)
	}
}

func TestAnIndexOfAnotherSandboxDeletesNothing(t *testing.T) {
	s := directory(t, t.TempDir())
	k, mine, others := newKeeper(t, s, snapshot.Settings{}), newBox(t), newBox(t)
	ref, other := refTo("box", "i1"), refTo("other", "i1")
	mustBegin(t, k, ref)
	mustBegin(t, k, other)
	mine.write(t, "workspace/mine", "mine")
	others.write(t, "workspace/theirs", "theirs")
	put(t, s, "workspaces/box/theirs", []byte("somebody else wrote it for box"))
	for _, of := range []struct {
		ref lifecycle.Ref
		box *box
	}{{ref, mine}, {other, others}} {
		if _, err := k.Sync(t.Context(), of.ref, of.box.Client); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "mirrors/box/index", get(t, s, "mirrors/other/index"))
	result, err := k.Sync(t.Context(), ref, mine.Client)
	if err != nil || result.Files != 1 {
		t.Errorf("%+v, %v", result, err)
	}
	for key, want := range map[string]string{"box/theirs": "somebody else wrote it for box", "box/mine": "mine", "other/theirs": "theirs"} {
		if got := get(t, s, "workspaces/"+key); string(got) != want {
			t.Errorf("%s is %q", key, got)
		}
	}
}

// held is a box behind a proxy that stops at a route until it is told to go on.
type held struct {
	*guest.Client
	reached chan struct{}
	release func()
}

func hold(t *testing.T, b *box, route string) *held {
	t.Helper()
	address, err := url.Parse(b.address)
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	h := &held{reached: make(chan struct{}, 10), release: sync.OnceFunc(func() { close(released) })}
	transport := &http.Transport{}
	through := &httputil.ReverseProxy{
		Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(address) }, FlushInterval: -1,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // a delete breaks requests off
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == route {
			h.reached <- struct{}{}
			<-released
		}
		through.ServeHTTP(w, r)
	}))
	client := &http.Transport{}
	t.Cleanup(func() {
		h.release()
		client.CloseIdleConnections()
		proxy.Close()
		transport.CloseIdleConnections()
	})
	h.Client = guest.NewClient(client, proxy.URL, boxToken)
	return h
}

func TestASnapshotOfAnOldIncarnationNeverLandsInANewOne(t *testing.T) {
	for _, route := range []string{guest.RouteTree, guest.RouteTreeRead} {
		for name, between := range map[string]func(t *testing.T, k *Keeper) error{
			"deleted and made anew": func(t *testing.T, k *Keeper) error {
				return errors.Join(k.Delete(t.Context(), refTo("box", "i1")), k.Begin(t.Context(), refTo("box", "i2")))
			},
			"made anew": func(t *testing.T, k *Keeper) error { return k.Begin(t.Context(), refTo("box", "i2")) },
			"deleted whatever it was, and made anew": func(t *testing.T, k *Keeper) error {
				return errors.Join(k.Delete(t.Context(), refTo("box", "")), k.Begin(t.Context(), refTo("box", "i2")))
			},
		} {
			t.Run(name+" during "+route, func(t *testing.T) {
				s := directory(t, t.TempDir())
				// The two are as two processes: the one does not know of the other.
				first, second := newKeeper(t, s, snapshot.Settings{}), newKeeper(t, s, snapshot.Settings{})
				old, fresh := newBox(t), newBox(t)
				mustBegin(t, first, refTo("box", "i1"))
				old.write(t, "workspace/old", "old")
				mustSnapshot(t, first, refTo("box", "i1"), old)
				old.write(t, "workspace/more", "more that is old")
				late := hold(t, old, route)
				done := make(chan error, 1)
				go func() {
					_, err := first.Snapshot(t.Context(), refTo("box", "i1"), late.Client)
					done <- err
				}()
				<-late.reached
				if err := between(t, second); err != nil {
					t.Fatal(err)
				}
				fresh.write(t, "workspace/new", "new")
				mustSnapshot(t, second, refTo("box", "i2"), fresh)
				late.release()
				if err := <-done; !sandbox.HasCode(err, sandbox.CodeSandboxDeleted) && !sandbox.HasCode(err, sandbox.CodeConflict) {
					t.Errorf("the late one: %v", err)
				}
				if _, err := first.Snapshot(t.Context(), refTo("box", "i1"), old.Client); !sandbox.HasCode(err, sandbox.CodeSandboxDeleted) {
					t.Errorf("one more of the old incarnation: %v", err)
				}
				if _, err := first.Restore(t.Context(), refTo("box", "i1"), "", lifecycle.PartState, old.Client, nil); !sandbox.HasCode(err, sandbox.CodeSandboxDeleted) {
					t.Errorf("a restore of the old incarnation: %v", err)
				}
				if list, err := second.Snapshots(t.Context(), refTo("box", "i2")); err != nil || len(list) != 1 {
					t.Errorf("the new incarnation has %v, %v", list, err)
				}
				wantRestored(t, second, refTo("box", "i2"), "", picture(t, fresh.home))

				// The next snapshot leaves nothing of the old one's.
				fresh.write(t, "workspace/newer", "newer")
				mustSnapshot(t, second, refTo("box", "i2"), fresh)
				list, err := second.Snapshots(t.Context(), refTo("box", "i2"))
				if err != nil || len(list) != 2 {
					t.Fatalf("the new incarnation has %v, %v", list, err)
				}
				for _, key := range storetest.MustList(t, s, "snapshots/box/") {
					if !strings.Contains(key, list[0].ID) && !strings.Contains(key, list[1].ID) && key != "snapshots/box/current.json" {
						t.Errorf("%s is left", key)
					}
				}
			})
		}
	}
}

func TestADeleteEndsTheSnapshotUnderWayAndNothingComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		ref  lifecycle.Ref
		same bool // process
	}{
		"of the incarnation":                      {refTo("box", "i1"), true},
		"of whatever it is":                       {refTo("box", ""), true},
		"of the incarnation, by another process":  {refTo("box", "i1"), false},
		"of whatever has it, by another process ": {refTo("box", ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := directory(t, t.TempDir())
			k, b := newKeeper(t, s, snapshot.Settings{}), newBox(t)
			deleter := k
			if !c.same {
				deleter = newKeeper(t, s, snapshot.Settings{})
			}
			mustBegin(t, k, refTo("box", "i1"))
			b.write(t, "workspace/file", "content")
			late := hold(t, b, guest.RouteTreeRead)
			done := make(chan error, 1)
			go func() {
				_, err := k.Snapshot(t.Context(), refTo("box", "i1"), late.Client)
				done <- err
			}()
			<-late.reached
			if err := deleter.Delete(t.Context(), c.ref); err != nil {
				t.Error(err)
			}
			want := sandbox.CodeSandboxDeleted
			if !c.same {
				late.release()
				want = sandbox.CodeConflict
			}
			if err := <-done; !sandbox.HasCode(err, want) {
				t.Errorf("the snapshot: %v", err)
			}
			if _, err := s.Head(t.Context(), "snapshots/box/current.json"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the pointer is there again: %v", err)
			}
		})
	}
}

func TestADeleteWithoutAnIncarnationRemovesWhateverHasTheID(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, s store.Store){
		"whole":                         func(*testing.T, store.Store) {},
		"with a pointer that is broken": func(t *testing.T, s store.Store) { put(t, s, "snapshots/box/current.json", []byte("{")) },
		"with an index that is broken":  func(t *testing.T, s store.Store) { put(t, s, "mirrors/box/index", []byte("{")) },
		"without pointer and index": func(t *testing.T, s store.Store) {
			for _, key := range []string{"snapshots/box/current.json", "mirrors/box/index"} {
				if err := s.Delete(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := directory(t, t.TempDir())
			k, b := newKeeper(t, s, snapshot.Settings{}), newBox(t)
			b.write(t, "workspace/file", "content")
			for _, id := range []string{"box", "box-2"} {
				mustBegin(t, k, refTo(id, "i1"))
				mustSnapshot(t, k, refTo(id, "i1"), b)
				if _, err := k.Sync(t.Context(), refTo(id, "i1"), b.Client); err != nil {
					t.Fatal(err)
				}
			}
			spoil(t, s)
			left := without(objects(t, s, ""), "box")
			if err := k.Delete(t.Context(), refTo("box", "i2")); err != nil {
				t.Errorf("of another incarnation: %v", err)
			}
			if name == "whole" && len(objects(t, s, "")) == len(left) {
				t.Error("the delete of another incarnation removed it")
			}
			if err := k.Delete(t.Context(), refTo("box", "")); err != nil {
				t.Error(err)
			}
			wantObjects(t, s, "", left)
			if err := k.Delete(t.Context(), refTo("box", "")); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestAnUndoLeavesTheMirrorAndOwnsNothingOfIt(t *testing.T) {
	s := directory(t, t.TempDir())
	k, b, ref := newKeeper(t, s, snapshot.Settings{}), newBox(t), refTo("box", "i1")
	put(t, s, "workspaces/box/theirs", []byte("written before"))
	mustBegin(t, k, ref)
	if n, err := k.Import(t.Context(), ref, b.Client); err != nil || n != 1 {
		t.Fatalf("%d files, %v", n, err)
	}
	mustSnapshot(t, k, ref, b)
	if err := k.Undo(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if got := storetest.MustList(t, s, ""); !slices.Equal(got, []string{"workspaces/box/theirs"}) {
		t.Errorf("left is %q", got)
	}
	// The next sandbox does not delete what is not its own.
	next, empty := refTo("box", "i2"), newBox(t)
	mustBegin(t, k, next)
	if _, err := k.Sync(t.Context(), next, empty.Client); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "workspaces/box/theirs"); string(got) != "written before" {
		t.Errorf("the mirror has %q", got)
	}
}

func TestNothingButADeleteGoesWithoutAnIncarnation(t *testing.T) {
	k, b, ref := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), newBox(t), refTo("box", "")
	for name, call := range map[string]func() error{
		"begin":    func() error { return k.Begin(t.Context(), ref) },
		"snapshot": func() error { _, err := k.Snapshot(t.Context(), ref, b.Client); return err },
		"list":     func() error { _, err := k.Snapshots(t.Context(), ref); return err },
		"restore": func() error {
			_, err := k.Restore(t.Context(), ref, "", lifecycle.PartState, b.Client, nil)
			return err
		},
		"sync":   func() error { _, err := k.Sync(t.Context(), ref, b.Client); return err },
		"import": func() error { _, err := k.Import(t.Context(), ref, b.Client); return err },
	} {
		if err := call(); !sandbox.HasCode(err, sandbox.CodeInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatFailsHasItsCode(t *testing.T) {
	inner := directory(t, t.TempDir())
	faults := storetest.NewFaults(inner)
	k, b, ref := newKeeper(t, faults, snapshot.Settings{}), newBox(t), refTo("box", "i1")
	mustBegin(t, k, ref)
	b.write(t, "workspace/file", "content")
	if _, err := k.Restore(t.Context(), ref, "", lifecycle.PartState, b.Client, nil); !sandbox.HasCode(err, sandbox.CodeSnapshotNotFound) {
		t.Errorf("a restore of nothing: %v", err)
	}
	mustSnapshot(t, k, ref, b)
	if _, err := k.Restore(t.Context(), ref, "20200101T000000Z-00", lifecycle.PartState, b.Client, nil); !sandbox.HasCode(err, sandbox.CodeSnapshotNotFound) {
		t.Errorf("an unknown snapshot: %v", err)
	}
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	b.write(t, "workspace/more", "content")
	calls := map[string]func(ctx context.Context) error{
		"begin":    func(ctx context.Context) error { return k.Begin(ctx, ref) },
		"snapshot": func(ctx context.Context) error { _, err := k.Snapshot(ctx, ref, b.Client); return err },
		"list":     func(ctx context.Context) error { _, err := k.Snapshots(ctx, ref); return err },
		"restore": func(ctx context.Context) error {
			_, err := k.Restore(ctx, ref, "", lifecycle.PartState, b.Client, nil)
			return err
		},
		"sync":     func(ctx context.Context) error { _, err := k.Sync(ctx, ref, b.Client); return err },
		"mirrored": func(ctx context.Context) error { _, err := k.Mirrored(ctx, "box"); return err },
		"import":   func(ctx context.Context) error { _, err := k.Import(ctx, ref, b.Client); return err },
		"delete":   func(ctx context.Context) error { return k.Delete(ctx, ref) },
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		err := calls[name](past)
		if name == "mirrored" && err == nil {
			continue // a directory has the answer at once
		}
		if !sandbox.HasCode(err, sandbox.CodeDeadline) {
			t.Errorf("%s when the time is up: %v", name, err)
		}
	}
	faults.Down()
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		if err := calls[name](t.Context()); !sandbox.HasCode(err, sandbox.CodeStoreAway) {
			t.Errorf("%s while the store is away: %v", name, err)
		}
	}
	faults.Up()
	wantRestored(t, k, ref, "", func() map[string]seen {
		mustSnapshot(t, k, ref, b)
		return picture(t, b.home)
	}())
}

// spiked is a store with objects besides whose keys are an attacker's.
type spiked struct {
	store.Store
	keys []string
}

const spike = "an attacker's content"

func (s *spiked) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for _, key := range s.keys {
			if !yield(store.Info{Key: key, Size: int64(len(spike)), ETag: "x"}, nil) {
				return
			}
		}
		for info, err := range s.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

func (s *spiked) Get(ctx context.Context, key string, r store.Range) (io.ReadCloser, store.Info, error) {
	if strings.HasPrefix(key, "workspaces/") && slices.Contains(s.keys, key) {
		return io.NopCloser(strings.NewReader(spike)), store.Info{Key: key, Size: int64(len(spike)), ETag: "x"}, nil
	}
	return s.Store.Get(ctx, key, r)
}

func TestAMirrorsHostileKeysBecomeNoFiles(t *testing.T) {
	b := newBox(t)
	outside := filepath.Dir(b.home)
	s := &spiked{Store: s3(t, storetest.StartServer(t, storetest.ServerOptions{}))}
	for _, path := range []string{
		"../../x", "../box/y", "/etc/x", "a//b", "./a", "a/./b", "a/..", "", "..", "a/../../../x", "\x00", "a\x00b", "\xff", strings.Repeat("n", 256), "folder",
	} {
		s.keys = append(s.keys, "workspaces/box/"+path)
	}
	s.keys = append(s.keys, "workspaces/other/file", "snapshots/box/current.json", "x")
	for key, content := range map[string]string{
		"workspaces/box/folder/file": "1", "workspaces/box/ü \"quoted\"": "2", "workspaces/box/.gitignore": "3",
	} {
		put(t, s.Store, key, []byte(content))
	}
	k, ref := newKeeper(t, s, snapshot.Settings{}), refTo("box", "i1")
	mustBegin(t, k, ref)
	n, err := k.Import(t.Context(), ref, b.Client)
	if err != nil || n != 3 {
		t.Errorf("%d files, %v", n, err)
	}
	for path := range picture(t, outside) {
		if !strings.HasPrefix(path, "home") && !strings.HasPrefix(path, "config") {
			t.Errorf("%q is outside", path)
		}
	}
	for path, got := range picture(t, b.home) {
		switch path {
		case "workspace", "workspace/folder", "workspace/folder/file", `workspace/ü "quoted"`, "workspace/.gitignore":
		default:
			t.Errorf("%q has become %+v", path, got)
		}
	}
}
