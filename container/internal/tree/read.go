package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// piece is how much of a file travels in a frame.
	piece      = 128 << 10
	maxMessage = 1 << 10
)

// Paths reads the request for files, within its bounds. It fails with
// invalid_request and payload_too_large.
func Paths(r io.Reader) ([]string, error) {
	var paths []string
	var buf []byte
	for {
		kind, payload, err := guest.ReadFrame(r, buf)
		if err != nil {
			return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the list of files is not whole").WithCause(err)
		}
		buf = payload
		switch {
		case kind == guest.FrameEnd:
			return paths, nil
		case kind != guest.FramePath:
			return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the list of files has a frame that is no path")
		case len(paths) == guest.MaxTreeReads:
			return nil, sandbox.Errorf(sandbox.CodeTooLarge, "more than %d files in a request", guest.MaxTreeReads)
		}
		path := string(payload)
		if err := guest.CheckTreePath(path); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
}

// Read sends files as guest.RouteTreeRead describes. What is wrong with one of
// them is in its frames; an error means that w cannot be written, or that ctx
// has ended. live says that OpenCode runs: its database is copied first.
func (t *Tree) Read(ctx context.Context, live bool, paths []string, w io.Writer) error {
	s := sender{w: w, buf: make([]byte, guest.FrameHeader+piece)}
	at := cursor{t: t}
	defer at.close()
	for i, path := range paths {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read files: %w", err)
		}
		s.index = uint32(i)
		if err := t.read(ctx, live, &at, path, &s); err != nil {
			return err
		}
	}
	return guest.WriteFrame(w, guest.FrameEnd, nil)
}

func (t *Tree) read(ctx context.Context, live bool, at *cursor, path string, s *sender) error {
	if isMark(path) {
		return s.file(guest.TreeGone, 0, "")
	}
	if live && path == database {
		copied, done, err := t.copyDatabase(ctx)
		if err != nil {
			return s.file(guest.TreeFailed, 0, err.Error())
		}
		defer done()
		return s.content(copied)
	}
	f, done, err := t.openFile(at, path)
	switch {
	case err == nil:
		defer done()
		return s.content(f)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return s.file(guest.TreeGone, 0, "")
	default:
		return s.file(guest.TreeFailed, 0, err.Error())
	}
}

// openFile opens a regular file, opened up if need be. What is none is ENOENT:
// it was one when it was listed.
func (t *Tree) openFile(at *cursor, path string) (f *os.File, done func(), err error) {
	dir, base := split(path)
	parent, err := at.to(dir)
	if err != nil {
		return nil, nil, err
	}
	handle, err := openat(parent, base, unix.O_PATH, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(handle) //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return nil, nil, fmt.Errorf("look at the file: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, unix.ENOENT
	}
	release := func() {}
	// By the handle, so that it is the same file; the link in /proc is the one
	// link that is followed.
	reopen := func() (int, error) {
		return retry(func() (int, error) {
			return unix.Open("/proc/self/fd/"+strconv.Itoa(handle), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
	}
	fd, err := reopen()
	if errors.Is(err, unix.EACCES) {
		const ownerRead = 0o400
		if release, err = t.holds.acquire(handle, ownerRead); err != nil {
			return nil, nil, err
		}
		fd, err = reopen()
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	f = os.NewFile(uintptr(fd), base)
	return f, func() {
		_ = f.Close()
		release()
	}, nil
}

// sender writes the frames of one file after another.
type sender struct {
	w     io.Writer
	buf   []byte
	index uint32
}

func (s *sender) file(status byte, size int64, message string) error {
	return s.frame(guest.FrameFile, status, size, message)
}

func (s *sender) frame(kind guest.Frame, status byte, size int64, message string) error {
	f := guest.FileFrame{Index: s.index, Status: status, Size: size, Message: printable.Line(message, maxMessage)}
	return guest.WriteFrame(s.w, kind, f.Append(nil))
}

// content sends an open file, at most as much as it had at first.
func (s *sender) content(f *os.File) error {
	var before, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return s.file(guest.TreeFailed, 0, err.Error())
	}
	if err := s.file(guest.TreeOK, before.Size, ""); err != nil {
		return err
	}
	var sent int64
	for sent < before.Size {
		n, err := f.Read(s.buf[guest.FrameHeader:][:min(piece, before.Size-sent)])
		if err != nil && !errors.Is(err, io.EOF) {
			return s.frame(guest.FrameDone, guest.TreeFailed, sent, err.Error())
		}
		if n == 0 {
			break
		}
		guest.PutFrameHeader(s.buf, guest.FrameData, n)
		if _, err := s.w.Write(s.buf[:guest.FrameHeader+n]); err != nil {
			return fmt.Errorf("send a file: %w", err)
		}
		sent += int64(n)
	}
	status := guest.TreeOK
	err := unix.Fstat(int(f.Fd()), &after)
	if err != nil || sent != before.Size || after.Size != before.Size || after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		status = guest.TreeChanged
	}
	return s.frame(guest.FrameDone, status, sent, "")
}
