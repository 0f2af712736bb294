package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"
)

// What the guide says: sign in with a cookie jar, send a task.
func TestAPersonSignsInAndSendsATask(t *testing.T) {
	t.Parallel()
	a := newAPI(t, sharedGateway.get(t))
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Timeout: callTime}
	post := func(path, body string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		raw, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %v %s", path, res.StatusCode, err, raw)
		}
		return raw
	}
	post("/api/auth/sign-in/email", fmt.Sprintf(`{"email":%q,"password":%q}`, adminEmail, adminPassword))
	raw := post("/api/v2/agents/task", `{"message":"What is 2+2?","provider":"docker"}`)
	var got struct {
		TaskID, SandboxID, SessionID, Response string
		Parts                                  []json.RawMessage
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got.TaskID == "" || got.SandboxID == "" || got.SessionID == "" || got.Response != "echo: What is 2+2?" || len(got.Parts) == 0 {
		t.Errorf("the answer is %s", raw)
	}
	if !bytes.Contains(raw, []byte(`"type":"text"`)) {
		t.Errorf("parts are not OpenCode's: %s", raw)
	}
}

func TestATaskIsKeptAndWorksInASandboxThatThereIs(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	c := newAPI(t, g, "DATABASE_URL="+postgres.URL(t), encryptionKey, "API_SECRET="+apiSecret).admin(t)
	var first struct{ TaskID, SandboxID, SessionID, Response string }
	c.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "write notes.txt: kept", "gitUrl": g.git.URL(), "model": "scripted/echo"}, http.StatusOK, &first)
	var second struct{ TaskID, SandboxID, SessionID, Response string }
	c.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "run cat notes.txt && git log --oneline | wc -l", "sandboxId": first.SandboxID}, http.StatusOK, &second)
	if second.SandboxID != first.SandboxID || second.SessionID == first.SessionID || !strings.Contains(second.Response, "kept") || !strings.Contains(second.Response, "2") {
		t.Errorf("first %+v, then %+v", first, second)
	}
	var list struct {
		Tasks         []task
		Limit, Offset int
	}
	c.must(t, http.MethodGet, "/api/v2/agents/tasks?limit=1&offset=1", nil, http.StatusOK, &list)
	if len(list.Tasks) != 1 || list.Tasks[0].ID != first.TaskID || list.Limit != 1 || list.Offset != 1 {
		t.Errorf("the second page is %+v", list)
	}
	if got := c.final(t, first.TaskID, time.Second); got.Status != "completed" || got.Response != first.Response || got.CompletedAt == nil {
		t.Errorf("the task is %+v", got)
	}
}

// encryptionKey is what an API on a database server must be given.
const encryptionKey = "ENCRYPTION_KEY=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

func TestATaskThatFailsEarlyLeavesNoSandbox(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	c := newAPI(t, g).admin(t)
	var failed struct{ Error, Code, TaskID string }
	c.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "hello", "gitUrl": g.git.URL() + "x"}, http.StatusUnprocessableEntity, &failed)
	if failed.Code != "clone_failed" || failed.TaskID == "" {
		t.Errorf("the answer is %+v", failed)
	}
	var list struct{ Count int }
	c.must(t, http.MethodGet, "/api/v2/sandboxes", nil, http.StatusOK, &list)
	if list.Count != 0 {
		t.Errorf("%d sandboxes are left", list.Count)
	}
	if got := c.final(t, failed.TaskID, time.Second); got.Status != "failed" || got.Error == "" || got.SandboxID != "" {
		t.Errorf("the task is %+v", got)
	}
}

func TestAModelThatFailsIsTheTasksError(t *testing.T) {
	t.Parallel()
	c := newAPI(t, sharedGateway.get(t)).admin(t)
	var failed struct{ Error, Code, TaskID, SandboxID string }
	c.must(t, http.MethodPost, "/api/v2/agents/task", object{"message": "fail 401 no such key"}, http.StatusBadGateway, &failed)
	if !strings.Contains(failed.Error, "no such key") || failed.SandboxID == "" {
		t.Errorf("the answer is %+v", failed)
	}
	events := c.stream(t, http.MethodGet, "/api/v2/agents/task/"+failed.TaskID+"/stream", nil, "", nil)
	if last := events[len(events)-1]; last.Type != "error" || !strings.Contains(fmt.Sprint(last.Data["message"]), "no such key") {
		t.Errorf("the stream ends with %+v", last)
	}
}

func TestACancelledTaskStops(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	c := newAPI(t, g).admin(t)
	var id, box string
	events := c.stream(t, http.MethodPost, streamPath, object{"message": "say begun\nstall 100s"}, "", func(e event) bool {
		switch e.Type {
		case "start":
			id, _ = e.Data["taskId"].(string)
		case "chunk":
			c.must(t, http.MethodPost, "/api/v2/agents/task/"+id+"/cancel", nil, http.StatusOK, nil)
		}
		return false
	})
	if last := events[len(events)-1]; last.Type != "error" || last.Data["code"] != "task_cancelled" {
		t.Fatalf("the stream ends with %+v", last)
	}
	c.must(t, http.MethodPost, "/api/v2/agents/task/"+id+"/cancel", nil, http.StatusConflict, nil)
	got := c.final(t, id, time.Second)
	box = got.SandboxID
	gw := g.caller()
	eventually(t, "the agent stops", 30*time.Second, func() bool {
		var info struct{ Busy bool }
		status, err := gw.send(t.Context(), http.MethodGet, "/sandbox/"+box, nil, &info)
		return err == nil && status == http.StatusOK && !info.Busy
	})
}

// A team's time is that of its slowest agent, and a failure is one agent's own.
func TestATeamWorksAtTheSameTime(t *testing.T) {
	t.Parallel()
	c := newAPI(t, sharedGateway.get(t)).admin(t)
	agents := []object{
		{"role": "one", "message": "chunks 2 5s"},
		{"role": "two", "message": "say two"},
		{"role": "three", "message": "chunks 2 5s"},
		{"role": "four", "message": "fail 401 broken model"},
		{"role": "five", "message": "say five"},
	}
	var team struct {
		TeamID string
		Agents []struct{ Role, SandboxID, SessionID, Response, Error string }
	}
	began := time.Now()
	c.must(t, http.MethodPost, "/api/v2/agents/team", object{"agents": agents}, http.StatusOK, &team)
	took := time.Since(began)
	boxes := map[string]bool{}
	for i, agent := range team.Agents {
		boxes[agent.SandboxID] = true
		if agent.Role != agents[i]["role"] {
			t.Errorf("agent %d is %q", i, agent.Role)
		}
		if failed := agent.Role == "four"; failed != (agent.Error != "") || failed == (agent.Response != "") {
			t.Errorf("agent %+v", agent)
		}
	}
	if len(boxes) != 5 || !strings.Contains(team.Agents[3].Error, "broken model") {
		t.Errorf("the team is %+v", team)
	}
	t.Logf("the team took %s", took)
	var again struct{ Agents []json.RawMessage }
	c.must(t, http.MethodGet, "/api/v2/agents/team/"+team.TeamID, nil, http.StatusOK, &again)
	if len(again.Agents) != 5 {
		t.Errorf("the team is %+v", again)
	}
}
