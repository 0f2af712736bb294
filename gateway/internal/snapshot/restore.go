package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

// Restore makes a snapshot's tree again; id is "" for the newest. Only the paths
// for which want says so are made, nil is for all of them: for what it wants, it
// has to want the directories that it is in, unless they are there. Content is
// handed on only after its hash was found right. If an object is damaged, the
// error is a *DamagedError that names it, nothing of it was handed on, and the
// other snapshots (List) may be whole. ErrNoSnapshot if there is none.
func (e *Engine) Restore(ctx context.Context, ref Ref, id string, want func(path string) bool, tree Tree) (Snapshot, error) {
	if err := ref.check(); err != nil {
		return Snapshot{}, err
	}
	ctx, leave, err := e.enter(ctx, ref)
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	k, err := e.find(ctx, ref, id)
	if err == nil {
		err = e.restore(ctx, ref, k, want, tree)
	}
	if err != nil {
		e.noteDamage(ctx, ref, err)
		return Snapshot{}, interrupted(ctx, fmt.Errorf("restoring %s: %w", ref.ID, err))
	}
	return k.snapshot(), nil
}

// maxDamaged bounds how many damaged packs are remembered.
const maxDamaged = 1000

// noteDamage remembers that a pack is damaged, so that the next snapshot does not
// rely on what it should hold. That it could not be noted is only told.
func (e *Engine) noteDamage(ctx context.Context, ref Ref, found error) {
	damage, ok := errors.AsType[*DamagedError](found)
	if !ok {
		return
	}
	name, isPack := strings.CutPrefix(damage.Key, packPrefix(ref.ID))
	if !isPack {
		return // a manifest that is damaged is noticed when it is read
	}
	p, err := e.readPointer(ctx, ref)
	if err == nil && !slices.Contains(p.Damaged, name) && len(p.Damaged) < maxDamaged {
		p.Damaged = append(p.Damaged, name)
		err = e.writePointer(ctx, ref, p)
	}
	if err != nil {
		e.settings.Log.WarnContext(ctx, "that a pack is damaged could not be noted", "sandboxId", ref.ID, "pack", name, "error", err)
	}
}

func (e *Engine) find(ctx context.Context, ref Ref, id string) (kept, error) {
	p, err := e.readPointer(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return kept{}, ErrNoSnapshot
	}
	if err != nil {
		return kept{}, err
	}
	for _, k := range p.Snapshots {
		if id == "" || k.ID == id {
			return k, nil
		}
	}
	return kept{}, fmt.Errorf("%w: %q", ErrNoSnapshot, id)
}

func (e *Engine) restore(ctx context.Context, ref Ref, k kept, want func(path string) bool, tree Tree) error {
	m, err := e.readManifest(ctx, ref, k, false)
	if err != nil {
		return err
	}
	if want != nil {
		m.entries = slices.DeleteFunc(m.entries, func(e entry) bool { return !want(e.Path) })
	}
	m.orderForRestore()
	ctx, cancel := context.WithCancel(ctx)
	f := e.newFetcher(ctx, ref, m)
	defer func() { cancel(); <-f.stopped }()
	r := &restoring{manifest: m, fetcher: f}
	err = tree.Restore(ctx, r.entries)
	switch {
	case r.err != nil:
		return r.err
	case err != nil:
		return fmt.Errorf("writing the sandbox's files: %w", err)
	case r.done != len(m.entries):
		return fmt.Errorf("%w: only %d of %d entries were restored", ErrTree, r.done, len(m.entries))
	}
	return nil
}

// orderForRestore sorts entries: directories, files by where their content is,
// so that each pack is read once, and links last.
func (m *manifest) orderForRestore() {
	class := func(e *entry) int {
		switch e.Type {
		case Directory:
			return 0
		case File:
			return 1
		default:
			return 2
		}
	}
	slices.SortStableFunc(m.entries, func(a, b entry) int {
		if by := cmp.Compare(class(&a), class(&b)); by != 0 {
			return by
		}
		if by := cmp.Compare(len(a.chunks), len(b.chunks)); by != 0 && min(len(a.chunks), len(b.chunks)) == 0 {
			return by
		}
		if len(a.chunks) == 0 {
			return 0
		}
		return cmp.Or(cmp.Compare(a.chunks[0].pack, b.chunks[0].pack), cmp.Compare(a.chunks[0].offset, b.chunks[0].offset))
	})
}

// restoring is what a tree iterates over.
type restoring struct {
	manifest *manifest
	fetcher  *fetcher
	err      error // that the tree was told
	done     int
}

