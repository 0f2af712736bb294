package workspace

import (
	"crypto/aes"
	"crypto/cipher"
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
		if !k.has(made.id) {
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
	fingerprint := sha256.Sum256(append([]byte("agentpod sealing key\x00"), key[:]...))
	return sealingKey{aead: aead, id: hex.EncodeToString(fingerprint[:8])}, nil
}

// KeyID names the key that Seal uses without giving it away.
func (k *Keyring) KeyID() string { return k.keys[0].id }

func (k *Keyring) has(id string) bool {
	return slices.ContainsFunc(k.keys, func(key sealingKey) bool { return key.id == id })
}

// Seal encrypts plain and binds it to context, which must be given again to open it.
func (k *Keyring) Seal(plain, context []byte) []byte {
	return k.keys[0].aead.Seal(nil, nil, plain, context) //nolint:gosec // the AEAD makes its own random nonces
}

// Open is the inverse of Seal, with any of the keys; its error is ErrSeal.
func (k *Keyring) Open(sealed, context []byte) ([]byte, error) {
	plain, _, err := k.open(sealed, context)
	return plain, err
}

// open is Open, and says which key it was.
func (k *Keyring) open(sealed, context []byte) (plain []byte, id string, err error) {
	for _, key := range k.keys {
		if plain, err := key.aead.Open(nil, nil, sealed, context); err == nil {
			return plain, key.id, nil
		}
	}
	return nil, "", ErrSeal
}
