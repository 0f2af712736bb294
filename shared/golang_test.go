package shared_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheScriptsAskForTheGoThatTheModulesNeed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ goCommand, says string }{
		"none":                         {"", "is missing: install it"},
		"an older one":                 {`echo "go1.24.13"`, "is 1.24.13: install a newer one"},
		"one that refuses the modules": {`if [ "$1" = version ]; then echo go version go1.19.8 linux/amd64; else exit 1; fi`, "is 1.19.8: install a newer one"},
		"one that tells nothing":       {"exit 1", "of no version that it tells"},
		"a newer one":                  {"echo go1.30.1", ""},
		"a release candidate":          {"echo go1.26rc1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin := t.TempDir()
			for _, tool := range []string{"bash", "sh", "env", "sed", "sort", "head", "cut", "dirname"} {
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			if tc.goCommand != "" {
				if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n"+tc.goCommand+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), "../.ci/golang")
			cmd.Env = []string{"PATH=" + bin}
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tc.says == "") || !strings.Contains(string(out), tc.says) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for _, script := range []string{"up", "tools"} {
		text, err := os.ReadFile(filepath.Join("..", ".ci", script))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\n.ci/golang\n") {
			t.Errorf(".ci/%s does not check Go's version", script)
		}
	}
}