func (r *restoring) entries(yield func(Restored, error) bool) {
	for i := range r.manifest.entries {
		from := &r.manifest.entries[i]
		out := Restored{Entry: from.Entry}
		content := &content{restoring: r, chunks: from.chunks}
		if from.Type == File {
			out.Content = content
		}
		if !yield(out, nil) {
			return
		}
		if r.err == nil && (len(content.chunks) > 0 || len(content.rest) > 0) {
			r.err = fmt.Errorf("%w: %q was not written whole", ErrTree, from.Path)
		}
		if r.err != nil {
			yield(Restored{}, r.err)
			return
		}
		r.done++
	}
}

var _ iter.Seq2[Restored, error] = (*restoring)(nil).entries

// content reads one file.
type content struct {
	restoring *restoring
	chunks    []chunk
	rest      []byte // of the chunk before
}

func (c *content) Read(p []byte) (int, error) {
	if c.restoring.err != nil {
		return 0, c.restoring.err
	}
	if len(c.rest) == 0 {
		if len(c.chunks) == 0 {
			return 0, io.EOF
		}
		rest, err := c.restoring.fetcher.chunk(c.chunks[0])
		if err != nil {
			c.restoring.err = err
			return 0, err
		}
		c.rest, c.chunks = rest, c.chunks[1:]
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// ahead is how many packs are read before they are needed, together with the
// one that is in use.
const ahead = 3

// fetcher reads packs ahead, in the order in which they will be needed.
type fetcher struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one restore
	engine  *Engine
	ref     Ref
	packs   []pack
	queue   chan chan fetched
	room    chan struct{}
	stopped chan struct{}
	at      int32 // the pack in use; -1 for none
	plain   []byte
}

type fetched struct {
	plain []byte
	err   error
}

// newFetcher begins to read. It ends with ctx, and with stopped closed.
func (e *Engine) newFetcher(ctx context.Context, ref Ref, m *manifest) *fetcher {
	f := &fetcher{
		ctx: ctx, engine: e, ref: ref, packs: m.packs, at: -1,
		queue: make(chan chan fetched, ahead), room: make(chan struct{}, ahead), stopped: make(chan struct{}),
	}
	go f.run(m.entries)
	return f
}

// run begins to read packs while there is room. It ends with the plan, or with
// the context, and after everything that it began.
func (f *fetcher) run(entries []entry) {
	defer close(f.stopped)
	reading := make(chan struct{}, ahead)
	begin := func(index int32) bool {
		select {
		case f.room <- struct{}{}:
		case <-f.ctx.Done():
			return false
		}
		result := make(chan fetched, 1)
		f.queue <- result // has as much room
		reading <- struct{}{}
		go func() {
			plain, err := f.read(index)
			result <- fetched{plain, err}
			<-reading
		}()
		return true
	}
	last := int32(-1)
plan:
	for i := range entries {
		for _, c := range entries[i].chunks {
			if c.pack == last {
				continue
			}
			last = c.pack
			if !begin(c.pack) {
				break plan
			}
		}
	}
	for range ahead {
		reading <- struct{}{} // until the others are done
	}
}

// chunk returns verified content.
func (f *fetcher) chunk(c chunk) ([]byte, error) {
	if f.at != c.pack {
		if f.at >= 0 {
			f.engine.free(f.plain) // whoever read from it has read it all
			f.at, f.plain = -1, nil
			<-f.room
		}
		select {
		case next := <-f.queue:
			select {
			case got := <-next:
				if got.err != nil {
					return nil, got.err
				}
				f.at, f.plain = c.pack, got.plain
			case <-f.ctx.Done():
				return nil, context.Cause(f.ctx)
			}
		case <-f.ctx.Done():
			return nil, context.Cause(f.ctx)
		}
	}
	plain := f.plain[c.offset : c.offset+c.length]
	if sha256.Sum256(plain) != c.hash {
		return nil, damaged(packKey(f.ref.ID, f.packs[c.pack].name), errors.New("its content has another hash than the manifest says"))
	}
	return plain, nil
}

// read reads, opens and unpacks a pack, to exactly as many bytes as it has.
func (f *fetcher) read(index int32) ([]byte, error) {
	p := f.packs[index]
	key := packKey(f.ref.ID, p.name)
	compressed, err := f.engine.getSealed(f.ctx, f.ref, key, p.stored)
	if err != nil {
		return nil, err
	}
	plain := grown(f.engine.buffer(), int(p.plain), int(p.plain))
	plain, err = f.engine.decoder.DecodeAll(compressed, plain[:0:p.plain])
	if err == nil && int64(len(plain)) != p.plain {
		err = fmt.Errorf("it unpacks to %d bytes, and the manifest says %d", len(plain), p.plain)
	}
	if err != nil {
		return nil, damaged(key, err)
	}
	return plain, nil
}
