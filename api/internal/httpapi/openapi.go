package httpapi

import (
	_ "embed"
	"net/http"

	"github.com/labstack/echo/v4"
)

// openapiYAML describes every route; a test compares it with them.
//
//go:embed openapi.yaml
var openapiYAML []byte

const openapiPath = "/openapi.yaml"

func (a *API) openapi(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/yaml", openapiYAML)
}
