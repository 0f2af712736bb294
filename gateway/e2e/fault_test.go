package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/docker/dockertest"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// The tests in this file break something between the gateway and the real engine or
// the real store, at a moment that they choose. A stub stands in for OpenCode.

// stub is the stub's image, built once for the tests of this file.
//
//nolint:gochecknoglobals // shared on purpose, removed by TestMain
var stub stubbed

type stubbed struct {
	once sync.Once
	tag  string
}

func (s *stubbed) image(t *testing.T) string {
	t.Helper()
	s.once.Do(func() { s.tag = buildStub(t, "./testdata/stubopencode") })
	if s.tag == "" {
		t.Fatal("the stub's image could not be built")
	}
	return s.tag
}

func (s *stubbed) remove() {
	if s.tag != "" {
		_, _ = docker("rmi", "-f", s.tag)
	}
}

// broken starts a gateway whose engine is behind a proxy that can be broken.
func broken(t *testing.T, env ...string) (*gateway, *dockertest.Proxy) {
	t.Helper()
	engine := dockertest.Start(t, os.Getenv("DOCKER_HOST"))
	env = append([]string{"SANDBOX_IMAGE=" + stub.image(t), "SANDBOX_MEMORY=256MiB", "DOCKER_HOST=" + engine.Host()}, env...)
	return start(t, env...), engine
}

// stays is the idle times of a sandbox that does nothing of its own accord.
func stays() object {
	return object{"idle": object{"freezeAfterMs": 0, "stopAfterMs": 0, "archiveAfterMs": 0}}
}

// write puts a text into a file of the workspace; it is acknowledged when write returns.
func (g *gateway) write(t *testing.T, id, name, text string) time.Time {
	t.Helper()
	g.call(t, http.MethodPut, "/sandbox/"+id+"/files/workspace/"+name, []byte(text), http.StatusOK)
	return time.Now()
}

// reads is what a file of the workspace holds.
func (g *gateway) reads(t *testing.T, id, name string) string {
	t.Helper()
	return g.said(t, id, "/files/workspace/"+name)
}

// storedSince says whether a snapshot began after a moment.
func (g *gateway) storedSince(t *testing.T, id string, since time.Time) bool {
	t.Helper()
	all, _ := g.call(t, http.MethodGet, "/sandbox/"+id+"/snapshots", nil, http.StatusOK)["snapshots"].([]any)
	if len(all) == 0 {
		return false
	}
	newest, _ := all[0].(object)
	at, err := time.Parse(time.RFC3339, fmt.Sprint(newest["createdAt"]))
	return err == nil && at.After(since)
}

// volume is the disk of a sandbox's container.
func (g *gateway) volume(t *testing.T, id string) string {
	t.Helper()
	out, err := docker("inspect", "-f", `{{range .Mounts}}{{if eq .Type "volume"}}{{.Name}}{{end}}{{end}}`, g.container(id))
	if err != nil || out == "" {
		t.Fatalf("the disk of %s: %s %v", id, out, err)
	}
	return out
}

// answers does a request, which must be answered in time, whatever the answer is.
func (g *gateway) answers(t *testing.T, limit time.Duration, method, path string, body any) (int, object) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	status, raw, err := g.do(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s was not answered within %s: %v", method, path, time.Since(began).Round(time.Second), err)
	}
	var got object
	_ = json.Unmarshal(raw, &got)
	return status, got
}

func TestWorkIsStoredInTimeHoweverOftenItIsLookedAt(t *testing.T) {
	t.Parallel()
	g, _ := broken(t, "STORE_WITHIN=5s")
	for name, work := range map[string]func(id string){
		"a file is written": func(id string) { g.write(t, id, "f", "text") },
		"a command goes on": func(id string) {
			go func() {
				_, _, _ = g.do(t.Context(), http.MethodPost, "/sandbox/"+id+"/exec", object{"command": []string{"sh", "-c", "echo text > f; sleep 120"}})
			}()
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := "looked-at-" + name[:1] + fmt.Sprint(len(name))
			g.create(t, id, stays())
			eventually(t, "the new sandbox is stored", 30*time.Second, func() bool { return g.storedSince(t, id, time.Time{}) })
			since := time.Now()
			work(id)
			eventually(t, "the work is stored", 100*time.Second, func() bool {
				g.said(t, id, "/files/workspace")
				return g.storedSince(t, id, since)
			})
		})
	}
}

