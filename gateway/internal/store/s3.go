package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	defaultPartSize = 16 << 20
	minPartSize     = 5 << 20
	maxParts        = 10_000
)

// S3 is a Store in a bucket. It does not retry, but for what it holds in memory
// of a body that cannot be rewound: Retrier does. A request in which nothing moves
// is given up, after a time that follows from what it sends and from which try it
// is (patience).
type S3 struct {
	core      minio.Core
	settings  S3Settings
	transport *http.Transport
	buffers   sync.Pool // of *[]byte, PartSize long
}

var _ Store = (*S3)(nil)

// NewS3 makes the store of a bucket. It does not reach out to the server: Probe
// does.
func NewS3(settings S3Settings) (*S3, error) {
	endpoint, err := settings.check()
	if err != nil {
		return nil, err
	}
	if settings.PartSize == 0 {
		settings.PartSize = defaultPartSize
	}
	transport, err := settings.transport()
	if err != nil {
		return nil, err
	}
	lookup := minio.BucketLookupAuto
	switch settings.Addressing {
	case AddressingAuto:
	case AddressingPath:
		lookup = minio.BucketLookupPath
	case AddressingHost:
		lookup = minio.BucketLookupDNS
	}
	core, err := minio.NewCore(endpoint.Host, &minio.Options{
		Creds:        credentials.NewStaticV4(settings.AccessKey, settings.SecretKey, ""),
		Secure:       endpoint.Scheme == "https",
		Region:       settings.Region,
		BucketLookup: lookup,
		Transport:    patient{transport},
		MaxRetries:   1, // one try: Retrier retries, and two that do would multiply
	})
	if err != nil {
		return nil, fmt.Errorf("the S3 endpoint %s: %w", settings.Endpoint, err)
	}
	s := &S3{core: *core, settings: settings, transport: transport}
	s.buffers.New = func() any {
		buffer := make([]byte, settings.PartSize)
		return &buffer
	}
	return s, nil
}

// Close drops idle connections.
func (s *S3) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Probe implements Store.
func (s *S3) Probe(ctx context.Context) error {
	if err := probe(ctx, s); err != nil {
		return failedProbe(s.String(), err)
	}
	return nil
}

// Clock asks the server for its time, which it gives to the second, whoever asks.
func (s *S3) Clock(ctx context.Context) (time.Time, error) {
	req, err := http.NewRequestWithContext(withTry(ctx, alone), http.MethodHead, s.settings.Endpoint, nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking %s for its time: %w", s.settings.Endpoint, err)
	}
	reply, err := patient{s.transport}.RoundTrip(req)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking %s for its time: %w", s.settings.Endpoint, err)
	}
	defer reply.Body.Close()
	at, err := http.ParseTime(reply.Header.Get("Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("%s does not say its time: %w", s.settings.Endpoint, err)
	}
	return at, nil
}

// String names the bucket for people.
func (s *S3) String() string {
	return fmt.Sprintf("the bucket %s at %s", s.settings.Bucket, s.settings.Endpoint)
}

// full returns the key in the bucket.
func (s *S3) full(key string) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	full := s.settings.Prefix + key
	if len(full) > KeyLimit {
		return "", fmt.Errorf("%w: with the prefix it has %d bytes, and %d are allowed", ErrKey, len(full), KeyLimit)
	}
	return full, nil
}

// Head implements Store.
func (s *S3) Head(ctx context.Context, key string) (Info, error) {
	full, err := s.full(key)
	if err != nil {
		return Info{}, err
	}
	object, err := s.core.StatObject(ctx, s.settings.Bucket, full, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s.failed(ctx, "looking at", key, err)
	}
	return infoOfObject(key, object), nil
}

