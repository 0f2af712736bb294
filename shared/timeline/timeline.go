// Package timeline notes where the time of one request went: which stages it had,
// and how long each took.
package timeline

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Timeline are the stages of one request. The zero value is not usable, but a nil
// Timeline is: it notes nothing. Safe for concurrent use.
type Timeline struct {
	mu     sync.Mutex
	stages []Stage
}

// Stage is one of them. Stages may overlap, and one name may come up again.
type Stage struct {
	Name string
	Took time.Duration
}

// maxStages bounds a timeline: a request that asks the same thing for ever is no
// reason to keep it all.
const maxStages = 64

type key struct{}

// New begins a timeline and returns a context that has it.
func New(ctx context.Context) (context.Context, *Timeline) {
	t := &Timeline{}
	return context.WithValue(ctx, key{}, t), t
}

// From returns the timeline of a context, nil if it has none.
func From(ctx context.Context) *Timeline {
	t, _ := ctx.Value(key{}).(*Timeline)
	return t
}

// Carry returns ctx with the timeline of another context, for work that a request
// waits for but that outlives it.
func Carry(ctx, from context.Context) context.Context {
	t := From(from)
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, key{}, t)
}

// Begin begins a stage of the context's timeline, which done ends.
func Begin(ctx context.Context, name string) (done func()) {
	t := From(ctx)
	if t == nil {
		return func() {}
	}
	began := time.Now()
	return func() { t.add(Stage{name, time.Since(began)}) }
}

func (t *Timeline) add(s Stage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stages) < maxStages {
		t.stages = append(t.stages, s)
	}
}

// Stages are those that have ended, in the order in which they did.
func (t *Timeline) Stages() []Stage {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.stages)
}

// LogValue has the time of each stage by its name.
func (t *Timeline) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, s := range t.Stages() {
		attrs = append(attrs, slog.Duration(s.Name, s.Took))
	}
	return slog.GroupValue(attrs...)
}
