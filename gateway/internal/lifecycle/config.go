package lifecycle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Config is a caller's config, taken apart: what OpenCode reads, and the three
// keys of the contract's own.
type Config struct {
	OpenCode map[string]any
	Files    []guest.File
	AgentsMD *string
	Auth     map[string]json.RawMessage
	// Warnings name what was skipped: unknown file types, incomplete credentials.
	Warnings []string
}

// ParseConfig takes the contract's config apart. Empty and null mean none.
func ParseConfig(raw json.RawMessage) (Config, error) {
	var c Config
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return c, nil
	}
	if err := sandbox.CheckDepth("config", raw); err != nil {
		return c, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return c, sandbox.Errorf(sandbox.CodeInvalidRequest, "config must be a JSON object")
	}
	if err := takeFiles(&c, fields["files"]); err != nil {
		return c, err
	}
	if err := takeAgentsMD(&c, fields["agents_md"]); err != nil {
		return c, err
	}
	if err := takeAuth(&c, fields["auth"]); err != nil {
		return c, err
	}
	for _, own := range []string{"files", "agents_md", "auth"} {
		delete(fields, own)
	}
	if len(fields) > 0 {
		c.OpenCode = make(map[string]any, len(fields))
		for k, v := range fields {
			var decoded any
			if err := json.Unmarshal(v, &decoded); err != nil {
				return c, sandbox.Errorf(sandbox.CodeInvalidRequest, "config.%s is not valid JSON", k)
			}
			c.OpenCode[k] = decoded
		}
	}
	return c, nil
}

// accept takes apart a config that a caller gave, and refuses what it may not say
// over the defaults.
func (m *Manager) accept(raw json.RawMessage) (Config, error) {
	c, err := ParseConfig(raw)
	if err != nil {
		return c, err
	}
	c.Warnings = append(c.Warnings, c.Over(m.settings.Defaults).Unpinned()...)
	return c, c.CheckOver(m.settings.Defaults)
}

func absent(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(bytes.TrimSpace(raw), []byte("null"))
}

func takeFiles(c *Config, raw json.RawMessage) error {
	if absent(raw) {
		return nil
	}
	var files []guest.File
	if err := json.Unmarshal(raw, &files); err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.files must be a list of {type, name, extension, content}")
	}
	seen := map[string]bool{}
	for _, f := range files {
		if !slices.Contains(guest.FileTypes(), f.Type) {
			c.Warnings = append(c.Warnings, fmt.Sprintf("config.files: %q skipped: unknown type %q",
				printable.Line(f.Name, maxShown), printable.Line(f.Type, maxShown)))
			continue
		}
		if err := guest.CheckFile(f); err != nil {
			return err
		}
		if seen[f.Key()] {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.files: %s is there twice", f.Key())
		}
		seen[f.Key()] = true
		c.Files = append(c.Files, f)
	}
	return nil
}

func takeAgentsMD(c *Config, raw json.RawMessage) error {
	if absent(raw) {
		return nil
	}
	if err := json.Unmarshal(raw, &c.AgentsMD); err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.agents_md must be a string")
	}
	return nil
}

func takeAuth(c *Config, raw json.RawMessage) error {
	if absent(raw) {
		return nil
	}
	entries := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &entries); err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.auth must be an object of credentials by provider")
	}
	for _, provider := range slices.Sorted(maps.Keys(entries)) {
		if err := guest.CheckProvider(provider); err != nil {
			return err
		}
		var e struct {
			Type, Key, Refresh, Access string
			Expires                    *float64
		}
		if err := json.Unmarshal(entries[provider], &e); err != nil {
			c.Warnings = append(c.Warnings, fmt.Sprintf("config.auth: %s skipped: not an object of the known shape", provider))
			continue
		}
		complete := e.Type == "api" && e.Key != "" ||
			e.Type == "oauth" && e.Refresh != "" && e.Access != "" && e.Expires != nil
		if !complete {
			c.Warnings = append(c.Warnings, fmt.Sprintf("config.auth: %s skipped: incomplete", provider))
			continue
		}
		if c.Auth == nil {
			c.Auth = map[string]json.RawMessage{}
		}
		c.Auth[provider] = entries[provider]
	}
	return nil
}

