package proxy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestPathAndQueryTravelByteForByte(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	f := serve(t, addr, always, proxy.Settings{}, nil)
	for name, tt := range map[string]struct{ in, want string }{
		"an escaped slash":                   {"/a%2Fb/%2f", "/a%2Fb/%2f"},
		"an escaped space and letter":        {"/a%20b%41", "/a%20b%41"},
		"a path parameter":                   {"/a;b/c;d=e", "/a;b/c;d=e"},
		"bytes that Go would escape":         {"/a\"<>^`{|}", "/a\"<>^`{|}"},
		"bytes beyond ASCII":                 {"/\xc3\xa9\xff", "/\xc3\xa9\xff"},
		"an escape Go would not write":       {"/%7Euser/%2A", "/%7Euser/%2A"},
		"two slashes":                        {"//a//b%2F", "//a//b%2F"},
		"nothing at all":                     {"", "/"},
		"a semicolon in the query":           {"/x?x=1;y=2&token=zz&z=%zz", "/x?x=1;y=2&z=%zz"},
		"parameters of ours, escaped":        {"/x?t%6Fken=1&a=%20+&ticket&auth_token=b&a=", "/x?a=%20+&a="},
		"a parameter that only resembles":    {"/x?tokens=1&Token=2", "/x?tokens=1&Token=2"},
		"an empty query":                     {"/x?", "/x?"},
		"only parameters of ours":            {"/x?token=1", "/x"},
		"empty parameters":                   {"/x?&&a&", "/x?&&a&"},
		"a question mark in the query":       {"/x?a=?b", "/x?a=?b"},
		"OpenCode's own directory parameter": {"/session?directory=%2Fhome%2Fuser", "/session?directory=%2Fhome%2Fuser"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, got := send(t, f, "GET "+prefix+tt.in+" HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
			if got != tt.want {
				t.Errorf("OpenCode saw %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPathsThatCouldMeanAnotherAreRefusedUnsent(t *testing.T) {
	asked := 0
	addr := backend(t, func(http.ResponseWriter, *http.Request) { asked++ })
	f := serve(t, addr, always, proxy.Settings{}, nil)
	for _, path := range []string{
		"/../x", "/a/..", "/.", "/%2e%2e/x", "/%2E%2e/x", "/.%2e/x", "/%252e%252e/x", "/%25252e%25252e/x",
		"/..;a/x", "/%2e%2e%3bx", "/a%2f..%2fb", "/a%252f%252e%252e", "/a\\b", "/a%5cb", "/a%255cb",
		"/a%00b", "/a%0d%0ab", "/a%7f", "/a#b",
	} {
		status, _, body := send(t, f, "GET "+prefix+path+" HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(status, "400") || !strings.Contains(body, string(sandbox.CodeInvalidPath)) {
			t.Errorf("%s: %s %s", path, status, body)
		}
	}
	if asked != 0 {
		t.Errorf("%d of them reached OpenCode", asked)
	}
}

func TestNothingOfTheControlPlaneReachesTheSandbox(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.Header.Write(w)
		_, _ = io.WriteString(w, "Host: "+r.Host)
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	_, _, got := send(t, f, "GET "+prefix+"/x HTTP/1.1\r\nHost: gateway.example\r\nConnection: close, X-Hop\r\n"+
		"Authorization: Bearer t0k3n\r\nauthorization: Bearer t0k3n2\r\nCookie: s=t0k3n\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-User: bob\r\n"+
		"Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nVia: x\r\nOrigin: http://gateway.example\r\nReferer: http://gateway.example/?token=t0k3n\r\n"+
		"Proxy-Authorization: Basic t0k3n\r\nTE: trailers\r\nTrailer: Authorization\r\nUpgrade: h2c\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"+
		"Accept: text/plain\r\nX-Opencode-Directory: /home/user\r\n\r\n")
	want := "Accept: text/plain\r\nAuthorization: Basic b3BlbmNvZGU6c2VjcmV0\r\nX-Opencode-Directory: /home/user\r\nHost: 127.0.0.1:4096"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the sandbox saw (-want +got):\n%s", diff)
	}
}

const actingHeaders = "Set-Cookie: a=1\r\nSet-Cookie: b=2; Domain=example\r\nSet-Cookie: __Host-agentpod_session=3\r\nset-cookie: c=4; Path=/; domain =.example\r\n" +
	"Clear-Site-Data: \"*\"\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nService-Worker-Allowed: /\r\n" +
	"Refresh: 0;url=//evil\r\nStrict-Transport-Security: max-age=1\r\nAlt-Svc: h3=\":1\"\r\nWWW-Authenticate: Basic\r\nNEL: {}\r\nReport-To: {}\r\n" +
	"Reporting-Endpoints: a=\"b\"\r\nContent-Security-Policy-Report-Only: default-src\r\nX-Accel-Redirect: /etc\r\nPublic-Key-Pins: x\r\n" +
	"X-Agentpod-Error: sandbox_not_found\r\nx-agentpod-error: sandbox_deleted\r\n" +
	"Content-Security-Policy: default-src *\r\nX-Content-Type-Options: none\r\nKeep-Alive: 5\r\nProxy-Authenticate: Basic\r\n" +
	"X-Accel-Buffering: no\r\nX-Next-Cursor: n\r\nCache-Control: no-cache\r\nContent-Type: text/html\r\nContent-Length: 2\r\n"

func TestNothingThatASandboxSaysActsOnOurOrigin(t *testing.T) {
	addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+actingHeaders+"\r\nok")
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	_, got, body := send(t, f, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\n\r\n")
	want := http.Header{
		"X-Accel-Buffering": {"no"}, "X-Next-Cursor": {"n"}, "Cache-Control": {"no-cache"},
		"Content-Type": {"text/html"}, "Content-Length": {"2"},
		"Content-Security-Policy": {"sandbox"}, "X-Content-Type-Options": {"nosniff"},
	}
	got.Del("Date")
	if diff := cmp.Diff(want, got); diff != "" || body != "ok" {
		t.Errorf("body %q, headers (-want +got):\n%s", body, diff)
	}
}

func TestInterimRepliesAndTrailersCarryNothingPast(t *testing.T) {
	addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nSet-Cookie: a=1\r\nLink: </x>; rel=preload\r\n\r\n"+
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: a=1\r\nClear-Site-Data: \"*\"\r\n\r\n")
	})
	f := serve(t, addr, always, proxy.Settings{}, nil)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET "+prefix+"/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"103", "Set-Cookie", "Link", "Clear-Site-Data", "Trailer"} {
		if strings.Contains(string(all), bad) {
			t.Errorf("the client saw %s:\n%s", bad, all)
		}
	}
	if !strings.Contains(string(all), "\r\nok\r\n0\r\n") {
		t.Errorf("the body is not whole:\n%s", all)
	}
}

