package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// proxy carries a request to OpenCode. The path goes on as it came: it is cut
// from the request line, never decoded and encoded again.
func (a *API) proxy(c echo.Context) error {
	r, id := c.Request(), c.Param("id")
	prefix := "/sandbox/" + id + "/opencode"
	path, ok := strings.CutPrefix(rawPath(r), prefix)
	if !ok {
		// An id that is written with percent-encoding is not an id of the contract.
		return sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	active := !passive(r.Method, path)
	err := a.forward(c, id, prefix, path, active)
	if sandbox.HasCode(err, sandbox.CodeOpenCodeDown) {
		// The run may have ended without the engine's event having come yet. A
		// request that has no body can be sent again to the next run.
		if a.Manager.Verify(r.Context(), id) && r.ContentLength == 0 {
			err = a.forward(c, id, prefix, path, active)
		}
	}
	if errors.Is(err, proxy.ErrClientGone) {
		return nil
	}
	return err
}

func (a *API) forward(c echo.Context, id, prefix, path string, active bool) error {
	h, err := a.Manager.Use(c.Request().Context(), id, active)
	if err != nil {
		return err
	}
	done, cancel := context.WithCancelCause(h.Life)
	defer cancel(nil)
	if isStream(c.Request(), path) {
		defer context.AfterFunc(a.streams, func() { cancel(context.Cause(a.streams)) })()
	}
	return a.Proxy.Serve(c.Response(), c.Request(), proxy.Request{
		OpenCodeURL: h.Link.OpenCodeURL, Password: h.Password, Path: path, Prefix: prefix, Done: done,
	})
}

// passive says whether a request is neither activity nor, later, a reason to
// wake: health probes and event subscriptions.
func passive(method, path string) bool {
	if method != http.MethodGet && method != http.MethodHead {
		return false
	}
	return path == "/global/health" || path == "/api/health" || eventPath(path)
}

// eventPath says whether OpenCode answers a path with an event stream.
func eventPath(path string) bool {
	switch path {
	case "/event", "/global/event", "/api/event":
		return true
	}
	return strings.HasPrefix(path, "/api/session/") && strings.HasSuffix(path, "/event")
}

// isStream says whether a request lasts until somebody ends it, so that a drain
// must.
func isStream(r *http.Request, path string) bool {
	return r.Header.Get("Upgrade") != "" || eventPath(path) ||
		strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}
