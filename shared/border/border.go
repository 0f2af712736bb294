// Package border is what crosses between a control plane of ours and a sandbox
// that it serves under a path of its own, or on a host of its own: which headers and query parameters go
// in, which come out, where a redirect may lead, and how a reply ends that was
// begun. Gateway and API both stand on such a border and keep the same rules.
package border

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// inward are the request headers that never reach a sandbox: credentials and
// traces of the control plane. Origin and Referer name pages of ours (a Referer
// can hold a token parameter) and OpenCode needs neither, its WebSocket included.
//
//nolint:gochecknoglobals // a constant list
var inward = map[string]bool{
	"Authorization": true, "Cookie": true, "Cookie2": true, "Forwarded": true, "Origin": true, "Referer": true, "Te": true,
	"Trailer": true, "Via": true, "X-Real-Ip": true, "X-Original-Url": true, "X-Rewrite-Url": true,
}

// outward are the response headers that a sandbox may not set for an origin of
// ours: each outlives the response, speaks for the whole origin, or makes a
// browser or a server in front of us act.
//
//nolint:gochecknoglobals // a constant list
var outward = map[string]bool{
	"Accept-Ch": true, "Activate-Storage-Access": true, "Alt-Svc": true, "Authentication-Info": true, "Clear-Site-Data": true,
	"Content-Security-Policy-Report-Only": true, "Critical-Ch": true, "Expect-Ct": true, "Nel": true, "Origin-Trial": true,
	"Public-Key-Pins": true, "Public-Key-Pins-Report-Only": true, "Refresh": true, "Report-To": true, "Reporting-Endpoints": true,
	"Service-Worker-Allowed": true, "Set-Auth-Token": true, "Set-Cookie": true, "Set-Cookie2": true, "Set-Login": true, "Speculation-Rules": true,
	"Strict-Transport-Security": true, "Use-As-Dictionary": true, "Www-Authenticate": true, "X-Accel-Redirect": true,
	sandbox.ErrorHeader:    true, // what a sandbox says is no word of ours
	"X-Lighttpd-Send-File": true, "X-Reproxy-Url": true, "X-Sendfile": true,
}

// ownParameters are the query parameters that carry a credential of ours, or
// OpenCode's own password, which only the gateway knows.
//
//nolint:gochecknoglobals // a constant list
var ownParameters = []string{"token", "ticket", "auth_token"}

// CleanRequest removes from a request's headers what never reaches a sandbox.
func CleanRequest(h http.Header) {
	for name := range h {
		if inward[name] || strings.HasPrefix(name, "X-Forwarded-") {
			delete(h, name)
		}
	}
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") {
		h.Del("Upgrade")
		h.Del("Connection")
	}
}

// FromBrowser says whether a page or a person in a browser makes a request. It goes by
// what only browsers send: where a request comes from and what it is for. Node's own
// fetch sends Sec-Fetch-Mode, so that header tells nothing.
func FromBrowser(r *http.Request) bool {
	return r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Sec-Fetch-Dest") != ""
}

// Password returns the password with which a client of OpenCode's own, such as
// opencode attach, reaches OpenCode: that of Basic, or that in the parameter auth_token,
// which is Base64 of user and password, for what cannot set a header. The user's name
// does not matter. A browser's Basic does not count: it sends that along by itself once
// it knows it.
func Password(r *http.Request) (string, bool) {
	if _, password, ok := r.BasicAuth(); ok {
		if FromBrowser(r) {
			return "", false
		}
		return password, password != ""
	}
	// A plus that was not encoded comes as a space.
	encoded := strings.ReplaceAll(r.URL.Query().Get("auth_token"), " ", "+")
	plain, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", false
	}
	_, password, _ := strings.Cut(string(plain), ":")
	return password, password != ""
}

