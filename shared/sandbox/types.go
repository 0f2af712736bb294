// Package sandbox is the wire contract between gateway, API and the Cloudflare
// worker: the types that travel, the errors with their codes, and the rules for
// ids and paths that every party checks the same way.
package sandbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Status is what a caller sees of a sandbox.
type Status string

// The statuses of the contract.
const (
	StatusCreating Status = "creating"
	StatusRunning  Status = "running"
	StatusSleeping Status = "sleeping"
	StatusStopped  Status = "stopped"
	StatusError    Status = "error"
)

// Tier says how far down the ladder a sandbox is: what of it is kept where.
type Tier string

// The tiers, from the top of the ladder to its bottom.
const (
	TierRunning  Tier = "running"  // the container runs
	TierFrozen   Tier = "frozen"   // it is paused, memory and disk are kept
	TierStopped  Tier = "stopped"  // it does not run, the disk is kept
	TierArchived Tier = "archived" // only what is in the store is kept
)

// OpenCodePort is the port that OpenCode listens on inside every sandbox; the
// contract's serverPort.
const OpenCodePort = 4096

// CreateRequest is the body of POST /sandbox.
type CreateRequest struct {
	ID        string          `json:"id"`
	UserID    string          `json:"userId"`
	Config    json.RawMessage `json:"config,omitempty"`
	Directory string          `json:"directory,omitempty"`
	GitURL    string          `json:"gitUrl,omitempty"`
	GitBranch string          `json:"gitBranch,omitempty"`
	// Idle overrides when the gateway puts this sandbox to sleep.
	Idle *Idle `json:"idle,omitempty"`
}

// Idle says after how many milliseconds without activity a sandbox takes a step
// down the ladder, or is deleted. Nil means the gateway's setting, 0 never.
type Idle struct {
	FreezeAfterMs  *int64 `json:"freezeAfterMs,omitempty"`
	StopAfterMs    *int64 `json:"stopAfterMs,omitempty"`
	ArchiveAfterMs *int64 `json:"archiveAfterMs,omitempty"`
	DeleteAfterMs  *int64 `json:"deleteAfterMs,omitempty"`
	// MaxAwakeMs is how long a sandbox may say that it is busy, without any
	// request to it, before it is put to sleep all the same.
	MaxAwakeMs *int64 `json:"maxAwakeMs,omitempty"`
}

// CreateResponse is the answer of POST /sandbox.
type CreateResponse struct {
	Success      bool     `json:"success"`
	SandboxID    string   `json:"sandboxId"`
	Status       Status   `json:"status"`
	OpenCodeURL  string   `json:"opencodeUrl"`
	ServerPort   int      `json:"serverPort"`
	FilesWritten int      `json:"filesWritten"`
	Warnings     []string `json:"warnings,omitempty"`
}

// Info is the answer of GET /sandbox/:id and an element of GET /sandboxes.
// Times are UTC with milliseconds.
type Info struct {
	SandboxID    string `json:"sandboxId"`
	UserID       string `json:"userId"`
	Status       Status `json:"status"`
	Tier         Tier   `json:"tier,omitempty"`
	HasWorkspace bool   `json:"hasWorkspace"`
	Provider     string `json:"provider"`
	CreatedAt    Time   `json:"createdAt"`
	LastActiveAt Time   `json:"lastActiveAt"`
	GitURL       string `json:"gitUrl,omitempty"`
	Directory    string `json:"directory,omitempty"`
	// Busy says whether the agent works, a command runs or a terminal is in
	// use, and BusyReasons why; both only while the sandbox runs.
	Busy        bool     `json:"busy"`
	BusyReasons []string `json:"busyReasons,omitempty"`
	// OpenCode is its state inside a running sandbox.
	OpenCode *OpenCodeInfo `json:"opencode,omitempty"`
	// LastSnapshot is what would come back if the host were lost now.
	LastSnapshot *Snapshot `json:"lastSnapshot,omitempty"`
	// UnstoredSince is since when something that was done is in no snapshot; absent if
	// everything is.
	UnstoredSince Time   `json:"unstoredSince,omitzero"`
	LastError     string `json:"lastError,omitempty"`
	// Progress are the steps that take long and that it is at now, the oldest
	// first: while it is created, woken, or put to sleep.
	Progress []Progress `json:"progress,omitempty"`
}

// Step is something that a sandbox waits for.
type Step string

