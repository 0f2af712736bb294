package store

import (
	"path"
	"strings"
	"sync"
)

// linkedLimit is how many folders a syncer remembers. Beyond it forgets them
// all, which only costs syncs.
const linkedLimit = 10_000

// syncer makes names durable: a folder is synced after a name in it was changed.
// Those who come while a sync is under way share the next one.
type syncer struct {
	sync func(folder string) error

	mu      sync.Mutex
	running map[string]*pass
	linked  map[string]bool // folders whose own names are durable
	forgot  uint64          // how often one was forgotten
}

// pass is one sync of a folder.
type pass struct {
	done chan struct{}
	err  error // once done is closed
	next *pass // shared by those who came too late for this one
}

func newSyncer(sync func(folder string) error) *syncer {
	return &syncer{sync: sync, running: map[string]*pass{}, linked: map[string]bool{}}
}

// settle makes durable what was changed in a folder so far, and the folder's own
// name and its parents'.
func (s *syncer) settle(folder string) error {
	if err := s.once(folder); err != nil {
		return err
	}
	for ; folder != "."; folder = path.Dir(folder) {
		s.mu.Lock()
		known, before := s.linked[folder], s.forgot
		s.mu.Unlock()
		if known {
			continue
		}
		if err := s.once(path.Dir(folder)); err != nil {
			return err
		}
		s.mu.Lock()
		if len(s.linked) >= linkedLimit {
			clear(s.linked)
		}
		if s.forgot == before { // else it may be another folder by now
			s.linked[folder] = true
		}
		s.mu.Unlock()
	}
	return nil
}

// forget is to be called before a folder is made, and after it was removed.
func (s *syncer) forget(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot++
	delete(s.linked, folder)
}

// forgetBelow forgets a folder and all below it.
func (s *syncer) forgetBelow(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot++
	for name := range s.linked {
		if name == folder || strings.HasPrefix(name, folder+"/") {
			delete(s.linked, name)
		}
	}
}

// once returns after a sync of the folder that began after the call.
func (s *syncer) once(folder string) error {
	s.mu.Lock()
	current := s.running[folder]
	var mine *pass
	if current == nil {
		mine = &pass{done: make(chan struct{})}
		s.running[folder] = mine
		s.mu.Unlock()
	} else {
		shared := current.next
		if shared == nil {
			mine = &pass{done: make(chan struct{})}
			current.next = mine
		}
		s.mu.Unlock()
		if shared != nil {
			<-shared.done
			return shared.err
		}
		<-current.done
		s.mu.Lock()
		s.running[folder] = mine
		s.mu.Unlock()
	}
	mine.err = s.sync(folder)
	s.mu.Lock()
	if mine.next == nil {
		delete(s.running, folder)
	}
	close(mine.done)
	s.mu.Unlock()
	return mine.err
}
