package environtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// spy is a test that may fail.
type spy struct {
	testing.TB
	said []string
}

func (s *spy) Helper() {}
func (s *spy) Errorf(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

type settings struct {
	Addr   string `env:"ADDR" envDefault:"127.0.0.1:1"`
	Secret string `env:"SECRET,unset"`
	Other  string `env:"-"`
}

func expect(t *testing.T, s *spy, says string) {
	t.Helper()
	got := strings.Join(s.said, "\n")
	if says == "" && got != "" || !strings.Contains(got, says) {
		t.Errorf("it says %q, and should say %q", got, says)
	}
}

func TestATableHasAllVariablesAndNoOthers(t *testing.T) {
	t.Parallel()
	const addr, secret = "| `ADDR` | `127.0.0.1:1` | Where. |\n", "| `SECRET` | none | What. |\n"
	for name, c := range map[string]struct{ rows, says string }{
		"as it should be":               {addr + secret, ""},
		"another section is not its":    {addr + secret + "\n### More\n\n| `OTHER` | none | What. |\n", ""},
		"one is missing":                {addr, "no row for SECRET"},
		"one has another default":       {strings.Replace(addr, "1:1", "1:2", 1) + secret, `ADDR is "127.0.0.1:2"`},
		"one is there that nobody read": {addr + secret + "| `OTHER` | none | What. |\n", "OTHER, which nothing reads"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "README.md")
			if err := os.WriteFile(path, []byte("# It\n\n## Settings\n\n"+c.rows), 0o600); err != nil {
				t.Fatal(err)
			}
			s := &spy{TB: t}
			Table[settings](s, path, "## Settings")
			expect(t, s, c.says)
		})
	}
}

func TestSecretsAreNotPassedAsTheyAre(t *testing.T) {
	t.Parallel()
	value, file, elsewhere := "x", "/run/secrets/the.secret", "/etc/secret"
	for name, c := range map[string]struct {
		environment map[string]*string
		says        string
	}{
		"a file, and a plain value":      {map[string]*string{"ADDR": &value, "SECRET_FILE": &file}, ""},
		"one that is passed on":          {map[string]*string{"SECRET": nil, "KEY": nil}, ""},
		"a secret as it is":              {map[string]*string{"SECRET": &value}, "the value of the secret SECRET"},
		"another program's key as it is": {map[string]*string{"KEY": &value}, "the value of the secret KEY"},
		"a file that is no secret":       {map[string]*string{"SECRET_FILE": &elsewhere}, "SECRET_FILE names none"},
		"a file of what is no secret":    {map[string]*string{"ADDR_FILE": &file}, "ADDR_FILE is given, which nothing reads"},
		"a name that is none":            {map[string]*string{"ADRR": &value}, "ADRR is given, which nothing reads"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &spy{TB: t}
			Passed[settings](s, c.environment, []string{"the.secret"}, "KEY")
			expect(t, s, c.says)
		})
	}
}
