package timeline

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// sandboxd is in a sandbox, where neither the address of whoever collects traces nor
// its credentials may be. So it tells the stages of a traced request in the reply
// (Server-Timing, https://www.w3.org/TR/server-timing), and who asked makes the spans.

const (
	timingHeader = "Server-Timing"
	// wholeStage is the stage that is the request itself.
	wholeStage = "request"
	// maxTiming bounds what is read of a header that is a sandbox's, in bytes.
	maxTiming = 4 << 10
)

// RelayScope is the scope of spans that are those of a sandbox's sandboxd.
const RelayScope = Scope + "/sandboxd"

// stageName is what a stage of another process may be called.
var stageName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// Answer returns a writer that tells, as the head of a reply goes out, the stages
// of its request until then, if that is traced.
func Answer(ctx context.Context, w http.ResponseWriter) http.ResponseWriter {
	if t := From(ctx); t != nil && trace.SpanContextFromContext(ctx).IsSampled() {
		return &answer{ResponseWriter: w, line: t}
	}
	return w
}

type answer struct {
	http.ResponseWriter
	line *Timeline
	told bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.tell()
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.tell()
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) tell() {
	if a.told {
		return
	}
	a.told = true
	var told strings.Builder
	for _, s := range append([]Stage{{wholeStage, 0, time.Since(a.line.began)}}, a.line.Stages()...) {
		if told.Len() > 0 {
			told.WriteString(", ")
		}
		fmt.Fprintf(&told, "%s;at=%.3f;dur=%.3f", s.Name, milliseconds(s.At), milliseconds(s.Took))
	}
	a.Header().Set(timingHeader, told.String())
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// relay makes spans of what a reply to a request tells of its stages: nothing in it
// is believed to lie outside the time that the request took.
func relay(ctx context.Context, req *http.Request, began time.Time, took time.Duration, resp *http.Response) {
	stages := timing(resp.Header.Get(timingHeader))
	if len(stages) == 0 || stages[0].Name != wholeStage {
		return
	}
	whole := min(stages[0].Took, took)
	began = began.Add((took - whole) / 2) // the way there and back
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(RelayScope)
	ctx, span := tracer.Start(ctx, req.Method+" "+req.URL.Path, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(began),
		trace.WithAttributes(attribute.String("http.request.method", req.Method), attribute.String("http.route", req.URL.Path)))
	answered(span, resp.StatusCode)
	for _, s := range stages[1:] {
		at := min(s.At, whole)
		_, child := tracer.Start(ctx, s.Name, trace.WithTimestamp(began.Add(at)))
		child.End(trace.WithTimestamp(began.Add(min(at+s.Took, whole))))
	}
	span.End(trace.WithTimestamp(began.Add(whole)))
}

// timing reads the stages of a Server-Timing header; what is not as Answer writes it
// is left out.
func timing(header string) []Stage {
	if len(header) > maxTiming {
		return nil
	}
	var stages []Stage
	for entry := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
		if !stageName.MatchString(name) || len(stages) > maxStages {
			continue
		}
		s := Stage{Name: name}
		for param := range strings.SplitSeq(params, ";") {
			key, value, _ := strings.Cut(param, "=")
			ms, err := strconv.ParseFloat(value, 64)
			if err != nil || !(ms >= 0 && ms < 1e9) {
				continue
			}
			d := time.Duration(ms * float64(time.Millisecond))
			switch key {
			case "at":
				s.At = d
			case "dur":
				s.Took = d
			}
		}
		stages = append(stages, s)
	}
	return stages
}
