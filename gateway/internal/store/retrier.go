package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/semaphore"
)

// Policy says how a Retrier goes about it. Zero values stand for the defaults.
type Policy struct {
	// Tries is how often a call is made at most: 5.
	Tries int
	// FirstWait is about how long to wait before the second try: 200 ms. It
	// doubles up to MaxWait, 5 s, and is varied at random by a half.
	FirstWait, MaxWait time.Duration
	// Concurrent is how many calls are made at once, the others wait: 32. A
	// Put counts as long as it runs, so a body must not wait for another call;
	// a Get only until it returns; a List not at all.
	Concurrent int64
}

func (p Policy) withDefaults() Policy {
	def := Policy{Tries: 5, FirstWait: 200 * time.Millisecond, MaxWait: 5 * time.Second, Concurrent: 32}
	if p.Tries > 0 {
		def.Tries = p.Tries
	}
	if p.FirstWait > 0 {
		def.FirstWait = p.FirstWait
	}
	if p.MaxWait > 0 {
		def.MaxWait = p.MaxWait
	}
	if p.Concurrent > 0 {
		def.Concurrent = p.Concurrent
	}
	return def
}

// Retrier is a Store that tries again what another store failed to do because it
// was away, without doing anything twice: a Put with a condition carries a mark
// in its metadata, by which it is known again if the reply was lost. A Put is
// tried again if its body is an io.Seeker, or small. A reader goes on where the
// connection broke. What is ErrRefused is not tried again.
//
// One thing cannot be found out: if a Put had its effect, the reply was lost and
// somebody else replaced the object before the next try, that ends as ErrExists
// or ErrChanged. So these say what is there now, not that nothing ever was.
type Retrier struct {
	inner  Store
	policy Policy
	slots  *semaphore.Weighted
}

var _ Store = (*Retrier)(nil)

// NewRetrier makes a Retrier of a store.
func NewRetrier(inner Store, policy Policy) *Retrier {
	policy = policy.withDefaults()
	return &Retrier{inner: inner, policy: policy, slots: semaphore.NewWeighted(policy.Concurrent)}
}

// markName is the metadata's name under which a Put with a condition is known
// again. Callers of a Retrier do not see it.
const markName = "agentpod-put"

func unmarked(info Info, err error) (Info, error) {
	delete(info.Metadata, markName)
	return info, err
}

// again tells whether another try can help.
func again(err error) bool { return errors.Is(err, ErrAway) && !errors.Is(err, ErrRefused) }

// slotted makes a call while holding a slot.
func slotted[T any](ctx context.Context, r *Retrier, call func() (T, error)) (T, error) {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		var none T
		return none, context.Cause(ctx)
	}
	defer r.slots.Release(1)
	return call()
}

// retry makes a call until it succeeds, trying again is of no use or the tries are used up.
// The context of each try tells the store which it is.
func retry[T any](ctx context.Context, r *Retrier, call func(context.Context) (T, error)) (T, error) {
	var last error
	tries := 0
	result, err := backoff.Retry(ctx, func() (T, error) {
		result, err := call(withTry(ctx, tries))
		tries++
		last = err
		if err != nil && !again(err) {
			err = backoff.Permanent(err)
		}
		return result, err
	}, backoff.WithBackOff(r.policy.waits()), backoff.WithMaxTries(uint(r.policy.Tries)), backoff.WithMaxElapsedTime(0))
	var permanent *backoff.PermanentError
	switch {
	case errors.As(err, &permanent):
		err = permanent.Unwrap()
	case err != nil && ctx.Err() != nil && last != nil && !errors.Is(last, context.Cause(ctx)):
		err = fmt.Errorf("%w, after: %s", context.Cause(ctx), last.Error()) // who is gone is not away
	}
	return result, err
}

func (p Policy) waits() backoff.BackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: p.FirstWait, MaxInterval: p.MaxWait, Multiplier: 2, RandomizationFactor: 0.5,
	}
}

// short makes a call that moves no body.
func short[T any](ctx context.Context, r *Retrier, call func(context.Context) (T, error)) (T, error) {
	return retry(ctx, r, func(ctx context.Context) (T, error) {
		return slotted(ctx, r, func() (T, error) { return call(ctx) })
	})
}

// Head implements Store.
func (r *Retrier) Head(ctx context.Context, key string) (Info, error) {
	return unmarked(short(ctx, r, func(ctx context.Context) (Info, error) { return r.inner.Head(ctx, key) }))
}

// Delete implements Store.
func (r *Retrier) Delete(ctx context.Context, key string) error {
	_, err := short(ctx, r, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.inner.Delete(ctx, key) })
	return err
}

// DeletePrefix implements Store.
func (r *Retrier) DeletePrefix(ctx context.Context, prefix string) error {
	_, err := short(ctx, r, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.inner.DeletePrefix(ctx, prefix) })
	return err
}

// Probe implements Store.
func (r *Retrier) Probe(ctx context.Context) error {
	_, err := short(ctx, r, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.inner.Probe(ctx) })
	return err
}

// List implements Store. If the listing breaks it begins again, and leaves out
// what it has yielded, for which it keeps 16 bytes an object.
func (r *Retrier) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		seen := map[[16]byte]struct{}{}
		waits := r.policy.waits()
		for tries := 1; ; tries++ {
			progress, ended, err := r.listOnce(withTry(ctx, tries-1), prefix, seen, yield)
			if ended {
				return
			}
			if progress {
				tries = 1
				waits.Reset()
			}
			if !again(err) || tries >= r.policy.Tries {
				yield(Info{}, err)
				return
			}
			timer := time.NewTimer(waits.NextBackOff())
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				yield(Info{}, context.Cause(ctx))
				return
			}
		}
	}
}

// listOnce lists until an error. It returns whether it yielded something, and
// whether the listing is at its end, be it that the caller wants no more.
func (r *Retrier) listOnce(ctx context.Context, prefix string, seen map[[16]byte]struct{}, yield func(Info, error) bool) (progress, ended bool, _ error) {
	for info, err := range r.inner.List(ctx, prefix) {
		if err != nil {
			return progress, false, err
		}
		sum := sha256.Sum256([]byte(info.Key))
		id := [16]byte(sum[:16])
		if _, known := seen[id]; !known {
			seen[id] = struct{}{}
			progress = true
			if !yield(info, nil) {
				return progress, true, nil
			}
		}
	}
	return progress, true, nil
}
