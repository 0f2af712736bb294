package config

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/agentpod/agentpod/shared/environ/environtest"
	"github.com/agentpod/agentpod/shared/tracing"
)

const token = "a-token-of-the-gateway"

// with is the least environment that is valid, changed by what is given.
func with(changes map[string]string) map[string]string {
	environ := map[string]string{"GATEWAY_TOKEN": token}
	maps.Copy(environ, changes)
	return environ
}

func TestAGatewaysTokenIsEnough(t *testing.T) {
	t.Parallel()
	c, err := Load(with(nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.Addr != "127.0.0.1:3001" || c.DataDir != ".agentpod" || c.DatabaseURL != "" || c.SignUp != "auto" || !c.SignUpOpen() || c.Secure || c.MakeAdmin || c.AdminEmail != "admin@localhost.test" ||
		c.GatewayURL != "http://127.0.0.1:8787" || c.Cloudflare || c.DefaultProvider != "docker" || c.AutoSelect ||
		c.TaskTimeout != 10*time.Minute || c.TaskConcurrency != 256 || c.TeamSize != 10 || c.DrainTimeout != 15*time.Second || c.LogLevel != "info" || c.LogFormat != "auto" {
		t.Errorf("%+v", c)
	}
}

func TestEverythingIsRead(t *testing.T) {
	t.Parallel()
	key, former := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	c, err := Load(map[string]string{
		"API_ADDR": "0.0.0.0:80", "DATA_DIR": "/data", "DATABASE_URL": "postgres://a:b@db/agentpod", "API_SECRET": strings.Repeat("s", 32),
		"ENCRYPTION_KEY": key, "ENCRYPTION_KEYS_FORMER": former + "," + key, "API_TOKEN": strings.Repeat("t", 16), "ALLOWED_HOSTS": "a.example,b.example",
		"CORS_ORIGINS": "https://app.example.com,http://localhost:5173", "API_SECURE": "true", "TRUSTED_PROXIES": "10.0.0.0/8,::1/128", "SIGN_UP": "false",
		"MAKE_ADMIN": "true", "ADMIN_EMAIL": "root@example.com", "ADMIN_PASSWORD": "password1",
		"GATEWAY_URL": "", "ENABLE_CLOUDFLARE_SANDBOXES": "true", "CLOUDFLARE_WORKER_URL": "https://w.example", "CLOUDFLARE_API_TOKEN": "cf",
		"DEFAULT_SANDBOX_PROVIDER": "cloudflare", "WEBHOOK_TOKEN_DOCKER": strings.Repeat("d", 16), "WEBHOOK_TOKEN_CLOUDFLARE": strings.Repeat("c", 16),
		"CATALOGUE": "https://models.dev/api.json", "TASK_TIMEOUT": "1m", "TASK_RAISE_TIMEOUT": "2m", "TASK_CONCURRENCY": "1", "TEAM_SIZE": "3", "DRAIN_TIMEOUT": "1s", "LOG_LEVEL": "debug", "LOG_FORMAT": "text",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.GatewayURL != "" || c.EncryptionKey != key || !slices.Equal(c.EncryptionKeysFormer, []string{former, key}) || c.SignUpOpen() || !c.Secure || !c.MakeAdmin ||
		!slices.Equal(c.Origins, []string{"https://app.example.com", "http://localhost:5173"}) || c.Worker().Token != "cf" ||
		!slices.Equal(c.Proxies, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}) || c.TeamSize != 3 {
		t.Errorf("%+v", c)
	}
}

func TestEverySecretCanBeInAFile(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("ab", 32)
	for variable, c := range map[string]struct {
		value string
		got   func(Config) string
	}{
		"DATABASE_URL":             {"sqlite:/x", func(c Config) string { return c.DatabaseURL }},
		"API_SECRET":               {key, func(c Config) string { return c.Secret }},
		"ENCRYPTION_KEY":           {key, func(c Config) string { return c.EncryptionKey }},
		"ENCRYPTION_KEYS_FORMER":   {key, func(c Config) string { return c.EncryptionKeysFormer[0] }},
		"API_TOKEN":                {key, func(c Config) string { return c.Token }},
		"ADMIN_PASSWORD":           {key, func(c Config) string { return c.AdminPassword }},
		"GATEWAY_TOKEN":            {key, func(c Config) string { return c.Gateway().Token }},
		"CLOUDFLARE_API_TOKEN":     {key, func(c Config) string { return c.Worker().Token }},
		"WEBHOOK_TOKEN_DOCKER":     {key, func(c Config) string { return c.WebhookTokenDocker }},
		"WEBHOOK_TOKEN_CLOUDFLARE": {key, func(c Config) string { return c.WebhookTokenCloudflare }},
	} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(path, []byte(c.value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			environ := with(map[string]string{variable + "_FILE": path})
			if variable == "GATEWAY_TOKEN" {
				delete(environ, variable)
			}
			loaded, err := Load(environ)
			if err != nil || c.got(loaded) != c.value {
				t.Errorf("%q, %v", c.got(loaded), err)
			}
			environ[variable] = c.value
			if _, err := Load(environ); err == nil || !strings.Contains(err.Error(), variable+"_FILE are both set") {
				t.Errorf("both: %v", err)
			}
		})
	}
}

func TestABadValueIsNamedWithItsShape(t *testing.T) {
	t.Parallel()
	const secret = "do-not-show"
	same := strings.Repeat("x", 16)
	for name, c := range map[string]struct {
		environ map[string]string
		says    string
	}{
		"an address without a port":                 {map[string]string{"API_ADDR": "3001"}, "API_ADDR must be host:port"},
		"a log level that is none":                  {map[string]string{"LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of"},
		"a log format that is none":                 {map[string]string{"LOG_FORMAT": "xml"}, "LOG_FORMAT must be one of"},
		"another database":                          {map[string]string{"DATABASE_URL": "mysql://a:" + secret + "@h/d"}, "DATABASE_URL must be"},
		"a file without a path":                     {map[string]string{"DATABASE_URL": "sqlite:"}, "DATABASE_URL must be"},
		"a server without an encryption key":        {map[string]string{"DATABASE_URL": "postgres://a:" + secret + "@h/d"}, "ENCRYPTION_KEY must be set"},
		"a server without a secret":                 {map[string]string{"DATABASE_URL": "postgres://a:" + secret + "@h/d", "ENCRYPTION_KEY": strings.Repeat("ab", 32)}, "API_SECRET must be set if DATABASE_URL names a server"},
		"a short encryption key":                    {map[string]string{"ENCRYPTION_KEY": secret}, "ENCRYPTION_KEY must be 64 hex digits"},
		"a short former key":                        {map[string]string{"ENCRYPTION_KEYS_FORMER": secret}, "ENCRYPTION_KEYS_FORMER must be 64 hex digits"},
		"a short secret":                            {map[string]string{"API_SECRET": secret}, "API_SECRET must be at least 32 bytes"},
		"a short token":                             {map[string]string{"API_TOKEN": secret}, "API_TOKEN must be at least 16"},
		"a token with a space":                      {map[string]string{"API_TOKEN": "one and another one"}, "API_TOKEN must be at least 16 ASCII characters without a space"},
		"a short webhook token":                     {map[string]string{"WEBHOOK_TOKEN_DOCKER": secret}, "WEBHOOK_TOKEN_DOCKER must be at least 16"},
		"webhook tokens that are the same":          {map[string]string{"WEBHOOK_TOKEN_DOCKER": same, "WEBHOOK_TOKEN_CLOUDFLARE": same}, "WEBHOOK_TOKEN_CLOUDFLARE must be another token than WEBHOOK_TOKEN_DOCKER"},
		"a webhook token that is the service's":     {map[string]string{"API_TOKEN": same, "WEBHOOK_TOKEN_DOCKER": same}, "WEBHOOK_TOKEN_DOCKER must be another token than API_TOKEN"},
		"every origin":                              {map[string]string{"CORS_ORIGINS": "*"}, "CORS_ORIGINS must be scheme://host"},
		"an origin with a slash":                    {map[string]string{"CORS_ORIGINS": "https://a.example/"}, "CORS_ORIGINS"},
		"an origin in upper case":                   {map[string]string{"CORS_ORIGINS": "https://A.example"}, "CORS_ORIGINS"},
		"a second origin that is none":              {map[string]string{"CORS_ORIGINS": "https://a.example,a.example"}, "CORS_ORIGINS"},
		"a proxy that is no network":                {map[string]string{"TRUSTED_PROXIES": "10.0.0.1"}, "TRUSTED_PROXIES must be "},
		"a switch that is neither":                  {map[string]string{"SIGN_UP": "perhaps"}, "SIGN_UP must be "},
		"an admin without an address":               {map[string]string{"ADMIN_EMAIL": "admin"}, "ADMIN_EMAIL must be"},
		"an admin with a short password":            {map[string]string{"ADMIN_PASSWORD": "hidden"}, "ADMIN_PASSWORD must be 8 to 128"},
		"no token for the gateway":                  {map[string]string{"GATEWAY_TOKEN": ""}, "GATEWAY_TOKEN must be"},
		"a gateway that is no URL":                  {map[string]string{"GATEWAY_URL": "gateway:8787"}, "GATEWAY_URL or GATEWAY_TOKEN is wrong"},
		"a gateway with a password":                 {map[string]string{"GATEWAY_URL": "http://a:" + secret + "@g"}, "GATEWAY_URL or GATEWAY_TOKEN is wrong"},
		"a worker without its address":              {map[string]string{"ENABLE_CLOUDFLARE_SANDBOXES": "true"}, "CLOUDFLARE_WORKER_URL must be"},
		"a worker that is no URL":                   {map[string]string{"ENABLE_CLOUDFLARE_SANDBOXES": "true", "CLOUDFLARE_WORKER_URL": "w"}, "CLOUDFLARE_WORKER_URL or CLOUDFLARE_API_TOKEN is wrong"},
		"a default that is none":                    {map[string]string{"DEFAULT_SANDBOX_PROVIDER": "moon"}, "DEFAULT_SANDBOX_PROVIDER must be docker or cloudflare"},
		"a default that is not configured":          {map[string]string{"DEFAULT_SANDBOX_PROVIDER": "cloudflare"}, "DEFAULT_SANDBOX_PROVIDER must be a provider that is configured"},
		"no gateway, and docker is the default":     {map[string]string{"GATEWAY_URL": ""}, "DEFAULT_SANDBOX_PROVIDER must be a provider that is configured"},
		"an automatic choice without a gateway":     {map[string]string{"GATEWAY_URL": "", "AUTO_SELECT_PROVIDER": "true"}, "GATEWAY_URL must be set if AUTO_SELECT_PROVIDER"},
		"a catalogue without TLS":                   {map[string]string{"CATALOGUE": "http://models.dev/api.json"}, "CATALOGUE must be"},
		"no time for a task":                        {map[string]string{"TASK_TIMEOUT": "0s"}, "TASK_TIMEOUT must be above 0"},
		"no time for a task's sandbox":              {map[string]string{"TASK_RAISE_TIMEOUT": "0s"}, "TASK_RAISE_TIMEOUT must be above 0"},
		"a time that is none":                       {map[string]string{"TASK_TIMEOUT": "soon"}, "TASK_TIMEOUT must be "},
		"no tasks at once":                          {map[string]string{"TASK_CONCURRENCY": "0"}, "TASK_CONCURRENCY must be 1 or more"},
		"a team of nobody":                          {map[string]string{"TEAM_SIZE": "0"}, "TEAM_SIZE must be 1 to 100"},
		"a team of too many":                        {map[string]string{"TEAM_SIZE": "101"}, "TEAM_SIZE must be 1 to 100"},
		"no time to drain":                          {map[string]string{"DRAIN_TIMEOUT": "0s"}, "DRAIN_TIMEOUT must be above 0"},
		"several mistakes are said at once, first":  {map[string]string{"LOG_LEVEL": "loud", "TEAM_SIZE": "0"}, "LOG_LEVEL must be"},
		"several mistakes are said at once, second": {map[string]string{"LOG_LEVEL": "loud", "TEAM_SIZE": "0"}, "TEAM_SIZE must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(with(c.environ))
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "such as ") || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), same) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The table of the README and the struct describe the same variables, with the
// same defaults.
func TestTheREADMEHasEveryVariable(t *testing.T) {
	t.Parallel()
	environtest.Table[Config](t, "../../../README.md", "### The API's variables")
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
	api := file.Services["api"]
	if len(api.Environment) == 0 {
		t.Fatal("compose.yaml gives the API no environment")
	}
	environtest.Passed[Config](t, api.Environment, api.Secrets, tracing.Variables()...)
}
