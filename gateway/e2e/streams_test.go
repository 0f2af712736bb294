package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestTheOfficialSDKWorksThroughTheProxy(t *testing.T) {
	g := shared(t)
	g.create(t, "sdk", nil)
	defer g.delete(t, "sdk")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "sdk.mjs"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(timeout time.Duration, name string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the test's own
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "SANDBOX_URL="+g.url+"/sandbox/sdk/opencode", "GATEWAY_TOKEN="+g.token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run(3*time.Minute, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
	out := run(time.Minute, "node", "sdk.mjs")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var got struct {
		Session, Text string
		Events        []string
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	events := strings.Join(got.Events, " ")
	if got.Text != "echo: from the sdk" || !strings.HasPrefix(got.Session, "ses_") ||
		!strings.Contains(events, "message.part.updated") || !strings.Contains(events, "session.idle") {
		t.Errorf("got %+v", got)
	}
}

func TestATerminalEchoes(t *testing.T) {
	g := shared(t)
	g.create(t, "terminal", nil)
	defer g.delete(t, "terminal")
	pty := g.call(t, http.MethodPost, "/sandbox/terminal/opencode/pty", object{"command": "/bin/bash", "args": []string{"--norc"}}, http.StatusOK)
	id, _ := pty["id"].(string)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(g.url, "http")+"/sandbox/terminal/opencode/pty/"+id+"/connect",
		&websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + g.token}}})
	if err != nil {
		t.Fatalf("connecting: %v %v", err, resp)
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("echo $((6*7))-echoed\n")); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for !strings.Contains(seen.String(), "42-echoed") {
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		seen.Write(data)
	}
	if err := conn.Write(ctx, websocket.MessageText, []byte("sleep 30\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a shell with a child is busy", 10*time.Second, func() bool {
		got := g.call(t, http.MethodGet, "/sandbox/terminal", nil, http.StatusOK)
		raw, _ := json.Marshal(got["busyReasons"])
		return strings.Contains(string(raw), "terminal")
	})
}

func TestEventsOfATurnComeAsTheyHappen(t *testing.T) {
	g := shared(t)
	g.create(t, "events", nil)
	defer g.delete(t, "events")
	g.message(t, "events", "warm up", http.StatusOK)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	resp, err := g.open(ctx, http.MethodGet, "/sandbox/events/opencode/event", nil, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("status %d, %s", resp.StatusCode, kind)
	}
	const chunks, apart = 6, 300 * time.Millisecond
	ended := make(chan time.Time, 1)
	go func() {
		_, _, _ = g.do(ctx, http.MethodPost, "/sandbox/events/message", object{"message": "chunks 6 300ms"})
		ended <- time.Now()
	}()
	var deltas []time.Time
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.Contains(line, "message.part.delta") || strings.Contains(line, `"type":"message.part.updated"`) && strings.Contains(line, `"type":"text"`) {
			deltas = append(deltas, time.Now())
		}
		if strings.Contains(line, "session.idle") && len(deltas) > 2 {
			break
		}
	}
	answered := <-ended
	if len(deltas) < chunks {
		t.Fatalf("%d events of text", len(deltas))
	}
	if early := answered.Sub(deltas[0]); early < (chunks-2)*apart {
		t.Errorf("the first event came %s before the answer: they were held back", early)
	}
}

func TestAnEventStreamEndsWithItsClientAndWithItsSandbox(t *testing.T) {
	g := shared(t)
	g.create(t, "ends", nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	resp, err := g.open(ctx, http.MethodGet, "/sandbox/ends/opencode/event", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	follow, err := g.open(ctx, http.MethodGet, "/sandbox/ends/logs?follow=true", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = follow.Body.Close() }()
	g.delete(t, "ends")
	for name, body := range map[string]*http.Response{"events": resp, "logs": follow} {
		lines := bufio.NewScanner(body.Body)
		for lines.Scan() {
			continue
		}
		if ctx.Err() != nil {
			t.Errorf("the stream of %s went on after the delete", name)
		}
	}
}
