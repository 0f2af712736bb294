package httpapi

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// transferPause is how long a file on its way may stand still.
const transferPause = time.Minute

// filePath is the part of the path behind /files, decoded once and relative to
// the home folder, and whether it was written as a folder's.
func filePath(c echo.Context) (id, path string, folder bool, err error) {
	id = c.Param("id")
	raw, ok := strings.CutPrefix(border.RawPath(c.Request()), sandboxesRoot+"/"+id+"/files")
	if !ok {
		return id, "", false, sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	path, err = url.PathUnescape(strings.Trim(raw, "/"))
	if err != nil {
		return id, "", false, sandbox.Errorf(sandbox.CodeInvalidPath, "the path has a broken percent-encoding")
	}
	return id, path, path == "" || strings.HasSuffix(raw, "/"), nil
}

func (a *API) readFile(c echo.Context) error {
	id, path, folder, err := filePath(c)
	if err != nil {
		return err
	}
	kind := c.QueryParam("type")
	if err := sandbox.CheckChoice("type", kind, sandbox.EntryTypes()); err != nil {
		return err
	}
	ctx, release := a.holdSandbox(c, id, true)
	defer release()
	userID := callerOf(c).ID
	var file *sandbox.File
	if !folder {
		file, err = a.Sandboxes.ReadFile(ctx, userID, id, path)
		folder = sandbox.HasCode(err, sandbox.CodeInvalidRequest) // it may be one all the same
	}
	if folder {
		listing, listErr := a.Sandboxes.ListFiles(ctx, userID, id, path)
		if listErr == nil {
			return c.JSON(http.StatusOK, listing.Of(kind))
		}
		if err == nil {
			err = listErr
		}
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ended(ctx, c)
	default:
		return err
	}
	defer file.Close()
	h := c.Response().Header()
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Content-Disposition", "attachment")
	h.Set(echo.HeaderContentType, echo.MIMEOctetStream)
	h.Set(echo.HeaderContentLength, strconv.FormatInt(file.Size, 10))
	c.Response().WriteHeader(http.StatusOK)
	w := outgoing{http.NewResponseController(c.Response()), c.Response()}
	if _, err := io.Copy(w, file.Body); err != nil {
		a.Log.Debug("a file was not sent as a whole", "sandboxId", id, "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (a *API) writeFile(c echo.Context) error {
	id, path, folder, err := filePath(c)
	if err != nil {
		return err
	}
	r := c.Request()
	mode := fs.FileMode(0)
	if s := c.QueryParam("mode"); s != "" {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n == 0 || n > 0o777 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "mode must be octal permission bits from 0001 to 0777, such as 0644")
		}
		mode = fs.FileMode(n)
	}
	switch {
	case folder:
		return errNoFile()
	case r.ContentLength > maxProxyBody:
		return errBody()
	}
	ctx, release := a.holdSandbox(c, id, true)
	defer release()
	body := &incoming{
		ctx: ctx, control: http.NewResponseController(c.Response()), from: http.MaxBytesReader(c.Response(), r.Body, maxProxyBody),
	}
	defer body.leave()
	err = a.Sandboxes.WriteFile(ctx, callerOf(c).ID, id, path, mode, body, r.ContentLength)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ended(ctx, c)
	default:
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "path": path})
}

func (a *API) deleteFile(c echo.Context) error {
	id, path, _, err := filePath(c)
	if err != nil {
		return err
	}
	if path == "" {
		return errNoFile()
	}
	if err := a.Sandboxes.DeleteFile(c.Request().Context(), callerOf(c).ID, id, path); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "path": path})
}

func errNoFile() error {
	return sandbox.Errorf(sandbox.CodeInvalidPath, "the path names no file")
}

// outgoing is a file on its way to the client: each write may take transferPause,
// however long the whole takes.
type outgoing struct {
	control *http.ResponseController
	to      io.Writer
}

// Write writes.
func (o outgoing) Write(p []byte) (int, error) {
	_ = o.control.SetWriteDeadline(time.Now().Add(transferPause))
	return o.to.Write(p) //nolint:wrapcheck // the caller only cuts the connection
}

// incoming is a file on its way from the client: each read may take transferPause.
// Whoever sends it on may read until after the handler has left, when the
// connection has its next request.
type incoming struct {
	ctx     context.Context //nolint:containedctx // the request's, which this is a part of
	control *http.ResponseController
	from    io.Reader

	mu   sync.Mutex
	left bool
}

// Read reads. At the end there is no deadline any more: it would end the request.
func (i *incoming) Read(p []byte) (int, error) {
	if !i.deadline(time.Now().Add(transferPause)) {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := i.from.Read(p)
	if err != nil {
		i.deadline(time.Time{})
	}
	return n, err //nolint:wrapcheck // io.EOF must stay what it is
}

// deadline sets the deadline of reads, unless they are over.
func (i *incoming) deadline(at time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.left || i.ctx.Err() != nil {
		return false
	}
	_ = i.control.SetReadDeadline(at)
	if i.ctx.Err() != nil { // and whoever cuts it may have been faster
		_ = i.control.SetReadDeadline(time.Now())
	}
	return true
}

func (i *incoming) leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.left = true
}
