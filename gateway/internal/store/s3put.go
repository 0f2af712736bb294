package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/minio/minio-go/v7"
)

// Put implements Store.
func (s *S3) Put(ctx context.Context, key string, body io.Reader, size int64, opts PutOptions) (Info, error) {
	full, err := s.full(key)
	if err == nil {
		err = checkPut(key, size, opts)
	}
	if err != nil {
		return Info{}, err
	}
	if ctx.Err() != nil {
		return Info{}, fmt.Errorf("putting %q: %w", key, context.Cause(ctx))
	}
	if opts.conditional() && (size < 0 || size > smallUpload) {
		if err := s.foresee(ctx, key, opts); err != nil {
			return Info{}, err
		}
	}
	u := &upload{s3: s, key: key, full: full, opts: opts, body: newSource(ctx, body, size)}
	info, err := u.put(ctx, body, size)
	if err != nil {
		return Info{}, u.failed(ctx, err)
	}
	info.Key = key
	info.ContentType, info.Metadata = contentTypeOf(opts.ContentType), lowered(opts.Metadata)
	return info, nil
}

// smallUpload is up to what size in bytes a body is sent without looking first
// whether its conditions are met.
const smallUpload = 64 << 10

// foresee returns the error that a Put's conditions are going to be, as far as
// can be known. A server that finds out itself may answer at once and cut the
// connection, and while a body is being sent that looks as if it was away.
func (s *S3) foresee(ctx context.Context, key string, opts PutOptions) error {
	info, err := s.Head(ctx, key)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case opts.IfAbsent && err == nil:
		return fmt.Errorf("putting %q: %w", key, ErrExists)
	case opts.IfMatch != "" && (err != nil || info.ETag != opts.IfMatch):
		return fmt.Errorf("putting %q: %w", key, ErrChanged)
	}
	return nil
}

// upload is one Put.
type upload struct {
	s3        *S3
	key, full string
	opts      PutOptions
	body      *source
}

// errTooLarge is for a conditional body of unknown size, found out while reading.
var errTooLarge = errors.New("too large for a condition")

func (u *upload) failed(ctx context.Context, err error) error {
	switch {
	case u.body.err != nil:
		return fmt.Errorf("putting %q: %w", u.key, u.body.err)
	case errors.Is(err, errTooLarge):
		return tooLarge(u.key)
	}
	var reply minio.ErrorResponse
	unknown := errors.As(err, &reply) && reply.Code == notImplemented
	err = u.s3.failed(ctx, "putting", u.key, err)
	switch {
	case unknown && u.opts.conditional():
		return refused(err, ErrNoConditions)
	case errors.Is(err, ErrChanged) && u.opts.IfAbsent:
		return fmt.Errorf("putting %q: %w", u.key, ErrExists)
	case errors.Is(err, ErrNotFound) && u.opts.IfMatch != "": // some say so if there is nothing to match
		return fmt.Errorf("putting %q: %w", u.key, ErrChanged)
	case errors.Is(err, ErrNotFound): // of an upload, not of what it is to become
		return fmt.Errorf("putting %q: %w: the server lost the upload", u.key, ErrAway)
	}
	return err
}

// put chooses how to send the body: in one request if it may be, from where it is
// if it can be rewound (it has to be hashed first), else from memory.
func (u *upload) put(ctx context.Context, body io.Reader, size int64) (Info, error) {
	if seeker, ok := body.(io.ReadSeeker); ok && size >= 0 && (size <= u.s3.settings.PartSize || u.opts.conditional()) {
		return u.putSeeker(ctx, seeker, size)
	}
	if u.opts.conditional() {
		content, err := io.ReadAll(io.LimitReader(u.body, ConditionalLimit+1))
		switch {
		case err != nil:
			return Info{}, err
		case len(content) > ConditionalLimit:
			return Info{}, errTooLarge
		}
		return u.putBytes(ctx, content)
	}
	if size >= 0 && size <= u.s3.settings.PartSize {
		content := make([]byte, size)
		if _, err := io.ReadFull(u.body, content); err != nil {
			return Info{}, err
		}
		if err := u.atEnd(); err != nil {
			return Info{}, err
		}
		return u.putBytes(ctx, content)
	}
	return u.putLarge(ctx, size)
}

