package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What the agent did to its home while OpenCode ran must not keep the next
// start from working.
func TestNothingInTheHomeKeepsOpenCodeFromStarting(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, home string){
		"the workspace is a file": func(t *testing.T, home string) {
			t.Helper()
			must(t, os.RemoveAll(filepath.Join(home, "workspace")))
			must(t, os.WriteFile(filepath.Join(home, "workspace"), nil, 0o600))
		},
		"the workspace is gone": func(t *testing.T, home string) {
			t.Helper()
			must(t, os.RemoveAll(filepath.Join(home, "workspace")))
		},
		"auth.json is a link out": func(t *testing.T, home string) {
			t.Helper()
			auth := filepath.Join(home, ".local", "share", "opencode", "auth.json")
			must(t, os.Remove(auth))
			must(t, os.Symlink("/proc/self/nothing", auth))
		},
		"auth.json is a folder": func(t *testing.T, home string) {
			t.Helper()
			auth := filepath.Join(home, ".local", "share", "opencode", "auth.json")
			must(t, os.Remove(auth))
			must(t, os.MkdirAll(filepath.Join(auth, "full"), 0o700))
		},
		"auth.json is no JSON": func(t *testing.T, home string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(home, ".local", "share", "opencode", "auth.json"), []byte(`{"p":`), 0o600))
		},
		"its folders are files": func(t *testing.T, home string) {
			t.Helper()
			for _, dir := range []string{".local", ".config", ".cache"} {
				must(t, os.RemoveAll(filepath.Join(home, dir)))
				must(t, os.WriteFile(filepath.Join(home, dir), nil, 0o600))
			}
		},
		"the state leads out": func(t *testing.T, home string) {
			t.Helper()
			must(t, os.RemoveAll(filepath.Join(home, ".local", "state")))
			must(t, os.Symlink("/proc/self", filepath.Join(home, ".local", "state")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			project := filepath.Join(b.home, "workspace", "project")
			start := guest.StartRequest{Password: "pw", Directory: project, Config: config("m")}
			_, err := b.Start(t.Context(), start)
			must(t, err)
			_, err = b.Stop(t.Context(), guest.StopRequest{})
			must(t, err)
			breakIt(t, b.home)
			_, err = b.Start(t.Context(), start)
			must(t, err)
			if info, err := os.Stat(project); err != nil || !info.IsDir() {
				t.Errorf("the directory that was asked for: %v, %v", info, err)
			}
			if got := b.auth(); got != `{"p":{"type":"api","key":"k"}}` {
				t.Errorf("auth.json is %s", got)
			}
		})
	}
}

func TestAuthJSONThatIsReplacedWhileOpenCodeRunsIsMended(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	auth := filepath.Join(b.home, ".local", "share", "opencode", "auth.json")
	must(t, os.Remove(auth))
	must(t, os.Mkdir(auth, 0o700))
	wantWritten(t, b.mustPut(config("m")), "auth")
	if got := b.auth(); got != `{"p":{"type":"api","key":"k"}}` {
		t.Errorf("auth.json is %s", got)
	}
}

func TestSandboxdStartsOnAHomeWithAFileForAWorkspace(t *testing.T) {
	home := t.TempDir()
	workspace := filepath.Join(home, "workspace")
	must(t, os.WriteFile(workspace, []byte("kept"), 0o600))
	must(t, os.Chmod(home, 0o500))
	must(t, mend(home, workspace))
	if info, err := os.Stat(workspace); err != nil || !info.IsDir() {
		t.Errorf("%v, %v", info, err)
	}
	moved, err := filepath.Glob(workspace + ".moved-*")
	must(t, err)
	if len(moved) != 1 {
		t.Fatalf("moved %q", moved)
	}
	if kept, err := os.ReadFile(moved[0]); err != nil || string(kept) != "kept" {
		t.Errorf("%q, %v", kept, err)
	}
}

func TestOpenCodeIsNotLookedUpWhereTheAgentWrites(t *testing.T) {
	set, err := readSettings([]string{guest.TokenHashEnv + "=" + "0000000000000000000000000000000000000000000000000000000000000000"})
	must(t, err)
	if set.binary != "/usr/local/bin/opencode" {
		t.Errorf("it is %s", set.binary)
	}
}
