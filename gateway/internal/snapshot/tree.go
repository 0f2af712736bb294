package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
)

// Type is what an entry of a tree is.
type Type byte

// What a tree can hold. A listing leaves out everything else (sockets, devices).
// The numbers are those of the manifest.
const (
	File      Type = 1
	Directory Type = 2
	Symlink   Type = 3
)

// Entry is a file, directory or symbolic link.
type Entry struct {
	// Path is relative to the tree's root, which itself is not listed: elements
	// separated by one '/' each, none empty, "." or "..". Any bytes but NUL.
	Path string
	Type Type
	Mode uint32 // permission bits, setuid, setgid and sticky: at most 07777
	Size int64  // bytes of a file, else 0
	// ModifiedNs and ChangedNs are mtime and ctime in nanoseconds since 1970,
	// negative before.
	ModifiedNs, ChangedNs int64
	Inode                 uint64
	Target                string // of a symbolic link, as it is; else ""
}

// Restored is an entry that is to be made again. ChangedNs and Inode are what
// they were, and nothing that could be set.
type Restored struct {
	Entry
	// Content is a file's content, Size bytes, every one verified; nil for the
	// others. It has to be read to its end before the next entry is asked for.
	Content io.Reader
}

// Tree is the files of a sandbox. What it says is checked, so it may be anybody.
type Tree interface {
	// List calls fn for every entry, one at a time, in any order. fn's error
	// ends it and is returned.
	List(ctx context.Context, fn func(Entry) error) error
	// Read calls fn once for every path, one at a time, in any order, with the
	// file's size now and a reader of exactly so many bytes, which is valid
	// until fn returns. A file that is gone or is no regular file any more has
	// the size -1, so that one that is forgotten is noticed. fn's error ends it
	// and is returned.
	Read(ctx context.Context, paths []string, fn func(path string, size int64, r io.Reader) error) error
	// Restore makes the entries: directories first and each before what is in
	// it, then files, links last, so nothing is ever made through a link. A
	// directory's mode and time are for after everything in it is there. An
	// error of entries' ends it and is returned; what was made until then is
	// the caller's to throw away.
	Restore(ctx context.Context, entries iter.Seq2[Restored, error]) error
}

// maxName is the greatest length in bytes of a path or of a link's target: what
// guest.MaxTreePath allows.
const maxName = 128 << 10

// list reads a listing and returns it sorted by path.
func (e *Engine) list(ctx context.Context, tree Tree) ([]Entry, error) {
	var entries []Entry
	var names, size int64
	var failed error
	err := tree.List(ctx, func(entry Entry) error {
		if failed != nil {
			return failed
		}
		failed = check(entry)
		names += int64(len(entry.Path) + len(entry.Target))
		switch {
		case failed != nil:
		case len(entries) >= e.settings.MaxEntries:
			failed = fmt.Errorf("%w: more than %d entries", ErrLimit, e.settings.MaxEntries)
		case names > e.settings.MaxNames:
			failed = fmt.Errorf("%w: their names take more than %d bytes", ErrLimit, e.settings.MaxNames)
		case entry.Size > e.settings.MaxBytes-size:
			failed = fmt.Errorf("%w: more than %d bytes", ErrLimit, e.settings.MaxBytes)
		}
		if failed != nil {
			return failed
		}
		size += entry.Size
		entries = append(entries, entry)
		return nil
	})
	if failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, fmt.Errorf("listing the sandbox's files: %w", err)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return entries, checkOrder(len(entries), func(i int) *Entry { return &entries[i] })
}

// check returns nil if an entry is possible by itself, and else an ErrTree.
func check(e Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	switch {
	case e.Type != File && e.Type != Directory && e.Type != Symlink:
		return fmt.Errorf("%w: %q is of the type %d", ErrTree, e.Path, e.Type)
	case e.Mode > 0o7777:
		return fmt.Errorf("%w: %q has the mode %o", ErrTree, e.Path, e.Mode)
	case e.Size < 0 || e.Type != File && e.Size != 0:
		return fmt.Errorf("%w: %q has the size %d", ErrTree, e.Path, e.Size)
	case (e.Type == Symlink) != (e.Target != ""), len(e.Target) > maxName, strings.Contains(e.Target, "\x00"):
		return fmt.Errorf("%w: %q cannot be a link to what it says", ErrTree, e.Path)
	}
	return nil
}

func checkPath(p string) error {
	if len(p) > maxName {
		return fmt.Errorf("%w: a path of %d bytes", ErrTree, len(p))
	}
	if strings.Contains(p, "\x00") {
		return fmt.Errorf("%w: the path %q has a NUL", ErrTree, p)
	}
	for element := range strings.SplitSeq(p, "/") {
		if element == "" || element == "." || element == ".." {
			return fmt.Errorf("%w: the path %q has the element %q", ErrTree, p, element)
		}
	}
	return nil
}

// checkOrder returns nil if entries are sorted, no two have the same path, and
// what each is in is a directory among them.
func checkOrder(count int, at func(int) *Entry) error {
	parent := ""
	for i := range count {
		path := at(i).Path
		if i > 0 && at(i-1).Path >= path {
			return fmt.Errorf("%w: %q is there twice, or out of order", ErrTree, path)
		}
		slash := strings.LastIndexByte(path, '/')
		if slash < 0 || path[:slash] == parent {
			continue
		}
		parent = path[:slash]
		low, high := 0, i // a directory sorts before what is in it
		for low < high {
			middle := (low + high) / 2
			if at(middle).Path < parent {
				low = middle + 1
			} else {
				high = middle
			}
		}
		if low == i || at(low).Path != parent || at(low).Type != Directory {
			return fmt.Errorf("%w: %q is in no directory", ErrTree, path)
		}
	}
	return nil
}
