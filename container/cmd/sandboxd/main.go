// Command sandboxd is PID 1 in every sandbox: it supervises OpenCode, reaps,
// runs commands and moves files for the gateway. Its settings are environment
// variables named SANDBOXD_*; no child ever sees them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentpod/agentpod/container/internal/command"
	"github.com/agentpod/agentpod/container/internal/files"
	"github.com/agentpod/agentpod/container/internal/folder"
	"github.com/agentpod/agentpod/container/internal/mark"
	"github.com/agentpod/agentpod/container/internal/opencode"
	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/container/internal/server"
	"github.com/agentpod/agentpod/container/internal/tree"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/guest"
)

const (
	envPrefix     = "SANDBOXD_"
	drainTimeout  = 2 * time.Second
	shutdownGrace = 2 * time.Second
	// threads are for what blocks in the kernel at the same time: transfers of
	// files, a start, looks at /proc.
	threads = 48
)

const usage = `sandboxd: the first process of every sandbox

Usage:
  sandboxd             run until a signal ends it
  sandboxd --version   print the version

It is configured by variables named SANDBOXD_*, of which SANDBOXD_TOKEN_SHA256 must be set.
It ends with 0, with 1 if something went wrong, and with 2 after a mistake in the call or the configuration.
`

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// Before anything else: until then the memory is open to the same user.
	hardened := process.Harden()
	if len(os.Args) > 1 {
		os.Exit(answer(os.Args[1:], os.Stdout, os.Stderr))
	}
	process.ReserveThreads(threads)
	log, err := daemon.NewLogger(os.Stderr, "info", "json")
	if err != nil {
		panic(err) // both words are constants
	}
	set, err := readSettings(os.Environ())
	if err != nil {
		log.Error("the configuration is wrong", "error", err)
		os.Exit(exitUsage)
	}
	err = hardened
	if err == nil {
		err = run(set, log)
	}
	if err != nil {
		log.Error("sandboxd ends", "error", err)
		os.Exit(exitFailed)
	}
}

// answer is for a call with arguments: it serves nothing.
func answer(args []string, stdout, stderr io.Writer) int {
	call, _ := daemon.ParseCall(args, "") // it has no commands
	switch {
	case call.Help:
		_, _ = io.WriteString(stdout, usage)
	case call.Version:
		_, _ = fmt.Fprintln(stdout, "sandboxd", daemon.Version())
	default:
		_, _ = fmt.Fprintf(stderr, "sandboxd: %s\n\n%s", strings.Join(args, " "), usage)
		return exitUsage
	}
	return 0
}

// run serves until a signal ends it, which as PID 1 none does.
func run(set settings, log *slog.Logger) error {
	// Bound first, so that nothing inside can take the port.
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", set.addr)
	if err != nil {
		return fmt.Errorf("bind sandboxd's port: %w", err)
	}
	var refuse func(netip.Addr) bool
	if os.Getpid() == 1 {
		refuse = server.FromInside
	}
	listener = server.Limit(listener, refuse)
	defer listener.Close()
	// The engine starts this whatever the code inside has done to the home.
	if err := mend(set.home, set.workspace); err != nil {
		log.Warn("make the home usable", "error", err)
	}

	ctx, end := context.WithCancel(context.Background())
	defer end()
	// Reaping goes on while everything else shuts down.
	reaping, stopReaping := context.WithCancel(context.Background())
	defer stopReaping()
	processes := process.NewTable(log)
	signals := processes.HandleSignals(reaping, end)
	commands := command.NewRunner(processes, set.childEnv, set.workspace)
	home, err := files.Open(set.home, set.workspace)
	if err != nil {
		return err
	}
	defer home.Close()
	whole, err := tree.Open(set.home, processes, "")
	if err != nil {
		return fmt.Errorf("open the home's tree: %w", err)
	}
	defer func() { _ = whole.Close() }()
	disk, err := mark.Open(set.home, log)
	if err != nil {
		return fmt.Errorf("open the home for its mark: %w", err)
	}
	defer func() { _ = disk.Close() }()
	supervisor, err := opencode.New(opencode.Settings{
		Binary: set.binary, Hostname: set.host, Port: set.port,
		ConfigDir: set.configDir, Home: set.home, Workspace: set.workspace, PluginDir: set.pluginDir,
		Env: set.childEnv, Output: os.Stdout, Log: log,
		Processes: processes, OtherTasks: commands.Running, Compact: whole.Compact,
	})
	if err != nil {
		return err
	}
	srv := (&server.Server{
		OpenCode: supervisor, Commands: commands, Files: home, Tree: whole, Mark: disk, Token: set.token, Log: log,
	}).HTTP()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	log.Info("sandboxd serves", "addr", listener.Addr().String(), "pid", os.Getpid())
	select {
	case err = <-served:
	case <-ctx.Done():
		err = shutdown(srv, supervisor, processes)
	}
	stopReaping()
	<-signals
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// mend makes the home and the workspace folders that can be used.
func mend(home, workspace string) error {
	if err := folder.Unlock(home); err != nil {
		return err
	}
	root, err := os.OpenRoot(home)
	if err != nil {
		return fmt.Errorf("open the home: %w", err)
	}
	defer root.Close()
	name, err := filepath.Rel(home, workspace)
	if err != nil {
		return fmt.Errorf("find the workspace in the home: %w", err)
	}
	return folder.Ensure(root, filepath.ToSlash(name))
}

// shutdown ends what this process started.
func shutdown(srv *http.Server, supervisor *opencode.Supervisor, processes *process.Table) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	supervisor.Abandon() // or OpenCode would be restarted meanwhile
	endErr := processes.EndAll(context.Background(), shutdownGrace)
	closeErr := supervisor.Close()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close() // the streams that are left
	}
	return errors.Join(endErr, closeErr)
}

// settings are what the environment says.
type settings struct {
	token                                 [32]byte
	addr, binary, host                    string
	port                                  int
	configDir, pluginDir, home, workspace string
	childEnv                              []string
}

// readSettings takes sandboxd's own variables out of environ; what is left is
// what children inherit.
func readSettings(environ []string) (settings, error) {
	own := make(map[string]string)
	childEnv := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) {
			return false
		}
		own[name] = value
		return true
	})
	get := func(name, fallback string) string {
		if v := own[envPrefix+name]; v != "" {
			return v
		}
		return fallback
	}
	set := settings{
		addr:      get("ADDR", ":"+strconv.Itoa(guest.Port)),
		binary:    get("OPENCODE", "/usr/local/bin/opencode"),
		host:      get("OPENCODE_HOST", "0.0.0.0"),
		configDir: get("CONFIG_DIR", "/run/agentpod/opencode"),
		pluginDir: get("PLUGIN_DIR", "/opt/opencode/plugin"),
		home:      get("HOME", guest.Home),
		workspace: get("WORKSPACE", guest.Workspace),
		childEnv:  childEnv,
	}
	var err error
	if set.token, err = server.ParseTokenHash(own[guest.TokenHashEnv]); err != nil {
		return settings{}, err
	}
	if set.port, err = strconv.Atoi(get("OPENCODE_PORT", "4096")); err != nil || set.port < 1 || set.port > 65535 {
		return settings{}, fmt.Errorf("%sOPENCODE_PORT must be a port number, such as 4096", envPrefix)
	}
	return set, nil
}
