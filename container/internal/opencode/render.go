package opencode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/container/internal/folder"
	"github.com/agentpod/agentpod/shared/guest"
)

// wanted maps every file of a config, by its key, to its content.
func wanted(cfg guest.Config) map[string][]byte {
	files := make(map[string][]byte)
	if len(cfg.OpenCode) > 0 {
		files[guest.KeyOpenCode] = withSchema(cfg.OpenCode)
	}
	if cfg.AgentsMD != nil {
		files[guest.KeyAgentsMD] = []byte(*cfg.AgentsMD)
	}
	for _, f := range cfg.Files {
		files[f.Key()] = []byte(f.Content)
	}
	return files
}

// withSchema gives a config the line that OpenCode would write into its file
// when it reads it: the file would pass for one that somebody inside has changed.
func withSchema(config []byte) []byte {
	const key, line = "$schema", `{"$schema":"https://opencode.ai/config.json"`
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &fields); err != nil || fields[key] != nil {
		return config // OpenCode says what is wrong with it
	}
	if len(fields) == 0 {
		return []byte(line + "}")
	}
	_, rest, _ := bytes.Cut(config, []byte("{"))
	return append([]byte(line+","), rest...)
}

// withAgentsMD adds to a config the AGENTS.md of the directory that OpenCode works
// in, and those of the folders above it in the workspace. One that is not there is
// no error to OpenCode.
func withAgentsMD(cfg guest.Config, workspace, directory string) guest.Config {
	fields := map[string]json.RawMessage{}
	var instructions []string
	if len(cfg.OpenCode) > 0 && json.Unmarshal(cfg.OpenCode, &fields) != nil ||
		fields["instructions"] != nil && json.Unmarshal(fields["instructions"], &instructions) != nil {
		return cfg // OpenCode says what is wrong with it
	}
	for dir := directory; ; dir = path.Dir(dir) {
		instructions = append(instructions, path.Join(dir, guest.KeyAgentsMD))
		if dir == workspace || !strings.HasPrefix(dir, workspace+"/") {
			break
		}
	}
	list, err := json.Marshal(instructions)
	if err != nil {
		panic(err) // a list of strings always marshals
	}
	if fields == nil { // the config was null
		fields = map[string]json.RawMessage{}
	}
	fields["instructions"] = list
	if cfg.OpenCode, err = json.Marshal(fields); err != nil {
		panic(err) // they were JSON
	}
	return cfg
}

// changes lists the keys whose file differs from what cfg wants, sorted. The
// disk is the truth: what somebody inside changed is put right again.
func changes(root *os.Root, cfg guest.Config) ([]string, error) {
	want := wanted(cfg)
	have, err := present(root)
	if err != nil {
		return nil, err
	}
	var keys []string
	for key, content := range want {
		if same, err := folder.Holds(root, key, content); err != nil {
			return nil, err
		} else if !same {
			keys = append(keys, key)
		}
	}
	for _, key := range have {
		if _, ok := want[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// present lists the keys of the managed files that exist.
func present(root *os.Root) ([]string, error) {
	var keys []string
	for _, key := range []string{guest.KeyOpenCode, guest.KeyAgentsMD} {
		if _, err := root.Lstat(key); err == nil {
			keys = append(keys, key)
		}
	}
	for _, kind := range guest.FileTypes() {
		entries, err := fs.ReadDir(root.FS(), kind)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			// Something else took the folder's place.
			if err := root.RemoveAll(kind); err != nil {
				return nil, fmt.Errorf("clear %s: %w", kind, err)
			}
			continue
		}
		for _, e := range entries {
			keys = append(keys, path.Join(kind, e.Name()))
		}
	}
	return keys, nil
}

// render makes the files of keys what cfg wants them to be.
func render(root *os.Root, cfg guest.Config, keys []string) error {
	want := wanted(cfg)
	for _, key := range keys {
		content, ok := want[key]
		if !ok {
			if err := root.RemoveAll(key); err != nil {
				return fmt.Errorf("remove %s: %w", key, err)
			}
			continue
		}
		if err := folder.Replace(root, key, content); err != nil {
			return err
		}
	}
	return nil
}

// seedPlugin gives a config folder what keeps OpenCode from running npm in it:
// a package.json, a lock file that covers it, and node_modules, all from the
// image. It asks for all three wherever it finds them incomplete.
func seedPlugin(root *os.Root, pluginDir string, always bool) error {
	const modules = "node_modules"
	if _, err := os.Stat(filepath.Join(pluginDir, modules)); err != nil {
		return fmt.Errorf("find the plugin package of the image: %w", err)
	}
	if !always {
		for _, name := range []string{modules, "package.json", "package-lock.json"} {
			if _, err := root.Lstat(name); err == nil {
				return nil // the user has packages of his own
			}
		}
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		content, err := os.ReadFile(filepath.Join(pluginDir, name)) //nolint:gosec // the image's own folder
		if err != nil {
			return fmt.Errorf("read the plugin package of the image: %w", err)
		}
		if same, err := folder.Holds(root, name, content); err != nil {
			return err
		} else if same {
			continue
		}
		if err := folder.Replace(root, name, content); err != nil {
			return err
		}
	}
	target := filepath.Join(pluginDir, modules)
	if have, err := root.Readlink(modules); err == nil && have == target {
		return nil
	}
	if err := root.RemoveAll(modules); err != nil {
		return fmt.Errorf("clear %s: %w", modules, err)
	}
	if err := root.Symlink(target, modules); err != nil {
		return fmt.Errorf("link %s: %w", modules, err)
	}
	return nil
}

// sortedKeys makes loops over maps reproducible.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
