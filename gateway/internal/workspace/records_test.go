package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/seal"
)

// onEveryStore runs a test on a directory and on an S3 server.
func onEveryStore(t *testing.T, test func(t *testing.T, s store.Store)) {
	t.Parallel()
	t.Run("on a directory", func(t *testing.T) {
		t.Parallel()
		test(t, directory(t, t.TempDir()))
	})
	t.Run("on S3", func(t *testing.T) {
		t.Parallel()
		bucket, err := store.NewS3(storetest.StartServer(t, storetest.ServerOptions{}).Settings())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = bucket.Close() })
		test(t, store.NewRetrier(bucket, store.Policy{}))
	})
}

func directory(t *testing.T, path string) *store.Directory {
	t.Helper()
	d, err := store.OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// ring is a keyring of keys that are all one byte.
func ring(t *testing.T, current byte, former ...byte) *seal.Keyring {
	t.Helper()
	fill := func(b byte) [seal.KeySize]byte { return [seal.KeySize]byte(bytes.Repeat([]byte{b}, seal.KeySize)) }
	var before [][seal.KeySize]byte
	for _, b := range former {
		before = append(before, fill(b))
	}
	k, err := seal.NewKeyring(fill(current), before...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func record(id string) lifecycle.Record {
	return lifecycle.Record{
		SandboxID: id, UserID: "ü<&>\"", Incarnation: "i1", Phase: lifecycle.PhaseReady,
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC), Volume: "v",
		Secrets: lifecycle.Secrets{Token: "the-token", Password: "the-password", Config: []byte(`{"auth":{"x":{"key":"sk-<secret>&"}}}`)},
	}
}

// saying is a record with something in it that can be told apart.
func saying(id, what string) lifecycle.Record {
	rec := record(id)
	rec.Secrets.LastError = what
	return rec
}

func mustCreate(t *testing.T, r *Records, rec lifecycle.Record) lifecycle.Version {
	t.Helper()
	v, err := r.Create(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustList(t *testing.T, r *Records) lifecycle.Listing {
	t.Helper()
	listing, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return listing
}

func get(t *testing.T, s store.Store, key string) []byte {
	t.Helper()
	raw, _, err := read(t.Context(), s, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func put(t *testing.T, s store.Store, key string, content []byte) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, bytes.NewReader(content), int64(len(content)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestARecordSurvivesAReopen(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		want := record("a")
		v := mustCreate(t, NewRecords(s, ring(t, 1)), want)
		listing := mustList(t, NewRecords(s, ring(t, 1)))
		if len(listing.Stored) != 1 || len(listing.Unreadable) != 0 || listing.Stored[0].Version != v {
			t.Fatalf("listing = %+v", listing)
		}
		if diff := cmp.Diff(want, listing.Stored[0].Record); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSecretsAreNotStoredInClear(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		mustCreate(t, NewRecords(s, ring(t, 1)), record("a"))
		raw := get(t, s, "sandboxes/a/record.json")
		for _, secret := range []string{"the-token", "the-password", "sk-"} {
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("%s is readable", secret)
			}
		}
	})
}

func TestOnlyTheOwnerCanReadARecordOnDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustCreate(t, NewRecords(directory(t, dir), ring(t, 1)), record("a"))
	st, err := os.Stat(filepath.Join(dir, "sandboxes", "a", "record.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestWritesCompareBeforeTheyReplace(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		r := NewRecords(s, ring(t, 1))
		v1 := mustCreate(t, r, record("a"))
		if _, err := r.Create(t.Context(), record("a")); !errors.Is(err, lifecycle.ErrRecordExists) {
			t.Errorf("second create: %v", err)
		}
		v2, err := r.Update(t.Context(), saying("a", "x"), v1)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := r.Update(t.Context(), saying("a", "y"), v1); !errors.Is(err, lifecycle.ErrRecordChanged) || v != "" {
			t.Errorf("update of an old version: %q, %v", v, err)
		}
		if _, err := r.Update(t.Context(), saying("a", "y"), ""); !errors.Is(err, lifecycle.ErrRecordChanged) {
			t.Errorf("update of no version: %v", err)
		}
		if _, err := r.Update(t.Context(), saying("a", "z"), v2); err != nil {
			t.Errorf("update of the new version: %v", err)
		}
		for range 2 {
			if err := r.Delete(t.Context(), "a"); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if _, err := r.Update(t.Context(), record("a"), v1); !errors.Is(err, lifecycle.ErrNoRecord) {
			t.Errorf("update of nothing: %v", err)
		}
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("ready: %v", err)
		}
	})
}

func TestOneOfManyCreatesAtOnceWins(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		r := NewRecords(s, ring(t, 1))
		var group sync.WaitGroup
		wins := make(chan struct{}, 16)
		for range 16 {
			group.Go(func() {
				if _, err := r.Create(t.Context(), record("a")); err == nil {
					wins <- struct{}{}
				}
			})
		}
		group.Wait()
		if len(wins) != 1 {
			t.Errorf("%d creates won", len(wins))
		}
	})
}

func TestAListHasEveryRecordAndNothingElse(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		r := NewRecords(s, ring(t, 1))
		const count = 40
		for i := range count {
			mustCreate(t, r, record(fmt.Sprintf("s%02d", i)))
		}
		for _, key := range []string{"sandboxes/x", "sandboxes/x1/other.json", "sandboxes/www/record.json", "sandboxes/-/record.json", "sandboxes/a/b/record.json", "workspaces/a/record.json"} {
			put(t, s, key, []byte("foreign"))
		}
		listing := mustList(t, r)
		if len(listing.Stored) != count || len(listing.Unreadable) != 0 {
			t.Errorf("%d records, unreadable: %v", len(listing.Stored), listing.Unreadable)
		}
		for i, stored := range listing.Stored {
			if stored.Record.SandboxID != fmt.Sprintf("s%02d", i) {
				t.Errorf("number %d is %s", i, stored.Record.SandboxID)
			}
		}
	})
}

