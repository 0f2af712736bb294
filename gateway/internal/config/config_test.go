package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTheDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c, err := Load(map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Addr != "127.0.0.1:8787" || c.Memory != 2<<30 || !slices.Equal(c.GitProtocols, []string{"https", "ssh", "git"}) || !c.Defaults.Empty() {
		t.Errorf("%+v", c)
	}
}

func TestABadValueIsNamedWithItsShape(t *testing.T) {
	t.Parallel()
	for variable, value := range map[string]string{
		"GATEWAY_ADDR": "8787", "GATEWAY_TOKEN": "short", "LOG_LEVEL": "loud", "LOG_FORMAT": "xml", "SANDBOX_REACH": "far", "SANDBOX_MEMORY": "1K",
		"SANDBOX_CPUS": "0", "SANDBOX_PIDS": "-1", "MAX_RUNNING": "-1", "BOOT_TIMEOUT": "0s", "PERMISSION_POLICY": "maybe", "GIT_PROTOCOLS": "file",
		"AGENTPOD_API_URL": "ftp://x", "DEFAULT_CONFIG": "[]", "SANDBOX_TMP_SIZE": "much", "MESSAGE_TIMEOUT": "soon",
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			_, err := Load(map[string]string{variable: value})
			if err == nil || !strings.Contains(err.Error(), variable) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAllThatIsWrongIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Load(map[string]string{"LOG_LEVEL": "loud", "SANDBOX_CPUS": "0"})
	if err == nil || !strings.Contains(err.Error(), "LOG_LEVEL") || !strings.Contains(err.Error(), "SANDBOX_CPUS") {
		t.Errorf("%v", err)
	}
}

func TestProviderKeysBecomeDefaultCredentials(t *testing.T) {
	t.Parallel()
	c, err := Load(map[string]string{
		"ANTHROPIC_API_KEY": "sk-a", "GEMINI_API_KEY": "g1", "GOOGLE_GENERATIVE_AI_API_KEY": "g2", "OPENAI_API_KEY": " ",
		"DEFAULT_CONFIG": `{"auth":{"anthropic":{"type":"api","key":"from-config"}}}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.Defaults.Auth["anthropic"]); !strings.Contains(got, "from-config") {
		t.Errorf("what DEFAULT_CONFIG says is overridden: %s", got)
	}
	if got := string(c.Defaults.Auth["google"]); !strings.Contains(got, "g1") || len(c.Defaults.Auth) != 2 {
		t.Errorf("auth = %v", c.Defaults.Auth)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bytes{"1": 1, "2k": 2048, "512MiB": 512 << 20, "2GB": 2 << 30, "3 G": 3 << 30, "x": -1, "-1": -1, "1T": -1, "": -1, "9999999999G": -1} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil {
			b = -1
		}
		if b != want {
			t.Errorf("%q = %d, want %d", text, b, want)
		}
	}
}

// The table of the README and the struct describe the same variables, with the
// same defaults.
func TestTheREADMEHasEveryVariable(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(raw), -1) {
		rows[m[1]] = strings.Trim(strings.TrimSpace(m[2]), "`")
	}
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("env"), ",")
		if name == "" || name == "-" {
			continue
		}
		shown, ok := rows[name]
		if !ok {
			t.Errorf("the README has no row for %s", name)
			continue
		}
		if def := typ.Field(i).Tag.Get("envDefault"); def != "" && shown != def {
			t.Errorf("the README says that %s is %q by default, and it is %q", name, shown, def)
		}
		delete(rows, name)
	}
	for _, name := range []string{"README.md", "compose.yaml", ".ci/up"} {
		raw, err := os.ReadFile("../../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range ProviderKeys() {
			if !strings.Contains(string(raw), k.Variable) {
				t.Errorf("%s does not name %s", name, k.Variable)
			}
		}
	}
	for name := range rows {
		t.Errorf("the README has a row for %s, which nothing reads", name)
	}
}
