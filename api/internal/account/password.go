package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"

	"golang.org/x/crypto/argon2"
)

// The bounds of a password, in UTF-16 code units, as the login client counts.
const (
	MinPassword = 8
	MaxPassword = 128
)

// What argon2id costs: OWASP's first recommendation (19 MiB, two passes).
const (
	argonMemory = 19 << 10 // KiB
	argonPasses = 2
	argonLanes  = 1
	saltBytes   = 16
	hashBytes   = 32
)

// CheckPassword says whether a new password may be one. Errors:
// ErrPasswordTooShort, ErrPasswordTooLong.
func CheckPassword(password string) error {
	switch n := len(utf16.Encode([]rune(password))); {
	case n < MinPassword:
		return ErrPasswordTooShort
	case n > MaxPassword:
		return ErrPasswordTooLong
	}
	return nil
}

// hasher hashes a few passwords at a time: each takes argonMemory.
type hasher struct{ slots chan struct{} }

func newHasher(atOnce int) hasher { return hasher{slots: make(chan struct{}, atOnce)} }

// key derives from a password what is compared, when there is a free slot.
func (h hasher) key(ctx context.Context, password string, salt []byte, memory, passes uint32, lanes uint8) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting to hash a password: %w", ctx.Err())
	}
	defer func() { <-h.slots }()
	return argon2.IDKey([]byte(password), salt, passes, memory, lanes, hashBytes), nil
}

// hash makes a string in PHC's format: $argon2id$v=19$m=…,t=…,p=…$salt$hash.
func (h hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	key, err := h.key(ctx, password, salt, argonMemory, argonPasses, argonLanes)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonPasses, argonLanes,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// verify tells whether a password is the hashed one. It returns an error only
// if it cannot say.
func (h hasher) verify(ctx context.Context, password, hashed string) (bool, error) {
	var (
		version        int
		memory, passes uint32
		lanes          uint8
	)
	parts := strings.Split(hashed, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, errors.New("a password's hash is not argon2id's")
	}
	if _, err := fmt.Sscanf(parts[2]+" "+parts[3], "v=%d m=%d,t=%d,p=%d", &version, &memory, &passes, &lanes); err != nil {
		return false, fmt.Errorf("reading a password's hash: %w", err)
	}
	// The bounds keep a damaged row from taking the machine's memory, or panicking.
	if version != argon2.Version || memory > 1<<20 || passes < 1 || passes > 100 || lanes < 1 {
		return false, errors.New("a password's hash has costs that make no sense")
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false, fmt.Errorf("reading a password's salt: %w", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil {
		return false, fmt.Errorf("reading a password's hash: %w", err)
	}
	got, err := h.key(ctx, password, salt, memory, passes, lanes)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
