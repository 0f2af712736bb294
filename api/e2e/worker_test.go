package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

const workerToken = "the-token-of-the-worker"

// workerSettings are those of an API that has a worker.
func workerSettings(w *clienttest.Worker) []string {
	return []string{
		"ENABLE_CLOUDFLARE_SANDBOXES=true", "CLOUDFLARE_WORKER_URL=" + w.URL, "CLOUDFLARE_API_TOKEN=" + workerToken,
	}
}

// newWorkerAPI starts an API that has a worker and nothing else.
func newWorkerAPI(t *testing.T, w *clienttest.Worker, more ...string) *api {
	t.Helper()
	return newAPI(t, nil, append(append(workerSettings(w), "DEFAULT_SANDBOX_PROVIDER=cloudflare"), more...)...)
}

// asked counts the requests of a method whose path ends in below.
func asked(w *clienttest.Worker, method, below string) int {
	n := 0
	for _, r := range w.Requests() {
		if r.Method == method && strings.HasSuffix(r.Path, below) {
			n++
		}
	}
	return n
}

// box is a sandbox as the API shows it.
type box struct {
	ID, UserID, Name, Provider, Status, ErrorMessage string
	StartedAt, WorkspaceSyncedAt, LastAccessedAt     *time.Time
}

// box returns a sandbox.
func (c *caller) box(t testing.TB, id string) box {
	t.Helper()
	var got struct{ Sandbox box }
	c.must(t, http.MethodGet, boxPath+id, nil, http.StatusOK, &got)
	return got.Sandbox
}

const (
	boxesPath = "/api/v2/sandboxes"
	boxPath   = boxesPath + "/"
	taskPath  = "/api/v2/agents/task"
	teamPath  = "/api/v2/agents/team"
)

// newBox makes a sandbox and waits until it runs.
func (c *caller) newBox(t testing.TB, body object) string {
	t.Helper()
	var made struct{ Sandbox box }
	c.must(t, http.MethodPost, boxesPath, body, http.StatusCreated, &made)
	if made.Sandbox.Status != "starting" {
		t.Errorf("a new sandbox is %s", made.Sandbox.Status)
	}
	eventually(t, "the sandbox runs", time.Minute, func() bool { return c.box(t, made.Sandbox.ID).Status == "running" })
	return made.Sandbox.ID
}

func TestAWorkerRunsATask(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorkerAPI(t, w).admin(t)
	var raw string
	if status, err := c.send(t.Context(), http.MethodPost, taskPath, object{"message": "What is 2+2?"}, &raw); err != nil || status != http.StatusOK {
		t.Fatalf("%d %v: %s", status, err, raw)
	}
	var fields map[string]json.RawMessage
	var got struct {
		TaskID, SandboxID, SessionID, Response string
		Parts                                  []struct{ Type, Text string }
	}
	if err := json.Unmarshal([]byte(raw), &fields); err != nil || len(fields) != 5 {
		t.Errorf("the answer has other fields: %s", raw)
	}
	if err := json.Unmarshal([]byte(raw), &got); err != nil {
		t.Fatal(err)
	}
	if got.Response != "echo: What is 2+2?" || !strings.HasPrefix(got.SandboxID, "task-") || !strings.HasPrefix(got.SessionID, "ses_") || len(got.Parts) == 0 {
		t.Errorf("the answer is %s", raw)
	}
	if kept := c.final(t, got.TaskID, time.Second); kept.Status != "completed" || kept.Provider != "cloudflare" || kept.Response != got.Response {
		t.Errorf("the task is %+v", kept)
	}
	for _, r := range w.Requests() {
		if want := "Bearer " + workerToken; r.Header.Get("Authorization") != want {
			t.Errorf("%s %s came with %q", r.Method, r.Path, r.Header.Get("Authorization"))
		}
	}
	var second struct{ SandboxID, Response string }
	c.must(t, http.MethodPost, taskPath, object{"message": "again", "sandboxId": got.SandboxID}, http.StatusOK, &second)
	if second.SandboxID != got.SandboxID || second.Response != "echo: again" {
		t.Errorf("the second answer is %+v", second)
	}
	if n := asked(w, http.MethodPost, "/sandbox"); n != 1 {
		t.Errorf("the sandbox was made %d times", n)
	}
}

