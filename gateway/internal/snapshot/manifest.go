package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// chunk is where some of a file's content is.
type chunk struct {
	hash           [sha256.Size]byte // of the content
	pack           int32             // index in the manifest's packs
	offset, length int32             // in the unpacked pack
}

// entry is an Entry with its content.
type entry struct {
	Entry
	unsettled bool // may have changed since without a sign of it
	chunks    []chunk
}

// pack is an object with content.
type pack struct {
	name   string // behind "snapshots/ID/packs/"
	plain  int64  // bytes unpacked
	stored int64  // bytes of the object
}

// manifest is everything about a snapshot but the content. Entries are sorted.
type manifest struct {
	header  header
	packs   []pack
	entries []entry
}

type header struct {
	Version     int    `json:"version"`
	ID          string `json:"id"`
	Sandbox     string `json:"sandbox"`
	Incarnation string `json:"incarnation"`
	ListedNs    int64  `json:"listedNs"`
	Packs       int    `json:"packs"`
	Entries     int    `json:"entries"`
}

const (
	manifestVersion = 1
	unsettledFlag   = 1
	maxHeader       = 4 << 10
	// maxManifest bounds a manifest in memory, packed and unpacked.
	maxManifest = 1 << 30
)

// encode writes a manifest compressed, and returns its length before that.
func (m *manifest) encode() (compressed []byte, plain int64, err error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, 0, fmt.Errorf("compressing a manifest: %w", err)
	}
	m.header.Version, m.header.Packs, m.header.Entries = manifestVersion, len(m.packs), len(m.entries)
	first, err := json.Marshal(m.header)
	if err != nil {
		return nil, 0, fmt.Errorf("encoding a manifest: %w", err)
	}
	line := appendText(nil, string(first))
	flush := func() {
		if err == nil {
			plain += int64(len(line))
			_, err = z.Write(line)
		}
		line = line[:0]
	}
	for _, p := range m.packs {
		line = appendText(line, p.name)
		line = binary.AppendUvarint(line, uint64(p.plain))
		line = binary.AppendUvarint(line, uint64(p.stored))
	}
	flush()
	for i := range m.entries {
		line = appendEntry(line, &m.entries[i])
		if len(line) > 64<<10 {
			flush()
		}
	}
	flush()
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, 0, fmt.Errorf("compressing a manifest: %w", err)
	}
	return out.Bytes(), plain, nil
}

func appendText(to []byte, text string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}

func appendEntry(to []byte, e *entry) []byte {
	flags := byte(0)
	if e.unsettled {
		flags = unsettledFlag
	}
	to = append(to, byte(e.Type), flags)
	to = appendText(to, e.Path)
	to = binary.AppendUvarint(to, uint64(e.Mode))
	to = binary.AppendVarint(to, e.ModifiedNs)
	to = binary.AppendVarint(to, e.ChangedNs)
	to = binary.AppendUvarint(to, e.Inode)
	switch e.Type {
	case File:
		to = binary.AppendUvarint(to, uint64(e.Size))
		to = binary.AppendUvarint(to, uint64(len(e.chunks)))
		for _, c := range e.chunks {
			to = binary.AppendUvarint(to, uint64(c.pack))
			to = binary.AppendUvarint(to, uint64(c.offset))
			to = binary.AppendUvarint(to, uint64(c.length))
			to = append(to, c.hash[:]...)
		}
	case Symlink:
		to = appendText(to, e.Target)
	case Directory:
	}
	return to
}

// errManifest is for a manifest that was sealed by us and makes no sense.
var errManifest = errors.New("not a manifest of this version")

// decoder reads a manifest; after the first error it only returns zeroes.
type decoder struct {
	r   *bufio.Reader
	err error
}

// decode reads a manifest that is plain bytes long once it is decompressed, or
// only its header and packs.
func decode(compressed []byte, plain int64, packsOnly bool) (*manifest, error) {
	z, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(8*window))
	if err != nil {
		return nil, fmt.Errorf("decompressing a manifest: %w", err)
	}
	defer z.Close()
	d := &decoder{r: bufio.NewReaderSize(io.LimitReader(z, plain), 64<<10)}
	m := &manifest{}
	if err := json.Unmarshal([]byte(d.text(maxHeader)), &m.header); err != nil && d.err == nil {
		d.err = fmt.Errorf("%w: %w", errManifest, err)
	}
	if d.err == nil && m.header.Version != manifestVersion {
		d.err = fmt.Errorf("%w: it is of the version %d", errManifest, m.header.Version)
	}
	for i := 0; i < m.header.Packs && d.err == nil; i++ {
		p := pack{name: d.text(200), plain: d.number(maxPack), stored: d.number(2 * maxPack)}
		m.packs = append(m.packs, p)
	}
	if packsOnly {
		return m, d.err
	}
	for i := 0; i < m.header.Entries && d.err == nil; i++ {
		m.entries = append(m.entries, d.entry(m.packs))
	}
	if d.err != nil {
		return nil, d.err
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something is behind its end", errManifest)
	}
	return m, checkOrder(len(m.entries), func(i int) *Entry { return &m.entries[i].Entry })
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %w", errManifest, err)
	}
}

// number reads one that is at most limit.
func (d *decoder) number(limit uint64) int64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.r)
	if err != nil {
		d.fail(err)
		return 0
	}
	if n > limit {
		d.fail(fmt.Errorf("%d is more than %d", n, limit))
		return 0
	}
	return int64(n)
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

func (d *decoder) inode() uint64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.r)
	if err != nil {
		d.fail(err)
	}
	return n
}

func (d *decoder) bytes(into []byte) {
	if d.err != nil {
		return
	}
	if _, err := io.ReadFull(d.r, into); err != nil {
		d.fail(err)
	}
}

func (d *decoder) text(limit uint64) string {
	raw := make([]byte, d.number(limit))
	d.bytes(raw)
	return string(raw)
}

func (d *decoder) entry(packs []pack) entry {
	var e entry
	var head [2]byte
	d.bytes(head[:])
	e.Type, e.unsettled = Type(head[0]), head[1]&unsettledFlag != 0
	e.Path = d.text(maxName)
	e.Mode = uint32(d.number(0o7777))
	e.ModifiedNs, e.ChangedNs, e.Inode = d.signed(), d.signed(), d.inode()
	switch e.Type {
	case File:
		e.Size = d.number(1 << 62)
		d.content(&e, packs)
	case Symlink:
		e.Target = d.text(maxName)
	case Directory:
	}
	if err := check(e.Entry); err != nil && d.err == nil {
		d.fail(err)
	}
	return e
}

// content reads a file's chunks. Together they are as long as the file, and each
// is inside of its pack.
func (d *decoder) content(e *entry, packs []pack) {
	left := e.Size
	count := d.number(1 << 31)
	for i := int64(0); i < count && d.err == nil; i++ {
		c := chunk{pack: int32(d.number(1<<31 - 1)), offset: int32(d.number(maxPack)), length: int32(d.number(maxPack))}
		d.bytes(c.hash[:])
		if d.err != nil {
			return
		}
		if int(c.pack) >= len(packs) || c.length == 0 || int64(c.offset)+int64(c.length) > packs[c.pack].plain {
			d.fail(fmt.Errorf("the content of %q is not where it says", e.Path))
			return
		}
		left -= int64(c.length)
		e.chunks = append(e.chunks, c)
	}
	if left != 0 {
		d.fail(fmt.Errorf("the chunks of %q are not of its size", e.Path))
	}
}
