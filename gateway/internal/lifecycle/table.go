package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// state is what the gateway knows of a sandbox, as a record's Phase is what the
// store knows. It lives in memory only: after a restart it is worked out again
// from the record and the engine.
type state string

// The states of a sandbox.
const (
	stateAbsent   state = "absent"   // no record (yet, or any more)
	stateCreating state = "creating" // a create is on its way
	stateRunning  state = "running"  // the container runs
	stateSettling state = "settling" // it runs or is started, and is being put to sleep
	stateFrozen   state = "frozen"   // the container is paused
	stateStopped  state = "stopped"  // the container does not run, the disk is kept
	stateArchived state = "archived" // only what is in the store is kept
	stateStarting state = "starting" // it slept, and is being brought up
	stateLost     state = "lost"     // the volume was removed behind our back, and no snapshot is there
	stateDeleting state = "deleting" // a delete is on its way, or must be retried
)

// transitions is the one place that says which state may follow which, and
// what a caller sees of each. A caller sees nothing of what is on its way.
//
//nolint:gochecknoglobals // a constant table
var transitions = map[state]struct {
	status sandbox.Status
	tier   sandbox.Tier
	next   []state
}{
	stateAbsent:   {"", "", []state{stateCreating, stateStopped, stateArchived, stateLost, stateDeleting}}, // but for the first on boot
	stateCreating: {sandbox.StatusCreating, "", []state{stateRunning, stateDeleting}},
	stateRunning:  {sandbox.StatusRunning, sandbox.TierRunning, []state{stateSettling, stateFrozen, stateStopped, stateArchived, stateLost, stateDeleting}},
	stateSettling: {sandbox.StatusRunning, sandbox.TierRunning, []state{stateRunning, stateFrozen, stateStopped, stateDeleting}},
	stateFrozen:   {sandbox.StatusSleeping, sandbox.TierFrozen, []state{stateStarting, stateSettling, stateRunning, stateStopped, stateDeleting}},
	stateStopped:  {sandbox.StatusStopped, sandbox.TierStopped, []state{stateStarting, stateSettling, stateRunning, stateFrozen, stateArchived, stateLost, stateDeleting}},
	stateArchived: {sandbox.StatusSleeping, sandbox.TierArchived, []state{stateStarting, stateDeleting}},
	stateStarting: {sandbox.StatusSleeping, sandbox.TierStopped, []state{stateRunning, stateFrozen, stateStopped, stateArchived, stateLost, stateDeleting}},
	stateLost:     {sandbox.StatusError, "", []state{stateStopped, stateDeleting}},
	stateDeleting: {"", "", []state{stateAbsent}},
}

// Status is what a caller sees of the state; empty when the sandbox is not there.
func (s state) Status() sandbox.Status { return transitions[s].status }

// Tier is where a caller sees the state on the ladder; empty if nowhere.
func (s state) Tier() sandbox.Tier { return transitions[s].tier }

// visible says whether callers can see a sandbox in this state.
func (s state) visible() bool { return s.Status() != "" }

// asleep says whether the gateway answers for a sandbox in this state what does
// not wake it.
func (s state) asleep() bool {
	return s == stateSettling || s == stateFrozen || s == stateStopped || s == stateArchived || s == stateStarting
}

// occupies says whether a sandbox in this state counts against MaxRunning.
func (s state) occupies() bool {
	return s == stateCreating || s == stateRunning || s == stateSettling || s == stateStarting
}

func (s state) mayBecome(next state) bool { return slices.Contains(transitions[s].next, next) }

// Deadlines bound every step of a sandbox's life.
type Deadlines struct {
	Engine time.Duration // one call to the engine: create, start, remove
	Guest  time.Duration // from a started container to a sandboxd that answers
	Boot   time.Duration // from there to an OpenCode that is ready
	Clone  time.Duration // git clone
	Config time.Duration // a change of config in a running sandbox
	Stop   time.Duration // OpenCode's grace before it is killed
	Hold   time.Duration // how long a request waits for its sandbox
	Store  time.Duration // one write of a record
	// Snapshot bounds one snapshot or sync, Restore bringing one back, and Purge
	// removing what is stored of a sandbox.
	Snapshot time.Duration
	Restore  time.Duration
	Purge    time.Duration
}

// DefaultDeadlines are generous: they end what is stuck, not what is slow.
func DefaultDeadlines() Deadlines {
	return Deadlines{
		Engine: time.Minute,
		Guest:  30 * time.Second,
		Boot:   90 * time.Second, // measured: 2–6 s; a loaded host takes longer
		Clone:  5 * time.Minute,
		Config: 30 * time.Second,
		Stop:   10 * time.Second,
		Hold:   2 * time.Minute,
		Store:  10 * time.Second,

		Snapshot: 30 * time.Minute,
		Restore:  30 * time.Minute,
		Purge:    5 * time.Minute,
	}
}

// errTransition is a bug, not a condition: it names the table that forbids it.
func errTransition(from, to state) error {
	return fmt.Errorf("the lifecycle table has no way from %s to %s", from, to)
}
