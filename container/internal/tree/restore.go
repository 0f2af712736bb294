package tree

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Restore writes the entries that r brings, as guest.RouteTreeRestore describes.
// What is at a path is replaced, never followed; a folder that is there is kept
// with what is in it and gets the mode and time of its entry, and one that is
// not empty gives way to nothing else (conflict). Folders get their modes and
// times when all is written. setgid is what the kernel leaves of it. An entry at
// the place of the disk's mark is counted and not written. When Restore returns nil,
// all of it outlives a power cut: the gateway records then that the disk is what there
// is to the sandbox.
func (t *Tree) Restore(ctx context.Context, r io.Reader) (guest.Restored, error) {
	w := writer{t: t, r: r, at: cursor{t: t}, buf: make([]byte, guest.MaxFrame)}
	defer w.at.close()
	for {
		if err := ctx.Err(); err != nil {
			return w.done, fmt.Errorf("restore: %w", err)
		}
		kind, payload, err := guest.ReadFrame(r, w.buf)
		switch {
		case err != nil:
			return w.done, broken(err)
		case kind == guest.FrameEnd:
			return w.done, w.finish()
		case kind != guest.FrameEntry:
			return w.done, sandbox.Errorf(sandbox.CodeInvalidRequest, "the restore has a frame where an entry should be")
		}
		e, err := guest.ParseTreeEntry(payload)
		if err != nil {
			return w.done, err
		}
		w.count(&e)
		if err := w.entry(&e); err != nil {
			return w.done, failure("restore "+strconv.QuoteToASCII(shown(e.Path)), err)
		}
	}
}

func broken(err error) error {
	return sandbox.Errorf(sandbox.CodeInvalidRequest, "the restore is not whole").WithCause(err)
}

// shown is the end of a path, for a message.
func shown(path string) string {
	const most = 80
	return path[max(0, len(path)-most):]
}

type writer struct {
	t       *Tree
	r       io.Reader
	at      cursor
	buf     []byte
	folders []folder // in the order in which they came
	done    guest.Restored
}

// folder is what a folder gets at the end.
type folder struct {
	path     string
	mode     uint32
	modified int64
}

func (w *writer) count(e *guest.TreeEntry) {
	switch e.Type {
	case guest.TreeDirectory:
		w.done.Directories++
	case guest.TreeSymlink:
		w.done.Symlinks++
	default:
		w.done.Files++
		w.done.Bytes += e.Size
	}
}

func (w *writer) entry(e *guest.TreeEntry) error {
	if isMark(e.Path) {
		return w.drop(e)
	}
	dir, base := split(e.Path)
	parent, err := w.at.to(dir)
	if err != nil {
		return err
	}
	switch e.Type {
	case guest.TreeDirectory:
		w.folders = append(w.folders, folder{e.Path, e.Mode, e.ModifiedNs})
		return w.mkdir(parent, base)
	case guest.TreeSymlink:
		return w.symlink(parent, base, e)
	default:
		return w.file(parent, base, e)
	}
}

func (w *writer) mkdir(parent int, base string) error {
	err := unix.Mkdirat(parent, base, ownerAll)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(parent, base, 0); err != nil {
		return err
	}
	return unix.Mkdirat(parent, base, ownerAll)
}

func (w *writer) symlink(parent int, base string, e *guest.TreeEntry) error {
	name := base
	err := unix.Symlinkat(e.Target, parent, name)
	if errors.Is(err, unix.EEXIST) {
		name = temporary()
		err = unix.Symlinkat(e.Target, parent, name)
	}
	if err != nil {
		return err
	}
	return place(parent, name, base, e.ModifiedNs)
}

func (w *writer) file(parent int, base string, e *guest.TreeEntry) error {
	const flags, mode = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, 0o600
	name := base
	fd, err := openat(parent, name, flags, mode)
	if errors.Is(err, unix.EEXIST) {
		name = temporary()
		fd, err = openat(parent, name, flags, mode)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	err = w.content(f, e.Size)
	if err == nil {
		// After the content: a write takes setuid and setgid away.
		err = unix.Fchmod(fd, e.Mode)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = unix.Unlinkat(parent, name, 0)
		return err
	}
	return place(parent, name, base, e.ModifiedNs)
}

// hole is how long a run of zeros is not written, in bytes.
const hole = 32 << 10

// content fills a new file with the frames that follow.
func (w *writer) content(f *os.File, size int64) error {
	var zeros [hole]byte
	var offset, written int64
	for offset < size {
		payload, err := w.data(size - offset)
		if err != nil {
			return err
		}
		for len(payload) > 0 {
			part := payload[:min(hole, len(payload))]
			if len(part) < hole || !bytes.Equal(part, zeros[:]) {
				if _, err := f.WriteAt(part, offset); err != nil {
					return fmt.Errorf("write: %w", err)
				}
				written = offset + int64(len(part))
			}
			offset += int64(len(part))
			payload = payload[len(part):]
		}
	}
	if written < size {
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// data reads the next frame of a file of which left bytes are to come.
func (w *writer) data(left int64) ([]byte, error) {
	kind, payload, err := guest.ReadFrame(w.r, w.buf)
	if err != nil {
		return nil, broken(err)
	}
	if kind != guest.FrameData || len(payload) == 0 || int64(len(payload)) > left {
		return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the restore has other data than a file's size says")
	}
	return payload, nil
}

// drop reads an entry to its end and writes nothing.
func (w *writer) drop(e *guest.TreeEntry) error {
	for left := e.Size; left > 0; {
		payload, err := w.data(left)
		if err != nil {
			return err
		}
		left -= int64(len(payload))
	}
	return nil
}

func temporary() string { return ".agentpod-restore-" + rand.Text() }

// place gives what is at name its time and then the name base.
func place(parent int, name, base string, modified int64) error {
	err := touch(parent, name, modified)
	if err == nil && name != base {
		err = unix.Renameat(parent, name, parent, base)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
			// A folder gives way if it is empty.
			if err = unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); err == nil {
				err = unix.Renameat(parent, name, parent, base)
			}
		}
	}
	if err != nil {
		_ = unix.Unlinkat(parent, name, 0)
	}
	return err
}

// touch sets mtime and leaves atime; a link's own, not its target's.
func touch(parent int, name string, modified int64) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, timespec(modified)}
	return unix.UtimesNanoAt(parent, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// finish gives the folders their modes and times, what came last first: that is
// inside what came before. Then it makes everything durable, once for all, as a sync
// for each of thousands of files would take minutes.
func (w *writer) finish() error {
	for _, f := range slices.Backward(w.folders) {
		if err := w.finishFolder(f); err != nil {
			return failure("finish the folder "+strconv.QuoteToASCII(shown(f.path)), err)
		}
	}
	if err := w.t.sync(w.t.root); err != nil {
		return failure("bring the restore to the disk", err)
	}
	return nil
}

func (w *writer) finishFolder(f folder) error {
	dir, base := split(f.path)
	parent, err := w.at.to(dir)
	if err != nil {
		return err
	}
	fd, err := openat(parent, base, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := chmod(fd, f.mode); err != nil {
		return err
	}
	return touch(parent, base, f.modified)
}
