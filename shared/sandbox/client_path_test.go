package sandbox_test

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

func TestPathsAreNormalisedAsTheStandardSays(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"/a/b": "/a/b", "/": "/", "": "/", "/a/../b": "/b", "/a/..": "/", "/a/b/..": "/a/", "/a/.": "/a/", "/./a": "/a", "/../../a": "/a",
		"/a/%2e%2E/b": "/b", "/a/.%2e/b": "/b", "/a/%2e/b": "/a/b", `/a\..\b`: "/b", "/a/.\t./b": "/b", "/a%2f..%2fb": "/a%2f..%2fb",
		"/a/%252e%252e/b": "/a/%252e%252e/b", "/a/../b?x=/../c": "/b", "/a#/..": "/a", "/a//../b": "/a/b", "/...": "/...",
	} {
		if got := clienttest.NormalizePath(target); got != want {
			t.Errorf("%q: %q, want %q", target, got, want)
		}
	}
}

// captured is a transport that keeps the request target that net/http would
// have written.
type captured struct{ target string }

func (c *captured) RoundTrip(req *http.Request) (*http.Response, error) {
	c.target = req.URL.RequestURI()
	return httptest.NewRecorder().Result(), nil
}

// pieces are what the paths of the property below are made of.
//
//nolint:gochecknoglobals // a constant list
var pieces = []string{
	"..", ".", "%2e", "%2E", "%2e%2e", "%252e", "%25", "25", "2e", "/", "/", "/", "//", `\`, "%5c", "%5C", "%255c", "%2f", "%2F", "%252F", ";", ";x=1", "?", "#", "%3f", "%23",
	"\t", "\n", "\r", "%09", "%0a", "%00", "%7f", " ", "%20", "a", "sandbox", "theirs", "opencode", "session", "é", "%c3%a9", "%", "%zz", "*", "|", "@", ":",
}

// check sends a path through the transport and reports one that comes out
// elsewhere, for somebody who reads it as the WHATWG parser does, after however
// many layers of decoding. It says whether it was sent.
func check(t *testing.T, transport http.RoundTripper, seen *captured, u *url.URL) bool {
	t.Helper()
	const mine = "/sandbox/mine/opencode"
	seen.target = ""
	resp, err := transport.RoundTrip(&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}})
	if err == nil {
		_ = resp.Body.Close()
	}
	if (err == nil) != (seen.target != "") || err != nil && !sandbox.HasCode(err, sandbox.CodeInvalidPath) {
		t.Fatalf("%#v: sent %q, error %v", u, seen.target, err)
	}
	read, _, _ := strings.Cut(seen.target, "?")
	for layer := 0; err == nil && layer < 10; layer++ {
		if got := clienttest.NormalizePath(read); got != mine && !strings.HasPrefix(got, mine+"/") {
			t.Fatalf("%#v was sent as %q and reaches %q after %d decodings", u, seen.target, got, layer)
		}
		next, err := url.PathUnescape(read)
		if err != nil || next == read {
			break
		}
		read = strings.NewReplacer("?", "%3f", "#", "%23").Replace(next) // part of the path, not its end
	}
	return err == nil
}

func newCaptured(t *testing.T) (transport http.RoundTripper, base string, seen *captured) {
	t.Helper()
	seen = &captured{}
	w, err := sandbox.NewWorker(sandbox.ClientSettings{BaseURL: "http://worker.test", Transport: seen}, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport, base, err = w.OpenCode("mine")
	if err != nil {
		t.Fatal(err)
	}
	return transport, base, seen
}

func TestNoPathReachesAnotherSandbox(t *testing.T) {
	t.Parallel()
	transport, base, seen := newCaptured(t)
	random := rand.New(rand.NewPCG(1, 2))
	sent, refused := 0, 0
	for range 10_000 {
		var path strings.Builder
		for range 1 + random.IntN(8) {
			path.WriteString(pieces[random.IntN(len(pieces))])
		}
		var addresses []*url.URL
		if u, err := url.Parse(base + "/" + path.String()); err == nil {
			addresses = append(addresses, u)
		}
		raw := "/sandbox/mine/opencode/" + path.String()
		addresses = append(
			addresses,
			&url.URL{Scheme: "http", Host: "worker.test", Path: raw},
			&url.URL{Scheme: "http", Host: "worker.test", Path: "/sandbox/mine/opencode", RawPath: raw},
			&url.URL{Scheme: "http", Host: "worker.test", Path: path.String()},
		)
		for _, u := range addresses {
			if check(t, transport, seen, u) {
				sent++
			} else {
				refused++
			}
		}
	}
	t.Logf("%d paths were sent and %d refused", sent, refused)
	if sent < 10_000 || refused < 10_000 {
		t.Error("the paths are too alike to show anything")
	}
}

func FuzzNoPathReachesAnotherSandbox(f *testing.F) {
	for _, piece := range pieces {
		f.Add("/session/"+piece, "/session/"+piece+"/x")
	}
	f.Fuzz(func(t *testing.T, path, rawPath string) {
		transport, base, seen := newCaptured(t)
		if u, err := url.Parse(base + path); err == nil {
			check(t, transport, seen, u)
		}
		check(t, transport, seen, &url.URL{Scheme: "http", Host: "worker.test", Path: "/sandbox/mine/opencode" + path, RawPath: rawPath})
	})
}
