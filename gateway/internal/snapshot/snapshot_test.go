package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func TestASnapshotRestoresEverything(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	s := mustTake(t, e, ref, tree)
	if s.Files != 17 || s.Sent == 0 {
		t.Errorf("the snapshot is %+v", s)
	}
	wantRestored(t, e, ref, "", tree.picture())
	// Another process with the same key.
	wantRestored(t, engineOn(t, d, nil), ref, s.ID, tree.picture())
	// Nothing was stored in the clear.
	for _, info := range storetest.MustList(t, d, "") {
		raw, _ := storetest.MustGet(t, d, info)
		if bytes.Contains(raw, []byte("src/")) || bytes.Contains(raw, []byte("line 3")) {
			t.Errorf("%s can be read", info)
		}
	}
}

func TestWhatIsUnchangedIsNeitherReadNorSent(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	tree.now += 10
	e := engineOn(t, d, tree)
	first := mustTake(t, e, ref, tree)
	tree.reads = nil
	if again := mustTake(t, e, ref, tree); again.ID != first.ID || again.Sent != 0 || len(tree.reads) != 0 {
		t.Errorf("an unchanged tree: %+v, read %q", again, tree.reads)
	}
	tree.file("src/f1", "changed")
	tree.rename("src/larger", "src/renamed")
	second := mustTake(t, e, ref, tree)
	if len(tree.reads) != 2 {
		t.Errorf("read %q", tree.reads)
	}
	if second.Sent > 3500 { // the manifest and one small file; the renamed one has 9000 bytes
		t.Errorf("sent %d bytes", second.Sent)
	}
	wantRestored(t, e, ref, "", tree.picture())
	// A moved directory is not sent again either.
	tree.now += 10
	tree.rename("src", "moved")
	if s := mustTake(t, e, ref, tree); s.Sent > 3500 {
		t.Errorf("after moving everything, sent %d bytes", s.Sent)
	}
	wantRestored(t, e, ref, "", tree.picture())
	wantRestored(t, e, ref, second.ID, func() map[string]seen { tree.rename("moved", "src"); return tree.picture() }())
}

