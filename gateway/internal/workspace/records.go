// Package workspace is what the gateway keeps of its sandboxes in the store: their
// records, and the keys that seal them. What is secret in a record is encrypted;
// what is readable is authenticated together with it and with its place.
package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

const (
	// recordsPrefix is where the records are; nothing else is there.
	recordsPrefix = "sandboxes/"
	recordName    = "/record.json"
	readyKey      = "ready"

	// recordVersion is the version of a record's layout.
	recordVersion = 1
	// recordLimit bounds a record in bytes: the largest config that a request
	// can bring (16 MiB), a third more as base64, and room for the rest.
	recordLimit = 24 << 20
	// readers is how many records are read at once.
	readers = 16
	// triedLimit is how many writes of an unknown outcome are remembered. They
	// come one at a time from each sandbox, while the store fails, and a gateway
	// whose store is away for longer than a minute loses its lease.
	triedLimit = 4096
)

// errTooLarge is for an object that is larger than what is kept there can be.
var errTooLarge = errors.New("too large")

// document is a record as it is stored. Record is kept as the bytes that were
// sealed with, so that authentication never depends on how a later version
// would write them.
type document struct {
	Version int             `json:"version"`
	KeyID   string          `json:"keyId"`
	Record  json.RawMessage `json:"record"`
	Sealed  []byte          `json:"sealed"`
}

// Records keeps records in a store: sandboxes/ID/record.json. It is a
// lifecycle.Store, whose versions are the store's ETags. One process at a time
// may use a store, and seeing to that is the caller's work (store.Acquire).
type Records struct {
	store store.Store
	keys  *seal.Keyring

	mu    sync.Mutex
	tried []attempt // oldest first
}

var _ lifecycle.Store = (*Records)(nil)

// attempt is a document that was written without an answer whether it arrived.
type attempt struct {
	id  string
	sum [sha256.Size]byte
}

// NewRecords makes Records in a store, sealed with the keyring's keys. CheckKey
// is to be called before, for it makes sure that they fit.
func NewRecords(s store.Store, keys *seal.Keyring) *Records {
	return &Records{store: s, keys: keys}
}

// Ready returns nil when the store can be written.
func (r *Records) Ready(ctx context.Context) error {
	if _, err := r.store.Put(ctx, readyKey, bytes.NewReader(nil), 0, store.PutOptions{}); err != nil {
		return fmt.Errorf("writing to the store: %w", err)
	}
	return nil
}

func recordKey(id string) string { return recordsPrefix + id + recordName }

// idOf is recordKey backwards; false for what is not a record's key.
func idOf(key string) (string, bool) {
	rest, inside := strings.CutPrefix(key, recordsPrefix)
	id, named := strings.CutSuffix(rest, recordName)
	return id, inside && named && sandbox.CheckID(id) == nil
}

// place is what a record is bound to besides its own readable part.
func place(id string, record []byte) []byte {
	return append([]byte("agentpod record\x00"+recordKey(id)+"\x00"), record...)
}

