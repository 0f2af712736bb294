package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/workspace"
	"github.com/agentpod/agentpod/shared/seal"
)

const (
	leaseKey = "lease.json"
	// leaseTTL is how long another installation waits for the store of one that
	// was killed, and after which nothing is written while the lease is not renewed.
	leaseTTL = time.Minute
	// probeTimeout bounds how long the store may take to show what it can do.
	probeTimeout = time.Minute
	// sweepAge is the age of uploads that nobody ends any more; somebody else's
	// in the same bucket may be under way. sweepTimeout bounds the sweep.
	sweepAge, sweepTimeout = 24 * time.Hour, time.Minute
)

// objects is a store that somebody has to close.
type objects interface {
	store.Store
	io.Closer
}

// storage is all that the gateway keeps things with.
type storage struct {
	store   *store.Metered // tries again what failed
	keyring *seal.Keyring
	records *workspace.Records

	name  string // of the store, for people
	log   *slog.Logger
	lock  *os.File
	inner objects
	lease *store.Lease // nil for a folder
}

// openStorage opens the store that the configuration names, a folder in DATA_DIR
// or a bucket, and makes sure that it can do what it must, that it is this
// gateway's alone and that the sealing key fits. Its errors are sentences for the
// operator. It can wait for leaseTTL if another gateway on the bucket was killed.
func openStorage(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *storage, err error) {
	s := &storage{log: log}
	defer func() {
		if err != nil {
			s.close(context.WithoutCancel(ctx))
		}
	}()
	if s.lock, err = lockDataDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if s.keyring, err = newKeyring(cfg, log); err != nil {
		return nil, err
	}
	if s.inner, s.name, err = openObjects(cfg, store.OpenDirectory); err != nil {
		return nil, err
	}
	s.store = store.NewMetered(store.NewRetrier(s.inner, store.Policy{}))
	if err := probe(ctx, s.store, s.name); err != nil {
		return nil, err
	}
	if bucket, ok := s.inner.(*store.S3); ok {
		holder, err := installation(cfg.DataDir)
		if err != nil {
			return nil, err
		}
		if err := s.acquire(ctx, holder); err != nil {
			return nil, err
		}
		s.sweep(ctx, bucket)
	}
	if err := s.hold(ctx, s.checkKey); err != nil {
		return nil, err
	}
	s.records = workspace.NewRecords(s.store, s.keyring)
	return s, nil
}

// lockDataDir makes sure that no other process uses a DATA_DIR. The lock ends
// with the process.
func lockDataDir(dir string) (*os.File, error) {
	return takeLock(dir, os.O_CREATE)
}

// takeLock opens the lock with flags besides that for reading and writing.
func takeLock(dir string, flags int) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|flags, 0o600) //nolint:gosec // the operator's own path
	if err != nil {
		return nil, fmt.Errorf("opening the lock of DATA_DIR: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another gateway uses the store in %s; stop it, or give this one a DATA_DIR of its own: %w", dir, err)
	}
	return lock, nil
}

func newKeyring(cfg config.Config, log *slog.Logger) (*seal.Keyring, error) {
	current, err := sealingKey(cfg, log)
	if err != nil {
		return nil, err
	}
	return keyring(cfg, current)
}

func keyring(cfg config.Config, current [seal.KeySize]byte) (*seal.Keyring, error) {
	var err error
	former := make([][seal.KeySize]byte, len(cfg.SealingKeysFormer))
	for i, text := range cfg.SealingKeysFormer {
		if former[i], err = seal.ParseKey(text); err != nil {
			return nil, fmt.Errorf("SEALING_KEYS_FORMER, number %d: %w", i+1, err)
		}
	}
	return seal.NewKeyring(current, former...)
}

func sealingKey(cfg config.Config, log *slog.Logger) ([seal.KeySize]byte, error) {
	if cfg.SealingKey != "" {
		key, err := seal.ParseKey(cfg.SealingKey)
		if err != nil {
			return key, fmt.Errorf("SEALING_KEY: %w", err)
		}
		return key, nil
	}
	path := filepath.Join(cfg.DataDir, sealingFile)
	key, made, err := seal.LoadOrMakeKey(path)
	if err != nil {
		return key, err
	}
	if made {
		log.Info("a sealing key was made; without it what is stored cannot be read", "file", path)
	}
	return key, nil
}

// storeFolder is where a store is that is no bucket.
func storeFolder(cfg config.Config) string { return filepath.Join(cfg.DataDir, "store") }

// openObjects opens the store itself, and returns its name for people. openFolder
// opens one that is a folder.
func openObjects(cfg config.Config, openFolder func(name string) (*store.Directory, error)) (objects, string, error) {
	if cfg.S3Endpoint == "" {
		path := storeFolder(cfg)
		directory, err := openFolder(path)
		if err != nil {
			return nil, "", err
		}
		return directory, path, nil
	}
	addressing := store.Addressing(cfg.S3Addressing)
	if cfg.S3Addressing == "auto" {
		addressing = store.AddressingAuto
	}
	bucket, err := store.NewS3(store.S3Settings{
		Endpoint: cfg.S3Endpoint, Region: cfg.S3Region, Bucket: cfg.S3Bucket, Prefix: cfg.S3Prefix, Addressing: addressing,
		AccessKey: cfg.S3AccessKeyID, SecretKey: cfg.S3SecretAccessKey, CAFile: cfg.S3CAFile,
	})
	if err != nil {
		return nil, "", fmt.Errorf("the S3 settings: %w", err)
	}
	name := bucket.String()
	return bucket, name, nil
}

