package store

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Get implements Store.
func (r *Retrier) Get(ctx context.Context, key string, rng Range) (io.ReadCloser, Info, error) {
	first, err := retry(ctx, r, func(try context.Context) (*resumed, error) {
		return slotted(ctx, r, func() (*resumed, error) { return r.open(try, ctx, key, rng) })
	})
	if err != nil {
		return nil, Info{}, err
	}
	first.tries = r.policy.Tries
	info, _ := unmarked(first.info, nil)
	return first, info, nil
}

// open opens an object by a try of a reader whose context is whole.
func (r *Retrier) open(try, whole context.Context, key string, rng Range) (*resumed, error) {
	body, info, err := r.inner.Get(try, key, rng)
	if err != nil {
		return nil, err
	}
	end := info.Size
	if rng.Length > 0 {
		end = min(end, rng.Offset+rng.Length)
	}
	return &resumed{retrier: r, ctx: whole, key: key, body: body, info: info, at: rng.Offset, end: end}, nil
}

// resumed is a reader that goes on where the connection broke.
type resumed struct {
	retrier *Retrier
	ctx     context.Context //nolint:containedctx // governs the reader until it is closed, as Store.Get says
	key     string
	body    io.ReadCloser
	info    Info
	at, end int64 // what is to be read of the object
	tries   int   // left until something is read again
}

// Read implements io.Reader.
func (b *resumed) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.tries = b.retrier.policy.Tries
		}
		if errors.Is(err, io.EOF) && b.at < b.end {
			err = fmt.Errorf("reading %q: %w: it ended at byte %d of %d", b.key, ErrAway, b.at, b.end)
		}
		switch {
		case !again(err):
			return n, err
		case b.at == b.end && n > 0: // nothing is missing
			return n, io.EOF
		}
		if err := b.reopen(err); err != nil {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// reopen opens what is still to be read. It takes no slot: a Put that reads from
// here holds one already.
func (b *resumed) reopen(cause error) error {
	b.tries--
	if b.tries <= 0 {
		return cause
	}
	if b.at == b.end {
		b.tries = 0
		return io.EOF
	}
	// Each time that nothing came, more patience: the object may be slow to come.
	patient := withTry(b.ctx, b.retrier.policy.Tries-b.tries)
	next, err := retry(patient, b.retrier, func(try context.Context) (*resumed, error) {
		return b.retrier.open(try, b.ctx, b.key, Range{Offset: b.at, Length: b.end - b.at})
	})
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrRange):
		return fmt.Errorf("reading %q on: %w", b.key, ErrChanged)
	case err != nil:
		return err
	}
	if next.info.ETag != b.info.ETag {
		_ = next.Close()
		return fmt.Errorf("reading %q on: %w", b.key, ErrChanged)
	}
	_ = b.Close()
	b.body = next.body
	return nil
}

// Close implements io.Closer.
func (b *resumed) Close() error { return b.body.Close() }
