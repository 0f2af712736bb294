package credential

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The bounds of a user's configuration. All of it together, written as JSON, is
// less than what a gateway takes of a config.
const (
	// MaxSettings bounds the settings, in bytes of JSON without spaces.
	MaxSettings = 256 << 10
	// MaxContent bounds AGENTS.md and each file, in bytes.
	MaxContent = 256 << 10
	// MaxFiles bounds how many files a user has.
	MaxFiles = 100
	// MaxFilesTotal bounds the files together, in bytes.
	MaxFilesTotal = 2 << 20
)

// The keys of the wire's config that are not OpenCode's.
const (
	keyAuth     = "auth"
	keyFiles    = "files"
	keyAgentsMD = "agents_md"
	keyModel    = "model"
)

// Settings returns a user's settings of OpenCode: a JSON object.
func (s *Service) Settings(ctx context.Context, userID string) (json.RawMessage, error) {
	config, err := s.OpenCode(ctx, userID)
	return json.RawMessage(config.Settings), err
}

// OpenCode returns a user's settings and AGENTS.md.
func (s *Service) OpenCode(ctx context.Context, userID string) (OpenCode, error) {
	config, err := s.configs.Get(ctx, userID)
	if err != nil {
		return config, fmt.Errorf("reading a user's settings: %w", err)
	}
	return config, nil
}

// SaveSettings replaces a user's settings of OpenCode and returns them. What it
// does not know stays as it is. Errors: invalid_request, payload_too_large.
func (s *Service) SaveSettings(ctx context.Context, userID string, settings json.RawMessage) (json.RawMessage, error) {
	if err := sandbox.CheckDepth("settings", settings); err != nil {
		return nil, err //nolint:wrapcheck // it is for the caller
	}
	var compact bytes.Buffer
	var fields map[string]json.RawMessage
	if !utf8.Valid(settings) || json.Unmarshal(settings, &fields) != nil || fields == nil || json.Compact(&compact, settings) != nil {
		return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "settings must be a JSON object, in UTF-8")
	}
	if compact.Len() > MaxSettings {
		return nil, sandbox.Errorf(sandbox.CodeTooLarge, "the settings are larger than %d bytes", MaxSettings)
	}
	for _, own := range []string{keyAuth, keyFiles, keyAgentsMD} {
		if _, there := fields[own]; there {
			return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "settings.%s is not a setting of OpenCode; credentials, files and AGENTS.md have routes of their own", own)
		}
	}
	if err := s.configs.SaveSettings(ctx, userID, compact.String(), s.now()); err != nil {
		return nil, fmt.Errorf("saving a user's settings: %w", err)
	}
	return compact.Bytes(), nil
}

// SaveAgentsMD replaces a user's AGENTS.md; empty is none. Errors:
// invalid_request, payload_too_large.
func (s *Service) SaveAgentsMD(ctx context.Context, userID, content string) error {
	if err := checkContent("AGENTS.md", content); err != nil {
		return err
	}
	if err := s.configs.SaveAgentsMD(ctx, userID, content, s.now()); err != nil {
		return fmt.Errorf("saving a user's AGENTS.md: %w", err)
	}
	return nil
}

func checkContent(what, content string) error {
	if len(content) > MaxContent {
		return sandbox.Errorf(sandbox.CodeTooLarge, "%s is larger than %d bytes", what, MaxContent)
	}
	if !utf8.ValidString(content) || strings.ContainsRune(content, 0) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s must be text in UTF-8 without NUL characters", what)
	}
	return nil
}

// Files returns a user's files by type and name.
func (s *Service) Files(ctx context.Context, userID string) ([]File, error) {
	files, err := s.configs.Files(ctx, userID, MaxFiles)
	if err != nil {
		return nil, fmt.Errorf("listing a user's files: %w", err)
	}
	return files, nil
}

// defaultExtension is what a file of a type has if nothing else is said.
func defaultExtension(kind string) string {
	if kind == "agent" || kind == "command" {
		return "md"
	}
	return "ts"
}

// checkName refuses a type and a name that no file can have.
func checkName(kind, name string) error {
	return guest.CheckFile(guest.File{Type: kind, Name: name, Extension: defaultExtension(kind)}) //nolint:wrapcheck // it is for the caller
}

func noFile(kind, name string) error {
	return sandbox.Errorf(sandbox.CodeFileNotFound, "there is no %s %q", kind, printable.Line(name, maxShown))
}

// File returns one of a user's files. Errors: file_not_found, invalid_request.
func (s *Service) File(ctx context.Context, userID, kind, name string) (File, error) {
	if err := checkName(kind, name); err != nil {
		return File{}, err
	}
	file, err := s.configs.File(ctx, userID, kind, name)
	if errors.Is(err, ErrNotFound) {
		return File{}, noFile(kind, name)
	}
	if err != nil {
		return File{}, fmt.Errorf("reading a user's file: %w", err)
	}
	return file, nil
}

