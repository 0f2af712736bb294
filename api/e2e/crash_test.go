package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

// finalWithin is how soon every task has ended after what befell it, beyond the
// time that its agent takes.
const finalWithin = time.Minute

// begin launches a task, waits until its stream has an event of a kind, and
// returns the task and what came so far.
func (c *caller) begin(t *testing.T, message, kind string) (id string, seen []event) {
	t.Helper()
	seen = c.stream(t, http.MethodPost, streamPath, object{"message": message}, "", func(e event) bool {
		if e.Type == "start" {
			id, _ = e.Data["taskId"].(string)
		}
		return e.Type == kind
	})
	return id, seen
}

// check holds a task that has ended against what its agent was to say: it was
// asked once, and the log has every text once.
func (c *caller) check(t *testing.T, g *gateway, id, want string) {
	t.Helper()
	got := c.final(t, id, finalWithin)
	if got.Status != "completed" || got.Response != want {
		t.Errorf("the task is %+v, want the response %q", got, want)
		return
	}
	events := c.stream(t, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, "", nil)
	ends := 0
	for i, e := range events {
		if e.ID != fmt.Sprint(i+1) {
			t.Errorf("event %d has the id %s", i+1, e.ID)
		}
		if e.Type == "done" || e.Type == "error" {
			ends++
		}
	}
	if ends != 1 || texts(events) != want {
		t.Errorf("the log has %d ends and the text %q, want %q", ends, texts(events), want)
	}
	var messages []struct{ Info struct{ Role string } }
	gw := g.caller()
	gw.must(t, http.MethodGet, "/sandbox/"+got.SandboxID+"/opencode/session/"+got.SessionID+"/message", nil, http.StatusOK, &messages)
	asked := 0
	for _, m := range messages {
		if m.Info.Role == "user" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("the agent was asked %d times", asked)
	}
}

// words is what the model answers to "chunks N DELAY".
func words(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\nchunk %d", i+1)
	}
	return strings.TrimSpace(b.String())
}

func TestATaskOfAKilledAPIIsBroughtToItsEnd(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]string{
		"while its sandbox is made":   "status",
		"while its agent works":       "chunk",
		"before anything was started": "start",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := sharedGateway.get(t)
			a := newAPI(t, g)
			c := a.admin(t)
			id, _ := c.begin(t, "chunks 12 500ms", kind)
			if err := a.Stop(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := a.up(); err != nil {
				t.Fatal(err)
			}
			c.check(t, g, id, words(12))
		})
	}
}

// The agent's answer is there when the API comes back.
func TestAnAnswerThatCameWhileTheAPIWasDownIsKept(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	c := a.admin(t)
	id, _ := c.begin(t, "chunks 6 500ms", "chunk")
	box := c.running(t, id)
	if err := a.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gw := g.caller()
	eventually(t, "the agent is done", finalWithin, func() bool {
		var info struct{ Busy bool }
		status, err := gw.send(t.Context(), http.MethodGet, "/sandbox/"+box, nil, &info)
		return err == nil && status == http.StatusOK && !info.Busy
	})
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	c.check(t, g, id, words(6))
}

// running returns the sandbox of a task.
func (c *caller) running(t *testing.T, id string) string {
	t.Helper()
	var got task
	c.must(t, http.MethodGet, "/api/v2/agents/task/"+id, nil, http.StatusOK, &got)
	return got.SandboxID
}

func TestATeamOfAKilledAPIIsBroughtToItsEnd(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	c := a.admin(t)
	var list struct{ Tasks []task }
	asked := make(chan error, 1)
	go func() {
		_, err := c.send(t.Context(), http.MethodPost, "/api/v2/agents/team", object{"agents": []object{
			{"role": "one", "message": "chunks 12 500ms"}, {"role": "two", "message": "chunks 8 500ms"},
		}}, nil)
		asked <- err
	}()
	eventually(t, "both agents work", finalWithin, func() bool {
		_, err := c.send(t.Context(), http.MethodGet, "/api/v2/agents/tasks", nil, &list)
		return err == nil && len(list.Tasks) == 2 && list.Tasks[0].SessionID != "" && list.Tasks[1].SessionID != ""
	})
	if err := a.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err == nil {
		t.Error("the team's caller was answered by a killed API")
	}
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	for _, one := range list.Tasks {
		n := 12
		if one.Message == "chunks 8 500ms" {
			n = 8
		}
		c.check(t, g, one.ID, words(n))
	}
}

