package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// npm installs what a folder of test data needs, in a copy of it.
func npm(t *testing.T, folder string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", folder))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("installing %s: %v\n%s", folder, err, out)
	}
	return dir
}

const (
	pythonFetch = `
import base64, sys, urllib.request, urllib.error
url, password = sys.argv[1:]
request = urllib.request.Request(url, headers={"Authorization": "Basic " + base64.b64encode(("opencode:" + password).encode()).decode()})
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as e:
    print(e.code)
`
)

// Each sends other headers by itself, and only a browser is not to get in with a password.
func TestEveryKindOfClientGetsInWithThePassword(t *testing.T) {
	t.Parallel()
	g := start(t, "SANDBOX_IMAGE="+stub.image(t), "SANDBOX_MEMORY=256MiB")
	g.create(t, "clients", nil)
	dir := npm(t, "clients")
	url := g.url + "/sandbox/clients/opencode/session/status"
	for name, command := range map[string][]string{
		"Node":   {"node", "fetch.mjs"},
		"Bun":    {"node_modules/.bin/bun", "fetch.mjs"},
		"Deno":   {"node_modules/.bin/deno", "run", "--allow-net", "fetch.mjs"},
		"Python": {"python3", "-c", pythonFetch},
		"curl":   {"sh", "-c", `curl -sS --max-time 30 -o /dev/null -w '%{http_code}\n' -u "opencode:$2" "$1"`, "sh"},
	} {
		for password, want := range map[string]int{g.token: http.StatusOK, "wrong": http.StatusUnauthorized} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			client := exec.CommandContext(ctx, command[0], append(command[1:], url, password)...) //nolint:gosec // the test's own
			client.Dir = dir
			out, err := client.CombinedOutput()
			cancel()
			if got := strings.TrimSpace(string(out)); err != nil || got != strconv.Itoa(want) {
				t.Errorf("%s with the password %q: %s %v, want %d", name, password, got, err, want)
			}
		}
	}
	t.Run("Go", func(t *testing.T) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("opencode", g.token)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
	t.Run("a browser does not", func(t *testing.T) {
		tab := chromium.Tab(t)
		tab.GoTo(g.url + "/")
		tab.JS(`fetch("/sandbox/clients/opencode/session/status", {headers: {authorization: "Basic " + btoa("opencode:` + g.token + `")}}).then(r => document.title = "status " + r.status)`)
		tab.Wait("an answer", `document.title.startsWith("status")`)
		if got := tab.JS("document.title"); got != "status 401" {
			t.Errorf("a page is let in with the password: %s", got)
		}
	})
}
