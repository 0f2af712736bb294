package httpapi

import "github.com/labstack/echo/v4"

// agentRoutes are the routes of tasks and teams.
func (a *API) agentRoutes(*echo.Group) {}
