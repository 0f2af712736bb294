package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// source reads a caller's body: never more than was said, not after the context
// is done, and with the body's own failure kept apart from the store's.
type source struct {
	ctx  context.Context //nolint:containedctx // lives for one call, as the context does
	body io.Reader
	size int64 // as the caller said, or -1
	read int64
	err  error // of body or of its size, to be returned to the caller
}

func newSource(ctx context.Context, body io.Reader, size int64) *source {
	return &source{ctx: ctx, body: body, size: size}
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return 0, s.err
	}
	n, err := s.body.Read(p)
	s.read += int64(n)
	switch {
	case s.size >= 0 && s.read > s.size:
		s.err = fmt.Errorf("%w: the body is longer than the %d bytes that were said", ErrInvalid, s.size)
		return 0, s.err
	case errors.Is(err, io.EOF) && s.size >= 0 && s.read < s.size:
		s.err = fmt.Errorf("%w: the body ended after %d bytes of %d", ErrInvalid, s.read, s.size)
		return n, s.err
	case err != nil && !errors.Is(err, io.EOF):
		s.err = fmt.Errorf("reading the body: %w", err)
		return n, s.err
	case errors.Is(err, io.EOF):
		return n, io.EOF
	}
	return n, nil
}

// randomName returns 128 random bits in hexadecimal.
func randomName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
