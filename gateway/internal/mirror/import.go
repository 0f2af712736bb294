package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
)

const (
	// nameLimit is the greatest length in bytes of a name on Linux.
	nameLimit = 255
	fileMode  = 0o644
	// folderMode is for folders, of which a mirror knows only that they are
	// there.
	folderMode = 0o755
)

// Import makes files of all objects under workspaces/ID/ in an empty workspace,
// whoever wrote them, and returns how many. From then on they are the gateway's
// own. Keys that cannot be files are skipped. If it fails, what was made until
// then is the caller's to throw away.
//
// Besides the errors of the store and of the tree: snapshot.ErrTree,
// snapshot.ErrLimit, snapshot.ErrSuperseded, ErrConflict.
func (m *Mirror) Import(ctx context.Context, ref snapshot.Ref, tree snapshot.Tree) (files int64, err error) {
	err = m.alone(ctx, ref, "importing", func(ctx context.Context) (err error) {
		files, err = m.importInto(ctx, ref, tree)
		return err
	})
	if err != nil {
		return 0, err
	}
	return files, nil
}

func (m *Mirror) importInto(ctx context.Context, ref snapshot.Ref, tree snapshot.Tree) (int64, error) {
	at, err := m.claim(ctx, ref)
	if err != nil {
		return 0, err
	}
	objects, err := m.objects(ctx, ref)
	if err != nil {
		return 0, err
	}
	r := &restoring{mirror: m, folders: foldersOf(objects), objects: objects, left: m.settings.MaxBytes}
	inside, cancel := context.WithCancel(ctx)
	r.fetcher = m.newFetcher(inside, ref, objects)
	err = tree.Restore(ctx, r.entries)
	cancel()
	r.fetcher.wait()
	switch {
	case r.err != nil:
		return 0, r.err
	case err != nil:
		return 0, fmt.Errorf("writing the sandbox's files: %w", err)
	case !r.ended:
		return 0, fmt.Errorf("%w: only %d of %d files were written", snapshot.ErrTree, len(r.files), len(objects))
	}
	at.entries = union(at.entries, r.files)
	at.result = Result{Files: int64(len(r.files))}
	for i := range r.files {
		at.result.Bytes += r.files[i].size
	}
	return at.result.Files, m.writeIndex(ctx, ref, at)
}

// union returns all entries of both, sorted; those of fresh count.
func union(old, fresh []entry) []entry {
	all := slices.Clone(fresh)
	for i := range old {
		if _, found := slices.BinarySearchFunc(fresh, old[i].path, func(e entry, path string) int { return cmp.Compare(e.path, path) }); !found {
			all = append(all, old[i])
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	return all
}

// object is one that is to become a file.
type object struct {
	path string
	size int64 // as it was listed
}

// objects lists what can become files, sorted by path.
func (m *Mirror) objects(ctx context.Context, ref snapshot.Ref) ([]object, error) {
	prefix := prefixOf(ref.ID)
	var all []object
	var unfit skips
	var names, size int64
	count := 0
	for info, err := range m.store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", prefix, err)
		}
		count++
		if count > m.settings.MaxEntries {
			return nil, fmt.Errorf("%w: more than %d objects", snapshot.ErrLimit, m.settings.MaxEntries)
		}
		path, err := pathOf(info.Key, prefix)
		if err != nil {
			unfit.add(err)
			continue
		}
		names += int64(len(path))
		if names > m.settings.MaxNames {
			return nil, fmt.Errorf("%w: their names take more than %d bytes", snapshot.ErrLimit, m.settings.MaxNames)
		}
		size += max(info.Size, 0)
		if info.Size > maxSize || size > m.settings.MaxBytes {
			return nil, m.tooMuch()
		}
		all = append(all, object{path, info.Size})
	}
	slices.SortFunc(all, func(a, b object) int { return cmp.Compare(a.path, b.path) })
	all = slices.CompactFunc(all, func(a, b object) bool { return a.path == b.path })
	folders := map[string]bool{}
	for _, folder := range foldersOf(all) {
		folders[folder] = true
	}
	all = slices.DeleteFunc(all, func(o object) bool {
		if folders[o.path] {
			unfit.add(fmt.Errorf("%w: %q is a folder too", errUnfit, o.path))
		}
		return folders[o.path]
	})
	if unfit.count > 0 {
		m.settings.Log.WarnContext(ctx, "objects of a mirror are not imported, because their keys cannot be files",
			"sandboxId", ref.ID, "count", unfit.count, "first", unfit.first)
	}
	return all, nil
}

var errUnfit = errors.New("not a file's path")

// pathOf returns the path that a key stands for, or why there is none.
func pathOf(key, prefix string) (string, error) {
	if err := store.CheckKey(key); err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return "", fmt.Errorf("%w: %q was not asked for", errUnfit, key)
	}
	for element := range strings.SplitSeq(path, "/") {
		if len(element) > nameLimit {
			return "", fmt.Errorf("%w: it has an element of %d bytes", errUnfit, len(element))
		}
	}
	return path, nil
}

// foldersOf returns the folders that files are in, each after the one that it is
// in itself.
func foldersOf(objects []object) []string {
	var all []string
	known := map[string]bool{}
	for _, o := range objects {
		var fresh []string
		for path := o.path; ; {
			slash := strings.LastIndexByte(path, '/')
			if slash < 0 || known[path[:slash]] {
				break
			}
			path = path[:slash]
			known[path] = true
			fresh = append(fresh, path)
		}
		slices.Reverse(fresh)
		all = append(all, fresh...)
	}
	return all
}

// restoring is what a tree iterates over.
type restoring struct {
	mirror  *Mirror
	folders []string
	objects []object
	fetcher *fetcher

	files []entry // that were written, sorted by path
	left  int64   // bytes that there may still be
	ended bool    // everything was written
	err   error   // that the tree was told, or would have been
}

