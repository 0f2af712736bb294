package opencode

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The bodies are as OpenCode 1.18.33 gave them.
func TestARefusalRepeatsNoValue(t *testing.T) {
	for name, tc := range map[string]struct{ body, want string }{
		"an issue": {
			`{"name":"ConfigInvalidError","data":{"path":"/c/opencode.json","issues":[{"path":["agent","a"],"message":"Expected object, got \"sk-secret\""},{"path":["mcp","q","enabled"],"message":"Missing key"}]}}`,
			"ConfigInvalidError:  agent.a: Expected object; mcp.q.enabled: Missing key;",
		},
		"choices": {
			`{"name":"ConfigInvalidError","data":{"issues":[{"path":["share"],"message":"Expected \"manual\" | \"auto\", got \"sk-secret\""}]}}`,
			`ConfigInvalidError:  share: Expected "manual" | "auto";`,
		},
		"a reference": {
			`{"name":"ConfigInvalidError","data":{"message":"bad file reference: \"{file:/nope/sk-secret}\" /nope/sk-secret does not exist"}}`,
			"ConfigInvalidError: bad file reference",
		},
		"a credential": {
			`{"name":"BadRequest","data":{"message":"Expected Auth, got \"sk-secret\"","kind":"Payload"}}`,
			"BadRequest: Expected Auth",
		},
		"the text of a file": {
			`{"name":"ConfigJsonError","data":{"path":"/c/opencode.json","message":"\n--- JSONC Input ---\n{\"key\":\"sk-secret\"}"}}`,
			"ConfigJsonError:",
		},
		"no JSON": {`what is sk-secret`, "it gave no reason that can be repeated"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := refused([]byte(tc.body)).Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTextsOfAConfigAreTakenOutOfMessages(t *testing.T) {
	rules := "the rules"
	cfg := guest.Config{
		OpenCode: json.RawMessage(`{"a":{"apiKey":"sk-1234"},"b":["sk-1234-longer","short"]}`),
		Auth:     map[string]json.RawMessage{"p": json.RawMessage(`{"type":"api","key":"k\"7890ä"}`)},
		AgentsMD: &rules,
		Files:    []guest.File{{Content: "the content"}},
	}
	said := "apiKey: short sk-1234 sk-1234-longer k\"7890ä the rules the content"
	err := withoutSecrets(sandbox.Errorf(sandbox.CodeConfigRejected, "%s", said+strings.Repeat(".", maxWords)), guest.Config{}, cfg)
	const want = "apiKey: short [redacted] [redacted] [redacted] [redacted] [redacted]..."
	if !sandbox.HasCode(err, sandbox.CodeConfigRejected) || !strings.Contains(err.Error(), want) || len(err.Error()) > 2*maxWords {
		t.Errorf("got %v", err)
	}
	wordy := guest.Config{OpenCode: json.RawMessage(`{"a":{"apiKey":"expected","share":"disabled"}}`)}
	if got := withoutSecrets(sandbox.Errorf(sandbox.CodeConfigRejected, "expected disabled"), wordy); got.Error() != "config_rejected: expected disabled" {
		t.Errorf("words of a config are taken out: %v", got)
	}
	if got := withoutSecrets(nil, cfg); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func TestHugeListsOfOpenCodeAreCut(t *testing.T) {
	var ptys terminals
	if err := json.Unmarshal([]byte(`[{"id":"pty_1","pid":5}`+strings.Repeat(",{}", 1_000_000)+`]`), &ptys); err != nil || len(ptys) != maxPtys || ptys[0].PID != 5 {
		t.Errorf("%d terminals, %v", len(ptys), err)
	}
	var status turns
	var huge strings.Builder
	for i := range 2 * maxTurns {
		huge.WriteString(`,"ses_` + strings.Repeat("x", i) + `":{"type":"busy"}`)
	}
	if err := json.Unmarshal([]byte("{"+huge.String()[1:]+"}"), &status); err != nil || len(status) != maxTurns || status["ses_"] != "busy" {
		t.Errorf("%d turns, %v", len(status), err)
	}
	for _, body := range []string{`5`, `{"a":5}`, `null`} {
		if json.Unmarshal([]byte(body), &ptys) == nil && body != "null" {
			t.Errorf("%s was taken for a list", body)
		}
	}
}
