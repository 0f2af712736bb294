package seal

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

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

// writeDurably replaces a file as a whole: after a crash it is the old one or
// the new one. Only the owner can read it.
func writeDurably(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(content); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := tmp.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator's own path
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
