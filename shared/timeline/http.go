package timeline

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// RequestIDHeader carries a request's id, from its caller if that has one, to
// whoever is asked on its behalf, and back to the caller.
const RequestIDHeader = "X-Request-Id"

// requestID is what an id may look like that a caller chose.
var requestID = regexp.MustCompile(`^[A-Za-z0-9._:+/=-]{1,128}$`)

// w3c is the format of trace context between processes.
var w3c propagation.TraceContext //nolint:gochecknoglobals // a constant

// Receive begins the timeline of a request that came in, with the id and the trace
// (W3C Trace Context) that it brings, or else a new id. It returns the request with
// the context that has the timeline.
func Receive(r *http.Request) (_ *http.Request, t *Timeline, id string) {
	id = r.Header.Get(RequestIDHeader)
	if id == "" || !requestID.MatchString(id) {
		id = uuid.NewString()
	}
	ctx, t := New(r.Context())
	t.note([]string{requestIDNote, id})
	if r.Header.Get("Traceparent") != "" {
		ctx = w3c.Extract(ctx, propagation.HeaderCarrier(r.Header))
	}
	return r.WithContext(ctx), t, id
}

// Serve begins the span of a request that was received, which done ends. The route
// is a pattern, never a path.
func Serve(ctx context.Context, tracer trace.Tracer, method string) (_ context.Context, done func(route string, status int)) {
	ctx, span := tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("http.request.method", method)))
	return ctx, func(route string, status int) {
		if span.IsRecording() {
			if route != "" {
				span.SetName(method + " " + route)
				span.SetAttributes(attribute.String("http.route", route))
			}
			for _, note := range From(ctx).Notes() {
				span.SetAttributes(attribute.String(note.Key, note.Value.String()))
			}
			answered(span, status)
			if status >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, http.StatusText(status))
			}
		}
		span.End()
	}
}

func answered(span trace.Span, status int) {
	span.SetAttributes(attribute.Int("http.response.status_code", status))
}

// Inject gives the headers of a request that goes out the trace of its context, if
// that is recorded.
func Inject(ctx context.Context, h http.Header) {
	if trace.SpanFromContext(ctx).IsRecording() {
		w3c.Inject(ctx, propagation.HeaderCarrier(h))
	}
}

// Transport sends requests on behalf of their context's request: they carry its id
// and its trace, and are spans of it until the head of the reply is there.
type Transport struct {
	Next http.RoundTripper
	// Peer is who is asked, such as "gateway".
	Peer string
	// Relays tells that the peer, which sends no traces itself, tells its stages in
	// Server-Timing (see Answer); they become spans of it.
	Relays bool
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	id := RequestID(ctx)
	if id == "" && !trace.SpanContextFromContext(ctx).IsValid() {
		return t.Next.RoundTrip(req)
	}
	parent := trace.SpanFromContext(ctx)
	span := trace.Span(noop.Span{})
	if parent.IsRecording() {
		ctx, span = parent.TracerProvider().Tracer(Scope).Start(ctx, t.Peer+" "+req.Method, trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(attribute.String("http.request.method", req.Method), attribute.String("url.path", req.URL.Path)))
		defer span.End()
	}
	out := req.Clone(ctx)
	if id != "" {
		out.Header.Set(RequestIDHeader, id)
	}
	w3c.Inject(ctx, propagation.HeaderCarrier(out.Header))
	began := time.Now()
	resp, err := t.Next.RoundTrip(out)
	switch {
	case !span.IsRecording():
	case err != nil:
		span.SetStatus(codes.Error, "no answer")
	default:
		answered(span, resp.StatusCode)
		if t.Relays {
			relay(ctx, req, began, time.Since(began), resp)
		}
	}
	return resp, err
}

// CloseIdleConnections closes those of the transport below.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.Next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
