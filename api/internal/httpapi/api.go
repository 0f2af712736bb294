// Package httpapi serves the API's routes. Everything of the HTTP framework
// stays in here: handlers take a request apart, call the domain, and put its
// answer or error on the wire.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/api/internal/webhook"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Settings of the API.
type Settings struct {
	Hosts daemon.Hosts
	// Origins are the frontends' (scheme://host[:port]): they may read answers
	// and send cookies. The API's own origin need not be among them.
	Origins []string
	// Secure says that browsers reach the API by TLS.
	Secure bool
	// Proxies are the networks whose X-Forwarded-For is believed.
	Proxies []netip.Prefix
	Version string
	// Recheck is how often an open stream is asked whether its caller may still
	// have it (default 10 s).
	Recheck time.Duration
}

// Deps are what the API calls.
type Deps struct {
	Accounts    *account.Service
	Tasks       *task.Service
	Templates   *task.Library
	Webhooks    *webhook.Receiver
	Credentials *credential.Service
	Providers   *provider.Registry
	Sandboxes   *sandboxes.Service
	// Ready says why the API cannot work just now.
	Ready func(ctx context.Context) error
	Log   *slog.Logger
	// Tracer begins the spans of requests; nil if there are none.
	Tracer trace.Tracer
}

// API is the HTTP API.
type API struct {
	Deps
	settings Settings
	origins  map[string]bool
	crossing *http.CrossOriginProtection
	figures  *metrics.Metrics
	events   events
	streams  streams
	openCode *httputil.ReverseProxy
	echo     *echo.Echo
}

// New makes the API.
func New(settings Settings, deps Deps) (*API, error) {
	a := &API{Deps: deps, settings: settings, origins: map[string]bool{}, crossing: http.NewCrossOriginProtection()}
	for _, origin := range settings.Origins {
		if err := a.crossing.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("reading the frontends' origins: %w", err)
		}
		a.origins[origin] = true
	}
	var err error
	a.events = newEvents()
	if a.figures, err = metrics.New(availability{deps.Providers}, a.events, deps.Tasks.Figures(), deps.Sandboxes.Figures()); err != nil {
		return nil, err
	}
	if a.settings.Recheck <= 0 {
		a.settings.Recheck = defaultRecheck
	}
	a.openCode = newOpenCodeProxy(deps.Log)
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = addressOf(settings.Proxies)
	e.HTTPErrorHandler = a.fail
	e.Pre(a.border)
	e.Use(concerned)
	a.routes(e)
	a.echo = e
	return a, nil
}

// addressOf says how a client's address is found: that of the connection, unless
// a proxy that is believed says otherwise.
func addressOf(proxies []netip.Prefix) echo.IPExtractor {
	if len(proxies) == 0 {
		return echo.ExtractIPDirect()
	}
	trust := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
	for _, p := range proxies {
		trust = append(trust, echo.TrustIPRange(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}))
	}
	return echo.ExtractIPFromXFFHeader(trust...)
}

// authRoot is where the login client's routes are.
const authRoot = "/api/auth/"

func (a *API) routes(e *echo.Echo) {
	e.GET("/health", a.health)
	e.HEAD("/health", a.health)
	e.GET("/readyz", a.ready)
	e.GET("/metrics", a.metrics)
	e.GET(authRoot+"ok", a.authOK)
	e.POST(authRoot+"sign-up/email", a.signUp)
	e.POST(authRoot+"sign-in/email", a.signIn)
	e.POST(authRoot+"sign-out", a.signOut)
	e.GET(authRoot+"get-session", a.getSession)
	agents := e.Group("/api/v2/agents")
	a.agentRoutes(agents)
	a.templateRoutes(agents)
	a.providerRoutes(agents)
	agents.POST("/sandbox/:id/sync", a.syncSandbox)
	a.sandboxRoutes(e.Group(sandboxesRoot))
	a.credentialRoutes(e.Group("/api/providers"))
	a.configRoutes(e.Group("/api/users/:userId/opencode"))
	a.webhookRoute(e)
	e.GET(openapiPath, a.openapi)
}

// ServeHTTP serves one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.echo.ServeHTTP(w, r) }

func (a *API) health(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"status": "ok", "timestamp": sandbox.At(time.Now()), "version": a.settings.Version})
}

