package task

import (
	"crypto/rand"
	"strings"
)

// NewID returns prefix and 128 random bits in lower-case letters and digits:
// nobody guesses one, which matters where a provider has no authentication of its
// own, and every provider takes it as a sandbox id.
func NewID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }
