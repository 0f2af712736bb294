package workspace

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// KeySize is the size of a sealing key in bytes: AES-256.
const KeySize = 32

// ErrSeal is returned for what was not sealed by this key, for this place, or
// was changed since.
var ErrSeal = errors.New("damaged, moved, or sealed with another key")

// Sealer encrypts and authenticates with AES-256-GCM.
type Sealer struct {
	aead cipher.AEAD
	id   string
}

// NewSealer makes a Sealer of a key.
func NewSealer(key [KeySize]byte) (*Sealer, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	fingerprint := sha256.Sum256(append([]byte("agentpod sealing key\x00"), key[:]...))
	return &Sealer{aead: aead, id: hex.EncodeToString(fingerprint[:8])}, nil
}

// KeyID names the key without giving it away.
func (s *Sealer) KeyID() string { return s.id }

// Seal encrypts plain and binds it to context, which must be given again to open it.
func (s *Sealer) Seal(plain, context []byte) []byte {
	return s.aead.Seal(nil, nil, plain, context) //nolint:gosec // the AEAD makes its own random nonces
}

// Open is the inverse of Seal; its error is ErrSeal.
func (s *Sealer) Open(sealed, context []byte) ([]byte, error) {
	plain, err := s.aead.Open(nil, nil, sealed, context)
	if err != nil {
		return nil, ErrSeal
	}
	return plain, nil
}

// ParseKey reads a key of 32 bytes in hex or base64.
func ParseKey(text string) (key [KeySize]byte, err error) {
	text = strings.TrimSpace(text)
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != KeySize {
		raw, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil || len(raw) != KeySize {
		return key, fmt.Errorf("the sealing key must be %d bytes as 64 hex digits or in base64; make one with: openssl rand -hex 32", KeySize)
	}
	copy(key[:], raw)
	return key, nil
}

// LoadOrMakeKey reads the key file, making one (mode 0600) if there is none.
func LoadOrMakeKey(path string) (key [KeySize]byte, made bool, err error) {
	text, made, err := LoadOrMakeSecret(path, func() string {
		var fresh [KeySize]byte
		_, _ = rand.Read(fresh[:]) // never fails: see crypto/rand
		return hex.EncodeToString(fresh[:])
	})
	if err != nil {
		return key, false, err
	}
	key, err = ParseKey(text)
	if err != nil {
		return key, false, fmt.Errorf("%s: %w", path, err)
	}
	return key, made, nil
}

// LoadOrMakeSecret reads a one-line secret from a file that only its owner can
// read, making it with generate if it is not there.
func LoadOrMakeSecret(path string, generate func() string) (secret string, made bool, err error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the operator's own path
	if errors.Is(err, os.ErrNotExist) {
		secret = generate()
		if err := writeDurably(path, []byte(secret+"\n")); err != nil {
			return "", false, err
		}
		return secret, true, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("reading a secret: %w", err)
	}
	secret = strings.TrimSpace(string(raw))
	if secret == "" {
		return "", false, fmt.Errorf("%s is empty; remove it to have a new one made", path)
	}
	return secret, false, nil
}
