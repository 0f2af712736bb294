// Package tracing sends a program's spans to whoever collects them, over OTLP, if
// OpenTelemetry's standard variables say where that is. The spans are made by
// package timeline.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/shared/timeline"
)

// The standard variables that are looked at here; the library reads the rest
// (headers, certificates, compression, sampler, batches).
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
const (
	disabledEnv = "OTEL_SDK_DISABLED"
	exporterEnv = "OTEL_TRACES_EXPORTER"
	endpointEnv = "OTEL_EXPORTER_OTLP_ENDPOINT"
	tracesEnv   = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	protocolEnv = "OTEL_EXPORTER_OTLP_PROTOCOL"
	tracesProto = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
)

// Variables are those of OpenTelemetry's that most set-ups need, to be passed on.
func Variables() []string {
	return []string{endpointEnv, "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}
}

// Attributes of a resource, by OpenTelemetry's conventions.
const (
	serviceName    = "service.name"
	serviceVersion = "service.version"
)

// protocol is the only one that is spoken; every collector speaks it.
const protocol = "http/protobuf"

// Tracing sends spans in the background. Nil sends none.
type Tracing struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// Start sends the spans of a service, such as "agentpod-gateway", from now on, if
// the standard variables are set: the address of a collector in
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or
// OTEL_TRACES_EXPORTER=otlp for the standard address. A collector that is away is
// no error: what it misses is dropped, and said in log.
func Start(ctx context.Context, env func(string) string, service, version string, log *slog.Logger) (*Tracing, error) {
	if !wanted(env) {
		return nil, nil //nolint:nilnil // a nil Tracing sends nothing
	}
	if err := supported(env); err != nil {
		return nil, err
	}
	otel.SetErrorHandler(failures{log})
	provider, err := newProvider(ctx, service, version)
	if err != nil {
		return nil, err
	}
	return &Tracing{provider, log}, nil
}

// Check sends one span and returns where they go, or why they do not.
func Check(ctx context.Context, env func(string) string, service, version string) (string, error) {
	if !wanted(env) {
		return "off, as " + endpointEnv + " is not set", nil
	}
	if err := supported(env); err != nil {
		return "", err
	}
	provider, err := newProvider(ctx, service, version, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return "", err
	}
	_, span := provider.Tracer(timeline.Scope).Start(ctx, "doctor", trace.WithNewRoot())
	span.End()
	err = provider.ForceFlush(ctx)
	_ = provider.Shutdown(ctx) // nothing is left to be sent
	if err != nil {
		return "", fmt.Errorf("the collector of traces does not take them: start it, correct %s, or unset that to send none (%w)", endpointEnv, err)
	}
	return "the collector takes them", nil
}

func supported(env func(string) string) error {
	if e := env(exporterEnv); e != "" && e != "otlp" {
		return fmt.Errorf("%s is %q, which is not supported; set it to otlp, such as %s=otlp, or to none", exporterEnv, e, exporterEnv)
	}
	for _, name := range []string{tracesProto, protocolEnv} {
		if p := env(name); p != "" && p != protocol {
			return fmt.Errorf("%s is %q, which is not supported; set %s=%s and the collector's port for it, which is mostly 4318", name, p, name, protocol)
		}
	}
	return nil
}

func newProvider(ctx context.Context, service, version string, options ...otlptracehttp.Option) (*sdktrace.TracerProvider, error) {
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("preparing to send traces: %w", err)
	}
	own, err := resource.New(ctx,
		resource.WithAttributes(attribute.String(serviceName, service), attribute.String(serviceVersion, version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describing the service for traces: %w", err)
	}
	relayed := resource.NewSchemaless(attribute.String(serviceName, "agentpod-sandboxd"), attribute.String(serviceVersion, version))
	return sdktrace.NewTracerProvider(sdktrace.WithBatcher(relabelled{exporter, relayed}), sdktrace.WithResource(own)), nil
}

// failures tells of spans that could not be sent.
type failures struct{ log *slog.Logger }

// Handle implements otel.ErrorHandler.
func (f failures) Handle(err error) { f.log.Warn("traces could not be sent", "error", err) }

func wanted(env func(string) string) bool {
	if env(disabledEnv) == "true" || env(exporterEnv) == "none" {
		return false
	}
	return slices.ContainsFunc([]string{endpointEnv, tracesEnv, exporterEnv}, func(name string) bool { return env(name) != "" })
}

// Tracer returns what begins spans, or nil.
func (t *Tracing) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer(timeline.Scope)
}

// closing bounds how long the last spans are sent for.
const closing = 5 * time.Second

// Close sends what there is yet, for five seconds at the most.
func (t *Tracing) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.WarnContext(ctx, "the last traces could not be sent", "error", err)
	}
}

// relabelled tells the spans that are a sandboxd's from the program's own.
type relabelled struct {
	sdktrace.SpanExporter
	relayed *resource.Resource
}

// ExportSpans implements sdktrace.SpanExporter.
func (r relabelled) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = s
		if s.InstrumentationScope().Name == timeline.RelayScope {
			out[i] = elsewhere{s, r.relayed}
		}
	}
	return r.SpanExporter.ExportSpans(ctx, out)
}

// elsewhere is a span of another process.
type elsewhere struct {
	sdktrace.ReadOnlySpan
	at *resource.Resource
}

// Resource implements sdktrace.ReadOnlySpan.
func (e elsewhere) Resource() *resource.Resource { return e.at }
