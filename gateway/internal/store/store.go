// Package store keeps objects under keys, for whoever must find them again after
// a host is gone: one interface, a directory and S3 behind it.
//
// A key is a path such as "sandboxes/abc/record.json"; CheckKey says which are
// legal. Every write is whole or not there at all, and can be made to depend on
// what is stored (PutOptions). Errors are told apart with errors.Is: what a
// caller asked for wrongly, what somebody else did meanwhile (ErrExists,
// ErrChanged, ErrNotFound), and what is the store's own fault (ErrAway).
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

var (
	// ErrNotFound is for a key that holds nothing.
	ErrNotFound = errors.New("no such object")
	// ErrExists is for a Put with IfAbsent on a key that holds something.
	ErrExists = errors.New("the object exists already")
	// ErrChanged is for a Put with IfMatch on a key that holds something else
	// by now, or nothing, and for a read that found another object half-way.
	ErrChanged = errors.New("the object was changed meanwhile")
	// ErrKey is for a key or prefix that is not legal, or that this store
	// cannot hold (a server may have narrower limits than CheckKey).
	ErrKey = errors.New("not a usable key")
	// ErrInvalid is for a call that can never succeed: metadata that cannot be
	// stored, a body that is longer or shorter than was said, both conditions.
	ErrInvalid = errors.New("not a valid call")
	// ErrRange is for a range that begins at or behind the end of an object
	// that is not empty.
	ErrRange = errors.New("the range begins behind the object's end")
	// ErrAway is for everything that is the store's fault. The call may have
	// had its effect or not; what was acknowledged before is still there.
	ErrAway = errors.New("the store is away")
	// ErrRefused comes together with ErrAway if the store answers, but refuses:
	// wrong credentials, no such bucket, a full disk. Somebody has to act, and
	// trying again at once is of no use.
	ErrRefused = errors.New("the store refuses")
	// ErrNoConditions comes together with ErrRefused from Probe if the store
	// does not honour PutOptions' conditions.
	ErrNoConditions = errors.New("the store has no conditional writes")
)

// ConditionalLimit is the greatest size in bytes of a Put with a condition. It
// has to fit into one request, for not every server has conditions on more.
const ConditionalLimit = 64 << 20

// ETag names one state of an object. It is opaque: stores make it in different
// ways, and one that keeps an object's bytes may or may not keep its ETag.
type ETag string

// Info is what a store knows of an object.
type Info struct {
	Key      string
	Size     int64 // bytes of the whole object, also when a range was read
	ETag     ETag
	Modified time.Time
	// ContentType and Metadata come from Get and Head; List leaves them out.
	// Metadata's names are in lower case.
	ContentType string
	Metadata    map[string]string
	// SHA256 is the hash in hexadecimal of the bytes that a Put read and
	// stored. Only Put fills it.
	SHA256 string
}

// PutOptions are what can be said about a Put. IfAbsent and IfMatch exclude
// each other.
type PutOptions struct {
	// ContentType is application/octet-stream if empty.
	ContentType string
	// Metadata is kept with the object. Names are letters, digits, '-' and '_',
	// without regard to case; values any text without line breaks. Together
	// they may take MetadataLimit bytes.
	Metadata map[string]string
	// IfAbsent stores only if the key holds nothing: else ErrExists.
	IfAbsent bool
	// IfMatch stores only if the key holds the object with this ETag: else
	// ErrChanged.
	IfMatch ETag
}

func (o PutOptions) conditional() bool { return o.IfAbsent || o.IfMatch != "" }

// Range is a part of an object: Length bytes from Offset on, or all of them if
// Length is 0. A Length that reaches behind the end is cut. The zero value is
// the whole object.
type Range struct {
	Offset, Length int64
}

// Store keeps objects. All methods can be called concurrently. Besides what
// they name, all can fail with ErrKey, with ErrAway, and with the context's
// error once that is done.
type Store interface {
	// Put reads body to its end and stores it under key, replacing what was
	// there. size is the body's length in bytes, or -1 if it is not known. On
	// return nothing reads from body any more. It is in effect and durable if
	// and only if the error is nil; after ErrAway it may be either. Conditions
	// and their errors are in PutOptions. An error of body's is returned as it
	// is, wrapped.
	Put(ctx context.Context, key string, body io.Reader, size int64, opts PutOptions) (Info, error)
	// Get opens an object, or fails with ErrNotFound or ErrRange. The caller
	// closes the reader; ctx governs it until then. A reader goes on with the
	// object that it began with, or fails with ErrAway or ErrChanged.
	Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error)
	// Head returns what is known of an object, or ErrNotFound.
	Head(ctx context.Context, key string) (Info, error)
	// List yields every object whose key begins with prefix, which ends in '/'
	// or is empty, in no certain order. After an error it ends. Objects that
	// others put there may have keys that are not legal: see CheckKey. The loop
	// may call the store, also to delete what it was given.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// Delete removes an object; that there is none is no error.
	Delete(ctx context.Context, key string) error
	// DeletePrefix removes every object whose key begins with prefix, which
	// ends in '/' and is not empty. After an error some of them may be left.
	DeletePrefix(ctx context.Context, prefix string) error
	// Probe writes, reads, lists and deletes a small object to find out whether the
	// store can do what this interface says. Its error is a sentence for the
	// operator; a store whose conditions do not work is ErrNoConditions.
	Probe(ctx context.Context) error
}

// fault is an error that is the store's, under a text of its own.
type fault struct {
	err   error
	kinds []error
}

func (f *fault) Error() string { return f.err.Error() }

func (f *fault) Unwrap() []error { return append([]error{f.err}, f.kinds...) }

// refused makes an error ErrRefused. Its text is a sentence for the operator and
// says so itself.
func refused(err error, kinds ...error) error {
	return &fault{err: err, kinds: append(kinds, ErrRefused, ErrAway)}
}
