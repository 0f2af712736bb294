package workspace

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
)

func open(t *testing.T, dir string, key byte) *Records {
	t.Helper()
	sealer, err := NewSealer([KeySize]byte{key})
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRecords(dir, sealer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func record(id string) lifecycle.Record {
	return lifecycle.Record{
		SandboxID: id, UserID: "ü<&>\"", Incarnation: "i1", Phase: lifecycle.PhaseReady,
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC), Volume: "v",
		Secrets: lifecycle.Secrets{Token: "the-token", Password: "the-password", Config: []byte(`{"auth":{"x":{"key":"sk-secret"}}}`)},
	}
}

func TestARecordSurvivesAReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir, 1)
	want := record("a")
	if _, err := r.Create(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	listing, err := open(t, dir, 1).List(t.Context())
	if err != nil || len(listing.Stored) != 1 || len(listing.Unreadable) != 0 {
		t.Fatalf("listing = %+v, %v", listing, err)
	}
	if diff := cmp.Diff(want, listing.Stored[0].Record); diff != "" {
		t.Error(diff)
	}
}

func TestSecretsAreNotOnDiskInClear(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := open(t, dir, 1).Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "sandboxes", "a", "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"the-token", "the-password", "sk-secret"} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s is readable", secret)
		}
	}
	if st, _ := os.Stat(filepath.Join(dir, "sandboxes", "a", "record.json")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v", st.Mode())
	}
}

func TestWritesCompareBeforeTheyReplace(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir(), 1)
	v1, err := r.Create(t.Context(), record("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(t.Context(), record("a")); !errors.Is(err, lifecycle.ErrRecordExists) {
		t.Errorf("second create: %v", err)
	}
	changed := record("a")
	changed.LastError = "x"
	if _, err := r.Update(t.Context(), changed, v1); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Update(t.Context(), changed, v1); !errors.Is(err, lifecycle.ErrRecordChanged) {
		t.Errorf("update of an old version: %v", err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := r.Update(t.Context(), changed, v1); !errors.Is(err, lifecycle.ErrNoRecord) {
		t.Errorf("update of nothing: %v", err)
	}
}

func TestOneOfManyCreatesAtOnceWins(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir(), 1)
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
}

func TestChangedOrMovedRecordsAreRefused(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]func(t *testing.T, dir string){
		"an edited owner": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "sandboxes", "a", "record.json"), func(b []byte) []byte { return bytes.Replace(b, []byte(`"v"`), []byte(`"w"`), 1) })
		},
		"a flipped byte of the secrets": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "sandboxes", "a", "record.json"), func(b []byte) []byte {
				i := bytes.Index(b, []byte(`"sealed":"`)) + 14
				if b[i] == 'A' {
					b[i] = 'B'
				} else {
					b[i] = 'A'
				}
				return b
			})
		},
		"half a file": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "sandboxes", "a", "record.json"), func(b []byte) []byte { return b[:len(b)/2] })
		},
		"another sandbox's record": func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, "sandboxes", "b", "record.json"), filepath.Join(dir, "sandboxes", "a", "record.json")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := open(t, dir, 1)
			for _, id := range []string{"a", "b"} {
				if _, err := r.Create(t.Context(), record(id)); err != nil {
					t.Fatal(err)
				}
			}
			tamper(t, dir)
			listing, err := r.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if listing.Unreadable["a"] == nil {
				t.Errorf("listing = %+v", listing)
			}
		})
	}
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(raw), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAStoreHasOneOwnerAndOneKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, dir, 1)
	sealer, _ := NewSealer([KeySize]byte{1})
	if _, err := OpenRecords(dir, sealer); err == nil || !strings.Contains(err.Error(), "another gateway") {
		t.Errorf("second owner: %v", err)
	}
	_ = first.Close()
	other, _ := NewSealer([KeySize]byte{2})
	if _, err := OpenRecords(dir, other); err == nil || !strings.Contains(err.Error(), "SEALING_KEY") {
		t.Errorf("another key: %v", err)
	}
}

func TestKeysAreReadInHexAndBase64(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		strings.Repeat("ab", 32): true, "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=": true, "short": false, "": false, strings.Repeat("zz", 32): false,
	} {
		if _, err := ParseKey(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	path := filepath.Join(t.TempDir(), "key")
	one, made, err := LoadOrMakeKey(path)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	two, made, err := LoadOrMakeKey(path)
	if err != nil || made || one != two {
		t.Errorf("the key changed: %v", err)
	}
}