// The steps.
const (
	StepQueue    Step = "queue"    // others boot
	StepOpenCode Step = "opencode" // OpenCode starts
	StepClone    Step = "clone"    // its repository is cloned
	StepRestore  Step = "restore"  // its files come back from the store
	StepSnapshot Step = "snapshot" // its files go there
)

// Progress is how far a step is. Percent is absent if that is not known.
type Progress struct {
	Step    Step `json:"step"`
	Since   Time `json:"since"`
	Percent *int `json:"percent,omitempty"`
}

// String is the step in words, with how far it is.
func (p Progress) String() string {
	text := map[Step]string{
		StepQueue: "Waiting for others that start", StepOpenCode: "Starting OpenCode", StepClone: "Cloning the repository",
		StepRestore: "Bringing its files back", StepSnapshot: "Storing its files",
	}[p.Step]
	if text == "" {
		text = "Working"
	}
	if p.Percent != nil {
		text += fmt.Sprintf(", %d %%", *p.Percent)
	}
	return text
}

// Snapshot is one of a sandbox's snapshots. Files are the regular files in it,
// Bytes their sizes together.
type Snapshot struct {
	ID        string `json:"id"`
	CreatedAt Time   `json:"createdAt"`
	Files     int64  `json:"files"`
	Bytes     int64  `json:"bytes"`
}

// SnapshotsResponse is the answer of GET /sandbox/:id/snapshots, the newest first.
type SnapshotsResponse struct {
	Snapshots []Snapshot `json:"snapshots"`
}

// HibernateRequest is the body of POST /sandbox/:id/hibernate; it may be empty.
type HibernateRequest struct {
	// Tier is frozen, stopped or archived; empty means stopped.
	Tier Tier `json:"tier,omitempty"`
	// Force ends what is being done in the sandbox, which is refused otherwise.
	// It also freezes a sandbox with work that cannot be stored.
	Force bool `json:"force,omitempty"`
}

// HibernateResponse is the answer of POST /sandbox/:id/hibernate. Tier is where
// the sandbox is now: one that slept more deeply stays there. Unstored says that it was
// frozen with work that is nowhere else: the gateway stores it when the store is back.
type HibernateResponse struct {
	Success   bool   `json:"success"`
	SandboxID string `json:"sandboxId"`
	Status    Status `json:"status"`
	Tier      Tier   `json:"tier"`
	Unstored  bool   `json:"unstored,omitempty"`
}

// SyncResponse is the answer of POST /sandbox/:id/sync. SyncedFiles are the
// files in the mirror now and TotalSize their bytes; SkippedFiles are excluded,
// not regular, or of a name that the mirror cannot hold.
type SyncResponse struct {
	Success      bool   `json:"success"`
	SandboxID    string `json:"sandboxId"`
	SyncedFiles  int64  `json:"syncedFiles"`
	SkippedFiles int64  `json:"skippedFiles"`
	TotalSize    int64  `json:"totalSize"`
	Timestamp    Time   `json:"timestamp"`
}

// SyncFailure is the body of an error of POST /sandbox/:id/sync: an
// ErrorResponse with what the worker's callers look for.
type SyncFailure struct {
	Success   bool   `json:"success"`
	Error     string `json:"error"`
	Code      Code   `json:"code"`
	SandboxID string `json:"sandboxId"`
}

// OpenCodeInfo says how OpenCode fares inside a sandbox.
type OpenCodeInfo struct {
	State    string `json:"state"`
	Version  string `json:"version,omitempty"`
	Restarts int    `json:"restarts"`
	LastExit string `json:"lastExit,omitempty"`
	// Warning says what is amiss with an OpenCode that runs, and what to do.
	Warning string `json:"warning,omitempty"`
}

// Defaults is the answer of GET /defaults.
type Defaults struct {
	// Credentials names the model providers whose keys every sandbox has from the
	// gateway, sorted; empty for none.
	Credentials []string `json:"credentials"`
}

// ListResponse is the answer of GET /sandboxes.
type ListResponse struct {
	Sandboxes  []Info `json:"sandboxes"`
	NextCursor string `json:"nextCursor,omitempty"`
}

// DeleteResponse is the answer of DELETE /sandbox/:id.
type DeleteResponse struct {
	Success bool   `json:"success"`
	Deleted string `json:"deleted"`
}

// WakeRequest is the body of POST /sandbox/:id/wake; it may be empty.
type WakeRequest struct {
	Config json.RawMessage `json:"config,omitempty"`
	// Snapshot is the one to restore, of an archived sandbox; empty means the newest.
	Snapshot string `json:"snapshot,omitempty"`
}

