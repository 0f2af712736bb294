package turn

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxNamed is how many names a message offers instead of an unknown one.
const maxNamed = 8

// checkModel returns model_unknown unless OpenCode has the model.
func checkModel(ctx context.Context, oc *opencode.Client, model *sandbox.Model) error {
	if model == nil {
		return nil
	}
	providers, err := oc.Providers(ctx)
	if err != nil {
		return fmt.Errorf("asking for the models: %w", err)
	}
	ids := make([]string, 0, len(providers))
	for _, p := range providers {
		if p.ID != model.ProviderID {
			ids = append(ids, p.ID)
			continue
		}
		if slices.Contains(p.Models, model.ModelID) {
			return nil
		}
		return sandbox.Errorf(sandbox.CodeModelUnknown, "the provider %q has no model %q; it has %s", p.ID, model.ModelID, offer(p.Models))
	}
	return sandbox.Errorf(sandbox.CodeModelUnknown, "no provider %q is set up in this sandbox; there is %s", model.ProviderID, offer(ids))
}

// checkAgent returns agent_unknown unless OpenCode has the agent.
func checkAgent(ctx context.Context, oc *opencode.Client, agent string) error {
	if agent == "" {
		return nil
	}
	agents, err := oc.Agents(ctx)
	if err != nil {
		return fmt.Errorf("asking for the agents: %w", err)
	}
	names := make([]string, 0, len(agents))
	for _, a := range agents {
		if a.Name == agent {
			return nil
		}
		if !a.Hidden {
			names = append(names, a.Name)
		}
	}
	return sandbox.Errorf(sandbox.CodeAgentUnknown, "no agent %q in this sandbox; there is %s", agent, offer(names))
}

// offer lists some names that came from the sandbox.
func offer(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	names = slices.Sorted(slices.Values(names))
	more := ""
	if len(names) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(names)-maxNamed)
		names = names[:maxNamed]
	}
	shown := make([]string, len(names))
	for i, name := range names {
		shown[i] = printable.Line(name, maxName)
	}
	return strings.Join(shown, ", ") + more
}
