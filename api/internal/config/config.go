// Package config reads the API's environment: the one place that knows the
// variables, their defaults and what is wrong with a value.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/environ"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

// Config is the API's configuration. A secret, marked unset, may be in a file
// instead, which NAME_FILE names. The README's table describes the same
// variables; a test holds the two together.
type Config struct {
	Addr    string `env:"API_ADDR" envDefault:"127.0.0.1:3001"`
	DataDir string `env:"DATA_DIR" envDefault:".agentpod"`
	// DatabaseURL is empty for a file in DataDir. It may hold a password.
	DatabaseURL string `env:"DATABASE_URL,unset"`
	// Secret signs cookies, and EncryptionKey seals credentials; empty ones are
	// made in DataDir. EncryptionKeysFormer may have sealed what is stored.
	Secret               string   `env:"API_SECRET,unset"`
	EncryptionKey        string   `env:"ENCRYPTION_KEY,unset"`
	EncryptionKeysFormer []string `env:"ENCRYPTION_KEYS_FORMER,unset"`

	// Token is the service credential; empty for none.
	Token        string         `env:"API_TOKEN,unset"`
	AllowedHosts []string       `env:"ALLOWED_HOSTS"`
	Origins      []string       `env:"CORS_ORIGINS"`
	Secure       bool           `env:"API_SECURE" envDefault:"false"`
	Proxies      []netip.Prefix `env:"TRUSTED_PROXIES"`
	// SignUp is true, false, or auto: open unless the gateway has default credentials.
	SignUp string `env:"SIGN_UP" envDefault:"auto"`

	MakeAdmin  bool   `env:"MAKE_ADMIN" envDefault:"false"`
	AdminEmail string `env:"ADMIN_EMAIL" envDefault:"admin@localhost.test"`
	// AdminPassword is made in DataDir if it is empty.
	AdminPassword string `env:"ADMIN_PASSWORD,unset"`

	// GatewayURL is empty if docker is not to be used, which only a variable says
	// that is there and empty.
	GatewayURL      string `env:"GATEWAY_URL" envDefault:"http://127.0.0.1:8787"`
	GatewayToken    string `env:"GATEWAY_TOKEN,unset"`
	Cloudflare      bool   `env:"ENABLE_CLOUDFLARE_SANDBOXES" envDefault:"false"`
	WorkerURL       string `env:"CLOUDFLARE_WORKER_URL"`
	WorkerToken     string `env:"CLOUDFLARE_API_TOKEN,unset"`
	DefaultProvider string `env:"DEFAULT_SANDBOX_PROVIDER" envDefault:"docker"`
	AutoSelect      bool   `env:"AUTO_SELECT_PROVIDER" envDefault:"false"`

	// What a provider's webhooks show; none are taken without.
	WebhookTokenDocker     string `env:"WEBHOOK_TOKEN_DOCKER,unset"`
	WebhookTokenCloudflare string `env:"WEBHOOK_TOKEN_CLOUDFLARE,unset"`

	// Catalogue is the path or URL of the model providers' list; empty for the one
	// that is built in.
	Catalogue string `env:"CATALOGUE"`

	TaskTimeout time.Duration `env:"TASK_TIMEOUT" envDefault:"10m"`
	// TaskRaising is what a task has beyond it, to make or wake its sandbox.
	TaskRaising     time.Duration `env:"TASK_RAISE_TIMEOUT" envDefault:"5m"`
	TaskConcurrency int           `env:"TASK_CONCURRENCY" envDefault:"256"`
	TeamSize        int           `env:"TEAM_SIZE" envDefault:"10"`
	DrainTimeout    time.Duration `env:"DRAIN_TIMEOUT" envDefault:"15s"`

	LogLevel  string `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat string `env:"LOG_FORMAT" envDefault:"auto"`
}

// Load reads the environment and says all that is wrong with it at once.
func Load(variables map[string]string) (Config, error) {
	c, err := environ.Parse[Config](variables)
	if err != nil {
		return c, err
	}
	if value, given := variables["GATEWAY_URL"]; given && value == "" {
		c.GatewayURL = ""
	}
	err = c.Validate()
	return c, err
}

// SignUpAuto is the SIGN_UP that leaves it to the gateway's defaults.
const SignUpAuto = "auto"

// SignUpOpen says whether sign-up is open as far as SIGN_UP decides it.
func (c *Config) SignUpOpen() bool {
	open, err := strconv.ParseBool(c.SignUp)
	return c.SignUp == SignUpAuto || err == nil && open
}

// Gateway is how the gateway is reached.
func (c *Config) Gateway() sandbox.ClientSettings {
	return sandbox.ClientSettings{BaseURL: c.GatewayURL, Token: c.GatewayToken}
}

// Worker is how the Cloudflare worker is reached.
func (c *Config) Worker() sandbox.ClientSettings {
	return sandbox.ClientSettings{BaseURL: c.WorkerURL, Token: c.WorkerToken}
}

const (
	leastToken  = 16 // characters
	leastSecret = 32 // bytes
	mostAgents  = 100
	madeBy      = "the output of: openssl rand -hex 32"
)

// saying collects what is wrong: the variable, the shape and an example. No
// value is repeated, for it may be a secret.
type saying func(variable, shape, example string)

// Validate says what is wrong.
func (c *Config) Validate() error {
	var bad []error
	say := func(variable, shape, example string) {
		bad = append(bad, fmt.Errorf("%s must be %s, such as %s", variable, shape, example))
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		say("API_ADDR", "host:port", "127.0.0.1:3001")
	}
	if c.DataDir == "" {
		say("DATA_DIR", "a folder", ".agentpod")
	}
	one := func(variable, value string, of ...string) {
		if !slices.Contains(of, value) {
			say(variable, "one of "+strings.Join(of, ", "), of[0])
		}
	}
	one("LOG_LEVEL", c.LogLevel, "info", "debug", "warn", "error")
	one("LOG_FORMAT", c.LogFormat, "auto", "json", "text")
	c.validateKeys(say)
	c.validateTokens(say)
	c.validateBrowsers(say)
	bad = append(bad, c.validateProviders(say)...)
	if _, err := account.NormalEmail(c.AdminEmail); err != nil {
		say("ADMIN_EMAIL", "an e-mail address", "admin@localhost.test")
	}
	if c.AdminPassword != "" {
		if err := account.CheckPassword(c.AdminPassword); err != nil {
			say("ADMIN_PASSWORD", fmt.Sprintf("%d to %d characters, or not set to have one made", account.MinPassword, account.MaxPassword), "the output of: openssl rand -hex 16")
		}
	}
	if strings.Contains(c.Catalogue, "://") {
		if u, err := url.Parse(c.Catalogue); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			say("CATALOGUE", "the path of a file or an https URL", "https://models.dev/api.json")
		}
	}
	if _, err := strconv.ParseBool(c.SignUp); c.SignUp != SignUpAuto && err != nil {
		say("SIGN_UP", "true, false or auto", SignUpAuto)
	}
	if c.TaskTimeout <= 0 {
		say("TASK_TIMEOUT", "above 0", "10m")
	}
	if c.TaskRaising <= 0 {
		say("TASK_RAISE_TIMEOUT", "above 0", "5m")
	}
	if c.TaskConcurrency < 1 {
		say("TASK_CONCURRENCY", "1 or more", "256")
	}
	if c.TeamSize < 1 || c.TeamSize > mostAgents {
		say("TEAM_SIZE", fmt.Sprintf("1 to %d", mostAgents), "10")
	}
	if c.DrainTimeout <= 0 {
		say("DRAIN_TIMEOUT", "above 0", "15s")
	}
	return errors.Join(bad...)
}

func (c *Config) validateKeys(say saying) {
	server := strings.HasPrefix(c.DatabaseURL, "postgres://") || strings.HasPrefix(c.DatabaseURL, "postgresql://")
	if path, ok := strings.CutPrefix(c.DatabaseURL, "sqlite:"); c.DatabaseURL != "" && !server && (!ok || path == "") {
		say("DATABASE_URL", "not set, a URL of a Postgres server, or sqlite: and a path", "postgres://user:password@host:5432/name?sslmode=require")
	}
	switch {
	case c.Secret == "" && server:
		say("API_SECRET", "set if DATABASE_URL names a server (every API on it must have the same, or none takes the others' cookies): "+
			fmt.Sprintf("at least %d bytes", leastSecret), madeBy)
	case c.Secret != "" && len(c.Secret) < leastSecret:
		say("API_SECRET", fmt.Sprintf("at least %d bytes", leastSecret), madeBy)
	}
	_, err := seal.ParseKey(c.EncryptionKey)
	switch {
	case c.EncryptionKey == "" && server:
		say("ENCRYPTION_KEY", "set if DATABASE_URL names a server, which outlives this machine (keep a copy elsewhere): 64 hex digits", madeBy)
	case c.EncryptionKey != "" && err != nil:
		say("ENCRYPTION_KEY", "64 hex digits", madeBy)
	}
	for _, key := range c.EncryptionKeysFormer {
		if _, err := seal.ParseKey(key); err != nil {
			say("each of ENCRYPTION_KEYS_FORMER", "64 hex digits", "what ENCRYPTION_KEY was before")
		}
	}
}

// validateTokens makes sure that a token can be sent, and that no two callers
// have the same: it says who they are.
func (c *Config) validateTokens(say saying) {
	owners := map[string]string{}
	for _, t := range []struct{ variable, token string }{
		{"API_TOKEN", c.Token}, {"WEBHOOK_TOKEN_DOCKER", c.WebhookTokenDocker}, {"WEBHOOK_TOKEN_CLOUDFLARE", c.WebhookTokenCloudflare},
	} {
		if t.token == "" {
			continue
		}
		if len(t.token) < leastToken || strings.ContainsFunc(t.token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			say(t.variable, fmt.Sprintf("at least %d ASCII characters without a space", leastToken), madeBy)
		}
		if owner := owners[t.token]; owner != "" {
			say(t.variable, "another token than "+owner, madeBy)
		}
		owners[t.token] = t.variable
	}
}

func (c *Config) validateBrowsers(say saying) {
	for _, origin := range c.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || origin != u.Scheme+"://"+u.Host || origin != strings.ToLower(origin) {
			say("each of CORS_ORIGINS", "scheme://host or scheme://host:port in lower case, without a slash at the end", "https://app.example.com")
		}
	}
}

func (c *Config) validateProviders(say saying) (bad []error) {
	configured := map[string]bool{provider.Docker: c.GatewayURL != "", provider.Cloudflare: c.Cloudflare}
	switch {
	case c.GatewayURL == "":
	case c.GatewayToken == "":
		say("GATEWAY_TOKEN", "the gateway's token (it keeps one in its DATA_DIR, which GATEWAY_TOKEN_FILE can name), unless GATEWAY_URL is set to nothing", "GATEWAY_TOKEN_FILE=.agentpod/gateway.token")
	default:
		if _, err := sandbox.NewGateway(c.Gateway()); err != nil {
			bad = append(bad, fmt.Errorf("GATEWAY_URL or GATEWAY_TOKEN is wrong (an address is such as http://127.0.0.1:8787): %w", err))
		}
	}
	if c.Cloudflare && c.WorkerURL == "" {
		say("CLOUDFLARE_WORKER_URL", "the worker's address if ENABLE_CLOUDFLARE_SANDBOXES is true", "https://agentpod.example.workers.dev")
	} else if c.Cloudflare {
		if _, err := sandbox.NewWorker(c.Worker(), nil); err != nil {
			bad = append(bad, fmt.Errorf("CLOUDFLARE_WORKER_URL or CLOUDFLARE_API_TOKEN is wrong (an address is such as https://agentpod.example.workers.dev): %w", err))
		}
	}
	switch {
	case c.DefaultProvider != provider.Docker && c.DefaultProvider != provider.Cloudflare:
		say("DEFAULT_SANDBOX_PROVIDER", "docker or cloudflare", provider.Docker)
	case !configured[c.DefaultProvider]:
		say("DEFAULT_SANDBOX_PROVIDER", "a provider that is configured (docker needs GATEWAY_URL, cloudflare ENABLE_CLOUDFLARE_SANDBOXES)", provider.Docker)
	}
	if c.AutoSelect && c.GatewayURL == "" {
		say("GATEWAY_URL", "set if AUTO_SELECT_PROVIDER is true, which falls back on it", "http://127.0.0.1:8787")
	}
	return bad
}