// SaveFile keeps a user's file or replaces it, and returns it; its times need not
// be given, and its extension only if it is not what its type has mostly. Errors:
// invalid_request, payload_too_large.
func (s *Service) SaveFile(ctx context.Context, file File) (File, error) {
	if file.Extension == "" {
		file.Extension = defaultExtension(file.Type)
	}
	if err := guest.CheckFile(guest.File{Type: file.Type, Name: file.Name, Extension: file.Extension}); err != nil {
		return file, err //nolint:wrapcheck // it is for the caller
	}
	if err := checkContent("the file", file.Content); err != nil {
		return file, err
	}
	others, err := s.Files(ctx, file.UserID)
	if err != nil {
		return file, err
	}
	count, total := 1, len(file.Content)
	for _, other := range others {
		if other.Type != file.Type || other.Name != file.Name {
			count++
			total += len(other.Content)
		}
	}
	if count > MaxFiles {
		return file, sandbox.Errorf(sandbox.CodeInvalidRequest, "you have %d files, which is the most; delete one first", MaxFiles)
	}
	if total > MaxFilesTotal {
		return file, sandbox.Errorf(sandbox.CodeTooLarge, "your files together would be larger than %d bytes; delete one first", MaxFilesTotal)
	}
	file.CreatedAt = s.now()
	file.UpdatedAt = file.CreatedAt
	if err := s.configs.SaveFile(ctx, file); err != nil {
		return file, fmt.Errorf("saving a user's file: %w", err)
	}
	return file, nil
}

// DeleteFile forgets one of a user's files. Errors: file_not_found,
// invalid_request.
func (s *Service) DeleteFile(ctx context.Context, userID, kind, name string) error {
	if err := checkName(kind, name); err != nil {
		return err
	}
	err := s.configs.DeleteFile(ctx, userID, kind, name)
	if errors.Is(err, ErrNotFound) {
		return noFile(kind, name)
	}
	if err != nil {
		return fmt.Errorf("deleting a user's file: %w", err)
	}
	return nil
}

// apiAuth is a key as OpenCode's auth route takes it.
type apiAuth struct {
	Type string `json:"type"`
	Key  string `json:"key"`
}

// Config returns what a user's sandboxes are to be given: the config of the wire,
// with every key in it, so it is for a backend and for nobody else. Nil means
// nothing. The hash tells whether it is the same as another time, and nothing of
// what is in it. Errors: provider_not_configured if a key is damaged.
func (s *Service) Config(ctx context.Context, userID string) (config json.RawMessage, hash string, err error) {
	stored, err := s.OpenCode(ctx, userID)
	if err != nil {
		return nil, "", err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(stored.Settings), &fields); err != nil {
		return nil, "", fmt.Errorf("reading a user's settings: %w", err)
	}
	rows, err := s.credentials.List(ctx, userID)
	if err != nil {
		return nil, "", fmt.Errorf("reading a user's credentials: %w", err)
	}
	own := map[string]any{}
	auth := map[string]apiAuth{}
	for _, row := range rows {
		key, err := s.open(row)
		if err != nil {
			return nil, "", sandbox.Errorf(sandbox.CodeProviderMissing, "your key of the provider %q cannot be read any more; give it again", row.ProviderID).WithCause(err)
		}
		auth[row.ProviderID] = apiAuth{Type: "api", Key: string(key)}
		if endpoint := s.describe(row.ProviderID).Endpoint; endpoint != "" {
			if err := direct(fields, row.ProviderID, endpoint); err != nil {
				return nil, "", err
			}
		}
		if model := s.describe(row.ProviderID).DefaultModel; row.IsDefault && model != "" && unset(fields[keyModel]) {
			own[keyModel] = row.ProviderID + "/" + model
		}
	}
	if len(auth) > 0 {
		own[keyAuth] = auth
	}
	if stored.AgentsMD != "" {
		own[keyAgentsMD] = stored.AgentsMD
	}
	files, err := s.Files(ctx, userID)
	if err != nil {
		return nil, "", err
	}
	if len(files) > 0 {
		own[keyFiles] = wireFiles(files)
	}
	for name, value := range own {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, "", fmt.Errorf("encoding a user's config: %w", err)
		}
	}
	if len(fields) == 0 {
		return nil, "", nil
	}
	if config, err = json.Marshal(fields); err != nil {
		return nil, "", fmt.Errorf("encoding a user's config: %w", err)
	}
	return config, s.settings.Keys.Sum(config), nil
}

// direct says in the settings where a provider's key goes, unless they say it: a
// gateway gives no sandbox a key that could go anywhere.
func direct(settings map[string]json.RawMessage, provider, endpoint string) error {
	const options, baseURL = "options", "baseURL"
	path := []map[string]json.RawMessage{settings, {}, {}, {}}
	names := []string{"provider", provider, options}
	for i, name := range names {
		raw := path[i][name]
		wrong := !unset(raw) && json.Unmarshal(raw, &path[i+1]) != nil
		if wrong {
			return nil // OpenCode says so
		}
	}
	if !unset(path[3][baseURL]) || !unset(path[2]["api"]) {
		return nil
	}
	var value any = endpoint
	for i, name := range []string{baseURL, options, provider, "provider"} {
		raw, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encoding where a key goes: %w", err)
		}
		path[len(path)-1-i][name] = raw
		value = path[len(path)-1-i]
	}
	return nil
}

// unset tells whether a setting says nothing.
func unset(raw json.RawMessage) bool {
	return len(raw) == 0 || string(raw) == "null" || string(raw) == `""`
}

func wireFiles(files []File) []guest.File {
	list := make([]guest.File, len(files))
	for i, f := range files {
		list[i] = guest.File{Type: f.Type, Name: f.Name, Extension: f.Extension, Content: f.Content}
	}
	return list
}
