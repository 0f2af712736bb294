package config

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/agentpod/agentpod/shared/environ/environtest"
	"github.com/agentpod/agentpod/shared/tracing"
)

func TestTheDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c, err := Load(map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	if c.FreezeAfter != 5*time.Minute || c.StopAfter != 30*time.Minute || c.ArchiveAfter != 24*time.Hour || c.DeleteAfter != 0 ||
		c.MaxAwake != 24*time.Hour || c.SnapshotsKept != 3 || len(c.MirrorExclude) != 11 || c.S3Endpoint != "" {
		t.Errorf("%+v", c)
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
		"FREEZE_AFTER": "-1s", "STOP_AFTER": "later", "ARCHIVE_AFTER": "-1h", "DELETE_AFTER": "30d", "MAX_AWAKE": "-24h", "SNAPSHOTS_KEPT": "0",
		"MIRROR_EXCLUDE": "dist,,a", "PERSIST_CONCURRENCY": "0", "SNAPSHOT_TIMEOUT": "0s", "PUBLIC_URL": "agentpod", "SANDBOX_DOMAIN": "a_b", "ACCEPT_SHARED_SITE": "perhaps", "RESTORE_TIMEOUT": "-1s", "S3_ADDRESSING": "host",
		"SEALING_KEY": "short", "SEALING_KEYS_FORMER": strings.Repeat("ab", 32) + ",short",
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			_, err := Load(map[string]string{variable: value})
			if err == nil || !strings.Contains(err.Error(), variable) || !strings.Contains(err.Error(), "such as ") {
				t.Errorf("%v", err)
			}
		})
	}
}

// onS3 is an environment with a bucket, changed by what is given.
func onS3(changes map[string]string) map[string]string {
	environ := map[string]string{
		"S3_ENDPOINT": "https://s3.example.com", "S3_BUCKET": "agentpod", "S3_PREFIX": "a/b/", "S3_ADDRESSING": "path",
		"S3_ACCESS_KEY_ID": "id", "S3_SECRET_ACCESS_KEY": "the-secret", "S3_CA_FILE": "ca.pem",
		"SEALING_KEY": strings.Repeat("ab", 32), "SEALING_KEYS_FORMER": strings.Repeat("cd", 32) + "," + strings.Repeat("ef", 32),
	}
	maps.Copy(environ, changes)
	return environ
}

func TestABucketIsReadFromTheEnvironment(t *testing.T) {
	t.Parallel()
	c, err := Load(onS3(nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.S3Endpoint != "https://s3.example.com" || c.S3Bucket != "agentpod" || c.S3Prefix != "a/b/" || c.S3Addressing != "path" || c.S3AccessKeyID != "id" ||
		c.S3SecretAccessKey != "the-secret" || c.S3CAFile != "ca.pem" || len(c.SealingKeysFormer) != 2 {
		t.Errorf("%+v", c)
	}
}

func TestABadBucketIsNamedWithItsShape(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ variable, value, says string }{
		"an endpoint without a scheme":  {"S3_ENDPOINT", "s3.example.com", "S3_ENDPOINT must be a URL"},
		"an endpoint with a bucket":     {"S3_ENDPOINT", "https://s3.example.com/agentpod", "S3_ENDPOINT must be a URL"},
		"an endpoint with a password":   {"S3_ENDPOINT", "https://id:the-secret@s3.example.com", "S3_ENDPOINT must be a URL"},
		"a CA file without TLS":         {"S3_ENDPOINT", "http://s3.example.com", "S3_CA_FILE"},
		"no endpoint, but a bucket":     {"S3_ENDPOINT", "", "S3_ENDPOINT must be set"},
		"no bucket":                     {"S3_BUCKET", "", "S3_BUCKET must be"},
		"no access key":                 {"S3_ACCESS_KEY_ID", "", "S3_ACCESS_KEY_ID must be"},
		"no secret":                     {"S3_SECRET_ACCESS_KEY", "", "S3_SECRET_ACCESS_KEY must be"},
		"a prefix without its slash":    {"S3_PREFIX", "agentpod", "S3_PREFIX must be"},
		"a prefix that begins with one": {"S3_PREFIX", "/agentpod/", "S3_PREFIX must be"},
		"a prefix that climbs":          {"S3_PREFIX", "a/../", "S3_PREFIX must be"},
		"no sealing key":                {"SEALING_KEY", "", "openssl rand -hex 32"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(onS3(map[string]string{c.variable: c.value}))
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "the-secret") {
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

func TestADefaultKeyHasSomewhereToGo(t *testing.T) {
	t.Parallel()
	const key = `{"auth":{"azure":{"type":"api","key":"sk-secret-key"}}`
	_, err := Load(map[string]string{"DEFAULT_CONFIG": key + "}"})
	if err == nil || !strings.Contains(err.Error(), "DEFAULT_CONFIG: config.auth: azure") || !strings.Contains(err.Error(), "provider.azure.options.baseURL") || strings.Contains(err.Error(), "sk-secret") {
		t.Errorf("%v", err)
	}
	c, err := Load(map[string]string{"DEFAULT_CONFIG": key + `,"provider":{"azure":{"options":{"baseURL":"https://me.openai.azure.com/openai"}}}}`})
	if err != nil || c.Defaults.Auth["azure"] == nil {
		t.Errorf("with its base URL: %v", err)
	}
}

func TestTheProjectsConfigIsReadUnlessThatIsOff(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{"": "on", "on": "on", "off": "off"} {
		environ := map[string]string{}
		if value != "" {
			environ["PROJECT_CONFIG"] = value
		}
		if c, err := Load(environ); err != nil || c.ProjectConfig != want {
			t.Errorf("%q is %q, %v", value, c.ProjectConfig, err)
		}
	}
	if _, err := Load(map[string]string{"PROJECT_CONFIG": "perhaps"}); err == nil || !strings.Contains(err.Error(), "PROJECT_CONFIG must be one of on, off") {
		t.Errorf("%v", err)
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
	environtest.Table[Config](t, "../../../README.md", "### The gateway's variables")
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
}

func TestWhatComposeGivesIsReadAndNoSecretStandsThere(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Environment map[string]*string
			Secrets     []string
		}
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	gateway := file.Services["gateway"]
	if len(gateway.Environment) == 0 {
		t.Fatal("compose.yaml gives the gateway no environment")
	}
	keys := tracing.Variables()
	for _, k := range ProviderKeys() {
		keys = append(keys, k.Variable)
	}
	environtest.Passed[Config](t, gateway.Environment, gateway.Secrets, keys...)
}