func TestAnotherKeyMakesEverythingAnew(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	tree.now += 10
	mustTake(t, engineOn(t, d, tree), ref, tree)
	ring := ring{newSealer(t, "new"), newSealer(t, "key")}
	e := snapshot.New(d, ring, small())
	e.SetClock(tree.clock)
	for range 3 {
		tree.now += 10
		tree.file("src/f1", fmt.Sprint(tree.now))
		mustTake(t, e, ref, tree)
	}
	if _, err := e.Collect(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	wantRestored(t, snapshot.New(d, ring[0], small()), ref, "", tree.picture())
	_, err := snapshot.New(d, ring[1], small()).Restore(t.Context(), ref, "", nil, newMemTree())
	if !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("with the old key: %v", err)
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

func TestTheLastSnapshotsAreKeptAndTheRestIsCollected(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	pictures := map[string]map[string]seen{}
	for i := range 40 { // enough for packs to be made anew
		tree.now += 5
		tree.file("src/f1", fmt.Sprintf("%d", i))
		tree.file(fmt.Sprintf("src/new%d", i), fmt.Sprintf("new %d", i))
		s := mustTake(t, e, ref, tree)
		pictures[s.ID] = tree.picture()
		if _, err := e.Collect(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	list, err := e.List(t.Context(), ref)
	if err != nil || len(list) != 3 {
		t.Fatalf("%d are kept: %v", len(list), err)
	}
	for _, s := range list {
		wantRestored(t, e, ref, s.ID, pictures[s.ID])
	}
	if n := len(storetest.MustList(t, d, "snapshots/box/packs/")); n > 60 {
		t.Errorf("there are %d packs", n)
	}
	if _, err := e.Restore(t.Context(), ref, "20200101T000000Z-00", nil, newMemTree()); !errors.Is(err, snapshot.ErrNoSnapshot) {
		t.Errorf("an unknown snapshot: %v", err)
	}
}

// TestIncremental edits in the same second as the listing as well, without that
// size or times tell.
func TestEveryIncrementalSnapshotIsExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d, _ := openStore(t)
		defer d.Close()
		tree := newMemTree()
		e := engineOn(t, d, tree)
		tree.dir("d0")
		pictures := map[string]map[string]seen{}
		for range rapid.IntRange(2, 6).Draw(rt, "snapshots") {
			for range rapid.IntRange(0, 6).Draw(rt, "edits") {
				edit(rt, tree)
			}
			tree.now += rapid.Int64Range(0, 3).Draw(rt, "seconds")
			s := mustTake(t, e, ref, tree)
			pictures[s.ID] = tree.picture()
			if rapid.Bool().Draw(rt, "collect") {
				if _, err := e.Collect(context.Background(), ref); err != nil {
					rt.Fatal(err)
				}
			}
		}
		list, err := e.List(context.Background(), ref)
		if err != nil {
			rt.Fatal(err)
		}
		for _, s := range list {
			wantRestored(t, e, ref, s.ID, pictures[s.ID])
		}
		wantRestored(t, e, ref, "", tree.picture())
	})
}

func edit(rt *rapid.T, tree *memTree) {
	dirs := []string{}
	all := []string{}
	for p, n := range tree.nodes {
		if n.Type == snapshot.Directory {
			dirs = append(dirs, p)
		}
		all = append(all, p)
	}
	slices.Sort(dirs)
	slices.Sort(all)
	name := fmt.Sprintf("n%d", rapid.IntRange(0, 5).Draw(rt, "name"))
	if len(dirs) > 0 {
		name = rapid.SampledFrom(dirs).Draw(rt, "dir") + "/" + name
	}
	free := tree.nodes[name] == nil
	switch rapid.IntRange(0, 6).Draw(rt, "kind") {
	case 0, 1:
		size := rapid.SampledFrom([]int{0, 5, 1024, 1025, 4096, 9000}).Draw(rt, "size")
		if free || tree.nodes[name].Type == snapshot.File {
			tree.make(name, snapshot.File, rapid.SampledFrom([]uint32{0, 0o644, 0o7777}).Draw(rt, "mode"), "", noise(byte(rapid.IntRange(0, 4).Draw(rt, "seed")), size))
		}
	case 2: // the same size, in the same second
		if !free && tree.nodes[name].Size > 0 {
			n := tree.nodes[name]
			n.content = noise(byte(rapid.IntRange(5, 9).Draw(rt, "seed")), len(n.content))
			n.ModifiedNs, n.ChangedNs = tree.now*1e9, tree.now*1e9
		}
	case 3:
		if free {
			tree.dir(name)
		}
	case 4:
		if free {
			tree.make(name, snapshot.Symlink, 0o777, rapid.SampledFrom([]string{"..", "/etc", "n1"}).Draw(rt, "target"), nil)
		}
	case 5:
		if len(all) > 1 {
			tree.remove(rapid.SampledFrom(all).Draw(rt, "removed"))
		}
	case 6:
		if len(all) > 1 && free {
			from := rapid.SampledFrom(all).Draw(rt, "from")
			if !strings.HasPrefix(name+"/", from+"/") {
				tree.rename(from, name)
			}
		}
	}
}

// scripted is a tree that says what it is told to.
type scripted struct {
	list    []snapshot.Entry
	endless bool
	read    func(paths []string, fn func(string, int64, io.Reader) error) error
}

func (s scripted) List(_ context.Context, fn func(snapshot.Entry) error) error {
	for _, e := range s.list {
		_ = fn(e) // its error is ignored, as an attacker would
	}
	for i := 0; s.endless; i++ {
		if err := fn(snapshot.Entry{Path: fmt.Sprint(i), Type: snapshot.Directory}); err != nil {
			return nil //nolint:nilerr // an attacker's
		}
	}
	return nil
}

func (s scripted) Read(_ context.Context, paths []string, fn func(string, int64, io.Reader) error) error {
	if s.read == nil {
		return nil
	}
	return s.read(paths, fn)
}

func (scripted) Restore(context.Context, iter.Seq2[snapshot.Restored, error]) error { return nil }

func TestHostileTreesAreRefused(t *testing.T) {
	file := func(path string, size int64) snapshot.Entry {
		return snapshot.Entry{Path: path, Type: snapshot.File, Size: size}
	}
	send := func(size int64, content string) func([]string, func(string, int64, io.Reader) error) error {
		return func(paths []string, fn func(string, int64, io.Reader) error) error {
			for _, p := range paths {
				_ = fn(p, size, strings.NewReader(content))
			}
			return nil
		}
	}
	one := []snapshot.Entry{file("f", 4)}
	cases := map[string]struct {
		tree scripted
		want error
	}{
		"a path upwards":              {scripted{list: []snapshot.Entry{file("a/../../b", 0)}}, snapshot.ErrTree},
		"an absolute path":            {scripted{list: []snapshot.Entry{file("/etc/passwd", 0)}}, snapshot.ErrTree},
		"an empty element":            {scripted{list: []snapshot.Entry{file("a//b", 0)}}, snapshot.ErrTree},
		"an empty path":               {scripted{list: []snapshot.Entry{file("", 0)}}, snapshot.ErrTree},
		"the root itself":             {scripted{list: []snapshot.Entry{file(".", 0)}}, snapshot.ErrTree},
		"a NUL":                       {scripted{list: []snapshot.Entry{file("a\x00b", 0)}}, snapshot.ErrTree},
		"an endless name":             {scripted{list: []snapshot.Entry{file(strings.Repeat("a", 1<<20), 0)}}, snapshot.ErrTree},
		"a path twice":                {scripted{list: []snapshot.Entry{file("a", 0), file("a", 0)}}, snapshot.ErrTree},
		"a file in no directory":      {scripted{list: []snapshot.Entry{file("a/b", 0)}}, snapshot.ErrTree},
		"a file in a file":            {scripted{list: []snapshot.Entry{file("a", 0), file("a/b", 0)}}, snapshot.ErrTree},
		"a file under a link":         {scripted{list: []snapshot.Entry{{Path: "a", Type: snapshot.Symlink, Target: "/"}, file("a/b", 0)}}, snapshot.ErrTree},
		"a device":                    {scripted{list: []snapshot.Entry{{Path: "a", Type: 7}}}, snapshot.ErrTree},
		"a mode with a type":          {scripted{list: []snapshot.Entry{{Path: "a", Type: snapshot.File, Mode: 0o100644}}}, snapshot.ErrTree},
		"a negative size":             {scripted{list: []snapshot.Entry{file("a", -1)}}, snapshot.ErrTree},
		"a directory with a size":     {scripted{list: []snapshot.Entry{{Path: "a", Type: snapshot.Directory, Size: 1}}}, snapshot.ErrTree},
		"a link to nothing":           {scripted{list: []snapshot.Entry{{Path: "a", Type: snapshot.Symlink}}}, snapshot.ErrTree},
		"an endless listing":          {scripted{endless: true}, snapshot.ErrLimit},
		"sizes that overflow":         {scripted{list: []snapshot.Entry{file("a", 1<<62), file("b", 1<<62), file("c", 1<<62)}}, snapshot.ErrLimit},
		"fewer bytes than said":       {scripted{list: one, read: send(4, "abc")}, snapshot.ErrTree},
		"more bytes than said":        {scripted{list: one, read: send(4, "abcde")}, snapshot.ErrTree},
		"fewer bytes of a large file": {scripted{list: one, read: send(100_000, "abc")}, snapshot.ErrTree},
		"a file that outgrows all":    {scripted{list: one, read: send(1<<61, "abc")}, snapshot.ErrLimit},
		"a file that is not sent":     {scripted{list: one}, snapshot.ErrTree},
		"a file that nobody asked for": {scripted{list: one, read: func(_ []string, fn func(string, int64, io.Reader) error) error {
			return fn("../x", 1, strings.NewReader("x"))
		}}, snapshot.ErrTree},
		"a file that comes twice": {scripted{list: one, read: func(_ []string, fn func(string, int64, io.Reader) error) error {
			_ = fn("f", 1, strings.NewReader("x"))
			_ = fn("f", 1, strings.NewReader("y"))
			return nil
		}}, snapshot.ErrTree},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d, _ := openStore(t)
			settings := small()
			settings.MaxEntries = 1000
			e := snapshot.New(d, newSealer(t, "key"), settings)
			good := newMemTree()
			good.file("kept", "kept")
			mustTake(t, e, ref, good)
			if _, err := e.Take(t.Context(), ref, c.tree); !errors.Is(err, c.want) {
				t.Errorf("the error is %v", err)
			}
			wantRestored(t, e, ref, "", good.picture())
		})
	}
}