func TestRedirectsStayUnderThePrefixAndAreNotFollowed(t *testing.T) {
	for name, tt := range map[string]struct{ location, prefix, want string }{
		"an absolute path":                 {"/y?a=1;b#f", prefix, prefix + "/y?a=1;b#f"},
		"an escaped path":                  {"/y%2Fz", prefix, prefix + "/y%2Fz"},
		"a relative one":                   {"z", prefix, prefix + "/x/z"},
		"only a query":                     {"?q", prefix, prefix + "/x/y?q"},
		"dots that would leave":            {"../../../../admin", prefix, prefix + "/admin"},
		"dots, escaped":                    {"/%2e%2e/admin", prefix, ""},
		"OpenCode's own host":              {"http://127.0.0.1:4096/y", prefix, prefix + "/y"},
		"OpenCode by its other name":       {"http://localhost:4096/y", prefix, prefix + "/y"},
		"another host":                     {"http://evil.example/y", prefix, ""},
		"another host, no scheme":          {"//evil.example/y", prefix, ""},
		"another scheme":                   {"javascript:alert(1)", prefix, ""},
		"a scheme at OpenCode's host":      {"ftp://127.0.0.1:4096/y", prefix, ""},
		"a backslash":                      {"/\\evil.example", prefix, ""},
		"a host behind OpenCode's":         {"http://127.0.0.1:4096//evil.example", "", ""},
		"a path on the sandbox's own host": {"/y", "", "/y"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := raw(t, "127.0.0.1:0", func(c net.Conn) {
				_, _ = io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: "+tt.location+"\r\nContent-Length: 0\r\n\r\n")
			})
			f := serve(t, addr, always, proxy.Settings{}, func(r *proxy.Request) { r.Prefix = tt.prefix })
			status, header, _ := send(t, f, "GET "+prefix+"/x/y HTTP/1.1\r\nHost: g\r\n\r\n")
			if got := header.Get("Location"); !strings.HasPrefix(status, "302") || got != tt.want {
				t.Errorf("%s, Location %q, want %q", status, got, tt.want)
			}
		})
	}
}