func TestNothingOfASandboxFromThePoolIsLeftAfterItsDelete(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{
		"the engine fails to remove the disk":              false,
		"the gateway is killed before the disk is removed": true,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, engine := broken(t, "POOL_SIZE=1")
			ready := g.pooled(t)
			g.create(t, "pooled", stays())
			if g.identity(t, "pooled") != ready {
				t.Fatal("the sandbox is not from the pool")
			}
			disk := g.volume(t, "pooled")
			reached, killing := make(chan struct{}), make(chan struct{})
			engine.On(http.MethodDelete, "^/volumes/"+disk+"$", 1, func(x *dockertest.Exchange) {
				close(reached)
				<-killing
				dockertest.Fail(http.StatusInternalServerError, "driver failed")(x)
			})
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, _, _ = g.do(ctx, http.MethodPost, "/sandbox/pooled/hibernate", object{"tier": "archived"})
			}()
			<-reached
			if killed {
				if err := g.stop(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			close(killing)
			<-answered
			if killed {
				if err := g.run(); err != nil {
					t.Fatal(err)
				}
			}
			engine.Clear()
			g.delete(t, "pooled")
			eventually(t, "the disk "+disk+" is gone", 30*time.Second, func() bool {
				_, err := docker("volume", "inspect", disk)
				return err != nil
			})
		})
	}
}

func TestASandboxStartsThoughItsContainerCannotBeStartedAnyMore(t *testing.T) {
	t.Parallel()
	g, engine := broken(t)
	for name, said := range map[string]string{
		"its task is left over":     "task %s already exists: unknown",
		"its endpoint is left over": "endpoint with name agentpod-%s already exists in network agentpod",
	} {
		t.Run(name, func(t *testing.T) {
			id := strings.ReplaceAll(name, " ", "-")
			g.create(t, id, stays())
			g.write(t, id, "f", "mine")
			g.hibernate(t, id, "stopped")
			old := g.identity(t, id)
			engine.On(http.MethodPost, "^/containers/"+old+"/start$", 1000, dockertest.Fail(http.StatusInternalServerError, fmt.Sprintf(said, old)))
			if status, got := g.answers(t, time.Minute, http.MethodPost, "/sandbox/"+id+"/wake", nil); status != http.StatusOK {
				t.Errorf("the wake: %d %v", status, got)
			}
			if text := g.reads(t, id, "f"); text != "mine" {
				t.Errorf("its file holds %q", text)
			}
			g.delete(t, id)
		})
	}
}

func TestARequestIsAnsweredThoughTheReplyToAPauseWasLost(t *testing.T) {
	t.Parallel()
	g, engine := broken(t)
	g.create(t, "paused", stays())
	g.write(t, "paused", "f", "mine")
	engine.On(http.MethodPost, "/pause$", 1, func(x *dockertest.Exchange) {
		x.Forward()
		engine.Down() // nor can the gateway ask
		dockertest.Cut(x)
	})
	g.answers(t, time.Minute, http.MethodPost, "/sandbox/paused/hibernate", object{"tier": "frozen"})
	engine.Up()
	if status, got := g.answers(t, 30*time.Second, http.MethodGet, "/sandbox/paused/files/workspace/f", nil); status != http.StatusOK {
		t.Errorf("the request: %d %v", status, got)
	}
	if text := g.reads(t, "paused", "f"); text != "mine" {
		t.Errorf("the file holds %q", text)
	}
}

