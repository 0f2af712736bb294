package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// fakeGateway is a gateway whose sandboxes are always up, with what a test puts
// behind them. The client's own conformance suite knows the real one.
type fakeGateway struct {
	// openCode answers what is below a sandbox's /opencode.
	openCode http.HandlerFunc
	// ui answers /ui, if a test sets it before the first request.
	ui http.HandlerFunc

	mu    sync.Mutex
	files map[string]string // by ID/PATH
}

const gatewayToken = "the-gateways-own-token"

func newGateway(t testing.TB, openCode http.HandlerFunc) (*fakeGateway, map[string]sandbox.Backend) {
	t.Helper()
	g := &fakeGateway{openCode: openCode, files: map[string]string{}}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	client, err := sandbox.NewGateway(sandbox.ClientSettings{BaseURL: server.URL, Token: gatewayToken})
	must(t, err)
	closeAfter(t, client)
	return g, map[string]sandbox.Backend{provider.Docker: client}
}

func (g *fakeGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/health" {
		_, _ = fmt.Fprintf(w, `{"status":"ok","timestamp":%q}`, time.Now().UTC().Format(time.RFC3339Nano))
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+gatewayToken {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	elements := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/sandbox"), "/", 4)
	var id, below string
	if len(elements) > 1 {
		id = elements[1]
	}
	if len(elements) > 2 {
		below = elements[2]
	}
	answer := func(format string, args ...any) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, format, args...)
	}
	switch r.Method + " " + below {
	case "POST ":
		var req sandbox.CreateRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		answer(`{"success":true,"sandboxId":%q}`, req.ID)
	case "GET ":
		if id == "" {
			answer(`{"sandboxes":[]}`)
			return
		}
		answer(`{"sandboxId":%q,"status":"running","tier":"running"}`, id)
	case "DELETE ":
		answer(`{"success":true,"deleted":%q}`, id)
	case "POST wake":
		answer(`{"success":true}`)
	case "POST hibernate":
		var req sandbox.HibernateRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		answer(`{"success":true,"tier":%q}`, req.Tier)
	case "POST sync":
		answer(`{"success":true,"sandboxId":%q,"syncedFiles":2,"skippedFiles":1,"totalSize":7,"timestamp":"2026-01-02T03:04:05.000Z"}`, id)
	case "GET logs":
		answer(`{"logs":"tail %s","tail":1}`, r.URL.Query().Get("tail"))
	case "GET stats":
		answer(`{"stats":{"cpuPercent":1.5,"memoryUsage":2}}`)
	case "POST exec":
		var req sandbox.ExecRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		answer(`{"exitCode":3,"stdout":%q,"stderr":"e"}`, strings.Join(req.Command, " ")+req.Env["A"]+req.WorkingDir)
	case "GET files", "PUT files", "DELETE files":
		g.file(w, r, path.Join(append([]string{id}, elements[3:]...)...))
	default:
		if below == "opencode" {
			g.openCode(w, r)
			return
		}
		if below == "ui" && g.ui != nil {
			g.ui(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}
}

func (g *fakeGateway) file(w http.ResponseWriter, r *http.Request, name string) {
	switch r.Method {
	case http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		g.mu.Lock()
		g.files[name] = string(body) + r.URL.Query().Get("mode")
		g.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"success":true}`)
		return
	case http.MethodDelete:
		g.mu.Lock()
		delete(g.files, name)
		g.mu.Unlock()
		return
	}
	g.mu.Lock()
	content, ok := g.files[name]
	g.mu.Unlock()
	switch {
	case ok:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, content)
	case path.Base(name) == "folder":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"entries":[{"name":"a","type":"file","size":1,"mode":"0644","modifiedAt":"2026-01-02T03:04:05.000Z"}]}`)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"no such file","code":"file_not_found"}`)
	}
}

// running puts a sandbox into the store that has been made, and returns its id.
func (w world) running(t testing.TB, userID string) string {
	t.Helper()
	now := w.clock.Now()
	row := task.Sandbox{
		ID: task.NewID(task.PrefixSandbox), UserID: userID, Provider: provider.Docker, Name: "n",
		Status: task.SandboxRunning, StartedAt: &now, CreatedAt: now, UpdatedAt: now,
	}
	row.Slug = row.ID
	must(t, w.store.Sandboxes().Create(t.Context(), row))
	return row.ID
}

// userOfToken returns the id of the user whose token that is.
func (w world) userOfToken(t testing.TB, token string) string {
	t.Helper()
	_, body := w.send(t, "GET", authRoot+"get-session", "", "Authorization", "Bearer "+token)
	var reply struct{ User struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &reply); err != nil || reply.User.ID == "" {
		t.Fatalf("%v in %s", err, body)
	}
	return reply.User.ID
}

// signUpBob makes a second account and returns its token.
func (w world) signUpBob(t testing.TB) string {
	t.Helper()
	resp, body := w.send(t, "POST", authRoot+"sign-up/email", `{"name":"Bob","email":"bob@example.com","password":"password1"}`)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("signing up: %d %s", resp.StatusCode, body)
	}
	return resp.Header.Get(tokenHeader)
}

// closeAfter closes a client when the test is over.
func closeAfter(t testing.TB, client sandbox.Backend) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, client.Close(ctx))
	})
}
