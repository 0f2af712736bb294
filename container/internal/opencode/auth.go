package opencode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/agentpod/agentpod/container/internal/folder"
	"github.com/agentpod/agentpod/shared/guest"
)

// Where things lie below the home.
const (
	authFile    = ".local/share/opencode/auth.json"
	managedFile = ".local/state/agentpod/providers.json"
	maxAuth     = 4 << 20
)

// authChanges are the calls to OpenCode's auth route that a config needs.
type authChanges struct {
	set    map[string]json.RawMessage
	remove []string
	before map[string]json.RawMessage // what set and remove replace, for the way back
	// managed are the providers that a config named, before and after. Only
	// these are ever removed: others are what the user logged into himself.
	managedBefore, managedAfter managed
}

// managed maps a provider to the SHA-256 of the credential that a config gave
// it. OpenCode renews OAuth tokens, so only the hash tells whether the config's
// is a new one or the ancestor of what auth.json holds now.
type managed map[string]string

func digest(credential json.RawMessage) string {
	sum := sha256.Sum256(credential)
	return hex.EncodeToString(sum[:])
}

// unchanged reports whether OpenCode's credential needs no setting.
func (m managed) unchanged(provider string, have, want json.RawMessage) bool {
	if sameJSON(have, want) {
		return true
	}
	var kind struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(want, &kind) == nil && kind.Type == "oauth" && m[provider] == digest(want)
}

func (a authChanges) none() bool { return len(a.set) == 0 && len(a.remove) == 0 }

// planAuth compares a config's credentials with those that OpenCode has.
func planAuth(home *os.Root, cfg guest.Config) authChanges {
	have := readJSON[json.RawMessage](home, authFile)
	known := managed(readJSON[string](home, managedFile))
	plan := authChanges{
		set:           make(map[string]json.RawMessage),
		before:        make(map[string]json.RawMessage),
		managedBefore: known,
		managedAfter:  make(managed),
	}
	for provider, credential := range cfg.Auth {
		plan.managedAfter[provider] = digest(credential)
		old, ok := have[provider]
		if ok && known.unchanged(provider, old, credential) {
			continue
		}
		plan.set[provider] = credential
		if ok {
			plan.before[provider] = old
		}
	}
	for _, provider := range sortedKeys(known) {
		_, wanted := cfg.Auth[provider]
		old, exists := have[provider]
		if wanted || !exists {
			continue
		}
		plan.remove = append(plan.remove, provider)
		plan.before[provider] = old
	}
	return plan
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return bytes.Equal(a, b)
	}
	return reflect.DeepEqual(x, y)
}

// readJSON reads a file that anyone inside may have touched; one that cannot be
// read, whatever the reason, or that holds something else counts as empty.
func readJSON[V any](root *os.Root, name string) map[string]V {
	empty := make(map[string]V)
	f, err := folder.OpenRegular(root, name)
	if err != nil {
		return empty
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxAuth))
	if err != nil {
		return empty
	}
	var out map[string]V
	if json.Unmarshal(raw, &out) != nil || out == nil {
		return empty
	}
	return out
}

// mendAuth clears the way for a new auth.json if OpenCode could not write over
// the one that is there: a folder, a link out of the home, a locked file.
// OpenCode itself copes with one that is no JSON.
func mendAuth(home *os.Root) error {
	f, err := folder.OpenRegular(home, authFile)
	if err == nil {
		return f.Close()
	}
	return folder.Aside(home, authFile)
}

// writeManaged remembers which providers a config named; no secrets.
func writeManaged(home *os.Root, providers managed) error {
	raw, err := json.Marshal(providers)
	if err != nil {
		return fmt.Errorf("encode the managed providers: %w", err)
	}
	if same, err := folder.Holds(home, managedFile, raw); err != nil || same {
		return err
	}
	return folder.Replace(home, managedFile, raw)
}
