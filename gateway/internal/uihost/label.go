package uihost

import (
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"strings"
)

// hashed is what a label begins with that is not an id. No id is used as it is
// that has two hyphens in a row: such labels are ours (PORT--ID is reserved), and
// those of encoded names (xn--…).
const hashed = "x--"

var (
	plainLabel  = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$`)
	hashedLabel = regexp.MustCompile(`^` + hashed + `[a-z2-7]{32}$`)
)

// isPlain says whether a text is an id that can be a label, or the label of one.
func isPlain(text string) bool { return plainLabel.MatchString(text) && !strings.Contains(text, "--") }

// Label is the host label of a sandbox: its id if that is fit for one, otherwise
// 160 bits of a hash. No two ids have the same.
func Label(id string) string {
	if isPlain(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hashed + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:20]))
}

// isLabel says whether a text can be what Label returns.
func isLabel(text string) bool { return isPlain(text) || hashedLabel.MatchString(text) }
