package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxExecOutput caps each of a command's outputs, in bytes.
const maxExecOutput = 4 << 20

func (a *API) exec(c echo.Context) error {
	var req sandbox.ExecRequest
	if err := decode(c, maxSmallBody, false, &req); err != nil {
		return err
	}
	if len(req.Command) == 0 || req.Command[0] == "" {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, `command must be a list with a program and its arguments, such as ["git","status"]`)
	}
	timeout := time.Duration(req.TimeoutMs) * time.Millisecond
	if timeout < 0 || timeout > a.settings.ExecTimeout {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "timeoutMs must be from 0 to %d (EXEC_TIMEOUT)", a.settings.ExecTimeout.Milliseconds())
	}
	if timeout == 0 {
		timeout = a.settings.ExecTimeout
	}
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), true)
	if err != nil {
		return err
	}
	ctx, cancel := a.within(c, h, timeout+10*time.Second)
	defer cancel()
	guestReq := guest.ExecRequest{
		Command: req.Command, WorkingDir: req.WorkingDir, Env: req.Env,
		TimeoutMs: timeout.Milliseconds(), MaxOutput: maxExecOutput,
	}
	if strings.Contains(c.Request().Header.Get("Accept"), "text/event-stream") {
		return a.execStream(ctx, c, h, guestReq)
	}
	var stdout, stderr strings.Builder
	var resp sandbox.ExecResponse
	err = h.Guest.Exec(ctx, guestReq, func(e guest.ExecEvent) error {
		switch e.Type {
		case "stdout":
			stdout.Write(e.Data)
		case "stderr":
			stderr.Write(e.Data)
		case "exit":
			resp.ExitCode, resp.Truncated, resp.TimedOut = e.ExitCode, e.Truncated, e.TimedOut
			stderr.WriteString(e.Error)
		}
		return nil
	})
	if err != nil {
		return a.explainGuest(ctx, h, err)
	}
	resp.Stdout, resp.Stderr = strings.ToValidUTF8(stdout.String(), "�"), strings.ToValidUTF8(stderr.String(), "�")
	return c.JSON(http.StatusOK, resp)
}

// execStream sends a command's output as it comes: events stdout and stderr
// with {"data"}, at last exit with {"exitCode","truncated","timedOut"}.
func (a *API) execStream(ctx context.Context, c echo.Context, h lifecycle.Handle, req guest.ExecRequest) error {
	w := c.Response()
	send := func(event string, data any) error {
		raw, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encoding an event: %w", err)
		}
		if !w.Committed {
			w.Header().Set(echo.HeaderContentType, "text/event-stream")
			w.WriteHeader(http.StatusOK)
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, raw); err != nil {
			return fmt.Errorf("sending an event: %w", err)
		}
		w.Flush()
		return nil
	}
	err := h.Guest.Exec(ctx, req, func(e guest.ExecEvent) error {
		if e.Type == "exit" {
			return send("exit", map[string]any{
				"exitCode": e.ExitCode, "truncated": e.Truncated, "timedOut": e.TimedOut, "error": e.Error,
			})
		}
		return send(e.Type, map[string]string{"data": strings.ToValidUTF8(string(e.Data), "�")})
	})
	if err == nil {
		return nil
	}
	err = a.explainGuest(ctx, h, err)
	if w.Committed && c.Request().Context().Err() == nil {
		e := a.explain(err)
		return send("error", sandbox.ErrorResponse{Error: e.Message, Code: e.Code})
	}
	return err
}

// within is the request's context, ended with the sandbox, the drain, or the limit.
func (a *API) within(c echo.Context, h lifecycle.Handle, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	stopLife := context.AfterFunc(h.Life, func() { cancel(context.Cause(h.Life)) })
	stopTurns := context.AfterFunc(a.turnsCtx, func() { cancel(context.Cause(a.turnsCtx)) })
	ctx, cancelLimit := context.WithTimeout(ctx, limit)
	return ctx, func() {
		cancelLimit()
		stopLife()
		stopTurns()
		cancel(nil)
	}
}

// explainGuest says why a call to sandboxd failed: because the sandbox ended,
// if it did.
func (a *API) explainGuest(ctx context.Context, h lifecycle.Handle, err error) error {
	if h.Life.Err() != nil {
		return context.Cause(h.Life) //nolint:contextcheck // why the sandbox ended, not the request
	}
	if sandbox.HasCode(err, sandbox.CodeGuestFailed) {
		a.Manager.Verify(context.WithoutCancel(ctx), h.SandboxID)
	}
	return err
}

