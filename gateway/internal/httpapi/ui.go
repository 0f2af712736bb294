package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// errNoUI is for a gateway whose sandboxes have no hosts.
var errNoUI = sandbox.Errorf(sandbox.CodeUnsupported, "this gateway serves no web UI: SANDBOX_DOMAIN is off")

// openUI gives out the way into a sandbox's web UI.
func (a *API) openUI(c echo.Context) error {
	if a.ui == nil {
		return errNoUI
	}
	url, expires, err := a.ui.Ticket(c.Param("id"), c.QueryParam("session"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, sandbox.UIResponse{URL: url, ExpiresAt: sandbox.At(expires)})
}

// closeUI ends what a session has opened.
func (a *API) closeUI(c echo.Context) error {
	if a.ui == nil {
		return errNoUI
	}
	if err := a.ui.End(c.Param("id"), c.QueryParam("session")); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true})
}
