package shared_test

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const project = "github.com/agentpod/agentpod/"

// rule bounds what the packages under From may import. Paths are folders of the
// repository, or import paths of others' packages; one matches itself and what
// is below it.
type rule struct {
	Name string
	From string
	// NotFrom are folders under From that the rule leaves alone.
	NotFrom []string
	// Of is what the rule is about: an import outside Of is none of its business.
	Of string
	// Only are the imports in Of that are allowed.
	Only []string
}

// rules are the design's import rules. A missing folder breaks none.
func rules() []rule {
	all := []rule{
		{Name: "shared imports nothing else of the project", From: "shared", Of: project, Only: []string{"shared"}},
		{Name: "container imports only shared", From: "container", Of: project, Only: []string{"container", "shared"}},
		{Name: "migrations imports only shared", From: "migrations", Of: project, Only: []string{"migrations", "shared"}},
		{Name: "gateway never imports api", From: "gateway", Of: project, Only: []string{"gateway", "shared"}},
		{Name: "api never imports gateway", From: "api", Of: project, Only: []string{"api", "shared", "migrations"}},
		{Name: "only httpapi knows echo", From: ".", NotFrom: []string{"gateway/internal/httpapi", "api/internal/httpapi"}, Of: "github.com/labstack/echo"},
		{Name: "only gateway/internal/docker knows the engine's client", From: ".", NotFrom: []string{"gateway/internal/docker"}, Of: "github.com/docker"},
		{Name: "only gateway/internal/store knows the store's client", From: ".", NotFrom: []string{"gateway/internal/store"}, Of: "github.com/minio"},
		{Name: "only api/internal/store knows gorm", From: ".", NotFrom: []string{"api/internal/store"}, Of: "gorm.io"},
	}
	// The domain imports no adapter, adapters do not import each other, and only
	// a main knows them all. The routes need what they route to.
	const gateway, api = "gateway/internal/", "api/internal/"
	inside := map[string][]string{
		gateway + "lifecycle": nil,
		gateway + "docker":    {"lifecycle"},
		gateway + "store":     nil,
		gateway + "gate":      nil,
		gateway + "snapshot":  {"gate", "store"},
		gateway + "mirror":    {"gate", "snapshot", "store"},
		gateway + "workspace": {"lifecycle", "mirror", "snapshot", "store"},
		gateway + "proxy":     {"lifecycle"},
		gateway + "turn":      {"lifecycle"},
		gateway + "webhook":   {"lifecycle"},
		gateway + "config":    {"lifecycle"},
		gateway + "uihost":    {"lifecycle", "proxy"},
		gateway + "frontpage": {"lifecycle"},
		gateway + "httpapi":   {"frontpage", "lifecycle", "proxy", "turn", "uihost"},
		api + "store":         {"account", "credential", "task"},
		api + "account":       nil,
		api + "credential":    nil,
		api + "provider":      nil,
		api + "task":          {"provider"},
		api + "sandboxes":     {"provider", "task"},
		api + "webhook":       {"task"},
		api + "config":        {"account", "provider"},
	}
	for _, folder := range slices.Sorted(maps.Keys(inside)) {
		base := path.Dir(folder)
		only := []string{folder}
		for _, name := range inside[folder] {
			only = append(only, base+"/"+name)
		}
		all = append(all, rule{
			Name: fmt.Sprintf("%s imports of its siblings only %v", folder, inside[folder]),
			From: folder, Of: project + base, Only: only,
		})
	}
	return all
}

// under tells whether p is folder or below it.
func under(p, folder string) bool {
	return folder == "." || p == folder || strings.HasPrefix(p, strings.TrimSuffix(folder, "/")+"/")
}

// underAny is under for a list of folders.
func underAny(p string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return under(p, folder) })
}

// broken returns a line for each import that breaks a rule. The map's keys are
// files, relative to the repository; the values are what they import.
func broken(rules []rule, files map[string][]string) []string {
	var found []string
	for _, file := range slices.Sorted(maps.Keys(files)) {
		folder := path.Dir(file)
		for _, r := range rules {
			if !under(folder, r.From) || underAny(folder, r.NotFrom) {
				continue
			}
			for _, imported := range files[file] {
				local, ours := strings.CutPrefix(imported, project)
				if under(imported, r.Of) && (!ours || !underAny(local, r.Only)) {
					found = append(found, fmt.Sprintf("%s imports %s: %s", file, imported, r.Name))
				}
			}
		}
	}
	return found
}

