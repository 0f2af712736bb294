package sandbox

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ProviderCloudflare is what Info.Provider says of a worker's sandboxes.
const ProviderCloudflare = "cloudflare"

// WorkerClient is a Backend that is the Cloudflare worker, an existing deployment
// with habits of its own:
//
//   - It does not know what exists, what runs and whose it is. The client's
//     Records do, from what went through it. Not found is what has no record and,
//     as the worker says, no stored workspace.
//   - A second clone into a workspace fails there, so a create that clones is
//     never sent twice, and one for a sandbox that has cloned leaves gitUrl out.
//   - A turn that failed is an empty answer without parts: opencode_failed here.
//   - A message through OpenCode is not stored by the worker: a sync follows it
//     in the background. After a prompt_async the caller syncs, when the turn is
//     over.
//   - A DELETE of whatever lies below a sandbox deletes its stored workspace, so
//     OpenCode's transport sends none. Redirects there lead out of the sandbox
//     and are an error.
//   - Deleting a sandbox does not stop its container.
//
// What it cannot do at all is unsupported: List, Hibernate, Snapshots, Logs, Exec,
// Stats, UI, EndUI, and files.
type WorkerClient struct {
	caller
	records Records
	syncs   *afterwards
}

var _ Backend = (*WorkerClient)(nil)

// NewWorker makes a client of a worker. Nil records are kept in memory. It asks
// nothing of the worker; an error says which setting is wrong.
func NewWorker(settings ClientSettings, records Records) (*WorkerClient, error) {
	c, err := newCaller("the Cloudflare worker", settings)
	if err != nil {
		return nil, err
	}
	if records == nil {
		records = &MemoryRecords{}
	}
	w := &WorkerClient{caller: *c, records: records}
	w.syncs = newAfterwards(func(ctx context.Context, id string) {
		if _, err := w.Sync(ctx, id); err != nil {
			w.log.WarnContext(ctx, "a workspace was not synced after a proxied message", "sandboxId", id, "error", err)
		}
	})
	return w, nil
}

func (w *WorkerClient) cannot(what string) error {
	return Errorf(CodeUnsupported, "%s cannot %s", w.who, what)
}

// record reads what is known of a sandbox.
func (w *WorkerClient) record(ctx context.Context, id string) (Record, bool, error) {
	r, ok, err := w.records.Record(ctx, id)
	if err != nil {
		return r, false, Errorf(CodeInternal, "the sandbox's record could not be read").WithCause(err)
	}
	return r, ok, nil
}

// remember keeps what was just seen to be so. That it could not be kept is no
// reason to let what succeeded fail.
func (w *WorkerClient) remember(ctx context.Context, r Record) {
	if err := w.records.PutRecord(context.WithoutCancel(ctx), r); err != nil {
		w.log.WarnContext(ctx, "a sandbox's record was not kept", "sandboxId", r.SandboxID, "error", err)
	}
}

// Health implements Backend.
func (w *WorkerClient) Health(ctx context.Context) error { return w.health(ctx) }

// Create implements Backend. Two creates of one id by different owners at once
// can both succeed.
func (w *WorkerClient) Create(ctx context.Context, req CreateRequest) (CreateResponse, error) {
	if err := CheckID(req.ID); err != nil {
		return CreateResponse{}, err
	}
	r, known, err := w.record(ctx, req.ID)
	if err != nil {
		return CreateResponse{}, err
	}
	if known && r.UserID != "" && r.UserID != req.UserID {
		return CreateResponse{}, Errorf(CodeOwnerConflict, "the sandbox id %q belongs to another user; choose another", req.ID)
	}
	idle := req.Idle != nil
	req.Idle = nil
	if r.GitURL != "" {
		req.GitURL, req.GitBranch = "", ""
	}
	reply, err := w.create(ctx, req)
	if err != nil {
		return reply, err
	}
	if idle {
		reply.Warnings = append(reply.Warnings, "idle times are ignored: "+w.who+" has its own")
	}
	now := time.Now().UTC()
	if r.CreatedAt.IsZero() {
		r.CreatedAt = now
	}
	if req.GitURL != "" {
		r.GitURL = withoutUser(req.GitURL)
	}
	if req.Directory != "" {
		r.Directory = req.Directory
	}
	r.SandboxID, r.UserID, r.Status, r.LastActiveAt = req.ID, req.UserID, StatusRunning, now
	w.remember(ctx, r)
	return reply, nil
}

