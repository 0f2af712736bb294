// Command api is what frontends talk to: accounts, tasks and teams, over the
// sandboxes of a gateway or a Cloudflare worker.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/environ"
)

const usage = `api: accounts, agent tasks and teams over sandboxes with OpenCode

Usage:
  api serve     run until SIGINT or SIGTERM (the default); brings the database up to date first
  api migrate   bring the database up to date and end
  api doctor    check that all it needs is there, and say what to do; --json for programs
  api health    ask the API that runs with this configuration whether it is ready
  api version   print the version

The configuration comes from the environment; README.md lists the variables.
It ends with 0, with 1 if something went wrong, and with 2 after a mistake in the call or the configuration.
`

// The exit codes: 1 is what went wrong while running, 2 a mistake in the call
// or the configuration.
const (
	exitFailed = 1
	exitUsage  = 2
)

// closing bounds each step of the shutdown that follows the drain.
const closing = 20 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with everything that it depends on handed in.
func run(ctx context.Context, args, variables []string, stdout, stderr io.Writer) int {
	call, ok := daemon.ParseCall(args, "serve", "migrate", "health", "doctor")
	switch {
	case call.Help:
		_, _ = fmt.Fprint(stdout, usage)
		return 0
	case call.Version:
		_, _ = fmt.Fprintln(stdout, "api", daemon.Version())
		return 0
	case !ok || call.JSON && call.Command != "doctor":
		_, _ = fmt.Fprintf(stderr, "api: %s\n\n%s", strings.Join(args, " "), usage)
		return exitUsage
	}
	cfg, err := config.Load(environ.Map(variables))
	if call.Command == "doctor" {
		return examine(ctx, cfg, err, call.JSON, stdout, stderr)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "api: the configuration is wrong:\n%s\n", err)
		return exitUsage
	}
	does := map[string]func(context.Context, config.Config, io.Writer) error{"serve": serve, "migrate": migrate, "health": health}[call.Command]
	if err := does(ctx, cfg, stderr); err != nil {
		_, _ = fmt.Fprintf(stderr, "api: %s\n", err)
		return exitFailed
	}
	return 0
}

// health asks the API that serves with the same configuration.
func health(ctx context.Context, cfg config.Config, _ io.Writer) error {
	return daemon.CheckHealth(ctx, cfg.Addr, "/readyz")
}
