package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// recording is one observation of the real worker, the contract's own fixture.
type recording struct {
	Request struct {
		Method, Path string
		Body         json.RawMessage
	}
	Response struct {
		Status int
		Body   json.RawMessage
	}
}

func recorded(t *testing.T, name string) recording {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "shared", "sandbox", "testdata", "worker", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var r recording
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r recording) body(t *testing.T) object {
	t.Helper()
	var o object
	if err := json.Unmarshal(r.Response.Body, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// replay sends a recorded request to the gateway, its model being ours.
func (g *gateway) replay(t *testing.T, r recording, want int) object {
	t.Helper()
	body := strings.ReplaceAll(string(r.Request.Body), "http://model.test/v1", g.model.URL())
	if body == "null" {
		return g.call(t, r.Request.Method, r.Request.Path, nil, want)
	}
	return g.call(t, r.Request.Method, r.Request.Path, json.RawMessage(body), want)
}

func keys(o object) map[string]bool {
	m := map[string]bool{}
	for k := range o {
		m[k] = true
	}
	return m
}

func TestTheWorkersCallersAreAnsweredAsTheWorkerDoes(t *testing.T) {
	g := shared(t)
	t.Run("a create without config answers the same body", func(t *testing.T) {
		r := recorded(t, "create_ok")
		defer g.delete(t, "sbx-plain")
		if diff := cmp.Diff(r.body(t), g.replay(t, r, r.Response.Status)); diff != "" {
			t.Error(diff)
		}
		got := g.call(t, http.MethodGet, "/sandbox/sbx-plain", nil, http.StatusOK)
		for key, want := range map[string]any{"sandboxId": "sbx-plain", "userId": "user_1", "status": "running", "hasWorkspace": true, "provider": "docker"} {
			if got[key] != want {
				t.Errorf("%s = %v, want %v", key, got[key], want)
			}
		}
	})
	create := recorded(t, "create_full")
	t.Run("a create with everything writes as many files and names what it skipped", func(t *testing.T) {
		got := g.replay(t, create, http.StatusOK)
		warnings, _ := got["warnings"].([]any)
		delete(got, "warnings")
		if diff := cmp.Diff(create.body(t), got); diff != "" {
			t.Error(diff)
		}
		if len(warnings) != 2 {
			t.Errorf("warnings = %v", warnings)
		}
	})
	defer g.delete(t, "sbx-cfg")
	t.Run("the same create again writes nothing", func(t *testing.T) {
		got := g.replay(t, recorded(t, "create_dup"), http.StatusOK)
		if got["filesWritten"] != 0.0 {
			t.Errorf("filesWritten = %v", got["filesWritten"])
		}
	})
	t.Run("another owner of the same id is a conflict", func(t *testing.T) {
		got := g.call(t, http.MethodPost, "/sandbox", object{"id": "sbx-cfg", "userId": "user_2"}, http.StatusConflict)
		if got["code"] != "owner_conflict" {
			t.Errorf("code = %v", got["code"])
		}
	})
	var session string
	t.Run("a first message", func(t *testing.T) {
		r := recorded(t, "message_first")
		got := g.replay(t, r, http.StatusOK)
		if diff := cmp.Diff(keys(r.body(t)), keys(got)); diff != "" {
			t.Error(diff)
		}
		session, _ = got["sessionId"].(string)
		if got["response"] != "echo: hello one" || !strings.HasPrefix(session, "ses_") {
			t.Errorf("got %v", got)
		}
		parts, _ := got["parts"].([]any)
		var types []string
		for _, p := range parts {
			part, _ := p.(object)
			kind, _ := part["type"].(string)
			types = append(types, kind)
		}
		if strings.Join(types, ",") != "step-start,text,step-finish" {
			t.Errorf("parts are %v", types)
		}
	})
	t.Run("a second message in the same session, with model and agent", func(t *testing.T) {
		got := g.call(t, http.MethodPost, "/sandbox/sbx-cfg/message", object{
			"sessionId": session, "message": "third", "agent": "helper",
			"model": object{"providerID": "fake", "modelID": "echo"},
		}, http.StatusOK)
		if got["sessionId"] != session || got["response"] != "echo: third" {
			t.Errorf("got %v", got)
		}
	})
	t.Run("what the worker answers with an empty success is an error here", func(t *testing.T) {
		for name, want := range map[string]struct {
			status int
			code   string
		}{
			"message_unknown_session": {http.StatusNotFound, "session_not_found"},
			"message_bad_model":       {http.StatusUnprocessableEntity, "model_unknown"},
			"message_bad_agent":       {http.StatusUnprocessableEntity, "agent_unknown"},
			"message_no_message":      {http.StatusBadRequest, "invalid_request"},
		} {
			if got := g.replay(t, recorded(t, name), want.status); got["code"] != want.code {
				t.Errorf("%s: %v", name, got)
			}
		}
	})
	t.Run("a wake of a running sandbox", func(t *testing.T) {
		for _, name := range []string{"wake_emptyobj", "wake_null_config"} {
			got := g.replay(t, recorded(t, name), http.StatusOK)
			if got["success"] != true || got["status"] != "running" || got["serverPort"] != 4096.0 ||
				got["restoredFiles"] != 0.0 || got["filesWritten"] != 0.0 {
				t.Errorf("%s: %v", name, got)
			}
		}
		g.call(t, http.MethodPost, "/sandbox/sbx-cfg/wake", nil, http.StatusOK)
	})
	t.Run("deletes, also of what is not there", func(t *testing.T) {
		for _, name := range []string{"delete_known", "delete_again", "delete_unknown"} {
			r := recorded(t, name)
			if diff := cmp.Diff(r.body(t), g.replay(t, r, http.StatusOK)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	})
	t.Run("an unknown sandbox and an unknown route are 404 in JSON", func(t *testing.T) {
		if got := g.replay(t, recorded(t, "get_unknown"), http.StatusNotFound); got["code"] != "sandbox_not_found" {
			t.Errorf("got %v", got)
		}
		if got := g.replay(t, recorded(t, "raw_404"), http.StatusNotFound); got["code"] != "route_not_found" {
			t.Errorf("got %v", got)
		}
	})
	t.Run("what is a 500 of the worker is a 400 here", func(t *testing.T) {
		for _, name := range []string{"raw_create_badjson", "raw_wake_badjson"} {
			r := recorded(t, name)
			var text string
			_ = json.Unmarshal(r.Request.Body, &text)
			if got := g.call(t, r.Request.Method, r.Request.Path, []byte(text), http.StatusBadRequest); got["code"] != "invalid_request" {
				t.Errorf("%s: %v", name, got)
			}
		}
		if got := g.call(t, http.MethodGet, "/sandbox/www/opencode/session", nil, http.StatusBadRequest); got["code"] != "invalid_id" {
			t.Errorf("a reserved id: %v", got)
		}
	})
}

func TestHealthNeedsNoToken(t *testing.T) {
	g := shared(t)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		req, err := http.NewRequestWithContext(t.Context(), method, g.url+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", method, resp.StatusCode)
		}
		if method == http.MethodHead {
			continue
		}
		var body struct{ Status, Timestamp string }
		if err := json.Unmarshal(raw, &body); err != nil || body.Status != "ok" ||
			!regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`).MatchString(body.Timestamp) {
			t.Errorf("body %s", raw)
		}
	}
}

func TestTheProxyCarriesEveryMethodAsTheWorkerDoes(t *testing.T) {
	g := shared(t)
	g.create(t, "proxied", nil)
	defer g.delete(t, "proxied")
	base := "/sandbox/proxied/opencode"

	r := recorded(t, "proxy_session_create")
	created := g.call(t, http.MethodPost, base+"/session", r.Request.Body, r.Response.Status)
	for k := range r.body(t) {
		if _, ok := created[k]; !ok {
			t.Errorf("the session has no %s", k)
		}
	}
	id, _ := created["id"].(string)
	got := g.call(t, http.MethodPost, base+"/session/"+id+"/message", recorded(t, "proxy_message").Request.Body, http.StatusOK)
	parts, _ := json.Marshal(got["parts"])
	if !strings.Contains(string(parts), "echo: proxied") {
		t.Errorf("message: %v", got)
	}
	ctx := t.Context()
	if status, body, err := g.do(ctx, http.MethodPost, base+"/session/"+id+"/abort", nil); err != nil || status != http.StatusOK || string(body) != "true" {
		t.Errorf("abort: %d %s %v", status, body, err)
	}
	if status, _, err := g.do(ctx, http.MethodPost, base+"/session/"+id+"/prompt_async", recorded(t, "proxy_prompt_async").Request.Body); err != nil || status != http.StatusNoContent {
		t.Errorf("prompt_async: %d %v", status, err)
	}
	if status, body, err := g.do(ctx, http.MethodHead, base+"/session", nil); err != nil || status != http.StatusOK || len(body) != 0 {
		t.Errorf("HEAD: %d %s %v", status, body, err)
	}
	if status, _, err := g.do(ctx, http.MethodDelete, base+"/session/"+id, nil); err != nil || status != http.StatusOK {
		t.Errorf("DELETE of a session: %d %v", status, err)
	}
	if status, _, err := g.do(ctx, http.MethodGet, base+"/session/"+id, nil); err != nil || status != http.StatusNotFound {
		t.Errorf("the deleted session: %d %v", status, err)
	}
	g.call(t, http.MethodGet, "/sandbox/proxied", nil, http.StatusOK) // unlike the worker's, the sandbox is still there
	if status, _, err := g.do(ctx, http.MethodPost, base+"/session/ses_doesnotexist000000000000/message", recorded(t, "proxy_message").Request.Body); err != nil || status != http.StatusNotFound {
		t.Errorf("message to an unknown session: %d %v", status, err)
	}
}

func TestAPersonsFirstSession(t *testing.T) {
	g := start(t, "POOL_SIZE=1") // as it is for a person
	g.pooled(t)
	g.create(t, "demo", object{"gitUrl": g.git.URL(), "gitBranch": "feature"})
	defer g.delete(t, "demo")
	got := g.message(t, "demo", "write hello.txt: written by the agent", http.StatusOK)
	if got["response"] != "wrote hello.txt" {
		t.Errorf("response = %v", got["response"])
	}
	file := g.call(t, http.MethodGet, "/sandbox/demo/opencode/file/content?path=hello.txt", nil, http.StatusOK)
	if content, _ := file["content"].(string); strings.TrimSpace(content) != "written by the agent" {
		t.Errorf("file = %v", file)
	}
	out := g.call(t, http.MethodPost, "/sandbox/demo/exec", object{"command": []string{"git", "log", "--oneline"}}, http.StatusOK)
	if log, _ := out["stdout"].(string); strings.Count(log, "\n") < 2 || out["exitCode"] != 0.0 {
		t.Errorf("git log = %v", out)
	}
	branch := g.call(t, http.MethodPost, "/sandbox/demo/exec", object{"command": []string{"git", "branch", "--show-current"}}, http.StatusOK)
	if branch["stdout"] != "feature\n" {
		t.Errorf("branch = %v", branch)
	}
	project := g.call(t, http.MethodGet, "/sandbox/demo/opencode/project/current", nil, http.StatusOK)
	if project["worktree"] != "/home/user/workspace" {
		t.Errorf("OpenCode does not see the repository: %v", project)
	}
	list := g.call(t, http.MethodGet, "/sandboxes?userId=user_1&status=running&limit=100", nil, http.StatusOK)
	if raw, _ := json.Marshal(list); !strings.Contains(string(raw), `"sandboxId":"demo"`) {
		t.Errorf("list = %s", raw)
	}
	stats, _ := g.call(t, http.MethodGet, "/sandbox/demo/stats", nil, http.StatusOK)["stats"].(object)
	if used, _ := stats["memoryUsage"].(float64); used < 50<<20 || stats["memoryLimit"] != float64(2<<30) {
		t.Errorf("stats = %v", stats)
	}
	_, figures, err := g.do(t.Context(), http.MethodGet, "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`http_requests_total{method="POST",route="/sandbox",status="200"} 1`,
		`agentpod_request_stage_duration_seconds_count{route="/sandbox",stage="clone"} 1`,
		`agentpod_request_stage_duration_seconds_count{route="/sandbox",stage="rename"} 1`,
		`agentpod_request_stage_duration_seconds_count{route="/sandbox/:id/message",stage="turn"} 1`,
	} {
		if !strings.Contains(string(figures), "\n"+line+"\n") {
			t.Errorf("the figures have no %s", line)
		}
	}
}

func TestReadyAndTheDocumentOfTheRoutes(t *testing.T) {
	g := shared(t)
	eventually(t, "ready", 10*time.Second, func() bool {
		status, _, err := g.do(t.Context(), http.MethodGet, "/readyz", nil)
		return err == nil && status == http.StatusOK
	})
	status, body, err := g.do(t.Context(), http.MethodGet, "/openapi.yaml", nil)
	if err != nil || status != http.StatusOK || !strings.HasPrefix(string(body), "openapi: 3") {
		t.Errorf("%d %.40s %v", status, body, err)
	}
}
