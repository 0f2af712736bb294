package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestClientsAreMadeOfTheDocumentsAndWork takes both documents as they are served, has
// a validator look at them, makes clients of them with what people use for that, and
// sends requests with these.
func TestClientsAreMadeOfTheDocumentsAndWork(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	c := newAPI(t, g).user(t)
	documents := map[string]string{}
	for name, from := range map[string]*caller{"gateway": g.caller(), "api": c} {
		var text string
		if status, err := from.send(t.Context(), http.MethodGet, "/openapi.yaml", nil, &text); err != nil || status != http.StatusOK {
			t.Fatalf("the document of the %s: %d %v", name, status, err)
		}
		documents[name] = text
	}
	env := append(os.Environ(), "GATEWAY_URL="+g.url(), "GATEWAY_TOKEN="+g.token(), "API_URL="+c.url, "API_TOKEN="+c.bearer,
		"GOWORK=off", "GOFLAGS=-mod=mod", "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")

	// prepare gives a client its folder, with both documents.
	prepare := func(t *testing.T, from string) (dir string, run func(name string, args ...string) string) {
		t.Helper()
		dir = t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", from))); err != nil {
			t.Fatal(err)
		}
		for name, text := range documents {
			if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir, func(name string, args ...string) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the test's own
			cmd.Dir, cmd.Env = dir, env
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
			}
			return string(out)
		}
	}
	// worked checks what a client says of its requests.
	worked := func(t *testing.T, said, name string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(said), "\n")
		var got object
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
			t.Fatalf("%v in %s", err, said)
		}
		want := object{"sandboxes": 0.0, "none": "sandbox_not_found", "made": name, "listed": true, "wrong": "provider_not_configured"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	t.Run("TypeScript", func(t *testing.T) {
		t.Parallel()
		_, run := prepare(t, "documents")
		run("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
		run("node_modules/.bin/redocly", "lint", "--extends=spec", "gateway.yaml", "api.yaml")
		for name := range documents {
			run("node_modules/.bin/openapi-typescript", name+".yaml", "-o", name+".ts")
		}
		run("node_modules/.bin/tsc")
		worked(t, run("node", "client.js"), "from TypeScript")
	})
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		dir, run := prepare(t, "goclient")
		for name := range documents {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			run("go", "tool", "oapi-codegen", "-generate", "types,client", "-package", name, "-o", filepath.Join(name, name+".gen.go"), name+".yaml")
		}
		worked(t, run("go", "run", "."), "from Go")
	})
}
