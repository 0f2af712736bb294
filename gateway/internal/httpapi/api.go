// Package httpapi serves the gateway's routes. Everything of the HTTP framework
// stays in here: handlers take a request apart, call the domain, and put its
// answer or error on the wire.
package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/agentpod/agentpod/gateway/internal/frontpage"
	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/gateway/internal/uihost"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Settings of the API.
type Settings struct {
	// Token is what every caller must present as Bearer.
	Token string
	Hosts daemon.Hosts
	// MaxUpload bounds the body of a file that is put, in bytes.
	MaxUpload int64
	// ExecTimeout bounds a command that names no deadline, and those that do.
	ExecTimeout time.Duration
	// Address is how browsers reach the gateway, such as http://127.0.0.1:8787.
	Address string
	// UI says where the sandboxes' own hosts are; nil for a gateway without.
	UI *uihost.Settings
}

// Deps are what the API calls.
type Deps struct {
	Manager *lifecycle.Manager
	Proxy   *proxy.Proxy
	Turns   *turn.Runner
	Log     *slog.Logger
	// Tracer begins the spans of requests; nil if there are none.
	Tracer trace.Tracer
}

// API is the gateway's HTTP API.
type API struct {
	Deps
	settings Settings
	token    [sha256.Size]byte
	echo     *echo.Echo
	carrier  *proxy.Carrier
	ui       *uihost.Host // nil if there is none
	front    *frontpage.Page
	figures  *metrics.Metrics
	stages   *prometheus.HistogramVec
	messages prometheus.Histogram

	// streams ends what would never end by itself when the gateway drains;
	// turns ends the turns that nobody waits for any more.
	streams     context.Context //nolint:containedctx // a second lifetime of requests
	stopStreams context.CancelCauseFunc
	turnsCtx    context.Context //nolint:containedctx // outlives the requests that began the turns
	stopTurns   context.CancelCauseFunc
	running     sync.WaitGroup
}

// New makes the API. Figures are what /metrics shows besides the API's own; it
// fails if they are there twice.
func New(settings Settings, deps Deps, figures ...prometheus.Collector) (*API, error) {
	a := &API{Deps: deps, settings: settings, token: sha256.Sum256([]byte(settings.Token)), stages: newStages(), messages: newMessages()}
	var err error
	if a.figures, err = metrics.New(append(figures, a.stages, a.messages)...); err != nil {
		return nil, err
	}
	a.streams, a.stopStreams = context.WithCancelCause(context.Background())
	a.turnsCtx, a.stopTurns = context.WithCancelCause(context.Background())
	a.carrier = &proxy.Carrier{Sandboxes: deps.Manager, Proxy: deps.Proxy, Streams: a.streams}
	front, below := frontpage.Settings{Token: settings.Token, Address: settings.Address, Streams: a.streams}, frontpage.Deps{Sandboxes: deps.Manager, Log: deps.Log}
	if settings.UI != nil {
		a.ui = uihost.New(*settings.UI, uihost.Deps{Sandboxes: deps.Manager, Carrier: a.carrier, Log: deps.Log})
		front.SandboxHosts, below.UI = a.ui.Source(), a.ui
	}
	a.front = frontpage.New(front, below)
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = a.fail
	e.Pre(a.border)
	e.Use(concerned)
	a.routes(e)
	a.echo = e
	return a, nil
}

