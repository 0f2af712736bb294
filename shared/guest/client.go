package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// How much of an answer is read, in bytes. A guest that sends more is broken
// or hostile.
const (
	maxReply    = 1 << 20
	maxListing  = 8 << 20
	maxErrors   = 16 << 10
	maxMessage  = 4 << 10
	maxExecLine = 256 << 10
	// maxOutput keeps the sums below from overflowing.
	maxOutput = 1 << 40
	// eventOverhead is what one byte of output may take on the wire.
	eventOverhead = 64
	execSlack     = 1 << 20
)

// Deadlines of calls whose context has none.
const (
	statusTimeout = 10 * time.Second
	configTimeout = 60 * time.Second
	fileTimeout   = 10 * time.Minute
	// slack is what a call gets beyond the time that its request names.
	slack = 15 * time.Second
)

// Client speaks to one sandboxd. It is safe for concurrent use. Every failure
// is a *sandbox.Error: guest_failed when the guest is away or talks nonsense,
// deadline_exceeded when the time is up, else what sandboxd said.
type Client struct {
	http  *http.Client
	base  string
	token string
}

// NewClient returns a client of a sandboxd. baseURL names a loopback address, as
// sandboxd answers to no other host; the transport knows which sandbox is meant and
// how to dial it, and how large headers may be; it must have no proxy. No redirect
// is followed.
func NewClient(transport http.RoundTripper, baseURL, token string) *Client {
	return &Client{
		http: &http.Client{
			Transport: &timeline.Transport{Next: transport, Peer: "sandboxd", Relays: true},
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse
			},
		},
		base:  baseURL,
		token: token,
	}
}

// Status asks how the sandbox fares.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	err := c.call(ctx, statusTimeout, http.MethodGet, RouteStatus, nil, &status)
	return status.cleaned(), err
}

// OpenCode asks for the state of its process alone, which costs next to nothing.
func (c *Client) OpenCode(ctx context.Context) (OpenCode, error) {
	var oc OpenCode
	err := c.call(ctx, statusTimeout, http.MethodGet, RouteOpenCode, nil, &oc)
	return oc.cleaned(), err
}

// Start brings OpenCode up with a config and returns when it is ready.
func (c *Client) Start(ctx context.Context, req StartRequest) (Applied, error) {
	var applied Applied
	limit := milliseconds(req.TimeoutMs, DefaultStartTimeout) + slack
	err := c.call(ctx, limit, http.MethodPost, RouteStart, req, &applied)
	return applied.cleaned(), err
}

// PutConfig changes the config of a running OpenCode.
func (c *Client) PutConfig(ctx context.Context, cfg Config) (Applied, error) {
	var applied Applied
	err := c.call(ctx, configTimeout, http.MethodPut, RouteConfig, cfg, &applied)
	return applied.cleaned(), err
}

// Stop ends OpenCode and every process but sandboxd.
func (c *Client) Stop(ctx context.Context, req StopRequest) (Status, error) {
	var status Status
	limit := milliseconds(req.GraceMs, DefaultStopGrace) + slack
	err := c.call(ctx, limit, http.MethodPost, RouteStop, req, &status)
	return status.cleaned(), err
}

// FileReader is a file or a folder as ReadFile found it. Exactly one of Body
// and Listing is set. Whoever has it calls Close.
type FileReader struct {
	Type    string // "file" or "directory"
	Size    int64  // of the file, in bytes
	Body    io.ReadCloser
	Listing *Listing
}

// Close ends the transfer.
func (f *FileReader) Close() error {
	if f.Body == nil {
		return nil
	}
	return f.Body.Close()
}

// ReadFile opens a file or lists a folder; path is relative to Home. The body
// gives exactly Size bytes or an error. It ends with ctx, or with Close.
func (c *Client) ReadFile(ctx context.Context, path string) (*FileReader, error) {
	ctx, cancel := withDefault(ctx, fileTimeout)
	resp, err := c.send(ctx, http.MethodGet, filesURL(path, nil), nil, -1, "")
	if err != nil {
		cancel()
		return nil, err
	}
	fail := func(format string, args ...any) (*FileReader, error) {
		_ = resp.Body.Close()
		cancel()
		return nil, sandbox.Errorf(sandbox.CodeGuestFailed, format, args...)
	}
	if resp.StatusCode != http.StatusOK {
		defer cancel()
		defer resp.Body.Close()
		return nil, replyError(ctx, resp)
	}
	switch kind := resp.Header.Get(TypeHeader); kind {
	case "file":
		if resp.ContentLength < 0 {
			return fail("the sandbox did not say how large the file is")
		}
		body := &bodyReader{ctx: ctx, body: resp.Body, left: resp.ContentLength, cancel: cancel}
		return &FileReader{Type: kind, Size: resp.ContentLength, Body: body}, nil
	case "directory":
		defer cancel()
		defer resp.Body.Close()
		var listing bounded
		if err := decode(ctx, resp.Body, maxListing, &listing); err != nil {
			return nil, err
		}
		return &FileReader{Type: kind, Listing: (*Listing)(&listing)}, nil
	default:
		return fail("the sandbox sent neither a file nor a folder")
	}
}

// WriteFile puts size bytes of body at path, relative to Home, atomically. A
// mode of 0 means 0644; a size of -1 means unknown.
func (c *Client) WriteFile(ctx context.Context, path string, mode fs.FileMode, body io.Reader, size int64) error {
	ctx, cancel := withDefault(ctx, fileTimeout)
	defer cancel()
	query := url.Values{}
	if mode != 0 {
		query.Set(ModeQuery, strconv.FormatUint(uint64(mode.Perm()), 8))
	}
	resp, err := c.send(ctx, http.MethodPut, filesURL(path, query), body, size, "application/octet-stream")
	if err != nil {
		return err
	}
	return finish(ctx, resp, nil)
}

