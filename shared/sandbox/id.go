package sandbox

import (
	"regexp"
	"strings"
)

// MaxIDLength is the contract's bound on a sandbox id, in characters.
const MaxIDLength = 63

// idPattern leaves the length to who uses it: a bound in a pattern costs memory and time.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// reserved are the ids that the worker's host routing keeps for itself.
//
//nolint:gochecknoglobals // a constant set
var reserved = map[string]bool{
	"www": true, "api": true, "admin": true, "root": true,
	"system": true, "cloudflare": true, "workers": true,
}

// CheckID returns an invalid_id error unless id is one that the contract
// allows: 1–63 characters, a letter or digit and then letters, digits, _ or -,
// and none of the reserved names.
func CheckID(id string) error {
	if len(id) > MaxIDLength || !idPattern.MatchString(id) {
		return Errorf(CodeInvalidID, "the sandbox id must be 1 to %d characters: a letter or digit, then letters, digits, '_' or '-'", MaxIDLength)
	}
	if reserved[id] {
		return Errorf(CodeInvalidID, "the sandbox id %q is reserved; choose another", id)
	}
	return nil
}

// maxDecodes bounds how often CheckPath peels percent-encoding; deeper nesting
// than this has no honest use and is refused.
const maxDecodes = 8

// CheckPath refuses a URL path (still percent-encoded) that could mean another
// path to somebody further on: a dot segment after repeated decoding, a
// backslash, or a control byte.
func CheckPath(escaped string) error {
	p := escaped
	for range maxDecodes {
		if err := checkDecoded(p); err != nil {
			return err
		}
		next, changed := unescapeOnce(p)
		if !changed {
			return nil
		}
		p = next
	}
	return Errorf(CodeInvalidPath, "the path is percent-encoded too many times over")
}

func checkDecoded(p string) error {
	for i := range len(p) {
		if p[i] < 0x20 || p[i] == 0x7f {
			return Errorf(CodeInvalidPath, "the path has a control character")
		}
	}
	if strings.Contains(p, `\`) {
		return Errorf(CodeInvalidPath, "the path has a backslash")
	}
	for seg := range strings.SplitSeq(p, "/") {
		// A parameter suffix (..;x) counts as a dot segment to some servers.
		name, _, _ := strings.Cut(seg, ";")
		if name == "." || name == ".." {
			return Errorf(CodeInvalidPath, "the path has a dot segment")
		}
	}
	return nil
}

// unescapeOnce decodes one layer of percent-encoding. A '%' that does not begin
// an escape stays as it is: it can be the decoded form of %25.
func unescapeOnce(s string) (out string, changed bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			b.WriteByte('%')
			continue
		}
		b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
		changed = true
		i += 2
	}
	return b.String(), changed
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	default:
		return c - 'a' + 10
	}
}