// probe finds out whether a store can do what it must.
func probe(ctx context.Context, s store.Store, name string) error {
	silent := fmt.Errorf("the store in %s did not answer within %s", name, probeTimeout) //nolint:err113 // a sentence for people
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, silent)
	defer cancel()
	return s.Probe(ctx)
}

// acquire takes the store's lease. From then on nothing is written without it. A
// folder needs none: the lock of DATA_DIR guards it, and does so on a full disk
// too, where nothing can be renewed and sandboxes must be deleted all the same.
func (s *storage) acquire(ctx context.Context, holder string) error {
	const noticeable = 2 * time.Second
	waiting := time.AfterFunc(noticeable, func() {
		s.log.InfoContext(ctx, "waiting until no other gateway has the store", "store", s.name, "atMost", leaseTTL)
	})
	defer waiting.Stop()
	// Apart from the store for all else, whose calls wait for one another.
	apart := store.NewRetrier(s.inner, store.Policy{})
	lease, err := store.Acquire(ctx, apart, store.LeaseSettings{Key: leaseKey, Holder: holder, TTL: leaseTTL})
	if held, ok := errors.AsType[*store.HeldError](err); ok {
		return fmt.Errorf("another gateway uses the store in %s, and its DATA_DIR/installation says %.40q; stop it, or give this one an S3_PREFIX of its own", s.name, held.Holder) //nolint:err113 // a sentence for people
	}
	if err != nil {
		return fmt.Errorf("taking the store in %s: %w", s.name, err)
	}
	s.lease = lease
	s.store = store.NewMetered(store.NewRetrier(&fenced{Store: s.inner, lease: lease}, store.Policy{}))
	return nil
}

// checkKey compares the sealing key with the store's, and changes the store's if
// that was asked for.
func (s *storage) checkKey(ctx context.Context) error {
	report, err := workspace.CheckKey(ctx, s.keyring, s.store)
	if err != nil {
		return fmt.Errorf("the store in %s: %w", s.name, err)
	}
	if report.Resealed > 0 {
		s.log.InfoContext(ctx, "the records are sealed with the new SEALING_KEY", "keyId", s.keyring.KeyID(), "records", report.Resealed)
	}
	for _, id := range report.Missing {
		s.log.WarnContext(ctx, "a former sealing key is not in SEALING_KEYS_FORMER; snapshots that are sealed with it cannot be restored", "keyId", id)
	}
	return nil
}

// sweep removes what uploads left that a gateway began and never ended. It is a
// courtesy: a failure is only told.
func (s *storage) sweep(ctx context.Context, bucket *store.S3) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	n, err := bucket.Sweep(ctx, sweepAge)
	if err != nil {
		s.log.WarnContext(ctx, "unfinished uploads could not be removed", "store", s.name, "error", err)
	}
	if n > 0 {
		s.log.InfoContext(ctx, "unfinished uploads were removed", "store", s.name, "uploads", n)
	}
}

// hold does work while it renews the lease, to the work's end. If the lease is
// lost, the work's context ends with the reason, which is then hold's error.
func (s *storage) hold(ctx context.Context, work func(ctx context.Context) error) error {
	if s.lease == nil {
		return work(ctx)
	}
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	renewing, done := context.WithCancel(context.WithoutCancel(ctx)) // work that was told to end still needs it
	defer done()
	renewed := make(chan error, 1)
	go func() {
		err := s.lease.Hold(renewing)
		if err != nil {
			err = fmt.Errorf("the store in %s is not this gateway's any more, so it stops: %w", s.name, err)
			stop(err)
		}
		renewed <- err
	}()
	err := work(working)
	done()
	if lost := <-renewed; lost != nil && !errors.Is(err, lost) {
		return errors.Join(lost, err)
	}
	return err
}

// close gives the store up, and DATA_DIR last.
func (s *storage) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	if s.lease != nil {
		if err := s.lease.Release(ctx); err != nil {
			s.log.WarnContext(ctx, "the store could not be given up, so another installation that wants it has to wait", "store", s.name, "wait", leaseTTL, "error", err)
		}
	}
	if s.inner != nil {
		if err := s.inner.Close(); err != nil {
			s.log.WarnContext(ctx, "the store could not be closed", "store", s.name, "error", err)
		}
	}
	if s.lock != nil {
		_ = s.lock.Close() // nothing was written to it
	}
}

// fenced is a store that is written only while a lease on it is held, so that
// what still runs after its loss does not touch what is somebody else's by then.
type fenced struct {
	store.Store
	lease *store.Lease
}

func (f *fenced) check() error {
	if f.lease.Held() {
		return nil
	}
	return fmt.Errorf("%w: %w: %w", store.ErrAway, store.ErrRefused, store.ErrLeaseLost) // trying again is of no use
}

// Put implements store.Store.
func (f *fenced) Put(ctx context.Context, key string, body io.Reader, size int64, opts store.PutOptions) (store.Info, error) {
	if err := f.check(); err != nil {
		return store.Info{}, err
	}
	return f.Store.Put(ctx, key, body, size, opts)
}

// Delete implements store.Store.
func (f *fenced) Delete(ctx context.Context, key string) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Store.Delete(ctx, key)
}

// DeletePrefix implements store.Store.
func (f *fenced) DeletePrefix(ctx context.Context, prefix string) error {
	if err := f.check(); err != nil {
		return err
	}
	return f.Store.DeletePrefix(ctx, prefix)
}
