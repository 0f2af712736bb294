package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/cenkalti/backoff/v5"
)

// smallBody is up to what size in bytes a body that cannot be rewound is kept in
// memory, so that it can.
const smallBody = 1 << 20

// replayable returns a body that can be read again, if that is to be had, and how.
func replayable(body io.Reader, size int64) (io.Reader, int64, func() error, error) {
	if seeker, ok := body.(io.ReadSeeker); ok {
		start, err := seeker.Seek(0, io.SeekCurrent)
		if err == nil {
			return seeker, size, func() error {
				_, err := seeker.Seek(start, io.SeekStart)
				return err
			}, nil
		}
		return io.MultiReader(body), size, nil, nil // no more than a reader, such as a pipe
	}
	if size > smallBody {
		return body, size, nil, nil
	}
	head, err := io.ReadAll(io.LimitReader(body, smallBody+1))
	if err != nil {
		return nil, 0, nil, fmt.Errorf("reading the body: %w", err)
	}
	if len(head) > smallBody {
		return io.MultiReader(bytes.NewReader(head), body), size, nil, nil
	}
	if size < 0 {
		size = int64(len(head))
	}
	content := bytes.NewReader(head)
	return content, size, func() error { content.Reset(head); return nil }, nil
}

// Put implements Store.
func (r *Retrier) Put(ctx context.Context, key string, body io.Reader, size int64, opts PutOptions) (Info, error) {
	if err := checkPut(key, size, opts); err != nil {
		return Info{}, err
	}
	body, size, rewind, err := replayable(body, size)
	if err != nil {
		return Info{}, fmt.Errorf("putting %q: %w", key, err)
	}
	mark := ""
	if opts.conditional() {
		mark = randomName()
		opts.Metadata = maps.Clone(opts.Metadata)
		if opts.Metadata == nil {
			opts.Metadata = map[string]string{}
		}
		opts.Metadata[markName] = mark
	}
	unsure := false // whether a try may have had its effect
	return unmarked(retry(ctx, r, func(ctx context.Context) (Info, error) {
		if unsure {
			if err := rewind(); err != nil {
				return Info{}, fmt.Errorf("putting %q again: rewinding the body: %w", key, err)
			}
		}
		info, err := slotted(ctx, r, func() (Info, error) { return r.inner.Put(ctx, key, body, size, opts) })
		switch {
		case unsure && mark != "" && (errors.Is(err, ErrExists) || errors.Is(err, ErrChanged)):
			return r.recognise(ctx, key, mark, body, rewind, err)
		case again(err) && rewind == nil:
			return info, backoff.Permanent(err)
		case again(err):
			unsure = true
		}
		return info, err
	}))
}

// recognise looks whether it was this Put that a later try of it ran into.
func (r *Retrier) recognise(ctx context.Context, key, mark string, body io.Reader, rewind func() error, conflict error) (Info, error) {
	info, err := slotted(ctx, r, func() (Info, error) { return r.inner.Head(ctx, key) })
	switch {
	case errors.Is(err, ErrNotFound):
		return Info{}, conflict
	case err != nil:
		return Info{}, err
	case info.Metadata[markName] != mark:
		return Info{}, conflict
	}
	hash := sha256.New()
	if err := rewind(); err != nil {
		return Info{}, err
	}
	if _, err := io.Copy(hash, body); err != nil {
		return Info{}, err
	}
	info.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return info, nil
}
