// Package printable is the one rule for text that came from a sandbox before it
// reaches a person, a log or a terminal. A character counts as printable when
// unicode.IsPrint says so: letters, marks, numbers, punctuation, symbols and the
// ASCII space. Control characters (C0, DEL and C1), format characters such as
// the bidirectional ones, and every other space do not. Invalid UTF-8 never
// passes. All functions are safe for concurrent use; a Writer is not.
package printable

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ellipsis marks where text was cut.
const ellipsis = "…"

// Line makes one line of s: what is not printable becomes a space, invalid UTF-8
// becomes U+FFFD, and the ends are trimmed. Of more than limit bytes the
// beginning is kept, cut at the border of a character and marked with "…"; the
// mark counts towards the limit.
func Line(s string, limit int) string {
	var b strings.Builder
	spaces := 0 // seen and not written: those at the end never are
	for _, r := range s {
		if r == ' ' || !unicode.IsPrint(r) {
			if b.Len() > 0 {
				spaces++
			}
			continue
		}
		if b.Len()+spaces+utf8.RuneLen(r) > limit {
			return cutLine(b.String(), limit)
		}
		for ; spaces > 0; spaces-- {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// cutLine cuts a line that goes on beyond limit.
func cutLine(line string, limit int) string {
	mark := ellipsis
	if limit < len(mark) {
		mark = ""
	}
	end := min(max(0, limit-len(mark)), len(line))
	for end > 0 && end < len(line) && !utf8.RuneStart(line[end]) {
		end--
	}
	return strings.TrimRight(line[:end], " ") + mark
}

// Tail makes s fit to be quoted over several lines: line breaks ("\r\n" and "\r"
// are such, too) and tabs stay, invalid UTF-8 becomes U+FFFD, and what else is
// not printable is dropped. Of more than limit bytes the end is kept, cut at the
// border of a character and marked with "…" in front; the mark counts towards
// the limit.
func Tail(s string, limit int) string {
	var b strings.Builder
	carriage := false
	for _, r := range s {
		after := carriage
		carriage = r == '\r'
		switch {
		case carriage:
			b.WriteByte('\n')
		case r == '\n' && after: // the second half of one line break
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		}
	}
	text := b.String()
	if len(text) <= limit {
		return text
	}
	mark := ellipsis
	if limit < len(mark) {
		mark = ""
	}
	begin := len(text) - max(0, limit-len(mark))
	for begin < len(text) && !utf8.RuneStart(text[begin]) {
		begin++
	}
	return mark + text[begin:]
}

// Whole takes the beginning of a character from the end of text whose rest is still
// to come. What can be no character's beginning stays. Both share text's memory.
func Whole(text []byte) (whole, rest []byte) {
	for i := len(text) - 1; i >= max(0, len(text)-utf8.UTFMax+1); i-- {
		if !utf8.RuneStart(text[i]) {
			continue
		}
		if !utf8.FullRune(text[i:]) {
			return text[:i], text[i:]
		}
		break
	}
	return text, nil
}

// Escape shows what is not printable in place of sending it: \x1b, \u202e,
// \U000e0001, and \xff for a byte that is no UTF-8. Line breaks (\n) and tabs
// stay. A backslash stays too: the result is for people, not to be parsed.
func Escape(s string) string {
	out, rest := escape(nil, []byte(s))
	return string(escapeBytes(out, rest))
}

// escape appends the characters of in to out. rest is an unfinished character
// at the end.
func escape(out, in []byte) (escaped, rest []byte) {
	for len(in) > 0 && utf8.FullRune(in) {
		r, size := utf8.DecodeRune(in)
		switch {
		case r == utf8.RuneError && size == 1:
			out = escapeBytes(out, in[:1])
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			out = append(out, in[:size]...)
		case r < utf8.RuneSelf:
			out = fmt.Appendf(out, `\x%02x`, r)
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = fmt.Appendf(out, `\U%08x`, r)
		}
		in = in[size:]
	}
	return out, in
}

func escapeBytes(out, in []byte) []byte {
	for _, b := range in {
		out = fmt.Appendf(out, `\x%02x`, b)
	}
	return out
}

// chunk is how many bytes a Write escapes at a time, so that a long one costs
// little memory.
const chunk = 64 << 10

type writer struct {
	to   io.Writer
	half []byte // the beginning of a character whose rest the next Write brings
	out  []byte
}

// NewWriter returns a writer that passes to w what Escape makes of everything
// written to it, however it is split. A character that is never finished is
// never passed on. Its errors are w's; of a Write that fails it counts only the
// pieces that w took whole. It is not safe for concurrent use.
func NewWriter(w io.Writer) io.Writer { return &writer{to: w} }

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		piece := p[done:min(len(p), done+chunk)]
		in := piece
		if len(w.half) > 0 {
			in = slices.Concat(w.half, piece)
		}
		out, rest := escape(w.out[:0], in)
		w.out, w.half = out, append(w.half[:0], rest...)
		if len(out) > 0 {
			n, err := w.to.Write(out)
			if err == nil && n < len(out) {
				err = io.ErrShortWrite
			}
			if err != nil {
				return done, err
			}
		}
		done += len(piece)
	}
	return len(p), nil
}
