package task

import (
	"context"
	"errors"
	"time"
)

// looksPerLease is how often tasks are looked for that nobody runs, in the time of
// a lease.
const looksPerLease = 6

// Recover takes up the tasks of processes that are gone, until ctx ends.
func (s *Service) Recover(ctx context.Context) {
	tick := time.NewTicker(s.settings.Lease / looksPerLease)
	defer tick.Stop()
	for {
		for s.mayTakeUp(time.Now()) {
			if err := s.takeUp(ctx); err != nil {
				if !errors.Is(err, ErrNotFound) && ctx.Err() == nil {
					s.Log.WarnContext(ctx, "tasks cannot be taken up; it is tried again", "error", err)
				}
				break
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// mayTakeUp tells whether this process has room for another task, and holds those
// that it has: after the database was away, or the process slept, its own leases
// are over too, and are renewed before anything else is claimed.
func (s *Service) mayTakeUp(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.jobs) >= s.settings.Concurrency {
		return false
	}
	for _, j := range s.jobs {
		if renewed := j.renewed.Load(); renewed != nil && now.Sub(*renewed) > s.settings.Lease/2 {
			return false
		}
	}
	return true
}

// takeUp claims one task and runs it.
func (s *Service) takeUp(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	now := time.Now()
	t, err := s.Tasks.Claim(call, NewID("api-"), now, now.Add(s.settings.Lease))
	if err != nil {
		return err
	}
	s.Log.InfoContext(ctx, "a task is taken up", "taskId", t.ID, "attempt", t.Attempts)
	j := &job{task: t, gitURL: t.GitURL, done: make(chan struct{})}
	if backend, err := s.Backends.Backend(t.Provider); err == nil {
		j.backend = backend
	}
	if err := s.admit(j); err != nil {
		return errors.Join(err, s.Tasks.Renew(call, j.lease(), now.Add(-time.Second)))
	}
	s.start(ctx, j)
	return nil
}
