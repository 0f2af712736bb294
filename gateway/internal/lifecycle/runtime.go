package lifecycle

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// ErrNoContainer is returned by a Runtime for a container or volume that does
// not exist (any more).
var ErrNoContainer = errors.New("no such container")

// ErrNoVolume is returned by Create for a volume that must be there and is not.
var ErrNoVolume = errors.New("no such volume")

// Runtime is what the gateway needs of a container engine: run this image
// somewhere, tell its address, pause, stop, remove, list. Every method is safe
// for concurrent use, honours its context, touches only what carries the
// installation's label, and fails with a sandbox.Error whose code says what is
// wrong (engine_unavailable, engine_too_old, image_missing, name_taken,
// disk_full, out_of_memory) or with ErrNoContainer.
type Runtime interface {
	// Ready returns nil when the engine answers, is new enough and has the image.
	Ready(ctx context.Context) error
	// CreateVolume makes a volume; one of that name that is ours is fine.
	CreateVolume(ctx context.Context, name string) error
	// Create makes the volume (if absent, unless Spec.Kept) and the container, not
	// started.
	Create(ctx context.Context, spec Spec) (Container, error)
	// Start starts a created or exited container and returns it with addresses.
	Start(ctx context.Context, id string) (Container, error)
	// Stop kills the container after grace; stopping one that is stopped is fine.
	Stop(ctx context.Context, id string, grace time.Duration) error
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	// Shrink moves the memory of a paused container to swap; unsupported if there is
	// not enough.
	Shrink(ctx context.Context, id string) error
	// Foreground ends what Spec.Background began.
	Foreground(ctx context.Context, id string) error
	// Rename gives the container the name of another sandbox id, atomically.
	Rename(ctx context.Context, id, sandboxID string) error
	// Remove kills and removes the container; removing what is gone is fine.
	Remove(ctx context.Context, id string) error
	// RemoveVolume removes a volume; removing what is gone is fine.
	RemoveVolume(ctx context.Context, name string) error
	// Inspect finds a container by its id.
	Inspect(ctx context.Context, id string) (Container, error)
	// Current says whether a container is of the image that a new one would be of.
	Current(ctx context.Context, id string) (bool, error)
	// Find finds the container that has a sandbox's name.
	Find(ctx context.Context, sandboxID string) (Container, error)
	// List returns the installation's containers, whatever their state.
	// Addresses, StartedAt, ExitCode and Volume are not filled in.
	List(ctx context.Context) ([]Container, error)
	// Volumes returns the names of the installation's volumes.
	Volumes(ctx context.Context) ([]string, error)
	Stats(ctx context.Context, id string) (sandbox.Stats, error)
	// Logs returns the container's output, stdout and stderr interleaved as
	// plain bytes. The caller closes it.
	Logs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error)
	// Wait blocks until the container is not running.
	Wait(ctx context.Context, id string) (Exit, error)
	// Events calls fn for each event of the installation's containers until the
	// context ends (nil) or the engine goes away (error). It calls subscribed
	// once when events flow, so that the caller can list without a gap. Both must
	// return at once.
	Events(ctx context.Context, subscribed func(), fn func(Event)) error
}

// Spec is what a container is made of. Limits that every sandbox shares are the
// runtime's own settings.
type Spec struct {
	SandboxID string
	Volume    string // the home's volume
	// Kept says that the volume must be there: what is on it is needed. If it is not,
	// Create is ErrNoVolume. An engine may make a volume all the same that goes in the
	// very moment, so the disk's mark is looked at after the start.
	Kept bool
	Env  map[string]string // no secret: it is seen by inspect
	// Background has the container use the processors that no other one wants.
	Background bool
}

// State is what a container does.
type State string

// The states of a container.
const (
	ContainerCreated State = "created"
	ContainerRunning State = "running"
	ContainerPaused  State = "paused"
	ContainerExited  State = "exited"
)

// Container is one container as the engine sees it.
type Container struct {
	ID        string
	SandboxID string // from its name
	State     State
	// StartedAt is as the engine words it: together with ID it identifies one
	// run of the container, the only thing an address belongs to.
	StartedAt string
	ExitCode  int
	OOMKilled bool
	Volume    string // the home's; List does not fill it in
	// GuestAddr and OpenCodeAddr are host:port as the gateway can dial them;
	// empty while the container does not run.
	GuestAddr    string
	OpenCodeAddr string
}

// Run identifies one run of a container. Connections hang on it.
func (c Container) Run() Run { return Run{ID: c.ID, StartedAt: c.StartedAt} }

// Run is one run of a container: the same container started again is another.
type Run struct {
	ID        string
	StartedAt string
}

// LogOptions select a container's output. Tail is a number of lines, 0 for all.
type LogOptions struct {
	Tail   int
	Follow bool
}

// Exit is how a container ended.
type Exit struct {
	Code      int
	OOMKilled bool
}

// EventKind is what happened to a container.
type EventKind string

// The events that matter here; others are not reported.
const (
	EventStarted   EventKind = "start"
	EventDied      EventKind = "die"
	EventDestroyed EventKind = "destroy"
	EventOOM       EventKind = "oom"
	EventRenamed   EventKind = "rename"
	EventPaused    EventKind = "pause"
	EventUnpaused  EventKind = "unpause"
)

// Event is one event of a container.
type Event struct {
	Kind        EventKind
	ContainerID string
	SandboxID   string // from the name that it had
	ExitCode    int
}
