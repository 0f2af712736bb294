package lifecycle

// Where a provider's key may go. OpenCode merges the configs of a repository
// into the one that the gateway renders, and the rendered one wins (measured with
// OpenCode 1.18.33; gateway/e2e holds it). So a destination that is rendered
// beside each key cannot be changed by a repository's opencode.json. A caller's
// config sets the destination of the caller's own keys only.

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// endpointOf returns the base URL that OpenCode uses for a provider if no config
// names one: OpenCode's own catalogue has it, or the package that speaks to the
// provider. Empty means that none is known, or that it depends on an account.
func endpointOf(provider, npm string) string {
	if url := map[string]string{
		"alibaba":        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
		"anthropic":      "https://api.anthropic.com/v1",
		"cerebras":       "https://api.cerebras.ai/v1",
		"cohere":         "https://api.cohere.com/v2",
		"deepinfra":      "https://api.deepinfra.com/v1",
		"deepseek":       "https://api.deepseek.com",
		"fireworks-ai":   "https://api.fireworks.ai/inference/v1/",
		"github-copilot": "https://api.githubcopilot.com",
		"google":         "https://generativelanguage.googleapis.com/v1beta",
		"groq":           "https://api.groq.com/openai/v1",
		"minimax":        "https://api.minimax.io/anthropic/v1",
		"mistral":        "https://api.mistral.ai/v1",
		"moonshotai":     "https://api.moonshot.ai/v1",
		"ollama-cloud":   "https://ollama.com/v1",
		"openai":         "https://api.openai.com/v1",
		"opencode":       "https://opencode.ai/zen/v1",
		"openrouter":     "https://openrouter.ai/api/v1",
		"perplexity":     "https://api.perplexity.ai",
		"togetherai":     "https://api.together.xyz/v1/",
		"v0":             "https://api.v0.dev/v1",
		"venice":         "https://api.venice.ai/api/v1",
		"vercel":         "https://ai-gateway.vercel.sh/v3/ai",
		"xai":            "https://api.x.ai/v1",
		"zai":            "https://api.z.ai/api/paas/v4",
	}[provider]; url != "" {
		return url
	}
	return map[string]string{
		"@ai-sdk/anthropic":           "https://api.anthropic.com/v1",
		"@ai-sdk/cerebras":            "https://api.cerebras.ai/v1",
		"@ai-sdk/cohere":              "https://api.cohere.com/v2",
		"@ai-sdk/deepinfra":           "https://api.deepinfra.com/v1",
		"@ai-sdk/gateway":             "https://ai-gateway.vercel.sh/v3/ai",
		"@ai-sdk/google":              "https://generativelanguage.googleapis.com/v1beta",
		"@ai-sdk/groq":                "https://api.groq.com/openai/v1",
		"@ai-sdk/mistral":             "https://api.mistral.ai/v1",
		"@ai-sdk/openai":              "https://api.openai.com/v1",
		"@ai-sdk/perplexity":          "https://api.perplexity.ai",
		"@ai-sdk/togetherai":          "https://api.together.xyz/v1/",
		"@ai-sdk/vercel":              "https://api.v0.dev/v1",
		"@ai-sdk/xai":                 "https://api.x.ai/v1",
		"@openrouter/ai-sdk-provider": "https://openrouter.ai/api/v1",
		"venice-ai-sdk-provider":      "https://api.venice.ai/api/v1",
	}[npm]
}

// The names in a config of OpenCode's that this file reads.
const (
	fieldProvider = "provider"
	fieldOptions  = "options"
	fieldModels   = "models"
	fieldHeaders  = "headers"
	fieldAPIKey   = "apiKey"
	fieldBaseURL  = "baseURL"
)

// destinations are the options that the packages in OpenCode's binary take a
// host from. A model of a repository's may name another package than the
// provider's, and of those one heeds the last two instead of the first.
func destinations() []string { return []string{fieldBaseURL, "instanceUrl", "aiGatewayUrl"} }

// harmless are the options that say nothing of where a request goes, nor what
// goes with it.
func harmless() []string {
	return []string{"timeout", "chunkTimeout", "headerTimeout", "setCacheKey"}
}

func object(node any) map[string]any {
	fields, _ := node.(map[string]any)
	return fields
}

func text(node any) string {
	s, _ := node.(string)
	return s
}

// entry is what a config has of a provider beside its credential; nil for nothing.
func (c Config) entry(provider string) map[string]any {
	return object(object(c.OpenCode[fieldProvider])[provider])
}

// brings says whether the config has a credential for a provider.
func (c Config) brings(provider string) bool {
	return c.Auth[provider] != nil || text(object(c.entry(provider)[fieldOptions])[fieldAPIKey]) != ""
}

// guards says whether the config has anything secret for a provider, such as a
// header that its requests carry.
func (c Config) guards(provider string) bool {
	if c.brings(provider) {
		return true
	}
	raw, err := json.Marshal(c.entry(provider))
	return err == nil && len(redact.Secrets(raw)) > 0
}

// Credentials names the providers that the config has a credential for, sorted.
func (c Config) Credentials() []string {
	names := slices.AppendSeq([]string{}, maps.Keys(c.Auth))
	for provider := range object(c.OpenCode[fieldProvider]) {
		if c.Auth[provider] == nil && c.guards(provider) {
			names = append(names, provider)
		}
	}
	slices.Sort(names)
	return names
}