// filePath is the part of the path behind /files, decoded once, relative to the home.
func filePath(c echo.Context) (string, error) {
	path, ok := strings.CutPrefix(rawPath(c.Request()), "/sandbox/"+c.Param("id")+"/files")
	if !ok {
		return "", sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	decoded, err := url.PathUnescape(strings.Trim(path, "/"))
	if err != nil {
		return "", sandbox.Errorf(sandbox.CodeInvalidPath, "the path has a broken percent-encoding")
	}
	if decoded == "" {
		decoded = "."
	}
	return decoded, nil
}

// fileTimeout bounds moving one file.
const fileTimeout = 10 * time.Minute

func (a *API) readFile(c echo.Context) error {
	path, err := filePath(c)
	if err != nil {
		return err
	}
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), true)
	if err != nil {
		return err
	}
	ctx, cancel := a.within(c, h, fileTimeout)
	defer cancel()
	f, err := h.Guest.ReadFile(ctx, path)
	if err != nil {
		return a.explainGuest(ctx, h, err)
	}
	if f.Listing != nil {
		return c.JSON(http.StatusOK, listing(*f.Listing))
	}
	defer func() { _ = f.Body.Close() }()
	header := c.Response().Header()
	header.Set("Content-Security-Policy", "sandbox")
	header.Set("Content-Disposition", "attachment")
	if f.Size >= 0 {
		header.Set(echo.HeaderContentLength, strconv.FormatInt(f.Size, 10))
	}
	return c.Stream(http.StatusOK, echo.MIMEOctetStream, f.Body)
}

func listing(l guest.Listing) sandbox.FileListing {
	out := sandbox.FileListing{Entries: make([]sandbox.FileEntry, 0, len(l.Entries)), Truncated: l.Truncated}
	for _, e := range l.Entries {
		out.Entries = append(out.Entries, sandbox.FileEntry{
			Name: strings.ToValidUTF8(e.Name, "�"), Type: e.Type, Size: e.Size,
			Mode: fmt.Sprintf("%04o", e.Mode&0o7777), ModifiedAt: sandbox.At(e.ModifiedAt),
		})
	}
	return out
}

func (a *API) writeFile(c echo.Context) error {
	path, err := filePath(c)
	if err != nil {
		return err
	}
	r := c.Request()
	if r.ContentLength > a.settings.MaxUpload {
		return sandbox.Errorf(sandbox.CodeTooLarge, "a file may have at most %d bytes (MAX_UPLOAD)", a.settings.MaxUpload)
	}
	mode := fs.FileMode(0)
	if s := c.QueryParam("mode"); s != "" {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > 0o7777 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "mode must be octal, such as 0644")
		}
		mode = fs.FileMode(n)
	}
	h, err := a.Manager.Use(r.Context(), c.Param("id"), true)
	if err != nil {
		return err
	}
	ctx, cancel := a.within(c, h, fileTimeout)
	defer cancel()
	body := http.MaxBytesReader(c.Response(), r.Body, a.settings.MaxUpload)
	if err := h.Guest.WriteFile(ctx, path, mode, body, r.ContentLength); err != nil {
		return a.explainGuest(ctx, h, err)
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "path": path})
}

func (a *API) deleteFile(c echo.Context) error {
	path, err := filePath(c)
	if err != nil {
		return err
	}
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), true)
	if err != nil {
		return err
	}
	ctx, cancel := a.within(c, h, time.Minute)
	defer cancel()
	if err := h.Guest.DeleteFile(ctx, path); err != nil {
		return a.explainGuest(ctx, h, err)
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "path": path})
}

// The bounds of a log answer: lines asked for, and bytes when it is not followed.
const (
	defaultTail = 100
	maxTail     = 10_000
	maxLogBytes = 8 << 20
)

func (a *API) logs(c echo.Context) error {
	tail := defaultTail
	if s := c.QueryParam("tail"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxTail {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "tail must be a number of lines from 1 to %d", maxTail)
		}
		tail = n
	}
	follow := false
	if s := c.QueryParam("follow"); s != "" {
		var err error
		if follow, err = strconv.ParseBool(s); err != nil {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "follow must be true or false")
		}
	}
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	defer cancel(nil)
	defer context.AfterFunc(a.streams, func() { cancel(context.Cause(a.streams)) })()
	r, err := a.Manager.Logs(ctx, c.Param("id"), lifecycle.LogOptions{Tail: tail, Follow: follow})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if !follow {
		raw, err := io.ReadAll(io.LimitReader(r, maxLogBytes))
		if err != nil {
			return fmt.Errorf("reading the logs: %w", err)
		}
		return c.JSON(http.StatusOK, sandbox.LogsResponse{Logs: printable(string(raw)), Tail: tail})
	}
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/plain; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "sandbox")
	w.WriteHeader(http.StatusOK)
	w.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := io.WriteString(w, printable(string(buf[:n]))); err != nil {
				return nil // the client left
			}
			w.Flush()
		}
		if err != nil {
			return nil // the container or the drain ended the stream
		}
	}
}

// printable shows control characters instead of sending them: what a sandbox
// prints must not drive the terminal of who reads its logs.
func printable(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
