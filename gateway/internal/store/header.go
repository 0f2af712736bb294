package store

import (
	"encoding/base64"
	"strings"
)

// encodeHeader writes a metadata's value as a header can carry it: plain ASCII as
// it is, everything else as one encoded word (RFC 2047), as AWS and R2 do. The
// client decodes it.
func encodeHeader(value string) string {
	plain := value == strings.TrimSpace(value) && !strings.Contains(value, "=?")
	if plain && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return value
	}
	return "=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(value)) + "?="
}
