// Package frontpage is the page at the gateway's own address: the sandboxes, live,
// and what can be done with them, for a person in a browser. It is HTML that the
// server renders, with a script that makes it livelier and that it works without.
//
// It shares its origin with nothing of a sandbox's that may run: what comes from
// sandboxes under paths of the gateway is in a sandbox of the browser's, too.
package frontpage

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Owner is the userId of the sandboxes that are created here.
const Owner = "operator"

// Settings of a Page.
type Settings struct {
	// Token signs a visitor in: the gateway's.
	Token string
	// Address is how browsers reach the gateway, such as http://127.0.0.1:8787.
	Address string
	// SandboxHosts is a CSP source that all the sandboxes' hosts match, which a
	// visit is sent on to; empty if there are none.
	SandboxHosts string
	// Streams ends when the gateway drains.
	Streams context.Context //nolint:containedctx // a lifetime that requests share
}

// Sandboxes is what a Page needs of the sandboxes; lifecycle.Manager has it.
type Sandboxes interface {
	List(f lifecycle.Filter) sandbox.ListResponse
	Whose(id string) (lifecycle.Handle, error)
	Create(ctx context.Context, req sandbox.CreateRequest) (sandbox.CreateResponse, error)
	Wake(ctx context.Context, id string, config json.RawMessage, snapshot string) (sandbox.WakeResponse, error)
	Hibernate(ctx context.Context, id string, tier sandbox.Tier, force bool) (sandbox.HibernateResponse, error)
	Sync(ctx context.Context, id string) (lifecycle.Synced, error)
	Delete(ctx context.Context, id string) error
}

// UI opens sandboxes' web UIs; uihost.Host does.
type UI interface {
	Ticket(id, session string) (url string, expires time.Time, err error)
	End(id, session string) error
}

// Deps are what a Page calls. UI is nil for a gateway without.
type Deps struct {
	Sandboxes Sandboxes
	UI        UI
	Log       *slog.Logger
}

// Page serves the front page. Safe for concurrent use.
type Page struct {
	Deps
	settings Settings
	token    [sha256.Size]byte
	guard    *http.CrossOriginProtection
	mux      *http.ServeMux
	sessions sessions
	jobs     jobs
}

// New makes a Page. Close ends what it does in the background.
func New(settings Settings, deps Deps) *Page {
	p := &Page{
		Deps: deps, settings: settings, token: sha256.Sum256([]byte(settings.Token)),
		guard: http.NewCrossOriginProtection(), mux: http.NewServeMux(),
	}
	p.jobs.init(deps.Log)
	p.mux.HandleFunc("GET /{$}", p.home)
	p.mux.HandleFunc("POST /ui/sign-in", p.signIn)
	p.mux.HandleFunc("POST /ui/sign-out", p.signedIn(p.signOut))
	p.mux.HandleFunc("GET /ui/live", p.signedIn(p.live))
	p.mux.HandleFunc("POST /ui/sandboxes", p.signedIn(p.create))
	p.mux.HandleFunc("POST /ui/sandboxes/{id}/{verb}", p.signedIn(p.act))
	for _, asset := range []string{"style.css", "script.js"} {
		p.mux.HandleFunc("GET /ui/"+asset, serveAsset(asset))
	}
	return p
}

// Serves says whether a path is the front page's.
func Serves(path string) bool { return path == "/" || strings.HasPrefix(path, "/ui/") }

// Close signs everybody out, ends what was begun here and waits for that, no longer
// than ctx. What a sandbox is at goes on without it.
func (p *Page) Close(ctx context.Context) error {
	p.sessions.close()
	return p.jobs.close(ctx)
}

// ServeHTTP serves a request for a path that Serves, whose Host header was checked.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "+
		// Chromium holds the redirect that follows a form to this as well.
		"form-action 'self' "+p.settings.SandboxHosts+"; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if err := p.fromHere(r); err != nil {
		p.fail(w, r, err)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// fromHere refuses what a page of another origin asks for, but to be visited.
