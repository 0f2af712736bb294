package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

func TestTheSharedClientSpeaksToTheGateway(t *testing.T) {
	g := shared(t)
	clienttest.Run(t, func(t *testing.T) sandbox.Backend {
		c, err := sandbox.NewGateway(sandbox.ClientSettings{BaseURL: g.url, Token: g.token})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return c
	}, clienttest.Gateway(g.git.URL()))
}

func TestTheSharedClientNamesWhatIsWrongWithItsToken(t *testing.T) {
	g := shared(t)
	c, err := sandbox.NewGateway(sandbox.ClientSettings{BaseURL: g.url, Token: "not-the-token"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if _, err := c.Get(t.Context(), "any"); !sandbox.HasCode(err, sandbox.CodeUnauthorized) {
		t.Errorf("error %v", err)
	}
	if err := c.Health(t.Context()); err != nil {
		t.Errorf("health needs no token: %v", err)
	}
}

func TestATerminalEchoesThroughTheSharedClientsTransport(t *testing.T) {
	g := shared(t)
	g.create(t, "client-terminal", nil)
	defer g.delete(t, "client-terminal")
	c, err := sandbox.NewGateway(sandbox.ClientSettings{BaseURL: g.url, Token: g.token})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	transport, base, err := c.OpenCode("client-terminal")
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
	})
	defer front.Close()
	pty := g.call(t, http.MethodPost, "/sandbox/client-terminal/opencode/pty", object{"command": "/bin/bash", "args": []string{"--norc"}}, http.StatusOK)
	id, _ := pty["id"].(string)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(front.URL, "http")+"/pty/"+id+"/connect", nil)
	if err != nil {
		t.Fatalf("connecting: %v %v", err, resp)
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("echo $((6*7))-echoed\n")); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for !strings.Contains(seen.String(), "42-echoed") {
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		seen.Write(data)
	}
}
