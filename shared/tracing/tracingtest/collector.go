// Package tracingtest is a collector of traces (OTLP over HTTP), for tests.
package tracingtest

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlptrace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span that was received. Ids are in hex; the root's ParentID is empty.
type Span struct {
	Service, Name           string
	TraceID, SpanID, Parent string
	Start, End              time.Time
	Attributes              map[string]string
	Failed                  bool
}

// Collector takes what it is sent. It is safe for concurrent use.
type Collector struct {
	// URL is for OTEL_EXPORTER_OTLP_ENDPOINT.
	URL string

	mu      sync.Mutex
	spans   []Span
	headers []http.Header
}

// New starts a collector that the test ends.
func New(t testing.TB) *Collector {
	c := &Collector{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// maxBody bounds one export, in bytes.
const maxBody = 16 << 20

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var sent coltrace.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(raw, &sent) != nil {
		http.Error(w, "this is not an export of traces", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = append(c.headers, r.Header.Clone())
	for _, resource := range sent.GetResourceSpans() {
		service := attributes(resource.GetResource().GetAttributes())["service.name"]
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, Span{
					Service: service, Name: s.GetName(), TraceID: hex.EncodeToString(s.GetTraceId()),
					SpanID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Start: time.Unix(0, int64(s.GetStartTimeUnixNano())), End: time.Unix(0, int64(s.GetEndTimeUnixNano())),
					Attributes: attributes(s.GetAttributes()), Failed: s.GetStatus().GetCode() == otlptrace.Status_STATUS_CODE_ERROR,
				})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func attributes(pairs []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, p := range pairs {
		switch v := p.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[p.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[p.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return out
}

// Headers are those of the exports so far.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.headers)
}

// Trace returns the spans so far of one trace, the earliest first.
func (c *Collector) Trace(id string) []Span {
	return slices.DeleteFunc(c.All(), func(s Span) bool { return s.TraceID != id })
}

// All returns the spans so far, the earliest first.
func (c *Collector) All() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans := slices.Clone(c.spans)
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans
}

// Tree draws a trace: who did what for whom, when and for how long.
func Tree(spans []Span) string {
	var out strings.Builder
	known := map[string]bool{}
	for _, s := range spans {
		known[s.SpanID] = true
	}
	var below func(parent string, depth int)
	line := func(s Span, depth int) {
		fmt.Fprintf(&out, "%s%s: %s +%s %s\n", strings.Repeat("  ", depth), s.Service, s.Name,
			s.Start.Sub(spans[0].Start).Round(time.Millisecond/10), s.End.Sub(s.Start).Round(time.Millisecond/10))
		below(s.SpanID, depth+1)
	}
	below = func(parent string, depth int) {
		for _, s := range spans {
			if s.Parent == parent {
				line(s, depth)
			}
		}
	}
	for _, s := range spans {
		if !known[s.Parent] {
			line(s, 0)
		}
	}
	return out.String()
}
