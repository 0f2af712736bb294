package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

// start runs a gateway on a free port, without an engine; stop ends it.
func start(t *testing.T, env ...string) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	read, write := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, nil, append(env, "GATEWAY_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "DATA_DIR="+t.TempDir(), "DOCKER_HOST=unix:///nonexistent/docker.sock"), io.Discard, write)
		_ = write.Close()
	}()
	lines := bufio.NewScanner(read)
	var said []string
	for url == "" && lines.Scan() {
		var line struct{ Msg, Addr string }
		said = append(said, lines.Text())
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			url = "http://" + line.Addr
		}
	}
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, read)
		close(drained)
	}()
	stop = func() {
		cancel()
		if code := <-code; code != 0 {
			t.Errorf("exit %d", code)
		}
		<-drained
	}
	if url == "" {
		t.Fatalf("it does not serve: %s", strings.Join(said, "\n"))
	}
	return url, stop
}

func TestTheFiguresAreThoseThatAreDocumentedHoweverManySandboxesAreAskedFor(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-the-tests"
	url, stop := start(t, "GATEWAY_TOKEN="+token)
	defer stop()
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		said, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(said)
	}
	visit := func(id string) {
		t.Helper()
		body := fmt.Sprintf(`{"id":%q,"userId":%q}`, id, "user-"+id)
		if status, said := call(http.MethodPost, "/sandbox", body); status < 500 { // there is no engine
			t.Fatalf("%d %s", status, said)
		}
		for _, path := range []string{"", "/stats", "/files/of-" + id, "/opencode/event/" + id} {
			if status, said := call(http.MethodGet, "/sandbox/"+id+path, ""); status != http.StatusNotFound {
				t.Fatalf("%s: %d %s", path, status, said)
			}
		}
	}
	page := func() metricstest.Page {
		t.Helper()
		_, text := call(http.MethodGet, "/metrics", "")
		return metricstest.Parse(t, text)
	}
	for i := range 20 {
		visit(fmt.Sprint("box-", i))
	}
	page()
	before := page() // with the first scrape in it
	before.Documented(t, "../../../docs/metrics.md", "Both", "Gateway")
	if n := before.Sum("agentpod_engine_calls_total", "outcome", "failed"); n == 0 {
		t.Error("an engine that is not there has not failed")
	}
	if n := before.Sum("agentpod_store_calls_total", "operation", "put", "outcome", "ok"); n == 0 {
		t.Error("nothing was put into the store")
	}
	for i := range 200 {
		visit(fmt.Sprint("another-", i))
	}
	if n := page().Series(); n != before.Series() {
		t.Errorf("%d series after 220 sandboxes, %d after 20", n, before.Series())
	}
}
