// Package workspace is the gateway's persistence: the records of sandboxes, and
// (with the storage issue) their snapshots and mirrors. Secrets are sealed; what
// is readable is authenticated together with them and with its place.
package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// recordVersion is the version of a record's layout on disk.
const recordVersion = 1

// document is a record as it lies on disk. Record is kept as the bytes that
// were sealed with, so that authentication never depends on how a later
// version would write them.
type document struct {
	Version int             `json:"version"`
	KeyID   string          `json:"keyId"`
	Record  json.RawMessage `json:"record"`
	Sealed  []byte          `json:"sealed"`
}

// Records keeps records in a directory: sandboxes/ID/record.json. One process
// at a time owns it, held by a lock that ends with the process.
type Records struct {
	root   string
	sealer *Sealer
	lock   *os.File
	mu     sync.Mutex // makes compare-and-write one step
}

// OpenRecords opens the store in a directory, making it if it is not there. It
// fails when another gateway owns it, or when it was sealed with another key.
func OpenRecords(root string, sealer *Sealer) (*Records, error) {
	if err := os.MkdirAll(filepath.Join(root, "sandboxes"), 0o700); err != nil {
		return nil, fmt.Errorf("making the store: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator's own path
	if err != nil {
		return nil, fmt.Errorf("opening the store's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another gateway uses the store in %s; stop it, or give this one a DATA_DIR of its own: %w", root, err)
	}
	r := &Records{root: root, sealer: sealer, lock: lock}
	if err := r.checkKey(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return r, nil
}

// Close gives the store up.
func (r *Records) Close() error { return r.lock.Close() }

// checkKey compares the key with the one that the store was begun with.
func (r *Records) checkKey() error {
	path := filepath.Join(r.root, "key-id")
	have, _, err := LoadOrMakeSecret(path, r.sealer.KeyID)
	if err != nil {
		return err
	}
	if have != r.sealer.KeyID() {
		return fmt.Errorf("the store in %s is sealed with key %s and SEALING_KEY is %s: give the key that it was made with", r.root, have, r.sealer.KeyID())
	}
	return nil
}

// Ready returns nil when the store can be written.
func (r *Records) Ready(context.Context) error {
	return writeDurably(filepath.Join(r.root, "ready"), nil)
}

func (r *Records) path(id string) string {
	return filepath.Join(r.root, "sandboxes", id, "record.json")
}

// place is what a record is bound to besides its own readable part.
func place(id string, record []byte) []byte {
	return append([]byte("agentpod record\x00sandboxes/"+id+"/record.json\x00"), record...)
}

func (r *Records) encode(rec lifecycle.Record) ([]byte, lifecycle.Version, error) {
	plain, err := json.Marshal(rec)
	if err != nil {
		return nil, "", fmt.Errorf("encoding a record: %w", err)
	}
	secrets, err := json.Marshal(rec.Secrets)
	if err != nil {
		return nil, "", errors.New("encoding a record's secrets failed") // the cause could hold one
	}
	doc, err := json.Marshal(document{
		Version: recordVersion, KeyID: r.sealer.KeyID(), Record: plain,
		Sealed: r.sealer.Seal(secrets, place(rec.SandboxID, plain)),
	})
	if err != nil {
		return nil, "", fmt.Errorf("encoding a record: %w", err)
	}
	return doc, versionOf(doc), nil
}

func versionOf(doc []byte) lifecycle.Version {
	sum := sha256.Sum256(doc)
	return lifecycle.Version(hex.EncodeToString(sum[:]))
}

func (r *Records) decode(id string, raw []byte) (lifecycle.Stored, error) {
	var none lifecycle.Stored
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return none, fmt.Errorf("decoding a record: %w", err)
	}
	if doc.Version != recordVersion {
		return none, fmt.Errorf("the record has layout %d and this gateway knows %d", doc.Version, recordVersion)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, doc.Record); err != nil {
		return none, fmt.Errorf("decoding a record: %w", err)
	}
	secrets, err := r.sealer.Open(doc.Sealed, place(id, compact.Bytes()))
	if err != nil {
		return none, fmt.Errorf("opening a record sealed with key %s: %w", doc.KeyID, err)
	}
	var rec lifecycle.Record
	if err := json.Unmarshal(doc.Record, &rec); err != nil {
		return none, fmt.Errorf("decoding a record: %w", err)
	}
	if err := json.Unmarshal(secrets, &rec.Secrets); err != nil {
		return none, errors.New("decoding a record's secrets failed")
	}
	if rec.SandboxID != id {
		return none, ErrSeal
	}
	return lifecycle.Stored{Record: rec, Version: versionOf(raw)}, nil
}

// Create adds a record; lifecycle.ErrRecordExists if there is one.
func (r *Records) Create(_ context.Context, rec lifecycle.Record) (lifecycle.Version, error) {
	doc, version, err := r.encode(rec)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	path := r.path(rec.SandboxID)
	if _, err := os.Stat(path); err == nil {
		return "", lifecycle.ErrRecordExists
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("making the record's folder: %w", err)
	}
	if err := writeDurably(path, doc); err != nil {
		return "", err
	}
	// The folder too must be there after a power loss: what belongs to a record
	// that is gone is removed as orphaned.
	return version, syncDir(filepath.Dir(filepath.Dir(path)))
}

// Update replaces a record of that version; lifecycle.ErrRecordChanged if it is
// another, lifecycle.ErrNoRecord if there is none.
func (r *Records) Update(_ context.Context, rec lifecycle.Record, v lifecycle.Version) (lifecycle.Version, error) {
	doc, version, err := r.encode(rec)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	path := r.path(rec.SandboxID)
	old, err := os.ReadFile(path) //nolint:gosec // the id was checked
	if errors.Is(err, fs.ErrNotExist) {
		return "", lifecycle.ErrNoRecord
	}
	if err != nil {
		return "", fmt.Errorf("reading a record: %w", err)
	}
	if have := versionOf(old); have != v && have != version {
		return "", lifecycle.ErrRecordChanged
	}
	return version, writeDurably(path, doc)
}

// Delete removes a record; one that is not there is fine.
func (r *Records) Delete(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	path := r.path(id)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a record: %w", err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		return fmt.Errorf("removing a record's folder: %w", err)
	}
	return syncDir(filepath.Dir(filepath.Dir(path)))
}

// List reads every record. A folder without a record is what a crash in
// mid-create left; it is skipped.
func (r *Records) List(ctx context.Context) (lifecycle.Listing, error) {
	listing := lifecycle.Listing{Unreadable: map[string]error{}}
	entries, err := os.ReadDir(filepath.Join(r.root, "sandboxes"))
	if err != nil {
		return listing, fmt.Errorf("listing the records: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return listing, err
		}
		id := e.Name()
		if !e.IsDir() || sandbox.CheckID(id) != nil {
			continue
		}
		raw, err := os.ReadFile(r.path(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			listing.Unreadable[id] = fmt.Errorf("reading a record: %w", err)
			continue
		}
		stored, err := r.decode(id, raw)
		if err != nil {
			listing.Unreadable[id] = err
			continue
		}
		listing.Stored = append(listing.Stored, stored)
	}
	return listing, nil
}

// writeDurably replaces a file as a whole: after a crash it is the old one or
// the new one. Only the owner can read it.
func writeDurably(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(content); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := tmp.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator's own path
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
