package workspace

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/seal"
)

// sealedWith makes a store that was begun with a key, with records.
func sealedWith(t *testing.T, s store.Store, key byte, ids ...string) {
	t.Helper()
	if _, err := CheckKey(t.Context(), ring(t, key), s); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		mustCreate(t, NewRecords(s, ring(t, key)), saying(id, "of "+id))
	}
}

// mustOpen checks that a store can be used with one key alone, and that its
// records are whole.
func mustOpen(t *testing.T, s store.Store, key byte, ids ...string) {
	t.Helper()
	if _, err := CheckKey(t.Context(), ring(t, key), s); err != nil {
		t.Fatal(err)
	}
	listing := mustList(t, NewRecords(s, ring(t, key)))
	if len(listing.Unreadable) != 0 || len(listing.Stored) != len(ids) {
		t.Fatalf("%+v", listing)
	}
	for i, id := range ids {
		if diff := cmp.Diff(saying(id, "of "+id), listing.Stored[i].Record); diff != "" {
			t.Error(diff)
		}
	}
}

// mustRefuse checks that a store is not opened with a keyring, and that the
// sentence says what to do and gives no key away.
func mustRefuse(t *testing.T, s store.Store, keys *seal.Keyring, wants byte, secrets ...byte) {
	t.Helper()
	before := get(t, s, fingerprintKey)
	_, err := CheckKey(t.Context(), keys, s)
	if err == nil || !strings.Contains(err.Error(), "SEALING_KEY") || !strings.Contains(err.Error(), ring(t, wants).KeyID()) {
		t.Fatalf("%v", err)
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), strings.Repeat(hex.EncodeToString([]byte{secret}), 4)) {
			t.Errorf("it gives the key away: %v", err)
		}
	}
	if !bytes.Equal(before, get(t, s, fingerprintKey)) {
		t.Error("the fingerprint was changed")
	}
}

func TestAStoreIsOpenedOnlyWithItsKey(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		sealedWith(t, s, 1, "a")
		mustOpen(t, s, 1, "a")
		mustRefuse(t, s, ring(t, 2), 1, 1, 2)
		mustRefuse(t, s, ring(t, 2, 3), 1, 1, 2, 3)
		mustOpen(t, s, 1, "a")
	})
}

func TestACheckOfAKeyThatFitsWritesNothing(t *testing.T) {
	t.Parallel()
	faults := storetest.NewFaults(directory(t, t.TempDir()))
	sealedWith(t, faults, 1, "a")
	before := faults.Calls()
	if _, err := CheckKey(t.Context(), ring(t, 1, 2), faults); err != nil || faults.Calls() != before+1 {
		t.Errorf("%v, %v", faults.Log()[before:], err)
	}
}

func TestWhetherAKeyFitsIsSaidAndNothingChanged(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		wantFit := func(keys *seal.Keyring, id string) {
			t.Helper()
			before := objects(t, s, "")
			if got, err := KeyFits(t.Context(), keys, s); err != nil || got != id {
				t.Errorf("%q, %v", got, err)
			}
			wantObjects(t, s, "", before)
		}
		wantFit(ring(t, 1), "")
		sealedWith(t, s, 1, "a", "b")
		wantFit(ring(t, 1), ring(t, 1).KeyID())
		wantFit(ring(t, 2, 1), ring(t, 1).KeyID()) // a start would seal the records anew
		if _, err := KeyFits(t.Context(), ring(t, 2), s); err == nil || !strings.Contains(err.Error(), "set SEALING_KEY to the key with the id "+ring(t, 1).KeyID()) {
			t.Errorf("%v", err)
		}
		// Without the fingerprint the records say what they are sealed with.
		if err := s.Delete(t.Context(), fingerprintKey); err != nil {
			t.Fatal(err)
		}
		if _, err := KeyFits(t.Context(), ring(t, 2), s); err == nil || !strings.Contains(err.Error(), ring(t, 1).KeyID()) {
			t.Errorf("%v", err)
		}
		wantFit(ring(t, 1), ring(t, 1).KeyID())
		// One that is damaged is no matter of the key; if all are, something is wrong.
		if _, err := CheckKey(t.Context(), ring(t, 1), s); err != nil {
			t.Fatal(err)
		}
		damage := func(id string) {
			raw := get(t, s, recordKey(id))
			storetest.MustPut(t, s, recordKey(id), bytes.Replace(raw, []byte(`"sealed":"`), []byte(`"sealed":"AAAA`), 1), store.PutOptions{})
		}
		damage("a")
		wantFit(ring(t, 1), ring(t, 1).KeyID())
		damage("b")
		if _, err := KeyFits(t.Context(), ring(t, 1), s); err == nil || !strings.Contains(err.Error(), "opens no record") {
			t.Errorf("%v", err)
		}
	})
}

func TestAKeyIsChanged(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		sealedWith(t, s, 1, "a", "b")
		report, err := CheckKey(t.Context(), ring(t, 2, 1), s)
		if diff := cmp.Diff(KeyReport{Resealed: 2, Missing: []string{}}, report); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		mustOpen(t, s, 2, "a", "b")
		mustRefuse(t, s, ring(t, 1), 2, 1, 2)
		// What is not a record is sealed with the former key still.
		report, err = CheckKey(t.Context(), ring(t, 2), s)
		if diff := cmp.Diff(KeyReport{Missing: []string{ring(t, 1).KeyID()}}, report); err != nil || diff != "" {
			t.Error(err, diff)
		}
		// And on, and back again.
		for _, step := range []*seal.Keyring{ring(t, 3, 2, 1), ring(t, 1, 3)} {
			if report, err := CheckKey(t.Context(), step, s); err != nil || report.Resealed != 2 {
				t.Fatalf("%+v, %v", report, err)
			}
		}
		mustOpen(t, s, 1, "a", "b")
		want := fmt.Sprintf(`{"keyId":%q,"former":[%q,%q]}`, ring(t, 1).KeyID(), ring(t, 2).KeyID(), ring(t, 3).KeyID())
		if got := string(get(t, s, fingerprintKey)); got != want {
			t.Errorf("the fingerprint is %s, want %s", got, want)
		}
	})
}