// atEnd reads on where a body should have ended.
func (u *upload) atEnd() error {
	n, err := u.body.Read(make([]byte, 1))
	if n == 0 && errors.Is(err, io.EOF) {
		return nil
	}
	return errors.Join(err, u.body.err)
}

func (u *upload) putSeeker(ctx context.Context, seeker io.ReadSeeker, size int64) (Info, error) {
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		u.body.err = fmt.Errorf("rewinding the body: %w", err)
		return Info{}, u.body.err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, u.body); err != nil {
		return Info{}, err
	}
	content := &window{body: seeker, start: start, size: size}
	return u.putOnce(ctx, content, size, hash.Sum(nil))
}

func (u *upload) putBytes(ctx context.Context, content []byte) (Info, error) {
	sum := sha256.Sum256(content)
	return resend(ctx, u, func(ctx context.Context) (Info, error) {
		return u.putOnce(ctx, &window{body: bytes.NewReader(content), size: int64(len(content))}, int64(len(content)), sum[:])
	})
}

// putOnce sends a body in one request, which the server checks against the hash.
func (u *upload) putOnce(ctx context.Context, content *window, size int64, sum []byte) (Info, error) {
	defer content.revoke()
	opts := u.headers()
	opts.UserMetadata["X-Amz-Checksum-Sha256"] = base64.StdEncoding.EncodeToString(sum)
	if u.opts.IfAbsent {
		opts.SetMatchETagExcept("*")
	}
	if u.opts.IfMatch != "" {
		opts.SetMatchETag(string(u.opts.IfMatch))
	}
	done, err := u.s3.core.PutObject(ctx, u.s3.settings.Bucket, u.full, content, size, "", hex.EncodeToString(sum), opts)
	if err != nil {
		return Info{}, err
	}
	return Info{Size: size, ETag: ETag(done.ETag), Modified: time.Now(), SHA256: hex.EncodeToString(sum)}, nil
}

// headers returns what goes with an object.
func (u *upload) headers() minio.PutObjectOptions {
	metadata := make(map[string]string, len(u.opts.Metadata)+1)
	for name, value := range u.opts.Metadata {
		// With its prefix, or the client takes some names for its own.
		metadata["X-Amz-Meta-"+strings.ToLower(name)] = encodeHeader(value)
	}
	return minio.PutObjectOptions{
		UserMetadata: metadata, ContentType: contentTypeOf(u.opts.ContentType),
		DisableContentSha256: true, // not in chunks: the request names the hash of all
	}
}

const (
	memoryTries = 3
	abortTime   = 10 * time.Second
)

// putLarge sends a body part by part, one of them in memory at a time. A body
// that turns out to be small goes in one request.
func (u *upload) putLarge(ctx context.Context, size int64) (Info, error) {
	buffer, ok := u.s3.buffers.Get().(*[]byte)
	if !ok {
		return Info{}, errors.New("the buffers hold something else")
	}
	defer u.s3.buffers.Put(buffer)
	part := *buffer
	if even := (size + maxParts - 1) / maxParts; even > int64(len(part)) {
		part = make([]byte, even) // an object of more than 160 GB
	}
	n, err := io.ReadFull(u.body, part)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && u.body.err == nil {
		return u.putBytes(ctx, part[:n])
	}
	if err != nil {
		return Info{}, err
	}
	opts := u.headers()
	opts.UserMetadata["X-Amz-Checksum-Algorithm"] = "SHA256"
	id, err := resend(ctx, u, func(ctx context.Context) (string, error) {
		return u.s3.core.NewMultipartUpload(ctx, u.s3.settings.Bucket, u.full, opts) // one too many is swept later
	})
	if err != nil {
		return Info{}, err
	}
	info, err := u.putParts(ctx, id, part)
	if err != nil {
		// The server would keep the parts, and charge for them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
		defer cancel()
		_ = u.s3.core.AbortMultipartUpload(ctx, u.s3.settings.Bucket, u.full, id) // Sweep tries again
	}
	return info, err
}

