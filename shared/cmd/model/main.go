// Command model serves the scripted model, and beside it a demo git repository,
// until it is interrupted. `model -help` describes the script language.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// The exit codes: 1 is what went wrong while running, 2 a mistake in the call.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks a mistake in the call.
var errUsage = errors.New("see model -help")

// exitCode says how it ended, and what went wrong.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintln(stderr, "model:", err)
		return exitUsage
	default:
		_, _ = fmt.Fprintln(stderr, "model:", err)
		return exitFailed
	}
}

type settings struct {
	addr, gitAddr, host, workspace, readyFile string
	verbose, version                          bool
}

func parseFlags(args []string, stderr io.Writer) (settings, error) {
	var c settings
	flags := flag.NewFlagSet("model", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.addr, "addr", "127.0.0.1:4010", "`address` of the model")
	flags.StringVar(&c.gitAddr, "git-addr", "127.0.0.1:0", "`address` of the git server; empty for none")
	flags.StringVar(&c.host, "host", "", "`name` that clients reach both by, if not the address listened on")
	flags.StringVar(&c.workspace, "workspace", scriptedmodel.DefaultWorkspace, "`folder` that relative names are written to")
	flags.StringVar(&c.readyFile, "ready-file", "", "`file` to write once listening (JSON: url, gitUrl, config), with FILE.config and FILE.git beside it")
	flags.BoolVar(&c.verbose, "v", false, "log every request")
	flags.BoolVar(&c.version, "version", false, "print the version and end")
	flags.Usage = func() {
		_, _ = fmt.Fprintf(stderr, "Serves a model that answers by script, for OpenCode and anything else that speaks\nthe OpenAI chat-completions API.\n\nFlags:\n")
		flags.PrintDefaults()
		_, _ = fmt.Fprintf(stderr, "\nA message whose first line is none of these is echoed; otherwise each line is a step:\n%s", scriptedmodel.Language())
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return settings{}, err
		}
		return settings{}, fmt.Errorf("%w; %w", err, errUsage)
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument %q; %w", flags.Arg(0), errUsage)
	}
	if !filepath.IsAbs(c.workspace) {
		return settings{}, fmt.Errorf("-workspace %q must be an absolute path, such as %s; %w", c.workspace, scriptedmodel.DefaultWorkspace, errUsage)
	}
	return c, nil
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	c, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if c.version {
		_, _ = fmt.Fprintln(stdout, "model", daemon.Version())
		return nil
	}
	level := "warn"
	if c.verbose {
		level = "debug"
	}
	logger, err := daemon.NewLogger(stderr, level, "text")
	if err != nil {
		return err
	}

	// Whoever waits for the files must not find those of an earlier run.
	if err := removeReady(c.readyFile); err != nil {
		return err
	}
	model := scriptedmodel.New(scriptedmodel.Options{Workspace: c.workspace, Host: c.host, Logger: logger})
	defer func() { err = errors.Join(err, model.Close()) }()
	if err := model.Start(ctx, c.addr); err != nil {
		return err
	}
	ready := readiness{URL: model.URL(), Config: model.Config()}
	if c.gitAddr != "" {
		git, startErr := scriptedmodel.StartGit(ctx, c.gitAddr, c.host, logger)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, git.Close()) }()
		ready.GitURL = git.URL()
	}
	if err := ready.write(c.readyFile); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeReady(c.readyFile)) }()
	_, _ = fmt.Fprintf(stdout, "Scripted model: %s\nGit repository: %s\nOpenCode config: %s\n", ready.URL, orNone(ready.GitURL), ready.Config)
	<-ctx.Done()
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// readiness is what the ready file says.
type readiness struct {
	URL    string          `json:"url"`
	GitURL string          `json:"gitUrl,omitempty"`
	Config json.RawMessage `json:"config"`
}

// write puts the ready file in place last, so that the others are there once it is.
func (r readiness) write(file string) error {
	if file == "" {
		return nil
	}
	all, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the ready file: %w", err)
	}
	if r.GitURL != "" {
		if err := writeFile(file+".git", []byte(r.GitURL+"\n")); err != nil {
			return err
		}
	}
	if err := writeFile(file+".config", append(r.Config, '\n')); err != nil {
		return err
	}
	return writeFile(file, append(all, '\n'))
}

// writeFile puts a whole file in place at once.
func writeFile(file string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", file, err), os.Remove(tmp.Name()))
	}
	return nil
}

func removeReady(file string) error {
	if file == "" {
		return nil
	}
	for _, name := range []string{file, file + ".config", file + ".git"} {
		//nolint:gosec // the name is the operator's own, from the command line
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an old ready file: %w", err)
		}
	}
	return nil
}
