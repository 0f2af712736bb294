package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Errors of a Store.
var (
	// ErrNoRecord is returned for a sandbox that the store does not know.
	ErrNoRecord = errors.New("no such record")
	// ErrRecordExists is returned by Create for an id that has a record.
	ErrRecordExists = errors.New("record exists")
	// ErrRecordChanged is returned by Update when the version does not match.
	ErrRecordChanged = errors.New("record changed meanwhile")
)

// Phase is how far a record has come. It is what a restart goes by.
type Phase string

// The phases of a record.
const (
	// PhaseCreating: the create has not answered yet; a restart rolls it back.
	PhaseCreating Phase = "creating"
	// PhaseReady: the sandbox exists.
	PhaseReady Phase = "ready"
	// PhaseDeleting: a delete was asked for; a restart finishes it.
	PhaseDeleting Phase = "deleting"
)

// Record is what must survive a restart of one sandbox. Secrets are sealed by
// the store; everything else is readable, and authenticated with them.
type Record struct {
	SandboxID    string    `json:"sandboxId"`
	UserID       string    `json:"userId"`
	Incarnation  string    `json:"incarnation"`
	Phase        Phase     `json:"phase"`
	CreatedAt    time.Time `json:"createdAt"`
	LastActiveAt time.Time `json:"lastActiveAt"`
	Directory    string    `json:"directory"`
	GitURL       string    `json:"gitUrl,omitempty"` // without credentials
	GitBranch    string    `json:"gitBranch,omitempty"`
	Volume       string    `json:"volume"`
	// GivenUp are volumes that were not in the engine when they were needed. One
	// that comes back is kept until the sandbox is deleted.
	GivenUp []string `json:"givenUp,omitempty"`
	// Removing are volumes that nothing needs any more and that may be in the engine
	// still: a name leaves the record only after the volume.
	Removing []string `json:"removing,omitempty"`
	// Generation is that of the mark which the disk has at least, 0 if it has none as
	// it is of a gateway that did not give any.
	Generation  int64  `json:"generation,omitempty"`
	ContainerID string `json:"containerId,omitempty"`
	// Tier is TierStopped or TierArchived if the newest snapshot is all that
	// there is to the sandbox, and empty while its disk may hold more.
	Tier sandbox.Tier `json:"tier,omitempty"`
	// Snapshot is the newest one that the gateway knows of.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// Version is that of the OpenCode that ran last.
	Version string `json:"openCodeVersion,omitempty"`
	// Idle is what the sandbox has of its own of the gateway's settings.
	Idle sandbox.Idle `json:"idle,omitzero"`

	Secrets Secrets `json:"-"`
}

// Secrets are the part of a record that is sealed.
type Secrets struct {
	Token    string          `json:"token"`    // sandboxd's
	Password string          `json:"password"` // OpenCode's
	Config   json.RawMessage `json:"config,omitempty"`
	// LastError can hold what a program in the sandbox said.
	LastError string `json:"lastError,omitempty"`
}

// storedLast says whether the newest snapshot is younger than the last activity.
func (r Record) storedLast() bool {
	return r.Snapshot != nil && r.Snapshot.CreatedAt.After(r.LastActiveAt)
}

// Version identifies what a record's bytes were when it was read or written.
type Version string

// Stored is a record with its version.
type Stored struct {
	Record  Record
	Version Version
}

// Listing is every record of a store. Unreadable are ids whose record exists
// and cannot be used (damaged, or sealed with another key): what belongs to
// them must not be taken for orphaned.
type Listing struct {
	Stored     []Stored
	Unreadable map[string]error
}

// Store keeps records. Writes are atomic and durable; every method is safe for
// concurrent use.
type Store interface {
	Create(ctx context.Context, r Record) (Version, error)
	// Update replaces the record of that version. A version that comes with an
	// error says that the write may have landed all the same.
	Update(ctx context.Context, r Record, v Version) (Version, error)
	Delete(ctx context.Context, sandboxID string) error
	List(ctx context.Context) (Listing, error)
	// Ready returns nil when records can be written.
	Ready(ctx context.Context) error
}
