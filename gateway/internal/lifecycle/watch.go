package lifecycle

import (
	"context"
	"sync"
	"time"
)

// Watcher follows a sandbox through its sleep for an event stream: it is neither
// activity nor a reason to wake. A wake waits for its watchers to be there again,
// so that none of them misses what the wake was for.
type Watcher struct {
	Handle Handle // without Link and Guest: whose it is and how long it lives

	m     *Manager
	b     *box
	woken chan Visit // has room for one
	// waiting is set while the watcher is nowhere; guarded by the box's mu.
	waiting bool
}

// Visit is a run of the sandbox for a watcher to go to. Joined is to be called
// once, when it is there or cannot be.
type Visit struct {
	Handle Handle
	Joined func()
}

// Watch begins to follow a sandbox. Close ends it.
func (m *Manager) Watch(id string) (*Watcher, error) {
	b, err := m.existing(id)
	if err != nil {
		return nil, err
	}
	w := &Watcher{m: m, b: b, woken: make(chan Visit, 1), waiting: true}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == stateLost {
		return nil, lostError(id, b.lastError)
	}
	w.Handle = Handle{SandboxID: b.id, UserID: b.rec.UserID, Incarnation: b.rec.Incarnation, Life: b.life, release: func() {}}
	b.watchers[w] = struct{}{}
	return w, nil
}

// Close ends following.
func (w *Watcher) Close() {
	w.b.mu.Lock()
	delete(w.b.watchers, w)
	w.b.mu.Unlock()
	select {
	case v := <-w.woken:
		v.Joined()
	default:
	}
}

// Asleep says whether the sandbox sleeps at this moment.
func (w *Watcher) Asleep() bool {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.b.asleepLocked()
}

// asleepLocked says whether the gateway answers for the sandbox what does not wake
// it: while it sleeps, and until the first request after a restart of the gateway.
func (b *box) asleepLocked() bool {
	return b.state.asleep() || b.state == stateRunning && !b.attached
}

// Next waits until the sandbox runs. Ending of ctx or of the sandbox ends the wait.
func (w *Watcher) Next(ctx context.Context) (Visit, error) {
	w.wait(true)
	defer w.wait(false)
	select {
	case v := <-w.woken: // somebody waits for this one
		return v, nil
	default:
	}
	retry := time.NewTicker(watchEvery)
	defer retry.Stop()
	for {
		w.b.mu.Lock()
		h, ok := w.m.handleLocked(w.b)
		w.b.mu.Unlock()
		if ok {
			return Visit{Handle: h, Joined: func() {}}, nil
		}
		select {
		case v := <-w.woken:
			return v, nil
		case <-retry.C: // it may have been adopted, or have been running all the time
		case <-ctx.Done():
			return Visit{}, context.Cause(ctx)
		case <-w.Handle.Life.Done():
			return Visit{}, context.Cause(w.Handle.Life) //nolint:contextcheck // why the sandbox ended
		}
	}
}

func (w *Watcher) wait(waiting bool) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	w.waiting = waiting
}

const (
	// watchEvery is how often a watcher looks by itself whether the sandbox runs.
	watchEvery = time.Second
	// joinTimeout is how long a wake waits for its watchers.
	joinTimeout = 2 * time.Second
)

// callWatchers has those who follow the sandbox come to its new run, and waits
// for them for a moment. The caller is about to let requests in.
func (m *Manager) callWatchers(ctx context.Context, b *box) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	b.mu.Lock()
	h := m.newHandle(b)
	var called []chan struct{}
	for w := range b.watchers {
		if !w.waiting {
			continue // it is there: the sandbox was only frozen
		}
		joined := make(chan struct{})
		select {
		case w.woken <- Visit{Handle: h, Joined: sync.OnceFunc(func() { close(joined) })}:
			called = append(called, joined)
		default: // it has not come to the last run yet
		}
	}
	b.mu.Unlock()
	for _, joined := range called {
		select {
		case <-joined:
		case <-ctx.Done():
			return
		}
	}
}

// Health says what OpenCode's health is as far as the gateway answers for it: the
// version that ran last, of a sandbox that sleeps.
func (m *Manager) Health(id string) (version string, asleep bool, err error) {
	b, err := m.existing(id)
	if err != nil {
		return "", false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec.Version, b.asleepLocked(), nil
}

// Peek returns the sandbox if it runs, and does nothing else: no wake, no activity.
func (m *Manager) Peek(id string) (Handle, bool, error) {
	b, err := m.existing(id)
	if err != nil {
		return Handle{}, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h, ok := m.handleLocked(b)
	return h, ok, nil
}

// Whose says of a sandbox in any state what it is: the handle has no link and no
// guest, and Life ends with the incarnation.
func (m *Manager) Whose(id string) (Handle, error) {
	b, err := m.existing(id)
	if err != nil {
		return Handle{}, err
	}
	rec := b.record()
	return Handle{SandboxID: b.id, UserID: rec.UserID, Incarnation: rec.Incarnation, Directory: rec.Directory, Life: b.life, release: func() {}}, nil
}

// Nudge notes that something came for a sandbox on a connection that is there
// already, such as a terminal's, and wakes it for that if it is frozen.
func (m *Manager) Nudge(h Handle) {
	b := m.find(h.SandboxID)
	if b == nil || h.Life.Err() != nil {
		return
	}
	b.mu.Lock()
	now := time.Now().UTC()
	b.lastActive, b.lastRequest = now, now
	b.soilLocked()
	frozen := (b.state == stateFrozen || b.state == stateSettling) && !b.nudged
	b.nudged = b.nudged || frozen
	b.mu.Unlock()
	if !frozen {
		return
	}
	m.work.Go(func() {
		defer func() {
			b.mu.Lock()
			b.nudged = false
			b.mu.Unlock()
		}()
		used, err := m.Use(m.base, h.SandboxID, Looking)
		if err != nil {
			m.log.Warn("a frozen sandbox could not be woken", "sandboxId", h.SandboxID, "error", err)
			return
		}
		used.Release()
	})
}
