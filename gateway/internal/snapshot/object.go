package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

func pointerKey(id string) string        { return "snapshots/" + id + "/current.json" }
func manifestPrefix(id string) string    { return "snapshots/" + id + "/manifests/" }
func packPrefix(id string) string        { return "snapshots/" + id + "/packs/" }
func manifestKey(id, name string) string { return manifestPrefix(id) + name }
func packKey(id, name string) string     { return packPrefix(id) + name }

// place is what an object is bound to: its key, and whose it is.
func place(key string, ref Ref) []byte {
	return []byte("agentpod snapshot 1\x00" + key + "\x00" + ref.Incarnation)
}

// get reads an object of at most limit bytes.
func (e *Engine) get(ctx context.Context, key string, limit int64) ([]byte, store.ETag, error) {
	body, info, err := e.store.Get(ctx, key, store.Range{})
	if err != nil {
		return nil, "", fmt.Errorf("reading %s: %w", key, err)
	}
	defer body.Close()
	if info.Size > limit {
		return nil, "", damaged(key, fmt.Errorf("it has %d bytes, and %d are expected at most", info.Size, limit))
	}
	raw := grown(e.buffer(), int(info.Size), int(info.Size))
	if _, err := io.ReadFull(body, raw); err != nil {
		return nil, "", fmt.Errorf("reading %s: %w", key, err)
	}
	return raw, info.ETag, nil
}

// getSealed reads and opens an object that something refers to: that it is
// missing is damage.
func (e *Engine) getSealed(ctx context.Context, ref Ref, key string, stored int64) ([]byte, error) {
	raw, _, err := e.get(ctx, key, stored)
	if errors.Is(err, store.ErrNotFound) {
		return nil, damaged(key, err)
	}
	if err != nil {
		return nil, err
	}
	plain, err := e.sealer.Open(raw, place(key, ref))
	e.free(raw)
	if err != nil {
		return nil, damaged(key, err)
	}
	return plain, nil
}

// kept is a snapshot in the pointer.
type kept struct {
	ID          string    `json:"id"`
	CreatedAt   time.Time `json:"createdAt"`
	Files       int64     `json:"files"`
	Bytes       int64     `json:"bytes"`
	KeyID       string    `json:"keyId"`
	Incarnation string    `json:"incarnation"`
	// Plain and Stored are the manifest's bytes, unpacked and as an object.
	Plain  int64 `json:"manifestPlain"`
	Stored int64 `json:"manifestStored"`
	// BeforeCollapse is set for at most one of them: it is the last one before a
	// collapse, and this is its weight. A version that does not know the field
	// drops the snapshot when its turn comes.
	BeforeCollapse *weight `json:"beforeCollapse,omitempty"`
}

func (k kept) snapshot() Snapshot {
	return Snapshot{ID: k.ID, CreatedAt: k.CreatedAt, Files: k.Files, Bytes: k.Bytes}
}

// pointer says which snapshots there are, the newest first.
type pointer struct {
	Snapshots []kept `json:"snapshots"`
	// Damaged are the packs that were found damaged: nothing new refers to them.
	Damaged []string `json:"damaged,omitempty"`

	etag store.ETag // "" if there is no pointer
}

// document is the pointer as an object. What is readable is for people and for
// telling whose it is; only what is sealed is believed.
type document struct {
	Version     int    `json:"version"`
	KeyID       string `json:"keyId"`
	Incarnation string `json:"incarnation"`
	Sealed      []byte `json:"sealed"`
}

const (
	pointerVersion = 1
	maxPointer     = 1 << 20
)

// readPointer reads the pointer. Its error is store.ErrNotFound if there is
// none, ErrSuperseded if it is another incarnation's, or ErrDamaged.
func (e *Engine) readPointer(ctx context.Context, ref Ref) (*pointer, error) {
	key := pointerKey(ref.ID)
	raw, etag, err := e.get(ctx, key, maxPointer)
	if err != nil {
		return nil, err
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, damaged(key, err)
	}
	if doc.Version != pointerVersion {
		return nil, damaged(key, fmt.Errorf("it is of the version %d, and %d is known", doc.Version, pointerVersion))
	}
	if doc.Incarnation != ref.Incarnation {
		return nil, fmt.Errorf("%w: the snapshots of %s are of another incarnation", ErrSuperseded, ref.ID)
	}
	plain, err := e.sealer.Open(doc.Sealed, place(key, ref))
	if err != nil {
		return nil, damaged(key, fmt.Errorf("sealed with key %q: %w", doc.KeyID, err))
	}
	p := &pointer{etag: etag}
	if err := json.Unmarshal(plain, p); err != nil {
		return nil, damaged(key, err)
	}
	for _, k := range p.Snapshots {
		if k.Incarnation != ref.Incarnation || k.Plain > maxManifest || k.Stored > maxManifest {
			return nil, damaged(key, errors.New("it names what cannot be"))
		}
	}
	return p, nil
}

// writePointer replaces the pointer that has p's ETag, or makes it if that is "".
// It fails with ErrConflict if there is another by now.
func (e *Engine) writePointer(ctx context.Context, ref Ref, p *pointer) error {
	key := pointerKey(ref.ID)
	plain, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	raw, err := json.Marshal(document{
		Version: pointerVersion, KeyID: e.sealer.KeyID(), Incarnation: ref.Incarnation,
		Sealed: e.sealer.Seal(plain, place(key, ref)),
	})
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	opts := store.PutOptions{ContentType: "application/json", IfMatch: p.etag, IfAbsent: p.etag == ""}
	info, err := e.store.Put(ctx, key, bytes.NewReader(raw), int64(len(raw)), opts)
	if err == nil {
		p.etag = info.ETag
		return nil
	}
	// It may be there all the same, if only the reply was lost. Nobody else
	// writes these bytes, for the seal is random.
	if have, etag, again := e.get(ctx, key, maxPointer); again == nil && bytes.Equal(have, raw) {
		p.etag = etag
		return nil
	}
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return fmt.Errorf("writing %s: %w", key, err)
}

// claim returns the pointer, making an empty one if there is none: from then on
// every write depends on that nobody deleted or replaced it.
func (e *Engine) claim(ctx context.Context, ref Ref) (*pointer, error) {
	p, err := e.readPointer(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		p = &pointer{}
		err = e.writePointer(ctx, ref, p)
	}
	return p, err
}

// readManifest reads a snapshot's manifest, or only its header and packs.
func (e *Engine) readManifest(ctx context.Context, ref Ref, k kept, packsOnly bool) (*manifest, error) {
	key := manifestKey(ref.ID, k.ID)
	compressed, err := e.getSealed(ctx, ref, key, k.Stored)
	if err != nil {
		return nil, err
	}
	m, err := decode(compressed, k.Plain, packsOnly)
	if err != nil {
		return nil, damaged(key, err)
	}
	if m.header.ID != k.ID || m.header.Sandbox != ref.ID || m.header.Incarnation != ref.Incarnation {
		return nil, damaged(key, errors.New("it is another snapshot's"))
	}
	return m, nil
}
