package httpapi

import "github.com/labstack/echo/v4"

// templateRoutes are the routes of templates.
func (a *API) templateRoutes(*echo.Group) {}
