package httpapi

import (
	"context"
	"errors"
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
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// within is the request's context, ended with the sandbox, the gateway, or the
// limit. A client that does not read is ended with it: a write to it would wait
// for ever.
func (a *API) within(c echo.Context, h lifecycle.Handle, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	stopLife := context.AfterFunc(h.Life, func() { cancel(context.Cause(h.Life)) })
	stopTurns := context.AfterFunc(a.turnsCtx, func() { cancel(context.Cause(a.turnsCtx)) })
	ctx, cancelLimit := context.WithTimeout(ctx, limit)
	stopWrites := endWrites(ctx, c)
	return ctx, func() {
		stopWrites()
		cancelLimit()
		stopLife()
		stopTurns()
		cancel(nil)
	}
}

// endWrites lets a write under way fail a moment after ctx has ended, which
// leaves time for an answer that says why.
func endWrites(ctx context.Context, c echo.Context) (stop func() bool) {
	control := http.NewResponseController(c.Response())
	return context.AfterFunc(ctx, func() { _ = control.SetWriteDeadline(time.Now().Add(time.Second)) })
}

// explainGuest says why a call to sandboxd failed: because the sandbox ended,
// if it did.
func (a *API) explainGuest(ctx context.Context, h lifecycle.Handle, err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "a file may have at most %d bytes (MAX_UPLOAD)", tooLarge.Limit)
	}
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
	path, ok := strings.CutPrefix(border.RawPath(c.Request()), "/sandbox/"+c.Param("id")+"/files")
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
	kind := c.QueryParam("type")
	if err := sandbox.CheckChoice("type", kind, sandbox.EntryTypes()); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), lifecycle.Looking)
	if err != nil {
		return err
	}
	defer h.Release()
	ctx, cancel := a.within(c, h, fileTimeout)
	defer cancel()
	f, err := h.Guest.ReadFile(ctx, path)
	if err != nil {
		return a.explainGuest(ctx, h, err)
	}
	if f.Listing != nil {
		return c.JSON(http.StatusOK, listing(*f.Listing).Of(kind))
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
		if err != nil || n == 0 || n > 0o777 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "mode must be octal permission bits from 0001 to 0777, such as 0644")
		}
		mode = fs.FileMode(n)
	}
	h, err := a.Manager.Use(r.Context(), c.Param("id"), lifecycle.Working)
	if err != nil {
		return err
	}
	defer h.Release()
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
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), lifecycle.Working)
	if err != nil {
		return err
	}
	defer h.Release()
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
	defer endWrites(ctx, c)()
	r, err := a.Manager.Logs(ctx, c.Param("id"), lifecycle.LogOptions{Tail: tail, Follow: follow})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if !follow {
		stop := context.AfterFunc(ctx, func() { _ = r.Close() })
		defer stop()
		raw, err := io.ReadAll(io.LimitReader(r, maxLogBytes))
		if err != nil {
			return fmt.Errorf("reading the logs: %w", err)
		}
		return c.JSON(http.StatusOK, sandbox.LogsResponse{Logs: printable.Escape(string(raw)), Tail: tail})
	}
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "text/plain; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "sandbox")
	w.WriteHeader(http.StatusOK)
	w.Flush()
	// It ends with the container, the drain, or a client that left: none is an error.
	_, _ = io.Copy(flushing{printable.NewWriter(w), w}, r)
	return nil
}

// flushing sends on each write at once.
type flushing struct {
	io.Writer
	flusher http.Flusher
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	f.flusher.Flush()
	return n, err
}
