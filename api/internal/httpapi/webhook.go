package httpapi

import "github.com/labstack/echo/v4"

// webhookRoute is where the providers tell what happens.
func (a *API) webhookRoute(*echo.Echo) {}
