package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

// call sends a request of a user and returns the JSON that comes back.
func (w world) call(t testing.TB, token, method, path, body string, status int) map[string]any {
	t.Helper()
	resp, got := w.send(t, method, path, body, "Authorization", "Bearer "+token)
	if resp.StatusCode != status {
		t.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, got, status)
	}
	var out map[string]any
	if err := json.Unmarshal([]byte(got), &out); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, got)
	}
	return out
}

// awaitStatus asks for a sandbox's status until it is starting no more.
func (w world) awaitStatus(t testing.TB, token, id string) any {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		if status := w.call(t, token, "GET", sandboxesRoot+"/"+id+"/status", "", http.StatusOK)["status"]; status != "starting" {
			return status
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the sandbox is still starting")
		}
	}
}

func idOf(t testing.TB, reply map[string]any) string {
	t.Helper()
	box, _ := reply["sandbox"].(map[string]any)
	id, _ := box["id"].(string)
	if id == "" {
		t.Fatalf("no sandbox in %v", reply)
	}
	return id
}

func TestASandboxFromItsCreationToItsEnd(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		_, backends := newGateway(t, http.NotFound)
		w := newWorld(t, s, options{backends: backends})
		token := w.signUp(t)
		userID := w.userOfToken(t, token)
		made := w.call(t, token, "POST", sandboxesRoot, `{"name":"Über Tool","description":"d","githubUrl":"https://github.com/acme/tool","gitBranch":"main","x":1}`, 201)
		id := idOf(t, made)
		root := sandboxesRoot + "/" + id
		box, _ := made["sandbox"].(map[string]any)
		for _, name := range []string{"createdAt", "updatedAt"} {
			if at, _ := box[name].(string); len(at) != len("2026-01-02T03:04:05.000Z") || !strings.HasSuffix(at, "Z") {
				t.Errorf("%s is %v", name, box[name])
			}
			delete(box, name)
		}
		want := map[string]any{
			"repository": nil,
			"sandbox": map[string]any{
				"id": id, "userId": userID, "name": "Über Tool", "slug": "ber-tool", "description": "d", "provider": "docker", "repoName": "tool",
				"githubUrl": "https://github.com/acme/tool", "addonIds": []any{}, "status": "starting", "opencodeUrl": root + "/opencode",
				"urls": map[string]any{"opencode": root + "/opencode"},
			},
		}
		if diff := cmp.Diff(want, made); diff != "" {
			t.Errorf("what was made (-want +got):\n%s", diff)
		}
		if status := w.awaitStatus(t, token, id); status != "running" {
			t.Fatalf("it is %v", status)
		}
		got := w.call(t, token, "GET", root, "", 200)
		box, _ = got["sandbox"].(map[string]any)
		if _, has := got["config"]; !has || box["tier"] != "running" || box["startedAt"] == nil || box["lastAccessedAt"] == nil {
			t.Errorf("%v", got)
		}
		for _, step := range []struct{ method, path, body, want string }{
			{"POST", root + "/pause", "", `"message":"Sandbox paused","sandbox":`},
			{"POST", root + "/unpause", "", `"message":"Sandbox unpaused","sandbox":`},
			{"POST", root + "/stop", "", `"status":"stopped"`},
			{"POST", root + "/start", "", `"message":"Sandbox started"`},
			{"POST", root + "/wake", "{}", `"message":"Sandbox woken"`},
			{"POST", root + "/restart", "", `"status":"running"`},
			{"GET", root + "/logs", "", `{"logs":"tail 100","tail":100}`},
			{"GET", root + "/logs?tail=5000", "", `{"logs":"tail 5000","tail":5000}`},
			{"GET", root + "/stats", "", `{"stats":{"cpuPercent":1.5,"memoryUsage":2,"memoryLimit":0,"memoryPercent":0,"networkRx":0,"networkTx":0,"blockRead":0,"blockWrite":0}}`},
			{"POST", root + "/exec", `{"command":["ls","-l"],"env":{"A":"b"},"workingDir":"/tmp"}`, `{"exitCode":3,"stdout":"ls -lb/tmp","stderr":"e","truncated":false}`},
			{"POST", root + "/sync", "", `{"success":true,"sandboxId":"` + id + `","syncedFiles":2,"skippedFiles":1,"totalSize":7,"timestamp":"2026-01-02T03:04:05.000Z"}`},
			{"POST", "/api/v2/agents/sandbox/" + id + "/sync", "{}", `"syncedFiles":2`},
			{"GET", root, "", `"workspaceSyncedAt":"`},
			{"PUT", root + "/files/a%20dir/f?mode=0600", "content", `{"path":"a dir/f","success":true}`},
			{"GET", root + "/files/a%20dir/f", "", "content600"},
			{"GET", root + "/files/folder", "", `{"entries":[{"name":"a","type":"file","size":1,"mode":"0644","modifiedAt":"2026-01-02T03:04:05.000Z"}]}`},
			{"GET", root + "/files/folder/", "", `{"entries":[`},
			{"GET", root + "/files/folder?type=file", "", `{"entries":[{"name":"a"`},
			{"GET", root + "/files/folder?type=directory", "", `{"entries":[]}`},
			{"DELETE", root + "/files/a%20dir/f", "", `"success":true`},
			{"GET", sandboxesRoot + "?status=running,error&userId=another", "", `{"count":1,"sandboxes":[{"id":"` + id},
			{"GET", sandboxesRoot + "?status=stopped", "", `{"count":0,"sandboxes":[]}`},
			{"DELETE", root, "", `{"message":"Sandbox deleted","success":true}`},
		} {
			resp, body := w.send(t, step.method, step.path, step.body, "Authorization", "Bearer "+token)
			if resp.StatusCode != http.StatusOK || !strings.Contains(body, step.want) {
				t.Errorf("%s %s: %d %s, want %s", step.method, step.path, resp.StatusCode, body, step.want)
			}
		}
		for _, step := range []struct{ method, path string }{{"GET", root}, {"DELETE", root}, {"POST", root + "/start"}} {
			w.call(t, token, step.method, step.path, "", http.StatusNotFound)
		}
	})
}

