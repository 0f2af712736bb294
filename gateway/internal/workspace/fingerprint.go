package workspace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/seal"
)

const (
	fingerprintKey   = "key.json"
	fingerprintLimit = 64 << 10 // bytes
)

// fingerprint is what the store says about the keys that it was sealed with. It
// is not authenticated: whoever changes it can only make the gateway refuse to
// start, or seal the records again.
type fingerprint struct {
	KeyID string `json:"keyId"` // of the key that seals
	// Former are keys that sealed before. Records are not sealed with them any
	// more; other objects may be, which are never written again.
	Former []string `json:"former"`
	// Rotating are former keys that records may be sealed with still: they are
	// being sealed with KeyID.
	Rotating []string `json:"rotating,omitempty"`
}

// KeyReport is what CheckKey found and did.
type KeyReport struct {
	// Resealed is how many records were sealed with the current key instead of
	// a former one.
	Resealed int
	// Missing are ids of keys that the store was sealed with before and that the
	// keyring lacks: what is sealed with them still cannot be opened.
	Missing []string
}

// CheckKey makes sure that the keyring's keys fit what is stored. A store that
// has no fingerprint (key.json) is given one. If it names a former key, every
// record is sealed with the current key, which can be interrupted at any point
// and is then finished by the next call. A key that does not fit is an error,
// and nothing was changed; it names the key that is wanted by its id. One process
// at a time may call it.
func CheckKey(ctx context.Context, k *seal.Keyring, s store.Store) (KeyReport, error) {
	found, condition, err := readFingerprint(ctx, k, s)
	if err != nil {
		return KeyReport{}, err
	}
	if err := fits(k, found); err != nil {
		return KeyReport{}, err
	}
	if found.KeyID == k.KeyID() && len(found.Rotating) == 0 {
		if condition.IfAbsent {
			_, err = writeFingerprint(ctx, s, found, condition)
		}
		return KeyReport{Missing: missing(k, found.Former)}, err
	}
	return rotate(ctx, k, s, found, condition)
}

// KeyFits makes sure that the keyring's keys fit what is stored, as CheckKey does,
// and that a record can be opened. It changes nothing and may be called at any
// time. It returns the id of the key that the store is sealed with, empty if
// nothing is stored yet.
func KeyFits(ctx context.Context, k *seal.Keyring, s store.Store) (keyID string, err error) {
	found, condition, err := readFingerprint(ctx, k, s)
	if err != nil {
		return "", err
	}
	if err := fits(k, found); err != nil {
		return "", err
	}
	opened, tried, err := openAny(ctx, k, s)
	switch {
	case err != nil:
		return "", err
	case tried > 0 && !opened:
		return "", fmt.Errorf("SEALING_KEY is %s, as %s in the store says it should be, and opens no record: restore the records from a copy of the store, or set the key that sealed them", k.KeyID(), fingerprintKey)
	case tried == 0 && condition.IfAbsent:
		return "", nil
	}
	return found.KeyID, nil
}

// triedRecords is how many records openAny tries: one may be damaged.
const triedRecords = 8

// openAny tells whether one of the first records can be opened, and how many were tried.
func openAny(ctx context.Context, k *seal.Keyring, s store.Store) (opened bool, tried int, err error) {
	records := Records{store: s, keys: k}
	for info, err := range s.List(ctx, recordsPrefix) {
		if err != nil {
			return false, tried, fmt.Errorf("looking for a record: %w", err)
		}
		id, ok := idOf(info.Key)
		if !ok {
			continue
		}
		raw, _, err := read(ctx, s, info.Key, recordLimit)
		if errors.Is(err, store.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err == nil {
			_, err = records.decode(id, raw)
		}
		tried++
		if err == nil || tried == triedRecords {
			return err == nil, tried, nil
		}
	}
	return false, tried, nil
}

// fits returns nil if the keyring has the keys that a fingerprint names.
func fits(k *seal.Keyring, found fingerprint) error {
	if !k.Has(found.KeyID) {
		return fmt.Errorf("the store is sealed with key %s and SEALING_KEY is %s: set SEALING_KEY to the key with the id %[1]s, "+
			"or add that one to SEALING_KEYS_FORMER if the key is to be changed", found.KeyID, k.KeyID())
	}
	for _, id := range found.Rotating {
		if !k.Has(id) {
			return fmt.Errorf("the change of SEALING_KEY to %s was not finished, so records are sealed with key %s: add the key with the id %[2]s to SEALING_KEYS_FORMER", found.KeyID, id)
		}
	}
	return nil
}

// rotate seals every record with the current key.
func rotate(ctx context.Context, k *seal.Keyring, s store.Store, found fingerprint, condition store.PutOptions) (KeyReport, error) {
	// From now on the old key alone will not do.
	begun := fingerprint{
		KeyID:    k.KeyID(),
		Former:   union(k.KeyID(), found.Former),
		Rotating: union(k.KeyID(), found.Rotating, []string{found.KeyID}),
	}
	etag, err := writeFingerprint(ctx, s, begun, condition)
	if err != nil {
		return KeyReport{}, err
	}
	resealed, err := reseal(ctx, k, s)
	if err != nil {
		return KeyReport{}, fmt.Errorf("sealing the records with SEALING_KEY %s, which the next start goes on with: %w", k.KeyID(), err)
	}
	ended := fingerprint{KeyID: k.KeyID(), Former: union(k.KeyID(), begun.Former, begun.Rotating)}
	if _, err := writeFingerprint(ctx, s, ended, store.PutOptions{IfMatch: etag}); err != nil {
		return KeyReport{}, err
	}
	return KeyReport{Resealed: resealed, Missing: missing(k, ended.Former)}, nil
}

// union returns what is in the lists, each once, and without one of them.
func union(without string, lists ...[]string) []string {
	all := []string{}
	for _, id := range slices.Concat(lists...) {
		if id != without && !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	return all
}

func missing(k *seal.Keyring, ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), k.Has)
}

