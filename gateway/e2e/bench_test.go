package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/benchreport"
)

// coldCreates is how many sandboxes BenchmarkColdCreate makes, and baselines.
const coldCreates = 5

// BenchmarkColdCreate compares POST /sandbox with what it stands on: `docker
// run` of the same image under the same limits with OpenCode alone in it, until
// its health says so; and the first answer of each. Both are measured in turn.
func BenchmarkColdCreate(b *testing.B) {
	g, err := launch(awake...)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := g.destroy(); err != nil {
			b.Error(err)
		}
	}()
	var ready, answer, baseReady, baseAnswer []time.Duration
	for i := range benchreport.Few(coldCreates) {
		r, a := g.coldBaseline(b, i)
		baseReady, baseAnswer = append(baseReady, r), append(baseAnswer, a)
		r, a = g.coldCreate(b, i)
		ready, answer = append(ready, r), append(answer, a)
	}
	report.Add(b,
		benchreport.Row{
			Name: "cold create until its reply", Unit: "s", Samples: benchreport.Seconds(ready...),
			Baseline: benchreport.Against("docker run until OpenCode is ready", benchreport.Seconds(baseReady...)),
		},
		benchreport.Row{
			Name: "cold create until the first answer", Unit: "s", Samples: benchreport.Seconds(answer...),
			Baseline: benchreport.Against("docker run until OpenCode's own first answer", benchreport.Seconds(baseAnswer...)),
		},
	)
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
	began := time.Now()
	a := g.runAlone(ctx, b, fmt.Sprint("baseline-", i))
	defer a.remove()
	ready = time.Since(began)
	a.firstAnswer(ctx, b)
	return ready, time.Since(began)
}

// alone is a container with nothing but OpenCode in it, under a sandbox's limits,
// that no gateway knows of. Its password is pw.
type alone struct{ name, url string }

// runAlone returns once OpenCode is ready.
func (g *gateway) runAlone(ctx context.Context, b *testing.B, name string) alone {
	b.Helper()
	a := alone{name: "agentpod-" + g.installation() + "-" + name}
	out, err := docker("run", "-d", "--name", a.name, "--network", "agentpod-"+g.installation(), "-v", a.name+":/home/user", "--read-only",
		"--tmpfs", "/tmp:exec", "--tmpfs", "/run", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "2g", "--memory-swap", "2g",
		"--cpus", "2", "--pids-limit", "1024", "-e", "OPENCODE_SERVER_PASSWORD=pw", "-e", "OPENCODE_CONFIG_CONTENT="+string(g.model.Config()),
		"-e", "OPENCODE_DISABLE_MODELS_FETCH=1", "-e", "OPENCODE_DISABLE_AUTOUPDATE=1", "-e", "OPENCODE_DISABLE_LSP_DOWNLOAD=1",
		"-e", "OPENCODE_DISABLE_DEFAULT_PLUGINS=1", "-e", "npm_config_offline=true",
		"--entrypoint", "opencode", os.Getenv(imageEnv), "serve", "--hostname", "0.0.0.0", "--port", "4096")
	if err != nil {
		a.remove()
		b.Fatal(out)
	}
	a.ready(ctx, b)
	return a
}

// ready waits until OpenCode is ready after a start of the container, which may
// have given it another address.
func (a *alone) ready(ctx context.Context, b *testing.B) {
	b.Helper()
	address, err := docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", a.name)
	if err != nil {
		a.remove()
		b.Fatal(address)
	}
	a.url = "http://" + address + ":4096"
	for !healthy(ctx, a.url) {
		if ctx.Err() != nil {
			a.remove()
			b.Fatal("OpenCode alone did not become ready")
		}
	}
}

func (a *alone) remove() {
	_, _ = docker("rm", "-f", a.name)
	_, _ = docker("volume", "rm", a.name)
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
