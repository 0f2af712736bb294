package tree

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// errOtherFileSystem says that something is mounted on a folder.
var errOtherFileSystem = errors.New("another file system")

// cursor is a position in the tree: the folders from the home down to one, all
// open. Files come sorted by folder, so going to the next is mostly free.
type cursor struct {
	t      *Tree
	at     string
	levels []level
}

type level struct {
	name    string
	fd      int // O_PATH
	release func()
}

// split cuts a path into its folder, empty for the home, and its last element.
func split(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// to goes to a folder and returns it, open until the next call. Folders that
// their owner may not use are opened up as long as the cursor is in them.
func (c *cursor) to(dir string) (fd int, err error) {
	if dir == c.at {
		return c.top(), nil
	}
	var names []string
	if dir != "" {
		names = strings.Split(dir, "/")
	}
	same := 0
	for same < len(names) && same < len(c.levels) && names[same] == c.levels[same].name {
		same++
	}
	c.pop(same)
	for _, name := range names[same:] {
		if err := c.push(name); err != nil {
			c.pop(0)
			return -1, err
		}
	}
	c.at = dir
	return c.top(), nil
}

func (c *cursor) top() int {
	if len(c.levels) == 0 {
		return c.t.root
	}
	return c.levels[len(c.levels)-1].fd
}

func (c *cursor) push(name string) error {
	fd, err := openat(c.top(), name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	next := level{name: name, fd: fd, release: func() {}}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return err //nolint:wrapcheck // an errno for the caller to look at
	}
	if st.Dev != c.t.dev {
		_ = unix.Close(fd)
		return errOtherFileSystem
	}
	if st.Mode&ownerAll != ownerAll {
		// What belongs to somebody else is left as it is, and may do all the same.
		if release, err := c.t.holds.acquire(fd, ownerAll); err == nil {
			next.release = release
		}
	}
	c.levels = append(c.levels, next)
	return nil
}

// pop leaves all folders but the first n, deepest first.
func (c *cursor) pop(n int) {
	for len(c.levels) > n {
		last := c.levels[len(c.levels)-1]
		last.release()
		_ = unix.Close(last.fd)
		c.levels = c.levels[:len(c.levels)-1]
	}
	c.at = "" // the caller says where it is if it stays below the home
}

func (c *cursor) close() { c.pop(0) }

// ownerAll are the bits by which an owner may use a folder.
const ownerAll = 0o700