// Get implements Backend. The status is the record's; without one it is sleeping.
func (w *WorkerClient) Get(ctx context.Context, id string) (Info, error) {
	var reply Info
	if err := w.look(ctx, id, "", nil, maxSmallReply, &reply); err != nil {
		return Info{}, err
	}
	if reply.SandboxID != id {
		return Info{}, w.notSuccess()
	}
	r, known, err := w.record(ctx, id)
	if err != nil {
		return Info{}, err
	}
	if !known && !reply.HasWorkspace {
		return Info{}, Errorf(CodeSandboxNotFound, "there is no sandbox %q", id)
	}
	info := Info{SandboxID: id, Status: StatusSleeping, HasWorkspace: reply.HasWorkspace, Provider: ProviderCloudflare}
	if known {
		info.UserID, info.Status, info.Directory, info.GitURL = r.UserID, r.Status, r.Directory, r.GitURL
		info.CreatedAt, info.LastActiveAt = At(r.CreatedAt), At(r.LastActiveAt)
	}
	return info, nil
}

// List implements Backend; unsupported.
func (w *WorkerClient) List(context.Context, ListOptions) (ListResponse, error) {
	return ListResponse{}, w.cannot("list its sandboxes")
}

// Delete implements Backend. A sync in the background is ended first: behind the
// delete it would store the workspace again.
func (w *WorkerClient) Delete(ctx context.Context, id string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	if err := w.syncs.drop(ctx, id); err != nil {
		return w.failure(ctx, "is busy with a sync", err)
	}
	if err := w.remove(ctx, id); err != nil {
		return err
	}
	if err := w.records.DeleteRecord(context.WithoutCancel(ctx), id); err != nil {
		return Errorf(CodeInternal, "the sandbox is deleted, its record is not; delete it again").WithCause(err)
	}
	return nil
}

// Wake implements Backend. On a running sandbox the worker puts the stored files
// back over what is there. A snapshot cannot be chosen.
func (w *WorkerClient) Wake(ctx context.Context, id string, req WakeRequest) (WakeResponse, error) {
	if req.Snapshot != "" {
		return WakeResponse{}, w.cannot("restore a snapshot: it has none")
	}
	reply, err := w.wake(ctx, id, req)
	if err != nil {
		return reply, err
	}
	r, _, err := w.record(ctx, id)
	if err != nil {
		return reply, err
	}
	r.SandboxID, r.Status, r.LastActiveAt = id, StatusRunning, time.Now().UTC()
	w.remember(ctx, r)
	return reply, nil
}

// Hibernate implements Backend; unsupported.
func (w *WorkerClient) Hibernate(context.Context, string, HibernateRequest) (HibernateResponse, error) {
	return HibernateResponse{}, w.cannot("put a sandbox to sleep: it does so by itself")
}

// Message implements Backend.
func (w *WorkerClient) Message(ctx context.Context, id string, req MessageRequest) (MessageResponse, error) {
	reply, err := w.message(ctx, id, req)
	if err != nil {
		return reply, err
	}
	if reply.Response == "" && len(reply.Parts) == 0 && reply.Error == "" {
		e := Errorf(CodeOpenCodeFailed, "OpenCode gave no answer; %s does not say why: check the session, the model and the agent", w.who)
		e.SessionID = reply.SessionID
		return reply, e
	}
	// Only what has a record: a delete may have come in between.
	if r, known, err := w.record(ctx, id); err == nil && known {
		r.Status, r.LastActiveAt = StatusRunning, time.Now().UTC()
		w.remember(ctx, r)
	}
	return reply, nil
}

// Sync implements Backend.
func (w *WorkerClient) Sync(ctx context.Context, id string) (SyncResponse, error) {
	return w.sync(ctx, id)
}

