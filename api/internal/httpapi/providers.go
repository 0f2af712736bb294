package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// providerRoutes tell where sandboxes can live.
func (a *API) providerRoutes(agents *echo.Group) {
	agents.GET("/providers", a.providers)
}

// backendBody is a provider on the wire.
type backendBody struct {
	Available   bool          `json:"available"`
	Description string        `json:"description"`
	Since       *sandbox.Time `json:"since,omitempty"`
	Reason      string        `json:"reason,omitempty"`
}

func (a *API) providers(c echo.Context) error {
	body := map[string]backendBody{}
	for name, s := range a.Providers.States() {
		b := backendBody{Available: s.Available, Description: s.Description, Reason: s.Reason}
		if !s.Configured {
			b.Reason = "it is not configured"
		} else {
			since := sandbox.At(s.Since)
			b.Since = &since
		}
		body[name] = b
	}
	return c.JSON(http.StatusOK, body)
}
