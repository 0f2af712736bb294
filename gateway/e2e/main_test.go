// Package e2e drives the real gateway binary over HTTP, against a real engine,
// the real sandbox image and real OpenCode. Only the model is scripted.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/benchreport"
	"github.com/agentpod/agentpod/shared/browsertest"
)

// imageEnv names the sandbox image under test; `make test` builds and sets it.
const imageEnv = "AGENTPOD_TEST_IMAGE"

// binary is the gateway under test, built once for the package.
//
//nolint:gochecknoglobals // set once by TestMain
var binary string

// report is what all benchmarks of a run have measured.
//
//nolint:gochecknoglobals // filled by the benchmarks, written by TestMain
var report benchreport.Report

// chromium is the browser of all tests that look at pages.
//
//nolint:gochecknoglobals // shared on purpose, closed by TestMain
var chromium browsertest.Browser

func TestMain(m *testing.M) {
	browsertest.Become()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getenv(imageEnv) == "" {
		fmt.Fprintf(os.Stderr, "e2e: %s is not set; run these tests with `make test`, which builds the sandbox image\n", imageEnv)
		return 1
	}
	if binary = os.Getenv(insideEnv); binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "agentpod-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "gateway")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// Figures of an instrumented gateway would say nothing.
	race := os.Getenv(benchreport.DirEnv) == ""
	args := []string{"build", fmt.Sprintf("-race=%t", race), "-o", binary}
	if os.Getenv(benchreport.ProfileEnv) != "" {
		args = append(args, "-tags", "profile")
	}
	build := exec.CommandContext(ctx, "go", append(args, "../cmd/gateway")...) //nolint:gosec // our own main
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: building the gateway: %v\n%s", err, out)
		return 1
	}
	report.Begin("gateway", os.Getenv(imageEnv), race)
	code := m.Run()
	if err := chromium.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	sharedFixture.close()
	stub.remove()
	if err := report.Write(os.Stdout, os.Getenv(benchreport.DirEnv)); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}
