package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// sandboxesRoot is where the routes of single sandboxes are.
const sandboxesRoot = "/api/v2/sandboxes"

// maxProxyBody bounds what goes into a sandbox with one request, in bytes.
const maxProxyBody = 1 << 30

// openCodePath takes a raw path to a sandbox's OpenCode apart.
func openCodePath(raw string) (id, path string, ok bool) {
	rest, ok := strings.CutPrefix(raw, sandboxesRoot+"/")
	if !ok {
		return "", "", false
	}
	id, rest, _ = strings.Cut(rest, "/")
	path, ok = strings.CutPrefix(rest, "opencode")
	if path == "" {
		path = "/"
	}
	return id, path, ok && path[0] == '/'
}

// toOpenCode says whether a request is for a sandbox's OpenCode. What is served
// there was written by an agent, so no cookie counts.
func toOpenCode(r *http.Request) bool {
	_, _, ok := openCodePath(border.RawPath(r))
	return ok
}

// exchange is what the ReverseProxy's hooks know of one request.
type exchange struct {
	transport http.RoundTripper
	base      *url.URL
	mount     border.Mount
	// own are the headers that the API has set: they go before the sandbox's.
	own http.Header
	err error
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// perExchange is the transport of whichever sandbox a request is for.
type perExchange struct{}

// RoundTrip implements http.RoundTripper.
func (perExchange) RoundTrip(r *http.Request) (*http.Response, error) {
	return exchangeOf(r.Context()).transport.RoundTrip(r) //nolint:wrapcheck // an error for the caller
}

func newOpenCodeProxy(log *slog.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      border.Transport(perExchange{}),
		Rewrite:        goIn,
		ModifyResponse: comeOut,
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r.Context()).err = err },
		FlushInterval:  -1,
		BufferPool:     border.NewBuffers(32 << 10),
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// goIn makes the request that goes into the sandbox.
func goIn(pr *httputil.ProxyRequest) {
	x, out := exchangeOf(pr.In.Context()), pr.Out
	to := *x.base
	to.RawPath = x.mount.Inside + x.mount.Path
	to.Path, _ = url.PathUnescape(to.RawPath) // the server has read the path already
	to.RawQuery, to.ForceQuery = border.CleanQuery(pr.In.URL.RawQuery), pr.In.URL.ForceQuery
	out.URL, out.Host, out.Trailer = &to, "", nil
	border.CleanRequest(out.Header)
}

// comeOut cleans the reply. OpenCode's password is the gateway's matter, so a 401
// is not the caller's.
func comeOut(res *http.Response) error {
	x := exchangeOf(res.Request.Context())
	if res.StatusCode == http.StatusUnauthorized {
		return sandbox.Errorf(sandbox.CodeBackendFailed, "the sandbox's provider refused the API; its settings must be checked")
	}
	border.CleanResponse(res.Header, x.mount)
	for name := range x.own {
		if name != "Vary" {
			res.Header.Del(name)
		}
	}
	return nil
}

// proxy carries a request to a sandbox's OpenCode and the reply back, both
// streamed.
func (a *API) proxy(c echo.Context) error {
	r, who := c.Request(), admitted(c)
	id, path, ok := openCodePath(border.RawPath(r))
	if !ok {
		return sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	if who.cookie {
		return signInFirst(c)
	}
	if err := border.CheckPath(path); err != nil {
		return err //nolint:wrapcheck // an error for the caller
	}
	if r.ContentLength > maxProxyBody {
		return errBody()
	}
	transport, address, err := a.Sandboxes.OpenCode(r.Context(), who.user.ID, id)
	if err != nil {
		return err
	}
	base, err := url.Parse(address)
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInternal, "the sandbox's address cannot be used").WithCause(err)
	}
	ctx, release := a.holdSandbox(c, id, !border.Endless(r, path))
	defer release()
	own := c.Response().Header()
	own.Set("Content-Security-Policy", "sandbox")
	x := &exchange{
		transport: transport, base: base, own: own,
		mount: border.Mount{Path: path, Inside: base.EscapedPath(), Outside: sandboxesRoot + "/" + id + "/opencode"},
	}
	in := r.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	out := border.NewWriter(ctx, c.Response(), nil)
	defer out.Release()
	body, leave := out.Upload(r, maxProxyBody)
	defer leave()
	in.Body = body
	a.openCode.ServeHTTP(out, in)
	switch {
	case x.err == nil:
		return nil
	case out.Started():
		a.Log.DebugContext(ctx, "an upgraded connection broke", "sandboxId", id, "error", x.err)
		return nil
	case ctx.Err() != nil:
		return ended(ctx, c)
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](x.err); tooLarge {
		return errBody()
	}
	if e, ok := errors.AsType[*sandbox.Error](x.err); ok {
		return provider.Told(e)
	}
	return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "OpenCode broke off or gave no valid HTTP reply").WithCause(x.err)
}

func errBody() error {
	return sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", maxProxyBody)
}

// holdSandbox holds a request open for as long as the sandbox is the caller's.
func (a *API) holdSandbox(c echo.Context, id string, bounded bool) (context.Context, func()) {
	userID := callerOf(c).ID
	return a.hold(c, held{about: id, bounded: bounded, check: func(ctx context.Context) error {
		return a.Sandboxes.Check(ctx, userID, id)
	}})
}
