package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
)

const (
	// A batch is what is sent between two writes of the index: at least so many
	// files or so many bytes, and at least a share of all.
	batchFiles = 2048
	batchBytes = 256 << 20
	batchShare = 16
)

// Sync makes workspaces/ID/ equal to the workspace that a tree is rooted at.
// Files that look unchanged are neither read nor sent; if all are, nothing is
// written. What is not in the workspace is deleted if it is the gateway's own;
// a foreign object in the place of a file is overwritten, and then it is. A call
// that failed can be repeated, and what it had done is known then.
//
// Besides the errors of the store and of the tree: snapshot.ErrTree,
// snapshot.ErrLimit, snapshot.ErrSuperseded, ErrConflict.
func (m *Mirror) Sync(ctx context.Context, ref snapshot.Ref, tree snapshot.Tree) (Result, error) {
	var result Result
	err := m.alone(ctx, ref, "syncing", func(ctx context.Context) (err error) {
		result, err = m.sync(ctx, ref, tree)
		return err
	})
	if err != nil {
		return Result{}, err
	}
	return result, nil
}

func (m *Mirror) sync(ctx context.Context, ref snapshot.Ref, tree snapshot.Tree) (Result, error) {
	at, err := m.claim(ctx, ref)
	if err != nil {
		return Result{}, err
	}
	started := m.now()
	listed, err := m.list(ctx, ref, tree, m.kept(at))
	if err != nil {
		return Result{}, err
	}
	p := follow(at.entries, listed.files, started.Add(-m.settings.Margin).UnixNano())
	last := Result{Files: at.result.Files, Skipped: at.result.Skipped, Bytes: at.result.Bytes}
	if p.same && !at.stale && last == p.result(listed.skipped) {
		return last, nil
	}
	calls, end := outlast(ctx)
	defer end()
	s := &syncing{mirror: m, ref: ref, tree: tree, calls: calls, at: at, plan: p, bytes: listed.bytes, unfit: listed.unfit}
	if err := s.run(ctx); err != nil {
		return Result{}, err
	}
	if s.unfit.count > 0 {
		m.settings.Log.WarnContext(ctx, "files are not in the mirror, because the store cannot hold their names",
			"sandboxId", ref.ID, "count", s.unfit.count, "first", s.unfit.first)
	}
	result := p.result(listed.skipped + s.unfit.count - listed.unfit.count)
	at.entries, at.result = p.next, result
	if err := m.writeIndex(ctx, ref, at); err != nil {
		return Result{}, err
	}
	result.Sent, result.Deleted = s.sent.Load(), int(s.deleted.Load())
	return result, nil
}

// kept returns the entries that were restored and are excluded.
func (m *Mirror) kept(at *index) map[string]entry {
	kept := map[string]entry{}
	for i := range at.entries {
		if at.entries[i].restored && m.excluded(at.entries[i].path) {
			kept[at.entries[i].path] = at.entries[i]
		}
	}
	return kept
}

// plan is what is to be done.
type plan struct {
	next   []entry // the index as it will be
	sends  []send
	doomed []entry // the gateway's own, and not in the workspace
	same   bool    // next is what the index was before
}

// send is a file that is to be sent.
type send struct {
	at        int  // in next
	unsettled bool // it may change again without a sign of that
	was       *entry
}

// follow compares a listing with the index. Files that were changed at trusted or
// later may be changed again without a sign of it. It uses listed up.
func follow(old, listed []entry, trusted int64) *plan {
	p := &plan{next: listed, same: true}
	o := 0
	for i := range listed {
		now := &listed[i]
		for ; o < len(old) && old[o].path < now.path; o++ {
			p.doomed = append(p.doomed, old[o])
		}
		var was *entry
		if o < len(old) && old[o].path == now.path {
			was = &old[o]
			o++
		}
		unsettled := now.changed >= trusted
		switch {
		case now.hidden: // it is as it was
		case was == nil || was.dirty || was.size != now.size || was.modified != now.modified,
			!was.restored && (was.changed != now.changed || was.inode != now.inode):
			now.dirty = true
			p.sends = append(p.sends, send{i, unsettled, was})
		case was.restored && unsettled: // it is looked at once more
			*now = *was
		default:
			now.etag = was.etag
			p.same = p.same && !was.restored
		}
	}
	p.doomed = append(p.doomed, old[o:]...)
	p.same = p.same && len(p.sends) == 0 && len(p.doomed) == 0
	return p
}

// result counts what is in next.
func (p *plan) result(skipped int64) Result {
	r := Result{Skipped: skipped}
	for i := range p.next {
		if !p.next[i].hidden {
			r.Files++
			r.Bytes += p.next[i].size
		}
	}
	return r
}

