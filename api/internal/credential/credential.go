// Package credential is what a user gives to sandboxes: sealed keys of model
// providers, and OpenCode's settings, rules and files.
package credential

import (
	"context"
	"errors"
	"time"
)

// ErrNotFound means that the user has no such row.
var ErrNotFound = errors.New("credential: not found")

// Credential is a user's key for one provider, sealed. Times are UTC, in
// milliseconds.
type Credential struct {
	ID         string
	UserID     string
	ProviderID string
	// Sealed is the key as KeyID's key sealed it, as text.
	Sealed    string
	KeyID     string
	IsDefault bool
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Credentials keeps sealed credentials. It is safe for concurrent use.
type Credentials interface {
	// Save keeps a credential or replaces the user's for the same provider; an
	// existing one keeps its ID, IsDefault and CreatedAt.
	Save(ctx context.Context, c Credential) error
	// List returns a user's credentials by provider.
	List(ctx context.Context, userID string) ([]Credential, error)
	// SetDefault makes one the user's only default. Errors: ErrNotFound.
	SetDefault(ctx context.Context, userID, providerID string, now time.Time) error
	// Delete forgets one. Errors: ErrNotFound.
	Delete(ctx context.Context, userID, providerID string) error
	// SealedOtherwise returns at most limit credentials of all users that are not
	// sealed with keyID, for a rotation, always in the same order.
	SealedOtherwise(ctx context.Context, keyID string, limit int) ([]Credential, error)
	// Reseal replaces what is sealed, unless it is no longer what was, which it
	// tells.
	Reseal(ctx context.Context, was Credential, sealed, keyID string, now time.Time) (bool, error)
}

// OpenCode is a user's configuration of OpenCode.
type OpenCode struct {
	UserID   string
	Settings string // a JSON object
	AgentsMD string
	// CreatedAt and UpdatedAt are zero for a user who never saved anything.
	CreatedAt time.Time
	UpdatedAt time.Time
}

// File is one of a user's agents, commands, tools or plugins.
type File struct {
	UserID    string
	Type      string // agent, command, tool or plugin
	Name      string
	Extension string // md, ts or js
	Content   string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Configs keeps the configurations of OpenCode. It is safe for concurrent use.
type Configs interface {
	// Get returns a user's configuration; an empty one if nothing was saved.
	Get(ctx context.Context, userID string) (OpenCode, error)
	// SaveSettings replaces the settings.
	SaveSettings(ctx context.Context, userID, settings string, now time.Time) error
	// SaveAgentsMD replaces AGENTS.md.
	SaveAgentsMD(ctx context.Context, userID, content string, now time.Time) error
	// Files returns a user's files by type and name, at most limit.
	Files(ctx context.Context, userID string, limit int) ([]File, error)
	// File returns one, or ErrNotFound.
	File(ctx context.Context, userID, kind, name string) (File, error)
	// SaveFile keeps a file or replaces it; CreatedAt stays.
	SaveFile(ctx context.Context, f File) error
	// DeleteFile forgets one. Errors: ErrNotFound.
	DeleteFile(ctx context.Context, userID, kind, name string) error
}