func (a *API) ready(c echo.Context) error {
	if a.streams.isDraining() {
		return errDraining()
	}
	if err := a.Ready(c.Request().Context()); err != nil {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the API's database does not answer").WithCause(err)
	}
	return c.JSON(http.StatusOK, map[string]string{"status": "ready"})
}

const (
	// strangerTimeout bounds the body of a request without a session.
	strangerTimeout = 10 * time.Second
	// preflightAge is how many seconds a browser may keep a preflight's answer.
	preflightAge = "600"
)

// border is what every request passes before a route is looked up.
func (a *API) border(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		began := time.Now()
		r, _, id := timeline.Receive(c.Request())
		ctx := r.Context()
		c.SetRequest(r)
		// A deadline of the request before must not outlive it on the connection.
		control := http.NewResponseController(c.Response())
		_ = control.SetWriteDeadline(time.Time{})
		_ = control.SetReadDeadline(time.Now().Add(strangerTimeout))
		c.Response().Header().Set(timeline.RequestIDHeader, id)
		a.secure(c.Response().Header())
		preflight := a.share(r, c.Response().Header())
		who, err := a.admit(c, preflight)
		defer func() { // also of a reply that is broken off, by a panic
			a.figures.Count(c.Request(), c.Path(), c.Response().Committed, c.Response().Status, time.Since(began))
			a.Log.DebugContext(ctx, "request", "method", r.Method, "path", r.URL.Path,
				"status", c.Response().Status, "duration", time.Since(began))
		}()
		switch {
		case err != nil:
			c.Response().Header().Set("Connection", "close")
		case preflight:
			err = c.NoContent(http.StatusNoContent)
		default:
			if who.user.ID != "" {
				_ = control.SetReadDeadline(time.Time{})
			}
			timeline.Note(ctx, "userId", who.user.ID)
			if tracer := a.tracerOf(r); tracer != nil {
				spanCtx, done := timeline.Serve(ctx, tracer, r.Method)
				c.SetRequest(r.WithContext(spanCtx))
				defer func() { done(c.Path(), c.Response().Status) }()
			}
			c.Set(callerKey, who)
			err = next(c)
			if who.user.ID != "" { // what is left of a body is read before the answer goes out
				_ = control.SetReadDeadline(time.Now().Add(strangerTimeout))
			}
		}
		if err != nil {
			c.Error(err)
		}
		return nil
	}
}

// concerned notes what a request is about, once its route is known.
func concerned(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		for below, note := range map[string]string{
			sandboxesRoot: "sandboxId", "/api/v2/agents/sandbox": "sandboxId", "/api/v2/agents/task": "taskId", "/api/v2/agents/team": "teamId",
		} {
			if strings.HasPrefix(c.Path(), below+"/:id") && sandbox.CheckID(c.Param("id")) == nil {
				timeline.Note(c.Request().Context(), note, c.Param("id"))
			}
		}
		return next(c)
	}
}

// tracerOf returns what makes the span of a request, nil for those of whoever looks
// whether the API is there.
func (a *API) tracerOf(r *http.Request) trace.Tracer {
	switch r.URL.Path {
	case "/health", "/readyz", "/metrics":
		return nil
	default:
		return a.Tracer
	}
}