func TestAWorkersStreamHasOneChunkAndIsTakenUp(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorkerAPI(t, w).admin(t)
	events := c.stream(t, http.MethodPost, streamPath, object{"message": "hello"}, "", nil)
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.Type)
	}
	all := strings.Join(kinds, " ")
	if !strings.HasPrefix(all, "start status") || !strings.HasSuffix(all, "chunk done") || strings.Count(all, "chunk") != 1 || texts(events) != "echo: hello" {
		t.Errorf("the stream was %v", events)
	}
	id, _ := events[0].Data["taskId"].(string)
	for i := range events {
		rest := c.stream(t, http.MethodGet, taskPath+"/"+id+"/stream", nil, events[i].ID, nil)
		if len(rest) != len(events)-1-i {
			t.Errorf("after event %d came %v", i, rest)
		}
	}
}

func TestAWorkerRunsATeam(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorkerAPI(t, w).admin(t)
	var team struct {
		TeamID string
		Agents []struct{ Role, SandboxID, Response, Error string }
	}
	c.must(t, http.MethodPost, teamPath, object{"agents": []object{
		{"role": "one", "message": "first"}, {"role": "two", "message": "second", "model": "no/such"}, {"role": "three", "message": "third"},
	}}, http.StatusOK, &team)
	if len(team.Agents) != 3 {
		t.Fatalf("the team is %+v", team)
	}
	boxes := map[string]bool{}
	for i, want := range []string{"echo: first", "", "echo: third"} {
		agent := team.Agents[i]
		boxes[agent.SandboxID] = true
		if agent.Response != want || (want == "") != (agent.Error != "") || !strings.HasPrefix(agent.SandboxID, "team-") {
			t.Errorf("agent %+v", agent)
		}
	}
	if len(boxes) != 3 {
		t.Errorf("they shared sandboxes: %v", boxes)
	}
	c.must(t, http.MethodGet, teamPath+"/"+team.TeamID, nil, http.StatusOK, nil)
}

func TestAWorkersSandboxIsMadeWokenSyncedAndDeleted(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	c := newWorkerAPI(t, w).admin(t)
	id := c.newBox(t, object{"name": "mine", "githubUrl": "https://github.com/owner/repository.git"})
	for _, act := range []string{"wake", "start", "unpause"} {
		before := asked(w, http.MethodPost, "/wake")
		var got struct {
			Sandbox box
			Message string
		}
		c.must(t, http.MethodPost, boxPath+id+"/"+act, nil, http.StatusOK, &got)
		if got.Sandbox.Status != "running" || got.Message == "" || asked(w, http.MethodPost, "/wake") != before+1 {
			t.Errorf("%s: %+v", act, got)
		}
	}
	for _, path := range []string{boxPath + id + "/sync", "/api/v2/agents/sandbox/" + id + "/sync"} {
		var synced struct {
			Success     bool
			SyncedFiles int
		}
		c.must(t, http.MethodPost, path, nil, http.StatusOK, &synced)
		if !synced.Success {
			t.Errorf("%s: %+v", path, synced)
		}
	}
	var status struct{ Status string }
	c.must(t, http.MethodGet, boxPath+id+"/status", nil, http.StatusOK, &status)
	var list struct {
		Sandboxes []box
		Count     int
	}
	c.must(t, http.MethodGet, boxesPath, nil, http.StatusOK, &list)
	if status.Status != "running" || list.Count != 1 || list.Sandboxes[0].ID != id || list.Sandboxes[0].Status != "running" || list.Sandboxes[0].WorkspaceSyncedAt == nil {
		t.Errorf("status %+v, list %+v", status, list)
	}
	if !w.Stored(id) {
		t.Error("the workspace was not stored")
	}
	var session struct{ ID string }
	c.must(t, http.MethodPost, boxPath+id+"/opencode/session", object{"title": "x"}, http.StatusOK, &session)
	for _, no := range [][2]string{
		{http.MethodPost, "/stop"},
		{http.MethodPost, "/pause"},
		{http.MethodPost, "/restart"},
		{http.MethodGet, "/logs"},
		{http.MethodGet, "/stats"},
		{http.MethodGet, "/ui"},
		{http.MethodPost, "/exec"},
		{http.MethodGet, "/files/workspace/a.txt"},
		{http.MethodGet, "/files/"},
		{http.MethodPut, "/files/workspace/a.txt"},
		{http.MethodDelete, "/files/workspace/a.txt"},
		{http.MethodDelete, "/opencode/session/" + session.ID},
		{http.MethodDelete, "/opencode"},
	} {
		var refused struct{ Error, Code string }
		c.must(t, no[0], boxPath+id+no[1], object{"command": []string{"ls"}}, http.StatusNotImplemented, &refused)
		if refused.Code != "unsupported" || !strings.Contains(refused.Error, " cannot ") {
			t.Errorf("%s %s: %+v", no[0], no[1], refused)
		}
	}
	if !w.Stored(id) || asked(w, http.MethodDelete, "") != 0 {
		t.Error("a DELETE reached the worker, and the workspace is gone")
	}
	c.must(t, http.MethodDelete, boxPath+id, nil, http.StatusOK, nil)
	c.must(t, http.MethodGet, boxPath+id, nil, http.StatusNotFound, nil)
	if w.Stored(id) || asked(w, http.MethodDelete, "/sandbox/"+id) != 1 {
		t.Error("the worker was not told, or not once")
	}
}

