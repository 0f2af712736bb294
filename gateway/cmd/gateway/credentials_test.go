package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/shared/doctor"
)

func TestADoctorWarnsOfKeysThatEverySandboxHas(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		environ map[string]string
		warns   string // empty for no warning
	}{
		"none":                     {nil, ""},
		"a key of the environment": {map[string]string{"ANTHROPIC_API_KEY": "sk-secret-key"}, "keys of anthropic"},
		"keys of the default config": {map[string]string{
			"OPENAI_API_KEY": "sk-secret-key", "DEFAULT_CONFIG": `{"provider":{"mine":{"npm":"@ai-sdk/openai-compatible","options":{"baseURL":"https://x.test","apiKey":"sk-secret-key"}}}}`,
		}, "keys of mine, openai"},
	} {
		cfg, err := config.Load(c.environ)
		if err != nil {
			t.Fatal(err)
		}
		detail, err := (&examination{cfg: cfg}).defaultCredentials(t.Context())
		warning, warned := errors.AsType[doctor.WarningError](err)
		if warned != (c.warns != "") || !strings.Contains(string(warning), c.warns) || strings.Contains(string(warning), "sk-secret") {
			t.Errorf("%s: %q, %v", name, detail, err)
		}
		if warned && !strings.Contains(string(warning), "one GET of /sandbox/ID/opencode/provider") {
			t.Errorf("%s: it does not say how: %s", name, warning)
		}
	}
}