func TestAChangeOfTheKeyLeavesDamagedRecordsAsTheyAre(t *testing.T) {
	t.Parallel()
	s := directory(t, t.TempDir())
	sealedWith(t, s, 1, "a", "b", "c", "d")
	damaged := map[string][]byte{
		"b": []byte("{"),
		"c": bytes.Replace(get(t, s, recordKey("c")), []byte(`"v"`), []byte(`"w"`), 1),
		"d": bytes.Repeat([]byte(" "), recordLimit+1),
	}
	for id, content := range damaged {
		put(t, s, recordKey(id), content)
	}
	if report, err := CheckKey(t.Context(), ring(t, 2, 1), s); err != nil || report.Resealed != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	listing := mustList(t, NewRecords(s, ring(t, 2)))
	if len(listing.Stored) != 1 || len(listing.Unreadable) != len(damaged) {
		t.Errorf("%+v", listing)
	}
	for id, content := range damaged {
		if !bytes.Equal(content, get(t, s, recordKey(id))) {
			t.Errorf("%s was changed", id)
		}
	}
}

func TestALostFingerprintIsMadeAgainFromTheRecords(t *testing.T) {
	t.Parallel()
	s := directory(t, t.TempDir())
	sealedWith(t, s, 1, "a")
	lose := func() {
		if err := s.Delete(t.Context(), fingerprintKey); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	if _, err := CheckKey(t.Context(), ring(t, 2), s); err == nil || !strings.Contains(err.Error(), ring(t, 1).KeyID()) {
		t.Errorf("with another key: %v", err)
	}
	mustOpen(t, s, 1, "a")
	lose()
	if report, err := CheckKey(t.Context(), ring(t, 2, 1), s); err != nil || report.Resealed != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	mustOpen(t, s, 2, "a")
}

func TestADamagedFingerprintIsNotReplaced(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "{", "null", `{"keyId":"x"}`, `{"keyId":"` + strings.Repeat("0", 16) + `","former":["\n"]}`, strings.Repeat(" ", fingerprintLimit+1)} {
		s := directory(t, t.TempDir())
		put(t, s, fingerprintKey, []byte(content))
		if _, err := CheckKey(t.Context(), ring(t, 1), s); err == nil || !strings.Contains(err.Error(), fingerprintKey) {
			t.Errorf("%.40q: %v", content, err)
		}
		if got := string(get(t, s, fingerprintKey)); got != content {
			t.Errorf("%.40q became %.40q", content, got)
		}
	}
}

func TestAChangeOfTheKeyThatIsInterruptedAnywhereIsFinishedByTheNextStart(t *testing.T) {
	t.Parallel()
	ids := []string{"a", "b", "c", "d"}
	begin := func(t *testing.T) (*store.Directory, *storetest.Faults) {
		d := directory(t, t.TempDir())
		sealedWith(t, d, 1, ids...)
		return d, storetest.NewFaults(d)
	}
	_, whole := begin(t)
	if _, err := CheckKey(t.Context(), ring(t, 2, 1), whole); err != nil {
		t.Fatal(err)
	}
	points := 0
	for call := 1; call <= whole.Calls(); call++ {
		for _, fault := range storetest.EveryFault() {
			points++
			t.Run(fmt.Sprintf("call %d %s", call, fault), func(t *testing.T) {
				t.Parallel()
				d, faults := begin(t)
				faults.Fail(call, fault)
				_, failed := CheckKey(t.Context(), ring(t, 2, 1), faults)
				// Either key alone opens the store whole, or is refused with a sentence.
				for _, key := range []byte{1, 2} {
					if _, err := CheckKey(t.Context(), ring(t, key), d); err == nil {
						mustOpen(t, d, key, ids...)
					} else if !strings.Contains(err.Error(), "SEALING_KEY") {
						t.Error(err)
					}
				}
				if _, err := CheckKey(t.Context(), ring(t, 2, 1), d); err != nil {
					t.Fatalf("after %v: %v", failed, err)
				}
				mustOpen(t, d, 2, ids...)
			})
		}
	}
	t.Logf("%d points", points)
}

// Somebody who changes his mind half-way, or changes the key again.
func TestAChangeOfTheKeyThatIsInterruptedCanEndWithAnyKey(t *testing.T) {
	t.Parallel()
	ids := []string{"a", "b", "c", "d"}
	for name, c := range map[string]struct {
		keys *seal.Keyring
		ends byte
	}{
		"the old one":   {ring(t, 1, 2), 1},
		"another still": {ring(t, 3, 2, 1), 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := directory(t, t.TempDir())
			sealedWith(t, d, 1, ids...)
			faults := storetest.NewFaults(d)
			const middle = 8 // the fingerprint, its change, the listing, and then pairs of a read and a write
			faults.Fail(middle, storetest.DownAfter)
			if _, err := CheckKey(t.Context(), ring(t, 2, 1), faults); err == nil {
				t.Fatal("it was not interrupted")
			}
			mustRefuse(t, d, ring(t, 1), 2)
			mustRefuse(t, d, ring(t, 2), 1)
			mustRefuse(t, d, ring(t, 3, 2), 1)
			if _, err := CheckKey(t.Context(), c.keys, d); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, d, c.ends, ids...)
		})
	}
}