// Whatever a worker does, a task ends with a reason that has nothing of its pages.
func TestAWorkersFailureIsTheTasksError(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	// What a session has after a message that was not answered.
	w.Break(http.MethodGet, "/message", 0, answer(`[{"info":{"id":"msg_1","role":"user"},"parts":[]}]`))
	w.Break(http.MethodGet, "/session/status", 0, answer(`{}`))
	a := newWorkerAPI(t, w)
	c := a.admin(t)
	const session = "/opencode/session"
	for name, test := range map[string]struct {
		below  string
		answer http.HandlerFunc
		kept   bool // there is a sandbox afterwards
	}{
		"a page of an error to a create":   {"/sandbox", clienttest.HTMLError, false},
		"a bare error to a create":         {"/sandbox", clienttest.BareError, false},
		"a route that is none":             {"/sandbox", clienttest.PlainNotFound, false},
		"a page instead of an answer":      {"/sandbox", clienttest.Page, false},
		"a create that is sent elsewhere":  {"/sandbox", clienttest.Redirect("http://127.0.0.1:1/"), false},
		"a token that it does not know":    {"/sandbox", clienttest.Status(http.StatusUnauthorized, ""), false},
		"a page of an error to a session":  {session, clienttest.HTMLError, false},
		"a plain 404 to a session":         {session, clienttest.PlainNotFound, false},
		"a page of an error to a message":  {"/message", clienttest.HTMLError, true},
		"a bare error to a message":        {"/message", clienttest.BareError, true},
		"a plain 404 to a message":         {"/message", clienttest.PlainNotFound, true},
		"a token that it forgot":           {"/message", clienttest.Status(http.StatusUnauthorized, ""), true},
		"an answer without parts":          {"/message", clienttest.NoParts, true},
		"an answer that breaks off":        {"/message", clienttest.CutOff, true},
		"an answer without an end":         {"/message", clienttest.HugeBody, true},
		"an answer that repeats the token": {"/message", clienttest.EchoToken, true},
	} {
		t.Run(name, func(t *testing.T) {
			w.Break(http.MethodPost, test.below, 1, test.answer)
			deleted := asked(w, http.MethodDelete, "")
			var raw string
			if status, err := c.send(t.Context(), http.MethodPost, taskPath, object{"message": "hello"}, &raw); err != nil || status != http.StatusBadGateway {
				t.Errorf("status %d, %v: %s", status, err, raw)
			}
			var failed struct{ Error, Code, TaskID, SandboxID string }
			if err := json.Unmarshal([]byte(raw), &failed); err != nil {
				t.Fatalf("%v in %s", err, raw)
			}
			got := c.final(t, failed.TaskID, time.Second)
			if got.Status != "failed" || got.Error == "" || got.Error != failed.Error || strings.ContainsAny(got.Error, "<>") || got.CompletedAt == nil {
				t.Errorf("the task is %+v, the answer %s", got, raw)
			}
			if kept := asked(w, http.MethodDelete, "") == deleted; kept != test.kept || kept != (failed.SandboxID != "") {
				t.Errorf("the sandbox was kept: %t, the answer is %s", kept, raw)
			}
			if strings.Contains(raw+a.Log(), workerToken) {
				t.Error("the token is in the answer or the log")
			}
		})
	}
	var list struct{ Sandboxes []box }
	c.must(t, http.MethodGet, boxesPath, nil, http.StatusOK, &list)
	for _, b := range list.Sandboxes {
		if b.Status != "running" {
			t.Errorf("left is %+v", b)
		}
	}
}

