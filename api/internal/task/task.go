// Package task is what the API keeps of the work that it hands to sandboxes:
// tasks and their events, teams, the sandboxes themselves, and templates.
package task

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Status says how far a task is.
type Status string

// The statuses of a task. The last three are final.
const (
	Pending   Status = "pending"
	Running   Status = "running"
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Final tells whether a task of this status never changes again.
func (s Status) Final() bool { return slices.Contains([]Status{Completed, Failed, Cancelled}, s) }

// Task is one message for an agent. Times are UTC, in milliseconds.
type Task struct {
	ID     string
	UserID string
	// SandboxID is nil once the sandbox is deleted.
	SandboxID     *string
	Provider      string
	Status        Status
	Message       string
	Response      string
	GitURL        string
	GitBranch     string
	ModelProvider string
	ModelID       string
	SessionID     string
	Error         string
	// Metadata is a JSON object.
	Metadata string
	// NewSandbox tells that the sandbox was made for this task, and goes with it
	// if the task fails early.
	NewSandbox bool
	// LeaseOwner runs the task until LeaseUntil, or did; nobody has while it is "".
	LeaseOwner string
	LeaseUntil time.Time
	// Attempts counts who claimed the task.
	Attempts int64
	// EventSeq is the number of the last event, EventBytes the size of all.
	EventSeq    int64
	EventBytes  int64
	CreatedAt   time.Time
	CompletedAt *time.Time
}

// Lease is the right to run a task: whoever lost it can change nothing more.
type Lease struct{ TaskID, Owner string }

// Event is one step of a task, as the frontend's stream has them.
type Event struct {
	TaskID string
	// Seq counts a task's events from 1 without a gap.
	Seq  int64
	Type string
	// Data is a JSON object.
	Data      string
	CreatedAt time.Time
}

// Progress is what a running task gets to know; nil leaves a field as it is.
type Progress struct {
	SandboxID *string
	SessionID *string
	Metadata  *string
}

// Outcome is how a task ends.
type Outcome struct {
	Status   Status // a final one
	Response string
	Error    string
	At       time.Time
}

// Page is a part of a list.
type Page struct{ Limit, Offset int }

// What a repository says when it is not asked in vain.
var (
	// ErrNotFound means that there is no such row, or not of that user.
	ErrNotFound = errors.New("task: not found")
	// ErrExists means that a row has that id, or that slug for that user.
	ErrExists = errors.New("task: exists already")
	// ErrLeaseLost means that somebody else runs the task, or that it has ended.
	ErrLeaseLost = errors.New("task: the lease is lost")
	// ErrFinal means that the task has ended already.
	ErrFinal = errors.New("task: has ended already")
	// ErrLogFull means that a task's events take all the room they may.
	ErrLogFull = errors.New("task: the event log is full")
)

// The bounds of a task's event log. The events that end a task go beyond them.
const (
	MaxEvents     = 20_000
	MaxEventBytes = 8 << 20
)

// Tasks keeps tasks and their events. It is safe for concurrent use, by several
// processes too; their clocks must agree to much less than a lease lasts.
type Tasks interface {
	// Create keeps a pending task, and with it its sandbox unless that is nil.
	// Error: ErrExists.
	Create(ctx context.Context, t Task, with *Sandbox) error
	// Get returns a user's task, or ErrNotFound.
	Get(ctx context.Context, userID, id string) (Task, error)
	// List returns a user's tasks, the newest first.
	List(ctx context.Context, userID string, page Page) ([]Task, error)
	// Claim takes one task that has not ended and whose lease is over, marks it
	// running, and returns it; ErrNotFound when there is none. Of several who
	// claim at once one gets a task.
	Claim(ctx context.Context, owner string, now, until time.Time) (Task, error)
	// Start marks a task running that was created with this lease. Errors:
	// ErrLeaseLost.
	Start(ctx context.Context, lease Lease) error
	// Renew extends a lease, and with until in the past gives it up. Errors:
	// ErrLeaseLost.
	Renew(ctx context.Context, lease Lease, until time.Time) error
	// Note keeps what a running task gets to know. Errors: ErrLeaseLost.
	Note(ctx context.Context, lease Lease, p Progress) error
	// Append adds events (Type and Data; the rest is filled in) in their order
	// and returns them numbered. Errors: ErrLeaseLost, ErrLogFull.
	Append(ctx context.Context, lease Lease, now time.Time, events ...Event) ([]Event, error)
	// Finish ends a task with its last events. Errors: ErrLeaseLost.
	Finish(ctx context.Context, lease Lease, o Outcome, events ...Event) error
	// Cancel ends a user's task whoever runs it. Errors: ErrNotFound, ErrFinal.
	Cancel(ctx context.Context, userID, id string, now time.Time, events ...Event) error
	// Events returns at most limit events after a number, in their order.
	Events(ctx context.Context, taskID string, after int64, limit int) ([]Event, error)
}

// Team is several agents that were asked at once.
type Team struct {
	ID        string
	UserID    string
	Provider  string
	GitURL    string
	GitBranch string
	CreatedAt time.Time
}

// TeamAgent is one agent of a team; its state is its task's.
type TeamAgent struct {
	TeamID   string
	Position int64 // from 0, as they were asked for
	Role     string
	TaskID   string
}

// Member is an agent of a team together with its task.
type Member struct {
	Agent TeamAgent
	Task  Task
}

// NewMember is an agent of a team that is to be kept, with its sandbox if that
// is new too.
type NewMember struct {
	Role    string
	Task    Task
	Sandbox *Sandbox
}

// Teams keeps teams. It is safe for concurrent use.
type Teams interface {
	// Create keeps a team, its tasks and their sandboxes, or none of them. Error:
	// ErrExists.
	Create(ctx context.Context, team Team, members []NewMember) error
	// Get returns a user's team and its members by position, or ErrNotFound.
	Get(ctx context.Context, userID, id string) (Team, []Member, error)
	// List returns a user's teams, the newest first.
	List(ctx context.Context, userID string, page Page) ([]Team, error)
}

// SandboxStatus is what the frontend shows of a sandbox.
type SandboxStatus string

// The statuses of a sandbox.
const (
	SandboxCreated  SandboxStatus = "created"
	SandboxStarting SandboxStatus = "starting"
	SandboxRunning  SandboxStatus = "running"
	SandboxStopping SandboxStatus = "stopping"
	SandboxStopped  SandboxStatus = "stopped"
	SandboxSleeping SandboxStatus = "sleeping"
	SandboxError    SandboxStatus = "error"
)

// Sandbox is the API's record of a sandbox: whose it is and what was last heard
// of it. Times are UTC, in milliseconds.
type Sandbox struct {
	ID                string
	UserID            string
	Provider          string
	Name              string
	Slug              string // unique for the user
	Description       string
	RepoName          string
	GithubURL         string
	GitBranch         string
	ResourceTierID    string
	FlavorID          string
	AddonIDs          string // a JSON array
	ContainerID       string
	ContainerName     string
	Region            string
	Tier              string
	ErrorMessage      string
	StartedAt         *time.Time
	EventAt           *time.Time // of the newest webhook event that was applied
	Status            SandboxStatus
	WorkerURL         string
	ConfigHash        string
	WorkspaceSyncedAt *time.Time
	LastActiveAt      *time.Time
	CreatedAt         time.Time
	UpdatedAt         time.Time
}

// SandboxChange is what changes of a sandbox; nil leaves a field as it is.
type SandboxChange struct {
	Status            *SandboxStatus
	Tier              *string
	ErrorMessage      *string
	ContainerID       *string
	ContainerName     *string
	Region            *string
	WorkerURL         *string
	ConfigHash        *string
	StartedAt         *time.Time
	WorkspaceSyncedAt *time.Time
	LastActiveAt      *time.Time
}

// SandboxFilter says which sandboxes of a user are listed: those of any of
// Statuses, or all if there are none.
type SandboxFilter struct {
	UserID   string
	Statuses []SandboxStatus
	Page     Page
}

// Sandboxes keeps the records of sandboxes. It is safe for concurrent use.
type Sandboxes interface {
	// Create keeps a record. Errors: ErrExists, and ErrNotFound if there is no such
	// user.
	Create(ctx context.Context, s Sandbox) error
	// Get returns a user's record, or ErrNotFound.
	Get(ctx context.Context, userID, id string) (Sandbox, error)
	// Find returns a record whoever's it is, or ErrNotFound.
	Find(ctx context.Context, id string) (Sandbox, error)
	// List returns records, the newest first, and how many there are in all.
	List(ctx context.Context, filter SandboxFilter) ([]Sandbox, int64, error)
	// Update changes a record. Errors: ErrNotFound.
	Update(ctx context.Context, id string, now time.Time, change SandboxChange) error
	// Apply changes a record as an event of its provider says, and tells whether
	// it did: an event that is older than the last one, or of a sandbox that
	// this provider does not have, changes nothing.
	Apply(ctx context.Context, provider, id string, event, now time.Time, change SandboxChange) (bool, error)
	// Delete forgets a user's record; its tasks stay. It need not exist.
	Delete(ctx context.Context, userID, id string) error
}

// Template is a message with placeholders.
type Template struct {
	ID string
	// UserID is nil for a template that is everybody's.
	UserID       *string
	Name         string
	Description  string
	Icon         string
	Category     string
	Prompt       string
	Placeholders string // a JSON array
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// Templates keeps templates. It is safe for concurrent use.
type Templates interface {
	// Save keeps a template, or replaces what its user has under its id. Error:
	// ErrExists if the id is somebody else's.
	Save(ctx context.Context, t Template) error
	// Get returns a template that the user may see, or ErrNotFound.
	Get(ctx context.Context, userID, id string) (Template, error)
	// List returns the templates that the user may see, the oldest first.
	List(ctx context.Context, userID string, page Page) ([]Template, error)
	// Delete forgets a user's own template. Errors: ErrNotFound.
	Delete(ctx context.Context, userID, id string) error
}
