package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hooks is an API that receives webhooks; it can be told to hold them back.
type hooks struct {
	server *httptest.Server
	mu     sync.Mutex
	events []string
	hold   chan struct{}
}

const hookToken = "the-webhook-token"

func receiveHooks(t *testing.T) *hooks {
	t.Helper()
	h := &hooks{}
	h.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		hold := h.hold
		h.mu.Unlock()
		if hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
				return
			}
		}
		var body struct {
			Event     string
			Data      object
			Timestamp string
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		if r.URL.Path != "/api/v2/cloudflare/webhook" || r.Header.Get("Authorization") != "Bearer "+hookToken ||
			body.Timestamp == "" || body.Data["provider"] != "docker" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		id, _ := body.Data["sandboxId"].(string)
		owner, _ := body.Data["userId"].(string)
		h.mu.Lock()
		h.events = append(h.events, body.Event+" "+id+" "+owner)
		h.mu.Unlock()
	}))
	t.Cleanup(h.server.Close)
	return h
}

func (h *hooks) env() []string {
	return []string{"AGENTPOD_API_URL=" + h.server.URL, "AGENTPOD_API_TOKEN=" + hookToken}
}

func (h *hooks) seen() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.events, ", ")
}

func TestTwoCreatesAtOnceAndADeleteDuringACreate(t *testing.T) {
	g := shared(t)
	t.Run("two creates of one id give one sandbox", func(t *testing.T) {
		defer g.delete(t, "twice")
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				status, body, err := g.do(t.Context(), http.MethodPost, "/sandbox", object{"id": "twice", "userId": "u"})
				if err != nil || status != http.StatusOK {
					t.Errorf("%d %s %v", status, body, err)
				}
			})
		}
		group.Wait()
		if out, err := docker("ps", "-aq", "--filter", "name=^/"+g.container("twice")+"$"); err != nil || strings.Count(out, "\n") != 0 || out == "" {
			t.Errorf("containers: %q %v", out, err)
		}
	})
	t.Run("a delete during a create", func(t *testing.T) {
		created := make(chan int, 1)
		go func() {
			status, _, _ := g.do(context.WithoutCancel(t.Context()), http.MethodPost, "/sandbox", object{"id": "brief", "userId": "u"})
			created <- status
		}()
		eventually(t, "its container starts", 20*time.Second, func() bool {
			out, _ := docker("ps", "-q", "--filter", "name=^/"+g.container("brief")+"$")
			return out != ""
		})
		g.delete(t, "brief")
		if status := <-created; status != http.StatusConflict {
			t.Errorf("the create answered %d", status)
		}
		if out, _ := docker("ps", "-aq", "--filter", "name=^/"+g.container("brief")+"$"); out != "" {
			t.Errorf("a container is left: %s", out)
		}
		g.call(t, http.MethodGet, "/sandbox/brief", nil, http.StatusNotFound)
	})
}

func TestAFailedCreateLeavesNothingAndSaysWhy(t *testing.T) {
	g := shared(t)
	got := g.call(t, http.MethodPost, "/sandbox", object{
		"id": "noclone", "userId": "u",
		"gitUrl": strings.Replace(g.git.URL(), "demo.git", "absent.git", 1),
	}, http.StatusUnprocessableEntity)
	if text, _ := got["error"].(string); got["code"] != "clone_failed" || !strings.Contains(text, "clone") || !strings.Contains(text, "not exported") {
		t.Errorf("got %v", got)
	}
	got = g.call(t, http.MethodPost, "/sandbox", object{"id": "noclone", "userId": "u", "config": object{"model": 42}}, http.StatusUnprocessableEntity)
	if text, _ := got["error"].(string); got["code"] != "config_rejected" || !strings.Contains(text, "model") {
		t.Errorf("got %v", got)
	}
	g.call(t, http.MethodGet, "/sandbox/noclone", nil, http.StatusNotFound)
	if out, _ := docker("ps", "-aq", "--filter", "name=^/"+g.container("noclone")+"$"); out != "" {
		t.Errorf("a container is left: %s", out)
	}
}

