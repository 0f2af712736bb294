// Package crash breaks the store, the engine and the gateway at every point of a
// sandbox's life, and looks what is left of it. Everything but the engine and
// OpenCode is real: see rig_test.go.
package crash

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// programs are what the sandboxes are made of, built once for the package.
//
//nolint:gochecknoglobals // set once by TestMain
var programs struct {
	sandboxd, openCode string
	plugins            string // a folder with an empty plugin package, as an image has it
}

// atOnce is how many worlds there are at once. They wait more than they work.
const atOnce = "4"

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "agentpod-crash-")
	if err == nil {
		err = build(dir)
	}
	if err == nil {
		err = flag.Set("test.parallel", atOnce)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func build(dir string) error {
	programs.sandboxd = filepath.Join(dir, "sandboxd")
	programs.openCode = filepath.Join(dir, "opencode")
	programs.plugins = filepath.Join(dir, "plugin")
	if err := os.MkdirAll(filepath.Join(programs.plugins, "node_modules"), 0o755); err != nil {
		return fmt.Errorf("making the plugin package: %w", err)
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		if err := os.WriteFile(filepath.Join(programs.plugins, name), []byte("{}"), 0o600); err != nil {
			return fmt.Errorf("making the plugin package: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, program := range []struct{ folder, source, to string }{
		{filepath.Join("..", "..", "container"), "./cmd/sandboxd", programs.sandboxd},
		{".", "./testdata/stubopencode", programs.openCode},
	} {
		command := exec.CommandContext(ctx, "go", "build", "-o", program.to, program.source) //nolint:gosec // our own programs
		command.Dir = program.folder
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", program.source, err, out)
		}
	}
	return nil
}