// directs lists the fields of a provider's entry that say where its requests go
// or what goes with them, as paths below the config, sorted.
func directs(provider string, entry map[string]any) []string {
	var fields []string
	at := func(path ...string) {
		fields = append(fields, strings.Join(append([]string{fieldProvider, provider}, path...), "."))
	}
	for _, name := range []string{"api", "npm", "env"} {
		if entry[name] != nil {
			at(name)
		}
	}
	for name := range object(entry[fieldOptions]) {
		if !slices.Contains(harmless(), name) {
			at(fieldOptions, name)
		}
	}
	for model, settings := range object(entry[fieldModels]) {
		for _, name := range []string{fieldProvider, fieldHeaders} {
			if object(settings)[name] != nil {
				at(fieldModels, model, name)
			}
		}
	}
	slices.Sort(fields)
	return fields
}

// undirected is a provider's entry without the fields that directs names.
func undirected(entry map[string]any) map[string]any {
	entry = maps.Clone(entry)
	for _, name := range []string{"api", "npm", "env"} {
		delete(entry, name)
	}
	if options := maps.Clone(object(entry[fieldOptions])); options != nil {
		maps.DeleteFunc(options, func(name string, _ any) bool { return !slices.Contains(harmless(), name) })
		entry[fieldOptions] = options
	}
	if models := maps.Clone(object(entry[fieldModels])); models != nil {
		for model, settings := range models {
			if settings := maps.Clone(object(settings)); settings != nil {
				delete(settings, fieldProvider)
				delete(settings, fieldHeaders)
				models[model] = settings
			}
		}
		entry[fieldModels] = models
	}
	return entry
}

// CheckOver refuses what a caller's config may not say over the defaults: where
// a key goes that is not the caller's, and what goes with it.
func (c Config) CheckOver(defaults Config) error {
	for _, provider := range slices.Sorted(maps.Keys(object(c.OpenCode[fieldProvider]))) {
		if c.brings(provider) || !defaults.guards(provider) {
			continue
		}
		if fields := directs(provider, c.entry(provider)); len(fields) > 0 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest,
				"config.%s: the key of %s is the gateway's own, and only the gateway says where it goes; leave the field out, or give a key of your own in config.auth.%s",
				fields[0], provider, provider)
		}
	}
	return nil
}

// split divides what two layers say of the providers by whose key counts. A
// caller's key takes the place of the defaults', with the caller's destination if
// there is one, else with the defaults'; a key of the defaults goes where the
// defaults say, whatever a config on record says that was accepted before they
// had the key.
func split(defaults, over Config) (under, upper Config) {
	under, upper = defaults, over
	under.OpenCode, upper.OpenCode = maps.Clone(defaults.OpenCode), maps.Clone(over.OpenCode)
	under.Auth = maps.Clone(defaults.Auth)
	lower, top := maps.Clone(object(defaults.OpenCode[fieldProvider])), maps.Clone(object(over.OpenCode[fieldProvider]))
	for _, provider := range slices.Concat(slices.Collect(maps.Keys(top)), slices.Collect(maps.Keys(over.Auth))) {
		switch {
		case over.brings(provider):
			delete(under.Auth, provider)
			if len(directs(provider, over.entry(provider))) > 0 {
				delete(lower, provider)
			} else if options := maps.Clone(object(object(lower[provider])[fieldOptions])); options != nil {
				delete(options, fieldAPIKey)
				entry := maps.Clone(object(lower[provider]))
				entry[fieldOptions] = options
				lower[provider] = entry
			}
		case defaults.guards(provider):
			top[provider] = undirected(object(top[provider]))
		}
	}
	if lower != nil {
		under.OpenCode[fieldProvider] = lower
	}
	if top != nil {
		upper.OpenCode[fieldProvider] = top
	}
	return under, upper
}

// pin returns the config with a destination beside each credential. A credential
// for which none is known is left out: a repository could send it anywhere.
func (c Config) pin() Config {
	providers := maps.Clone(object(c.OpenCode[fieldProvider]))
	if providers == nil {
		if c.OpenCode[fieldProvider] != nil {
			return c // OpenCode refuses it as it is
		}
		providers = map[string]any{}
	}
	pinned := c
	pinned.OpenCode, pinned.Auth = maps.Clone(c.OpenCode), maps.Clone(c.Auth)
	for _, provider := range c.Credentials() {
		entry := maps.Clone(c.entry(provider))
		url := c.destination(provider)
		switch {
		case url == "":
			delete(pinned.Auth, provider)
			if entry != nil {
				providers[provider] = undirected(entry)
			}
			continue
		case entry == nil:
			entry = map[string]any{}
		}
		options := maps.Clone(object(entry[fieldOptions]))
		if options == nil {
			options = map[string]any{}
		}
		for _, name := range destinations() {
			if text(options[name]) == "" {
				options[name] = url
			}
		}
		entry[fieldOptions] = options
		providers[provider] = entry
	}
	if len(providers) > 0 {
		if pinned.OpenCode == nil {
			pinned.OpenCode = map[string]any{}
		}
		pinned.OpenCode[fieldProvider] = providers
	}
	return pinned
}

// destination is where a provider's requests go; empty if that is not known.
func (c Config) destination(provider string) string {
	entry := c.entry(provider)
	for _, url := range []string{text(object(entry[fieldOptions])[fieldBaseURL]), text(entry["api"])} {
		if url != "" {
			return url
		}
	}
	return endpointOf(provider, text(entry["npm"]))
}

// Unpinned says for each credential of the config that a sandbox is not given
// why that is, and what to do. The receiver is laid over its defaults already.
func (c Config) Unpinned() []string {
	var warnings []string
	for _, provider := range c.Credentials() {
		if c.destination(provider) == "" {
			warnings = append(warnings, fmt.Sprintf(
				"config.auth: %s skipped: the gateway does not know where its key goes, so a repository could say it; set config.provider.%s.options.baseURL beside it",
				provider, provider))
		}
	}
	return warnings
}
