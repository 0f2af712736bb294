package printable_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/printable"
)

func TestLine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in    string
		limit int
		want  string
	}{
		"plain":                           {"as it is", 100, "as it is"},
		"line breaks and tabs":            {"two\nlines\tand\r more", 100, "two lines and  more"},
		"escape sequences":                {"\x1b]0;title\x07red\u009b31m", 100, "]0;title red 31m"},
		"delete":                          {"a\x7fb", 100, "a b"},
		"directions and a byte order":     {"right\u202eto\u2066left\ufeff", 100, "right to left"},
		"line separators":                 {"a\u2028b\u2029c\u0085d", 100, "a b c d"},
		"spaces that are none":            {"a\u00a0b\u3000c", 100, "a b c"},
		"a character beyond 16 bits":      {"a\U000e0001b😀", 100, "a b😀"},
		"invalid UTF-8":                   {"bad\xffbytes", 100, "bad\uFFFDbytes"},
		"spaces at the ends":              {" \t a b \n ", 3, "a b"},
		"nothing but control":             {"\x00\x01", 100, ""},
		"nothing":                         {"", 0, ""},
		"exactly as long as the limit":    {"abc", 3, "abc"},
		"longer by spaces only":           {"abc" + strings.Repeat(" ", 50), 3, "abc"},
		"longer":                          {"abcdefg", 6, "abc…"},
		"cut at the border of a rune":     {"aéééé", 7, "aé…"},
		"cut at a space":                  {"abc defg", 7, "abc…"},
		"cut in a gap":                    {"ab" + strings.Repeat(" ", 50) + "cd", 10, "ab…"},
		"a limit too small for the mark":  {"abcdef", 2, "ab"},
		"a limit too small for a rune":    {"é", 1, ""},
		"no room":                         {"abc", 0, ""},
		"a limit below nothing":           {"abc", -5, ""},
		"a long text is cut at its limit": {strings.Repeat("é", 3000), 2001, strings.Repeat("é", 999) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := printable.Line(tc.in, tc.limit); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in    string
		limit int
		want  string
	}{
		"lines and tabs stay":             {"a\n\tb\n", 100, "a\n\tb\n"},
		"line breaks of other systems":    {"a\r\nb\rc\n\rd\r\r\ne", 100, "a\nb\nc\n\nd\n\ne"},
		"control and format characters":   {"\x1b[31mred\u009b0m\u202e\x7f\x00", 100, "[31mred0m"},
		"invalid UTF-8":                   {"a\xffb", 100, "a\uFFFDb"},
		"exactly as long as the limit":    {"abc", 3, "abc"},
		"longer":                          {"abcdefg", 6, "…efg"},
		"cut at the border of a rune":     {"éééé", 6, "…é"},
		"what is dropped does not count":  {strings.Repeat("\x00", 50) + "abc", 3, "abc"},
		"a limit too small for the mark":  {"abcdef", 2, "ef"},
		"a limit too small for a rune":    {"éé", 1, ""},
		"a limit below nothing":           {"abc", -1, ""},
		"nothing":                         {"", 0, ""},
		"a carriage return that is split": {"a\r\u202e\nb", 100, "a\n\nb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := printable.Tail(tc.in, tc.limit); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain é 😀 \\ text\n\tnext": "plain é 😀 \\ text\n\tnext",
		"\x1b[2J\r\x00\x7f":         `\x1b[2J\x0d\x00\x7f`,
		"\u009b\u202e\u2028\u00a0":  `\u009b\u202e\u2028\u00a0`,
		"\U000e0001":                `\U000e0001`,
		"a\xffb\xe2\x82":            `a\xffb\xe2\x82`,
		"\xe2\x82x":                 `\xe2\x82x`,
	} {
		if got := printable.Escape(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestAWriterEscapesHoweverItIsFed(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("é😀\x1b\u202e\n\xff€x", 20_000)
	for _, size := range []int{1, 2, 3, 5, 1000, 64 << 10, len(text)} {
		var out bytes.Buffer
		w := printable.NewWriter(&out)
		for rest := text; rest != ""; {
			n, err := io.WriteString(w, rest[:min(size, len(rest))])
			if err != nil || n != min(size, len(rest)) {
				t.Fatalf("writes of %d: %d, %v", size, n, err)
			}
			rest = rest[n:]
		}
		if out.String() != printable.Escape(text) {
			t.Errorf("writes of %d bytes give another text", size)
		}
	}
}

// limited takes some writes whole and then does as it is told.
type limited struct {
	left int
	n    int
	err  error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left == 0 {
		return l.n, l.err
	}
	l.left--
	return len(p), nil
}

func TestAWriterFailsAsTheOneBelow(t *testing.T) {
	t.Parallel()
	full := errors.New("the disk is full")
	for name, tc := range map[string]struct {
		to   limited
		in   int
		n    int
		want error
	}{
		"at once":              {limited{0, 0, full}, 10, 0, full},
		"in a later piece":     {limited{1, 3, full}, 100 << 10, 64 << 10, full},
		"a write that is less": {limited{0, 3, nil}, 10, 0, io.ErrShortWrite},
		"nothing to write":     {limited{0, 0, full}, 0, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := printable.NewWriter(&tc.to).Write(bytes.Repeat([]byte("x"), tc.in))
			if n != tc.n || !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}

func all(t *testing.T, text, also string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%q is not UTF-8", text)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) && !strings.ContainsRune(also, r) {
			t.Errorf("%q holds %U", text, r)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "a b", "\x1b[2J\r\n", "é\u202e\xff\xe2\x82", strings.Repeat("x€ ", 40)} {
		f.Add(s, 10, 3)
	}
	f.Fuzz(func(t *testing.T, s string, limit, split int) {
		line := printable.Line(s, limit)
		all(t, line, "")
		if len(line) > max(0, limit) || strings.TrimSpace(line) != line {
			t.Errorf("line of %d: %q", limit, line)
		}
		if again := printable.Line(line, limit); again != line {
			t.Errorf("line %q becomes %q", line, again)
		}
		tail := printable.Tail(s, limit)
		all(t, tail, "\n\t")
		if len(tail) > max(0, limit) {
			t.Errorf("tail of %d: %q", limit, tail)
		}
		escaped := printable.Escape(s)
		all(t, escaped, "\n\t")
		at := min(len(s), max(0, split))
		var out bytes.Buffer
		w := printable.NewWriter(&out)
		for _, piece := range []string{s[:at], s[at:]} {
			if n, err := io.WriteString(w, piece); n != len(piece) || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
		}
		if !strings.HasPrefix(escaped, out.String()) || len(escaped)-out.Len() > 3*len(`\xff`) {
			t.Errorf("%q written gives %q, want %q", s, out.String(), escaped)
		}
	})
}

func TestATextIsCutBetweenCharacters(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "a": 1, "aé": 3, "aé\xe2": 3, "a\xe2\x82": 1, "\xf0\x9f\x98": 0, "\xf0\x9f\x98\x80": 4, "€\xf0\x9f": 3,
		"a\xff": 2, "a\x80\x80\x80": 4, "a\xc0": 2, "\xe2(\xe2": 2, "é\xed\xa0": 4, // the last one is half a surrogate's
	} {
		whole, rest := printable.Whole([]byte(text))
		if len(whole) != want || string(whole)+string(rest) != text {
			t.Errorf("%q is cut into %q and %q", text, whole, rest)
		}
	}
}
