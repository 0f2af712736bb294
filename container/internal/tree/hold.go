package tree

import (
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// identity is which file it is, whatever its name.
type identity struct{ dev, ino uint64 }

// holds are the files and folders that are opened up (chmod) for a while. They
// are known in one place, so that nobody takes the mode of meanwhile for the
// real one and two who open up the same thing do not put back each other's.
type holds struct {
	mu   sync.RWMutex
	held map[identity]*hold
}

type hold struct {
	fd       int // O_PATH, its own
	mode     uint32
	opened   uint32
	refCount int
}

// acquire gives the owner of what fd (O_PATH will do) is open on the bits of
// want. The caller calls release when it has done.
func (h *holds) acquire(fd int, want uint32) (release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at what to open up: %w", err)
	}
	id := identity{st.Dev, st.Ino}
	one := h.held[id]
	if one == nil {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("keep what to open up: %w", err)
		}
		one = &hold{fd: own, mode: st.Mode & 0o7777}
		one.opened = one.mode
	}
	if opened := one.opened | want; opened != one.opened || st.Mode&want != want {
		if err := chmod(one.fd, opened); err != nil {
			if one.refCount == 0 {
				_ = unix.Close(one.fd)
			}
			return nil, err
		}
		one.opened = opened
	}
	h.held[id] = one
	one.refCount++
	return sync.OnceFunc(func() { h.release(id, one) }), nil
}

func (h *holds) release(id identity, one *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one.refCount--
	if one.refCount > 0 {
		return
	}
	delete(h.held, id)
	var st unix.Stat_t
	// Whoever changed the mode meanwhile has the last word.
	if unix.Fstat(one.fd, &st) == nil && st.Mode&0o7777 == one.opened {
		_ = chmod(one.fd, one.mode) // what was allowed a moment ago
	}
	_ = unix.Close(one.fd)
}

// stat looks at a name without following it; a mode that is opened up is given
// as it was.
func (h *holds) stat(dir int, name string, st *unix.Stat_t) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err //nolint:wrapcheck // an errno for the caller to look at
	}
	if len(h.held) == 0 {
		return nil
	}
	one := h.held[identity{st.Dev, st.Ino}]
	if one != nil && st.Mode&0o7777 == one.opened {
		st.Mode = st.Mode&^0o7777 | one.mode
	}
	return nil
}

// chmod changes what fd is open on and nothing else: by name, something else
// could be there by now, and fchmod(2) does not take O_PATH.
func chmod(fd int, mode uint32) error {
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode); err != nil {
		return fmt.Errorf("change a mode: %w", err)
	}
	return nil
}
