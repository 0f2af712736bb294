package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// readable is how a user reads a default key of the gateway's: OpenCode tells it.
const readable = "GET /api/v2/sandboxes/ID/opencode/provider"

// asker is what tells the defaults: the gateway's client.
type asker interface {
	Defaults(ctx context.Context) (sandbox.Defaults, error)
}

// mayOpen says of a sign-up why it may not be open: SIGN_UP leaves it to the
// gateway's defaults, and every user could read the keys among them. While the
// gateway cannot be asked, sign-up is closed. It is nil if there is nothing to ask.
func mayOpen(cfg config.Config, providers *provider.Registry, log *slog.Logger) func(context.Context) error {
	if cfg.SignUp != config.SignUpAuto || cfg.GatewayURL == "" {
		return nil
	}
	return func(ctx context.Context) error {
		found, err := defaultCredentials(ctx, providers)
		if err != nil {
			log.WarnContext(ctx, "a sign-up was refused, as the gateway does not say whether it has default credentials", "error", err)
			return &account.ClosedError{Why: "sign-up is closed while the gateway does not say whether its sandboxes have default credentials, which every user could read; " +
				"try again later, or ask the operator to set SIGN_UP"}
		}
		if len(found) > 0 {
			log.WarnContext(ctx, "a sign-up was refused, as the gateway has default credentials", "providers", strings.Join(found, ", "), "fix", "set SIGN_UP=true if every user may read them")
			return &account.ClosedError{Why: "sign-up is closed, as the sandboxes here have default credentials, which every user could read; the operator opens it with SIGN_UP=true"}
		}
		return nil
	}
}

// defaultCredentials asks the gateway whose keys every sandbox has.
func defaultCredentials(ctx context.Context, providers *provider.Registry) ([]string, error) {
	backend, err := providers.Backend(provider.Docker)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says all there is
	}
	gateway, ok := backend.(asker)
	if !ok {
		return nil, errors.New("the gateway's client cannot ask for its defaults")
	}
	defaults, err := gateway.Defaults(ctx)
	return defaults.Credentials, err //nolint:wrapcheck // as above
}
