package store

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestManyWhoSyncOneFolderShareTheNextSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		count := map[string]int{}
		s := newSyncer(func(folder string) error {
			mu.Lock()
			count[folder]++
			mu.Unlock()
			time.Sleep(time.Millisecond)
			return nil
		})
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if err := s.settle("a/b"); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		// One that was under way, one that the others share.
		if count["a/b"] > 2 || count["a"] > 2 || count["."] > 2 || count["a/b"] == 0 || count["."] == 0 {
			t.Errorf("100 callers made %v syncs", count)
		}
		clear(count)
		for range 10 {
			if err := s.settle("a/b"); err != nil {
				t.Error(err)
			}
		}
		if count["a/b"] != 10 || len(count) != 1 {
			t.Errorf("folders that were there already were synced: %v", count)
		}
		s.forget("a/b")
		clear(count)
		if err := s.settle("a/b"); err != nil || count["a"] != 1 {
			t.Errorf("a folder that was made again was not synced: %v, %v", count, err)
		}
		if len(s.running) != 0 {
			t.Errorf("%d folders are remembered as being synced", len(s.running))
		}
	})
}

func TestASyncThatFailsFailsAllWhoWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("the disk is broken")
		s := newSyncer(func(string) error {
			time.Sleep(time.Millisecond)
			return broken
		})
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if err := s.settle("a"); !errors.Is(err, broken) {
					t.Errorf("the error is %v", err)
				}
			})
		}
		group.Wait()
		if len(s.linked) != 0 {
			t.Error("a folder counts as durable though its sync failed")
		}
	})
}

// Between the new sidecar and the new object there is a moment at which a crash
// leaves the one without the other.
func TestACrashBetweenMetadataAndObjectKeepsTheOldOnes(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDirectory(root)
	if err != nil {
		t.Fatal(err)
	}
	put := func(content string) {
		t.Helper()
		if _, err := d.Put(t.Context(), "x", strings.NewReader(content), int64(len(content)), PutOptions{Metadata: map[string]string{"is": content}}); err != nil {
			t.Fatal(err)
		}
	}
	put("old")
	p := placeOf("x")
	stat, err := d.look(p)
	if err != nil {
		t.Fatal(err)
	}
	fresh := attributes{Metadata: map[string]string{"is": "new"}}
	made, err := d.draftMeta(p, stat, Info{Key: "x", ETag: "the-next-one"}, fresh)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root+"/"+made.temp, root+"/"+p.meta()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenDirectory(root); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	body, info, err := d.Get(t.Context(), "x", Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if content, err := io.ReadAll(body); err != nil || string(content) != "old" || info.Metadata["is"] != "old" {
		t.Errorf("it is %q, %v with %v", content, err, info.Metadata)
	}
	put("newer")
	if info, err := d.Head(t.Context(), "x"); err != nil || info.Metadata["is"] != "newer" {
		t.Errorf("after another put it is %v, %v", info, err)
	}
}

func TestNamesOnDiskAreReversibleAndShort(t *testing.T) {
	for _, element := range []string{
		"a", "100%", "%25", "%file", strings.Repeat("x", 1024), strings.Repeat("%", 1024), strings.Repeat("世", 341), strings.Repeat(".", 1000), strings.Repeat("x", 239) + "..",
	} {
		names := appendElement(nil, element)
		joined := ""
		for i, name := range names {
			if len(name)+len(metaSuffix) > 255 || name == "." || name == ".." {
				t.Errorf("%.20q... has the name %q", element, name)
			}
			chunk, more := strings.CutSuffix(name, moreSuffix)
			if more != (i < len(names)-1) {
				t.Errorf("%.20q... has the names %q", element, names)
			}
			joined += chunk
		}
		if back, ok := elementOf(joined); !ok || back != element {
			t.Errorf("%.20q... comes back as %.20q", element, back)
		}
	}
	for _, foreign := range []string{"", "a%", "a%file", "a%2f", "%tmp", "%"} {
		if element, ok := elementOf(foreign); ok {
			t.Errorf("the foreign name %q is taken for %q", foreign, element)
		}
	}
}
