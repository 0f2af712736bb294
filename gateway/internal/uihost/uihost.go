// Package uihost serves OpenCode's web UI: each sandbox on a host of its own, so
// that its pages can run as what they are and are strangers to those of every
// other sandbox. Sandboxes are each other's enemies here, though browsers take
// their hosts for one site.
package uihost

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Settings say where the hosts are.
type Settings struct {
	// Domain is what the hosts are under, in lower case, without a port.
	Domain string
	// Public is how browsers reach the gateway; its scheme and port are the hosts' too.
	Public *url.URL
	// Key authenticates the cookies.
	Key []byte
}

// Sandboxes is what a Host needs of the sandboxes; lifecycle.Manager has it.
type Sandboxes interface {
	Whose(id string) (lifecycle.Handle, error)
	Get(ctx context.Context, id string) (sandbox.Info, error)
	Peek(id string) (h lifecycle.Handle, running bool, err error)
	Use(ctx context.Context, id string, purpose lifecycle.Purpose) (lifecycle.Handle, error)
}

// Carrier takes a request to a sandbox's OpenCode; proxy.Carrier does.
type Carrier interface {
	Carry(w http.ResponseWriter, r *http.Request, v proxy.Visit) error
}

// Deps are what a Host calls.
type Deps struct {
	Sandboxes Sandboxes
	Carrier   Carrier
	Log       *slog.Logger
}

// Host serves the sandboxes' hosts. Safe for concurrent use.
type Host struct {
	Deps
	settings Settings
	port     string // ":8787", or empty for the scheme's own
	tickets  tickets
	sessions sessions
	wakes    wakes
}

// New makes a Host. Close ends what it does in the background.
func New(settings Settings, deps Deps) *Host {
	base, stop := context.WithCancelCause(context.Background())
	h := &Host{Deps: deps, settings: settings, wakes: wakes{base: base, stop: stop}}
	if port := settings.Public.Port(); port != "" && port != defaultPort(settings.Public.Scheme) {
		h.port = ":" + port
	}
	return h
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// Close ends the waits for sandboxes that are being woken, and waits for that, no
// longer than ctx.
func (h *Host) Close(ctx context.Context) error {
	h.wakes.stop(lifecycle.ErrClosing)
	return daemon.Await(ctx, &h.wakes.running, "wakes")
}

// URL is where a sandbox's UI is.
func (h *Host) URL(id string) string { return h.origin(Label(id)) + "/" }

// Source is a CSP source that matches all the hosts and nothing else.
func (h *Host) Source() string { return h.origin("*") }

func (h *Host) origin(label string) string {
	return h.settings.Public.Scheme + "://" + label + "." + h.settings.Domain + h.port
}

// Ticket returns a URL that lets the browser that visits it first into a sandbox's
// UI, and until when it can be visited. What it opens ends with the sandbox, after
// 12 hours, and with End of the session, an opaque text of at most 256 bytes that
// may be empty.
func (h *Host) Ticket(id, sessionText string) (string, time.Time, error) {
	whose, err := h.Sandboxes.Whose(id)
	if err != nil {
		return "", time.Time{}, err //nolint:wrapcheck // it is for the caller
	}
	if len(sessionText) > maxSession {
		return "", time.Time{}, sandbox.Errorf(sandbox.CodeInvalidRequest, "session may have at most %d bytes", maxSession)
	}
	if sessionText != "" && h.sessions.at(sessionKey{id, sessionText}).ctx.Err() != nil {
		return "", time.Time{}, sandbox.Errorf(sandbox.CodeForbidden, "the session was ended; use another")
	}
	now := time.Now().UTC()
	p := pass{SandboxID: id, Incarnation: whose.Incarnation, Session: sessionText, Issued: now, Expires: now.Add(ticketLife)}
	ticket, err := h.tickets.issue(p)
	if err != nil {
		return "", time.Time{}, err
	}
	return h.URL(id) + "?ticket=" + ticket, p.Expires, nil
}

// End ends what was opened in a sandbox by tickets of a session, streams included,
// and the session itself: no ticket is given for it any more.
func (h *Host) End(id, sessionText string) error {
	if err := sandbox.CheckID(id); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	if sessionText == "" || len(sessionText) > maxSession {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "session must be a text of 1 to %d bytes", maxSession)
	}
	h.sessions.at(sessionKey{id, sessionText}).end(errOver)
	return nil
}

