package httpapi

import "github.com/labstack/echo/v4"

// credentialRoutes are the routes of model providers' credentials.
func (a *API) credentialRoutes(*echo.Group) {}