func TestAWorkerThatHangsEndsNoTaskLate(t *testing.T) {
	t.Parallel()
	for name, below := range map[string]string{"in a create": "/sandbox", "in a session": "/opencode/session", "in a message": "/message"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := clienttest.StartWorker(t)
			w.Break(http.MethodPost, below, 0, clienttest.Hang)
			c := newWorkerAPI(t, w, "TASK_TIMEOUT=1s", "TASK_RAISE_TIMEOUT=1s").admin(t)
			began := time.Now()
			var failed struct{ Error, Code, TaskID string }
			c.must(t, http.MethodPost, taskPath, object{"message": "hello"}, http.StatusGatewayTimeout, &failed)
			if got := c.final(t, failed.TaskID, time.Second); got.Status != "failed" || !strings.Contains(got.Error, "within 2s") || failed.Code != "turn_deadline" {
				t.Errorf("the task is %+v, the answer %+v", got, failed)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
	t.Run("in everything", func(t *testing.T) {
		t.Parallel()
		w := clienttest.StartWorker(t)
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			w.Break(method, "", 0, clienttest.Hang)
		}
		c := newWorkerAPI(t, w, "TASK_TIMEOUT=1s", "TASK_RAISE_TIMEOUT=1s").admin(t)
		began := time.Now()
		var refused struct{ Error, Code string }
		for _, path := range []string{taskPath, streamPath} {
			c.must(t, http.MethodPost, path, object{"message": "hello"}, http.StatusServiceUnavailable, &refused)
			if refused.Code != "backend_unavailable" {
				t.Errorf("%s: %+v", path, refused)
			}
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %s", took)
		}
	})
	t.Run("while a sandbox is made that is deleted then", func(t *testing.T) {
		t.Parallel()
		w := clienttest.StartWorker(t)
		w.Break(http.MethodPost, "/sandbox", 0, clienttest.Hang)
		c := newWorkerAPI(t, w).admin(t)
		var made struct{ Sandbox box }
		c.must(t, http.MethodPost, boxesPath, object{"name": "mine"}, http.StatusCreated, &made)
		eventually(t, "the worker is asked", finalWithin, func() bool { return asked(w, http.MethodPost, "/sandbox") == 1 })
		c.must(t, http.MethodDelete, boxPath+made.Sandbox.ID, nil, http.StatusOK, nil)
		c.must(t, http.MethodGet, boxPath+made.Sandbox.ID, nil, http.StatusNotFound, nil)
	})
}

// answer answers with JSON.
func answer(body string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write([]byte(body))
	}
}

