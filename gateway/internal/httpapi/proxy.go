package httpapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// proxy carries a request to OpenCode. The path goes on as it came: it is cut
// from the request line, never decoded and encoded again.
func (a *API) proxy(c echo.Context) error {
	r, id := c.Request(), c.Param("id")
	prefix := "/sandbox/" + id + "/opencode"
	path, ok := strings.CutPrefix(border.RawPath(r), prefix)
	if !ok {
		// An id that is written with percent-encoding is not an id of the contract.
		return sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	if a.ui != nil && r.Method == http.MethodGet && path == "/" && strings.Contains(r.Header.Get("Accept"), "text/html") {
		// A page under this path could not run; the API has nothing here.
		if _, err := a.Manager.Whose(id); err != nil {
			return err
		}
		a.ui.Point(c.Response(), id)
		return nil
	}
	err := a.carrier.Carry(c.Response(), r, proxy.Visit{SandboxID: id, Path: path, Prefix: prefix})
	if errors.Is(err, proxy.ErrClientGone) {
		return nil
	}
	return err
}
