package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

const (
	// readBatch is how many paths a tree is asked for at once.
	readBatch = 4096
	// manySmall is how many small packs may be there before they are made anew
	// together: every snapshot of a little change adds one.
	manySmall = 16
)

// Begin makes a sandbox's snapshots those of this incarnation, which has none
// yet, whatever an earlier one left. It belongs into a create, before the first
// Take; for a sandbox that was begun it does nothing.
func (e *Engine) Begin(ctx context.Context, ref Ref) error {
	if err := ref.check(); err != nil {
		return err
	}
	ctx, leave, err := e.enter(ctx, ref)
	if err != nil {
		return err
	}
	defer leave()
	_, err = e.claim(ctx, ref)
	if !errors.Is(err, ErrSuperseded) {
		return err
	}
	info, err := e.store.Head(ctx, pointerKey(ref.ID))
	if err != nil {
		return fmt.Errorf("looking for an earlier sandbox's snapshots: %w", err)
	}
	return e.writePointer(ctx, ref, &pointer{etag: info.ETag})
}

// Take makes a snapshot of a tree. Files that look unchanged since the newest
// one are not read. If the whole tree is unchanged, the newest one is returned
// and nothing is written. On an error nothing is committed; what was uploaded
// until then is there until the next Collect.
//
// Besides the errors of the store and of the tree: ErrTree, ErrLimit,
// ErrSuperseded, ErrConflict, ErrDamaged (of the pointer only; a damaged base
// means that everything is read again).
func (e *Engine) Take(ctx context.Context, ref Ref, tree Tree) (Snapshot, error) {
	if err := ref.check(); err != nil {
		return Snapshot{}, err
	}
	ctx, leave, err := e.enter(ctx, ref)
	if err != nil {
		return Snapshot{}, err
	}
	defer leave()
	snapshot, err := e.take(ctx, ref, tree)
	if err != nil {
		return Snapshot{}, interrupted(ctx, fmt.Errorf("taking a snapshot of %s: %w", ref.ID, err))
	}
	return snapshot, nil
}