func (a *API) routes(e *echo.Echo) {
	e.Any("/", echo.WrapHandler(a.front))
	e.Any("/ui/*", echo.WrapHandler(a.front))
	e.GET("/health", a.health)
	e.HEAD("/health", a.health)
	e.GET("/readyz", a.ready)
	e.GET("/openapi.yaml", a.openapi)
	e.GET("/metrics", a.metrics)
	e.GET("/defaults", a.defaults)
	e.GET("/sandboxes", a.list)
	e.POST("/sandbox", a.create)
	e.GET("/sandbox/:id", a.get)
	e.DELETE("/sandbox/:id", a.remove)
	e.POST("/sandbox/:id/wake", a.wake)
	e.POST("/sandbox/:id/message", a.message)
	e.POST("/sandbox/:id/hibernate", a.hibernate)
	e.POST("/sandbox/:id/sync", a.sync)
	e.GET("/sandbox/:id/snapshots", a.snapshots)
	e.POST("/sandbox/:id/exec", a.exec)
	e.GET("/sandbox/:id/logs", a.logs)
	e.GET("/sandbox/:id/stats", a.stats)
	e.GET("/sandbox/:id/ui", a.openUI)
	e.DELETE("/sandbox/:id/ui", a.closeUI)
	for _, path := range []string{"/sandbox/:id/files", "/sandbox/:id/files/*"} {
		e.GET(path, a.readFile)
		e.PUT(path, a.writeFile)
		e.DELETE(path, a.deleteFile)
	}
	for _, path := range []string{"/sandbox/:id/opencode", "/sandbox/:id/opencode/*"} {
		e.Any(path, a.proxy)
		e.Match([]string{"COPY", "LOCK", "MKCOL", "MOVE", "PURGE", "SEARCH", "UNLOCK"}, path, a.proxy)
	}
}

// ServeHTTP serves one request: a sandbox's own host, or a route of the gateway's.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.ui != nil && a.ui.Serves(r.Host) {
		a.ui.ServeHTTP(w, r)
		return
	}
	a.echo.ServeHTTP(w, r)
}

// Drain ends streams, so that the rest can end by itself.
func (a *API) Drain() { a.stopStreams(lifecycle.ErrClosing) }

// Close ends the turns that still run here (in OpenCode they go on) and waits
// for them, no longer than ctx.
func (a *API) Close(ctx context.Context) error {
	a.stopStreams(lifecycle.ErrClosing)
	a.stopTurns(lifecycle.ErrClosing)
	errs := []error{a.front.Close(ctx)}
	if a.ui != nil {
		errs = append(errs, a.ui.Close(ctx))
	}
	return errors.Join(append(errs, daemon.Await(ctx, &a.running, "turns"))...)
}

// border is what every request passes before a route is looked up: host, path,
// token.
func (a *API) border(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		began := time.Now()
		r, line, id := timeline.Receive(c.Request())
		ctx := r.Context()
		c.SetRequest(r)
		// A deadline of the request before must not outlive it on the connection.
		control := http.NewResponseController(c.Response())
		_ = control.SetWriteDeadline(time.Time{})
		h := c.Response().Header()
		h.Set(timeline.RequestIDHeader, id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		stranger, err := a.admit(c)
		if stranger {
			// Who is not let in must not hold a connection either: what it sends is
			// read, before it gets its answer, for this long at the most. (The server
			// ends this deadline before the connection's next request.)
			_ = control.SetReadDeadline(time.Now().Add(strangerTimeout))
		}
		defer func() { // also of a reply that is broken off, by a panic
			took := time.Since(began)
			a.count(c, line.Stages(), took)
			if a.Log.Enabled(ctx, slog.LevelDebug) { // else the line's values would be made for nothing
				a.Log.DebugContext(ctx, "request", "method", r.Method, "path", r.URL.Path,
					"status", c.Response().Status, "duration", took, "stages", line)
			}
		}()
		if err != nil {
			h.Set("Connection", "close")
		} else {
			if tracer := a.tracerOf(r); tracer != nil {
				spanCtx, done := timeline.Serve(ctx, tracer, r.Method)
				c.SetRequest(r.WithContext(spanCtx))
				defer func() { done(c.Path(), c.Response().Status) }()
			}
			err = next(c)
		}
		if err != nil {
			c.Error(err)
		}
		return nil
	}
}

// concerned notes which sandbox a request is about, once its route is known.
func concerned(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if id := c.Param("id"); sandbox.CheckID(id) == nil {
			timeline.Note(c.Request().Context(), "sandboxId", id)
		}
		return next(c)
	}
}

