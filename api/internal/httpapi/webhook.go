package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/webhook"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// webhookPath is where the providers tell what happens. It has the name of the
// first of them, and is for all.
const webhookPath = "/api/v2/cloudflare/webhook"

// maxNotice bounds the body of a webhook, in bytes.
const maxNotice = 256 << 10

// webhookRoute is where the providers tell what happens.
func (a *API) webhookRoute(e *echo.Echo) { e.POST(webhookPath, a.receive) }

// receive goes by the provider's token alone: there is no session.
func (a *API) receive(c echo.Context) (err error) {
	defer func() { a.events.told(err) }()
	token, shown := bearer(c.Request())
	provider, ok := a.Webhooks.Provider(token)
	if !shown || !ok {
		c.Response().Header().Set("Connection", "close") // the body is not read
		c.Response().Header().Set("WWW-Authenticate", `Bearer realm="agentpod webhooks"`)
		return sandbox.Errorf(sandbox.CodeUnauthorized, "this route wants the token of a provider as Authorization: Bearer TOKEN")
	}
	var notice webhook.Notice
	if err := decodeUpTo(c, &notice, maxNotice); err != nil {
		return err
	}
	sent, _ := http.ParseTime(c.Request().Header.Get("Date")) // a worker does not say it
	if err := a.Webhooks.Receive(c.Request().Context(), provider, sent, notice); err != nil {
		return err //nolint:wrapcheck // the receiver says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]bool{"success": true})
}
