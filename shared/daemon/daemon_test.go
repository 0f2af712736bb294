package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/daemon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server; stop ends it and gives what Run returned.
func serve(t *testing.T, s daemon.Server) (url string, stop func() error) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener, s.Log = listener, slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return "http://" + listener.Addr().String(), func() error {
		cancel()
		return <-done
	}
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestADrainLetsRequestsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	url, stop := serve(t, daemon.Server{
		DrainTimeout: 10 * time.Second, Draining: func() { close(release) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			_, _ = io.WriteString(w, "whole")
		}),
	})
	got := make(chan string, 1)
	go func() {
		body, err := get(context.WithoutCancel(t.Context()), url)
		got <- body + errorText(err)
	}()
	<-entered
	if err := stop(); err != nil {
		t.Errorf("the drain: %v", err)
	}
	if body := <-got; body != "whole" {
		t.Errorf("the request under way got %q", body)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestADrainCutsWhatDoesNotEnd(t *testing.T) {
	entered, seen := make(chan struct{}), make(chan error, 1)
	url, stop := serve(t, daemon.Server{
		DrainTimeout: 50 * time.Millisecond,
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
			seen <- r.Context().Err()
		}),
	})
	go func() { _, _ = get(context.WithoutCancel(t.Context()), url) }()
	<-entered
	began := time.Now()
	_ = stop()
	if err := <-seen; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler saw %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestADrainWaitsForHijackedConnections(t *testing.T) {
	entered, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	url, stop := serve(t, daemon.Server{
		DrainTimeout: 10 * time.Second, Draining: func() { close(release) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
			}
			close(entered)
			<-release
			_ = conn.Close()
			close(ended)
		}),
	})
	go func() { _, _ = get(context.WithoutCancel(t.Context()), url) }()
	<-entered
	if err := stop(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("the server ended before the hijacked connection did")
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	hosts := daemon.NewHosts("192.0.2.1:8787", []string{"GW.example.test", "other.test:443"})
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:1": true, "127.0.0.1:8787": true, "[::1]:8787": true, "[::1]": true, "192.0.2.1": true,
		"gw.example.test": true, "gw.example.test.:80": true, "other.test": true,
		"": false, "evil.test": false, "localhost.evil.test": false, "evil.test:8787": false, "127.0.0.1.evil.test": false, "0.0.0.0": false, "x@localhost": false,
	} {
		if hosts.Allow(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
	if daemon.NewHosts("0.0.0.0:1", nil).Allow("0.0.0.0") {
		t.Error("the any-address became a name")
	}
}

func TestLogsCannotBeForged(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text", "auto"} {
		var out bytes.Buffer
		log, err := daemon.NewLogger(&out, "info", format)
		if err != nil {
			t.Fatal(err)
		}
		const forged = "a\nlevel=ERROR msg=forged\x1b[2J\x7f \u009b31m \u202e \u2028 \U000e0001 \xff"
		// DEL alone needs no quotes for the text handler; the key is quoted in neither.
		log.Info(forged, "text", forged, "alone", "\x7f", "key\u009b\u202e\x7f", 1, "error", errors.New(forged))
		log.Debug("not said")
		got := out.String()
		if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") || strings.Contains(got, "not said") {
			t.Errorf("%s: %q", format, got)
		}
		if !utf8.ValidString(got) {
			t.Errorf("%s: not UTF-8: %q", format, got)
		}
		for _, r := range strings.TrimSuffix(got, "\n") {
			if !unicode.IsPrint(r) {
				t.Errorf("%s: %U came through: %q", format, r, got)
			}
		}
		if format == "text" {
			continue
		}
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Errorf("%s: %v: %q", format, err, got)
		}
		want := strings.ToValidUTF8(forged, "\uFFFD")
		if line["msg"] != want || line["text"] != want || line["error"] != want || line["alone"] != "\x7f" {
			t.Errorf("%s: the escapes stand for another text: %q", format, got)
		}
	}
	if _, err := daemon.NewLogger(io.Discard, "loud", "json"); err == nil {
		t.Error("a level that is none is taken")
	}
}
