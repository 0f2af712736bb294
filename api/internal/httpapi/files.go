package httpapi

import (
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// transferPause is how long a file on its way may stand still.
const transferPause = time.Minute

// filePath is the part of the path behind /files, decoded once and relative to
// the home folder, and whether it was written as a folder's.
func filePath(c echo.Context) (id, path string, folder bool, err error) {
	id = c.Param("id")
	raw, ok := strings.CutPrefix(rawPath(c.Request()), sandboxesRoot+"/"+id+"/files")
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
			if listing.Entries == nil {
				listing.Entries = []sandbox.FileEntry{}
			}
			return c.JSON(http.StatusOK, listing)
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
	control := http.NewResponseController(c.Response())
	w := moving{deadline: control.SetWriteDeadline, on: c.Response()}
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
	control := http.NewResponseController(c.Response())
	body := moving{deadline: control.SetReadDeadline, from: http.MaxBytesReader(c.Response(), r.Body, maxProxyBody)}
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

// moving is the client's side of a file on its way: each step may take
// transferPause, however long the whole takes.
type moving struct {
	deadline func(time.Time) error
	from     io.Reader
	on       io.Writer
}

// Read reads, and lets the deadline be at the end: it would end the request.
func (m moving) Read(p []byte) (int, error) {
	_ = m.deadline(time.Now().Add(transferPause))
	n, err := m.from.Read(p)
	if err != nil {
		_ = m.deadline(time.Time{})
	}
	return n, err //nolint:wrapcheck // io.EOF must stay what it is
}

// Write writes.
func (m moving) Write(p []byte) (int, error) {
	_ = m.deadline(time.Now().Add(transferPause))
	return m.on.Write(p) //nolint:wrapcheck // the caller only cuts the connection
}