// tracerOf returns what makes the span of a request, nil for those of whoever looks
// whether the gateway is there.
func (a *API) tracerOf(r *http.Request) trace.Tracer {
	switch r.URL.Path {
	case "/health", "/readyz", "/metrics":
		return nil
	default:
		return a.Tracer
	}
}

// strangerTimeout bounds the body of a request without a good token.
const strangerTimeout = 10 * time.Second

// admit says whether a request may go on, and whether its sender is a stranger:
// health and the front page are for everybody.
func (a *API) admit(c echo.Context) (stranger bool, err error) {
	r := c.Request()
	if !a.settings.Hosts.Allow(r.Host) {
		return true, sandbox.Errorf(sandbox.CodeForbiddenHost, "this host name is not served here; add it to ALLOWED_HOSTS if it is yours")
	}
	if err := sandbox.CheckPath(border.RawPath(r)); err != nil {
		return true, err
	}
	if r.URL.Path == "/health" || frontpage.Serves(r.URL.Path) { // the front page asks its visitors itself
		return true, nil
	}
	sum := sha256.Sum256([]byte(presented(r)))
	if subtle.ConstantTimeCompare(sum[:], a.token[:]) != 1 {
		c.Response().Header().Set("WWW-Authenticate", `Bearer realm="agentpod"`)
		return true, sandbox.Errorf(sandbox.CodeUnauthorized, "give the gateway's token as Authorization: Bearer TOKEN")
	}
	return false, nil
}

// presented is the token that a request brings. On the way to a sandbox's OpenCode it
// may be a password, as OpenCode's own clients know nothing else.
func presented(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	if !openCodePath.MatchString(r.URL.Path) {
		return ""
	}
	password, _ := border.Password(r)
	return password
}

var openCodePath = regexp.MustCompile(`^/sandbox/[^/]+/opencode(/|$)`)

// syncFailed marks a request whose error has another shape: SyncFailure.
const syncFailed = "syncFailed"

// fail puts an error on the wire, if nothing is there yet.
func (a *API) fail(err error, c echo.Context) {
	if c.Request().Context().Err() != nil {
		if a.streams.Err() == nil {
			a.Log.DebugContext(c.Request().Context(), "the caller left", "error", err)
			return
		}
		err = lifecycle.ErrClosing // the drain cut the request, not its caller
	}
	e := a.explain(err)
	status := e.Code.Status()
	attrs := []any{
		"method", c.Request().Method, "path", c.Request().URL.Path, "status", status, "code", e.Code, "error", err.Error(),
	}
	switch {
	case status >= http.StatusInternalServerError:
		a.Log.WarnContext(c.Request().Context(), "request failed", attrs...)
	default:
		a.Log.DebugContext(c.Request().Context(), "request refused", attrs...)
	}
	if c.Response().Committed {
		return
	}
	if after := retryAfter(e, status); after > 0 {
		c.Response().Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	c.Response().Header().Set(sandbox.ErrorHeader, string(e.Code))
	var body any = sandbox.ErrorResponse{Error: e.Message, Code: e.Code, SessionID: e.SessionID}
	if c.Get(syncFailed) != nil {
		body = sandbox.SyncFailure{Error: e.Message, Code: e.Code, SandboxID: c.Param("id")}
	}
	if c.Request().Method == http.MethodHead {
		_ = c.NoContent(status)
		return
	}
	if err := c.JSON(status, body); err != nil {
		a.Log.Debug("an error could not be sent", "error", err)
	}
}

func retryAfter(e *sandbox.Error, status int) time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		return sandbox.DefaultRetryAfter
	}
	return 0
}

// explain makes the contract's error of any error. What is not meant for the
// caller becomes "internal", and its cause stays in the log.
func (a *API) explain(err error) *sandbox.Error {
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
	return sandbox.Errorf(sandbox.CodeInternal, "something went wrong in the gateway; its log has the cause under the request id").WithCause(err)
}
