package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// maxEntries, maxNames (the bytes of paths and links) and maxBytes bound what
	// is taken from a sandbox, also of what whoever asked for it does not count.
	maxEntries = 1_000_000
	maxNames   = 64 << 20
	maxBytes   = 1 << 40
	// smallFile is up to what size in bytes a file that changes while it is read
	// is read again; it is held in memory for that.
	smallFile = 1 << 20
	// readTries is how often.
	readTries = 3
	maxShown  = 200 // of a path in a message, in bytes
)

// tree is a sandbox's home, or a folder of it, as sandboxd lists, sends and
// writes it. It is for one call at a time.
type tree struct {
	guest *guest.Client
	under string // the folder and a slash; "" for the home
	log   *slog.Logger

	restored int64             // files
	tell     func(files int64) // how many were sent so far; may be nil
}

var _ snapshot.Tree = (*tree)(nil)

//nolint:gochecknoglobals // a constant
var treeTypes = map[string]snapshot.Type{
	guest.TreeFile: snapshot.File, guest.TreeDirectory: snapshot.Directory, guest.TreeSymlink: snapshot.Symlink,
}

// List implements snapshot.Tree.
func (t *tree) List(ctx context.Context, fn func(snapshot.Entry) error) error {
	var entries, names int64
	ctx, waiting := patient(ctx, stallAfter)
	end, err := t.guest.Tree(ctx, maxEntries+1, func(e guest.TreeEntry) error {
		waiting.wait()
		entries++
		names += int64(len(e.Path) + len(e.Target))
		switch {
		case entries > maxEntries:
			return fmt.Errorf("%w: more than %d entries", snapshot.ErrLimit, maxEntries)
		case names > maxNames:
			return fmt.Errorf("%w: their names take more than %d bytes", snapshot.ErrLimit, maxNames)
		}
		name, inside := strings.CutPrefix(e.Path, t.under)
		if !inside {
			return nil
		}
		return fn(snapshot.Entry{
			Path: name, Type: treeTypes[e.Type], Mode: e.Mode, Size: e.Size, ModifiedNs: e.ModifiedNs,
			ChangedNs: e.ChangedNs, Inode: e.Inode, Target: e.Target,
		})
	})
	if err := waiting.over(ctx, err); err != nil {
		return err
	}
	if end.Skipped > 0 {
		t.log.InfoContext(ctx, "some of a sandbox's files cannot be kept", "skipped", end.Skipped, "reasons", end.Reasons)
	}
	return nil
}

// errAgain is for a file that is to be read again.
var errAgain = errors.New("the file changed while it was read")

// Read implements snapshot.Tree. A file that changes while it is read is read
// again if it is small. One that does not stop changing is kept as it came: its
// ctime tells the next snapshot to read it again.
func (t *tree) Read(ctx context.Context, paths []string, fn func(path string, size int64, r io.Reader) error) error {
	for try := 1; len(paths) > 0; try++ {
		full := make([]string, len(paths))
		for i, p := range paths {
			full[i] = t.under + p
		}
		var again []string
		readCtx, waiting := patient(ctx, stallAfter)
		err := t.guest.ReadTree(readCtx, full, maxBytes, func(path string, size int64, r io.Reader) error {
			waiting.rest()
			defer waiting.wait()
			path = strings.TrimPrefix(path, t.under)
			err := readFile(path, size, waiting.reader(r), try == readTries, fn)
			if errors.Is(err, errAgain) {
				again = append(again, path)
				return nil
			}
			return err
		})
		if err := waiting.over(readCtx, err); err != nil {
			return err
		}
		paths = again
	}
	return nil
}

// readFile hands one file on.
func readFile(path string, size int64, r io.Reader, last bool, fn func(string, int64, io.Reader) error) error {
	if size > smallFile {
		return fn(path, size, &steady{path: path, r: r, left: size})
	}
	content, err := io.ReadAll(r) // as many bytes as promised at most
	switch {
	case errors.Is(err, guest.ErrTreeGone):
		return fn(path, -1, nil)
	case errors.Is(err, guest.ErrTreeChanged) && !last:
		return errAgain
	case err != nil && !errors.Is(err, guest.ErrTreeChanged):
		return unreadable(path, err)
	}
	return fn(path, int64(len(content)), bytes.NewReader(content))
}

// unreadable names a file that cannot be read; any other error is as it was.
func unreadable(path string, err error) error {
	if !errors.Is(err, guest.ErrTreeFailed) {
		return err
	}
	return sandbox.Errorf(sandbox.CodeGuestFailed, "the file %s in the sandbox cannot be read, so that it cannot be kept", printable.Line(path, maxShown)).WithCause(err)
}

// steady gives as many bytes of a large file as were promised, with zeros for
// what was cut off meanwhile.
type steady struct {
	path string
	r    io.Reader
	left int64
	cut  bool
}

// Read implements io.Reader.
func (s *steady) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.left)]
	n := len(p)
	if s.cut {
		clear(p)
	} else {
		var err error
		n, err = s.r.Read(p)
		switch {
		case errors.Is(err, guest.ErrTreeChanged), errors.Is(err, guest.ErrTreeGone):
			s.cut = true
		case err != nil && !errors.Is(err, io.EOF):
			return n, unreadable(s.path, err)
		case err != nil && s.left > int64(n):
			return n, io.ErrUnexpectedEOF
		}
	}
	s.left -= int64(n)
	return n, nil
}

// Restore implements snapshot.Tree.
func (t *tree) Restore(ctx context.Context, entries iter.Seq2[snapshot.Restored, error]) error {
	var sent int64
	done, err := t.guest.RestoreTree(ctx, func(yield func(guest.RestoreEntry, error) bool) {
		for e, err := range entries {
			if !yield(t.entry(e), err) {
				return
			}
			if e.Type == snapshot.File && err == nil && t.tell != nil {
				sent++
				t.tell(sent)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("writing the sandbox's files: %w", err)
	}
	t.restored += done.Files
	return nil
}

func (t *tree) entry(e snapshot.Restored) guest.RestoreEntry {
	kind := guest.TreeFile
	switch e.Type {
	case snapshot.Directory:
		kind = guest.TreeDirectory
	case snapshot.Symlink:
		kind = guest.TreeSymlink
	case snapshot.File:
	}
	return guest.RestoreEntry{
		TreeEntry: guest.TreeEntry{Path: t.under + e.Path, Type: kind, Mode: e.Mode, Size: e.Size, ModifiedNs: e.ModifiedNs, Target: e.Target},
		Content:   e.Content,
	}
}