// Serves says whether a Host header names the domain or something below it. It
// must not be taken for the gateway's own name then.
func (h *Host) Serves(host string) bool {
	name := host
	if only, _, err := net.SplitHostPort(host); err == nil {
		name = only
	}
	name = strings.ToLower(strings.TrimRight(name, "."))
	return name == h.settings.Domain || strings.HasSuffix(name, "."+h.settings.Domain)
}

// label is the label in a Host header of exactly the form that URL has.
func (h *Host) label(host string) (string, error) {
	label, ok := strings.CutSuffix(strings.ToLower(host), "."+h.settings.Domain+h.port)
	if !ok || !isLabel(label) {
		return "", sandbox.Errorf(sandbox.CodeRouteNotFound, "no sandbox has this address; ask the gateway for it: GET /sandbox/ID/ui")
	}
	return label, nil
}

// The refusals that more than one place has.
var (
	errNoPass = sandbox.Errorf(sandbox.CodeUnauthorized,
		"this browser has not been let in. Open the sandbox from where you are signed in; or ask the gateway for a link with GET /sandbox/ID/ui and its token")
	errTicket = sandbox.Errorf(sandbox.CodeUnauthorized,
		"this link was used already, or is older than a minute. Ask for a new one where you got it")
	errOver = sandbox.Errorf(sandbox.CodeUnauthorized,
		"this visit is over. Open the sandbox again from where you are signed in")
	errElsewhere = sandbox.Errorf(sandbox.CodeForbiddenOrigin, "a page of another site asked for this, which it may not")
)

// strangerTimeout bounds the body of a request that is not let in.
const strangerTimeout = 10 * time.Second

// ServeHTTP serves one request to a host that Serves.
func (h *Host) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	began := time.Now()
	r, _, id := timeline.Receive(req)
	out := &recorder{ResponseWriter: w}
	control := http.NewResponseController(w)
	// A deadline of the request before must not outlive it on the connection, and
	// who is not let in must not hold one either.
	_ = control.SetWriteDeadline(time.Time{})
	_ = control.SetReadDeadline(time.Now().Add(strangerTimeout))
	out.Header().Set(timeline.RequestIDHeader, id)
	defer func() { //nolint:contextcheck // it is the request's; also of a reply that breaks off, which panics on purpose
		h.Log.DebugContext(r.Context(), "request", "method", r.Method, "host", r.Host, "path", r.URL.Path,
			"status", out.status, "duration", time.Since(began))
	}()
	err := h.serve(out, r, func() { _ = control.SetReadDeadline(time.Time{}) })
	if err == nil || errors.Is(err, proxy.ErrClientGone) || out.status != 0 {
		return
	}
	h.fail(out, r, err)
}

// recorder notes the status of a reply.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status; interim replies are none.
func (r *recorder) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write begins a reply that has no status yet.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p) //nolint:wrapcheck // it is the writer itself
}

// Unwrap lets http.ResponseController reach the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// serve lets a request in, or says why not. letIn is called when it did.
func (h *Host) serve(w http.ResponseWriter, r *http.Request, letIn func()) error {
	label, err := h.label(r.Host)
	if err != nil {
		return err
	}
	path := border.RawPath(r)
	if err := sandbox.CheckPath(path); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	if serviceWorker(r) {
		return sandbox.Errorf(sandbox.CodeForbidden, "a sandbox's host has no service workers: one would outlive the sandbox")
	}
	if ticket := r.URL.Query().Get("ticket"); ticket != "" && path == "/" && navigates(r) {
		return h.enter(w, r, label, ticket)
	}
	p, err := h.admit(r, label)
	if err != nil && manifest(r) {
		// Browsers ask for it without the cookie, and would complain about each page.
		ownReply(w.Header(), "application/manifest+json", "default-src 'none'")
		_, _ = w.Write([]byte(`{"name":"OpenCode","start_url":"/"}`)) // to somebody who left
		return nil
	}
	if err != nil {
		return err
	}
	landed := visits(r) && path == startPath(p.directory) && r.URL.RawQuery == "" && time.Since(p.Issued) < landing
	from := whence(r, h.origin(label))
	if from == fromElsewhere && !landed {
		return errElsewhere
	}
	letIn()
	done, cancel := context.WithDeadlineCause(p.life, p.Expires, errOver)
	defer cancel()
	switch {
	case r.Method == http.MethodGet && r.Header.Get(waitingHeader) != "":
		return h.tell(r.Context(), w, p.pass)
	case visits(r):
		shown, err := h.receive(w, r, p.pass, from)
		if shown || err != nil {
			return err
		}
	}
	return h.Carrier.Carry(w, r, proxy.Visit{ //nolint:wrapcheck // it is for the caller
		SandboxID: p.SandboxID, Incarnation: p.Incarnation, Path: path, OwnHost: true, Done: done,
	})
}