// Snapshots implements Backend; unsupported.
func (w *WorkerClient) Snapshots(context.Context, string) ([]Snapshot, error) {
	return nil, w.cannot("list snapshots: it has none")
}

// Logs implements Backend; unsupported.
func (w *WorkerClient) Logs(context.Context, string, int) (LogsResponse, error) {
	return LogsResponse{}, w.cannot("show a sandbox's logs")
}

// Exec implements Backend; unsupported.
func (w *WorkerClient) Exec(context.Context, string, ExecRequest) (ExecResponse, error) {
	return ExecResponse{}, w.cannot("run a command")
}

// Stats implements Backend; unsupported.
func (w *WorkerClient) Stats(context.Context, string) (Stats, error) {
	return Stats{}, w.cannot("say what a sandbox uses")
}

// ReadFile implements Backend; unsupported.
func (w *WorkerClient) ReadFile(context.Context, string, string) (*File, error) {
	return nil, w.cannot("read a file")
}

// WriteFile implements Backend; unsupported.
func (w *WorkerClient) WriteFile(context.Context, string, string, fs.FileMode, io.Reader, int64) error {
	return w.cannot("write a file")
}

// DeleteFile implements Backend; unsupported.
func (w *WorkerClient) DeleteFile(context.Context, string, string) error {
	return w.cannot("delete a file")
}

// ListFiles implements Backend; unsupported.
func (w *WorkerClient) ListFiles(context.Context, string, string) (FileListing, error) {
	return FileListing{}, w.cannot("list a folder")
}

// UI implements Backend; unsupported.
func (w *WorkerClient) UI(context.Context, string, string) (UIResponse, error) {
	return UIResponse{}, w.cannot("open OpenCode's web UI")
}

// EndUI implements Backend; unsupported. Nothing is sent: the worker would take it
// for the deletion of the stored workspace.
func (w *WorkerClient) EndUI(context.Context, string, string) error {
	return w.cannot("open OpenCode's web UI")
}

// OpenCode implements Backend.
func (w *WorkerClient) OpenCode(id string) (http.RoundTripper, string, error) {
	to, base, err := w.openCode(id)
	if err != nil {
		return nil, "", err
	}
	return &workerTransport{to: to, id: id, worker: w}, base, nil
}

// Close implements Backend.
func (w *WorkerClient) Close(ctx context.Context) error {
	err := w.syncs.close(ctx)
	w.closeIdle()
	if err != nil {
		return Errorf(CodeDeadline, "syncs in the background were ended before they were done").WithCause(err)
	}
	return nil
}

// workerTransport is a way to OpenCode through the worker.
type workerTransport struct {
	to     *openCodeTransport
	id     string
	worker *WorkerClient
}

// RoundTrip implements http.RoundTripper; its errors are *Error.
func (t *workerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	// The worker's runtime reads methods without regard to case.
	if strings.EqualFold(req.Method, http.MethodDelete) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, t.worker.cannot("pass on a DELETE: it would delete the stored workspace")
	}
	resp, err := t.to.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode <= 399 && resp.Header.Get("Location") != "":
		_ = resp.Body.Close()
		return nil, t.worker.cannot("show OpenCode's pages: it redirects them out of the sandbox")
	case resp.StatusCode >= 200 && resp.StatusCode <= 299 && t.isMessage(req):
		resp.Body = &messageBody{ReadCloser: resp.Body, done: sync.OnceFunc(func() { t.worker.syncs.begin(t.id) })}
	}
	return resp, nil
}

// isMessage says whether a request waits for a turn, or runs something like one.
func (t *workerTransport) isMessage(req *http.Request) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(req.URL.EscapedPath(), t.to.prefix), "/session/")
	_, below, _ := strings.Cut(rest, "/")
	return ok && req.Method == http.MethodPost && (below == "message" || below == "command" || below == "shell")
}

// messageBody tells when an answer is over, however it ends.
type messageBody struct {
	io.ReadCloser
	done func()
}

// Close implements io.Closer.
func (b *messageBody) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

// withoutUser returns an address without the credentials in it.
func withoutUser(address string) string {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return address
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	host := rest[:end]
	return scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + rest[end:]
}
