package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// ErrLeaseLost is for a lease that another holder has, or had, by now. What it
// guarded must not be touched any more.
var ErrLeaseLost = errors.New("the lease is lost")

// HeldError is for a lease that somebody else holds.
type HeldError struct {
	Holder string
}

// Error implements error.
func (e *HeldError) Error() string {
	return fmt.Sprintf("%q holds the lease: stop it, or wait until it has expired", e.Holder)
}

// LeaseSettings say what is held, and by whom.
type LeaseSettings struct {
	Key string
	// Holder names this process to people, and to its own successor: a lease
	// that it holds by that name already is taken over at once. So no two that
	// can run at the same time may have the same name.
	Holder string
	// TTL is how long the lease outlives its last renewal: 30 s if 0. It is
	// renewed when a third of it has passed.
	TTL time.Duration
}

const defaultLeaseTTL = 30 * time.Second

// leaseLimit bounds what is read of a lease in bytes.
const leaseLimit = 16 << 10

// leaseRecord is a lease in the store. It has no time of day in it: clocks
// differ. A lease has expired if it has not changed for its TTL under the eyes
// of who wants it.
type leaseRecord struct {
	Holder string `json:"holder"` // "" if it was released
	Turn   string `json:"turn"`   // random, so that no two renewals are equal
	TTLms  int64  `json:"ttlMs"`
}

// Lease is held, until Hold returns or Release is called. Its methods can be
// called concurrently.
type Lease struct {
	store    Store
	settings LeaseSettings

	writing sync.Mutex // held while the record is written
	mu      sync.Mutex
	etag    ETag
	until   time.Time
	tried   []string // the turns written since then, of which it is not known whether they arrived
}

// Acquire takes a lease that is free, released, expired or held by the same name.
// If another process holds it, Acquire watches for as long as the holder's TTL:
// it fails with a HeldError as soon as the lease is renewed, and takes it over
// if it is not.
func Acquire(ctx context.Context, s Store, settings LeaseSettings) (*Lease, error) {
	if settings.Holder == "" {
		return nil, fmt.Errorf("%w: a lease needs a holder", ErrInvalid)
	}
	if settings.TTL <= 0 {
		settings.TTL = defaultLeaseTTL
	}
	l := &Lease{store: s, settings: settings}
	for {
		found, etag, err := l.read(ctx)
		switch {
		case errors.Is(err, ErrNotFound):
			err = l.write(ctx, PutOptions{IfAbsent: true})
		case err != nil:
		case found.Holder == "" || found.Holder == settings.Holder:
			err = l.write(ctx, PutOptions{IfMatch: etag})
		default:
			if err = l.watch(ctx, found, etag); err == nil {
				err = l.write(ctx, PutOptions{IfMatch: etag})
			}
		}
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, ErrExists), errors.Is(err, ErrChanged): // somebody was faster: look who
		default:
			return nil, fmt.Errorf("acquiring the lease %s: %w", settings.Key, err)
		}
	}
}