func TestAWorkerThatGoesAwayInTheMiddleOfATask(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		below    string
		messages string // that the session has when it is back
		asked    int    // how often it was asked for the answer
		want     string
	}{
		"before there is a session":       {"/opencode/session", "", 1, "echo: hello"},
		"before the message came":         {"/message", `[]`, 2, "echo: hello"},
		"after the message was answered":  {"/message", `[{"info":{"id":"msg_1","role":"user"},"parts":[]},{"info":{"id":"msg_2","role":"assistant","finish":"stop"},"parts":[{"id":"prt_1","type":"text","text":"answered"}]}]`, 1, "answered"},
		"while its workspace is a backup": {"/sandbox", "", 1, "echo: hello"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := clienttest.StartWorker(t)
			w.Break(http.MethodPost, test.below, 1, clienttest.Drop)
			w.Break(http.MethodGet, "/message", 0, answer(test.messages))
			w.Break(http.MethodGet, "/session/status", 0, answer(`{}`))
			c := newWorkerAPI(t, w).admin(t)
			var got struct{ Response string }
			c.must(t, http.MethodPost, taskPath, object{"message": "hello"}, http.StatusOK, &got)
			if got.Response != test.want || asked(w, http.MethodPost, "/message") != test.asked {
				t.Errorf("the answer is %+v, and it was asked %d times", got, asked(w, http.MethodPost, "/message"))
			}
		})
	}
}

func TestAKilledAPIKnowsTheWorkersSandboxesAgain(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	a := newWorkerAPI(t, w)
	c := a.admin(t)
	id := c.newBox(t, object{"name": "mine", "githubUrl": "https://github.com/owner/repository.git"})
	c.must(t, http.MethodPost, boxPath+id+"/sync", nil, http.StatusOK, nil)
	before := c.box(t, id)
	if err := a.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	if after := c.box(t, id); after.Status != "running" || !after.StartedAt.Equal(*before.StartedAt) || !after.WorkspaceSyncedAt.Equal(*before.WorkspaceSyncedAt) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	var got struct{ Response string }
	c.must(t, http.MethodPost, taskPath, object{"message": "hello", "sandboxId": id}, http.StatusOK, &got)
	if got.Response != "echo: hello" || asked(w, http.MethodPost, "/sandbox") != 1 || asked(w, http.MethodPost, "/wake") != 1 {
		t.Errorf("the answer is %+v; the sandbox was made %d times", got, asked(w, http.MethodPost, "/sandbox"))
	}
}

// A worker cannot clone twice, and its stream tells nothing, so what a task was
// doing when its API was killed is found out or told.
func TestAWorkersTaskOfAKilledAPIEnds(t *testing.T) {
	t.Parallel()
	for name, below := range map[string]string{"while its repository is cloned": "/sandbox", "while its agent works": "/message"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := clienttest.StartWorker(t)
			w.Break(http.MethodPost, below, 1, clienttest.Hang)
			w.Break(http.MethodGet, "/message", 0, answer(`[{"info":{"id":"msg_1","role":"user"},"parts":[]}]`))
			w.Break(http.MethodGet, "/session/status", 0, answer(`{}`))
			a := newWorkerAPI(t, w)
			c := a.admin(t)
			var id string
			c.stream(t, http.MethodPost, streamPath, object{"message": "hello", "gitUrl": "https://github.com/owner/repository.git"}, "", func(e event) bool {
				id, _ = e.Data["taskId"].(string)
				return e.Type == "start"
			})
			eventually(t, "the worker is asked", finalWithin, func() bool { return asked(w, http.MethodPost, below) == 1 })
			if err := a.Stop(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := a.up(); err != nil {
				t.Fatal(err)
			}
			if got := c.final(t, id, finalWithin); got.Status != "failed" || got.Error == "" {
				t.Errorf("the task is %+v", got)
			}
			if n := asked(w, http.MethodPost, below); n != 1 {
				t.Errorf("the worker was asked %d times", n)
			}
		})
	}
}

// backends is what the API says of its providers.
type backends map[string]struct {
	Available           bool
	Description, Reason string
	Since               *time.Time
}

func (c *caller) backends(t testing.TB) backends {
	t.Helper()
	var got backends
	c.must(t, http.MethodGet, "/api/v2/agents/providers", nil, http.StatusOK, &got)
	return got
}

