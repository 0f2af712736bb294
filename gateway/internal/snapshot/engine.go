// Package snapshot keeps whole trees of files in a store, so that a sandbox can
// be made again after its host is gone: immutable packs of content, one immutable
// manifest a snapshot, and one pointer that is replaced at the end.
//
// Everything is sealed and bound to its key and to the sandbox's incarnation.
// Nothing that a tree says is believed: paths and sizes are checked, and hashes
// are of the bytes that arrived. docs/snapshot-format.md has the format.
package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"github.com/agentpod/agentpod/gateway/internal/gate"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/sandbox"
)

var (
	// ErrNoSnapshot is for a sandbox without a snapshot, or without that one.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrDamaged is for a stored object that is missing, was changed or moved, or
	// was sealed with another key. It comes as a *DamagedError.
	ErrDamaged = errors.New("damaged in the store")
	// ErrSuperseded is for a call whose sandbox was deleted or made anew
	// meanwhile: what is stored belongs to another incarnation.
	ErrSuperseded = errors.New("the sandbox is not the one that it was")
	// ErrConflict is for a call during which somebody else changed the
	// sandbox's snapshots. Nothing was committed, and it can be tried again.
	ErrConflict = errors.New("the sandbox's snapshots were changed meanwhile")
	// ErrTree is for a tree that does not keep to what Tree says.
	ErrTree = errors.New("the sandbox's files are not listed or sent as they must be")
	// ErrLimit is for a tree that is larger than Settings allow.
	ErrLimit = errors.New("the sandbox has more files than can be kept")
)

// DamagedError names the object that is damaged. It is an ErrDamaged.
type DamagedError struct {
	Key string // in the store
	Err error  // what is wrong with it
}

func (d *DamagedError) Error() string { return fmt.Sprintf("%s: %v: %v", d.Key, ErrDamaged, d.Err) }

func (d *DamagedError) Unwrap() []error { return []error{ErrDamaged, d.Err} }

func damaged(key string, err error) error { return &DamagedError{Key: key, Err: err} }

// Sealer encrypts and authenticates. What was sealed opens only with the same
// context. Its methods can be called concurrently.
type Sealer interface {
	Seal(plain, context []byte) []byte
	Open(sealed, context []byte) ([]byte, error)
	// KeyID names the key that Seal uses. Open may know more keys.
	KeyID() string
}

// Ref is one incarnation of a sandbox.
type Ref struct {
	ID          string // of the form that sandbox.CheckID wants
	Incarnation string // not empty, but in Delete
}

func (r Ref) checkID() error {
	if err := sandbox.CheckID(r.ID); err != nil {
		return fmt.Errorf("a snapshot's sandbox: %w", err)
	}
	return nil
}

func (r Ref) check() error {
	if err := r.checkID(); err != nil {
		return err
	}
	if r.Incarnation == "" || len(r.Incarnation) > 200 {
		return fmt.Errorf("a snapshot's sandbox %s has no usable incarnation", r.ID)
	}
	return nil
}

// Snapshot is what is known of a snapshot without reading it.
type Snapshot struct {
	ID        string
	CreatedAt time.Time
	Files     int64 // regular files
	Bytes     int64 // of their content
	Sent      int64 // bytes that Take wrote to the store for it; 0 from elsewhere
	// Collapsed says that this snapshot, which Take has just made, has next to
	// nothing of what the one before had; Before is that one's id. False and
	// empty from elsewhere.
	Collapsed bool
	Before    string
}

// Settings are what can be chosen. Zero values mean the defaults.
type Settings struct {
	// Keep is how many snapshots a sandbox has, besides one from before a
	// collapse; the default is 3.
	Keep int
	// PackSize is how many bytes of small files go into a pack, and the size of
	// the chunks of large ones; the default is 8 MiB, the greatest maxPack.
	PackSize int
	// SmallFile is the greatest size of a file that shares a pack; the default
	// is 1 MiB.
	SmallFile int
	// Memory is how many bytes may be on their way to the store at once, by all
	// snapshots together; the default is 16 MiB. Each adds up to two packs, and
	// what is being compressed.
	Memory int64
	// Margin is how long before the listing a file must have been changed last
	// to be trusted not to have changed since; the default is 1 s. It has to be
	// more than the clocks of gateway and sandbox are apart.
	Margin time.Duration
	// MaxEntries, MaxNames and MaxBytes bound a tree: its entries (default
	// 500 000), the bytes of their paths and links (64 MiB), and of its files'
	// content (256 GiB).
	MaxEntries int
	MaxNames   int64
	MaxBytes   int64
	// Log is told what was worked around; the default is nobody.
	Log *slog.Logger
}

// maxPack bounds what one object of a snapshot can unpack to.
const maxPack = 64 << 20

func (s Settings) withDefaults() Settings {
	s.Keep = orDefault(s.Keep, 3)
	s.PackSize = min(orDefault(s.PackSize, 8<<20), maxPack)
	s.SmallFile = min(orDefault(s.SmallFile, 1<<20), s.PackSize)
	s.Memory = max(orDefault(s.Memory, 16<<20), int64(s.PackSize))
	s.Margin = orDefault(s.Margin, time.Second)
	s.MaxEntries = orDefault(s.MaxEntries, 500_000)
	s.MaxNames = orDefault(s.MaxNames, 64<<20)
	s.MaxBytes = orDefault(s.MaxBytes, 256<<30)
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	return s
}

func orDefault[T int | int64 | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

// Engine takes, restores and collects snapshots. Its methods can be called
// concurrently; those for one sandbox wait for each other, but for List.
type Engine struct {
	store    store.Store
	sealer   Sealer
	settings Settings
	gates    gate.Gates
	budget   *semaphore.Weighted // bytes on their way to the store
	pressing chan struct{}       // held while compressing
	encoder  *zstd.Encoder
	decoder  *zstd.Decoder
	buffers  sync.Pool
	now      func() time.Time
}

const (
	// compressors is how many packs are compressed at once.
	compressors = 2
	// window is how far back a match can lie. More finds little in source text,
	// and every compressor holds it.
	window = 1 << 20
)

// New makes an Engine. The store should retry by itself (store.Retrier).
func New(s store.Store, sealer Sealer, settings Settings) *Engine {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(compressors), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(compressors), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(maxPack), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err)
	}
	settings = settings.withDefaults()
	return &Engine{
		store: s, sealer: sealer, settings: settings,
		budget: semaphore.NewWeighted(settings.Memory), pressing: make(chan struct{}, compressors),
		encoder: encoder, decoder: decoder, now: time.Now,
	}
}

// enter waits for the turn on a sandbox: see gate.Gates.
func (e *Engine) enter(ctx context.Context, ref Ref) (inside context.Context, leave func(), err error) {
	inside, leave, err = e.gates.Enter(ctx, ref.ID, ref.Incarnation)
	if err != nil {
		return nil, nil, fmt.Errorf("waiting for what is done with the sandbox's snapshots: %w", err)
	}
	return inside, leave, nil
}

// newID makes a name that sorts by time and that nobody else makes.
func newID(now time.Time) string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: see crypto/rand
	return now.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:])
}

// List returns a sandbox's snapshots, the newest first, and none if it has none.
func (e *Engine) List(ctx context.Context, ref Ref) ([]Snapshot, error) {
	if err := ref.check(); err != nil {
		return nil, err
	}
	p, err := e.readPointer(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]Snapshot, 0, len(p.Snapshots))
	for _, k := range p.Snapshots {
		list = append(list, k.snapshot())
	}
	return list, nil
}