// Mount is where OpenCode's paths are, before the border and behind it.
type Mount struct {
	// Path is the request's raw path below the mount; it begins with a slash.
	Path string
	// Inside is what the server behind the border has in front of OpenCode's
	// paths, Outside what the caller has, such as "/sandbox/ID/opencode".
	Inside, Outside string
	// Hosts are the names, with ports, by which the server behind the border
	// speaks of itself.
	Hosts []string
	// OwnHost says that the caller has OpenCode on a host where nothing else is, so
	// that its pages may run as what they are.
	OwnHost bool
}

// CleanResponse removes from a response's headers what a sandbox may not say,
// keeps a redirect inside the mount or drops it, and tells browsers that what
// they get is no page of ours: under a path it may run nothing, on a host of its
// own it keeps what it says of itself, and others may neither frame nor hold it.
func CleanResponse(h http.Header, m Mount) {
	for name := range h {
		if outward[name] || strings.HasPrefix(name, "Access-Control-") {
			delete(h, name)
		}
	}
	if location := h.Get("Location"); location != "" {
		h.Del("Location")
		if inside := m.rebase(location); inside != "" {
			h.Set("Location", inside)
		}
	}
	h.Set("X-Content-Type-Options", "nosniff")
	if !m.OwnHost {
		h.Set("Content-Security-Policy", "sandbox")
		return
	}
	OwnHost(h)
}

// OwnHost tells browsers that what is on a sandbox's own host is not for pages of
// any other origin, those of other sandboxes included. It adds to what is said.
func OwnHost(h http.Header) {
	h.Add("Content-Security-Policy", "frame-ancestors 'self'")
	h.Set("X-Frame-Options", "SAMEORIGIN")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// rebase turns a Location from inside into one of the caller's. Only places in
// the same OpenCode survive; any other is dropped ("").
func (m Mount) rebase(location string) string {
	base := &url.URL{Scheme: "http", Host: "opencode.invalid", Path: "/"}
	if at, err := url.Parse(m.Inside + m.Path); err == nil && strings.HasPrefix(at.Path, "/") && at.Host == "" {
		base.Path, base.RawPath = at.Path, at.RawPath
	}
	to, err := url.Parse(location)
	if err != nil {
		return ""
	}
	if to.Host != "" {
		if !slices.Contains(m.Hosts, to.Host) || to.Scheme != "" && to.Scheme != "http" {
			return ""
		}
		to.Scheme, to.Host = base.Scheme, base.Host
	}
	to = base.ResolveReference(to)
	path, below := strings.CutPrefix(to.EscapedPath(), m.Inside)
	if !below || path != "" && path[0] != '/' || to.Host != base.Host || to.Scheme != base.Scheme || to.User != nil || sandbox.CheckPath(path) != nil {
		return ""
	}
	if m.Outside == "" && strings.HasPrefix(path, "//") {
		return "" // a browser would read a host
	}
	out := m.Outside + path
	if to.RawQuery != "" || to.ForceQuery {
		out += "?" + to.RawQuery
	}
	if to.Fragment != "" {
		out += "#" + to.EscapedFragment()
	}
	return out
}

// RawPath is the path as it stood in the request line.
func RawPath(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		return path
	}
	return r.URL.EscapedPath()
}

// CheckPath refuses a raw path that could mean another to OpenCode, or that is
// not one.
func CheckPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return sandbox.Errorf(sandbox.CodeInvalidPath, "the path must begin with a slash")
	}
	if strings.ContainsAny(path, " ?#") {
		return sandbox.Errorf(sandbox.CodeInvalidPath, "the path has a character that must be percent-encoded")
	}
	return sandbox.CheckPath(path)
}

// CleanQuery removes the parameters of ours and leaves every other byte alone,
// however unparsable it is.
func CleanQuery(raw string) string {
	if raw == "" {
		return raw
	}
	kept := make([]string, 0, strings.Count(raw, "&")+1)
	for pair := range strings.SplitSeq(raw, "&") {
		if !ownParameter(pair) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

func ownParameter(pair string) bool {
	name, _, _ := strings.Cut(pair, "=")
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	return slices.Contains(ownParameters, name)
}
