package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkColdCreate compares POST /sandbox with what it stands on: `docker
// run` of the same image under the same limits with OpenCode alone in it, until
// its health says so; and the first answer of each. Run it with
//
//	go test -run '^$' -bench ColdCreate -benchtime 10x ./e2e
//
// Both are measured in turn, in the same run; the ratio is what counts.
func BenchmarkColdCreate(b *testing.B) {
	g, err := launch()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := g.destroy(); err != nil {
			b.Error(err)
		}
	}()
	var ready, answer, baseReady, baseAnswer []time.Duration
	for i := 0; b.Loop(); i++ {
		r, a := g.coldBaseline(b, i)
		baseReady, baseAnswer = append(baseReady, r), append(baseAnswer, a)
		r, a = g.coldCreate(b, i)
		ready, answer = append(ready, r), append(answer, a)
	}
	report := func(name string, of, base []time.Duration) {
		b.ReportMetric(median(of).Seconds()*1000, name+"-ms")
		b.ReportMetric(median(base).Seconds()*1000, name+"-base-ms")
		b.ReportMetric(median(of).Seconds()/median(base).Seconds(), name+"-ratio")
	}
	report("reply", ready, baseReady)
	report("answer", answer, baseAnswer)
	b.Logf("reply %v\nbase  %v\nanswer %v\nbase   %v", ready, baseReady, answer, baseAnswer)
}

func median(of []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

func (g *gateway) coldCreate(b *testing.B, i int) (ready, answer time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	id := fmt.Sprint("cold-", i)
	began := time.Now()
	if status, body, err := g.do(ctx, http.MethodPost, "/sandbox", object{"id": id, "userId": "bench"}); err != nil || status != http.StatusOK {
		b.Fatalf("%d %s %v", status, body, err)
	}
	ready = time.Since(began)
	status, body, err := g.do(ctx, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello"})
	if err != nil || status != http.StatusOK || !strings.Contains(string(body), "echo: hello") {
		b.Fatalf("%d %s %v", status, body, err)
	}
	answer = time.Since(began)
	if status, body, err := g.do(ctx, http.MethodDelete, "/sandbox/"+id, nil); err != nil || status != http.StatusOK {
		b.Fatalf("%d %s %v", status, body, err)
	}
	return ready, answer
}

// coldBaseline is the same without a gateway: the engine's own command, and
// OpenCode's own boot and first message.
func (g *gateway) coldBaseline(b *testing.B, i int) (ready, answer time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	name := fmt.Sprintf("agentpod-%s-baseline-%d", g.installation(), i)
	defer func() {
		_, _ = docker("rm", "-f", name)
		_, _ = docker("volume", "rm", name)
	}()
	began := time.Now()
	out, err := docker("run", "-d", "--name", name, "--network", "agentpod-"+g.installation(), "-v", name+":/home/user", "--read-only",
		"--tmpfs", "/tmp:exec", "--tmpfs", "/run", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "2g", "--memory-swap", "2g",
		"--cpus", "2", "--pids-limit", "1024", "-e", "OPENCODE_SERVER_PASSWORD=pw", "-e", "OPENCODE_CONFIG_CONTENT="+string(g.model.Config()),
		"-e", "OPENCODE_DISABLE_MODELS_FETCH=1", "-e", "OPENCODE_DISABLE_AUTOUPDATE=1", "-e", "OPENCODE_DISABLE_LSP_DOWNLOAD=1",
		"-e", "OPENCODE_DISABLE_DEFAULT_PLUGINS=1", "-e", "npm_config_offline=true",
		"--entrypoint", "opencode", os.Getenv(imageEnv), "serve", "--hostname", "0.0.0.0", "--port", "4096")
	if err != nil {
		b.Fatal(out)
	}
	address, err := docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
	if err != nil {
		b.Fatal(address)
	}
	url := "http://" + address + ":4096"
	for !healthy(ctx, url) {
		if ctx.Err() != nil {
			b.Fatal("OpenCode alone did not become ready")
		}
	}
	ready = time.Since(began)
	var session struct{ ID string }
	if err := json.Unmarshal(direct(ctx, b, url+"/session", `{}`), &session); err != nil {
		b.Fatal(err)
	}
	if body := direct(ctx, b, url+"/session/"+session.ID+"/message", `{"parts":[{"type":"text","text":"hello"}]}`); !bytes.Contains(body, []byte("echo: hello")) {
		b.Fatalf("%s", body)
	}
	return ready, time.Since(began)
}

func healthy(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	body, err := ask(ctx, http.MethodGet, url+"/global/health", "")
	if err != nil {
		<-time.After(10 * time.Millisecond)
	}
	return bytes.Contains(body, []byte(`"healthy":true`))
}

func direct(ctx context.Context, b *testing.B, url, body string) []byte {
	b.Helper()
	raw, err := ask(ctx, http.MethodPost, url, body)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func ask(ctx context.Context, method, url, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.SetBasicAuth("opencode", "pw")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(resp.Body)
}
