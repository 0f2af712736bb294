package httpapi

import "github.com/labstack/echo/v4"

// configRoutes are the routes of a user's configuration of OpenCode.
func (a *API) configRoutes(*echo.Group) {}