func TestAFileThatGoesWhileItIsReadIsLeftOut(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	tree.stop = func(string) error { tree.remove("src/f5"); tree.remove("src/larger"); return nil }
	e := engineOn(t, d, tree)
	mustTake(t, e, ref, tree)
	wantRestored(t, e, ref, "", tree.picture())
	// One that grows is kept as it was read, and read again.
	tree.now += 10
	tree.file("src/f1", "before")
	tree.now += 10
	tree.stop = func(string) error {
		n := tree.nodes["src/f1"]
		n.content, n.Size = []byte("after that"), 10
		return nil
	}
	mustTake(t, e, ref, tree)
	wantRestored(t, e, ref, "", tree.picture())
}

func TestATreeThatDoesNotTakeEverythingIsNoticed(t *testing.T) {
	d, _ := openStore(t)
	tree := newMemTree()
	sample(tree)
	e := engineOn(t, d, tree)
	mustTake(t, e, ref, tree)
	for name, restore := range map[string]restorer{
		"nothing": func(iter.Seq2[snapshot.Restored, error]) error { return nil },
		"no content": func(entries iter.Seq2[snapshot.Restored, error]) error {
			for _, err := range entries {
				if err != nil {
					return nil // what it does not do is the point
				}
			}
			return nil
		},
	} {
		if _, err := e.Restore(t.Context(), ref, "", nil, restore); !errors.Is(err, snapshot.ErrTree) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type restorer func(iter.Seq2[snapshot.Restored, error]) error

func (restorer) List(context.Context, func(snapshot.Entry) error) error { return nil }
func (restorer) Read(context.Context, []string, func(string, int64, io.Reader) error) error {
	return nil
}

func (r restorer) Restore(_ context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	return r(entries)
}