func (p *Page) fromHere(r *http.Request) error {
	err := p.guard.Check(r)
	if site := r.Header.Get("Sec-Fetch-Site"); err == nil && site != "" && site != "same-origin" && site != "none" &&
		(r.URL.Path != "/" || r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Header.Get("Sec-Fetch-Dest") != "document") {
		err = errors.New("it came from " + site)
	}
	if err != nil {
		return sandbox.Errorf(sandbox.CodeForbiddenOrigin, "a page of another site asked for this, which it may not").WithCause(err)
	}
	return nil
}

// handler serves a request of somebody who is signed in.
type handler func(w http.ResponseWriter, r *http.Request, s *session) error

// signedIn lets only those in who are.
func (p *Page) signedIn(serve handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := p.sessions.of(r)
		if s == nil {
			p.fail(w, r, sandbox.Errorf(sandbox.CodeUnauthorized, "you are not signed in; load the page again and sign in"))
			return
		}
		// What is left of the time in which a stranger has to send a request.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(formTimeout))
		if err := serve(w, r, s); err != nil {
			p.fail(w, r, err)
		}
	}
}

const (
	// maxForm bounds a form, in bytes, and formTimeout the time in which it comes.
	maxForm     = 64 << 10
	formTimeout = 30 * time.Second
)

// form reads a small form.
func form(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the form cannot be read").WithCause(err)
	}
	return r.PostForm, nil
}

func (p *Page) home(w http.ResponseWriter, r *http.Request) {
	s := p.sessions.of(r)
	if s == nil {
		v := signInView{}
		if r.URL.Query().Has(greeting) {
			v.Problem = "Your browser did not keep the sign-in. It does so only over https, or on the machine itself (http://127.0.0.1 or http://localhost), and Safari only over https."
		}
		p.render(w, http.StatusOK, "sign-in", v)
		return
	}
	p.render(w, http.StatusOK, "home", p.view(r.URL.Query().Get("after"), createForm{}))
}

// greeting is the parameter of the first page after a sign-in.
const greeting = "signed-in"

// signIn takes the token.
func (p *Page) signIn(w http.ResponseWriter, r *http.Request) {
	values, err := form(w, r)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(values.Get("token"))))
	if subtle.ConstantTimeCompare(sum[:], p.token[:]) != 1 {
		p.Log.InfoContext(r.Context(), "a sign-in to the front page was refused", "from", r.RemoteAddr)
		p.render(w, http.StatusUnauthorized, "sign-in", signInView{Problem: "That is not this gateway's token."})
		return
	}
	// Who is signed in already, in another tab, stays so: a second session would hide
	// the first from the sign-out, with what it has opened.
	if p.sessions.of(r) == nil {
		http.SetCookie(w, p.sessions.begin())
	}
	http.Redirect(w, r, "/?"+greeting, http.StatusSeeOther)
}

// signOut ends the session, and what it has opened.
func (p *Page) signOut(w http.ResponseWriter, r *http.Request, s *session) error {
	for _, id := range p.sessions.end(s) {
		if err := p.UI.End(id, s.name); err != nil {
			p.Log.WarnContext(r.Context(), "a visit could not be ended at sign-out", "sandboxId", id, "error", err)
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// fail answers with an error: a page, or a sentence for the script.
func (p *Page) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := public(err)
	status := e.Code.Status()
	level := slog.LevelDebug
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	p.Log.Log(r.Context(), level, "request refused", "method", r.Method, "path", r.URL.Path, "status", status, "code", e.Code, "error", err.Error())
	if status == http.StatusForbidden || status == http.StatusUnauthorized {
		w.Header().Set("Connection", "close")
	}
	if byScript(r) {
		http.Error(w, e.Message, status)
		return
	}
	p.render(w, status, "problem", problemView{Problem: e.Message})
}

// public is an error as a visitor may read it.
func public(err error) *sandbox.Error {
	return sandbox.Public(err, "something went wrong in the gateway; its log has the cause")
}

// byScript says whether the page's script asks, and not a form by itself.
func byScript(r *http.Request) bool { return r.Header.Get("Accept") == "text/plain" }