// readFingerprint returns the store's fingerprint, or that of the current key if it
// has none, and the condition for replacing it.
func readFingerprint(ctx context.Context, k *seal.Keyring, s store.Store) (fingerprint, store.PutOptions, error) {
	raw, info, err := read(ctx, s, fingerprintKey, fingerprintLimit)
	if errors.Is(err, store.ErrNotFound) {
		// If it was lost, the records say what to expect.
		others, err := recordKeys(ctx, k, s)
		return fingerprint{KeyID: k.KeyID(), Former: []string{}, Rotating: others}, store.PutOptions{IfAbsent: true}, err
	}
	if err != nil {
		return fingerprint{}, store.PutOptions{}, fmt.Errorf("reading the store's %s: %w", fingerprintKey, err)
	}
	var found fingerprint
	err = json.Unmarshal(raw, &found)
	for _, id := range slices.Concat([]string{found.KeyID}, found.Former, found.Rotating) {
		if err == nil && !isKeyID(id) {
			err = fmt.Errorf("%.20q is no key id", id)
		}
	}
	if err != nil {
		return fingerprint{}, store.PutOptions{}, fmt.Errorf("the store's %s is damaged; delete it to have it made again from the records and SEALING_KEY: %w", fingerprintKey, err)
	}
	return found, store.PutOptions{IfMatch: info.ETag}, nil
}

// isKeyID tells whether a text can be one: see package seal.
func isKeyID(id string) bool { return len(id) == 16 && strings.Trim(id, "0123456789abcdef") == "" }

func writeFingerprint(ctx context.Context, s store.Store, f fingerprint, condition store.PutOptions) (store.ETag, error) {
	raw, err := json.Marshal(f)
	if err != nil {
		return "", fmt.Errorf("encoding the store's %s: %w", fingerprintKey, err)
	}
	condition.ContentType = "application/json"
	info, err := s.Put(ctx, fingerprintKey, bytes.NewReader(raw), int64(len(raw)), condition)
	if err != nil {
		return "", fmt.Errorf("writing the store's %s: %w", fingerprintKey, err)
	}
	return info.ETag, nil
}

// recordKeys returns the ids of the keys besides the current one that records
// say they are sealed with.
func recordKeys(ctx context.Context, k *seal.Keyring, s store.Store) ([]string, error) {
	var mu sync.Mutex
	var ids []string
	err := eachRecord(ctx, s, func(id string, raw []byte, _ store.Info, err error) error {
		if err != nil {
			return nil // a record that cannot be read says nothing
		}
		doc, _, err := parse(id, raw)
		mu.Lock()
		defer mu.Unlock()
		if err == nil && isKeyID(doc.KeyID) {
			ids = union(k.KeyID(), ids, []string{doc.KeyID})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking which keys the records are sealed with: %w", err)
	}
	return ids, nil
}

// reseal seals every record with the current key, and returns how many were not.
// One that is damaged stays as it is.
func reseal(ctx context.Context, k *seal.Keyring, s store.Store) (int, error) {
	var resealed atomic.Int64
	err := eachRecord(ctx, s, func(id string, raw []byte, info store.Info, err error) error {
		if errors.Is(err, errTooLarge) {
			return nil
		}
		if err != nil {
			return err // it may be whole
		}
		changed, err := sealedAgain(k, id, raw)
		if err != nil || changed == nil {
			return err
		}
		_, err = s.Put(ctx, recordKey(id), bytes.NewReader(changed), int64(len(changed)),
			store.PutOptions{ContentType: "application/json", IfMatch: info.ETag})
		if err != nil {
			return fmt.Errorf("writing the record of %s: %w", id, err)
		}
		resealed.Add(1)
		return nil
	})
	return int(resealed.Load()), err
}

// sealedAgain returns a record sealed with the current key, or nil if it is, or if
// it is damaged.
func sealedAgain(k *seal.Keyring, id string, raw []byte) ([]byte, error) {
	doc, bound, err := parse(id, raw)
	if err != nil {
		return nil, nil //nolint:nilerr // as documented
	}
	secrets, by, err := k.OpenBy(doc.Sealed, bound)
	if err != nil || by == k.KeyID() && doc.KeyID == k.KeyID() {
		return nil, nil //nolint:nilerr // as documented
	}
	doc.KeyID, doc.Sealed = k.KeyID(), k.Seal(secrets, bound)
	changed, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the record of %s: %w", id, err)
	}
	return changed, nil
}
