package border_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestARedirectIsMovedFromMountToMount(t *testing.T) {
	t.Parallel()
	mount := border.Mount{Path: "/x/y", Inside: "/base/a", Outside: "/out/a", Hosts: []string{"inside:1"}}
	for location, want := range map[string]string{
		"/base/a/z?q#f": "/out/a/z?q#f", "z": "/out/a/x/z", "?q": "/out/a/x/y?q", "http://inside:1/base/a/z": "/out/a/z", "/base/a": "/out/a",
		"/base/ab/z": "", "/z": "", "../../../../z": "", "/base/a/../b": "", "http://inside:1/z": "", "https://inside:1/base/a/z": "",
		"//evil/base/a/z": "", "http://inside:1@evil/base/a": "", "http://u@inside:1/base/a/z": "", "/base/a/%2e%2e/z": "", "javascript:x": "", ":": "",
	} {
		h := http.Header{"Location": {location}}
		border.CleanResponse(h, mount)
		if got := h.Get("Location"); got != want {
			t.Errorf("%q became %q, want %q", location, got, want)
		}
	}
}

// The connection has its next request behind a body that nobody read.
func TestABodyThatIsNotReadLeavesTheConnectionUsable(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := border.NewWriter(r.Context(), w, nil)
		defer out.Release()
		_, leave := out.Upload(r, 1<<20)
		defer leave()
		out.WriteHeader(http.StatusNotImplemented)
	}))
	defer server.Close()
	for range 50 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, strings.NewReader("not read"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

func TestAReplyOnAHostOfItsOwnKeepsItsPolicyAndGetsOurs(t *testing.T) {
	t.Parallel()
	h := http.Header{
		"Content-Security-Policy": {"default-src 'self'"}, "X-Frame-Options": {"ALLOWALL"}, "Set-Cookie": {"__Host-agentpod=x", "a=b; Domain=example.com"},
		"Clear-Site-Data": {"*"}, "Service-Worker-Allowed": {"/"}, "Access-Control-Allow-Origin": {"*"}, "Strict-Transport-Security": {"max-age=1"}, "Alt-Svc": {"h3"},
		sandbox.ErrorHeader: {"sandbox_not_found"},
		"Location":          {"http://inside:1/a"}, "Cache-Control": {"max-age=1"},
	}
	border.CleanResponse(h, border.Mount{Path: "/", Hosts: []string{"inside:1"}, OwnHost: true})
	want := http.Header{
		"Content-Security-Policy": {"default-src 'self'", "frame-ancestors 'self'"}, "X-Frame-Options": {"SAMEORIGIN"}, "X-Content-Type-Options": {"nosniff"},
		"Cross-Origin-Opener-Policy": {"same-origin"}, "Cross-Origin-Resource-Policy": {"same-origin"}, "Location": {"/a"}, "Cache-Control": {"max-age=1"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func TestAReplyIsCutUntilItIsReleased(t *testing.T) {
	t.Parallel()
	for name, released := range map[string]bool{"released": true, "not released": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			written := make(chan error, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				out := border.NewWriter(ctx, w, nil)
				out.WriteHeader(http.StatusOK)
				if !out.Started() {
					t.Error("the reply has not started")
				}
				if released {
					out.Release()
				}
				cancel()
				out.Release() // waits for the cut, if there is one
				_, err := out.Write(make([]byte, 1<<20))
				written <- err
			}))
			defer server.Close()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := server.Client().Do(r)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			if err := <-written; released != (err == nil) {
				t.Errorf("writing: %v", err)
			}
		})
	}
}

func TestAnUpgradedConnectionEndsWithItsLastWords(t *testing.T) {
	t.Parallel()
	parting := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told := 0
		out := border.NewWriter(r.Context(), w, func() { told++ })
		defer out.Release()
		var c net.Conn
		hear := func(want int) {
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil || told != want {
				t.Errorf("told %d times of what came, want %d; %v", told, want, err)
			}
		}
		out.Parting = func() []byte {
			close(parting)
			hear(1) // the client's answer is no sign of somebody at work
			return []byte("farewell")
		}
		var err error
		if c, _, err = out.Hijack(); err != nil {
			t.Error(err)
			return
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Error(err)
		}
		hear(1)
		_ = c.Close()
	}))
	defer server.Close()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "typed"); err != nil {
		t.Fatal(err)
	}
	<-parting
	if _, err := io.WriteString(c, "close"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "farewell" {
		t.Errorf("%q, %v", got, err)
	}
}
