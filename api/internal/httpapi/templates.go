package httpapi

import (
	"encoding/json"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/task"
)

// templateRoutes are the routes of templates.
func (a *API) templateRoutes(g *echo.Group) {
	g.GET("/templates", a.listTemplates)
	g.POST("/templates", a.createTemplate)
	g.PUT("/templates/:id", a.replaceTemplate)
	g.DELETE("/templates/:id", a.deleteTemplate)
}

// templateBody is a template on the wire.
type templateBody struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Description  string          `json:"description"`
	Icon         string          `json:"icon"`
	Category     string          `json:"category"`
	Prompt       string          `json:"prompt"`
	Placeholders json.RawMessage `json:"placeholders"`
	IsSystem     bool            `json:"isSystem"`
	UserID       *string         `json:"userId,omitempty"`
}

func templateOf(t task.Template) templateBody {
	return templateBody{
		ID: t.ID, Name: t.Name, Description: t.Description, Icon: t.Icon, Category: t.Category, Prompt: t.Prompt,
		Placeholders: json.RawMessage(t.Placeholders), IsSystem: t.UserID == nil, UserID: t.UserID,
	}
}

// listTemplates answers the whole list, which is short, unless a page is asked for.
func (a *API) listTemplates(c echo.Context) error {
	page, err := pageOf(c)
	if err != nil {
		return err
	}
	list, err := a.Templates.List(c.Request().Context(), callerOf(c).ID)
	if err != nil {
		return err //nolint:wrapcheck // the library says what it was doing
	}
	if c.QueryParam("limit") != "" || c.QueryParam("offset") != "" {
		list = list[min(page.Offset, len(list)):]
		list = list[:min(page.Limit, len(list))]
	}
	bodies := make([]templateBody, len(list))
	for i, t := range list {
		bodies[i] = templateOf(t)
	}
	return c.JSON(http.StatusOK, bodies)
}

func (a *API) createTemplate(c echo.Context) error {
	var draft task.Draft
	if err := decode(c, &draft); err != nil {
		return err
	}
	t, err := a.Templates.Create(c.Request().Context(), callerOf(c).ID, draft)
	if err != nil {
		return err //nolint:wrapcheck // the library says what it was doing
	}
	return c.JSON(http.StatusCreated, templateOf(t))
}

func (a *API) replaceTemplate(c echo.Context) error {
	var draft task.Draft
	if err := decode(c, &draft); err != nil {
		return err
	}
	t, err := a.Templates.Replace(c.Request().Context(), callerOf(c).ID, c.Param("id"), draft)
	if err != nil {
		return err //nolint:wrapcheck // the library says what it was doing
	}
	return c.JSON(http.StatusOK, templateOf(t))
}

func (a *API) deleteTemplate(c echo.Context) error {
	if err := a.Templates.Delete(c.Request().Context(), callerOf(c).ID, c.Param("id")); err != nil {
		return err //nolint:wrapcheck // the library says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "message": "the template was deleted"})
}
