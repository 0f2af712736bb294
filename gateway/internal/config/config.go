// Package config reads the gateway's environment: the one place that knows the
// variables, their defaults and what is wrong with a value.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/environ"
	"github.com/agentpod/agentpod/shared/seal"
)

// Config is the gateway's configuration. The README's table describes the same
// variables; a test holds the two together.
type Config struct {
	Addr         string   `env:"GATEWAY_ADDR" envDefault:"127.0.0.1:8787"`
	DataDir      string   `env:"DATA_DIR" envDefault:".agentpod"`
	Token        string   `env:"GATEWAY_TOKEN,unset"`
	AllowedHosts []string `env:"ALLOWED_HOSTS"`
	// PublicURL is how browsers reach the gateway; empty for Addr.
	PublicURL string `env:"PUBLIC_URL"`
	// SandboxDomain is what the sandboxes' own hosts are under, or "off".
	SandboxDomain    string `env:"SANDBOX_DOMAIN" envDefault:"sandbox.localhost"`
	AcceptSharedSite bool   `env:"ACCEPT_SHARED_SITE" envDefault:"false"`
	SealingKey       string `env:"SEALING_KEY,unset"`
	// SealingKeysFormer are keys that what is stored may be sealed with still.
	SealingKeysFormer []string `env:"SEALING_KEYS_FORMER,unset"`

	// S3Endpoint is empty for a store in DataDir.
	S3Endpoint        string `env:"S3_ENDPOINT"`
	S3Region          string `env:"S3_REGION"`
	S3Bucket          string `env:"S3_BUCKET"`
	S3Prefix          string `env:"S3_PREFIX"`
	S3Addressing      string `env:"S3_ADDRESSING" envDefault:"auto"`
	S3AccessKeyID     string `env:"S3_ACCESS_KEY_ID"`
	S3SecretAccessKey string `env:"S3_SECRET_ACCESS_KEY,unset"`
	S3CAFile          string `env:"S3_CA_FILE"`

	LogLevel  string `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat string `env:"LOG_FORMAT" envDefault:"auto"`

	EngineHost     string  `env:"DOCKER_HOST"`
	Image          string  `env:"SANDBOX_IMAGE" envDefault:"agentpod-sandbox:dev"`
	Reach          string  `env:"SANDBOX_REACH" envDefault:"auto"`
	ContainerClass string  `env:"SANDBOX_RUNTIME"`
	Memory         Bytes   `env:"SANDBOX_MEMORY" envDefault:"2GiB"`
	CPUs           float64 `env:"SANDBOX_CPUS" envDefault:"2"`
	PIDs           int64   `env:"SANDBOX_PIDS" envDefault:"1024"`
	NoFile         int64   `env:"SANDBOX_NOFILE" envDefault:"16384"`
	TmpSize        Bytes   `env:"SANDBOX_TMP_SIZE" envDefault:"1GiB"`
	RunSize        Bytes   `env:"SANDBOX_RUN_SIZE" envDefault:"64MiB"`
	LogSize        Bytes   `env:"SANDBOX_LOG_SIZE" envDefault:"10MiB"`
	LogFiles       int     `env:"SANDBOX_LOG_FILES" envDefault:"2"`

	MaxRunning      int `env:"MAX_RUNNING" envDefault:"20"`
	MaxFrozen       int `env:"MAX_FROZEN" envDefault:"20"`
	BootConcurrency int `env:"BOOT_CONCURRENCY" envDefault:"4"`
	MaxHeld         int `env:"MAX_HELD" envDefault:"128"`
	PoolSize        int `env:"POOL_SIZE" envDefault:"1"`

	GuestTimeout   time.Duration `env:"GUEST_TIMEOUT" envDefault:"30s"`
	BootTimeout    time.Duration `env:"BOOT_TIMEOUT" envDefault:"90s"`
	CloneTimeout   time.Duration `env:"CLONE_TIMEOUT" envDefault:"5m"`
	HoldTimeout    time.Duration `env:"HOLD_TIMEOUT" envDefault:"2m"`
	MessageTimeout time.Duration `env:"MESSAGE_TIMEOUT" envDefault:"10m"`
	ExecTimeout    time.Duration `env:"EXEC_TIMEOUT" envDefault:"10m"`
	DrainTimeout   time.Duration `env:"DRAIN_TIMEOUT" envDefault:"15s"`

	// The steps down of an idle sandbox, and how long one may claim to be busy.
	// 0 means never.
	FreezeAfter time.Duration `env:"FREEZE_AFTER" envDefault:"5m"`
	// ShrinkAfter is when what is frozen is moved to the host's swap.
	ShrinkAfter  time.Duration `env:"SHRINK_AFTER" envDefault:"10m"`
	StopAfter    time.Duration `env:"STOP_AFTER" envDefault:"30m"`
	ArchiveAfter time.Duration `env:"ARCHIVE_AFTER" envDefault:"24h"`
	DeleteAfter  time.Duration `env:"DELETE_AFTER" envDefault:"0"`
	MaxAwake     time.Duration `env:"MAX_AWAKE" envDefault:"24h"`

	// StoreWithin is for how long what was done may stay unstored while a sandbox is
	// in use: what is lost with the host is not older.
	StoreWithin        time.Duration `env:"STORE_WITHIN" envDefault:"1m"`
	SnapshotsKept      int           `env:"SNAPSHOTS_KEPT" envDefault:"3"`
	MirrorExclude      []string      `env:"MIRROR_EXCLUDE" envDefault:"node_modules,.git,__pycache__,.cache,dist,build,.next,.nuxt,target,.opencode,.DS_Store"`
	PersistConcurrency int           `env:"PERSIST_CONCURRENCY" envDefault:"4"`
	SnapshotTimeout    time.Duration `env:"SNAPSHOT_TIMEOUT" envDefault:"30m"`
	RestoreTimeout     time.Duration `env:"RESTORE_TIMEOUT" envDefault:"30m"`

	MaxUpload        Bytes    `env:"MAX_UPLOAD" envDefault:"1GiB"`
	PermissionPolicy string   `env:"PERMISSION_POLICY" envDefault:"allow"`
	GitProtocols     []string `env:"GIT_PROTOCOLS" envDefault:"https,ssh,git"`

	DefaultConfig string `env:"DEFAULT_CONFIG,unset"`
	// ProjectConfig says whether OpenCode reads the config of a repository: on or off.
	ProjectConfig string `env:"PROJECT_CONFIG" envDefault:"on"`

	APIURL   string `env:"AGENTPOD_API_URL"`
	APIToken string `env:"AGENTPOD_API_TOKEN,unset"`

	// Providers are the credentials found in the environment, by provider.
	Providers map[string]string `env:"-"`
	// Defaults is DefaultConfig taken apart, with Providers in it.
	Defaults lifecycle.Config `env:"-"`
}

// ProviderKey says which variable holds the credential of which provider.
type ProviderKey struct{ Variable, Provider string }

// ProviderKeys are the variables that become the sandboxes' default credentials.
func ProviderKeys() []ProviderKey {
	return []ProviderKey{
		{"ANTHROPIC_API_KEY", "anthropic"},
		{"OPENAI_API_KEY", "openai"},
		{"GEMINI_API_KEY", "google"},
		{"GOOGLE_GENERATIVE_AI_API_KEY", "google"},
		{"OPENROUTER_API_KEY", "openrouter"},
		{"MISTRAL_API_KEY", "mistral"},
		{"GROQ_API_KEY", "groq"},
		{"DEEPSEEK_API_KEY", "deepseek"},
		{"XAI_API_KEY", "xai"},
	}
}

// Bytes is a size: a number with an optional unit K, M, G (or KiB, MB …), all
// of them powers of 1024.
type Bytes int64

// Shape names the shape of a size for people: see package environ.
func (Bytes) Shape() string { return "a size" }

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.ToUpper(strings.TrimSpace(string(text)))
	s = strings.TrimSuffix(strings.TrimSuffix(s, "B"), "I")
	shift := 0
	for unit, n := range map[string]int{"K": 10, "M": 20, "G": 30} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, shift = rest, n
			break
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 || n > 1<<(62-shift) {
		return errors.New("it is not a size")
	}
	*b = Bytes(n << shift)
	return nil
}

// Load reads the environment and says all that is wrong with it at once.
func Load(variables map[string]string) (Config, error) {
	c, err := environ.Parse[Config](variables)
	if err != nil {
		return c, err
	}
	if err := c.defaults(variables); err != nil {
		return c, err
	}
	err = c.Validate()
	return c, err
}

func (c *Config) defaults(variables map[string]string) error {
	defaults, err := lifecycle.ParseConfig(json.RawMessage(c.DefaultConfig))
	if err != nil {
		return fmt.Errorf(`DEFAULT_CONFIG must be a config as POST /sandbox takes it, such as {"model":"anthropic/claude-sonnet-4-5"}: %w`, err)
	}
	c.Providers = map[string]string{}
	for _, k := range ProviderKeys() {
		if key := strings.TrimSpace(variables[k.Variable]); key != "" && c.Providers[k.Provider] == "" {
			c.Providers[k.Provider] = key
		}
	}
	for provider, key := range c.Providers {
		if defaults.Auth == nil {
			defaults.Auth = map[string]json.RawMessage{}
		}
		if defaults.Auth[provider] != nil {
			continue
		}
		entry, err := json.Marshal(map[string]string{"type": "api", "key": key})
		if err != nil {
			return errors.New("a provider's key cannot be encoded")
		}
		defaults.Auth[provider] = entry
	}
	if skipped := defaults.Unpinned(); len(skipped) > 0 {
		return fmt.Errorf("DEFAULT_CONFIG: %s", strings.Join(skipped, "; ")) //nolint:err113 // a sentence for people
	}
	c.Defaults = defaults
	return nil
}

// leastStoreWithin keeps a busy sandbox from being stored all the time.
const leastStoreWithin = time.Second

// Validate says what is wrong, naming the variable, the shape and an example.
func (c *Config) Validate() error {
	var bad []error
	say := func(variable, shape, example string) {
		bad = append(bad, fmt.Errorf("%s must be %s, such as %s", variable, shape, example))
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		say("GATEWAY_ADDR", "host:port", "127.0.0.1:8787")
	}
	if c.DataDir == "" {
		say("DATA_DIR", "a folder", ".agentpod")
	}
	if c.Token != "" && len(c.Token) < 16 {
		say("GATEWAY_TOKEN", "at least 16 characters", "the output of: openssl rand -hex 32")
	}
	one := func(variable, value string, of ...string) {
		if !slices.Contains(of, value) {
			say(variable, "one of "+strings.Join(of, ", "), of[0])
		}
	}
	one("LOG_LEVEL", c.LogLevel, "info", "debug", "warn", "error")
	one("LOG_FORMAT", c.LogFormat, "auto", "json", "text")
	one("SANDBOX_REACH", c.Reach, "auto", "direct", "published")
	one("PERMISSION_POLICY", c.PermissionPolicy, "allow", "deny")
	one("PROJECT_CONFIG", c.ProjectConfig, "on", "off")
	for _, p := range c.GitProtocols {
		one("each of GIT_PROTOCOLS", p, "https", "ssh", "git", "http")
	}
	if len(c.GitProtocols) == 0 {
		say("GIT_PROTOCOLS", "a list with at least one protocol", "https,ssh,git")
	}
	const least = 256 << 20
	if c.Memory < least {
		say("SANDBOX_MEMORY", "at least 256MiB (OpenCode needs some 600 MB in use)", "2GiB")
	}
	if c.CPUs <= 0 {
		say("SANDBOX_CPUS", "a number above 0", "2")
	}
	for _, v := range []struct {
		variable string
		n        int64
	}{
		{"SANDBOX_PIDS", c.PIDs},
		{"SANDBOX_NOFILE", c.NoFile},
		{"SANDBOX_TMP_SIZE", int64(c.TmpSize)},
		{"SANDBOX_RUN_SIZE", int64(c.RunSize)},
		{"SANDBOX_LOG_SIZE", int64(c.LogSize)},
		{"SANDBOX_LOG_FILES", int64(c.LogFiles)},
		{"BOOT_CONCURRENCY", int64(c.BootConcurrency)},
		{"MAX_HELD", int64(c.MaxHeld)},
		{"MAX_UPLOAD", int64(c.MaxUpload)},
		{"GUEST_TIMEOUT", int64(c.GuestTimeout)},
		{"BOOT_TIMEOUT", int64(c.BootTimeout)},
		{"CLONE_TIMEOUT", int64(c.CloneTimeout)},
		{"HOLD_TIMEOUT", int64(c.HoldTimeout)},
		{"MESSAGE_TIMEOUT", int64(c.MessageTimeout)},
		{"EXEC_TIMEOUT", int64(c.ExecTimeout)},
		{"DRAIN_TIMEOUT", int64(c.DrainTimeout)},
		{"SNAPSHOT_TIMEOUT", int64(c.SnapshotTimeout)},
		{"RESTORE_TIMEOUT", int64(c.RestoreTimeout)},
	} {
		if v.n <= 0 {
			say(v.variable, "above 0", environ.Default[Config](v.variable))
		}
	}
	if c.StoreWithin < leastStoreWithin {
		say("STORE_WITHIN", "at least "+leastStoreWithin.String(), "1m")
	}
	if c.MaxRunning < 0 {
		say("MAX_RUNNING", "0 (no bound) or more", "20")
	}
	if c.MaxFrozen < 0 {
		say("MAX_FROZEN", "0 (no bound) or more", "20")
	}
	if c.PoolSize < 0 {
		say("POOL_SIZE", "0 (none) or more", "1")
	}
	c.validateLadder(say)
	c.validateStore(say)
	c.validateKeys(say)
	bad = append(bad, c.validateHosts(say)...)
	if c.APIURL != "" {
		if u, err := url.Parse(c.APIURL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			say("AGENTPOD_API_URL", "an http or https URL", "http://127.0.0.1:3001")
		}
	}
	return errors.Join(bad...)
}

func (c *Config) validateLadder(say func(variable, shape, example string)) {
	for _, d := range []struct {
		variable string
		value    time.Duration
		example  string
	}{
		{"FREEZE_AFTER", c.FreezeAfter, "5m"},
		{"SHRINK_AFTER", c.ShrinkAfter, "10m"},
		{"STOP_AFTER", c.StopAfter, "30m"},
		{"ARCHIVE_AFTER", c.ArchiveAfter, "24h"},
		{"DELETE_AFTER", c.DeleteAfter, "720h"},
		{"MAX_AWAKE", c.MaxAwake, "24h"},
	} {
		if d.value < 0 {
			say(d.variable, "0 (never) or a time above it", d.example)
		}
	}
	if c.SnapshotsKept < 1 {
		say("SNAPSHOTS_KEPT", "1 or more", "3")
	}
	if c.PersistConcurrency < 1 {
		say("PERSIST_CONCURRENCY", "1 or more", "4")
	}
	if len(c.MirrorExclude) == 0 || slices.ContainsFunc(c.MirrorExclude, func(name string) bool { return name == "" || strings.Contains(name, "/") }) {
		say("MIRROR_EXCLUDE", "a list of names without a slash", "node_modules,.git,dist")
	}
}

// A key's shape, and how one is made.
const (
	sealingKeyShape   = "32 bytes in hex or base64"
	sealingKeyExample = "the output of: openssl rand -hex 32"
)

// validateKeys says which keys are none, and repeats none.
func (c *Config) validateKeys(say func(variable, shape, example string)) {
	if _, err := seal.ParseKey(c.SealingKey); c.SealingKey != "" && err != nil {
		say("SEALING_KEY", sealingKeyShape, sealingKeyExample)
	}
	for i, key := range c.SealingKeysFormer {
		if _, err := seal.ParseKey(key); err != nil {
			say(fmt.Sprintf("SEALING_KEYS_FORMER, number %d,", i+1), sealingKeyShape, "what SEALING_KEY was before")
		}
	}
}

// validateStore says what can be said of the store without reaching out to it.
// What is wrong is not repeated: a URL may hold a secret.
func (c *Config) validateStore(say func(variable, shape, example string)) {
	const endpoint = "https://s3.example.com"
	if !slices.Contains([]string{"auto", "path", "virtual-host"}, c.S3Addressing) {
		say("S3_ADDRESSING", "one of auto, path, virtual-host", "auto")
	}
	if c.S3Endpoint == "" {
		if c.S3Bucket != "" || c.S3AccessKeyID != "" || c.S3SecretAccessKey != "" {
			say("S3_ENDPOINT", "set if other S3 variables are (without it the store is a folder in DATA_DIR)", endpoint)
		}
		return
	}
	u, err := url.Parse(c.S3Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		say("S3_ENDPOINT", "a URL of a scheme, a host and perhaps a port (the bucket is S3_BUCKET)", endpoint)
	} else if c.S3CAFile != "" && u.Scheme != "https" {
		say("S3_ENDPOINT", "an https URL if S3_CA_FILE is set", endpoint)
	}
	if c.S3Bucket == "" {
		say("S3_BUCKET", "the name of a bucket that exists", "agentpod")
	}
	if c.S3AccessKeyID == "" {
		say("S3_ACCESS_KEY_ID", "the name of a key that may read, write, list and delete in the bucket", "AKIAIOSFODNN7EXAMPLE")
	}
	if c.S3SecretAccessKey == "" {
		say("S3_SECRET_ACCESS_KEY", "the secret of the key S3_ACCESS_KEY_ID", "what the server gave out together with it")
	}
	if !folderPrefix(c.S3Prefix) {
		say("S3_PREFIX", "empty or a path that ends in a slash and does not begin with one", "agentpod/")
	}
	if c.SealingKey == "" {
		say("SEALING_KEY", "set if the store is S3, for a bucket outlives this machine (keep a copy elsewhere): "+sealingKeyShape, sealingKeyExample)
	}
}

// folderPrefix tells whether a text is empty or a path like a/b/.
func folderPrefix(prefix string) bool {
	if prefix == "" {
		return true
	}
	path, ended := strings.CutSuffix(prefix, "/")
	bad := func(element string) bool { return element == "" || element == "." || element == ".." }
	return ended && !slices.ContainsFunc(strings.Split(path, "/"), bad)
}