func TestNothingOfAnOldSandboxReachesItsSuccessor(t *testing.T) {
	h := receiveHooks(t)
	g := start(t, h.env()...)
	g.create(t, "reused", object{"userId": "first"})
	g.call(t, http.MethodPut, "/sandbox/reused/files/workspace/secret.txt", []byte("of the first"), http.StatusOK)
	g.message(t, "reused", "warm up", http.StatusOK)

	h.mu.Lock()
	h.hold = make(chan struct{}) // the webhooks of the first are still on their way
	h.mu.Unlock()
	messaged := make(chan int, 1)
	go func() {
		status, _, _ := g.do(context.WithoutCancel(t.Context()), http.MethodPost, "/sandbox/reused/message", object{"message": "chunks 100 200ms"})
		messaged <- status
	}()
	stream, err := g.open(t.Context(), http.MethodGet, "/sandbox/reused/opencode/event", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	lines := bufio.NewScanner(stream.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() && !strings.Contains(lines.Text(), "message.part") {
		continue // until the turn is under way
	}
	g.delete(t, "reused")
	g.create(t, "reused", object{"userId": "second"})
	if status := <-messaged; status != http.StatusConflict {
		t.Errorf("the first's message answered %d", status)
	}
	for lines.Scan() {
		if strings.Contains(lines.Text(), "second") {
			t.Error("the first's stream carries the second's events")
		}
	}
	h.mu.Lock()
	close(h.hold)
	h.hold = nil
	h.mu.Unlock()
	if got := g.message(t, "reused", "who am I", http.StatusOK); got["response"] != "echo: who am I" {
		t.Errorf("got %v", got)
	}
	g.call(t, http.MethodGet, "/sandbox/reused/files/workspace/secret.txt", nil, http.StatusNotFound)
	var sessions []object
	_, raw, err := g.do(t.Context(), http.MethodGet, "/sandbox/reused/opencode/session", nil)
	if err != nil || json.Unmarshal(raw, &sessions) != nil || len(sessions) != 1 {
		t.Errorf("the second has the sessions %s %v", raw, err)
	}
	eventually(t, "the second's webhooks", 20*time.Second, func() bool {
		return strings.Contains(h.seen(), "session.message reused second")
	})
	seen := h.seen()
	if i, j := strings.Index(seen, "sandbox.deleted reused first"), strings.Index(seen, "sandbox.created reused second"); i < 0 || j < i {
		t.Errorf("webhooks out of order: %s", seen)
	}
	if _, after, _ := strings.Cut(seen, "sandbox.created reused second"); strings.Contains(after, "first") {
		t.Errorf("a webhook of the first after the second began: %s", seen)
	}
}

func TestWhatDiesIsNoticedAndComesBack(t *testing.T) {
	g := start(t)
	g.create(t, "mortal", nil)
	g.call(t, http.MethodPut, "/sandbox/mortal/files/workspace/kept.txt", []byte("kept"), http.StatusOK)
	first := g.message(t, "mortal", "before", http.StatusOK)

	kept := func(t *testing.T) {
		t.Helper()
		got := g.call(t, http.MethodPost, "/sandbox/mortal/message", object{"message": "after", "sessionId": first["sessionId"]}, http.StatusOK)
		if got["response"] != "echo: after" {
			t.Errorf("got %v", got)
		}
		status, body, err := g.do(t.Context(), http.MethodGet, "/sandbox/mortal/files/workspace/kept.txt", nil)
		if err != nil || status != http.StatusOK || string(body) != "kept" {
			t.Errorf("the file: %d %s %v", status, body, err)
		}
	}
	state := func(t *testing.T, want string) func() bool {
		return func() bool {
			return g.call(t, http.MethodGet, "/sandbox/mortal", nil, http.StatusOK)["status"] == want
		}
	}
	t.Run("OpenCode killed: sandboxd restarts it and says so", func(t *testing.T) {
		g.call(t, http.MethodPost, "/sandbox/mortal/exec", object{"command": []string{"pkill", "-9", "-x", "opencode"}}, http.StatusOK)
		eventually(t, "OpenCode is back", 30*time.Second, func() bool {
			oc, _ := g.call(t, http.MethodGet, "/sandbox/mortal", nil, http.StatusOK)["opencode"].(object)
			return oc["state"] == "ready" && oc["restarts"] == 1.0 && strings.Contains(fmt.Sprint(oc["lastExit"]), "kill")
		})
		kept(t)
	})
	t.Run("while OpenCode is down the proxy says so", func(t *testing.T) {
		g.call(t, http.MethodPost, "/sandbox/mortal/exec", object{"command": []string{"pkill", "-9", "-x", "opencode"}}, http.StatusOK)
		got := g.call(t, http.MethodGet, "/sandbox/mortal/opencode/session", nil, http.StatusBadGateway)
		// Or, if the request was under way when it was killed, that it broke off.
		if got["code"] != "opencode_down" && got["code"] != "opencode_failed" {
			t.Errorf("got %v", got)
		}
		eventually(t, "OpenCode is back", 30*time.Second, func() bool {
			status, _, err := g.do(t.Context(), http.MethodGet, "/sandbox/mortal/opencode/session", nil)
			return err == nil && status == http.StatusOK
		})
	})
	t.Run("container killed", func(t *testing.T) {
		if out, err := docker("kill", g.container("mortal")); err != nil {
			t.Fatal(out)
		}
		eventually(t, "it counts as stopped", 10*time.Second, state(t, "stopped"))
		kept(t)
	})
	t.Run("sandboxd killed", func(t *testing.T) {
		out, err := docker("inspect", "-f", "{{.State.Pid}}", g.container("mortal"))
		if err != nil {
			t.Fatal(out)
		}
		pid, _ := strconv.Atoi(out)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it counts as stopped", 10*time.Second, state(t, "stopped"))
		if got := g.call(t, http.MethodPost, "/sandbox/mortal/wake", nil, http.StatusOK); got["status"] != "running" {
			t.Errorf("wake: %v", got)
		}
		kept(t)
	})
	t.Run("container removed", func(t *testing.T) {
		if out, err := docker("rm", "-f", g.container("mortal")); err != nil {
			t.Fatal(out)
		}
		eventually(t, "it counts as stopped", 10*time.Second, state(t, "stopped"))
		kept(t)
	})
	removeAll := func(t *testing.T) {
		t.Helper()
		if out, err := docker("rm", "-f", g.container("mortal")); err != nil {
			t.Fatal(out)
		}
		if out, err := docker("volume", "rm", g.engine("volume")); err != nil {
			t.Fatal(out)
		}
		eventually(t, "it no longer counts as running", 10*time.Second, func() bool { return !state(t, "running")() })
	}
	t.Run("container and volume removed: the newest snapshot takes their place", func(t *testing.T) {
		removeAll(t)
		kept(t)
	})
	t.Run("container, volume and snapshots removed", func(t *testing.T) {
		removeAll(t)
		// What was being stored as the container went may be written still.
		eventually(t, "nothing is stored", 10*time.Second, func() bool {
			return os.RemoveAll(filepath.Join(g.dir, "store", "snapshots", "mortal")) == nil
		})
		if got := g.call(t, http.MethodPost, "/sandbox/mortal/wake", nil, http.StatusConflict); got["code"] != "workspace_lost" {
			t.Errorf("got %v", got)
		}
		if !state(t, "error")() {
			t.Error("a lost workspace is not an error")
		}
		g.delete(t, "mortal")
	})
}

func TestAGatewayThatEndsLeavesItsSandboxesToTheNext(t *testing.T) {
	g := start(t)
	g.create(t, "adopted", nil)
	first := g.message(t, "adopted", "before", http.StatusOK)
	pid, _ := docker("inspect", "-f", "{{.State.Pid}}", g.container("adopted"))

	restart := func(t *testing.T, sig syscall.Signal) {
		t.Helper()
		if err := g.stop(sig); err != nil {
			t.Fatal(err)
		}
		if err := g.run(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("ended by Ctrl-C, with a stream open", func(t *testing.T) {
		stream, err := g.open(t.Context(), http.MethodGet, "/sandbox/adopted/opencode/event", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stream.Body.Close() }()
		began := time.Now()
		restart(t, syscall.SIGINT)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the drain took %s", took)
		}
		if _, err := io.ReadAll(stream.Body); err != nil && !strings.Contains(err.Error(), "EOF") {
			t.Errorf("the stream ended with %v", err)
		}
		got := g.call(t, http.MethodPost, "/sandbox/adopted/message", object{"message": "again", "sessionId": first["sessionId"]}, http.StatusOK)
		if got["response"] != "echo: again" {
			t.Errorf("got %v", got)
		}
		if now, _ := docker("inspect", "-f", "{{.State.Pid}}", g.container("adopted")); now != pid {
			t.Error("the container was restarted")
		}
	})
	t.Run("kill -9 during a message", func(t *testing.T) {
		go func() {
			_, _, _ = g.do(context.WithoutCancel(t.Context()), http.MethodPost, "/sandbox/adopted/message",
				object{"message": "chunks 5 200ms", "sessionId": first["sessionId"]})
		}()
		eventually(t, "the turn runs", 10*time.Second, func() bool {
			return g.call(t, http.MethodGet, "/sandbox/adopted", nil, http.StatusOK)["busy"] == true
		})
		restart(t, syscall.SIGKILL)
		eventually(t, "the turn's answer is in the session", 30*time.Second, func() bool {
			session, _ := first["sessionId"].(string)
			_, raw, err := g.do(t.Context(), http.MethodGet, "/sandbox/adopted/opencode/session/"+session+"/message", nil)
			return err == nil && strings.Count(string(raw), `"finish":"stop"`) >= 3
		})
	})
	t.Run("kill -9 during a create", func(t *testing.T) {
		for _, moment := range []string{"the record is written", "the container runs"} {
			go func() {
				_, _, _ = g.do(context.WithoutCancel(t.Context()), http.MethodPost, "/sandbox", object{"id": "halfway", "userId": "u"})
			}()
			eventually(t, moment, 20*time.Second, func() bool {
				if moment == "the record is written" {
					_, err := os.Stat(g.dir + "/store/sandboxes/halfway/record.json")
					return err == nil
				}
				out, _ := docker("ps", "-q", "--filter", "name=^/"+g.container("halfway")+"$")
				return out != ""
			})
			restart(t, syscall.SIGKILL)
			eventually(t, "nothing is left of it after "+moment, 30*time.Second, func() bool {
				out, _ := docker("ps", "-aq", "--filter", "name=^/"+g.container("halfway")+"$")
				_, err := os.Stat(g.dir + "/store/sandboxes/halfway")
				return out == "" && os.IsNotExist(err) && !strings.Contains(g.engine("volume"), "\n")
			})
			g.call(t, http.MethodGet, "/sandbox/halfway", nil, http.StatusNotFound)
		}
		g.create(t, "halfway", nil)
	})
}

func TestTwoGatewaysOnOneEngineDoNotTouchEachOther(t *testing.T) {
	a, b := shared(t), start(t)
	a.create(t, "same-id", nil)
	defer a.delete(t, "same-id")
	b.create(t, "same-id", object{"userId": "of b"})
	b.delete(t, "same-id")
	if got := a.message(t, "same-id", "alive", http.StatusOK); got["response"] != "echo: alive" {
		t.Errorf("got %v", got)
	}
	for _, g := range []*gateway{a, b} {
		other := a
		if g == a {
			other = b
		}
		if strings.Contains(g.log(), other.installation()) {
			t.Error("one gateway's log speaks of the other's things")
		}
	}
}

func TestASecondGatewayOnTheSameDataIsRefused(t *testing.T) {
	g := shared(t)
	second := &gateway{dir: g.dir, model: g.model}
	if err := second.run(); err == nil {
		_ = second.stop(syscall.SIGKILL)
		t.Fatal("it serves")
	}
	if !strings.Contains(second.log(), "another gateway uses the store") {
		t.Errorf("it says %s", second.log())
	}
}

func TestAnEngineThatIsAwayIsA503ThatHeals(t *testing.T) {
	engine := relayEngine(t)
	g := start(t, "DOCKER_HOST=unix://"+engine.path)
	g.create(t, "cut", nil)
	engine.cut()
	if got := g.call(t, http.MethodPost, "/sandbox", object{"id": "other", "userId": "u"}, http.StatusServiceUnavailable); got["code"] != "engine_unavailable" {
		t.Errorf("create: %v", got)
	}
	g.call(t, http.MethodGet, "/readyz", nil, http.StatusServiceUnavailable)
	g.call(t, http.MethodGet, "/sandbox/cut", nil, http.StatusOK)
	if got := g.call(t, http.MethodDelete, "/sandbox/cut", nil, http.StatusServiceUnavailable); got["code"] != "engine_unavailable" {
		t.Errorf("delete: %v", got)
	}
	engine.mend(t)
	eventually(t, "the delete is finished by itself", 60*time.Second, func() bool { return g.engine("container") == "" && g.engine("volume") == "" })
	g.create(t, "cut", nil)
}

// relay is a socket in front of the engine's that can be cut: an engine that
// goes away without one that others use having to.
type relay struct {
	path, engine string
	mu           sync.Mutex
	listener     net.Listener
	conns        map[net.Conn]bool
}

func relayEngine(t *testing.T) *relay {
	t.Helper()
	dir := t.TempDir()
	r := &relay{path: dir + "/e.sock", engine: "/var/run/docker.sock", conns: map[net.Conn]bool{}}
	if host, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok {
		r.engine = host
	}
	r.mend(t)
	t.Cleanup(r.cut)
	return r
}

func (r *relay) mend(t *testing.T) {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.listener = listener
	r.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go r.carry(conn)
		}
	}()
}

func (r *relay) carry(client net.Conn) {
	var dialer net.Dialer
	engine, err := dialer.DialContext(context.Background(), "unix", r.engine)
	if err != nil {
		_ = client.Close()
		return
	}
	r.mu.Lock()
	r.conns[client], r.conns[engine] = true, true
	r.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, engine}, {engine, client}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		}()
	}
	<-done
	_, _ = client.Close(), engine.Close()
	r.mu.Lock()
	delete(r.conns, client)
	delete(r.conns, engine)
	r.mu.Unlock()
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.listener.Close()
	for conn := range r.conns {
		_ = conn.Close()
	}
}