func TestAListOfAnEmptyStoreIsEmpty(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		if listing := mustList(t, NewRecords(s, ring(t, 1))); len(listing.Stored) != 0 || len(listing.Unreadable) != 0 {
			t.Errorf("%+v", listing)
		}
	})
}

func TestChangedOrMovedRecordsAreRefused(t *testing.T) {
	tampers := map[string]func(a, b []byte) []byte{
		"edited":             func(a, _ []byte) []byte { return bytes.Replace(a, []byte(`"v"`), []byte(`"w"`), 1) },
		"flipped":            func(a, _ []byte) []byte { a[bytes.Index(a, []byte(`"sealed":"`))+14] ^= 1; return a },
		"truncated":          func(a, _ []byte) []byte { return a[:len(a)/2] },
		"another-sandboxs":   func(_, b []byte) []byte { return b },
		"empty":              func(_, _ []byte) []byte { return nil },
		"not-a-record":       func(_, _ []byte) []byte { return []byte(`{"hello":"world"}`) },
		"null":               func(_, _ []byte) []byte { return []byte(`null`) },
		"of-another-layout":  func(a, _ []byte) []byte { return bytes.Replace(a, []byte(`"version":1`), []byte(`"version":2`), 1) },
		"larger-than-any":    func(a, _ []byte) []byte { return append(a, bytes.Repeat([]byte(" "), recordLimit)...) },
		"without-its-record": func(a, _ []byte) []byte { return bytes.Replace(a, []byte(`"record"`), []byte(`"recard"`), 1) },
	}
	onEveryStore(t, func(t *testing.T, s store.Store) {
		r := NewRecords(s, ring(t, 1))
		mustCreate(t, r, record("whole"))
		for id, tamper := range tampers {
			mustCreate(t, r, record(id))
			put(t, s, recordKey(id), tamper(get(t, s, recordKey(id)), get(t, s, recordKey("whole"))))
		}
		mustCreate(t, NewRecords(s, ring(t, 2)), record("of-another-key"))
		listing := mustList(t, r)
		if len(listing.Stored) != 1 || listing.Stored[0].Record.SandboxID != "whole" {
			t.Errorf("readable: %+v", listing.Stored)
		}
		for id := range tampers {
			if listing.Unreadable[id] == nil {
				t.Errorf("%s is not refused", id)
			}
		}
		if err := listing.Unreadable["of-another-key"]; err == nil || !strings.Contains(err.Error(), ring(t, 2).KeyID()) {
			t.Errorf("of another key: %v", err)
		}
		for id, err := range listing.Unreadable {
			if strings.Contains(err.Error(), "the-token") {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

func TestARecordThatCouldNotBeReadAgainIsNotWritten(t *testing.T) {
	t.Parallel()
	r := NewRecords(directory(t, t.TempDir()), ring(t, 1))
	config := func(size int) lifecycle.Record {
		rec := record("a")
		rec.Secrets.Config = []byte(`"` + strings.Repeat("<", size-2) + `"`)
		return rec
	}
	const largest = 16 << 20 // what a request can bring
	if _, err := r.encode(config(largest)); err != nil {
		t.Error(err)
	}
	if v, err := r.Create(t.Context(), config(recordLimit*3/4)); !errors.Is(err, errTooLarge) || v != "" {
		t.Errorf("%q, %v", v, err)
	}
	if listing := mustList(t, r); len(listing.Stored)+len(listing.Unreadable) != 0 {
		t.Errorf("%+v", listing)
	}
}

// refusing is a store that does not give out one object, like a disk with a bad
// sector.
type refusing struct {
	store.Store
	key string
	err error
}

func (r refusing) Get(ctx context.Context, key string, part store.Range) (io.ReadCloser, store.Info, error) {
	if key == r.key {
		return nil, store.Info{}, r.err
	}
	return r.Store.Get(ctx, key, part)
}

func TestAListTellsARecordThatIsDamagedFromAStoreThatIsAway(t *testing.T) {
	t.Parallel()
	d := directory(t, t.TempDir())
	mustCreate(t, NewRecords(d, ring(t, 1)), record("a"))
	mustCreate(t, NewRecords(d, ring(t, 1)), record("b"))
	list := func(err error) (lifecycle.Listing, error) {
		return NewRecords(refusing{d, recordKey("b"), err}, ring(t, 1)).List(t.Context())
	}
	listing, err := list(fmt.Errorf("%w: %w: input/output error", store.ErrAway, store.ErrRefused))
	if err != nil || len(listing.Stored) != 1 || listing.Unreadable["b"] == nil {
		t.Errorf("refused: %+v, %v", listing, err)
	}
	if listing, err := list(store.ErrAway); !errors.Is(err, store.ErrAway) || len(listing.Stored) != 0 {
		t.Errorf("away: %+v, %v", listing, err)
	}
	if listing, err := list(store.ErrNotFound); err != nil || len(listing.Stored) != 1 || len(listing.Unreadable) != 0 {
		t.Errorf("deleted meanwhile: %+v, %v", listing, err)
	}
	faults := storetest.NewFaults(d)
	for _, fault := range []storetest.Fault{storetest.Before, storetest.Midway, storetest.ReplyLost} {
		faults.Fail(1, fault)
		if _, err := NewRecords(faults, ring(t, 1)).List(t.Context()); !errors.Is(err, store.ErrAway) {
			t.Errorf("a listing that fails %s: %v", fault, err)
		}
	}
}

func TestAWriteOfUnknownOutcomeDoesNotBlockTheNext(t *testing.T) {
	t.Parallel()
	for _, first := range storetest.EveryFault() {
		for _, second := range storetest.EveryFault() {
			t.Run(first.String()+" and then "+second.String(), func(t *testing.T) {
				t.Parallel()
				faults := storetest.NewFaults(directory(t, t.TempDir()))
				r := NewRecords(faults, ring(t, 1))
				v := mustCreate(t, r, record("a"))
				for i, fault := range []storetest.Fault{first, second} {
					faults.Fail(1, fault)
					next, err := r.Update(t.Context(), saying("a", fmt.Sprint("write ", i)), v)
					faults.Up()
					switch {
					case err != nil && (!errors.Is(err, store.ErrAway) || next != v && next != ""):
						t.Fatalf("%q instead of %q, %v", next, v, err)
					case next != "":
						v = next
					}
				}
				if _, err := r.Update(t.Context(), saying("a", "the last"), v); err != nil {
					t.Fatal(err)
				}
				if listing := mustList(t, r); listing.Stored[0].Record.Secrets.LastError != "the last" {
					t.Errorf("%+v", listing)
				}
			})
		}
	}
}

// Even if the store fails again while the earlier write is looked for.
func TestAnUpdateThatFailsAtAnyCallCanBeMadeAgain(t *testing.T) {
	t.Parallel()
	points := 0
	for call := 1; call <= 3; call++ { // a put that conflicts, a read, a put
		for _, fault := range storetest.EveryFault() {
			points++
			faults := storetest.NewFaults(directory(t, t.TempDir()))
			r := NewRecords(faults, ring(t, 1))
			v := mustCreate(t, r, record("a"))
			faults.Fail(1, storetest.ReplyLost)
			if next, err := r.Update(t.Context(), saying("a", "lost"), v); err == nil || next != v {
				t.Fatalf("%q, %v", next, err)
			}
			faults.Fail(call, fault)
			if next, err := r.Update(t.Context(), saying("a", "again"), v); next != "" {
				v = next
			} else if errors.Is(err, lifecycle.ErrRecordChanged) {
				t.Fatalf("call %d %s: %v", call, fault, err)
			}
			faults.Up()
			if _, err := r.Update(t.Context(), saying("a", "the last"), v); err != nil {
				t.Fatalf("call %d %s: %v", call, fault, err)
			}
			if listing := mustList(t, r); listing.Stored[0].Record.Secrets.LastError != "the last" {
				t.Errorf("call %d %s: %+v", call, fault, listing)
			}
		}
	}
	t.Logf("%d points", points)
}

func TestSomebodyElsesChangeIsNotTakenForALostWrite(t *testing.T) {
	t.Parallel()
	d := directory(t, t.TempDir())
	faults := storetest.NewFaults(d)
	r := NewRecords(faults, ring(t, 1))
	v := mustCreate(t, r, record("a"))
	faults.Fail(1, storetest.Before)
	if next, err := r.Update(t.Context(), saying("a", "lost"), v); next != v {
		t.Fatalf("%q, %v", next, err)
	}
	if _, err := NewRecords(d, ring(t, 1)).Update(t.Context(), saying("a", "theirs"), v); err != nil {
		t.Fatal(err)
	}
	if next, err := r.Update(t.Context(), saying("a", "ours"), v); !errors.Is(err, lifecycle.ErrRecordChanged) || next != "" {
		t.Errorf("%q, %v", next, err)
	}
	if _, err := r.Create(t.Context(), saying("a", "ours")); !errors.Is(err, lifecycle.ErrRecordExists) {
		t.Errorf("create: %v", err)
	}
}

func TestACreateOfUnknownOutcomeDoesNotBlockTheNext(t *testing.T) {
	t.Parallel()
	for _, fault := range storetest.EveryFault() {
		t.Run(fault.String(), func(t *testing.T) {
			t.Parallel()
			faults := storetest.NewFaults(directory(t, t.TempDir()))
			r := NewRecords(faults, ring(t, 1))
			faults.Fail(1, fault)
			if _, err := r.Create(t.Context(), saying("a", "given up")); err != nil && !errors.Is(err, store.ErrAway) {
				t.Fatal(err)
			}
			faults.Up()
			v, err := r.Create(t.Context(), saying("a", "new"))
			if fault == storetest.DownAfter { // it was acknowledged
				if !errors.Is(err, lifecycle.ErrRecordExists) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if listing := mustList(t, r); listing.Stored[0].Record.Secrets.LastError != "new" || listing.Stored[0].Version != v {
				t.Errorf("%+v", listing)
			}
		})
	}
}

func TestARecordWhoseCreateWasLostCanBeUpdated(t *testing.T) {
	t.Parallel()
	faults := storetest.NewFaults(directory(t, t.TempDir()))
	r := NewRecords(faults, ring(t, 1))
	faults.Fail(1, storetest.ReplyLost)
	v, err := r.Create(t.Context(), record("a"))
	if err == nil || v != "" {
		t.Fatalf("%q, %v", v, err)
	}
	if _, err := r.Update(t.Context(), saying("a", "new"), v); err != nil {
		t.Error(err)
	}
}

func TestWhatIsRememberedOfFailedWritesIsBounded(t *testing.T) {
	t.Parallel()
	faults := storetest.NewFaults(directory(t, t.TempDir()))
	r := NewRecords(faults, ring(t, 1))
	v := mustCreate(t, r, record("a"))
	faults.Down()
	for range triedLimit + 1 {
		if next, err := r.Update(t.Context(), record("a"), v); next != v {
			t.Fatalf("%q, %v", next, err)
		}
	}
	if len(r.tried) != triedLimit {
		t.Errorf("%d are remembered", len(r.tried))
	}
	faults.Up()
	if _, err := r.Update(t.Context(), record("a"), v); err != nil {
		t.Error(err)
	}
}
