package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/tracing/tracingtest"
)

// One message is followed through API, gateway and sandboxd: by its request id in
// the log of each, and by its trace at a collector.
func TestAMessageIsFollowedThroughThreeProcesses(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t)
	// What a sandbox must not know of.
	const secret = "the-collector-wants-this"
	exported := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-key=" + secret, "OTEL_BSP_SCHEDULE_DELAY=100"}
	g := ownGateway(t, exported...)
	a := newAPI(t, g, exported...)
	user := a.user(t)
	var first struct{ SandboxID string }
	user.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "hello", "provider": "docker"}, http.StatusOK, &first)
	if first.SandboxID == "" {
		t.Fatal("the task has no sandbox")
	}
	g.caller().must(t, http.MethodPost, "/sandbox/"+first.SandboxID+"/hibernate", object{"tier": "stopped"}, http.StatusOK, nil)

	requestID := "followed-" + strings.ToLower(rand.Text())
	traceID := hex.EncodeToString([]byte(rand.Text())[:16])
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	res, err := user.open(ctx, http.MethodPost, "/api/v2/agents/task", object{"message": "follow me", "provider": "docker", "sandboxId": first.SandboxID},
		http.Header{"X-Request-Id": {requestID}, "Traceparent": {"00-" + traceID + "-00f067aa0ba902b7-01"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var told struct{ TaskID, SandboxID, SessionID, Response string }
	if err := json.NewDecoder(res.Body).Decode(&told); err != nil || res.StatusCode != http.StatusOK || told.Response != "echo: follow me" {
		t.Fatalf("%d %v %+v", res.StatusCode, err, told)
	}
	if got := res.Header.Get("X-Request-Id"); got != requestID {
		t.Errorf("the caller's request id comes back as %q", got)
	}
	if told.SandboxID != first.SandboxID {
		t.Fatalf("another sandbox: %+v", told)
	}

	t.Run("by its trace", func(t *testing.T) {
		routes := map[string]string{
			"agentpod-api":      "POST /api/v2/agents/task",
			"agentpod-gateway":  "POST /sandbox/:id/message",
			"agentpod-sandboxd": "POST /v1/start",
		}
		var spans []tracingtest.Span
		eventually(t, "the spans of three processes arrive", time.Minute, func() bool {
			spans = collector.Trace(traceID)
			for service, route := range routes {
				if !slices.ContainsFunc(spans, func(s tracingtest.Span) bool { return s.Service == service && s.Name == route }) {
					return false
				}
			}
			return true
		})
		t.Logf("the trace:\n%s", tracingtest.Tree(spans))
		byID := map[string]tracingtest.Span{}
		for _, s := range spans {
			byID[s.SpanID] = s
		}
		for _, s := range spans {
			if s.End.Before(s.Start) {
				t.Errorf("%s: %s is from %s to %s", s.Service, s.Name, s.Start, s.End)
			}
			// What sandboxd did hangs on the gateway's call, and that on the API's request.
			var chain []string
			for at, ok := s, true; ok; at, ok = byID[at.Parent] {
				if len(chain) == 0 || chain[len(chain)-1] != at.Service {
					chain = append(chain, at.Service)
				}
			}
			want := map[string]string{
				"agentpod-api": "agentpod-api", "agentpod-gateway": "agentpod-gateway agentpod-api",
				"agentpod-sandboxd": "agentpod-sandboxd agentpod-gateway agentpod-api",
			}[s.Service]
			if got := strings.Join(chain, " "); got != want {
				t.Errorf("%s: %s hangs on %s, want %s", s.Service, s.Name, got, want)
			}
			if s.Name == routes["agentpod-gateway"] && (s.Attributes["sandboxId"] != told.SandboxID || s.Attributes["sessionId"] != told.SessionID ||
				s.Attributes["requestId"] != requestID || s.Attributes["http.response.status_code"] != "200") {
				t.Errorf("the gateway's span says %v", s.Attributes)
			}
		}
		for _, h := range collector.Headers() {
			if h.Get("X-Key") != secret {
				t.Errorf("an export without its header: %v", h)
			}
		}
	})

	t.Run("by its request id", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		container := "agentpod-" + readSecret(g.dir, "installation") + "-" + told.SandboxID
		inside, err := exec.CommandContext(ctx, "docker", "logs", container).CombinedOutput() //nolint:gosec // our own container
		if err != nil {
			t.Fatalf("docker logs: %v: %s", err, inside)
		}
		for _, c := range []struct {
			who, log string
			says     map[string]string // of one line
		}{
			{"the API", a.Log(), map[string]string{"userId": user.userID, "traceId": traceID, "msg": "request"}},
			{"the API", a.Log(), map[string]string{
				"taskId": told.TaskID, "sandboxId": told.SandboxID, "sessionId": told.SessionID, "userId": user.userID, "provider": "docker", "msg": "a task ended",
			}},
			{"the gateway", g.Log(), map[string]string{
				"sandboxId": told.SandboxID, "sessionId": told.SessionID, "userId": user.userID, "traceId": traceID, "msg": "turn ended",
			}},
			{"the gateway", g.Log(), map[string]string{"sandboxId": told.SandboxID, "tier": "stopped", "traceId": traceID, "msg": "woken"}},
			{"sandboxd", string(inside), map[string]string{"path": "/v1/start", "traceId": traceID, "msg": "request"}},
		} {
			if !slices.ContainsFunc(strings.Split(c.log, "\n"), func(line string) bool {
				var said map[string]any
				if json.Unmarshal([]byte(line), &said) != nil || said["requestId"] != requestID {
					return false
				}
				for key, value := range c.says {
					if said[key] != value {
						return false
					}
				}
				return true
			}) {
				t.Errorf("no line of %s has the request's id and %v", c.who, c.says)
			}
		}
		described, err := exec.CommandContext(ctx, "docker", "inspect", container).CombinedOutput() //nolint:gosec // our own container
		if err != nil || strings.Contains(string(described), "OTEL") || strings.Contains(string(described), secret) {
			t.Errorf("%v: the sandbox knows of the collector", err)
		}
	})
}