// WakeResponse is the answer of POST /sandbox/:id/wake.
type WakeResponse struct {
	Success       bool     `json:"success"`
	SandboxID     string   `json:"sandboxId"`
	Status        Status   `json:"status"`
	ServerPort    int      `json:"serverPort"`
	RestoredFiles int      `json:"restoredFiles"`
	FilesWritten  int      `json:"filesWritten"`
	Warnings      []string `json:"warnings,omitempty"`
}

// Model names a model the way OpenCode does.
type Model struct {
	ProviderID string `json:"providerID"`
	ModelID    string `json:"modelID"`
}

// MessageRequest is the body of POST /sandbox/:id/message.
type MessageRequest struct {
	Message   string          `json:"message"`
	SessionID string          `json:"sessionId,omitempty"`
	Model     *Model          `json:"model,omitempty"`
	Agent     string          `json:"agent,omitempty"`
	Config    json.RawMessage `json:"config,omitempty"`
	// TimeoutMs is the turn's deadline in milliseconds; 0 means the gateway's.
	TimeoutMs int64 `json:"timeoutMs,omitempty"`
}

// SyncCounts is what a message reports of the mirror.
type SyncCounts struct {
	SyncedFiles int64 `json:"syncedFiles"`
	TotalSize   int64 `json:"totalSize"`
}

// MessageResponse is the answer of POST /sandbox/:id/message. Parts are
// OpenCode's own, byte for byte, and never null.
type MessageResponse struct {
	SessionID string            `json:"sessionId"`
	Response  string            `json:"response"`
	Parts     []json.RawMessage `json:"parts"`
	Sync      SyncCounts        `json:"sync"`
	// Error says what the model or OpenCode said when the turn failed.
	Error        string        `json:"error,omitempty"`
	ErrorDetails *ErrorDetails `json:"errorDetails,omitempty"`
}

// ErrorDetails is a failed turn's error as OpenCode names it.
type ErrorDetails struct {
	Name       string `json:"name"`
	Message    string `json:"message"`
	StatusCode int    `json:"statusCode,omitempty"`
}

// MessageAccepted is the 202 answer to a message with Prefer: respond-async.
type MessageAccepted struct {
	SessionID string `json:"sessionId"`
	Status    string `json:"status"`
}

// ExecRequest is the body of POST /sandbox/:id/exec. WorkingDir is absolute or
// relative to the workspace; TimeoutMs in milliseconds, 0 means the default.
type ExecRequest struct {
	Command    []string          `json:"command" example:"[\"ls\",\"-la\"]"`
	WorkingDir string            `json:"workingDir,omitempty"`
	Env        map[string]string `json:"env,omitempty" example:"{\"CI\":\"true\"}"`
	TimeoutMs  int64             `json:"timeoutMs,omitempty"`
}

// ExecOutput is the data of an event stdout or stderr of an exec that is streamed.
// Data is text, whose characters no two events share. Base64 is there only if not all
// of the bytes are UTF-8: it has them as they are, and Data has U+FFFD for the others.
type ExecOutput struct {
	Data   string `json:"data"`
	Base64 []byte `json:"base64,omitempty"`
}

// NewExecOutput is the event's data for a piece of output.
func NewExecOutput(raw []byte) ExecOutput {
	text, exact := textOf(raw)
	return ExecOutput{Data: text, Base64: exact}
}

// Bytes is the piece of output as the command wrote it.
func (o ExecOutput) Bytes() []byte {
	if o.Base64 != nil {
		return o.Base64
	}
	return []byte(o.Data)
}