// grace is how long what was begun at the store may take to end once a sync is
// to end.
const grace = 20 * time.Second

// outlast returns the context for puts and deletes: a request that is broken off
// may still have its effect, and that later than what comes next, such as a
// delete of the whole mirror. So what was begun is awaited, but not for ever.
func outlast(ctx context.Context) (context.Context, func()) {
	calls, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(grace, func() { cancel(context.Cause(ctx)) })
	})
	return calls, func() {
		stop()
		cancel(nil)
	}
}

// syncing carries a plan out.
type syncing struct {
	mirror *Mirror
	ref    snapshot.Ref
	tree   snapshot.Tree
	calls  context.Context //nolint:containedctx // for puts and deletes; it lives as long as one sync
	at     *index
	plan   *plan

	bytes   int64 // of all files, as far as is known
	sent    atomic.Int64
	deleted atomic.Int64
	mu      sync.Mutex // guards unfit
	unfit   skips
}

func (s *syncing) run(ctx context.Context) error {
	p := s.plan
	if len(p.sends) > 0 {
		// From here on all that is going to be sent is the gateway's own, so
		// whatever of it gets there can be deleted later.
		s.at.entries = slices.Concat(p.next, p.doomed)
		slices.SortFunc(s.at.entries, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
		if err := s.mirror.writeIndex(ctx, s.ref, s.at); err != nil {
			return err
		}
	}
	if err := s.remove(ctx, p.doomed); err != nil {
		return err
	}
	var size int64
	for _, todo := range p.sends {
		size += p.next[todo.at].size
	}
	files, bytes := max(batchFiles, len(p.sends)/batchShare), max(batchBytes, size/batchShare)
	for rest := p.sends; len(rest) > 0; {
		n := 0
		for size := int64(0); n < len(rest) && n < files && size < bytes; n++ {
			size += p.next[rest[n].at].size
		}
		if err := s.send(ctx, rest[:n]); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		// What is sent need not be sent again, and whoever was superseded
		// meanwhile finds it out here.
		s.at.entries = p.next
		if err := s.mirror.writeIndex(ctx, s.ref, s.at); err != nil {
			return err
		}
	}
	return s.dropLost(ctx)
}

// dropLost takes files out of the plan that were not there to be sent any more,
// or that the store did not take. What there was of them before is deleted.
func (s *syncing) dropLost(ctx context.Context) error {
	p := s.plan
	var doomed []entry
	for _, todo := range p.sends {
		if p.next[todo.at].lost && todo.was != nil {
			doomed = append(doomed, *todo.was)
		}
	}
	p.next = slices.DeleteFunc(p.next, func(e entry) bool { return e.lost })
	return s.remove(ctx, doomed)
}

// remove deletes objects that are the gateway's own, but those that somebody
// else has replaced.
func (s *syncing) remove(ctx context.Context, doomed []entry) error {
	m := s.mirror
	group, inside := errgroup.WithContext(ctx)
	group.SetLimit(m.settings.Parallel)
	for _, e := range doomed {
		key := prefixOf(s.ref.ID) + e.path
		group.Go(func() error {
			if inside.Err() != nil {
				return context.Cause(inside)
			}
			if e.etag != "" {
				info, err := m.store.Head(inside, key)
				if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrKey) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("deleting %s: %w", key, err)
				}
				if info.ETag != e.etag {
					m.settings.Log.InfoContext(inside, "an object of a mirror stays, because somebody else has replaced it", "sandboxId", s.ref.ID, "path", e.path)
					return nil
				}
			}
			if err := m.store.Delete(s.calls, key); err != nil { //nolint:contextcheck // see outlast
				return fmt.Errorf("deleting %s: %w", key, err)
			}
			s.deleted.Add(1)
			return nil
		})
	}
	return group.Wait()
}

// send reads files and puts them, and says in the plan what came of it.
func (s *syncing) send(ctx context.Context, batch []send) error {
	group, inside := errgroup.WithContext(ctx)
	group.SetLimit(s.mirror.settings.Parallel)
	paths := make([]string, len(batch))
	wanted := make(map[string]send, len(batch))
	for i, todo := range batch {
		paths[i] = s.plan.next[todo.at].path
		wanted[paths[i]] = todo
	}
	var failed error
	err := s.tree.Read(inside, paths, func(path string, size int64, r io.Reader) error {
		if failed != nil {
			return failed
		}
		todo, ok := wanted[path]
		delete(wanted, path)
		switch {
		case !ok:
			failed = fmt.Errorf("%w: %q was not asked for, or came twice", snapshot.ErrTree, path)
		case size < 0:
			s.plan.next[todo.at].lost = true
		default:
			failed = s.file(inside, group, todo, size, r)
		}
		return failed
	})
	// A put that failed has ended the reading, and is what to tell of.
	if lost := group.Wait(); lost != nil {
		return lost
	}
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return fmt.Errorf("reading the sandbox's files: %w", err)
	}
	for path := range wanted {
		return fmt.Errorf("%w: %q was not sent", snapshot.ErrTree, path)
	}
	return nil
}

