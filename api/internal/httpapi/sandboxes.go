package httpapi

import "github.com/labstack/echo/v4"

// sandboxRoutes are the routes of single sandboxes.
func (a *API) sandboxRoutes(*echo.Group) {}
