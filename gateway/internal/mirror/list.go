package mirror

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/printable"
)

// reasonLimit bounds what is logged of a reason, in bytes.
const reasonLimit = 300

// skips counts what cannot be in a mirror or come out of it, for one line in the
// log.
type skips struct {
	count int64
	first string // one reason, as an example
}

func (s *skips) add(reason error) {
	if s.count == 0 {
		s.first = printable.Line(reason.Error(), reasonLimit)
	}
	s.count++
}

// listing is what a mirror is to be made of.
type listing struct {
	files   []entry // sorted by path, with what is hidden
	skipped int64
	unfit   skips // those of skipped whose names cannot be keys
	bytes   int64 // of the files that are not hidden
	names   int64 // bytes of their paths
	entries int   // that the tree has listed
}

// list reads a listing. kept are the objects that were restored and are excluded.
func (m *Mirror) list(ctx context.Context, ref snapshot.Ref, tree snapshot.Tree, kept map[string]entry) (*listing, error) {
	l := &listing{}
	var failed error
	err := tree.List(ctx, func(e snapshot.Entry) error {
		if failed == nil {
			failed = m.add(l, ref, e, kept)
		}
		return failed
	})
	if failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, fmt.Errorf("listing the sandbox's files: %w", err)
	}
	slices.SortFunc(l.files, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	for i := 1; i < len(l.files); i++ {
		if l.files[i-1].path == l.files[i].path {
			return nil, fmt.Errorf("%w: %q is there twice", snapshot.ErrTree, l.files[i].path)
		}
	}
	return l, nil
}

// add takes one entry of a tree into a listing.
func (m *Mirror) add(l *listing, ref snapshot.Ref, e snapshot.Entry, kept map[string]entry) error {
	l.entries++
	if l.entries > m.settings.MaxEntries {
		return fmt.Errorf("%w: more than %d entries", snapshot.ErrLimit, m.settings.MaxEntries)
	}
	if err := checkEntry(e); err != nil {
		return err
	}
	if e.Type == snapshot.Directory {
		return nil
	}
	if m.excluded(e.Path) {
		l.skipped++
		if was, ok := kept[e.Path]; ok && e.Type == snapshot.File {
			was.hidden = true
			l.files = append(l.files, was)
		}
		return nil
	}
	if e.Type == snapshot.Symlink {
		l.skipped++
		return nil
	}
	if err := store.CheckKey(prefixOf(ref.ID) + e.Path); err != nil {
		l.skipped++
		l.unfit.add(err)
		return nil
	}
	l.names += int64(len(e.Path))
	l.bytes += e.Size
	if l.names > m.settings.MaxNames {
		return fmt.Errorf("%w: their names take more than %d bytes", snapshot.ErrLimit, m.settings.MaxNames)
	}
	if l.bytes > m.settings.MaxBytes {
		return m.tooMuch()
	}
	l.files = append(l.files, entry{path: e.Path, size: e.Size, modified: e.ModifiedNs, changed: e.ChangedNs, inode: e.Inode})
	return nil
}

func (m *Mirror) tooMuch() error {
	return fmt.Errorf("%w: more than %d bytes", snapshot.ErrLimit, m.settings.MaxBytes)
}

// maxSize is more than any file has, and so little that sums do not overflow.
const maxSize = 1 << 60

// checkEntry returns nil if an entry is possible by itself, and else an ErrTree.
func checkEntry(e snapshot.Entry) error {
	switch {
	case e.Type != snapshot.File && e.Type != snapshot.Directory && e.Type != snapshot.Symlink:
		return fmt.Errorf("%w: %q is of the type %d", snapshot.ErrTree, e.Path, e.Type)
	case e.Size < 0 || e.Size > maxSize || e.Type != snapshot.File && e.Size != 0:
		return fmt.Errorf("%w: %q has the size %d", snapshot.ErrTree, e.Path, e.Size)
	case strings.Contains(e.Path, "\x00"):
		return fmt.Errorf("%w: the path %q has a NUL", snapshot.ErrTree, e.Path)
	}
	for element := range strings.SplitSeq(e.Path, "/") {
		if element == "" || element == "." || element == ".." {
			return fmt.Errorf("%w: the path %q has the element %q", snapshot.ErrTree, e.Path, element)
		}
	}
	return nil
}

// excluded tells whether an element of a path is one of the excluded names.
func (m *Mirror) excluded(path string) bool {
	for element := range strings.SplitSeq(path, "/") {
		if m.exclude[element] {
			return true
		}
	}
	return false
}
