package mirror

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
)

func indexKey(id string) string { return "mirrors/" + id + "/index" }

// place is what an index is bound to: its key, and whose it is.
func place(key string, ref snapshot.Ref) []byte {
	return []byte("agentpod mirror 1\x00" + key + "\x00" + ref.Incarnation)
}

// entry is an object of the mirror that is the gateway's own.
type entry struct {
	path string
	size int64
	// modified and changed are the file's mtime and ctime in nanoseconds since
	// 1970.
	modified, changed int64
	inode             uint64
	// etag is the object's. It is "" from before a file is sent until that is
	// known to have happened: the object may be of any state then, or missing.
	etag store.ETag
	// dirty is for a file that is to be sent again however it looks.
	dirty bool
	// restored is for a file that was made of the object: its ctime and inode
	// are not known.
	restored bool

	// What follows is not stored. hidden is for a file that was restored and is
	// excluded: its object stays as it is. lost is for one that could not be
	// sent.
	hidden, lost bool
}

// index says which objects are the gateway's own. Entries are sorted by path.
type index struct {
	result  Result // of the last call that succeeded; Sent and Deleted are 0
	entries []entry

	etag    store.ETag // "" if there is no index
	damaged bool       // there is one, and nothing could be read of it
	stale   bool       // it is to be written anew even if nothing has changed
}

// header is the first line of an index as an object. It only tells what is
// needed to open the rest, and whose it is.
type header struct {
	Version     int    `json:"version"`
	KeyID       string `json:"keyId"`
	Incarnation string `json:"incarnation"`
}

// summary is the first text of an index.
type summary struct {
	Version int   `json:"version"`
	Files   int64 `json:"files"`
	Skipped int64 `json:"skipped"`
	Bytes   int64 `json:"bytes"`
	Entries int   `json:"entries"`
}

const (
	indexVersion = 1
	maxHeader    = 4 << 10
	// maxIndex bounds an index as an object; it has to be put with a condition.
	maxIndex = store.ConditionalLimit
	// maxPlain bounds an index once it is decompressed.
	maxPlain = 256 << 20
	// window is how far back a match can lie; a reader takes eight times that.
	window  = 1 << 20
	maxETag = 64 << 10

	dirtyFlag    = 1
	restoredFlag = 2
)

// errIndex is for an index that makes no sense.
var errIndex = errors.New("not an index of this version")

// readIndex reads a sandbox's index. Its error is store.ErrNotFound if there is
// none; with snapshot.ErrSuperseded, if it is another incarnation's, and with
// snapshot.ErrDamaged comes an index that has only the ETag.
func (m *Mirror) readIndex(ctx context.Context, ref snapshot.Ref) (*index, error) {
	key := indexKey(ref.ID)
	body, info, err := m.store.Get(ctx, key, store.Range{})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	defer body.Close()
	none := &index{etag: info.ETag, damaged: true, stale: true}
	damaged := func(err error) (*index, error) { return none, &snapshot.DamagedError{Key: key, Err: err} }
	if info.Size > maxIndex {
		return damaged(fmt.Errorf("it has %d bytes, and %d are expected at most", info.Size, maxIndex))
	}
	raw := make([]byte, info.Size)
	if _, err := io.ReadFull(body, raw); err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	line, sealed, _ := bytes.Cut(raw, []byte("\n"))
	var head header
	if len(line) > maxHeader {
		return damaged(errIndex)
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return damaged(fmt.Errorf("%w: %w", errIndex, err))
	}
	if head.Version != indexVersion {
		return damaged(fmt.Errorf("%w: it is of the version %d", errIndex, head.Version))
	}
	if head.Incarnation != ref.Incarnation {
		return none, fmt.Errorf("%w: the mirror of %s is of another incarnation", snapshot.ErrSuperseded, ref.ID)
	}
	compressed, err := m.sealer.Open(sealed, place(key, ref))
	if err != nil {
		return damaged(fmt.Errorf("sealed with key %q: %w", head.KeyID, err))
	}
	at, err := decode(compressed)
	if err != nil {
		return damaged(err)
	}
	at.etag = info.ETag
	at.stale = head.KeyID != m.sealer.KeyID() // so that the key can go
	return at, nil
}

// claim returns the index, making an empty one if there is none: from then on
// every write depends on that nobody deleted or replaced it. A damaged one counts
// as empty. With snapshot.ErrSuperseded comes an index that has only the ETag.
func (m *Mirror) claim(ctx context.Context, ref snapshot.Ref) (*index, error) {
	at, err := m.readIndex(ctx, ref)
	switch {
	case errors.Is(err, store.ErrNotFound):
		at = &index{}
		return at, m.writeIndex(ctx, ref, at)
	case errors.Is(err, snapshot.ErrDamaged):
		m.settings.Log.WarnContext(ctx, "the mirror's index is damaged, so everything is sent again, and what was sent before is nobody's",
			"sandboxId", ref.ID, "error", err)
		return at, nil
	}
	return at, err
}

