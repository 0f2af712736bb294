package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// configRoutes are the routes of a user's configuration of OpenCode.
func (a *API) configRoutes(g *echo.Group) {
	g.GET("/config", a.owned(a.getConfig))
	g.GET("/settings", a.owned(a.getSettings))
	g.PUT("/settings", a.owned(a.putSettings))
	g.GET("/agents-md", a.owned(a.getAgentsMD))
	g.PUT("/agents-md", a.owned(a.putAgentsMD))
	g.GET("/files", a.owned(a.listConfigFiles))
	g.GET("/files/:type/:name", a.owned(a.getConfigFile))
	g.PUT("/files/:type/:name", a.owned(a.putConfigFile))
	g.DELETE("/files/:type/:name", a.owned(a.deleteConfigFile))
}

// owned hands a route the user whom :userId names, if the caller may act for
// that one.
func (a *API) owned(route func(c echo.Context, userID string) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		user, err := a.userNamed(c, c.Param("userId"))
		if err != nil {
			return err
		}
		return route(c, user.ID)
	}
}

// userNamed returns a user for whom the caller may act: the caller, and an
// admin's everybody. Any other is user_not_found, as is one that does not exist.
func (a *API) userNamed(c echo.Context, id string) (account.User, error) {
	caller := callerOf(c)
	if id == caller.ID {
		return caller, nil
	}
	err := account.ErrNotFound
	var user account.User
	if caller.Admin() {
		user, err = a.Accounts.User(c.Request().Context(), id)
	}
	if errors.Is(err, account.ErrNotFound) {
		return user, sandbox.Errorf(sandbox.CodeUserNotFound, "there is no such user")
	}
	return user, err //nolint:wrapcheck // the service says what it was doing
}

// configFileBody is a file of a user on the wire.
type configFileBody struct {
	Type      string       `json:"type"`
	Name      string       `json:"name"`
	Extension string       `json:"extension"`
	Content   string       `json:"content"`
	CreatedAt sandbox.Time `json:"createdAt"`
	UpdatedAt sandbox.Time `json:"updatedAt"`
}

func configFileOf(f credential.File) configFileBody {
	return configFileBody{
		Type: f.Type, Name: f.Name, Extension: f.Extension, Content: f.Content,
		CreatedAt: sandbox.At(f.CreatedAt), UpdatedAt: sandbox.At(f.UpdatedAt),
	}
}

func (a *API) configFiles(c echo.Context, userID string) ([]configFileBody, error) {
	files, err := a.Credentials.Files(c.Request().Context(), userID)
	bodies := make([]configFileBody, len(files))
	for i, f := range files {
		bodies[i] = configFileOf(f)
	}
	return bodies, err //nolint:wrapcheck // the service says what it was doing
}

func (a *API) getConfig(c echo.Context, userID string) error {
	config, err := a.Credentials.OpenCode(c.Request().Context(), userID)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	files, err := a.configFiles(c, userID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{
		"settings": json.RawMessage(config.Settings), "agents_md": config.AgentsMD, "files": files,
	})
}

func (a *API) getSettings(c echo.Context, userID string) error {
	settings, err := a.Credentials.Settings(c.Request().Context(), userID)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"settings": settings})
}

func (a *API) putSettings(c echo.Context, userID string) error {
	var body struct {
		Settings json.RawMessage `json:"settings"`
	}
	if err := decode(c, &body); err != nil {
		return err
	}
	if body.Settings == nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "settings is missing: send {\"settings\":{…}}")
	}
	settings, err := a.Credentials.SaveSettings(c.Request().Context(), userID, body.Settings)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"settings": settings})
}

func (a *API) getAgentsMD(c echo.Context, userID string) error {
	config, err := a.Credentials.OpenCode(c.Request().Context(), userID)
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]string{"content": config.AgentsMD})
}

func (a *API) putAgentsMD(c echo.Context, userID string) error {
	var body struct {
		Content *string `json:"content"`
	}
	if err := decode(c, &body); err != nil {
		return err
	}
	if body.Content == nil {
		return errNoContent
	}
	if err := a.Credentials.SaveAgentsMD(c.Request().Context(), userID, *body.Content); err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]string{"content": *body.Content})
}

var errNoContent = sandbox.Errorf(sandbox.CodeInvalidRequest, "content is missing: send {\"content\":\"…\"}")

func (a *API) listConfigFiles(c echo.Context, userID string) error {
	kind := c.QueryParam("type")
	if err := sandbox.CheckChoice("type", kind, guest.FileTypes()); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	files, err := a.configFiles(c, userID)
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f configFileBody) bool { return kind != "" && f.Type != kind })
	return c.JSON(http.StatusOK, map[string]any{"files": files})
}

func (a *API) getConfigFile(c echo.Context, userID string) error {
	file, err := a.Credentials.File(c.Request().Context(), userID, c.Param("type"), c.Param("name"))
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, configFileOf(file))
}

func (a *API) putConfigFile(c echo.Context, userID string) error {
	var body struct {
		Content   *string `json:"content"`
		Extension string  `json:"extension"`
	}
	if err := decode(c, &body); err != nil {
		return err
	}
	if body.Content == nil {
		return errNoContent
	}
	file, err := a.Credentials.SaveFile(c.Request().Context(), credential.File{
		UserID: userID, Type: c.Param("type"), Name: c.Param("name"), Extension: body.Extension, Content: *body.Content,
	})
	if err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{
		"success": true, "type": file.Type, "name": file.Name, "extension": file.Extension, "content": file.Content,
		"message": "the " + file.Type + " " + file.Name + " is saved",
	})
}

func (a *API) deleteConfigFile(c echo.Context, userID string) error {
	kind, name := c.Param("type"), c.Param("name")
	if err := a.Credentials.DeleteFile(c.Request().Context(), userID, kind, name); err != nil {
		return err //nolint:wrapcheck // the service says what it was doing
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "message": "the " + kind + " " + name + " is deleted"})
}
