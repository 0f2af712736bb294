package task

import "sync"

// bells tell readers of this process that something happened to a task. Who
// misses a ring looks again after a while: the database has the truth, and other
// processes write to it too.
type bells struct {
	mu  sync.Mutex
	all map[string]map[chan struct{}]bool // by task
}

// listen returns a channel that holds one ring, and what ends the listening.
func (b *bells) listen(taskID string) (heard <-chan struct{}, leave func()) {
	bell := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil {
		b.all = map[string]map[chan struct{}]bool{}
	}
	if b.all[taskID] == nil {
		b.all[taskID] = map[chan struct{}]bool{}
	}
	b.all[taskID][bell] = true
	return bell, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.all[taskID], bell)
		if len(b.all[taskID]) == 0 {
			delete(b.all, taskID)
		}
	}
}

// ring wakes whoever listens.
func (b *bells) ring(taskID string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for bell := range b.all[taskID] {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}
