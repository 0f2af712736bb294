package sandbox

import (
	"context"
	"sync"
)

// maxSyncs is how many syncs go on in the background at once.
const maxSyncs = 4

// afterwards runs something for sandboxes in the background: one at a time for
// each, again if it was asked for meanwhile, and maxSyncs together. It is safe
// for concurrent use.
type afterwards struct {
	run    func(ctx context.Context, id string)
	ctx    context.Context //nolint:containedctx // the lifetime of what runs in the background
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	jobs   map[string]*job
	closed bool
}

// job is what is to be done, or is being done, for one sandbox.
type job struct {
	again  bool
	cancel context.CancelFunc
	done   chan struct{}
}

func newAfterwards(run func(ctx context.Context, id string)) *afterwards {
	a := &afterwards{run: run, slots: make(chan struct{}, maxSyncs), jobs: make(map[string]*job)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// begin returns at once. After close it does nothing.
func (a *afterwards) begin(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if j, ok := a.jobs[id]; ok {
		j.again = true
		return
	}
	ctx, cancel := context.WithCancel(a.ctx)
	j := &job{cancel: cancel, done: make(chan struct{})}
	a.jobs[id] = j
	a.wg.Go(func() {
		defer close(j.done)
		defer cancel()
		for a.once(ctx, id, j) {
			continue
		}
	})
}

// once runs a job and says whether it is to be run again.
func (a *afterwards) once(ctx context.Context, id string, j *job) bool {
	select {
	case a.slots <- struct{}{}:
		a.mu.Lock()
		j.again = false
		a.mu.Unlock()
		if ctx.Err() == nil {
			a.run(ctx, id)
		}
		<-a.slots
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if j.again && ctx.Err() == nil {
		return true
	}
	if a.jobs[id] == j {
		delete(a.jobs, id)
	}
	return false
}

// drop ends what is being done for a sandbox and returns when it has ended.
func (a *afterwards) drop(ctx context.Context, id string) error {
	a.mu.Lock()
	j, ok := a.jobs[id]
	a.mu.Unlock()
	if !ok {
		return nil
	}
	j.cancel()
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close lets nothing new begin, waits until ctx ends for what there is, and then
// ends it.
func (a *afterwards) close(ctx context.Context) error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	stop := context.AfterFunc(ctx, a.cancel)
	a.wg.Wait()
	ended := !stop()
	a.cancel()
	if ended {
		return ctx.Err()
	}
	return nil
}
