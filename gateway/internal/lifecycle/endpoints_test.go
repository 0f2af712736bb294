package lifecycle

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func parsed(t *testing.T, raw string) Config {
	t.Helper()
	c, err := ParseConfig([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// rendered is what a sandbox with a config over the defaults is given.
func rendered(t *testing.T, config, defaults string) (provider map[string]map[string]any, auth map[string]json.RawMessage) {
	t.Helper()
	g, err := parsed(t, config).Over(parsed(t, defaults)).Guest()
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Provider map[string]map[string]any }
	if len(g.OpenCode) > 0 {
		if err := json.Unmarshal(g.OpenCode, &file); err != nil {
			t.Fatal(err)
		}
	}
	return file.Provider, g.Auth
}

func TestEveryKeyIsRenderedWithWhereItGoes(t *testing.T) {
	t.Parallel()
	const anthropic, proxy = "https://api.anthropic.com/v1", "https://proxy.test/v1"
	key := func(provider string) string { return `"auth":{"` + provider + `":{"type":"api","key":"secret-key"}}` }
	for name, c := range map[string]struct{ config, defaults, provider, url string }{
		"a caller's key":                        {`{` + key("anthropic") + `}`, `{}`, "anthropic", anthropic},
		"a default key":                         {`{}`, `{` + key("anthropic") + `}`, "anthropic", anthropic},
		"a sign-in":                             {`{"auth":{"anthropic":{"type":"oauth","refresh":"r","access":"a","expires":1}}}`, `{}`, "anthropic", anthropic},
		"a key in the provider's options":       {`{"provider":{"anthropic":{"options":{"apiKey":"secret-key"}}}}`, `{}`, "anthropic", anthropic},
		"a base URL beside the caller's key":    {`{` + key("anthropic") + `,"provider":{"anthropic":{"options":{"baseURL":"` + proxy + `"}}}}`, `{}`, "anthropic", proxy},
		"a base URL beside the default key":     {`{}`, `{` + key("anthropic") + `,"provider":{"anthropic":{"options":{"baseURL":"` + proxy + `"}}}}`, "anthropic", proxy},
		"an api beside the caller's key":        {`{` + key("mine") + `,"provider":{"mine":{"api":"` + proxy + `","npm":"@ai-sdk/openai-compatible"}}}`, `{}`, "mine", proxy},
		"a provider that its package tells":     {`{` + key("mine") + `,"provider":{"mine":{"npm":"@ai-sdk/anthropic"}}}`, `{}`, "mine", anthropic},
		"the operator's proxy, the user's key":  {`{` + key("mine") + `}`, `{"provider":{"mine":{"npm":"@ai-sdk/openai-compatible","options":{"baseURL":"` + proxy + `"}}}}`, "mine", proxy},
		"headers that are secret, and no key":   {`{"provider":{"openai":{"options":{"headers":{"X-Api":"a-secret-header"}}}}}`, `{}`, "openai", "https://api.openai.com/v1"},
		"a default key and a model's own limit": {`{"provider":{"anthropic":{"models":{"m":{"limit":{"context":1,"output":1}}}}}}`, `{` + key("anthropic") + `}`, "anthropic", anthropic},
	} {
		provider, _ := rendered(t, c.config, c.defaults)
		options := object(provider[c.provider]["options"])
		// gitlab's package, which a model of a repository's may name, goes by the others.
		for _, field := range []string{"baseURL", "instanceUrl", "aiGatewayUrl"} {
			if options[field] != c.url {
				t.Errorf("%s: %s is %v, want %s", name, field, options[field], c.url)
			}
		}
	}
}

func TestAKeyWhoseDestinationIsUnknownIsLeftOut(t *testing.T) {
	t.Parallel()
	const config = `{"auth":{"azure":{"type":"api","key":"secret-key"},"openai":{"type":"api","key":"secret-key"}},"provider":{"own":{"npm":"some-package","options":{"apiKey":"secret-key","timeout":5},"models":{"m":{"name":"M"}}}}}`
	provider, auth := rendered(t, config, `{}`)
	if len(auth) != 1 || auth["openai"] == nil {
		t.Errorf("auth = %v", auth)
	}
	if options := object(provider["own"]["options"]); options["apiKey"] != nil || options["timeout"] != 5.0 || object(provider["own"]["models"])["m"] == nil {
		t.Errorf("own = %v", provider["own"])
	}
	warnings := strings.Join(parsed(t, config).Unpinned(), "\n")
	for _, says := range []string{"azure skipped", "config.provider.azure.options.baseURL", "own skipped"} {
		if !strings.Contains(warnings, says) {
			t.Errorf("%q is not in: %s", says, warnings)
		}
	}
	if provider, auth = rendered(t, config[:len(config)-1]+`,"x":1}`, `{"provider":{"azure":{"options":{"baseURL":"https://me.openai.azure.com/openai"}}}}`); auth["azure"] == nil {
		t.Errorf("with a base URL: %v, %v", provider, auth)
	}
}

func TestACallerDoesNotSayWhereADefaultKeyGoes(t *testing.T) {
	t.Parallel()
	defaults := parsed(t, `{"auth":{"anthropic":{"type":"api","key":"secret-key"}},"provider":{"proxied":{"npm":"p","options":{"baseURL":"https://a.test","headers":{"Authorization":"Bearer secret-key"}}}}}`)
	own := `,"auth":{"anthropic":{"type":"api","key":"another-key"}}`
	for config, field := range map[string]string{
		`{"provider":{"anthropic":{"options":{"baseURL":"https://x.test"}}}}`:                   "provider.anthropic.options.baseURL",
		`{"provider":{"anthropic":{"options":{"headers":{"X-A":"bbbbbbbbbb"}}}}}`:               "provider.anthropic.options.headers",
		`{"provider":{"anthropic":{"options":{"instanceUrl":"https://x.test"}}}}`:               "provider.anthropic.options.instanceUrl",
		`{"provider":{"anthropic":{"api":"https://x.test"}}}`:                                   "provider.anthropic.api",
		`{"provider":{"anthropic":{"npm":"gitlab-ai-provider"}}}`:                               "provider.anthropic.npm",
		`{"provider":{"anthropic":{"env":["HOME"]}}}`:                                           "provider.anthropic.env",
		`{"provider":{"anthropic":{"models":{"m":{"provider":{"npm":"gitlab-ai-provider"}}}}}}`: "provider.anthropic.models.m.provider",
		`{"provider":{"anthropic":{"models":{"m":{"headers":{"X":"y"}}}}}}`:                     "provider.anthropic.models.m.headers",
		`{"provider":{"proxied":{"options":{"baseURL":"https://x.test"}}}}`:                     "provider.proxied.options.baseURL",
	} {
		err := parsed(t, config).CheckOver(defaults)
		if !sandbox.HasCode(err, sandbox.CodeInvalidRequest) || !strings.Contains(err.Error(), "config."+field+":") || !strings.Contains(err.Error(), "give a key of your own in config.auth.") {
			t.Errorf("%s: %v", config, err)
		}
		if !strings.Contains(field, "anthropic") {
			continue
		}
		if err := parsed(t, strings.TrimSuffix(config, "}")+own+"}").CheckOver(defaults); err != nil {
			t.Errorf("with a key of its own, %s: %v", config, err)
		}
	}
	for _, config := range []string{
		`{}`, `{"model":"anthropic/x"}`, `{"provider":{"anthropic":{"options":{"timeout":5},"whitelist":["m"],"models":{"m":{"limit":{"context":1,"output":1},"options":{"reasoningEffort":"high"}}}}}}`,
		`{"provider":{"other":{"options":{"baseURL":"https://x.test","apiKey":"mine"}}}}`,
	} {
		if err := parsed(t, config).CheckOver(defaults); err != nil {
			t.Errorf("%s: %v", config, err)
		}
	}
}

func TestAKeyOfOneLayerNeverGoesWhereAnotherSays(t *testing.T) {
	t.Parallel()
	const operators = `{"auth":{"anthropic":{"type":"api","key":"operators-key"}},"provider":{"anthropic":{"options":{"apiKey":"operators-key","headers":{"X-Token":"operators-header"},"baseURL":"https://operator.test"}}}}`
	for name, config := range map[string]string{
		"a record from before the operator had a key": `{"provider":{"anthropic":{"api":"https://caller.test","options":{"baseURL":"https://caller.test"},"models":{"m":{"provider":{"api":"https://caller.test"}}}}}}`,
		"a caller's key and destination":              `{"auth":{"anthropic":{"type":"api","key":"callers-key"}},"provider":{"anthropic":{"options":{"baseURL":"https://caller.test"}}}}`,
		"a key in the options":                        `{"provider":{"anthropic":{"options":{"apiKey":"callers-key","baseURL":"https://caller.test"}}}}`,
		"a key alone":                                 `{"auth":{"anthropic":{"type":"api","key":"callers-key"}}}`,
	} {
		provider, auth := rendered(t, config, operators)
		raw, err := json.Marshal(map[string]any{"provider": provider, "auth": auth})
		if err != nil {
			t.Fatal(err)
		}
		has := func(what string) bool { return strings.Contains(string(raw), what) }
		if has("operators-key") && has("caller.test") || has("operators-header") && has("caller.test") || has("operators-key") == has("callers-key") {
			t.Errorf("%s: %s", name, raw)
		}
	}
}

func TestTheConfigsThatAreLaidOverEachOtherStayAsTheyAre(t *testing.T) {
	t.Parallel()
	const over, under = `{"auth":{"anthropic":{"type":"api","key":"callers-key"}},"provider":{"anthropic":{"options":{"baseURL":"https://caller.test"}}}}`,
		`{"auth":{"anthropic":{"type":"api","key":"operators-key"}},"provider":{"anthropic":{"options":{"apiKey":"operators-key"}}}}`
	c, defaults := parsed(t, over), parsed(t, under)
	if _, err := c.Over(defaults).Guest(); err != nil {
		t.Fatal(err)
	}
	for name, both := range map[string][2]Config{"the caller's": {c, parsed(t, over)}, "the defaults": {defaults, parsed(t, under)}} {
		got, _ := json.Marshal(both[0])
		want, _ := json.Marshal(both[1])
		if !slices.Equal(got, want) {
			t.Errorf("%s became %s", name, got)
		}
	}
}

func TestEveryProviderThatTheAPIOffersHasADestination(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../../api/internal/credential/catalogue.json")
	if err != nil {
		t.Fatal(err)
	}
	var offered map[string]struct{ API string }
	if err := json.Unmarshal(raw, &offered); err != nil || len(offered) == 0 {
		t.Fatalf("%d providers, %v", len(offered), err)
	}
	for provider, p := range offered {
		url := endpointOf(provider, "")
		if !strings.HasPrefix(url, "https://") || p.API != "" && p.API != url {
			t.Errorf("%s goes to %q, and the catalogue says %q", provider, url, p.API)
		}
	}
}
