package daemon_test

import (
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/daemon"
)

func TestACommandLineIsReadOrRefused(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]daemon.Call{
		"":              {Command: "serve"},
		"serve":         {Command: "serve"},
		"doctor":        {Command: "doctor"},
		"doctor --json": {Command: "doctor", JSON: true},
		"doctor --help": {Command: "doctor", Help: true},
		"serve -h":      {Command: "serve", Help: true},
		"help":          {Command: "serve", Help: true},
		"--help":        {Command: "serve", Help: true},
		"-h":            {Command: "serve", Help: true},
		"version":       {Command: "serve", Version: true},
		"--version":     {Command: "serve", Version: true},
	} {
		if got, ok := daemon.ParseCall(strings.Fields(line), "serve", "doctor"); !ok || got != want {
			t.Errorf("%q: %+v, %t", line, got, ok)
		}
	}
	for _, line := range []string{"dance", "serve now", "--json", "version now", "doctor --xml", "help serve"} {
		if got, ok := daemon.ParseCall(strings.Fields(line), "serve", "doctor"); ok || got.Help || got.Version && line == "version now" {
			t.Errorf("%q is taken: %+v", line, got)
		}
	}
}
