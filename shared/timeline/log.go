package timeline

import (
	"context"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"
)

// Handler hands records on to next with what their context's timeline has noted and
// with the id of its trace, but for what a record says itself.
func Handler(next slog.Handler) slog.Handler { return &handler{Handler: next} }

type handler struct {
	slog.Handler
	has    []string // keys that With has given
	groups bool     // an open group would take the notes in
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	notes := From(ctx).Notes()
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		notes = append(notes, slog.String("traceId", span.TraceID().String()))
	}
	if len(notes) == 0 || h.groups {
		return h.Handler.Handle(ctx, r)
	}
	said := slices.Clone(h.has)
	r.Attrs(func(a slog.Attr) bool {
		said = append(said, a.Key)
		return true
	})
	notes = slices.DeleteFunc(notes, func(a slog.Attr) bool { return slices.Contains(said, a.Key) })
	r = r.Clone()
	r.AddAttrs(notes...)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithAttrs(attrs)
	with.has = slices.Clone(h.has)
	for _, a := range attrs {
		with.has = append(with.has, a.Key)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	with := *h
	with.Handler, with.groups = h.Handler.WithGroup(name), true
	return &with
}
