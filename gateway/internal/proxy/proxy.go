package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// ErrClientGone is returned when the caller left before the reply began: there
// is nobody to answer.
var ErrClientGone = errors.New("the client left")

// Settings are a Proxy's bounds.
type Settings struct {
	// MaxBody bounds a request body in bytes. It is required: without it no
	// request may have a body.
	MaxBody int64
	// Logger gets what goes wrong after a reply began. It never sees a query.
	Logger *slog.Logger
}

// Request says where one request goes and how it is guarded.
type Request struct {
	// OpenCodeURL is the base URL that Transport.Register gave.
	OpenCodeURL string
	// Password is OpenCode's, sent as Basic authorization.
	Password string
	// Path is the raw path below the prefix as it stood in the request line, still
	// percent-encoded and without the query; empty means "/".
	Path string
	// Prefix is what was cut off before Path, such as "/sandbox/ID/opencode". A
	// redirect within OpenCode is put under it again.
	Prefix string
	// OwnHost says that OpenCode is on a host of its own, see border.Mount.
	OwnHost bool
	// Done ends the request, its streams and upgraded connections when the
	// sandbox's incarnation is over; a sandbox.Error as its cause is the reply if
	// none began. Nil means never.
	Done context.Context //nolint:containedctx // it is a second lifetime, not the call's own
	// Input, if not nil, is called when bytes come from the client of an upgraded
	// connection, before they go on. It must return at once.
	Input func()
	// Parting, if not nil, gives the last bytes for the client of an upgraded
	// connection that ended on OpenCode's side. It needs Input.
	Parting func() []byte
}

func (r Request) path() string {
	if r.Path == "" {
		return "/"
	}
	return r.Path
}

// mount is where the request's OpenCode is on both sides of the border.
func (r Request) mount() border.Mount {
	return border.Mount{Path: r.path(), Outside: r.Prefix, Hosts: hosts, OwnHost: r.OwnHost}
}

// openCodeHost is the Host header that OpenCode gets, as Transport has it for all.
const openCodeHost = "127.0.0.1:4096"

// hosts are the names by which OpenCode may speak of itself.
//
//nolint:gochecknoglobals // a constant list
var hosts = []string{openCodeHost, "localhost:4096"}

// over returns the reply for a sandbox whose incarnation is over, nil before.
func (r Request) over() error {
	if r.Done == nil || r.Done.Err() == nil {
		return nil
	}
	cause := context.Cause(r.Done)
	if e, ok := errors.AsType[*sandbox.Error](cause); ok {
		return e
	}
	return sandbox.Errorf(sandbox.CodeOpenCodeDown, "the sandbox was stopped or restarted; try again").WithCause(cause)
}

// whenOver calls end with the cause when the incarnation is over, unless the
// returned function was called before.
func (r Request) whenOver(end context.CancelCauseFunc) (forget func()) {
	if r.Done == nil {
		return func() {}
	}
	stop := context.AfterFunc(r.Done, func() { end(context.Cause(r.Done)) })
	return func() { stop() }
}

// flushInterval is how long what came of a reply that says its length may wait for
// more of it, so that a small one goes out whole. What has no length, such as a
// stream of events, never waits.
const flushInterval = 5 * time.Millisecond

// Bodies are carried in pieces of bufferSize at the most, event streams in pieces of
// streamBufferSize: one holds its buffer for as long as it lasts.
const (
	bufferSize       = 64 << 10
	streamBufferSize = 2 << 10
)

// Proxy carries requests to OpenCode. Safe for concurrent use.
type Proxy struct {
	reverse *httputil.ReverseProxy
	streams *httputil.ReverseProxy // the same for event streams, of which there are many and which say little
	maxBody int64
	log     *slog.Logger
	figures figures
}