func TestAProviderThatIsNotConfiguredIsRefused(t *testing.T) {
	t.Parallel()
	refused := func(c *caller, provider, want string) {
		for path, body := range map[string]object{
			taskPath: {"message": "hello"}, streamPath: {"message": "hello"}, boxesPath: {"name": "mine"},
			teamPath: {"agents": []object{{"role": "one", "message": "hello"}}},
		} {
			body["provider"] = provider
			var got struct{ Error string }
			c.must(t, http.MethodPost, path, body, http.StatusBadRequest, &got)
			if !strings.Contains(got.Error, want) { // a team says which agent it is of
				t.Errorf("%s: %q", path, got.Error)
			}
		}
	}
	c := newAPI(t, sharedGateway.get(t)).admin(t)
	refused(c, "cloudflare", "Cloudflare sandboxes not configured: set ENABLE_CLOUDFLARE_SANDBOXES=true")
	refused(c, "elsewhere", `provider must be "docker" or "cloudflare"`)
	if got := c.backends(t); got["cloudflare"].Available || got["cloudflare"].Since != nil || got["cloudflare"].Description == "" {
		t.Errorf("the providers are %+v", got)
	}
	w := clienttest.StartWorker(t)
	refused(newWorkerAPI(t, w).admin(t), "docker", "Docker sandboxes not configured: set GATEWAY_URL")
	if asked(w, http.MethodPost, "") != 0 {
		t.Error("the worker was asked for something")
	}
}

func TestTheProviderFitsTheUse(t *testing.T) {
	t.Parallel()
	w := clienttest.StartWorker(t)
	g := sharedGateway.get(t)
	began := time.Now()
	c := newAPI(t, g, append(workerSettings(w), "AUTO_SELECT_PROVIDER=true")...).admin(t)
	eventually(t, "both providers answer", finalWithin, func() bool { got := c.backends(t); return got["docker"].Available && got["cloudflare"].Available })
	// where asks for a sandbox, which is not made, and tells where it would be.
	where := func(body object) string {
		body["name"], body["autoStart"] = "mine", false
		var made struct{ Sandbox box }
		c.must(t, http.MethodPost, boxesPath, body, http.StatusCreated, &made)
		return made.Sandbox.Provider
	}
	// run runs a task and tells where it ran.
	run := func(body object) string {
		body["message"] = "hello"
		var got struct{ TaskID string }
		c.must(t, http.MethodPost, taskPath, body, http.StatusOK, &got)
		return c.final(t, got.TaskID, time.Second).Provider
	}
	if got := where(object{}); got != "docker" {
		t.Errorf("development is at %s", got)
	}
	if got := where(object{"provider": "cloudflare"}); got != "cloudflare" {
		t.Errorf("what was asked for is at %s", got)
	}
	if got := run(object{}); got != "cloudflare" {
		t.Errorf("a task is at %s", got)
	}
	var team struct{ Agents []struct{ TaskID string } }
	c.must(t, http.MethodPost, teamPath, object{"agents": []object{{"role": "one", "message": "hello"}}}, http.StatusOK, &team)
	if got := c.final(t, team.Agents[0].TaskID, time.Second).Provider; got != "cloudflare" {
		t.Errorf("a team is at %s", got)
	}
	w.Break(http.MethodGet, "/health", 0, clienttest.BareError)
	eventually(t, "the worker is found to be away", finalWithin, func() bool { return !c.backends(t)["cloudflare"].Available })
	got := c.backends(t)
	if s := got["cloudflare"]; s.Since == nil || s.Since.Before(began.Add(-time.Second)) || s.Since.After(time.Now()) || s.Reason == "" {
		t.Errorf("the providers are %+v", got)
	}
	var refused struct{ Error, Code string }
	c.must(t, http.MethodPost, taskPath, object{"message": "hello", "provider": "cloudflare"}, http.StatusServiceUnavailable, &refused)
	if want := got["cloudflare"].Since.Format(time.RFC3339); !strings.Contains(refused.Error, want) {
		t.Errorf("the answer is %+v, want %s in it", refused, want)
	}
	if got := run(object{}); got != "docker" {
		t.Errorf("without the worker a task is at %s", got)
	}
}
