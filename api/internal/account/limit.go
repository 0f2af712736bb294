package account

import (
	"hash/maphash"
	"sync"
	"time"
)

// limiter bounds tries by key, as token buckets do. It has a fixed number of
// buckets: keys that hash alike share one, so memory is bounded whoever sends
// how many keys, and nothing has to be evicted, which could be had on purpose.
// It is safe for concurrent use.
type limiter struct {
	burst float64
	every time.Duration // one more try each
	seed  maphash.Seed

	mu      sync.Mutex
	buckets []bucket
}

// bucket holds how much of the burst was used when, as nanoseconds.
type bucket struct {
	used float64
	at   int64
}

// limiterBuckets makes a limiter take 1 MiB.
const limiterBuckets = 1 << 16

func newLimiter(burst int, every time.Duration) *limiter {
	return &limiter{burst: float64(burst), every: every, seed: maphash.MakeSeed(), buckets: make([]bucket, limiterBuckets)}
}

// of returns the bucket of a key, as it has drained until now. The caller holds
// the lock.
func (l *limiter) of(key string, now time.Time) *bucket {
	b := &l.buckets[maphash.String(l.seed, key)%uint64(len(l.buckets))]
	if passed := now.UnixNano() - b.at; passed > 0 {
		b.used = max(0, b.used-float64(passed)/float64(l.every))
		b.at = now.UnixNano()
	}
	return b
}

// take counts a try. It returns 0, or how long to wait until another is let
// through; a try that is not let through does not count.
func (l *limiter) take(key string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.of(key, now)
	if over := b.used + 1 - l.burst; over > 0 {
		return time.Duration(over * float64(l.every))
	}
	b.used++
	return 0
}

// giveBack takes a try back that was an honest one.
func (l *limiter) giveBack(key string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.of(key, now)
	b.used = max(0, b.used-1)
}
