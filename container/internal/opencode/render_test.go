package opencode

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/guest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func confFolder(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir
}

func readFile(parts ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(parts...))
}

func apply(t *testing.T, root *os.Root, cfg guest.Config) []string {
	t.Helper()
	keys, err := changes(root, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := render(root, cfg, keys); err != nil {
		t.Fatal(err)
	}
	return keys
}

func sample() guest.Config {
	rules := "rules"
	return guest.Config{
		OpenCode: json.RawMessage(`{}`), AgentsMD: &rules,
		Files: []guest.File{{Type: "agent", Name: "a", Extension: "md", Content: "x"}, {Type: "tool", Name: "t", Extension: "ts", Content: "y"}},
	}
}

func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	root, dir := confFolder(t)
	all := []string{"AGENTS.md", "agent/a.md", "opencode.json", "tool/t.ts"}
	if got := apply(t, root, sample()); !slices.Equal(got, all) {
		t.Errorf("first: %q", got)
	}
	if got := apply(t, root, sample()); len(got) != 0 {
		t.Errorf("again: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "agent", "a.md"), []byte("z"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := apply(t, root, sample()); !slices.Equal(got, []string{"agent/a.md"}) {
		t.Errorf("after somebody changed a file: %q", got)
	}
	if got := apply(t, root, guest.Config{}); !slices.Equal(got, all) {
		t.Errorf("removed: %q", got)
	}
	if got := apply(t, root, guest.Config{}); len(got) != 0 {
		t.Errorf("removed again: %q", got)
	}
}

func TestWhatSomebodyInsidePutInTheWayIsReplaced(t *testing.T) {
	outside := t.TempDir()
	for name, spoil := range map[string]func(dir string) error{
		"a FIFO for a file":   func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "opencode.json"), 0o600) },
		"a folder for a file": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "AGENTS.md", "x"), 0o755) },
		"a file for a folder": func(dir string) error { return os.WriteFile(filepath.Join(dir, "agent"), nil, 0o600) },
		"a link out for a file": func(dir string) error {
			return os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "AGENTS.md"))
		},
		"a link out for a place": func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "agent")) },
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := confFolder(t)
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			apply(t, root, sample())
			if keys, err := changes(root, sample()); err != nil || len(keys) != 0 {
				t.Errorf("still to do: %q, %v", keys, err)
			}
			if got, err := readFile(dir, "agent", "a.md"); err != nil || string(got) != "x" {
				t.Errorf("agent: %q, %v", got, err)
			}
		})
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
}

func TestPackagesOfTheUsersOwnAreLeftAlone(t *testing.T) {
	root, dir := confFolder(t)
	plugin := t.TempDir()
	if err := os.Mkdir(filepath.Join(plugin, "node_modules"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		if err := os.WriteFile(filepath.Join(plugin, name), []byte("image"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := seedPlugin(root, plugin, false); err != nil {
		t.Fatal(err)
	}
	if got, _ := readFile(dir, "package.json"); string(got) != "own" {
		t.Errorf("got %q", got)
	}
	if err := seedPlugin(root, plugin, true); err != nil {
		t.Fatal(err)
	}
	if got, _ := readFile(dir, "package.json"); string(got) != "image" {
		t.Errorf("got %q", got)
	}
}
