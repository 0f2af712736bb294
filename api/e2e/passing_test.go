package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// engineFront is the container engine with a test before it.
type engineFront struct {
	// dying answers as an engine does that is going down: what makes and starts is
	// a 500 with the words of what was closed under it.
	dying   atomic.Bool
	refused atomic.Int64
}

// frontEngine returns the engine's address behind a test's front.
func frontEngine(t *testing.T) (front *engineFront, host string) {
	t.Helper()
	engine, err := url.Parse(os.Getenv("DOCKER_HOST"))
	if err != nil {
		t.Fatal(err)
	}
	network, address := engine.Scheme, engine.Host+engine.Path
	if address == "" {
		network, address = "unix", "/var/run/docker.sock"
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	front = &engineFront{}
	engineItself := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "engine"}) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && front.dying.Load() {
			front.refused.Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "transport is closing: unavailable"})
			return
		}
		engineItself.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	return front, "tcp://" + server.Listener.Addr().String()
}

func TestATaskOutlivesAnEngineThatIsGoingDown(t *testing.T) {
	t.Parallel()
	front, host := frontEngine(t)
	g := ownGateway(t, "DOCKER_HOST="+host)
	c := newAPI(t, g).admin(t)
	front.dying.Store(true)
	id, _ := c.begin(t, "say hello", "start")
	eventually(t, "the engine has refused something twice", finalWithin, func() bool { return front.refused.Load() > 1 })
	front.dying.Store(false)
	c.check(t, g, id, "hello")
}

func TestATaskOfADeletedSandboxSaysThatItWasDeleted(t *testing.T) {
	t.Parallel()
	g := sharedGateway.get(t)
	a := newAPI(t, g)
	c := a.admin(t)
	for name, stops := range map[string]bool{"while the API waits for the answer": false, "while the API is away": true} {
		id, _ := c.begin(t, "chunks 20 500ms", "chunk")
		box := c.running(t, id)
		if stops {
			if err := a.Stop(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		g.caller().must(t, http.MethodDelete, "/sandbox/"+box, nil, http.StatusOK, nil)
		if stops {
			if err := a.up(); err != nil {
				t.Fatal(err)
			}
		}
		got := c.final(t, id, finalWithin)
		if got.Status != "failed" || !strings.Contains(got.Error, "was deleted") {
			t.Errorf("%s: the task is %+v", name, got)
		}
	}
}

func TestASandboxThatIsMadeWhileTheEngineGoesDownIsMadeAllTheSame(t *testing.T) {
	t.Parallel()
	front, host := frontEngine(t)
	g := ownGateway(t, "DOCKER_HOST="+host)
	c := newAPI(t, g).admin(t)
	front.dying.Store(true)
	var made struct{ Sandbox struct{ ID string } }
	c.must(t, http.MethodPost, "/api/v2/sandboxes", object{"name": "mine"}, http.StatusCreated, &made)
	eventually(t, "the engine has refused something twice", finalWithin, func() bool { return front.refused.Load() > 1 })
	front.dying.Store(false)
	eventually(t, "the sandbox runs", finalWithin, func() bool {
		var got struct{ Sandbox struct{ Status string } }
		c.must(t, http.MethodGet, "/api/v2/sandboxes/"+made.Sandbox.ID, nil, http.StatusOK, &got)
		return got.Sandbox.Status == "running"
	})
}