func TestWhatIsWrongWithARequestForASandboxIsSaid(t *testing.T) {
	t.Parallel()
	_, backends := newGateway(t, http.NotFound)
	w := newWorld(t, sqlite(t), options{backends: backends})
	token := w.signUp(t)
	bob := w.signUpBob(t)
	root := sandboxesRoot + "/" + w.running(t, w.userOfToken(t, token))
	bobs := fmt.Sprintf(`{"name":"n","userId":%q}`, w.userOfToken(t, bob))
	adas := fmt.Sprintf(`{"name":"n","userId":%q}`, w.userOfToken(t, token))
	for _, c := range []struct {
		token, method, path, body string
		status                    int
		code                      string
	}{
		{token, "POST", sandboxesRoot, `{}`, 400, "invalid_request"},
		{token, "POST", sandboxesRoot, `{"name":1}`, 400, "invalid_request"},
		{token, "POST", sandboxesRoot, `{"name":"n","provider":"cloudflare"}`, 400, "provider_not_configured"},
		{bob, "POST", sandboxesRoot, adas, 404, "user_not_found"},
		{bob, "POST", sandboxesRoot, bobs, 201, ""},
		{token, "POST", sandboxesRoot, bobs, 201, ""}, // an admin
		{serviceToken, "POST", sandboxesRoot, bobs, 201, ""},
		{serviceToken, "POST", sandboxesRoot, `{"name":"n","userId":"nobody"}`, 404, "user_not_found"},
		{token, "GET", sandboxesRoot + "?status=dancing", "", 400, "invalid_request"},
		{token, "GET", sandboxesRoot + "?limit=101", "", 400, "invalid_request"},
		{token, "GET", root + "/logs?tail=0", "", 400, "invalid_request"},
		{token, "GET", root + "/logs?tail=5001", "", 400, "invalid_request"},
		{token, "POST", root + "/exec", `{"command":[]}`, 400, "invalid_request"},
		{token, "GET", root + "/files/none", "", 404, "file_not_found"},
		{token, "PUT", root + "/files/", "x", 400, "invalid_path"},
		{token, "PUT", root + "/files/a?mode=9", "x", 400, "invalid_request"},
		{token, "DELETE", root + "/files", "", 400, "invalid_path"},
		{token, "GET", root + "/files/%252e%252e/x", "", 400, "invalid_path"},
		{bob, "GET", root, "", 404, "sandbox_not_found"},
		{bob, "DELETE", root, "", 404, "sandbox_not_found"},
		{bob, "POST", root + "/stop", "", 404, "sandbox_not_found"},
		{bob, "POST", root + "/exec", `{"command":["ls"]}`, 404, "sandbox_not_found"},
		{bob, "GET", root + "/files/a", "", 404, "sandbox_not_found"},
		{bob, "PUT", root + "/files/a", "x", 404, "sandbox_not_found"},
		{bob, "POST", strings.Replace(root, "sandboxes", "agents/sandbox", 1) + "/sync", "", 404, "sandbox_not_found"},
		{bob, "GET", sandboxesRoot + "/%27%20OR%201=1", "", 404, "sandbox_not_found"},
	} {
		resp, body := w.send(t, c.method, c.path, c.body, "Authorization", "Bearer "+c.token)
		if resp.StatusCode != c.status || c.code != "" && codeOf(t, body) != c.code {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.method, c.path, c.body, resp.StatusCode, body, c.status, c.code)
		}
	}
}

