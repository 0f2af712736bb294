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
  api health    ask the API that runs with this configuration whether it is ready
  api version   print the version

The configuration comes from the environment; README.md lists the variables.
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
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	if len(args) > 1 {
		command = "too many arguments"
	}
	does := serve
	switch command {
	case "serve":
	case "migrate":
		does = migrate
	case "health":
		does = health
	case "version", "--version", "-version":
		_, _ = fmt.Fprintln(stdout, "api", daemon.Version())
		return 0
	case "help", "--help", "-help", "-h":
		_, _ = fmt.Fprint(stdout, usage)
		return 0
	default:
		_, _ = fmt.Fprintf(stderr, "api: %s\n\n%s", strings.Join(args, " "), usage)
		return exitUsage
	}
	cfg, err := config.Load(environ.Map(variables))
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "api: the configuration is wrong:\n%s\n", err)
		return exitUsage
	}
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
