package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/credential"
)

// credentialRoutes are the routes of model providers' credentials. They are the
// caller's own, whoever that is.
func (a *API) credentialRoutes(g *echo.Group) {
	g.GET("", a.listProviders)
	g.GET("/configured", a.configuredProviders)
	g.GET("/default", a.defaultProvider)
	g.POST("/:id/configure", a.configureProvider)
	g.POST("/:id/set-default", a.setDefaultProvider)
	g.DELETE("/:id", a.deleteProvider)
}

// providerBody is a provider on the wire.
type providerBody struct {
	ID           string              `json:"id"`
	Name         string              `json:"name"`
	AuthType     credential.AuthType `json:"authType"`
	APIKeyEnvVar string              `json:"apiKeyEnvVar,omitempty"`
	IsConfigured bool                `json:"isConfigured"`
	IsDefault    bool                `json:"isDefault"`
	DefaultModel string              `json:"defaultModel,omitempty"`
	Models       []modelBody         `json:"models"`
}

type modelBody struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	ReleaseDate string     `json:"releaseDate,omitempty"`
	Attachment  bool       `json:"attachment"`
	Reasoning   bool       `json:"reasoning"`
	ToolCall    bool       `json:"toolCall"`
	Limit       modelLimit `json:"limit"`
	Cost        *modelCost `json:"cost,omitempty"`
}

// modelLimit is in tokens; 0 is unknown.
type modelLimit struct {
	Context int64 `json:"context"`
	Output  int64 `json:"output"`
}

// modelCost is in dollars a million tokens.
type modelCost struct {
	Input  *float64 `json:"input"`
	Output *float64 `json:"output"`
}

func providerOf(p credential.Provider) providerBody {
	body := providerBody{
		ID: p.ID, Name: p.Name, AuthType: p.AuthType, APIKeyEnvVar: p.KeyEnv, DefaultModel: p.DefaultModel,
		IsConfigured: p.Configured, IsDefault: p.Default, Models: make([]modelBody, len(p.Models)),
	}
	for i, m := range p.Models {
		body.Models[i] = modelBody{
			ID: m.ID, Name: m.Name, ReleaseDate: m.ReleaseDate, Attachment: m.Attachment, Reasoning: m.Reasoning, ToolCall: m.ToolCall,
			Limit: modelLimit{Context: m.Context, Output: m.Output},
		}
		if m.InputCost != nil || m.OutputCost != nil {
			body.Models[i].Cost = &modelCost{Input: m.InputCost, Output: m.OutputCost}
		}
	}
	return body
}

func providersOf(list []credential.Provider) []providerBody {
	bodies := make([]providerBody, len(list))
	for i, p := range list {
		bodies[i] = providerOf(p)
	}
	return bodies
}

func (a *API) listProviders(c echo.Context) error {
	list, err := a.Credentials.List(c.Request().Context(), callerOf(c).ID, c.QueryParam("popularOnly") == "true")
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"providers": providersOf(list), "totalCount": len(list)})
}

func (a *API) configuredProviders(c echo.Context) error {
	list, err := a.Credentials.Configured(c.Request().Context(), callerOf(c).ID)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"providers": providersOf(list)})
}

func (a *API) defaultProvider(c echo.Context) error {
	p, found, err := a.Credentials.Default(c.Request().Context(), callerOf(c).ID)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	if !found {
		return c.JSON(http.StatusOK, map[string]any{"provider": nil, "message": "there is no default provider"})
	}
	return c.JSON(http.StatusOK, map[string]any{"provider": providerOf(p)})
}

func (a *API) configureProvider(c echo.Context) error {
	var body struct {
		APIKey string `json:"apiKey"`
	}
	if err := decode(c, &body); err != nil {
		return err
	}
	p, err := a.Credentials.Configure(c.Request().Context(), callerOf(c).ID, c.Param("id"), body.APIKey)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{
		"success": true, "message": p.Name + " is configured",
		"provider": map[string]any{"id": p.ID, "name": p.Name, "isConfigured": true},
	})
}

func (a *API) setDefaultProvider(c echo.Context) error {
	p, err := a.Credentials.SetDefault(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "message": p.Name + " is the default provider"})
}

func (a *API) deleteProvider(c echo.Context) error {
	p, err := a.Credentials.Delete(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "message": "the key of " + p.Name + " is deleted"})
}
