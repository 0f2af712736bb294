package sandbox

import (
	"net/http"
	"net/url"
	"strings"
)

// openCodeTransport carries requests to one sandbox's OpenCode. It is safe for
// concurrent use.
type openCodeTransport struct {
	caller *caller
	// base is what every request's address begins with.
	scheme, host, prefix string
	// marked says that the backend's own errors have ErrorHeader, and nothing else.
	marked bool
}

func (c *caller) openCode(id string) (*openCodeTransport, string, error) {
	path, err := route(id, "/opencode")
	if err != nil {
		return nil, "", err
	}
	base, err := url.Parse(c.base + path)
	if err != nil {
		return nil, "", Errorf(CodeInternal, "the address of %s cannot be used", c.who).WithCause(err)
	}
	return &openCodeTransport{caller: c, scheme: base.Scheme, host: base.Host, prefix: base.EscapedPath()}, base.String(), nil
}

// RoundTrip implements http.RoundTripper; its errors are *Error.
func (t *openCodeTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.check(req); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	out := req.Clone(req.Context())
	out.Host = "" // the backend's own
	for _, name := range []string{"Authorization", "Proxy-Authorization", "Cookie"} {
		out.Header.Del(name)
	}
	if t.caller.token != "" {
		out.Header.Set("Authorization", "Bearer "+t.caller.token)
	}
	resp, err := t.caller.transport.RoundTrip(out)
	if err != nil {
		return nil, t.caller.failure(req.Context(), "does not answer", err)
	}
	if t.marked && resp.Header.Get(ErrorHeader) != "" {
		defer resp.Body.Close()
		return nil, t.caller.refusal(req.Context(), resp).why
	}
	return resp, nil
}

// check refuses what would leave the sandbox, or could to somebody who reads
// addresses in another way.
func (t *openCodeTransport) check(req *http.Request) error {
	u := req.URL
	if u == nil || u.Scheme != t.scheme || u.Host != t.host || u.Opaque != "" || u.User != nil || req.Method == http.MethodConnect {
		return Errorf(CodeInvalidPath, "the request is not for the sandbox's OpenCode")
	}
	path := u.EscapedPath() // what net/http puts on the wire
	if err := CheckPath(path); err != nil {
		return err
	}
	rest, ok := strings.CutPrefix(path, t.prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return Errorf(CodeInvalidPath, "the request is not for the sandbox's OpenCode")
	}
	for i := range len(u.RawQuery) {
		if c := u.RawQuery[i]; c <= ' ' || c == 0x7f {
			return Errorf(CodeInvalidPath, "the query has a space or a control character")
		}
	}
	return nil
}
