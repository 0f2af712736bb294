// Package provider knows the places where sandboxes can live and chooses among
// them: docker, which is a gateway, and cloudflare, which is a worker.
package provider

import (
	"errors"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// The names of the providers, as requests and rows have them.
const (
	Docker     = "docker"
	Cloudflare = "cloudflare"
)

// UseCase is what a sandbox is wanted for; the automatic choice goes by it.
type UseCase string

// The use cases.
const (
	Development UseCase = "development" // a sandbox that somebody works in
	QuickTask   UseCase = "quick-task"  // one message
	Batch       UseCase = "batch"       // many, one after another
	MultiAgent  UseCase = "multi-agent" // several at once
)

// State is what is known of a provider.
type State struct {
	Description string
	// Configured tells whether it can be asked for, Available whether it also
	// answered the last time that it was looked at.
	Configured bool
	Available  bool
	// Since is when Available became what it is; zero if it is not configured.
	Since time.Time
	// Reason says why it is not available.
	Reason string
}

// Provider is a place where sandboxes live, which is configured.
type Provider struct {
	Name    string
	Backend sandbox.Backend
}

// Told is what a backend's error is to a user: that it does not let us in, or
// does not know a route, is no fault of the user's.
func Told(err error) error {
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok {
		return err
	}
	switch e.Code { //nolint:exhaustive // the rest are the user's to know
	case sandbox.CodeUnauthorized, sandbox.CodeForbiddenHost, sandbox.CodeForbiddenOrigin, sandbox.CodeRouteNotFound, sandbox.CodeMethodNotAllowed:
		return sandbox.Errorf(sandbox.CodeBackendFailed, "the sandbox's provider refused the API; its settings must be checked").WithCause(err)
	}
	return err
}
