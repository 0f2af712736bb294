package guest

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// FileTypes are the types of a File, each the name of the folder that holds
// such files.
func FileTypes() []string { return []string{"agent", "command", "tool", "plugin"} }

// extensions are the ones that OpenCode loads from the folder of a type.
func extensions(fileType string) []string {
	switch fileType {
	case "agent", "command":
		return []string{"md"}
	case "tool", "plugin":
		return []string{"ts", "js"}
	default:
		return nil
	}
}

// maxShown bounds a name that a message repeats, in bytes.
const maxShown = 80

var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func isSafe(name string) bool { return safeName.MatchString(name) && !strings.Contains(name, "..") }

// Check refuses a config that cannot be rendered, with invalid_request: by
// CheckFile and CheckProvider, a file that is named twice, and a credential that
// is empty. It does not look into opencode.json, which is OpenCode's to judge.
func (c Config) Check() error {
	seen := make(map[string]bool, len(c.Files))
	for _, f := range c.Files {
		if err := CheckFile(f); err != nil {
			return err
		}
		if seen[f.Key()] {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.files: %s is there twice", f.Key())
		}
		seen[f.Key()] = true
	}
	for _, provider := range slices.Sorted(maps.Keys(c.Auth)) {
		if err := CheckProvider(provider); err != nil {
			return err
		}
		if len(c.Auth[provider]) == 0 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "config.auth: the credential of %s is empty", provider)
		}
	}
	return nil
}

// CheckFile refuses a file whose type, name or extension cannot be, with
// invalid_request. Its content may be anything.
func CheckFile(f File) error {
	allowed := extensions(f.Type)
	if allowed == nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest,
			"config.files: the type of %q is %q; it must be one of %s", show(f.Name), show(f.Type), strings.Join(FileTypes(), ", "))
	}
	if !isSafe(f.Name) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest,
			"config.files: the name %q must be one path element of at most 128 letters, digits, '.', '_' or '-' that begins with a letter or digit and has no '..'", show(f.Name))
	}
	if !slices.Contains(allowed, f.Extension) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest,
			"config.files: the extension of the %s %q is %q; it must be %s", f.Type, f.Name, show(f.Extension), strings.Join(allowed, " or "))
	}
	return nil
}

// CheckProvider refuses a provider's name that cannot be, with invalid_request.
// A slash would be two path elements to OpenCode's router.
func CheckProvider(name string) error {
	if !isSafe(name) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest,
			"config.auth: the provider %q must be one path element of at most 128 letters, digits, '.', '_' or '-' that begins with a letter or digit and has no '..'", show(name))
	}
	return nil
}

func show(s string) string { return printable.Line(s, maxShown) }
