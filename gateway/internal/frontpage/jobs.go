package frontpage

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// jobLimit bounds a job beyond the deadlines of what it does.
	jobLimit = 2 * time.Hour
	// saidKept is how long it is shown what a job has done, problemKept why one failed.
	saidKept    = 15 * time.Second
	problemKept = time.Hour
	// patience is how long a form waits for its job, so that what is wrong with it
	// can be said there.
	patience = 300 * time.Millisecond
)

// job is something that was asked for here and takes its time. A sandbox has one at
// a time, by its id.
type job struct {
	verb  string // "create", "sync", …
	began time.Time
	done  chan struct{}

	// Guarded by jobs.mu.
	ended time.Time
	said  string // what it did
	err   error
}

// jobs are those that run, and the last of each sandbox for a while.
type jobs struct {
	log     *slog.Logger
	base    context.Context //nolint:containedctx // the parent of work that outlives a request
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	mu   sync.Mutex
	byID map[string]*job
}

func (j *jobs) init(log *slog.Logger) {
	j.log = log
	j.base, j.stop = context.WithCancelCause(context.Background())
	j.byID = map[string]*job{}
}

// start begins a job, unless one of the same sandbox runs; a create can be cut short
// by a delete.
func (j *jobs) start(id, verb string, do func(ctx context.Context) (said string, err error)) (*job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if context.Cause(j.base) != nil {
		return nil, lifecycle.ErrClosing
	}
	if old := j.byID[id]; old != nil && old.ended.IsZero() && (old.verb != "create" || verb != "delete") {
		return nil, sandbox.Errorf(sandbox.CodeConflict, "the sandbox %q is still at something else (%s); wait until that has ended", id, old.verb)
	}
	one := &job{verb: verb, began: time.Now(), done: make(chan struct{})}
	j.byID[id] = one
	j.running.Go(func() {
		ctx, cancel := context.WithTimeout(j.base, jobLimit)
		defer cancel()
		said, err := do(ctx)
		if err != nil {
			j.log.Info("what was asked for on the front page failed", "sandboxId", id, "action", verb, "error", err)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		one.said, one.err, one.ended = said, err, time.Now()
		close(one.done)
	})
	return one, nil
}

// outcome is how a job ended that was waited for.
func (j *jobs) outcome(one *job) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return one.err
}

// forget takes what is said of a sandbox's last job away.
func (j *jobs) forget(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if one := j.byID[id]; one != nil && !one.ended.IsZero() {
		delete(j.byID, id)
	}
}

// seen is a job as it is at a moment.
type seen struct {
	verb, said string
	began      time.Time
	running    bool
	err        error
}

// look returns the jobs worth showing, by sandbox.
func (j *jobs) look() map[string]seen {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(j.byID, func(_ string, one *job) bool {
		kept := saidKept
		if one.err != nil {
			kept = problemKept
		}
		return !one.ended.IsZero() && now.Sub(one.ended) > kept
	})
	all := make(map[string]seen, len(j.byID))
	for id, one := range j.byID {
		all[id] = seen{verb: one.verb, said: one.said, began: one.began, running: one.ended.IsZero(), err: one.err}
	}
	return all
}

// close ends the jobs and waits for that, no longer than ctx.
func (j *jobs) close(ctx context.Context) error {
	j.mu.Lock()
	j.stop(lifecycle.ErrClosing)
	j.mu.Unlock()
	return daemon.Await(ctx, &j.running, "what was asked for on the front page")
}