func TestAContainerThatIsPausedUnderARequestGoesOn(t *testing.T) {
	t.Parallel()
	g, _ := broken(t)
	g.create(t, "paused", stays())
	done := make(chan string, 1)
	go func() {
		_, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox/paused/exec", object{"command": []string{"sh", "-c", "echo began > began; sleep 2; echo done"}})
		done <- fmt.Sprint(string(raw), err)
	}()
	eventually(t, "the command has begun", 20*time.Second, func() bool {
		status, _, err := g.do(t.Context(), http.MethodGet, "/sandbox/paused/files/workspace/began", nil)
		return err == nil && status == http.StatusOK
	})
	if out, err := docker("pause", g.container("paused")); err != nil {
		t.Fatal(out)
	}
	select {
	case got := <-done:
		if !strings.Contains(got, "done") {
			t.Errorf("the command: %s", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("the command was not answered within 30 s")
	}
}

func TestAFreezeStoresFirstAndSaysWhatItCannotStore(t *testing.T) {
	t.Parallel()
	server := storetest.StartServer(t, storetest.ServerOptions{})
	g, _ := broken(t, bucketOf(server)...)
	g.create(t, "cold", stays())
	since := g.write(t, "cold", "f", "one")
	g.hibernate(t, "cold", "frozen")
	if !g.storedSince(t, "cold", since) {
		t.Error("it was frozen with work that is not stored")
	}

	since = g.write(t, "cold", "f", "two")
	server.Stop(t)
	status, got := g.answers(t, 90*time.Second, http.MethodPost, "/sandbox/cold/hibernate", object{"tier": "frozen"})
	if status != http.StatusServiceUnavailable || got["code"] != "store_unavailable" {
		t.Errorf("a freeze without a store: %d %v", status, got)
	}
	if tier := g.tier(t, "cold"); tier != "running" {
		t.Errorf("it is %s", tier)
	}
	status, got = g.answers(t, 90*time.Second, http.MethodPost, "/sandbox/cold/hibernate", object{"tier": "frozen", "force": true})
	if status != http.StatusOK || got["unstored"] != true || got["tier"] != "frozen" {
		t.Errorf("a forced freeze without a store: %d %v", status, got)
	}
	if info := g.call(t, http.MethodGet, "/sandbox/cold", nil, http.StatusOK); info["unstoredSince"] == nil {
		t.Errorf("nothing says that it has work that is not stored: %v", info)
	}
	server.Start(t)
	eventually(t, "the work of the frozen sandbox is stored", 30*time.Second, func() bool { return g.storedSince(t, "cold", since) })
	eventually(t, "it is frozen again", 10*time.Second, func() bool { return g.tier(t, "cold") == "frozen" })
}

func TestWorkIsStoredSoonAfterAnOutageOfTheStore(t *testing.T) {
	t.Parallel()
	server := storetest.StartServer(t, storetest.ServerOptions{})
	g, _ := broken(t, bucketOf(server)...)
	g.create(t, "outage", stays())
	eventually(t, "the new sandbox is stored", 30*time.Second, func() bool { return g.storedSince(t, "outage", time.Time{}) })
	server.Stop(t)
	since := g.write(t, "outage", "f", "text")
	eventually(t, "storing has failed", time.Minute, func() bool {
		said := g.call(t, http.MethodGet, "/sandbox/outage", nil, http.StatusOK)["lastError"]
		return said != nil && said != ""
	})
	server.Start(t)
	// The first pause after a failure is half a minute, and it doubles.
	eventually(t, "the work is stored", 15*time.Second, func() bool { return g.storedSince(t, "outage", since) })
}

func TestADiskThatIsRemovedWhileItsSandboxWakesIsNotTakenForAnEmptyOne(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ method, path string }{
		"as the engine is asked for it":      {http.MethodGet, "^/volumes/VOLUME$"},
		"as the container is made":           {http.MethodPost, "^/containers/create$"},
		"as the container is being started":  {http.MethodPost, "^/containers/[0-9a-f]+/start$"},
		"as the disks are listed for a wake": {http.MethodGet, "^/volumes$"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, engine := broken(t)
			g.create(t, "woken", stays())
			g.write(t, "woken", "f", "mine")
			g.hibernate(t, "woken", "stopped")
			disk, container := g.volume(t, "woken"), g.container("woken")
			if !strings.Contains(c.path, "start") {
				if out, err := docker("rm", "-f", container); err != nil {
					t.Fatal(out)
				}
			}
			removed := make(chan struct{})
			engine.On(c.method, strings.ReplaceAll(c.path, "VOLUME", disk), 1, dockertest.Before(func(*dockertest.Exchange) {
				defer close(removed)
				_, _ = docker("rm", "-f", container)
				if out, err := docker("volume", "rm", disk); err != nil {
					t.Errorf("removing the disk: %s", out)
				}
			}))
			status, got := g.answers(t, 90*time.Second, http.MethodGet, "/sandbox/woken/files/workspace/f", nil)
			select {
			case <-removed:
			default:
				t.Fatal("the disk was not removed")
			}
			if status == http.StatusNotFound {
				t.Errorf("the sandbox came back empty: %v", got)
			}
			if text := g.reads(t, "woken", "f"); text != "mine" {
				t.Errorf("its file holds %q", text)
			}
		})
	}
}