// putParts sends parts until the body ends; the first is in the buffer.
func (u *upload) putParts(ctx context.Context, id string, part []byte) (Info, error) {
	whole := sha256.New()
	var sent []minio.CompletePart
	var size int64
	for n := len(part); n > 0; {
		if len(sent) == maxParts {
			u.body.err = fmt.Errorf("%w: more than %d parts of %d bytes", ErrInvalid, maxParts, len(part))
			return Info{}, u.body.err
		}
		_, _ = whole.Write(part[:n]) // a hash takes all
		done, err := u.putPart(ctx, id, len(sent)+1, part[:n])
		if err != nil {
			return Info{}, err
		}
		sent = append(sent, done)
		size += int64(n)
		n, err = io.ReadFull(u.body, part)
		if err != nil && (u.body.err != nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)) {
			return Info{}, err
		}
	}
	done, err := u.s3.core.CompleteMultipartUpload(ctx, u.s3.settings.Bucket, u.full, id, sent, minio.PutObjectOptions{})
	if err != nil {
		return Info{}, err
	}
	return Info{Size: size, ETag: ETag(done.ETag), Modified: time.Now(), SHA256: hex.EncodeToString(whole.Sum(nil))}, nil
}

// putPart sends one part.
func (u *upload) putPart(ctx context.Context, id string, number int, part []byte) (minio.CompletePart, error) {
	sum := sha256.Sum256(part)
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	return resend(ctx, u, func(ctx context.Context) (minio.CompletePart, error) {
		content := &window{body: bytes.NewReader(part), size: int64(len(part))}
		defer content.revoke()
		done, err := u.s3.core.PutObjectPart(ctx, u.s3.settings.Bucket, u.full, id, number, content, content.size, minio.PutObjectPartOptions{
			Sha256Hex: hex.EncodeToString(sum[:]), DisableContentSha256: true,
			CustomHeader: http.Header{"X-Amz-Checksum-Sha256": {checksum}},
		})
		return minio.CompletePart{PartNumber: number, ETag: done.ETag, ChecksumSHA256: checksum}, err
	})
}

// resend sends what is in memory. Of a body that cannot be rewound nobody else
// can send it again, so it is tried again here. With a condition it is not: after
// a lost reply the condition would fail for this Put's own object.
func resend[T any](ctx context.Context, u *upload, send func(ctx context.Context) (T, error)) (T, error) {
	if _, rewinds := u.body.body.(io.Seeker); rewinds || u.opts.conditional() {
		return send(ctx)
	}
	tries := 0
	result, err := backoff.Retry(ctx, func() (T, error) {
		result, err := send(withTry(ctx, tries))
		tries++
		if err != nil && !again(u.s3.failed(ctx, "", "", err)) {
			err = backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithMaxTries(memoryTries))
	var permanent *backoff.PermanentError
	if errors.As(err, &permanent) {
		err = permanent.Unwrap()
	}
	return result, err
}

// window is the part of a body that a request sends. The client's transport may
// go on reading after the request has failed, so what it reads can be taken away.
type window struct {
	mu          sync.Mutex
	body        io.ReadSeeker
	start, size int64
	at          int64
	seeked      bool
	revoked     bool
}

func (w *window) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.revoked:
		return 0, errors.New("the request is over")
	case w.at >= w.size:
		return 0, io.EOF
	case !w.seeked:
		if _, err := w.body.Seek(w.start+w.at, io.SeekStart); err != nil {
			return 0, err
		}
		w.seeked = true
	}
	n, err := w.body.Read(p[:min(int64(len(p)), w.size-w.at)])
	w.at += int64(n)
	return n, err
}

// Seek goes to the beginning, which is all that the client asks for.
func (w *window) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.New("only the beginning can be gone to")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at, w.seeked = 0, false
	return 0, nil
}

func (w *window) revoke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked = true
}

// Sweep aborts uploads that were begun longer ago than age and never ended,
// as a gateway leaves them that was killed. It returns how many.
func (s *S3) Sweep(ctx context.Context, age time.Duration) (int, error) {
	ctx, cancel := context.WithCancel(withTry(ctx, alone))
	defer cancel() // ends the listing, if there is an error
	swept := 0
	for begun := range s.core.ListIncompleteUploads(ctx, s.settings.Bucket, s.settings.Prefix, true) {
		if begun.Err != nil {
			return swept, s.failed(ctx, "listing uploads under", s.settings.Prefix, begun.Err)
		}
		if time.Since(begun.Initiated) < age {
			continue
		}
		if err := s.core.AbortMultipartUpload(ctx, s.settings.Bucket, begun.Key, begun.UploadID); err != nil {
			if err := s.failed(ctx, "aborting the upload of", begun.Key, err); !errors.Is(err, ErrNotFound) {
				return swept, err
			}
		}
		swept++
	}
	return swept, nil
}
