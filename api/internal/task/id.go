package task

import (
	"crypto/rand"
	"strings"
)

// The prefixes of ids, by what a sandbox was made for.
const (
	PrefixTask    = "task-"
	PrefixTeam    = "team-"
	PrefixSandbox = "sbx-"
)

// NewID returns an id that nobody guesses: a short prefix and 130 random bits in
// lower-case letters and digits. A backend's sandboxes have it as their id, so it
// keeps that contract's rules.
func NewID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }
