package tracing_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/timeline"
	"github.com/agentpod/agentpod/shared/tracing"
	"github.com/agentpod/agentpod/shared/tracing/tracingtest"
)

// start starts with an environment, which the library reads as well.
func start(t *testing.T, env map[string]string) (*tracing.Tracing, error) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	return tracing.Start(t.Context(), func(name string) string { return env[name] }, "agentpod-test", "v1", slog.New(slog.DiscardHandler))
}

func TestWithoutTheStandardVariablesNothingIsSent(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"nothing is set":     {},
		"only a name is set": {"OTEL_SERVICE_NAME": "mine"},
		"it is disabled":     {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"no exporter wanted": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			traces, err := start(t, env)
			if err != nil || traces.Tracer() != nil {
				t.Errorf("%v %v", traces, err)
			}
			traces.Close(t.Context())
		})
	}
}

func TestWhatIsNotSupportedIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		says string
	}{
		"another protocol": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"},
		"another exporter": {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=otlp"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := start(t, c.env); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestSpansArriveAtTheCollectorWithTheirService(t *testing.T) {
	collector := tracingtest.New(t)
	traces, err := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a secret"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, line := timeline.New(t.Context())
	ctx, done := timeline.Serve(ctx, traces.Tracer(), http.MethodPost)
	timeline.Note(ctx, "sandboxId", "a")
	timeline.Begin(ctx, "boot")()
	done("/sandbox", http.StatusBadGateway)
	traces.Close(t.Context())
	if len(line.Stages()) != 1 {
		t.Errorf("%v", line.Stages())
	}
	if h := collector.Headers(); len(h) != 1 || h[0].Get("X-Key") != "a secret" {
		t.Errorf("%v", h)
	}
	spans := collector.All()
	if len(spans) != 2 {
		t.Fatalf("%v", spans)
	}
	whole, boot := spans[0], spans[1]
	if whole.Name != "POST /sandbox" || whole.Service != "agentpod-test" || !whole.Failed || whole.Attributes["sandboxId"] != "a" ||
		whole.Attributes["http.response.status_code"] != "502" || boot.Name != "boot" || boot.Parent != whole.SpanID || boot.TraceID != whole.TraceID {
		t.Errorf("%+v", spans)
	}
}

func TestACheckSendsASpanOrSaysWhyNot(t *testing.T) {
	check := func(t *testing.T, env map[string]string) (string, error) {
		t.Helper()
		for name, value := range env {
			t.Setenv(name, value)
		}
		return tracing.Check(t.Context(), func(name string) string { return env[name] }, "agentpod-test", "v1")
	}
	t.Run("off", func(t *testing.T) {
		if said, err := check(t, nil); err != nil || !strings.HasPrefix(said, "off") {
			t.Errorf("%q %v", said, err)
		}
	})
	t.Run("taken", func(t *testing.T) {
		collector := tracingtest.New(t)
		if said, err := check(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}); err != nil || len(collector.All()) != 1 {
			t.Errorf("%q %v %v", said, err, collector.All())
		}
	})
	t.Run("refused", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		said, err := check(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=canary"})
		if err == nil || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_ENDPOINT") || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q %v", said, err)
		}
	})
}
