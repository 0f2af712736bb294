// Package timeline knows of one request what its log lines, figures and trace need:
// its id, whom it concerns, which stages it had, and how long each took. It travels
// in the context.
package timeline

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Scope names what makes spans.
const Scope = "github.com/agentpod/agentpod"

// requestIDNote is the key of a request's id.
const requestIDNote = "requestId"

// Timeline is what is known of one request. The zero value is not usable, but a nil
// Timeline is: it notes nothing. Safe for concurrent use.
type Timeline struct {
	began time.Time // zero if it keeps no stages

	mu     sync.Mutex
	stages []Stage
	notes  []slog.Attr
	first  [firstNotes]slog.Attr // where notes begins, so that most requests need no more
}

// Stage is a part of a request's time. Stages may overlap, and one name may come up
// again.
type Stage struct {
	Name string
	At   time.Duration // when it began, since the timeline did
	Took time.Duration
}

// Bounds of a timeline: a request that does the same thing for ever is no reason to
// keep it all.
const (
	maxStages = 64
	maxNotes  = 16
	// firstNotes is how many most requests have.
	firstNotes = 4
)

type key struct{}

// New begins a timeline and returns a context that has it.
func New(ctx context.Context) (context.Context, *Timeline) {
	t := &Timeline{began: time.Now()}
	return context.WithValue(ctx, key{}, t), t
}

// From returns the timeline of a context, nil if it has none.
func From(ctx context.Context) *Timeline {
	t, _ := ctx.Value(key{}).(*Timeline)
	return t
}

// About returns a context with a timeline of its own that keeps no stages and is
// about what keyvals name, pairs of a key and a value, such as the sandbox that work
// in the background is for.
func About(ctx context.Context, keyvals ...string) context.Context {
	t := &Timeline{}
	t.note(keyvals)
	return context.WithValue(ctx, key{}, t)
}

// Branch is About, with what the timeline of another context has noted, and its
// span: for one of the works that a request began and does not wait for.
func Branch(ctx, from context.Context, keyvals ...string) context.Context {
	ctx = withSpan(About(ctx), from)
	From(ctx).add(From(from).Notes())
	Note(ctx, keyvals...)
	return ctx
}

func withSpan(ctx, from context.Context) context.Context {
	if span := trace.SpanFromContext(from); span.SpanContext().IsValid() {
		return trace.ContextWithSpan(ctx, span)
	}
	return ctx
}

// Carry returns ctx with the timeline and the span of another context, for work that
// a request waits for but that outlives it. What ctx was about is noted there.
func Carry(ctx, from context.Context) context.Context {
	t := From(from)
	if t == nil {
		return ctx
	}
	if about := From(ctx); about != t {
		t.add(about.Notes())
	}
	return withSpan(context.WithValue(ctx, key{}, t), from)
}

// Note notes whom or what the context's request concerns, in pairs of a key and a
// value: its log lines have it from now on. An empty value notes nothing, and
// another value takes the place of the one before.
func Note(ctx context.Context, keyvals ...string) { From(ctx).note(keyvals) }

func (t *Timeline) note(keyvals []string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.notes == nil {
		t.notes = t.first[:0]
	}
	for ; len(keyvals) >= 2; keyvals = keyvals[2:] {
		name, value := keyvals[0], keyvals[1]
		if value == "" {
			continue
		}
		at := slices.IndexFunc(t.notes, func(a slog.Attr) bool { return a.Key == name })
		switch {
		case at >= 0:
			t.notes[at].Value = slog.StringValue(value)
		case len(t.notes) < maxNotes:
			t.notes = append(t.notes, slog.String(name, value))
		}
	}
}

func (t *Timeline) add(notes []slog.Attr) {
	for _, a := range notes {
		t.note([]string{a.Key, a.Value.String()})
	}
}

// Notes are what was noted, in the order in which it first was.
func (t *Timeline) Notes() []slog.Attr {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.notes)
}

// RequestID returns the id of the context's request, empty if it has none.
func RequestID(ctx context.Context) string {
	for _, a := range From(ctx).Notes() {
		if a.Key == requestIDNote {
			return a.Value.String()
		}
	}
	return ""
}

// Begin begins a stage of the context's timeline, which done ends. It is a span,
// too, if the context's trace is recorded.
func Begin(ctx context.Context, name string) (done func()) {
	t := From(ctx)
	if t == nil {
		return func() {}
	}
	end := func() {}
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		_, span = span.TracerProvider().Tracer(Scope).Start(ctx, name)
		end = func() { span.End() }
	}
	began := time.Now()
	return func() {
		t.passed(Stage{name, began.Sub(t.began), time.Since(began)})
		end()
	}
}

func (t *Timeline) passed(s Stage) {
	if t.began.IsZero() {
		return
	}
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