func (r *restoring) entries(yield func(snapshot.Restored, error) bool) {
	now := r.mirror.now().UnixNano()
	for _, folder := range r.folders {
		if !yield(snapshot.Restored{Entry: snapshot.Entry{
			Path: folder, Type: snapshot.Directory, Mode: folderMode, ModifiedNs: now,
		}}, nil) {
			return
		}
	}
	for _, o := range r.objects {
		next := r.fetcher.next()
		if errors.Is(next.err, store.ErrNotFound) {
			continue // deleted since it was listed
		}
		if !r.file(o, next, now, yield) {
			return
		}
	}
	r.ended = true
}

// file yields one file. It returns false if that was the last one.
func (r *restoring) file(o object, got fetched, now int64, yield func(snapshot.Restored, error) bool) bool {
	defer got.close()
	if r.left -= got.info.Size; got.err == nil && r.left < 0 {
		got.err = r.mirror.tooMuch()
	}
	if got.err != nil {
		r.err = got.err
		yield(snapshot.Restored{}, r.err)
		return false
	}
	made := entry{path: o.path, size: got.info.Size, modified: timeOf(got.info, now), etag: got.info.ETag, restored: true}
	content := &content{from: got.content, left: made.size}
	more := yield(snapshot.Restored{
		Entry:   snapshot.Entry{Path: made.path, Type: snapshot.File, Mode: fileMode, Size: made.size, ModifiedNs: made.modified},
		Content: content,
	}, nil)
	switch {
	case content.err != nil:
		r.err = fmt.Errorf("reading %s: %w", got.info.Key, content.err)
	case more && content.left > 0:
		r.err = fmt.Errorf("%w: %q was not written whole", snapshot.ErrTree, o.path)
	}
	if r.err != nil && more {
		yield(snapshot.Restored{}, r.err)
	}
	if r.err != nil || !more {
		return false
	}
	r.files = append(r.files, made)
	return true
}

var _ iter.Seq2[snapshot.Restored, error] = (*restoring)(nil).entries

// timeOf returns an object's mtime in nanoseconds since 1970: what its metadata
// says if that makes sense, else when it was stored, else now.
func timeOf(info store.Info, now int64) int64 {
	said, err := time.Parse(time.RFC3339, info.Metadata[strings.ToLower(timeName)])
	for _, t := range []time.Time{said, info.Modified} {
		// As nanoseconds in 64 bits a time goes from 1677 to 2262.
		if err == nil && !t.IsZero() && t.Year() > 1677 && t.Year() < 2262 {
			return t.UnixNano()
		}
		err = nil
	}
	return now
}

// content reads an object to its end, and remembers what went wrong.
type content struct {
	from io.Reader
	left int64
	err  error
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.from.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && c.left > 0:
		c.err = io.ErrUnexpectedEOF
	case err != nil && !errors.Is(err, io.EOF):
		c.err = err
	}
	return n, c.err
}

// fetcher opens objects in their order, and reads small ones before they are
// needed: at most Parallel of them are in memory, besides the one in use.
type fetcher struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one import
	mirror  *Mirror
	queue   chan chan fetched
	running sync.WaitGroup
}

// fetched is an object that was opened, or why it was not, or the key of one
// that is still to be opened.
type fetched struct {
	late    string
	info    store.Info
	content io.Reader
	body    io.Closer // nil if the content is in memory
	err     error
}

func (f *fetched) close() {
	if f.body != nil {
		_ = f.body.Close() // it was read as far as it is needed
	}
}

// newFetcher begins to read. It ends with ctx; wait waits for that.
func (m *Mirror) newFetcher(ctx context.Context, ref snapshot.Ref, objects []object) *fetcher {
	f := &fetcher{ctx: ctx, mirror: m, queue: make(chan chan fetched, m.settings.Parallel-1)}
	f.running.Go(func() {
		defer close(f.queue)
		for _, o := range objects {
			next := make(chan fetched, 1)
			select {
			case f.queue <- next:
			case <-ctx.Done():
				return
			}
			key := prefixOf(ref.ID) + o.path
			if o.size > smallFile {
				next <- fetched{late: key}
				continue
			}
			f.running.Go(func() { next <- m.open(ctx, key) })
		}
	})
	return f
}

// open opens an object, and reads it if it is small.
func (m *Mirror) open(ctx context.Context, key string) fetched {
	body, info, err := m.store.Get(ctx, key, store.Range{})
	if err != nil {
		return fetched{err: fmt.Errorf("reading %s: %w", key, err)}
	}
	if info.Size > smallFile {
		return fetched{info: info, content: body, body: body}
	}
	defer body.Close()
	if info.Size < 0 {
		return fetched{err: fmt.Errorf("reading %s: %w: it has no size", key, store.ErrAway)}
	}
	small := make([]byte, info.Size)
	if _, err := io.ReadFull(body, small); err != nil {
		return fetched{err: fmt.Errorf("reading %s: %w", key, err)}
	}
	return fetched{info: info, content: bytes.NewReader(small)}
}

// next returns the next object.
func (f *fetcher) next() fetched {
	select {
	case next, ok := <-f.queue:
		if !ok {
			return fetched{err: context.Cause(f.ctx)}
		}
		got := <-next // comes soon, for whoever sends it ends with the context
		if got.late != "" {
			return f.mirror.open(f.ctx, got.late)
		}
		return got
	case <-f.ctx.Done():
		return fetched{err: context.Cause(f.ctx)}
	}
}

// wait waits until nothing is read any more, and closes what nobody took.
func (f *fetcher) wait() {
	for next := range f.queue {
		left := <-next
		left.close()
	}
	f.running.Wait()
}
