package guest

import (
	"strings"
	"unicode"
)

// Printable makes text from a sandbox fit for a log, a terminal or an error:
// control and other unprintable characters become spaces, invalid UTF-8 is
// replaced, and what is beyond limit bytes is cut off at a character's border.
func Printable(text string, limit int) string {
	var b strings.Builder
	for _, r := range text {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		if b.Len()+len(string(r)) > limit {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}
