package task

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errAway is a database's that is away.
var errAway = errors.New("the database is away")

// table is a Tasks that has events only, and fails as its plan says.
type table struct {
	Tasks
	mu     sync.Mutex
	events []Event
	plan   []string // for each call: "", "lost" before, "unknown" after, "full", "stolen"
}

func (b *table) next() string {
	if len(b.plan) == 0 {
		return ""
	}
	p := b.plan[0]
	b.plan = b.plan[1:]
	return p
}

func (b *table) Append(_ context.Context, lease Lease, now time.Time, events ...Event) ([]Event, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fault := b.next()
	switch fault {
	case "lost":
		return nil, errAway
	case "full":
		return nil, ErrLogFull
	case "stolen":
		return nil, ErrLeaseLost
	}
	var added []Event
	for _, e := range events {
		e.TaskID, e.Seq, e.CreatedAt = lease.TaskID, int64(len(b.events)+1), now
		b.events = append(b.events, e)
		added = append(added, e)
	}
	if fault == "unknown" {
		return nil, errAway
	}
	return added, nil
}

func (b *table) Events(_ context.Context, _ string, after int64, limit int) ([]Event, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next() != "" {
		return nil, errAway
	}
	return slices.Clone(b.events[min(int(after), len(b.events)):min(int(after)+limit, len(b.events))]), nil
}

// text is what the chunks say together.
func (b *table) text(t interface{ Fatal(args ...any) }) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s strings.Builder
	for _, e := range b.events {
		var c entry
		if err := json.Unmarshal([]byte(e.Data), &c); err != nil {
			t.Fatal(err)
		}
		s.WriteString(c.Content)
	}
	return s.String()
}

// Whatever becomes of the writes, each text is written once and in its order.
func TestAJournalWritesEachTextOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		plan := rapid.SliceOfN(rapid.SampledFrom([]string{"", "lost", "unknown"}), 0, 20).Draw(r, "plan")
		texts := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,4}`), 1, 12).Draw(r, "texts")
		pauses := rapid.SliceOfN(rapid.Int64Range(0, 3000), len(texts), len(texts)).Draw(r, "pauses")
		b := &table{plan: plan}
		synctest.Test(t, func(*testing.T) {
			j := newJournal(b, Lease{TaskID: "t"}, 0, func() {}, func() {}, slog.New(slog.DiscardHandler))
			ctx, stop := context.WithCancel(context.Background())
			over := make(chan struct{})
			go func() {
				defer close(over)
				j.run(ctx)
			}()
			for i, text := range texts {
				j.note(entry{Type: EventChunk, Content: text})
				time.Sleep(time.Duration(pauses[i]) * time.Millisecond)
			}
			stop()
			<-over
			b.plan = nil
			rest, err := j.last(context.Background())
			if err != nil {
				r.Fatal(err)
			}
			if _, err := b.Append(context.Background(), j.lease, time.Now(), rest...); err != nil {
				r.Fatal(err)
			}
		})
		if got, want := b.text(r), strings.Join(texts, ""); got != want {
			r.Fatalf("written %q, want %q", got, want)
		}
	})
}

func TestAJournalEndsWithItsLease(t *testing.T) {
	t.Parallel()
	b, lost := &table{plan: []string{"stolen"}}, make(chan struct{})
	j := newJournal(b, Lease{TaskID: "t"}, 0, func() {}, func() { close(lost) }, slog.New(slog.DiscardHandler))
	j.status("working")
	j.run(t.Context()) // returns by itself
	<-lost
	if len(b.events) > 0 {
		t.Errorf("written: %v", b.events)
	}
}

func TestAFullJournalIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := &table{plan: []string{"full"}}
	j := newJournal(b, Lease{TaskID: "t"}, 0, func() {}, func() {}, slog.New(slog.DiscardHandler))
	for range 3 {
		j.status("working")
		if err := j.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if rest, err := j.last(t.Context()); err != nil || len(rest) > 0 || len(b.events) > 0 {
		t.Errorf("left %v, written %v, %v", rest, b.events, err)
	}
}
