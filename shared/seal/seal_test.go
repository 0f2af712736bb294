package seal

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestAKeyringOpensWhatAnyOfItsKeysSealed(t *testing.T) {
	t.Parallel()
	place := []byte("here")
	for name, c := range map[string]struct {
		keys *Keyring
		ok   bool
	}{
		"the same key":                    {ring(t, 1), true},
		"a newer key with that as former": {ring(t, 2, 3, 1), true},
		"another key":                     {ring(t, 2), false},
		"another key and a wrong former":  {ring(t, 2, 3), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sealed := ring(t, 1).Seal([]byte("x"), place)
			plain, err := c.keys.Open(sealed, place)
			if c.ok && (err != nil || string(plain) != "x") || !c.ok && !errors.Is(err, ErrSeal) {
				t.Errorf("%q, %v", plain, err)
			}
			if _, err := c.keys.Open(sealed, []byte("elsewhere")); !errors.Is(err, ErrSeal) {
				t.Errorf("elsewhere: %v", err)
			}
		})
	}
	if ring(t, 1, 2).KeyID() != ring(t, 1).KeyID() || ring(t, 1).KeyID() == ring(t, 2).KeyID() {
		t.Error("a keyring is not known by the key that seals")
	}
	if keys := ring(t, 1, 1, 2, 2).keys; len(keys) != 2 {
		t.Errorf("%d keys", len(keys))
	}
}

// ring is a keyring of keys that are all one byte.
func ring(t *testing.T, current byte, former ...byte) *Keyring {
	t.Helper()
	fill := func(b byte) [KeySize]byte { return [KeySize]byte(bytes.Repeat([]byte{b}, KeySize)) }
	var before [][KeySize]byte
	for _, b := range former {
		before = append(before, fill(b))
	}
	k, err := NewKeyring(fill(current), before...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAFlippedBitDoesNotOpen(t *testing.T) {
	t.Parallel()
	keys, place := ring(t, 1), []byte("here")
	sealed := keys.Seal([]byte("secret"), place)
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := keys.Open(changed, place); !errors.Is(err, ErrSeal) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for i := range sealed {
		if _, err := keys.Open(sealed[:i], place); !errors.Is(err, ErrSeal) {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
}

func TestASumIsOfWhatAndOfTheKey(t *testing.T) {
	t.Parallel()
	one := ring(t, 1).Sum([]byte("x"))
	if one != ring(t, 1, 2).Sum([]byte("x")) || one == ring(t, 2, 1).Sum([]byte("x")) || one == ring(t, 1).Sum([]byte("y")) {
		t.Error("a sum is not of the key and what is summed alone")
	}
}

func TestADerivedKeyIsOfItsPurposeAndOfTheKey(t *testing.T) {
	t.Parallel()
	derive := func(k *Keyring, purpose string) string {
		key, err := k.Key(purpose)
		if err != nil || len(key) != KeySize {
			t.Fatalf("%x, %v", key, err)
		}
		return string(key)
	}
	one := derive(ring(t, 1), "a")
	if one != derive(ring(t, 1, 2), "a") || one == derive(ring(t, 2, 1), "a") || one == derive(ring(t, 1), "b") {
		t.Error("a derived key is not of the key and its purpose alone")
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