func TestOfTwoAPIsOneTakesUpWhatTheOtherLeft(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	database := "DATABASE_URL=" + postgres.URL(t)
	first := newAPI(t, g, database, encryptionKey, "API_SECRET="+apiSecret)
	second := newAPI(t, g, database, encryptionKey, "API_SECRET="+apiSecret)
	one := first.admin(t)
	two := &caller{url: second.url(), bearer: one.bearer, userID: one.userID}
	id, seen := one.begin(t, "chunks 12 500ms", "chunk")
	other, _ := one.begin(t, "say hello", "start")
	kept := two.final(t, other, finalWithin)
	if kept.Status != "completed" {
		t.Errorf("the other task is %+v", kept)
	}
	// The stream goes on at the other API, before and after the first one's end.
	rest := make(chan []event, 1)
	go func() {
		rest <- two.stream(t, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, seen[len(seen)-1].ID, nil)
	}()
	if err := first.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	two.check(t, g, id, words(12))
	if got := texts(append(seen, <-rest...)); got != words(12) {
		t.Errorf("a reader saw %q", got)
	}
}

func TestTasksOutliveARestartOfTheDatabase(t *testing.T) {
	t.Parallel()
	server, err := storetest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	g := sharedGateway.get(t)
	a := newAPI(t, g, "DATABASE_URL="+server.URL(t), encryptionKey, "API_SECRET="+apiSecret)
	c := a.admin(t)
	const n = 4
	ids := make([]string, n)
	var launched sync.WaitGroup
	for i := range n {
		launched.Go(func() { ids[i], _ = c.begin(t, "chunks 12 500ms", "chunk") })
	}
	launched.Wait()
	if err := server.Down(); err != nil {
		t.Fatal(err)
	}
	status, err := c.send(t.Context(), http.MethodPost, "/api/v2/agents/task", object{"message": "hello"}, nil)
	if err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("without its database the API answers %d, %v", status, err)
	}
	if err := server.Up(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		c.check(t, g, id, words(12))
	}
}

func TestTasksOutliveARestartOfTheGateway(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{"that is killed": syscall.SIGKILL, "that is stopped": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := ownGateway(t)
			c := newAPI(t, g).admin(t)
			id, _ := c.begin(t, "chunks 12 500ms", "chunk")
			early, _ := c.begin(t, "say hello", "start")
			if err := g.Stop(sig); err != nil {
				t.Fatal(err)
			}
			if err := g.up(); err != nil {
				t.Fatal(err)
			}
			c.check(t, g, id, words(12))
			c.check(t, g, early, "hello")
		})
	}
}

// Who drains lets another have what it cannot bring to its end.
func TestAStoppedAPIGivesUpItsTasks(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g, "DRAIN_TIMEOUT=1s")
	c := a.admin(t)
	id, _ := c.begin(t, "chunks 20 500ms", "chunk")
	if err := a.Stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	c.check(t, g, id, words(20))
}

func TestWhoWaitsForATaskIsToldThatTheAPIStops(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g, "DRAIN_TIMEOUT=500ms")
	user := a.user(t)
	type answer struct {
		status int
		body   struct{ Code, Error string }
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		var got answer
		got.status, got.err = user.send(t.Context(), http.MethodPost, "/api/v2/agents/task", object{"message": "chunks 40 200ms"}, &got.body)
		answered <- got
	}()
	var tasks struct{ Tasks []task }
	eventually(t, "the task is at work", time.Minute, func() bool {
		user.must(t, http.MethodGet, "/api/v2/agents/tasks", nil, http.StatusOK, &tasks)
		return len(tasks.Tasks) == 1 && tasks.Tasks[0].SessionID != ""
	})
	if err := a.Stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.status != http.StatusServiceUnavailable || got.body.Code != "shutting_down" {
		t.Errorf("%+v", got)
	}
	if err := a.up(); err != nil {
		t.Fatal(err)
	}
	user.check(t, g, tasks.Tasks[0].ID, words(40))
}
