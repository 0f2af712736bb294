// Package e2e drives the real API binary over HTTP: in front of the real gateway
// with a real engine, real OpenCode and a scripted model, on a real Postgres and
// on SQLite; and in front of a worker that answers from recordings.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/benchreport"
	"github.com/agentpod/agentpod/shared/browsertest"
)

// imageEnv names the sandbox image under test; `make test` builds and sets it.
const imageEnv = "AGENTPOD_TEST_IMAGE"

// binaries is the folder of the programs under test, postgres the database server
// of all tests.
//
//nolint:gochecknoglobals // set once by TestMain
var (
	binaries string
	postgres *storetest.Server
)

func TestMain(m *testing.M) {
	browsertest.Become()
	if os.Getenv(imageEnv) == "" {
		fmt.Fprintf(os.Stderr, "e2e: %s is not set; run these tests with `make test`, which builds the sandbox image\n", imageEnv)
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "agentpod-api-e2e-")
	if err == nil {
		binaries = dir
		err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}
	storetest.Main(cleaning{m}, func(s *storetest.Server) { postgres = s })
}

// build builds the programs. Figures of instrumented ones would say nothing.
func build() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	race := fmt.Sprintf("-race=%t", !benching())
	for name, folder := range map[string]string{"gateway": "../../gateway/cmd/gateway", "api": "../cmd/api"} {
		build := exec.CommandContext(ctx, "go", "build", race, "-o", filepath.Join(binaries, name), folder) //nolint:gosec // our own mains
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// cleaning removes what the tests share when they have run.
type cleaning struct{ tests *testing.M }

// Run implements goleak.TestingM.
func (c cleaning) Run() int {
	report.Begin("api", os.Getenv(imageEnv), !benching())
	code := c.tests.Run()
	if err := chromium.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	if err := sharedGateway.close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	if err := report.Write(os.Stdout, os.Getenv(benchreport.DirEnv)); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	_ = os.RemoveAll(binaries)
	return code
}
