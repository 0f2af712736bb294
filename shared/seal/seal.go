// Package seal keeps secrets: it encrypts and authenticates what is stored,
// together with the place that it is stored at, with keys that can be changed,
// and keeps the keys themselves in files.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// KeySize is the size of a sealing key in bytes: AES-256.
const KeySize = 32

// ErrSeal is returned for what was not sealed by one of the keys, for this
// place, or was changed since.
var ErrSeal = errors.New("damaged, moved, or sealed with another key")

// Keyring encrypts and authenticates with AES-256-GCM: it seals with one key and
// opens with that and with those used before it. Its methods can be called
// concurrently.
type Keyring struct {
	keys []sealingKey // the current one first
}

type sealingKey struct {
	aead cipher.AEAD
	mac  []byte // a key of its own, derived
	root []byte // what Key derives from
	id   string
}

// NewKeyring makes a Keyring of the key to seal with, and of keys that what is
// stored may be sealed with still.
func NewKeyring(current [KeySize]byte, former ...[KeySize]byte) (*Keyring, error) {
	k := &Keyring{}
	for _, key := range append([][KeySize]byte{current}, former...) {
		made, err := newSealingKey(key)
		if err != nil {
			return nil, err
		}
		if !k.Has(made.id) {
			k.keys = append(k.keys, made)
		}
	}
	return k, nil
}

func newSealingKey(key [KeySize]byte) (sealingKey, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return sealingKey{}, fmt.Errorf("making the cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealingKey{}, fmt.Errorf("making the cipher: %w", err)
	}
	mac, err := hkdf.Expand(sha256.New, key[:], "agentpod sums", KeySize)
	if err != nil {
		return sealingKey{}, fmt.Errorf("deriving a key: %w", err)
	}
	root, err := hkdf.Expand(sha256.New, key[:], "agentpod keys", KeySize)
	if err != nil {
		return sealingKey{}, fmt.Errorf("deriving a key: %w", err)
	}
	fingerprint := sha256.Sum256(append([]byte("agentpod sealing key\x00"), key[:]...))
	return sealingKey{aead: aead, mac: mac, root: root, id: hex.EncodeToString(fingerprint[:8])}, nil
}

// KeyID names the key that Seal uses without giving it away.
func (k *Keyring) KeyID() string { return k.keys[0].id }

// Has tells whether the key of that id is in the ring.
func (k *Keyring) Has(id string) bool {
	return slices.ContainsFunc(k.keys, func(key sealingKey) bool { return key.id == id })
}

// Seal encrypts plain and binds it to context, which must be given again to open it.
func (k *Keyring) Seal(plain, context []byte) []byte {
	return k.keys[0].aead.Seal(nil, nil, plain, context) //nolint:gosec // the AEAD makes its own random nonces
}

// Open is the inverse of Seal, with any of the keys; its error is ErrSeal.
func (k *Keyring) Open(sealed, context []byte) ([]byte, error) {
	plain, _, err := k.OpenBy(sealed, context)
	return plain, err
}

// OpenBy is Open, and says which key it was.
func (k *Keyring) OpenBy(sealed, context []byte) (plain []byte, id string, err error) {
	for _, key := range k.keys {
		if plain, err := key.aead.Open(nil, nil, sealed, context); err == nil {
			return plain, key.id, nil
		}
	}
	return nil, "", ErrSeal
}

// Sum is a hash of what must not be guessed from it. It changes with the key
// that seals.
func (k *Keyring) Sum(plain []byte) string {
	m := hmac.New(sha256.New, k.keys[0].mac)
	_, _ = m.Write(plain) // never fails
	return hex.EncodeToString(m.Sum(nil))
}

// Key is a key of KeySize bytes for one purpose, from which neither the sealing key
// nor a key for another purpose can be worked out. It changes with the key that
// seals.
func (k *Keyring) Key(purpose string) ([]byte, error) {
	key, err := hkdf.Expand(sha256.New, k.keys[0].root, purpose, KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	return key, nil
}
