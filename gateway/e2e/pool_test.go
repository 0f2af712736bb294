package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// members lists the containers of the pool, by state such as paused.
func (g *gateway) members(state string) []string {
	out, err := docker("ps", "-aq", "--no-trunc", "--filter", "name="+g.container(".pool-"), "--filter", "status="+state)
	if err != nil {
		return nil
	}
	return strings.Fields(out)
}

// pooled waits until a container is ready ahead.
func (g *gateway) pooled(tb testing.TB) (container string) {
	tb.Helper()
	return g.allPooled(tb, 1)[0]
}

// allPooled waits until so many are.
func (g *gateway) allPooled(tb testing.TB, n int) (containers []string) {
	tb.Helper()
	eventually(tb, "containers are ready ahead", time.Duration(n)*2*time.Minute, func() bool {
		containers = g.members("paused")
		return len(containers) == n
	})
	return containers
}

// identity is the id of a sandbox's container.
func (g *gateway) identity(t *testing.T, id string) string {
	t.Helper()
	out, err := docker("inspect", "-f", "{{.Id}}", g.container(id))
	if err != nil {
		t.Fatal(out)
	}
	return out
}

// said is what a GET in a sandbox says.
func (g *gateway) said(t *testing.T, id, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, raw, err := g.do(ctx, http.MethodGet, "/sandbox/"+id+path, nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s %v", path, status, raw, err)
	}
	return string(raw)
}

func TestASandboxFromThePoolHasNothingOfAWarmUpOrOfAnother(t *testing.T) {
	t.Parallel()
	g := start(t, "POOL_SIZE=1", "MISTRAL_API_KEY=the-default-key")
	first := g.pooled(t)
	if asked := g.model.Requests(); len(asked) > 0 {
		t.Fatalf("the warm-up asked the model %d times", len(asked))
	}
	if ids := g.ids(t.Context()); len(ids) > 0 {
		t.Errorf("what is ready ahead is listed: %v", ids)
	}
	before := time.Now().Add(-time.Second)
	g.create(t, "one", object{"config": object{"agents_md": "of the first one", "auth": object{"groq": object{"type": "api", "key": "of-the-first"}}}})
	if got := g.identity(t, "one"); got != first {
		t.Errorf("the container is %s, ready was %s", got, first)
	}
	g.message(t, "one", "hello", http.StatusOK)
	g.exec(t, "one", "sh", "-c", "echo secret-of-the-first > mine.txt")

	second := g.pooled(t)
	if second == first {
		t.Fatal("a container is ready again")
	}
	asked := len(g.model.Requests())
	g.call(t, http.MethodPost, "/sandbox", object{"id": "two", "userId": "user_2"}, http.StatusOK)
	if got := g.identity(t, "two"); got != second {
		t.Errorf("the container is %s, ready was %s", got, second)
	}
	info := g.call(t, http.MethodGet, "/sandbox/two", nil, http.StatusOK)
	at, _ := info["createdAt"].(string)
	made, err := time.Parse(time.RFC3339, at)
	if err != nil || made.Before(before) || info["userId"] != "user_2" {
		t.Errorf("it is %v, %v", info, err)
	}
	if sessions := g.said(t, "two", "/opencode/session"); sessions != "[]" {
		t.Errorf("it has sessions: %s", sessions)
	}
	if files := g.exec(t, "two", "ls", "-A"); files != "" {
		t.Errorf("it has files: %s", files)
	}
	for _, path := range []string{"/opencode/config", "/opencode/config/providers", "/opencode/provider", "/opencode/api/model", "/opencode/session/status", "/opencode/agent", "/logs"} {
		if said := g.said(t, "two", path); strings.Contains(said, "warm-up") || strings.Contains(said, "of-the-first") || strings.Contains(said, "of the first") {
			t.Errorf("%s tells of what was before", path)
		}
	}
	const own = "cat ~/.local/share/opencode/auth.json; env; cat /run/agentpod/opencode/*; ls -d /run/agentpod/*; echo $HOSTNAME"
	all := g.exec(t, "two", "sh", "-c", own)
	if !strings.Contains(all, "the-default-key") || strings.Contains(all, "first") || strings.Contains(all, "warm-up") || strings.Contains(all, "pool") {
		t.Errorf("credentials and environment are %s", all)
	}
	if left := g.exec(t, "two", "sh", "-c", "grep -raoE '.{0,200}(warm-up|of-the-first|of the first).{0,99}' ~ /tmp /run/agentpod || test $? = 1"); left != "" {
		t.Errorf("files tell of what was before: %s", left)
	}
	if now := len(g.model.Requests()); now != asked {
		t.Errorf("the second create asked the model %d times", now-asked)
	}
	if got := g.message(t, "two", "hello", http.StatusOK)["response"]; got != "echo: hello" {
		t.Errorf("its first answer is %v", got)
	}
	g.delete(t, "one")
	g.delete(t, "two")
}

func TestASandboxFromThePoolTakesARepositoryAndAConfig(t *testing.T) {
	t.Parallel()
	g := start(t, "POOL_SIZE=1")
	ready := g.pooled(t)
	made := g.create(t, "a", object{
		"gitUrl": g.git.URL(),
		"config": object{"files": []object{{"type": "agent", "name": "helper", "extension": "md", "content": "---\ndescription: helps\n---\nHelp."}}},
	})
	if made["filesWritten"] != 1.0 || g.identity(t, "a") != ready {
		t.Errorf("it is %v of %s", made, g.identity(t, "a"))
	}
	// It takes part in the first turn, and OpenCode knows that there is a repository.
	if got := g.message(t, "a", "hello", http.StatusOK)["response"]; got != "echo: hello" {
		t.Errorf("its first answer is %v", got)
	}
	if agents := g.said(t, "a", "/opencode/agent"); !strings.Contains(agents, `"helper"`) {
		t.Errorf("the agents are %s", agents)
	}
	if project := g.said(t, "a", "/opencode/project/current"); !strings.Contains(project, `"git"`) {
		t.Errorf("the project is %s", project)
	}
}

func TestAGatewayThatIsKilledLeavesNoOrphanOfItsPool(t *testing.T) {
	t.Parallel()
	g := start(t, "POOL_SIZE=1")
	for i, after := range []time.Duration{10 * time.Millisecond, 40 * time.Millisecond, 100 * time.Millisecond} {
		ready := g.pooled(t)
		id := string(rune('a' + i))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = g.do(t.Context(), http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"}) // it may be cut off
		}()
		<-time.After(after)
		if err := g.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-done
		if err := g.run(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what was ready is not adopted, and engine and records agree", 2*time.Minute, func() bool {
			ahead, containers, volumes := g.members("paused"), strings.Fields(g.engine("container")), strings.Fields(g.engine("volume"))
			ids := g.ids(t.Context())
			known := slices.ContainsFunc(ids, func(known string) bool { return known == id })
			out, err := docker("inspect", "-f", "{{.Id}}", g.container(id))
			return len(ahead) == 1 && ahead[0] != ready && len(containers) == 1+len(ids) && len(volumes) == 2+len(ids) && known == (err == nil) && (!known || out == ready)
		})
	}
}
