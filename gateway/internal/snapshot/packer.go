package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

// packer makes packs of files' content and uploads them. Its methods are for
// one goroutine; the uploads run beside it.
type packer struct {
	engine *Engine
	ref    Ref
	id     string // the snapshot's
	group  *errgroup.Group
	known  map[[sha256.Size]byte]chunk // content that some pack has already

	packs []*pack // the base's, then the new ones; stored is set once it is uploaded
	fresh int     // how many are new
	open  []byte  // the pack of small files that is being filled
	index int32   // its index in packs; -1 if there is none
	left  int64   // bytes that the tree may still have
	sent  atomic.Int64
}

func (p *packer) add(class string) int32 {
	p.fresh++
	p.packs = append(p.packs, &pack{name: fmt.Sprintf("%s/%s%06d", p.id, class, p.fresh)})
	return int32(len(p.packs) - 1)
}

// file reads a file's content and returns where it will be.
func (p *packer) file(ctx context.Context, size int64, r io.Reader) ([]chunk, error) {
	if size > p.left {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrLimit, p.engine.settings.MaxBytes)
	}
	p.left -= size
	var chunks []chunk
	var err error
	switch {
	case size == 0:
	case size <= int64(p.engine.settings.SmallFile):
		chunks, err = p.small(ctx, int(size), r)
	default:
		chunks, err = p.large(ctx, size, r)
	}
	if err != nil {
		return nil, err
	}
	var more [1]byte
	switch n, err := io.ReadFull(r, more[:]); {
	case n != 0:
		return nil, fmt.Errorf("%w: it has more than the %d bytes that were said", ErrTree, size)
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return chunks, nil
}

func full(r io.Reader, into []byte) error {
	_, err := io.ReadFull(r, into)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it has fewer bytes than were said", ErrTree)
	}
	return err
}

// small puts a file into the open pack.
func (p *packer) small(ctx context.Context, size int, r io.Reader) ([]chunk, error) {
	if len(p.open)+size > p.engine.settings.PackSize {
		if err := p.flush(ctx); err != nil {
			return nil, err
		}
	}
	if p.open == nil {
		p.open = p.engine.buffer()
	}
	start := len(p.open)
	p.open = grown(p.open, start+size, p.engine.settings.PackSize)
	if err := full(r, p.open[start:]); err != nil {
		return nil, err
	}
	hash := sha256.Sum256(p.open[start:])
	if c, ok := p.known[hash]; ok {
		p.open = p.open[:start]
		return []chunk{c}, nil
	}
	if p.index < 0 {
		p.index = p.add("s")
	}
	c := chunk{hash: hash, pack: p.index, offset: int32(start), length: int32(size)}
	p.known[hash] = c
	return []chunk{c}, nil
}

// large cuts a file into chunks, each an object of its own.
func (p *packer) large(ctx context.Context, size int64, r io.Reader) ([]chunk, error) {
	var chunks []chunk
	var buffer []byte
	for size > 0 {
		length := int(min(size, int64(p.engine.settings.PackSize)))
		if buffer == nil {
			buffer = p.engine.buffer()
		}
		buffer = grown(buffer[:0], length, p.engine.settings.PackSize)
		if err := full(r, buffer); err != nil {
			return nil, err
		}
		size -= int64(length)
		hash := sha256.Sum256(buffer)
		c, ok := p.known[hash]
		if !ok {
			c = chunk{hash: hash, pack: p.add("c"), length: int32(length)}
			p.known[hash] = c
			if err := p.submit(ctx, c.pack, buffer); err != nil {
				return nil, err
			}
			buffer = nil
		}
		chunks = append(chunks, c)
	}
	if buffer != nil {
		p.engine.free(buffer)
	}
	return chunks, nil
}

// flush uploads the open pack.
func (p *packer) flush(ctx context.Context) error {
	open, index := p.open, p.index
	p.open, p.index = nil, -1
	if len(open) == 0 {
		return nil
	}
	return p.submit(ctx, index, open)
}

// submit waits until there is room, and uploads meanwhile what it was given.
func (p *packer) submit(ctx context.Context, index int32, plain []byte) error {
	weight := int64(len(plain))
	if err := p.engine.budget.Acquire(ctx, weight); err != nil {
		return err
	}
	to := p.packs[index]
	p.group.Go(func() error {
		defer p.engine.budget.Release(weight)
		return p.upload(ctx, to, plain)
	})
	return nil
}

func (p *packer) upload(ctx context.Context, to *pack, plain []byte) error {
	key := packKey(p.ref.ID, to.name)
	select {
	case p.engine.pressing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	// With room for what cannot be compressed: an encoder that runs out of it makes
	// a buffer that is too large to be given back.
	into := p.engine.buffer()
	if most := p.engine.encoder.MaxEncodedSize(len(plain)); cap(into) < most {
		into = make([]byte, 0, most)
	}
	compressed := p.engine.encoder.EncodeAll(plain, into)
	to.plain = int64(len(plain))
	p.engine.free(plain)
	sealed := p.engine.sealer.Seal(compressed, place(key, p.ref))
	p.engine.free(compressed)
	<-p.engine.pressing
	to.stored = int64(len(sealed))
	if _, err := p.engine.store.Put(ctx, key, bytes.NewReader(sealed), to.stored, store.PutOptions{}); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	p.sent.Add(to.stored)
	return nil
}

// buffer returns an empty one; grown makes it larger. Only what came from here is
// given back: with what a sealer made the pool would grow by one a pack.
func (e *Engine) buffer() []byte {
	if b, ok := e.buffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return []byte{}
}

// free gives back a buffer that nobody uses any more.
func (e *Engine) free(b []byte) {
	if cap(b) <= e.settings.PackSize+e.settings.PackSize/8 {
		e.buffers.Put(&b)
	}
}

// grown returns a buffer with that length and what was in it. It doubles, so
// that a small sandbox needs little, and a full pack fits without a rest.
func grown(b []byte, length, full int) []byte {
	if length <= cap(b) {
		return b[:length]
	}
	larger := make([]byte, length, max(length, min(2*cap(b), full)))
	copy(larger, b)
	return larger
}