// New makes a Proxy on a Transport.
func New(transport *Transport, settings Settings) *Proxy {
	p := &Proxy{maxBody: settings.MaxBody, log: settings.Logger, figures: newFigures()}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.reverse = &httputil.ReverseProxy{
		Transport:      border.Transport(transport),
		Rewrite:        rewrite,
		ModifyResponse: modifyResponse,
		ErrorHandler:   keepError,
		FlushInterval:  flushInterval,
		BufferPool:     border.NewBuffers(bufferSize),
		ErrorLog:       slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	streams := *p.reverse
	streams.BufferPool = border.NewBuffers(streamBufferSize)
	p.streams = &streams
	return p
}

// exchange is what the shared ReverseProxy's hooks know of one request.
type exchange struct {
	req Request
	err error
	// upgraded counts the connection if OpenCode agrees to upgrade it, which
	// switched says; nil for what cannot be upgraded.
	upgraded prometheus.Gauge
	switched bool
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// Serve carries one request to OpenCode and its reply back, both streamed. It
// returns when the reply, stream or upgraded connection has ended.
//
// An error is returned only while nothing has been written to w, so that the
// caller can answer: a sandbox.Error, or ErrClientGone. When a reply breaks
// midway Serve panics with http.ErrAbortHandler, which must reach net/http: it
// is the only way to tell the client that the body is cut short.
func (p *Proxy) Serve(w http.ResponseWriter, r *http.Request, req Request) (err error) {
	whole := false
	defer func() { p.figures.over(err, whole, r.Context().Err() != nil) }()
	if err := border.CheckPath(req.path()); err != nil {
		return err
	}
	if r.ContentLength > p.maxBody {
		return p.tooLarge()
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if err := req.over(); err != nil {
		return err
	}
	defer req.whenOver(cancel)()
	x := &exchange{req: req, upgraded: p.figures.upgraded}
	defer func() {
		if x.switched {
			x.upgraded.Dec()
		}
	}()
	in := r.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	out := border.NewWriter(ctx, w, req.Input)
	out.Parting = req.Parting
	defer out.Release()
	body, leave := out.Upload(r, p.maxBody)
	defer leave()
	in.Body = body
	defer func() {
		if broken := recover(); broken != nil {
			_ = http.NewResponseController(out).Flush() // what came before it broke is the client's
			panic(broken)
		}
	}()
	p.reverse.ServeHTTP(out, in)
	whole = true
	if x.err == nil {
		return nil
	}
	if out.Started() {
		p.log.DebugContext(ctx, "an upgraded connection broke", "error", x.err)
		return nil
	}
	return p.explain(r, x)
}

func (p *Proxy) tooLarge() error {
	return sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", p.maxBody)
}

// explain words a failure of the transport for the caller.
func (p *Proxy) explain(r *http.Request, x *exchange) error {
	err := x.err
	if over := x.req.over(); over != nil {
		return over
	}
	if cause := context.Cause(r.Context()); cause != nil {
		return fmt.Errorf("%w: %w", ErrClientGone, cause)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return p.tooLarge()
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e
	}
	if errors.Is(err, ErrTooManyConnections) {
		return sandbox.Errorf(sandbox.CodeTooManyRequests, "the sandbox has too many open connections; close event streams that are not needed").WithCause(err)
	}
	if _, ok := errors.AsType[*DialError](err); ok {
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode cannot be reached in the sandbox; it is being restarted, try again").WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeOpenCodeFailed, "OpenCode broke off or gave no valid HTTP reply").WithCause(err)
}

// rewrite makes the request that goes into the sandbox.
func rewrite(pr *httputil.ProxyRequest) {
	req := exchangeOf(pr.In.Context()).req
	out := pr.Out
	query := border.CleanQuery(pr.In.URL.RawQuery)
	out.URL = &url.URL{
		Scheme:     "http",
		Host:       strings.TrimPrefix(req.OpenCodeURL, "http://"),
		RawQuery:   query,
		ForceQuery: pr.In.URL.ForceQuery,
	}
	if path := req.path(); strings.HasPrefix(path, "//") {
		// Opaque would read a host here; this form keeps every valid encoding.
		out.URL.RawPath = path
		out.URL.Path, _ = url.PathUnescape(path)
	} else {
		out.URL.Opaque = path // byte for byte, valid or not
	}
	out.Host = openCodeHost
	timeline.Inject(pr.In.Context(), out.Header)
	out.Trailer = nil
	border.CleanRequest(out.Header)
	out.SetBasicAuth("opencode", req.Password)
}

func modifyResponse(res *http.Response) error {
	x := exchangeOf(res.Request.Context())
	border.CleanResponse(res.Header, x.req.mount())
	if res.StatusCode == http.StatusSwitchingProtocols && x.upgraded != nil {
		x.switched = true
		x.upgraded.Inc()
	}
	return nil
}

func keepError(_ http.ResponseWriter, r *http.Request, err error) {
	exchangeOf(r.Context()).err = err
}
