package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/agentpod/agentpod/shared/printable"
)

// GatewayClient is a Backend that is a gateway of ours. It retries what is safe
// to do twice: reading, deleting a sandbox, wake, sync, and a create that clones
// nothing.
type GatewayClient struct{ caller }

var _ Backend = (*GatewayClient)(nil)

// NewGateway makes a client of a gateway. It asks nothing of it; an error says
// which setting is wrong.
func NewGateway(settings ClientSettings) (*GatewayClient, error) {
	if settings.Token == "" {
		return nil, errors.New("the gateway's token is missing")
	}
	c, err := newCaller("the gateway", settings)
	if err != nil {
		return nil, err
	}
	return &GatewayClient{*c}, nil
}

// Health implements Backend.
func (g *GatewayClient) Health(ctx context.Context) error { return g.health(ctx) }

// health asks once: a probe says what it saw.
func (c *caller) health(ctx context.Context) error {
	var reply struct {
		Status string `json:"status"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: "/health", limit: maxSmallReply, within: c.deadlines.Probe}, &reply)
	if err == nil && reply.Status != "ok" {
		return Errorf(CodeBackendFailed, "%s does not say that it is healthy", c.who)
	}
	return err
}

// Create implements Backend.
func (g *GatewayClient) Create(ctx context.Context, req CreateRequest) (CreateResponse, error) {
	return g.create(ctx, req)
}

// create is not sent again if it clones: whether the first one did is not known.
func (c *caller) create(ctx context.Context, req CreateRequest) (CreateResponse, error) {
	var reply CreateResponse
	if err := CheckID(req.ID); err != nil {
		return reply, err
	}
	if req.UserID == "" {
		return reply, Errorf(CodeInvalidRequest, "userId must not be empty")
	}
	err := c.do(ctx, call{
		method: http.MethodPost, path: "/sandbox", body: req,
		limit: maxSmallReply, within: c.deadlines.Boot, retry: req.GitURL == "",
	}, &reply)
	if err == nil && (!reply.Success || reply.SandboxID != req.ID) {
		err = c.notSuccess()
	}
	return reply, err
}

// Get implements Backend.
func (g *GatewayClient) Get(ctx context.Context, id string) (Info, error) {
	var reply Info
	err := g.look(ctx, id, "", nil, maxSmallReply, &reply)
	if err == nil && reply.SandboxID != id {
		err = g.notSuccess()
	}
	return reply, err
}

// look asks for what a GET below a sandbox gives.
func (c *caller) look(ctx context.Context, id, below string, query url.Values, limit int64, out any) error {
	path, err := route(id, below)
	if err != nil {
		return err
	}
	return c.do(ctx, call{method: http.MethodGet, path: path, query: query, limit: limit, within: c.deadlines.Look, retry: true}, out)
}

// List implements Backend.
func (g *GatewayClient) List(ctx context.Context, opts ListOptions) (ListResponse, error) {
	query := url.Values{}
	set := func(name, value string) {
		if value != "" {
			query.Set(name, value)
		}
	}
	set("userId", opts.UserID)
	set("status", string(opts.Status))
	set("cursor", opts.Cursor)
	if opts.Limit != 0 {
		set("limit", strconv.Itoa(opts.Limit))
	}
	var reply struct {
		Sandboxes  bounded[Info] `json:"sandboxes"`
		NextCursor string        `json:"nextCursor"`
	}
	err := g.do(ctx, call{method: http.MethodGet, path: "/sandboxes", query: query, limit: maxListReply, within: g.deadlines.Look, retry: true}, &reply)
	return ListResponse{Sandboxes: reply.Sandboxes, NextCursor: reply.NextCursor}, err
}

// Defaults returns what the gateway gives to every sandbox. A gateway that is older
// than this question answers it with not_found.
func (g *GatewayClient) Defaults(ctx context.Context) (Defaults, error) {
	var reply struct {
		Credentials bounded[string] `json:"credentials"`
	}
	err := g.do(ctx, call{method: http.MethodGet, path: "/defaults", limit: maxSmallReply, within: g.deadlines.Probe}, &reply)
	if err == nil && reply.Credentials == nil {
		err = Errorf(CodeBackendFailed, "%s does not say which default credentials it has", g.who)
	}
	return Defaults{Credentials: reply.Credentials}, err
}

// Delete implements Backend.
func (g *GatewayClient) Delete(ctx context.Context, id string) error { return g.remove(ctx, id) }

func (c *caller) remove(ctx context.Context, id string) error {
	path, err := route(id, "")
	if err != nil {
		return err
	}
	var reply DeleteResponse
	err = c.do(ctx, call{method: http.MethodDelete, path: path, limit: maxSmallReply, within: c.deadlines.Boot, retry: true}, &reply)
	if err == nil && (!reply.Success || reply.Deleted != id) {
		err = c.notSuccess()
	}
	return err
}

// Wake implements Backend.
func (g *GatewayClient) Wake(ctx context.Context, id string, req WakeRequest) (WakeResponse, error) {
	return g.wake(ctx, id, req)
}

// wake always has a body, {} at least. The worker's reply names no sandbox.
func (c *caller) wake(ctx context.Context, id string, req WakeRequest) (WakeResponse, error) {
	var reply WakeResponse
	path, err := route(id, "/wake")
	if err != nil {
		return reply, err
	}
	err = c.do(ctx, call{method: http.MethodPost, path: path, body: req, limit: maxSmallReply, within: c.deadlines.Boot, retry: true}, &reply)
	if err == nil && !reply.Success {
		err = c.notSuccess()
	}
	reply.SandboxID = id
	return reply, err
}

// Hibernate implements Backend.
func (g *GatewayClient) Hibernate(ctx context.Context, id string, req HibernateRequest) (HibernateResponse, error) {
	var reply HibernateResponse
	path, err := route(id, "/hibernate")
	if err != nil {
		return reply, err
	}
	err = g.do(ctx, call{method: http.MethodPost, path: path, body: req, limit: maxSmallReply, within: g.deadlines.Persist}, &reply)
	if err == nil && !reply.Success {
		err = g.notSuccess()
	}
	return reply, err
}

// Message implements Backend.
func (g *GatewayClient) Message(ctx context.Context, id string, req MessageRequest) (MessageResponse, error) {
	return g.message(ctx, id, req)
}

// message is never sent again: a turn may run although its reply was lost.
func (c *caller) message(ctx context.Context, id string, req MessageRequest) (MessageResponse, error) {
	path, err := route(id, "/message")
	if err != nil {
		return MessageResponse{}, err
	}
	if strings.TrimSpace(req.Message) == "" {
		return MessageResponse{}, Errorf(CodeInvalidRequest, "message must not be empty")
	}
	// Its own type for the parts: how many there are, the sandbox decides.
	var reply struct {
		MessageResponse
		Parts bounded[json.RawMessage] `json:"parts"`
	}
	err = c.do(ctx, call{method: http.MethodPost, path: path, body: req, limit: maxMessageReply, within: c.deadlines.work(req.TimeoutMs)}, &reply)
	out := reply.MessageResponse
	out.SessionID = printable.Line(out.SessionID, maxSessionID)
	out.Error = printable.Line(c.hide(out.Error), maxErrorText)
	out.Parts = reply.Parts
	if out.Parts == nil {
		out.Parts = []json.RawMessage{}
	}
	return out, err
}

// Sync implements Backend.
func (g *GatewayClient) Sync(ctx context.Context, id string) (SyncResponse, error) {
	return g.sync(ctx, id)
}

func (c *caller) sync(ctx context.Context, id string) (SyncResponse, error) {
	var reply SyncResponse
	path, err := route(id, "/sync")
	if err != nil {
		return reply, err
	}
	err = c.do(ctx, call{method: http.MethodPost, path: path, body: struct{}{}, limit: maxSmallReply, within: c.deadlines.Persist, retry: true}, &reply)
	if err == nil && !reply.Success {
		err = c.notSuccess()
	}
	return reply, err
}

// Snapshots implements Backend.
func (g *GatewayClient) Snapshots(ctx context.Context, id string) ([]Snapshot, error) {
	var reply struct {
		Snapshots bounded[Snapshot] `json:"snapshots"`
	}
	err := g.look(ctx, id, "/snapshots", nil, maxSmallReply, &reply)
	return reply.Snapshots, err
}

// Logs implements Backend.
func (g *GatewayClient) Logs(ctx context.Context, id string, tail int) (LogsResponse, error) {
	query := url.Values{}
	if tail != 0 {
		query.Set("tail", strconv.Itoa(tail))
	}
	var reply LogsResponse
	err := g.look(ctx, id, "/logs", query, maxLogsReply, &reply)
	return reply, err
}

// Exec implements Backend.
func (g *GatewayClient) Exec(ctx context.Context, id string, req ExecRequest) (ExecResponse, error) {
	var reply ExecResponse
	path, err := route(id, "/exec")
	if err != nil {
		return reply, err
	}
	err = g.do(ctx, call{method: http.MethodPost, path: path, body: req, limit: maxExecReply, within: g.deadlines.work(req.TimeoutMs)}, &reply)
	return reply, err
}

// Stats implements Backend.
func (g *GatewayClient) Stats(ctx context.Context, id string) (Stats, error) {
	var reply StatsResponse
	err := g.look(ctx, id, "/stats", nil, maxSmallReply, &reply)
	return reply.Stats, err
}

// UI implements Backend. No error holds the URL.
func (g *GatewayClient) UI(ctx context.Context, id, session string) (UIResponse, error) {
	var reply UIResponse
	if err := g.look(ctx, id, "/ui", ofSession(session), maxSmallReply, &reply); err != nil {
		return UIResponse{}, err
	}
	// It is for a browser to follow.
	if u, err := url.Parse(reply.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return UIResponse{}, Errorf(CodeBackendFailed, "the gateway sent no address of a web UI")
	}
	return reply, nil
}

// EndUI implements Backend.
func (g *GatewayClient) EndUI(ctx context.Context, id, session string) error {
	path, err := route(id, "/ui")
	if err != nil {
		return err
	}
	var reply struct {
		Success bool `json:"success"`
	}
	err = g.do(ctx, call{
		method: http.MethodDelete, path: path, query: ofSession(session), limit: maxSmallReply, within: g.deadlines.Look, retry: true,
	}, &reply)
	if err == nil && !reply.Success {
		err = g.notSuccess()
	}
	return err
}

func ofSession(session string) url.Values {
	if session == "" {
		return nil
	}
	return url.Values{"session": {session}}
}

// filesRoute is the route of a path in the home folder, each element encoded.
func filesRoute(id, path string) (string, error) {
	if strings.HasPrefix(path, "/") {
		return "", Errorf(CodeInvalidPath, "the path must be relative to the home folder, without a slash in front")
	}
	elements := strings.Split(path, "/")
	for i, element := range elements {
		elements[i] = url.PathEscape(element)
	}
	return route(id, "/files/"+strings.Join(elements, "/"))
}

// ReadFile implements Backend.
func (g *GatewayClient) ReadFile(ctx context.Context, id, path string) (*File, error) {
	ctx, cancel := context.WithTimeout(ctx, g.deadlines.Transfer)
	resp, folder, err := g.openFile(ctx, id, path)
	if err != nil {
		cancel()
		return nil, err
	}
	switch {
	case folder:
		err = Errorf(CodeInvalidRequest, "the path is a folder; list it instead")
	case resp.ContentLength < 0:
		err = Errorf(CodeBackendFailed, "the gateway did not say how large the file is")
	default:
		return &File{Size: resp.ContentLength, Body: &fileBody{ctx: ctx, caller: &g.caller, body: resp.Body, cancel: cancel}}, nil
	}
	_ = resp.Body.Close()
	cancel()
	return nil, err
}

// ListFiles implements Backend.
func (g *GatewayClient) ListFiles(ctx context.Context, id, path string) (FileListing, error) {
	ctx, cancel := context.WithTimeout(ctx, g.deadlines.Transfer)
	defer cancel()
	resp, folder, err := g.openFile(ctx, id, path)
	if err != nil {
		return FileListing{}, err
	}
	defer resp.Body.Close()
	if !folder {
		return FileListing{}, Errorf(CodeInvalidRequest, "the path is a file; read it instead")
	}
	var reply struct {
		Entries   bounded[FileEntry] `json:"entries"`
		Truncated bool               `json:"truncated"`
	}
	err = g.decode(ctx, resp.Body, maxFolderReply, &reply)
	return FileListing{Entries: reply.Entries, Truncated: reply.Truncated}, err
}

// openFile asks for a file or folder and says which it is: a folder is JSON, a
// file is bytes whatever it holds.
func (g *GatewayClient) openFile(ctx context.Context, id, path string) (resp *http.Response, folder bool, err error) {
	file, err := filesRoute(id, path)
	if err != nil {
		return nil, false, err
	}
	resp, err = g.answer(ctx, call{method: http.MethodGet, path: file, retry: true}, nil)
	if err != nil {
		return nil, false, err
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch kind {
	case "application/json":
		return resp, true, nil
	case "application/octet-stream":
		return resp, false, nil
	}
	_ = resp.Body.Close()
	return nil, false, Errorf(CodeBackendFailed, "the gateway sent neither a file nor a folder")
}

// WriteFile implements Backend.
func (g *GatewayClient) WriteFile(ctx context.Context, id, path string, mode fs.FileMode, body io.Reader, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, g.deadlines.Transfer)
	defer cancel()
	file, err := filesRoute(id, path)
	if err != nil {
		return err
	}
	query := url.Values{}
	if mode != 0 {
		query.Set("mode", strconv.FormatUint(uint64(mode.Perm()), 8))
	}
	// Not a Closer: the body is the caller's.
	req, refused := g.request(ctx, http.MethodPut, file, query, struct{ io.Reader }{body})
	if refused != nil {
		return refused
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, failed := g.send(req)
	if failed != nil {
		return failed.why
	}
	return resp.Body.Close()
}

// DeleteFile implements Backend.
func (g *GatewayClient) DeleteFile(ctx context.Context, id, path string) error {
	file, err := filesRoute(id, path)
	if err != nil {
		return err
	}
	return g.do(ctx, call{method: http.MethodDelete, path: file, limit: maxSmallReply, within: g.deadlines.Transfer}, nil)
}

// OpenCode implements Backend.
func (g *GatewayClient) OpenCode(id string) (http.RoundTripper, string, error) {
	to, base, err := g.openCode(id)
	if err != nil {
		return nil, "", err
	}
	to.marked = true
	return to, base, nil
}

// Close implements Backend.
func (g *GatewayClient) Close(context.Context) error {
	g.closeIdle()
	return nil
}

func (c *caller) closeIdle() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// fileBody is a file on its way.
type fileBody struct {
	ctx    context.Context //nolint:containedctx // the deadline of the transfer that this is
	caller *caller
	body   io.ReadCloser
	cancel context.CancelFunc
}

// Read implements io.Reader; net/http sees to it that the size is as announced.
func (b *fileBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.caller.failure(b.ctx, "broke off the file", err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *fileBody) Close() error {
	b.cancel()
	return b.body.Close()
}