// file puts a file: a small one beside others, a large one while it is read.
func (s *syncing) file(ctx context.Context, group *errgroup.Group, todo send, size int64, r io.Reader) error {
	e := &s.plan.next[todo.at]
	if size > maxSize {
		return fmt.Errorf("%w: %q has the size %d", snapshot.ErrTree, e.path, size)
	}
	if s.bytes += size - e.size; s.bytes > s.mirror.settings.MaxBytes {
		return s.mirror.tooMuch()
	}
	todo.unsettled = todo.unsettled || size != e.size
	e.size = size
	from := &exact{r: r, left: size, path: e.path}
	if size > smallFile {
		return s.stream(ctx, todo, from)
	}
	content := make([]byte, size)
	_, err := io.ReadFull(from, content)
	if err == nil {
		err = from.end()
	}
	if err != nil {
		return fmt.Errorf("reading %q: %w", e.path, err)
	}
	if err := s.mirror.budget.Acquire(ctx, size); err != nil {
		return err
	}
	group.Go(func() error {
		defer s.mirror.budget.Release(size)
		return s.put(todo, bytes.NewReader(content))
	})
	return nil
}

func (s *syncing) stream(ctx context.Context, todo send, from *exact) error {
	select {
	case s.mirror.streams <- struct{}{}:
		defer func() { <-s.mirror.streams }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.put(todo, from); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, from) // a store that does not take it does not read it either
	return err
}

// put puts a file that is in the plan. That the store cannot hold its name takes
// it out of the plan, and is no error.
func (s *syncing) put(todo send, body io.Reader) error {
	e := &s.plan.next[todo.at]
	key := prefixOf(s.ref.ID) + e.path
	info, err := s.mirror.store.Put(s.calls, key, body, e.size, store.PutOptions{Metadata: map[string]string{timeName: timeText(e.modified)}})
	if errors.Is(err, store.ErrAway) && e.size > smallFile {
		err = s.whyAway(key, err)
	}
	switch {
	case errors.Is(err, store.ErrKey):
		e.lost = true
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unfit.add(err)
		return nil
	case err != nil:
		return fmt.Errorf("sending %s: %w", key, err)
	}
	e.etag, e.dirty = info.ETag, todo.unsettled
	s.sent.Add(e.size)
	return nil
}

// whyAway returns what was wrong with a large put. A server that cannot hold the
// key may hang up while the body is on its way, and that looks as if it was away.
func (s *syncing) whyAway(key string, away error) error {
	_, err := s.mirror.store.Put(s.calls, key, bytes.NewReader(nil), 0, store.PutOptions{IfAbsent: true})
	switch {
	case errors.Is(err, store.ErrKey):
		return err
	case err == nil:
		// It is the gateway's own, so if it stays the next sync replaces it.
		return errors.Join(away, s.mirror.store.Delete(s.calls, key))
	}
	return away
}

const (
	// timeName is the metadata's name for a file's mtime. Stores give it back in
	// lower case.
	timeName = "lastModified"
	// timeForm is what JavaScript's toISOString makes, in UTC.
	timeForm = "2006-01-02T15:04:05.000Z"
)

// timeText writes a time in nanoseconds since 1970 as the worker does.
func timeText(ns int64) string { return time.Unix(0, ns).UTC().Format(timeForm) }

// exact reads a file of which the size was said. That it has another is an
// ErrTree.
type exact struct {
	r    io.Reader
	left int64
	path string
}

// Read implements io.Reader.
func (x *exact) Read(p []byte) (int, error) {
	if x.left == 0 {
		return 0, cmp.Or(x.end(), io.EOF)
	}
	n, err := x.r.Read(p[:min(int64(len(p)), x.left)])
	x.left -= int64(n)
	if errors.Is(err, io.EOF) && x.left > 0 {
		err = fmt.Errorf("%w: %q has fewer bytes than were said", snapshot.ErrTree, x.path)
	}
	return n, err
}

// end returns nil if nothing is behind what was said.
func (x *exact) end() error {
	var more [1]byte
	n, err := io.ReadFull(x.r, more[:])
	switch {
	case n > 0:
		return fmt.Errorf("%w: %q has more bytes than were said", snapshot.ErrTree, x.path)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}