// readImports parses every Go file below root, tests too.
func readImports(root string) (map[string][]string, error) {
	files := map[string][]string{}
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("walk %s: %w", name, err)
		}
		if entry.IsDir() {
			if base := entry.Name(); name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(set, name, nil, parser.ImportsOnly)
		if err != nil {
			return fmt.Errorf("parse %s: %w", name, err)
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return fmt.Errorf("name %s: %w", name, err)
		}
		imports := []string{}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("read an import of %s: %w", name, err)
			}
			imports = append(imports, imported)
		}
		files[filepath.ToSlash(relative)] = imports
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read imports: %w", err)
	}
	return files, nil
}

func TestImportsFollowTheDesign(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join("..", "go.work")); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("this test must run inside the repository: ../go.work is missing")
	}
	files, err := readImports("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, needed := range []string{"shared/imports_test.go", "gateway/internal/lifecycle/runtime.go"} {
		if _, ok := files[needed]; !ok {
			t.Fatalf("%s was not read, so the walk is wrong", needed)
		}
	}
	for _, line := range broken(rules(), files) {
		t.Error(line)
	}
}

func TestABrokenRuleIsFound(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, file, imported string
		broken               bool
	}{
		{"shared may not import gateway", "shared/sandbox/a.go", project + "gateway/internal/lifecycle", true},
		{"shared may import shared", "shared/guest/a.go", project + "shared/sandbox", false},
		{"container may not import migrations", "container/cmd/sandboxd/a.go", project + "migrations", true},
		{"migrations may not import api", "migrations/a.go", project + "api", true},
		{"gateway may not import api", "gateway/cmd/gateway/a.go", project + "api/internal/task", true},
		{"api may not import gateway", "api/internal/task/a.go", project + "gateway/internal/lifecycle", true},
		{"api may import migrations", "api/internal/store/a.go", project + "migrations", false},
		{"lifecycle may not import an adapter", "gateway/internal/lifecycle/a.go", project + "gateway/internal/docker", true},
		{"lifecycle may not import an adapter in a test either", "gateway/internal/lifecycle/a_test.go", project + "gateway/internal/webhook", true},
		{"lifecycle may not know the engine", "gateway/internal/lifecycle/a.go", "github.com/docker/docker/client", true},
		{"lifecycle may not know echo", "gateway/internal/lifecycle/a.go", "github.com/labstack/echo/v4", true},
		{"lifecycle may not know minio", "gateway/internal/lifecycle/a.go", "github.com/minio/minio-go/v7", true},
		{"lifecycle may not know gorm", "gateway/internal/lifecycle/a.go", "gorm.io/gorm", true},
		{"docker may know the engine", "gateway/internal/docker/a.go", "github.com/docker/docker/client", false},
		{"docker may import lifecycle", "gateway/internal/docker/a.go", project + "gateway/internal/lifecycle", false},
		{"docker may not import proxy", "gateway/internal/docker/a.go", project + "gateway/internal/proxy", true},
		{"webhook may not import workspace", "gateway/internal/webhook/a.go", project + "gateway/internal/workspace", true},
		{"httpapi may know echo", "gateway/internal/httpapi/a.go", "github.com/labstack/echo/v4/middleware", false},
		{"httpapi may not import docker", "gateway/internal/httpapi/a.go", project + "gateway/internal/docker", true},
		{"a main may import every internal package", "gateway/cmd/gateway/a.go", project + "gateway/internal/docker", false},
		{"a main may not know echo", "gateway/cmd/gateway/a.go", "github.com/labstack/echo/v4", true},
		{"a name that only begins alike is another", "gateway/internal/lifecycle/a.go", project + "gateway/internal/lifecycletest", true},
		{"the standard library is free", "shared/sandbox/a.go", "net/http", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := broken(rules(), map[string][]string{tc.file: {tc.imported}})
			if tc.broken != (len(got) > 0) {
				t.Errorf("broken = %q, want one that is broken: %v", got, tc.broken)
			}
		})
	}
}

func TestImportsAreReadFromTheFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for name, content := range map[string]string{
		"shared/a/a.go":          "package a\nimport (\n\t_ \"" + project + "api\"\n\tx \"net/http\"\n)\nvar _ x.Header\n",
		"shared/a/testdata/b.go": "not Go",
		".hidden/c.go":           "not Go",
	} {
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := readImports(root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"shared/a/a.go": {project + "api", "net/http"}}, files); diff != "" {
		t.Fatalf("imports (-want +got):\n%s", diff)
	}
	want := []string{"shared/a/a.go imports " + project + "api: shared imports nothing else of the project"}
	if diff := cmp.Diff(want, broken(rules(), files)); diff != "" {
		t.Errorf("broken rules (-want +got):\n%s", diff)
	}
}
