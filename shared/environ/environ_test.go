package environ_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/environ"
)

type settings struct {
	Wait  time.Duration `env:"TEST_WAIT" envDefault:"5s"`
	Count int           `env:"TEST_COUNT" envDefault:"3"`
	Key   string        `env:"TEST_KEY,unset"`
	Keys  []string      `env:"TEST_KEYS,unset"`
	Plain string        `env:"TEST_PLAIN"`
	Given string        `env:"-"`
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLinesBecomeAMap(t *testing.T) {
	t.Parallel()
	got := environ.Map([]string{"A=1", "B=x=y", "C=", "no value"})
	if len(got) != 3 || got["A"] != "1" || got["B"] != "x=y" {
		t.Errorf("%v", got)
	}
}

func TestValuesDefaultsAndFilesAreRead(t *testing.T) {
	t.Parallel()
	got, err := environ.Parse[settings](map[string]string{
		"TEST_COUNT": "7", "TEST_KEY_FILE": file(t, "the key\n"), "TEST_KEYS_FILE": file(t, "a,b\n"), "TEST_PLAIN_FILE": "/nowhere",
	})
	if err != nil || got.Wait != 5*time.Second || got.Count != 7 || got.Key != "the key" || !slices.Equal(got.Keys, []string{"a", "b"}) || got.Plain != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestASecretLeavesTheProcess(t *testing.T) {
	t.Setenv("TEST_KEY", "the key")
	got, err := environ.Parse[settings](environ.Map(os.Environ()))
	if err != nil || got.Key != "the key" {
		t.Fatalf("%+v, %v", got, err)
	}
	if still, ok := os.LookupEnv("TEST_KEY"); ok {
		t.Errorf("%q is still there", still)
	}
}

func TestWhatIsWrongIsNamedAtOnceWithoutTheSecrets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		environ map[string]string
		says    []string
	}{
		"values of another type": {map[string]string{"TEST_WAIT": "hidden", "TEST_COUNT": "hidden"}, []string{"TEST_WAIT must be a time with a unit (s, m or h), such as 5s", "TEST_COUNT must be a whole number, such as 3"}},
		"a value and a file":     {map[string]string{"TEST_KEY": "hidden", "TEST_KEY_FILE": file(t, "hidden")}, []string{"TEST_KEY and TEST_KEY_FILE are both set"}},
		"a file that is missing": {map[string]string{"TEST_KEY_FILE": "/nowhere/at/all", "TEST_COUNT": "many"}, []string{"TEST_KEY_FILE must be", "/nowhere/at/all", "TEST_COUNT must be"}},
		"a file that is empty":   {map[string]string{"TEST_KEY_FILE": file(t, " \n")}, []string{"TEST_KEY_FILE must be", "is empty"}},
		"a file that is large":   {map[string]string{"TEST_KEY_FILE": file(t, strings.Repeat("hidden", 20_000))}, []string{"TEST_KEY_FILE must be", "at most"}},
		"a folder":               {map[string]string{"TEST_KEY_FILE": t.TempDir()}, []string{"TEST_KEY_FILE must be", "must be a file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := environ.Parse[settings](c.environ)
			if err == nil || strings.Contains(err.Error(), "hidden") {
				t.Fatalf("%v", err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}