// visit is a pass that is good at this moment.
type visit struct {
	pass
	directory string
	life      context.Context //nolint:containedctx // ends with what gave the pass
}

// admit returns what lets a request in.
func (h *Host) admit(r *http.Request, label string) (visit, error) {
	refusal := errNoPass
	for _, p := range passes(h.settings.Key, r, label) {
		life := h.sessions.life(p)
		if life.Err() != nil || !time.Now().Before(p.Expires) {
			refusal = errOver
			continue
		}
		whose, err := h.Sandboxes.Whose(p.SandboxID)
		if err != nil || whose.Incarnation != p.Incarnation {
			refusal = sandbox.Errorf(sandbox.CodeUnauthorized, "the sandbox %q that this browser was let into has been deleted", p.SandboxID)
			continue
		}
		return visit{pass: p, directory: whose.Directory, life: life}, nil
	}
	return visit{}, refusal
}

// startPath is where OpenCode's UI has a folder. Its front page knows none in a
// browser that has not been there.
func startPath(directory string) string {
	return "/" + base64.RawURLEncoding.EncodeToString([]byte(directory)) + "/session"
}

// enter redeems a ticket for a cookie. It wakes nobody.
func (h *Host) enter(w http.ResponseWriter, r *http.Request, label, ticket string) error {
	p, ok := h.tickets.redeem(ticket)
	if !ok || Label(p.SandboxID) != label {
		return errTicket
	}
	whose, err := h.Sandboxes.Whose(p.SandboxID)
	if err != nil || whose.Incarnation != p.Incarnation || h.sessions.life(p).Err() != nil {
		return errTicket
	}
	p.Issued = time.Now().UTC()
	p.Expires = p.Issued.Add(visitLife)
	value, err := sign(h.settings.Key, p)
	if err != nil {
		return err
	}
	header := w.Header()
	if !slices.ContainsFunc(passes(h.settings.Key, r, label), func(old pass) bool { return old.Incarnation == p.Incarnation }) {
		// Whatever is there was an earlier sandbox's of this name. Cookies are left
		// alone: browsers would clear those of all sandboxes.
		header.Set("Clear-Site-Data", `"cache", "storage"`)
	}
	http.SetCookie(w, cookie(value))
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
	border.OwnHost(header)
	header.Set("Location", startPath(whose.Directory))
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// fail answers with an error: a page for who looks at it, JSON for a program.
func (h *Host) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := sandbox.Public(err, "something went wrong in the gateway; its log has the cause under the request id")
	status := e.Code.Status()
	level := slog.LevelDebug
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	h.Log.Log(r.Context(), level, "request refused", "method", r.Method, "host", r.Host,
		"path", r.URL.Path, "status", status, "code", e.Code, "error", err.Error())
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		w.Header().Set("Connection", "close")
	}
	if after := max(e.RetryAfter, 0); after > 0 || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		if after == 0 {
			after = sandbox.DefaultRetryAfter
		}
		w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	if visits(r) || strings.Contains(r.Header.Get("Accept"), "text/html") {
		v := view{Title: titleOf(e.Code), Text: e.Message, Again: status >= http.StatusInternalServerError}
		if e.Code == sandbox.CodeForbiddenOrigin {
			v.Link, v.LinkText = "/", "Open the sandbox"
		}
		h.page(w, status, v)
		return
	}
	ownReply(w.Header(), "application/json", "default-src 'none'")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(sandbox.ErrorResponse{Error: e.Message, Code: e.Code})
}

// Point answers with a page that says where a sandbox's UI is. It lets nobody in.
func (h *Host) Point(w http.ResponseWriter, id string) {
	h.page(w, http.StatusOK, view{
		Title: "OpenCode in the sandbox " + id,
		Text:  "Under this path is OpenCode's API. Its web UI has an address of its own, which opens for a browser that was let in.",
		Link:  h.URL(id), LinkText: h.URL(id),
	})
}

// wakes are the sandboxes that are being woken for somebody who looks at a page.
type wakes struct {
	base    context.Context //nolint:containedctx // the parent of work that outlives a request
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	mu   sync.Mutex
	open map[string]*wake // by incarnation
}

// wake is one try. Done is closed when it has ended, with err set.
type wake struct {
	done  chan struct{}
	err   error
	ended time.Time // guarded by wakes.mu
}