// secure sets the headers that keep a browser from making something else of an
// answer than what it is.
func (a *API) secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if a.settings.Secure {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// share lets the frontends' origins read the answer, and tells whether a browser
// asks beforehand whether it may send a request.
func (a *API) share(r *http.Request, h http.Header) (preflight bool) {
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	preflight = r.Method == http.MethodOptions && origin != "" && r.Header.Get("Access-Control-Request-Method") != ""
	if !a.origins[origin] {
		return preflight
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	if !preflight {
		h.Set("Access-Control-Expose-Headers", strings.Join([]string{tokenHeader, timeline.RequestIDHeader, "Retry-After", "X-Retry-After"}, ", "))
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID, X-Opencode-Directory")
	h.Set("Access-Control-Max-Age", preflightAge)
	return true
}

// admit says who sends a request and whether it may go on.
func (a *API) admit(c echo.Context, preflight bool) (caller, error) {
	r := c.Request()
	if !a.settings.Hosts.Allow(r.Host) {
		return caller{}, sandbox.Errorf(sandbox.CodeForbiddenHost, "this host name is not served here; add it to ALLOWED_HOSTS if it is yours")
	}
	if err := sandbox.CheckPath(border.RawPath(r)); err != nil {
		return caller{}, err
	}
	if !utf8.ValidString(r.URL.Path) { // not every database takes such a name
		return caller{}, sandbox.Errorf(sandbox.CodeInvalidPath, "the path is not UTF-8")
	}
	if r.ContentLength > maxBody && !streamed(r) { // also where nobody reads it
		return caller{}, sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", maxBody)
	}
	if preflight {
		return caller{}, nil
	}
	if err := a.crossing.Check(asUnsafe(r)); err != nil {
		return caller{}, errOrigin
	}
	if forEverybody(r.URL.Path) {
		return caller{}, nil
	}
	return a.identify(c)
}

// streamed tells whether a request's body goes on to a sandbox.
func streamed(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, sandboxesRoot+"/")
	_, below, _ := strings.Cut(rest, "/")
	return ok && (strings.HasPrefix(below, "files/") || toOpenCode(r))
}

// forEverybody tells whether a path needs no session. The webhook has tokens of
// its own.
func forEverybody(path string) bool {
	switch path {
	case "/health", "/readyz", openapiPath, webhookPath:
		return true
	default:
		return strings.HasPrefix(path, authRoot)
	}
}

// asUnsafe returns a request as the check of its origin shall see it: opening a
// WebSocket is a GET that a foreign page may send with cookies, and then read.
func asUnsafe(r *http.Request) *http.Request {
	if r.Header.Get("Upgrade") == "" {
		return r
	}
	clone := *r
	clone.Method = http.MethodPost
	return &clone
}

// errOrigin refuses a request that a foreign page had a browser send.
var errOrigin = &authError{status: http.StatusForbidden, Code: "INVALID_ORIGIN", Message: "Invalid origin"}

// fail puts an error on the wire, if nothing is there yet.
func (a *API) fail(err error, c echo.Context) {
	r, h := c.Request(), c.Response().Header()
	if r.Context().Err() != nil {
		if !a.streams.isDraining() {
			a.Log.DebugContext(r.Context(), "the caller left", "error", err)
			return
		}
		err = errDraining() // the drain cut the request, not its caller
	}
	var (
		status int
		body   any
		after  time.Duration
	)
	switch {
	case strings.HasPrefix(r.URL.Path, authRoot):
		e := explainAuth(err)
		status, body, after = e.status, e, e.retryAfter
	case errors.Is(err, errOrigin):
		status, body = errOrigin.status, sandbox.ErrorResponse{
			Error: "pages of this origin may not send requests here; add the origin to CORS_ORIGINS, a setting of the API, if the page is yours", Code: sandbox.CodeForbiddenOrigin,
		}
	default:
		e := explain(err)
		status, body, after = e.Code.Status(), sandbox.ErrorResponse{Error: e.Message, Code: e.Code}, e.RetryAfter
		if after == 0 && (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) {
			after = sandbox.DefaultRetryAfter
		}
	}
	level := slog.LevelDebug
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	a.Log.Log(r.Context(), level, "request failed", "method", r.Method,
		"path", r.URL.Path, "status", status, "error", err.Error())
	if c.Response().Committed {
		return
	}
	if said, ok := body.(sandbox.ErrorResponse); ok {
		h.Set(sandbox.ErrorHeader, string(said.Code))
	}
	if after > 0 {
		seconds := strconv.Itoa(int((after + time.Second - 1) / time.Second))
		h.Set("Retry-After", seconds)
		h.Set("X-Retry-After", seconds) // where the login client looks
	}
	if e, ok := body.(*authError); r.Method == http.MethodHead || ok && e.Message == "" {
		_ = c.NoContent(status)
		return
	}
	if err := c.JSON(status, body); err != nil {
		a.Log.Debug("an error could not be sent", "error", err)
	}
}

// explain makes the contract's error of any error. What is not meant for the
// caller becomes "internal", and its cause stays in the log.
func explain(err error) *sandbox.Error {
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		switch e.Code {
		case http.StatusNotFound:
			return sandbox.Errorf(sandbox.CodeRouteNotFound, "there is no such route; GET /openapi.yaml lists them")
		case http.StatusMethodNotAllowed:
			return sandbox.Errorf(sandbox.CodeMethodNotAllowed, "this route does not take that method; GET /openapi.yaml lists them")
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return sandbox.Errorf(sandbox.CodeDeadline, "the request took too long; try again").WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeInternal, "something went wrong in the API; its log has the cause under the request id").WithCause(err)
}