func infoOfObject(key string, object minio.ObjectInfo) Info {
	info := Info{
		Key: key, Size: object.Size, ETag: ETag(object.ETag), Modified: object.LastModified,
		ContentType: contentTypeOf(object.ContentType), Metadata: make(map[string]string, len(object.UserMetadata)),
	}
	for name, value := range object.UserMetadata {
		info.Metadata[strings.ToLower(name)] = value
	}
	return info
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	full, err := s.full(key)
	if err == nil {
		err = checkRange(r)
	}
	if err != nil {
		return nil, Info{}, err
	}
	opts := minio.GetObjectOptions{}
	switch {
	case r.Length > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
	case r.Offset > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-", r.Offset))
	}
	body, object, header, err := s.core.GetObject(ctx, s.settings.Bucket, full, opts)
	if err != nil {
		err = s.failed(ctx, "reading", key, err)
		if errors.Is(err, ErrRange) && r.Offset == 0 { // of an empty object there is no first byte
			return s.Get(ctx, key, Range{})
		}
		return nil, Info{}, err
	}
	info := infoOfObject(key, object)
	if ranged := header.Get("Content-Range"); ranged != "" {
		_, total, _ := strings.Cut(ranged, "/")
		if info.Size, err = strconv.ParseInt(total, 10, 64); err != nil {
			_ = body.Close()
			return nil, Info{}, fmt.Errorf("reading %q: the server's Content-Range is %q: %w", key, ranged, ErrAway)
		}
	} else if r.Offset > 0 || r.Length > 0 && r.Length < info.Size {
		_ = body.Close()
		return nil, Info{}, refused(fmt.Errorf("reading %q: %s ignores ranges: use a server that knows them", key, s.settings.Endpoint)) //nolint:err113 // a sentence for people; refused adds what programs need
	}
	return &s3Body{ReadCloser: body, ctx: ctx, store: s, key: key}, info, nil
}

// s3Body tells what goes wrong while a body is read.
type s3Body struct {
	io.ReadCloser
	ctx   context.Context //nolint:containedctx // governs the reader until it is closed, as Store.Get says
	store *S3
	key   string
}

// Read implements io.Reader.
func (b *s3Body) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil { // the connection finds out a little later
		return 0, context.Cause(b.ctx)
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.store.failed(b.ctx, "reading", b.key, err)
	}
	return n, err
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		for object := range s.objects(ctx, prefix) {
			if object.Err != nil {
				yield(Info{}, s.failed(ctx, "listing", prefix, object.Err))
				return
			}
			key := strings.TrimPrefix(object.Key, s.settings.Prefix)
			if !yield(Info{Key: key, Size: object.Size, ETag: ETag(object.ETag), Modified: object.LastModified}, nil) {
				return
			}
		}
		if ctx.Err() != nil { // the client ends without a word then
			yield(Info{}, context.Cause(ctx))
		}
	}
}

func (s *S3) objects(ctx context.Context, prefix string) iter.Seq[minio.ObjectInfo] {
	return s.core.ListObjectsIter(ctx, s.settings.Bucket, minio.ListObjectsOptions{
		Prefix: s.settings.Prefix + prefix, Recursive: true,
	})
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) error {
	full, err := s.full(key)
	if err != nil {
		return err
	}
	err = s.core.RemoveObject(ctx, s.settings.Bucket, full, minio.RemoveObjectOptions{})
	if err == nil {
		return nil
	}
	if err := s.failed(ctx, "deleting", key, err); !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

const (
	deleteBatch  = 1000 // what one request may hold
	deletePasses = 3
)

// DeletePrefix implements Store.
func (s *S3) DeletePrefix(ctx context.Context, prefix string) error {
	if err := checkDeletable(prefix); err != nil {
		return err
	}
	// Servers may say that they deleted what they did not, and others may put
	// objects meanwhile, so only an empty listing is the end.
	for range deletePasses {
		found, err := s.deletePass(ctx, prefix)
		if err != nil || found == 0 {
			return err
		}
	}
	return fmt.Errorf("deleting %q: there are objects still, or again: %w", prefix, ErrAway)
}

// deletePass deletes what is under a prefix once, and returns how much it was.
func (s *S3) deletePass(ctx context.Context, prefix string) (int, error) {
	found := 0
	var batch []minio.ObjectInfo
	flush := func() error {
		results, err := s.core.RemoveObjectsWithIter(ctx, s.settings.Bucket, slices.Values(batch), minio.RemoveObjectsOptions{})
		if err != nil {
			return err
		}
		for result := range results {
			if result.Err != nil {
				err = result.Err
			}
		}
		batch = batch[:0]
		return err
	}
	for object := range s.objects(ctx, prefix) {
		if object.Err != nil {
			return found, s.failed(ctx, "listing", prefix, object.Err)
		}
		found++
		if batch = append(batch, object); len(batch) == deleteBatch {
			if err := flush(); err != nil {
				return found, s.failed(ctx, "deleting", prefix, err)
			}
		}
	}
	if ctx.Err() != nil {
		return found, context.Cause(ctx)
	}
	if len(batch) > 0 {
		if err := flush(); err != nil {
			return found, s.failed(ctx, "deleting", prefix, err)
		}
	}
	return found, nil
}