func (r *Records) encode(rec lifecycle.Record) ([]byte, error) {
	plain, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	var secrets bytes.Buffer
	encoder := json.NewEncoder(&secrets)
	encoder.SetEscapeHTML(false) // it would make a config up to six times as large
	if encoder.Encode(rec.Secrets) != nil {
		return nil, errors.New("encoding a record's secrets failed") // the cause could hold one
	}
	doc, err := json.Marshal(document{
		Version: recordVersion, KeyID: r.keys.KeyID(), Record: plain,
		Sealed: r.keys.Seal(secrets.Bytes(), place(rec.SandboxID, plain)),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	if len(doc) > recordLimit { // it could not be read again
		return nil, fmt.Errorf("the record would have %d bytes, and %d are allowed: %w", len(doc), recordLimit, errTooLarge)
	}
	return doc, nil
}

// parse reads a document without opening it, and returns what it is bound to.
func parse(id string, raw []byte) (doc document, bound []byte, err error) {
	if err := json.Unmarshal(raw, &doc); err != nil {
		return doc, nil, fmt.Errorf("decoding a record: %w", err)
	}
	if doc.Version != recordVersion {
		return doc, nil, fmt.Errorf("the record has layout %d and this gateway knows %d", doc.Version, recordVersion)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, doc.Record); err != nil {
		return doc, nil, fmt.Errorf("decoding a record: %w", err)
	}
	return doc, place(id, compact.Bytes()), nil
}

func (r *Records) decode(id string, raw []byte) (lifecycle.Record, error) {
	var rec lifecycle.Record
	doc, bound, err := parse(id, raw)
	if err != nil {
		return rec, err
	}
	secrets, err := r.keys.Open(doc.Sealed, bound)
	if err != nil {
		return rec, fmt.Errorf("opening a record that says it is sealed with key %.20q: %w", doc.KeyID, err)
	}
	if err := json.Unmarshal(doc.Record, &rec); err != nil {
		return rec, fmt.Errorf("decoding a record: %w", err)
	}
	if json.Unmarshal(secrets, &rec.Secrets) != nil {
		return rec, errors.New("decoding a record's secrets failed")
	}
	if rec.SandboxID != id {
		return rec, seal.ErrSeal
	}
	return rec, nil
}

// Create adds a record; lifecycle.ErrRecordExists if there is one. A record that
// an earlier write of this process left, whose reply was lost, is replaced: its
// sandbox was given up.
func (r *Records) Create(ctx context.Context, rec lifecycle.Record) (lifecycle.Version, error) {
	doc, err := r.encode(rec)
	if err != nil {
		return "", err
	}
	id := rec.SandboxID
	version, err := r.put(ctx, id, doc, store.PutOptions{IfAbsent: true})
	if errors.Is(err, store.ErrExists) {
		var left store.ETag
		if left, err = r.landed(ctx, id); err == nil {
			version, err = r.put(ctx, id, doc, store.PutOptions{IfMatch: left})
		}
	}
	switch {
	case err == nil:
		return version, nil
	case errors.Is(err, store.ErrChanged), errors.Is(err, lifecycle.ErrRecordChanged), errors.Is(err, lifecycle.ErrNoRecord):
		return "", lifecycle.ErrRecordExists
	}
	return "", fmt.Errorf("writing a record: %w", err)
}

// updateTries bounds how often an Update goes on from an earlier write of this
// process that turns out to have arrived.
const updateTries = 3

// Update replaces a record of that version; lifecycle.ErrRecordChanged if it is
// another, lifecycle.ErrNoRecord if there is none. With any other error, a
// version says that the write may have landed all the same; it is the one to
// give to the next Update, which goes on from whichever document is there.
func (r *Records) Update(ctx context.Context, rec lifecycle.Record, v lifecycle.Version) (lifecycle.Version, error) {
	doc, err := r.encode(rec)
	if err != nil {
		return "", err
	}
	base := store.ETag(v)
	for range updateTries {
		if base != "" { // else the create's reply was lost
			version, err := r.put(ctx, rec.SandboxID, doc, store.PutOptions{IfMatch: base})
			switch {
			case err == nil:
				return version, nil
			case unsure(err):
				return v, fmt.Errorf("writing a record: %w", err)
			case !errors.Is(err, store.ErrChanged):
				return "", fmt.Errorf("writing a record: %w", err)
			}
		}
		if base, err = r.landed(ctx, rec.SandboxID); err != nil {
			return "", err
		}
	}
	return "", lifecycle.ErrRecordChanged
}

// put writes a document, and remembers it if it is not known whether it arrived.
func (r *Records) put(ctx context.Context, id string, doc []byte, opts store.PutOptions) (lifecycle.Version, error) {
	opts.ContentType = "application/json"
	info, err := r.store.Put(ctx, recordKey(id), bytes.NewReader(doc), int64(len(doc)), opts)
	if err != nil && unsure(err) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.tried) == triedLimit {
			r.tried = slices.Delete(r.tried, 0, 1)
		}
		r.tried = append(r.tried, attempt{id, sha256.Sum256(doc)})
	}
	return lifecycle.Version(info.ETag), err
}

