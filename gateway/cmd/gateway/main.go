// Command gateway gives every sandbox a container of its own with OpenCode in
// it, and serves them over HTTP.
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

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/environ"
)

const usage = `gateway: self-hosted sandboxes with OpenCode

Usage:
  gateway serve     run until SIGINT or SIGTERM (the default)
  gateway network   make the sandboxes' network and print the host's address in it
  gateway doctor    check that all it needs is there, and say what to do; --json for programs
  gateway health    ask the gateway that runs with this configuration whether it serves
  gateway version   print the version

The configuration comes from the environment; README.md lists the variables.
It ends with 0, with 1 if something went wrong, and with 2 after a mistake in the call or the configuration.
`

// The exit codes: 1 is what went wrong while running, 2 a mistake in the call
// or the configuration.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with everything that it depends on handed in.
func run(ctx context.Context, args, variables []string, stdout, stderr io.Writer) int {
	call, ok := daemon.ParseCall(args, "serve", "network", "health", "doctor")
	switch {
	case call.Help:
		_, _ = fmt.Fprint(stdout, usage)
		return 0
	case call.Version:
		_, _ = fmt.Fprintln(stdout, "gateway", daemon.Version())
		return 0
	case !ok || call.JSON && call.Command != "doctor":
		_, _ = fmt.Fprintf(stderr, "gateway: %s\n\n%s", strings.Join(args, " "), usage)
		return exitUsage
	}
	cfg, err := config.Load(environ.Map(variables))
	if call.Command == "doctor" {
		return examine(ctx, cfg, err, call.JSON, stdout, stderr)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "gateway: the configuration is wrong:\n%s\n", err)
		return exitUsage
	}
	switch call.Command {
	case "network":
		err = printNetwork(ctx, cfg, stdout, stderr)
	case "health":
		// Not /readyz, which needs the token.
		err = daemon.CheckHealth(ctx, cfg.Addr, "/health")
	default:
		err = serve(ctx, cfg, stderr)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "gateway: %s\n", err)
		return exitFailed
	}
	return 0
}

// closing bounds each step of the shutdown that follows the drain.
const closing = 20 * time.Second