// interrupted says why a call was ended, if it was.
func interrupted(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

func (e *Engine) take(ctx context.Context, ref Ref, tree Tree) (Snapshot, error) {
	at, err := e.claim(ctx, ref)
	if err != nil {
		return Snapshot{}, err
	}
	base, before, err := e.base(ctx, ref, at)
	if err != nil {
		return Snapshot{}, err
	}
	started := e.now()
	listing, err := e.list(ctx, tree)
	if err != nil {
		return Snapshot{}, err
	}
	next := &manifest{header: header{ID: newID(started), Sandbox: ref.ID, Incarnation: ref.Incarnation, ListedNs: started.UnixNano()}}
	same := next.follow(base, listing, started.Add(-e.settings.Margin).UnixNano())
	hurt := func(p pack) bool { return slices.Contains(at.Damaged, p.name) }
	if same && len(at.Snapshots) > 0 && !slices.ContainsFunc(base.packs, hurt) {
		return at.Snapshots[0].snapshot(), nil
	}
	p, err := e.pack(ctx, ref, next, base, hurt, tree)
	if err != nil {
		return Snapshot{}, err
	}
	k, err := e.putManifest(ctx, ref, next)
	if err != nil {
		return Snapshot{}, err
	}
	k.CreatedAt = started.UTC()
	s := k.snapshot()
	s.Sent = p.sent.Load() + k.Stored
	if after := weigh(next.entries); collapsed(before, after) {
		s.Collapsed, s.Before = true, at.Snapshots[0].ID
		at.hold(before)
	}
	at.add(k, e.settings.Keep)
	if err := e.writePointer(ctx, ref, at); err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// base returns the newest snapshot's manifest and weight. The manifest is an
// empty one if there is none, if it is damaged, and if it is sealed with a key
// that is going away.
func (e *Engine) base(ctx context.Context, ref Ref, at *pointer) (*manifest, weight, error) {
	if len(at.Snapshots) == 0 {
		return &manifest{}, weight{}, nil
	}
	newest := at.Snapshots[0]
	current := newest.KeyID == e.sealer.KeyID()
	m, err := e.readManifest(ctx, ref, newest, false)
	if errors.Is(err, ErrDamaged) {
		if current { // else its key may be gone, which is no damage
			e.settings.Log.WarnContext(ctx, "the newest snapshot is damaged, so the next one is made from nothing", "sandboxId", ref.ID, "error", err)
		}
		return &manifest{}, weight{}, nil
	}
	if err != nil {
		return nil, weight{}, err
	}
	before := weigh(m.entries)
	if !current {
		m = &manifest{}
	}
	return m, before, nil
}

// follow makes m's entries of a listing, with the content of base's files that
// are unchanged. A file without chunks that has a size is to be read. Files that
// were changed at trusted or later may be changed again without a sign. It
// returns whether there is no difference at all.
func (m *manifest) follow(base *manifest, listing []Entry, trusted int64) (same bool) {
	same = len(listing) == len(base.entries)
	m.entries = make([]entry, len(listing))
	old := 0
	for i, now := range listing {
		m.entries[i] = entry{Entry: now, unsettled: now.Type == File && now.ChangedNs >= trusted}
		for old < len(base.entries) && base.entries[old].Path < now.Path {
			old++
		}
		if old == len(base.entries) || base.entries[old].Path != now.Path {
			same = false
			continue
		}
		was := &base.entries[old]
		if was.Mode != now.Mode || was.Type != now.Type || was.ModifiedNs != now.ModifiedNs || was.Target != now.Target {
			same = false
		}
		if now.Type != File {
			continue
		}
		if was.Type != File || was.unsettled || was.Size != now.Size || was.ModifiedNs != now.ModifiedNs ||
			was.ChangedNs != now.ChangedNs || was.Inode != now.Inode {
			same = false
			continue
		}
		m.entries[i].chunks = was.chunks
	}
	return same
}

// pack reads what has to be read, and fills in m's packs and chunks.
func (e *Engine) pack(ctx context.Context, ref Ref, m, base *manifest, hurt func(pack) bool, tree Tree) (*packer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, inside := errgroup.WithContext(ctx)
	p := &packer{
		engine: e, ref: ref, id: m.header.ID, group: group, index: -1, left: e.settings.MaxBytes,
		known: map[[sha256.Size]byte]chunk{},
	}
	for i := range base.packs {
		p.packs = append(p.packs, &base.packs[i])
	}
	for i := range base.entries {
		for _, c := range base.entries[i].chunks {
			p.known[c.hash] = c
		}
	}
	m.dropWeak(base.packs, p.known, int64(e.settings.PackSize), hurt)
	err := e.read(inside, m, p, tree)
	if err == nil {
		err = p.flush(inside)
	}
	uploading := inside.Err() == nil // else an upload failed, and that ended the reading
	if err != nil {
		cancel()
	}
	if failed := group.Wait(); failed != nil && (err == nil || !uploading) {
		err = failed
	}
	if err != nil {
		return nil, err
	}
	m.number(p.packs)
	return p, nil
}

// dropWeak finds the base's packs that are not worth keeping: one that is hurt,
// one of which the base used less than half, or many small ones. What is in them is read again,
// and no longer known. It goes by the base and not by m, so that files which only
// have other names now are not sent again.
func (m *manifest) dropWeak(packs []pack, known map[[sha256.Size]byte]chunk, packSize int64, hurt func(pack) bool) {
	live := make([]int64, len(packs))
	for _, c := range known {
		live[c.pack] += int64(c.length)
	}
	weak := make([]bool, len(packs))
	var small []int
	for i, p := range packs {
		weak[i] = live[i] < p.plain/2 || hurt(p)
		if strings.Contains(p.name, "/s") && p.plain < packSize/4 {
			small = append(small, i)
		}
	}
	if len(small) > manySmall {
		for _, i := range small {
			weak[i] = true
		}
	}
	for i := range m.entries {
		if slices.ContainsFunc(m.entries[i].chunks, func(c chunk) bool { return weak[c.pack] }) {
			m.entries[i].chunks = nil
		}
	}
	maps.DeleteFunc(known, func(_ [sha256.Size]byte, c chunk) bool { return weak[c.pack] })
}

// read asks the tree for every file that has a size and no chunks. Those that
// are gone are taken out of m.
func (e *Engine) read(ctx context.Context, m *manifest, p *packer, tree Tree) error {
	wanted := map[string]*entry{}
	var batch []string
	gone := false
	ask := func() error {
		if len(batch) == 0 {
			return nil
		}
		var failed error
		err := tree.Read(ctx, batch, func(path string, size int64, r io.Reader) error {
			if failed != nil {
				return failed
			}
			to := wanted[path]
			switch {
			case to == nil:
				failed = fmt.Errorf("%w: %q was not asked for, or came twice", ErrTree, path)
			case size < 0:
				to.Type, gone = 0, true
			default:
				to.unsettled = to.unsettled || size != to.Size
				to.Size = size
				if to.chunks, failed = p.file(ctx, size, r); failed != nil {
					failed = fmt.Errorf("reading %q: %w", path, failed)
				}
			}
			delete(wanted, path)
			return failed
		})
		switch {
		case failed != nil:
			return failed
		case err != nil:
			return fmt.Errorf("reading the sandbox's files: %w", err)
		}
		for path := range wanted {
			return fmt.Errorf("%w: %q was not sent", ErrTree, path)
		}
		batch = batch[:0]
		return nil
	}
	for i := range m.entries {
		to := &m.entries[i]
		if to.Type != File {
			continue
		}
		if to.Size == 0 || to.chunks != nil {
			p.left -= to.Size
			continue
		}
		wanted[to.Path] = to
		batch = append(batch, to.Path)
		if len(batch) == readBatch {
			if err := ask(); err != nil {
				return err
			}
		}
	}
	if err := ask(); err != nil {
		return err
	}
	if gone {
		m.dropGone()
	}
	return nil
}

func (m *manifest) dropGone() {
	left := m.entries[:0]
	for _, e := range m.entries {
		if e.Type != 0 {
			left = append(left, e)
		}
	}
	m.entries = left
}

// number makes m's packs of those of all that its chunks use, in their order.
func (m *manifest) number(all []*pack) {
	used := make([]bool, len(all))
	for i := range m.entries {
		for _, c := range m.entries[i].chunks {
			used[c.pack] = true
		}
	}
	to := make([]int32, len(all))
	for i, p := range all {
		if used[i] {
			to[i] = int32(len(m.packs))
			m.packs = append(m.packs, *p)
		}
	}
	for i := range m.entries {
		chunks := m.entries[i].chunks
		if len(chunks) == 0 {
			continue
		}
		moved := make([]chunk, len(chunks)) // base's are not ours, and may be shared
		for j, c := range chunks {
			c.pack = to[c.pack]
			moved[j] = c
		}
		m.entries[i].chunks = moved
	}
}

func (e *Engine) putManifest(ctx context.Context, ref Ref, m *manifest) (kept, error) {
	compressed, plain, err := m.encode()
	if err != nil {
		return kept{}, err
	}
	key := manifestKey(ref.ID, m.header.ID)
	sealed := e.sealer.Seal(compressed, place(key, ref))
	k := kept{ID: m.header.ID, KeyID: e.sealer.KeyID(), Incarnation: ref.Incarnation, Plain: plain, Stored: int64(len(sealed))}
	if k.Plain > maxManifest || k.Stored > maxManifest {
		return kept{}, fmt.Errorf("%w: the manifest has %d bytes", ErrLimit, plain)
	}
	for i := range m.entries {
		if m.entries[i].Type == File {
			k.Files++
			k.Bytes += m.entries[i].Size
		}
	}
	if _, err := e.store.Put(ctx, key, bytes.NewReader(sealed), k.Stored, store.PutOptions{}); err != nil {
		return kept{}, fmt.Errorf("writing %s: %w", key, err)
	}
	return k, nil
}