// unsure tells whether a Put that failed may have had its effect, or may have it yet.
func unsure(err error) bool {
	return !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrChanged) &&
		!errors.Is(err, store.ErrKey) && !errors.Is(err, store.ErrInvalid)
}

// landed returns the ETag of the stored record if it is one that this process
// wrote without an answer. If it is another it fails with
// lifecycle.ErrRecordChanged, if there is none with lifecycle.ErrNoRecord.
func (r *Records) landed(ctx context.Context, id string) (store.ETag, error) {
	raw, info, err := read(ctx, r.store, recordKey(id), recordLimit)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "", lifecycle.ErrNoRecord
	case errors.Is(err, errTooLarge):
		return "", lifecycle.ErrRecordChanged
	case err != nil:
		return "", fmt.Errorf("reading a record: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.tried, attempt{id, sha256.Sum256(raw)}) {
		return "", lifecycle.ErrRecordChanged
	}
	return info.ETag, nil
}

// Delete removes a record; one that is not there is fine.
func (r *Records) Delete(ctx context.Context, id string) error {
	if err := r.store.Delete(ctx, recordKey(id)); err != nil {
		return fmt.Errorf("removing a record: %w", err)
	}
	return nil
}

// List reads every record. It fails if the store is away; a record that is there
// and is not what was written is Unreadable.
func (r *Records) List(ctx context.Context) (lifecycle.Listing, error) {
	listing := lifecycle.Listing{Unreadable: map[string]error{}}
	var mu sync.Mutex
	err := eachRecord(ctx, r.store, func(id string, raw []byte, info store.Info, err error) error {
		var rec lifecycle.Record
		if err == nil {
			rec, err = r.decode(id, raw)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			listing.Unreadable[id] = err
			return nil
		}
		listing.Stored = append(listing.Stored, lifecycle.Stored{Record: rec, Version: lifecycle.Version(info.ETag)})
		return nil
	})
	if err != nil {
		return lifecycle.Listing{}, fmt.Errorf("listing the records: %w", err)
	}
	slices.SortFunc(listing.Stored, func(a, b lifecycle.Stored) int {
		return strings.Compare(a.Record.SandboxID, b.Record.SandboxID)
	})
	return listing, nil
}

// eachRecord reads every record and calls visit with it, several at once. visit
// gets an error for a record that is too large, or that the store has and
// refuses to give out. It ends with the first error that visit returns, or that
// is of the whole store.
func eachRecord(ctx context.Context, s store.Store, visit func(id string, raw []byte, info store.Info, err error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	var failed error
	for found, err := range s.List(ctx, recordsPrefix) {
		if err != nil {
			failed = err
			break
		}
		id, ok := idOf(found.Key)
		if !ok {
			continue
		}
		group.Go(func() error {
			raw, info, err := read(ctx, s, found.Key, recordLimit)
			switch {
			case errors.Is(err, store.ErrNotFound): // deleted meanwhile
				return nil
			case err == nil, errors.Is(err, errTooLarge), errors.Is(err, store.ErrRefused):
				return visit(id, raw, info, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil { // it ended the listing, if both failed
		return err
	}
	return failed
}

// read returns a whole object of at most limit bytes, or errTooLarge.
func read(ctx context.Context, s store.Store, key string, limit int64) ([]byte, store.Info, error) {
	body, info, err := s.Get(ctx, key, store.Range{})
	if err != nil {
		return nil, info, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, info, err
	}
	if int64(len(raw)) > limit {
		return nil, info, fmt.Errorf("%s has more than %d bytes: %w", key, limit, errTooLarge)
	}
	return raw, info, nil
}
