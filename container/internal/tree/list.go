package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/shared/guest"
)

// Why an entry is skipped.
const (
	skipSocket     = "socket"
	skipDevice     = "device"
	skipFIFO       = "fifo"
	skipDeep       = "too deep"
	skipLong       = "long path"
	skipMount      = "other file system"
	skipUnreadable = "unreadable"
)

// batch is how many names of a folder are read at once.
const batch = 256

// List calls emit for everything in the home that a snapshot holds, a folder
// before what is in it, else in no order; an error of emit ends it and is
// returned as it is. live says that OpenCode runs, so that its database is one
// entry. Folders that may not be read are opened up meanwhile. Memory is a few
// kilobytes for each level of folders, however many entries there are. What
// appears or goes meanwhile may be there or not.
func (t *Tree) List(ctx context.Context, live bool, emit func(*guest.TreeEntry) error) (guest.TreeEnd, error) {
	l := lister{t: t, ctx: ctx, live: live, emit: emit, end: guest.TreeEnd{End: true, Reasons: make(map[string]int64)}}
	fd, err := openat(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return l.end, fmt.Errorf("list the home: %w", err)
	}
	err = l.folder(fd, "", 1)
	return l.end, err
}

type lister struct {
	t    *Tree
	ctx  context.Context //nolint:containedctx // of the one listing that this is
	live bool
	emit func(*guest.TreeEntry) error
	end  guest.TreeEnd
	link []byte
}

func (l *lister) skip(reason string) {
	l.end.Skipped++
	l.end.Reasons[reason]++
}

// folder lists an open folder, which it closes. depth is that of what is in it.
func (l *lister) folder(fd int, path string, depth int) error {
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	if path != "" {
		path += "/"
	}
	for {
		if err := l.ctx.Err(); err != nil {
			return fmt.Errorf("list: %w", err)
		}
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			full := path + name
			if excluded(full) || (l.live && full == databaseLog) {
				continue
			}
			if err := l.entry(fd, name, full, depth); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ENOENT):
			return nil // at its end, or removed
		case err != nil:
			return fmt.Errorf("list a folder: %w", err)
		}
	}
}

func (l *lister) entry(dir int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := l.t.holds.stat(dir, name, &st); err != nil {
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil // gone since
		case errors.Is(err, unix.EACCES):
			l.skip(skipUnreadable)
			return nil
		}
		return fmt.Errorf("look at an entry: %w", err)
	}
	e := guest.TreeEntry{
		Path: path, Mode: st.Mode & 0o7777,
		ModifiedNs: nanoseconds(st.Mtim), ChangedNs: nanoseconds(st.Ctim), Inode: st.Ino,
	}
	kind := st.Mode & unix.S_IFMT
	switch reason := cannot(kind, depth, path); {
	case reason != "":
		l.skip(reason)
		return nil
	case kind == unix.S_IFREG:
		e.Type, e.Size = guest.TreeFile, st.Size
		if l.live && path == database {
			l.database(dir, &e)
		}
	case kind == unix.S_IFLNK:
		e.Type = guest.TreeSymlink
		if l.link == nil {
			l.link = make([]byte, unix.PathMax)
		}
		n, err := unix.Readlinkat(dir, name, l.link)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil // gone, or replaced
		}
		if err != nil {
			return fmt.Errorf("read a link: %w", err)
		}
		e.Target = string(l.link[:n])
	case st.Dev != l.t.dev:
		l.skip(skipMount)
		return nil
	default:
		e.Type = guest.TreeDirectory
		return l.directory(dir, name, &e, depth)
	}
	return l.give(&e)
}

func (l *lister) give(e *guest.TreeEntry) error {
	l.end.Entries++
	return l.emit(e)
}

// cannot says why an entry is not listed, if so.
func cannot(kind uint32, depth int, path string) string {
	switch kind {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR:
	case unix.S_IFSOCK:
		return skipSocket
	case unix.S_IFIFO:
		return skipFIFO
	default:
		return skipDevice
	}
	switch {
	case depth > guest.MaxTreeDepth:
		return skipDeep
	case len(path) > guest.MaxTreePath:
		return skipLong
	default:
		return ""
	}
}

// directory gives a folder and what is in it.
func (l *lister) directory(parent int, name string, e *guest.TreeEntry, depth int) error {
	fd, release, err := l.t.openFolder(parent, name, e.Mode)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // gone, or replaced
	}
	if err := l.give(e); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
			release()
		}
		return err
	}
	switch {
	case errors.Is(err, errOtherFileSystem):
		l.skip(skipMount)
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		l.skip(skipUnreadable)
		return nil
	case err != nil:
		return fmt.Errorf("open a folder: %w", err)
	}
	defer release()
	return l.folder(fd, e.Path, depth+1)
}

// openFolder opens a folder of a known mode for reading, opened up if need be.
func (t *Tree) openFolder(parent int, name string, mode uint32) (fd int, release func(), err error) {
	const needed = 0o500
	release = func() {}
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	if mode&needed == needed {
		fd, err = openat(parent, name, flags, 0)
		return t.checked(fd, release, err)
	}
	path, err := openat(parent, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, nil, err
	}
	defer unix.Close(path) //nolint:errcheck // nothing was written
	if held, err := t.holds.acquire(path, ownerAll); err == nil {
		release = held
	}
	fd, err = openat(path, ".", flags, 0)
	return t.checked(fd, release, err)
}

func (t *Tree) checked(fd int, release func(), err error) (int, func(), error) {
	if err != nil {
		release()
		return -1, nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Dev != t.dev {
		err = errOtherFileSystem
	}
	if err != nil {
		_ = unix.Close(fd)
		release()
		return -1, nil, err
	}
	return fd, release, nil
}

// database marks the entry, with the log's times if they are later: a commit
// touches the log alone.
func (l *lister) database(dir int, e *guest.TreeEntry) {
	e.Database = true
	_, name := split(databaseLog)
	var st unix.Stat_t
	if l.t.holds.stat(dir, name, &st) == nil {
		e.ModifiedNs = max(e.ModifiedNs, nanoseconds(st.Mtim))
		e.ChangedNs = max(e.ChangedNs, nanoseconds(st.Ctim))
	}
}