// DeleteFile removes a file or a folder with all that is in it.
func (c *Client) DeleteFile(ctx context.Context, path string) error {
	ctx, cancel := withDefault(ctx, fileTimeout)
	defer cancel()
	resp, err := c.send(ctx, http.MethodDelete, filesURL(path, nil), nil, -1, "")
	if err != nil {
		return err
	}
	return finish(ctx, resp, nil)
}

func filesURL(path string, query url.Values) string {
	if query == nil {
		query = url.Values{}
	}
	query.Set(PathQuery, path)
	return RouteFiles + "?" + query.Encode()
}

// call sends a JSON request and reads a JSON answer into out.
func (c *Client) call(ctx context.Context, limit time.Duration, method, route string, in, out any) error {
	ctx, cancel := withDefault(ctx, limit)
	defer cancel()
	resp, err := c.sendJSON(ctx, method, route, in)
	if err != nil {
		return err
	}
	return finish(ctx, resp, out)
}

func (c *Client) sendJSON(ctx context.Context, method, route string, in any) (*http.Response, error) {
	if in == nil {
		return c.send(ctx, method, route, nil, -1, "")
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "the request for the sandbox is not valid JSON").WithCause(err)
	}
	return c.send(ctx, method, route, bytes.NewReader(body), int64(len(body)), "application/json")
}

func (c *Client) send(ctx context.Context, method, pathQuery string, body io.Reader, size int64, contentType string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+pathQuery, body)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's address is not usable").WithCause(err)
	}
	if body != nil {
		req.ContentLength = size
		if size == 0 {
			req.Body = http.NoBody
		}
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, failure(ctx, "the sandbox does not answer", err)
	}
	return resp, nil
}

// finish reads an answer that is JSON or nothing, and closes it.
func finish(ctx context.Context, resp *http.Response, out any) error {
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return replyError(ctx, resp)
	}
	if out == nil {
		return nil
	}
	return decode(ctx, resp.Body, maxReply, out)
}

func decode(ctx context.Context, body io.Reader, limit int64, out any) error {
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return failure(ctx, "the sandbox broke off its answer", err)
	}
	if int64(len(raw)) > limit {
		return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's answer is larger than %d bytes", limit)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's answer is not the JSON expected").WithCause(err)
	}
	return nil
}

// mayFail reports whether a guest may say code. Others would let it pass for
// the gateway, such as with owner_conflict or engine_unavailable.
func mayFail(code sandbox.Code) bool {
	return slices.Contains([]sandbox.Code{
		sandbox.CodeInvalidRequest, sandbox.CodeFileNotFound, sandbox.CodeConfigRejected, sandbox.CodeBootFailed,
		sandbox.CodeOpenCodeDown, sandbox.CodeDiskFull, sandbox.CodeConflict, sandbox.CodeTooLarge, sandbox.CodeDeadline,
		sandbox.CodeTooManyRequests,
	}, code)
}

// errorReply is an answer that is no success.
type errorReply struct {
	status int
	body   ErrorBody // empty unless the answer was JSON
	raw    string
}

// readError reads an answer that is no success. The caller closes the body.
func readError(ctx context.Context, resp *http.Response) (errorReply, error) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrors))
	if err != nil && ctx.Err() != nil {
		return errorReply{}, failure(ctx, "the sandbox broke off its answer", err)
	}
	reply := errorReply{status: resp.StatusCode, raw: string(raw)}
	var body ErrorBody
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == "application/json" && json.Unmarshal(raw, &body) == nil {
		reply.body = body
	}
	return reply, nil
}

func (r errorReply) code() sandbox.Code { return sandbox.Code(r.body.Code) }

// failure is what the answer means to the gateway.
func (r errorReply) failure() error {
	if mayFail(r.code()) {
		message := printable.Line(r.body.Error, maxMessage)
		if message == "" {
			message = "the sandbox gave no reason"
		}
		return &sandbox.Error{Code: r.code(), Message: message}
	}
	return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox answered with status %d", r.status).
		WithCause(fmt.Errorf("body %q", printable.Line(r.raw, maxMessage)))
}

// replyError turns an answer that is no success into an error. The caller
// closes the body.
func replyError(ctx context.Context, resp *http.Response) error {
	reply, err := readError(ctx, resp)
	if err != nil {
		return err
	}
	return reply.failure()
}

// failure tells a deadline from a guest that is away. The cause stays with it,
// so that errors.Is finds a cancelled context.
func failure(ctx context.Context, what string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return sandbox.Errorf(sandbox.CodeDeadline, "%s in time", what).WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeGuestFailed, "%s", what).WithCause(err)
}

func withDefault(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

func milliseconds(ms int64, zero time.Duration) time.Duration {
	const most = int64(24 * time.Hour / time.Millisecond)
	if ms <= 0 {
		return zero
	}
	return time.Duration(min(ms, most)) * time.Millisecond
}

// bodyReader is a file on its way. It turns failures into *sandbox.Error and
// an end before the announced size into one too.
type bodyReader struct {
	ctx    context.Context //nolint:containedctx // the deadline of the transfer that this is
	body   io.ReadCloser
	left   int64
	cancel context.CancelFunc
}

// Read implements io.Reader.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.body.Read(p)
	b.left -= int64(n)
	if err == nil || (errors.Is(err, io.EOF) && b.left == 0) {
		return n, nil
	}
	return n, failure(b.ctx, "the sandbox broke off the file", err)
}

// Close implements io.Closer.
func (b *bodyReader) Close() error {
	b.cancel()
	return b.body.Close()
}