// A worker cannot be asked what it has cloned, so what the API knows of it must
// outlive the API.
func TestAWorkersSandboxesSurviveARestart(t *testing.T) {
	t.Parallel()
	storetest.EachURL(t, server, func(t *testing.T, databaseURL string) {
		worker := clienttest.StartWorker(t)
		var token, id string
		begin := func(t *testing.T) (world, *sandbox.WorkerClient) {
			s := storetest.Open(t, databaseURL)
			client, err := sandbox.NewWorker(sandbox.ClientSettings{BaseURL: worker.URL}, sandboxes.NewWorkerRecords(s.Sandboxes()))
			must(t, err)
			closeAfter(t, client)
			return newWorld(t, s, options{backends: map[string]sandbox.Backend{provider.Cloudflare: client}}), client
		}
		clones := func() (n int) {
			for _, r := range worker.Requests() {
				if r.Path == "/sandbox" && strings.Contains(r.Body, "gitUrl") {
					n++
				}
			}
			return n
		}
		ok := t.Run("the first API", func(t *testing.T) {
			w, _ := begin(t)
			token = w.signUp(t)
			id = idOf(t, w.call(t, token, "POST", sandboxesRoot, `{"name":"n","provider":"cloudflare","githubUrl":"https://github.com/acme/tool"}`, 201))
			if status := w.awaitStatus(t, token, id); status != "running" || clones() != 1 {
				t.Fatalf("it is %v, %d clones", status, clones())
			}
			w.call(t, token, "POST", sandboxesRoot+"/"+id+"/stop", "", http.StatusNotImplemented)
			w.call(t, token, "POST", sandboxesRoot+"/"+id+"/exec", `{"command":["ls"]}`, http.StatusNotImplemented)
			w.call(t, token, "DELETE", sandboxesRoot+"/"+id+"/opencode/session/x", "", http.StatusNotImplemented)
		})
		if !ok {
			return
		}
		t.Run("the next one", func(t *testing.T) {
			w, client := begin(t)
			userID := w.userOfToken(t, token)
			if status := w.awaitStatus(t, token, id); status != "running" {
				t.Errorf("it is %v", status)
			}
			_, err := client.Create(t.Context(), sandbox.CreateRequest{ID: id, UserID: userID, GitURL: "https://github.com/acme/tool"})
			must(t, err)
			if _, err := client.Create(t.Context(), sandbox.CreateRequest{ID: id, UserID: "another"}); !sandbox.HasCode(err, sandbox.CodeOwnerConflict) {
				t.Errorf("another's create: %v", err)
			}
			if clones() != 1 {
				t.Errorf("it was cloned %d times", clones())
			}
			w.call(t, token, "POST", sandboxesRoot+"/"+id+"/wake", "", http.StatusOK)
			reply, err := client.Message(t.Context(), id, sandbox.MessageRequest{Message: "hello"})
			must(t, err)
			if !strings.Contains(reply.Response, "hello") || !worker.Stored(id) {
				t.Errorf("%+v, stored: %v", reply, worker.Stored(id))
			}
			w.call(t, token, "POST", sandboxesRoot+"/"+id+"/sync", "", http.StatusOK)
			w.call(t, token, "DELETE", sandboxesRoot+"/"+id, "", http.StatusOK)
			if worker.Stored(id) {
				t.Error("its workspace is still stored")
			}
			// A record that is late brings nothing back.
			must(t, sandboxes.NewWorkerRecords(w.store.Sandboxes()).PutRecord(t.Context(), sandbox.Record{SandboxID: id, Status: sandbox.StatusRunning}))
			w.call(t, token, "GET", sandboxesRoot+"/"+id, "", http.StatusNotFound)
		})
	})
}
