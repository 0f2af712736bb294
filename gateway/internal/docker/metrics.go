package docker

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Figures are those of the calls to the engine.
func (r *Runtime) Figures() prometheus.Collector { return r.calls }

// callNames are what the figures call the calls.
func callNames() []string {
	return []string{
		"attach", "create", "create_volume", "foreground", "image", "inspect", "list", "logs", "network", "pause", "remove", "remove_network", "remove_volume", "rename", "shrink", "start", "stats", "stop", "unpause", "volumes", "wait",
	}
}

// proper says whether an error is no fault of the engine's: there is no such
// container, or it is in a state in which that cannot be done.
func proper(err error) bool {
	return errors.Is(err, lifecycle.ErrNoContainer) || sandbox.HasCode(err, sandbox.CodeConflict) || sandbox.HasCode(err, sandbox.CodeUnsupported)
}