// watch returns nil if a lease does not change for its TTL.
func (l *Lease) watch(ctx context.Context, found leaseRecord, etag ETag) error {
	ttl := time.Duration(found.TTLms) * time.Millisecond
	if ttl <= 0 || ttl > time.Hour {
		ttl = l.settings.TTL // nobody wrote that who meant well
	}
	end := time.Now().Add(ttl)
	for {
		timer := time.NewTimer(min(ttl/8, max(time.Until(end), 0)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		now, seen, err := l.read(ctx)
		switch {
		case errors.Is(err, ErrNotFound) || err == nil && now.Holder == "":
			return ErrChanged // free: from the beginning
		case err != nil:
			return err
		case seen != etag || now.Turn != found.Turn:
			return &HeldError{Holder: now.Holder}
		case !time.Now().Before(end):
			return nil
		}
	}
}

func (l *Lease) read(ctx context.Context) (leaseRecord, ETag, error) {
	var found leaseRecord
	body, info, err := l.store.Get(ctx, l.settings.Key, Range{})
	if err != nil {
		return found, "", err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, leaseLimit))
	if err != nil {
		return found, "", err
	}
	if err := json.Unmarshal(raw, &found); err != nil {
		return found, "", fmt.Errorf("the lease %s is not one: %w", l.settings.Key, err)
	}
	return found, info.ETag, nil
}

// write replaces the record, and notes that the lease is held from before that on.
func (l *Lease) write(ctx context.Context, condition PutOptions) error {
	next := leaseRecord{Holder: l.settings.Holder, Turn: randomName(), TTLms: l.settings.TTL.Milliseconds()}
	before := time.Now()
	l.mu.Lock()
	l.tried = append(l.tried, next.Turn)
	l.mu.Unlock()
	info, err := l.put(ctx, next, condition)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.etag, l.until, l.tried = info.ETag, before.Add(l.settings.TTL), nil
	return nil
}

func (l *Lease) put(ctx context.Context, next leaseRecord, condition PutOptions) (Info, error) {
	raw, err := json.Marshal(next)
	if err != nil {
		return Info{}, fmt.Errorf("encoding the lease: %w", err)
	}
	condition.ContentType = "application/json"
	return l.store.Put(ctx, l.settings.Key, bytes.NewReader(raw), int64(len(raw)), condition)
}

// Held tells whether the lease can be relied on at this moment.
func (l *Lease) Held() bool { return l.left() > 0 }

// left is for how long the lease can be relied on.
func (l *Lease) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.until), 0)
}

// Hold renews the lease until ctx is done, and then returns nil, or until it is
// lost: ErrLeaseLost. A store that is away is tried again. The lease may expire
// meanwhile, and is Held again if nobody took it: a renewal succeeds only on what
// this holder wrote last.
func (l *Lease) Hold(ctx context.Context) error {
	for {
		timer := time.NewTimer(l.pause())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		if err := l.renew(ctx); errors.Is(err, ErrLeaseLost) {
			return err
		}
	}
}

// pause is how long to wait before the next renewal: until a third of the TTL
// has passed, and then for a twelfth if the store was away.
func (l *Lease) pause() time.Duration {
	ttl := l.settings.TTL
	return max(l.left()-ttl*2/3, ttl/12)
}

func (l *Lease) renew(ctx context.Context) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	etag := l.etag
	l.mu.Unlock()
	if etag == "" {
		return fmt.Errorf("%w: it was released", ErrLeaseLost)
	}
	patience := l.settings.TTL / 4 // so that there is time for another try
	if left := l.left(); left > 0 {
		patience = min(patience, left) // past that, Held has to say no
	}
	try, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := l.write(try, PutOptions{IfMatch: etag})
	if !errors.Is(err, ErrChanged) {
		return err
	}
	found, now, err := l.read(try)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: somebody deleted it", ErrLeaseLost)
	case err != nil:
		return err
	case !l.wrote(found.Turn):
		return fmt.Errorf("%w: %q has it", ErrLeaseLost, found.Holder)
	}
	return l.write(try, PutOptions{IfMatch: now}) // the reply to an earlier renewal was lost
}

func (l *Lease) wrote(turn string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.tried, turn)
}

// Release gives the lease up, so that the next one need not wait. Nothing is to
// be done if it is lost already.
func (l *Lease) Release(ctx context.Context) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	etag := l.etag
	l.etag, l.until = "", time.Time{}
	l.mu.Unlock()
	if etag == "" {
		return nil
	}
	_, err := l.put(ctx, leaseRecord{Turn: randomName()}, PutOptions{IfMatch: etag})
	if err != nil && !errors.Is(err, ErrChanged) {
		return fmt.Errorf("releasing the lease %s: %w", l.settings.Key, err)
	}
	return nil
}