// writeIndex replaces the index that has at's ETag, or makes it if that is "".
// It fails with ErrConflict if there is another by now.
func (m *Mirror) writeIndex(ctx context.Context, ref snapshot.Ref, at *index) error {
	key := indexKey(ref.ID)
	line, err := json.Marshal(header{Version: indexVersion, KeyID: m.sealer.KeyID(), Incarnation: ref.Incarnation})
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	compressed, err := at.encode()
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	raw := append(append(line, '\n'), m.sealer.Seal(compressed, place(key, ref))...)
	if len(raw) > maxIndex {
		return fmt.Errorf("%w: the mirror's index has %d bytes", snapshot.ErrLimit, len(raw))
	}
	opts := store.PutOptions{IfMatch: at.etag, IfAbsent: at.etag == ""}
	info, err := m.store.Put(ctx, key, bytes.NewReader(raw), int64(len(raw)), opts)
	if err == nil {
		at.etag = info.ETag
		return nil
	}
	// It may be there all the same, if only the reply was lost. Nobody else
	// writes these bytes, for the seal is random.
	if etag, again := m.holds(ctx, key, raw); again == nil && etag != "" {
		at.etag = etag
		return nil
	}
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return fmt.Errorf("writing %s: %w", key, err)
}

// holds returns the ETag of an object if that has exactly these bytes, else "".
func (m *Mirror) holds(ctx context.Context, key string, raw []byte) (store.ETag, error) {
	body, info, err := m.store.Get(ctx, key, store.Range{})
	if err != nil {
		return "", err
	}
	defer body.Close()
	if info.Size != int64(len(raw)) {
		return "", nil
	}
	have := make([]byte, len(raw))
	if _, err := io.ReadFull(body, have); err != nil || !bytes.Equal(have, raw) {
		return "", err
	}
	return info.ETag, nil
}

// encode writes an index compressed.
func (at *index) encode() ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	first, err := json.Marshal(summary{
		Version: indexVersion, Files: at.result.Files, Skipped: at.result.Skipped, Bytes: at.result.Bytes, Entries: len(at.entries),
	})
	if err != nil {
		return nil, err
	}
	plain := 0
	line := appendText(nil, string(first))
	for i := range at.entries {
		line = at.entries[i].append(line)
		if len(line) > 64<<10 {
			plain += len(line)
			if _, err := z.Write(line); err != nil {
				return nil, err
			}
			line = line[:0]
		}
	}
	if plain+len(line) > maxPlain {
		return nil, fmt.Errorf("%w: the mirror's index has %d bytes", snapshot.ErrLimit, plain+len(line))
	}
	if _, err := z.Write(line); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func appendText(to []byte, text string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}

func (e *entry) append(to []byte) []byte {
	flags := byte(0)
	if e.dirty {
		flags |= dirtyFlag
	}
	if e.restored {
		flags |= restoredFlag
	}
	to = appendText(append(to, flags), e.path)
	to = binary.AppendUvarint(to, uint64(e.size))
	to = binary.AppendVarint(to, e.modified)
	to = binary.AppendVarint(to, e.changed)
	to = binary.AppendUvarint(to, e.inode)
	return appendText(to, string(e.etag))
}

// decoder reads an index; after the first error it only returns zeroes.
type decoder struct {
	r   *bufio.Reader
	err error
}

func decode(compressed []byte) (*index, error) {
	z, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(8*window))
	if err != nil {
		return nil, fmt.Errorf("decompressing an index: %w", err)
	}
	defer z.Close()
	d := &decoder{r: bufio.NewReaderSize(io.LimitReader(z, maxPlain), 64<<10)}
	var first summary
	if err := json.Unmarshal([]byte(d.text(maxHeader)), &first); err != nil {
		d.fail(err)
	}
	if d.err == nil && first.Version != indexVersion {
		d.fail(fmt.Errorf("it is of the version %d", first.Version))
	}
	at := &index{result: Result{Files: first.Files, Skipped: first.Skipped, Bytes: first.Bytes}}
	for i := 0; i < first.Entries && d.err == nil; i++ {
		e := d.entry()
		if i > 0 && at.entries[i-1].path >= e.path {
			d.fail(fmt.Errorf("%q is there twice, or out of order", e.path))
		}
		at.entries = append(at.entries, e)
	}
	if d.err != nil {
		return nil, d.err
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something is behind its end", errIndex)
	}
	return at, nil
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %w", errIndex, err)
	}
}

func (d *decoder) entry() entry {
	var e entry
	var flags [1]byte
	d.bytes(flags[:])
	e.dirty, e.restored = flags[0]&dirtyFlag != 0, flags[0]&restoredFlag != 0
	e.path = d.text(store.KeyLimit)
	e.size = int64(d.number(1 << 62))
	e.modified, e.changed = d.signed(), d.signed()
	e.inode = d.number(1<<64 - 1)
	e.etag = store.ETag(d.text(maxETag))
	return e
}

// number reads one that is at most limit.
func (d *decoder) number(limit uint64) uint64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.r)
	if err == nil && n > limit {
		err = fmt.Errorf("%d is more than %d", n, limit)
	}
	if err != nil {
		d.fail(err)
		return 0
	}
	return n
}

func (d *decoder) signed() int64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadVarint(d.r)
	if err != nil {
		d.fail(err)
	}
	return n
}

func (d *decoder) text(limit uint64) string {
	raw := make([]byte, d.number(limit))
	d.bytes(raw)
	return string(raw)
}

func (d *decoder) bytes(into []byte) {
	if d.err != nil {
		return
	}
	if _, err := io.ReadFull(d.r, into); err != nil {
		d.fail(err)
	}
}