// textOf returns raw as text, and itself if that has not all of it.
func textOf(raw []byte) (text string, exact []byte) {
	if utf8.Valid(raw) {
		return string(raw), nil
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD"), raw
}

// ExecResponse is the answer of POST /sandbox/:id/exec. Output that is not
// UTF-8 has its bad bytes replaced, and is there in Base64 beside, as it is.
type ExecResponse struct {
	ExitCode  int    `json:"exitCode"`
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated"`
	TimedOut  bool   `json:"timedOut,omitempty"`
	// Absent if the text has all of it.
	StdoutBase64 []byte `json:"stdoutBase64,omitempty"`
	StderrBase64 []byte `json:"stderrBase64,omitempty"`
}

// SetOutput sets the output to what the command wrote.
func (r *ExecResponse) SetOutput(stdout, stderr []byte) {
	r.Stdout, r.StdoutBase64 = textOf(stdout)
	r.Stderr, r.StderrBase64 = textOf(stderr)
}

// Output is what the command wrote, byte for byte.
func (r *ExecResponse) Output() (stdout, stderr []byte) {
	return ExecOutput{Data: r.Stdout, Base64: r.StdoutBase64}.Bytes(), ExecOutput{Data: r.Stderr, Base64: r.StderrBase64}.Bytes()
}

// FileEntry is one entry of a listed folder. Type is file, directory, symlink
// or other; Mode is octal, such as "0644".
type FileEntry struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	Size       int64  `json:"size"`
	Mode       string `json:"mode"`
	ModifiedAt Time   `json:"modifiedAt"`
}

// FileListing is a folder under GET /sandbox/:id/files/*.
type FileListing struct {
	Entries   []FileEntry `json:"entries"`
	Truncated bool        `json:"truncated,omitempty"`
}

// EntryTypes are the types of a FileEntry.
func EntryTypes() []string { return []string{"file", "directory", "symlink", "other"} }

// Of returns the listing with the entries of one type only, or as it is if kind is
// empty.
func (l FileListing) Of(kind string) FileListing {
	entries := make([]FileEntry, 0, len(l.Entries))
	for _, e := range l.Entries {
		if kind == "" || e.Type == kind {
			entries = append(entries, e)
		}
	}
	l.Entries = entries
	return l
}

// CheckChoice refuses what is neither empty nor one of a parameter's values, with
// invalid_request.
func CheckChoice(name, value string, values []string) error {
	if value == "" || slices.Contains(values, value) {
		return nil
	}
	return Errorf(CodeInvalidRequest, "%s must be one of %s", name, strings.Join(values, ", "))
}

// LogsResponse is the answer of GET /sandbox/:id/logs without follow.
type LogsResponse struct {
	Logs string `json:"logs"`
	Tail int    `json:"tail"`
}

// Stats are a sandbox's figures; sizes in bytes, percentages of the limit
// (memory) and of one core (CPU).
type Stats struct {
	CPUPercent    float64 `json:"cpuPercent"`
	MemoryUsage   uint64  `json:"memoryUsage"`
	MemoryLimit   uint64  `json:"memoryLimit"`
	MemoryPercent float64 `json:"memoryPercent"`
	NetworkRx     uint64  `json:"networkRx"`
	NetworkTx     uint64  `json:"networkTx"`
	BlockRead     uint64  `json:"blockRead"`
	BlockWrite    uint64  `json:"blockWrite"`
}

// StatsResponse is the answer of GET /sandbox/:id/stats.
type StatsResponse struct {
	Stats Stats `json:"stats"`
}

// UIResponse is the answer of GET /sandbox/:id/ui: a URL that lets the browser that
// visits it first into the sandbox's web UI, until it expires.
type UIResponse struct {
	URL       string `json:"url"`
	ExpiresAt Time   `json:"expiresAt"`
}

// ErrorResponse is the body of every error.
type ErrorResponse struct {
	Error     string `json:"error"`
	Code      Code   `json:"code"`
	SessionID string `json:"sessionId,omitempty"`
}

// Event names what a webhook tells.
type Event string

// The events of the contract that a sender may send.
const (
	EventSandboxCreated    Event = "sandbox.created"
	EventSandboxStarted    Event = "sandbox.started"
	EventSandboxStopped    Event = "sandbox.stopped"
	EventSandboxHibernated Event = "sandbox.hibernated"
	EventSandboxWoken      Event = "sandbox.woken"
	EventSandboxDeleted    Event = "sandbox.deleted"
	EventSandboxError      Event = "sandbox.error"
	EventSessionCreated    Event = "session.created"
	EventSessionMessage    Event = "session.message"
	EventWorkspaceSynced   Event = "workspace.synced"
)

// Webhook is the body that a webhook posts.
type Webhook struct {
	Event     Event          `json:"event"`
	Data      map[string]any `json:"data"`
	Timestamp Time           `json:"timestamp"`
}

// Time travels as RFC 3339 in UTC with milliseconds and a Z.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000Z"

// At makes a Time of t.
func At(t time.Time) Time { return Time{t.UTC()} }

// MarshalJSON writes the contract's form; the zero time is null.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return []byte(`"` + t.UTC().Format(timeLayout) + `"`), nil
}