// maxShown bounds what is repeated of what a caller sent, in bytes.
const maxShown = 80

// Empty says whether the config asks for nothing.
func (c Config) Empty() bool {
	return len(c.OpenCode) == 0 && len(c.Files) == 0 && c.AgentsMD == nil && len(c.Auth) == 0
}

// Over returns c laid over defaults: objects are merged, anything else of c
// wins, files and credentials are joined by name. A provider's key and what says
// where it goes stay together: see split.
func (c Config) Over(defaults Config) Config {
	defaults, c = split(defaults, c)
	merged := Config{AgentsMD: c.AgentsMD, Warnings: c.Warnings}
	if merged.AgentsMD == nil {
		merged.AgentsMD = defaults.AgentsMD
	}
	merged.OpenCode = mergeObjects(defaults.OpenCode, c.OpenCode)
	own := map[string]bool{}
	for _, f := range c.Files {
		own[f.Key()] = true
	}
	for _, f := range defaults.Files {
		if !own[f.Key()] {
			merged.Files = append(merged.Files, f)
		}
	}
	merged.Files = append(merged.Files, c.Files...)
	if len(defaults.Auth)+len(c.Auth) > 0 {
		merged.Auth = maps.Clone(defaults.Auth)
		if merged.Auth == nil {
			merged.Auth = map[string]json.RawMessage{}
		}
		maps.Copy(merged.Auth, c.Auth)
	}
	return merged
}

func mergeObjects(under, over map[string]any) map[string]any {
	if len(under) == 0 {
		return over
	}
	out := maps.Clone(under)
	for k, v := range over {
		a, aok := out[k].(map[string]any)
		b, bok := v.(map[string]any)
		if aok && bok {
			out[k] = mergeObjects(a, b)
		} else {
			out[k] = v
		}
	}
	return out
}

// Guest is the config as sandboxd takes it, with the destination of each key.
func (c Config) Guest() (guest.Config, error) {
	c = c.pin()
	g := guest.Config{AgentsMD: c.AgentsMD, Files: c.Files, Auth: c.Auth}
	if len(c.OpenCode) > 0 {
		raw, err := json.Marshal(c.OpenCode)
		if err != nil {
			return g, fmt.Errorf("rendering opencode.json: %w", err)
		}
		g.OpenCode = raw
	}
	return g, nil
}

// Secrets are the credentials that a sandbox works with: nothing that is said of it
// may repeat them. None of a sandbox that is not there.
func (m *Manager) Secrets(id string) []string {
	b, err := m.existing(id)
	if err != nil {
		return nil
	}
	config, err := ParseConfig(b.record().Secrets.Config)
	if err != nil {
		return nil // so it was never given to the sandbox
	}
	config = config.Over(m.settings.Defaults)
	raw, err := json.Marshal(map[string]any{"auth": config.Auth, "config": config.OpenCode})
	if err != nil {
		return nil // as above
	}
	return redact.Secrets(raw)
}

// Defaults says what every sandbox is given, without any secret.
func (m *Manager) Defaults() sandbox.Defaults {
	return sandbox.Defaults{Credentials: m.settings.Defaults.Credentials()}
}

// keys are those of all that the config has rendered.
func (c Config) keys() []string {
	keys := []string{guest.KeyOpenCode, guest.KeyAgentsMD, guest.KeyAuth}
	for _, f := range c.Files {
		keys = append(keys, f.Key())
	}
	return keys
}

// CountWritten is the contract's filesWritten: of what was written, the part
// that this config asked for.
func (c Config) CountWritten(written []string) int {
	n := 0
	for _, key := range written {
		switch {
		case key == guest.KeyOpenCode && len(c.OpenCode) > 0,
			key == guest.KeyAgentsMD && c.AgentsMD != nil,
			key == guest.KeyAuth && len(c.Auth) > 0,
			slices.ContainsFunc(c.Files, func(f guest.File) bool { return f.Key() == key }):
			n++
		}
	}
	return n
}
