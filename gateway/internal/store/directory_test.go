package store_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func openDirectory(t *testing.T, name string) *store.Directory {
	t.Helper()
	d, err := store.OpenDirectory(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func newDirectory(t *testing.T) store.Store { t.Helper(); return openDirectory(t, t.TempDir()) }

func TestDirectoryConforms(t *testing.T) {
	storetest.Run(t, newDirectory)
	storetest.RunAnyKey(t, newDirectory)
	storetest.RunCounter(t, newDirectory)
}

// filesBelow returns the paths of all that is not a folder, sorted.
func filesBelow(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(name string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			relative, _ := filepath.Rel(root, name)
			found = append(found, relative)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

func TestDirectoryKeepsOrdinaryKeysAsPlainFiles(t *testing.T) {
	root := t.TempDir()
	d := openDirectory(t, root)
	for key, content := range map[string]string{"workspaces/x/src/main.go": "package main", "workspaces/x/100%.txt": "all", "a": "object", "a/b": "below"} {
		storetest.MustPut(t, d, key, []byte(content), store.PutOptions{})
	}
	storetest.MustPut(t, d, "with", []byte("x"), store.PutOptions{Metadata: map[string]string{"lastModified": "1"}})
	want := []string{"a%file", "a/b", "with", "with%meta", "workspaces/x/100%25.txt", "workspaces/x/src/main.go"}
	if diff := cmp.Diff(want, filesBelow(t, root)); diff != "" {
		t.Errorf("on the disk (-want +got): %s", diff)
	}
	raw, err := os.ReadFile(filepath.Join(root, "workspaces", "x", "src", "main.go"))
	if err != nil || string(raw) != "package main" {
		t.Errorf("the file holds %q, %v", raw, err)
	}
	// What a tool put there is an object.
	if err := os.WriteFile(filepath.Join(root, "workspaces", "x", "new.txt"), []byte("by hand"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := storetest.MustGet(t, d, "workspaces/x/new.txt"); string(got) != "by hand" {
		t.Errorf("a file made by hand is %q", got)
	}
}

func TestDirectoryIgnoresAndCollectsWhatACrashLeft(t *testing.T) {
	root := t.TempDir()
	d := openDirectory(t, root)
	// A put that never ends, as a killed process leaves it: half of the body is there.
	started, end := make(chan struct{}), make(chan struct{})
	body, writer := io.Pipe()
	go func() {
		defer close(end)
		_, err := d.Put(context.Background(), "crashed", body, -1, store.PutOptions{})
		if err == nil {
			t.Error("a body that broke off was stored")
		}
	}()
	go func() {
		_, _ = writer.Write(storetest.Content(1, 1<<20))
		close(started)
	}()
	<-started
	temporary := filesBelow(t, root)
	if len(temporary) != 1 || !strings.HasPrefix(temporary[0], "%tmp/") {
		t.Fatalf("while an object is written there is %q", temporary)
	}
	if listed := storetest.MustList(t, d, ""); len(listed) != 0 {
		t.Errorf("listed is %q", listed)
	}
	if _, err := d.Head(t.Context(), "crashed"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the error is %v", err)
	}
	next := openDirectory(t, root) // the next process, as if the first were gone
	if left := filesBelow(t, root); len(left) != 0 {
		t.Errorf("after opening it again there is %q", left)
	}
	storetest.MustPut(t, next, "crashed", []byte("whole"), store.PutOptions{})
	_ = writer.CloseWithError(errors.New("killed"))
	<-end
	if got, _ := storetest.MustGet(t, next, "crashed"); string(got) != "whole" {
		t.Errorf("it is %q", got)
	}
}

func TestDirectoryLeavesNothingBehind(t *testing.T) {
	root := t.TempDir()
	d := openDirectory(t, root)
	for _, key := range []string{"a/b/c", "a", "x/" + strings.Repeat("long", 100) + "/y"} {
		storetest.MustPut(t, d, key, []byte("x"), store.PutOptions{Metadata: map[string]string{"a": "b"}})
		if _, err := d.Put(t.Context(), key, strings.NewReader("x"), 1, store.PutOptions{IfAbsent: true, Metadata: map[string]string{"a": "b"}}); !errors.Is(err, store.ErrExists) {
			t.Fatal(err)
		}
		if _, err := d.Put(t.Context(), key, strings.NewReader("x"), 2, store.PutOptions{Metadata: map[string]string{"a": "b"}}); !errors.Is(err, store.ErrInvalid) {
			t.Fatal(err)
		}
	}
	for _, key := range storetest.MustList(t, d, "") {
		if err := d.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if !slices.Equal(names, []string{"%tmp"}) || len(filesBelow(t, root)) != 0 {
		t.Errorf("left are %q and %q", names, filesBelow(t, root))
	}
}

func TestDirectoryDoesNotFollowLinks(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	d := openDirectory(t, root)
	storetest.MustPut(t, d, "real/object", []byte("x"), store.PutOptions{})
	for name, target := range map[string]string{
		"link": filepath.Join(outside, "secret"), "folder": outside, "up": "..", "inside": "real/object", "object%meta": filepath.Join(outside, "secret"),
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"link", "folder/secret", "up/x", "inside"} {
		if _, _, err := d.Get(t.Context(), key, store.Range{}); err == nil {
			t.Errorf("%q was read", key)
		}
	}
	for _, key := range []string{"folder/new", "folder/deep/new", "up/new"} {
		if _, err := d.Put(t.Context(), key, strings.NewReader("x"), 1, store.PutOptions{}); !errors.Is(err, store.ErrAway) {
			t.Errorf("putting %q: %v", key, err)
		}
		_ = d.Delete(t.Context(), key)
	}
	_ = d.Delete(t.Context(), "folder/secret")
	_ = d.DeletePrefix(t.Context(), "folder/")
	if diff := cmp.Diff([]string{"real/object"}, storetest.MustList(t, d, "")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"secret"}, filesBelow(t, outside)); diff != "" {
		t.Errorf("outside: %s", diff)
	}
}

func TestDirectorySaysWhenTheDiskFails(t *testing.T) {
	root := t.TempDir()
	d := openDirectory(t, root)
	if err := os.RemoveAll(filepath.Join(root, "%tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "%tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.Put(t.Context(), "x", strings.NewReader("x"), 1, store.PutOptions{})
	if !errors.Is(err, store.ErrAway) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("putting: %v", err)
	}
	if err := d.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), root) {
		t.Errorf("probing: %v", err)
	}
}

func TestAVisitAndAStartDoNotDisturbEachOther(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	guest, err := store.VisitDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	// The process starts between two writes of the visitor, and in the midst of one.
	owner := openDirectory(t, dir)
	body := readerFunc(func(p []byte) (int, error) {
		owner = openDirectory(t, dir)
		return copy(p, "seen"), io.EOF
	})
	if _, err := guest.Put(t.Context(), "probe/x", body, -1, store.PutOptions{}); err != nil {
		t.Errorf("the visitor's write fails: %v", err)
	}
	if err := errors.Join(guest.Delete(t.Context(), "probe/x"), guest.Probe(t.Context()), guest.Close()); err != nil {
		t.Error(err)
	}
	storetest.MustPut(t, owner, "a/x", []byte("after the visit"), store.PutOptions{})
}

func TestProbesOfTwoProcessesDoNotDisturbEachOther(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	owner := openDirectory(t, dir)
	guest, err := store.VisitDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	var both errgroup.Group
	for _, one := range []*store.Directory{owner, guest} {
		both.Go(func() error {
			for range 50 {
				if err := one.Probe(t.Context()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := errors.Join(both.Wait(), guest.Close()); err != nil {
		t.Error(err)
	}
}

func TestAVisitLeavesADirectoryToItsProcessAsItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	visit := func() *store.Directory {
		t.Helper()
		d, err := store.VisitDirectory(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	fresh := visit()
	if err := errors.Join(fresh.Probe(t.Context()), fresh.Close()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("a visit leaves %v, %v", left, err)
	}
	owner := openDirectory(t, dir)
	storetest.MustPut(t, owner, "a/x", []byte("before"), store.PutOptions{})
	// Its own writes go on while there is a visit, and after it.
	body := readerFunc(func(p []byte) (int, error) {
		guest := visit()
		if _, info := storetest.MustGet(t, guest, "a/x"); info.Size != 6 {
			t.Errorf("the visitor sees %+v", info)
		}
		if err := errors.Join(guest.Probe(t.Context()), guest.Close()); err != nil {
			t.Error(err)
		}
		return copy(p, "after"), io.EOF
	})
	if _, err := owner.Put(t.Context(), "a/x", body, -1, store.PutOptions{}); err != nil {
		t.Error(err)
	}
	if content, _ := storetest.MustGet(t, owner, "a/x"); string(content) != "after" {
		t.Errorf("it holds %q", content)
	}
	if keys := storetest.MustList(t, owner, ""); !slices.Equal(keys, []string{"a/x"}) {
		t.Errorf("it holds %q", keys)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.VisitDirectory(file); err == nil || !strings.Contains(err.Error(), "remove what is in its place") {
		t.Errorf("a file in its place: %v", err)
	}
}
