package snapshot

import (
	"slices"
	"strings"
)

// A collapse is a snapshot that has next to nothing of what the one before it
// had. A disk that was lost or a removal by mistake looks like that, and a few
// more snapshots would push the last good one out. So that one stays.
const (
	// someFiles is how many files a home must have had to be something, and must
	// no longer have to be nothing. A clone or a generated project has more. A
	// home with fewer is soon made again, and one that still has as many after a
	// removal (of dependencies, or of what was built) was cleaned up.
	someFiles = 20
	// littleShare is the part, one of so many, that is too much to be nothing, of
	// the files or of their bytes: files that were packed into one archive are
	// still there in bytes, and without its few large files a home has the others.
	littleShare = 20
)

// weight is what a tree has of its owner's.
type weight struct {
	Files int64 `json:"files"` // regular ones
	Bytes int64 `json:"bytes"` // of their content
}

// weigh leaves out what is hidden at the top of the tree, such as ".local" and
// ".config": tools write it by themselves into every home, OpenCode's state of
// several hundred kilobytes above all, so that no home would ever be nothing.
func weigh(entries []entry) weight {
	var w weight
	for i := range entries {
		if entries[i].Type == File && !strings.HasPrefix(entries[i].Path, ".") {
			w.Files++
			w.Bytes += entries[i].Size
		}
	}
	return w
}

func (w weight) isLittleOf(whole weight) bool {
	return w.Files*littleShare < whole.Files && w.Bytes*littleShare < whole.Bytes
}

// collapsed reports whether a tree of one weight has become next to nothing.
func collapsed(before, after weight) bool {
	return before.Files >= someFiles && after.Files < someFiles && after.isLittleOf(before)
}

// hold has the newest snapshot, which has the given weight, stay as the last one
// before a collapse. One that stays from an earlier collapse gives way: its owner
// has been told of that one, and worked on. But if there has never been more than
// little of it since, it is what was lost, and stays instead.
func (p *pointer) hold(newest weight) {
	held := slices.IndexFunc(p.Snapshots, func(k kept) bool { return k.BeforeCollapse != nil })
	if held >= 0 {
		if newest.isLittleOf(*p.Snapshots[held].BeforeCollapse) {
			return
		}
		p.Snapshots[held].BeforeCollapse = nil
	}
	p.Snapshots[0].BeforeCollapse = &newest
}

// add puts a snapshot first and drops those beyond the first keep, but for the
// one that a collapse holds.
func (p *pointer) add(k kept, keep int) {
	all := append([]kept{k}, p.Snapshots...)
	p.Snapshots = all[:min(len(all), keep)]
	for _, old := range all[len(p.Snapshots):] {
		if old.BeforeCollapse != nil {
			p.Snapshots = append(p.Snapshots, old)
		}
	}
}
