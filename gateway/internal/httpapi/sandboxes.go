package httpapi

import (
	_ "embed"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

//go:embed openapi.yaml
var openapiYAML []byte

func (a *API) health(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"status": "ok", "timestamp": sandbox.At(time.Now())})
}

func (a *API) ready(c echo.Context) error {
	if a.streams.Err() != nil {
		return lifecycle.ErrClosing
	}
	if err := a.Manager.Ready(c.Request().Context()); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]string{"status": "ready"})
}

func (a *API) openapi(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/yaml", openapiYAML)
}

// defaults says whose keys every sandbox has, and none of them.
func (a *API) defaults(c echo.Context) error {
	return c.JSON(http.StatusOK, a.Manager.Defaults())
}

const (
	defaultPage = 50
	maxPage     = 100
)

func (a *API) list(c echo.Context) error {
	filter := lifecycle.Filter{
		UserID: c.QueryParam("userId"), Status: sandbox.Status(c.QueryParam("status")),
		Cursor: c.QueryParam("cursor"), Limit: defaultPage,
	}
	if s := c.QueryParam("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxPage {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "limit must be a number from 1 to %d", maxPage)
		}
		filter.Limit = n
	}
	switch filter.Status {
	case "", sandbox.StatusCreating, sandbox.StatusRunning, sandbox.StatusSleeping, sandbox.StatusStopped, sandbox.StatusError:
	default:
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "status must be one of creating, running, sleeping, stopped, error")
	}
	return c.JSON(http.StatusOK, a.Manager.List(filter))
}

func (a *API) create(c echo.Context) error {
	var req sandbox.CreateRequest
	if err := decode(c, maxConfigBody, false, &req); err != nil {
		return err
	}
	resp, err := a.Manager.Create(c.Request().Context(), req)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, resp)
}

func (a *API) get(c echo.Context) error {
	info, err := a.Manager.Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, info)
}

func (a *API) remove(c echo.Context) error {
	id := c.Param("id")
	if err := a.Manager.Delete(c.Request().Context(), id); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, sandbox.DeleteResponse{Success: true, Deleted: id})
}

func (a *API) wake(c echo.Context) error {
	var req sandbox.WakeRequest
	if err := decode(c, maxConfigBody, true, &req); err != nil {
		return err
	}
	resp, err := a.Manager.Wake(c.Request().Context(), c.Param("id"), req.Config, req.Snapshot)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, resp)
}

func (a *API) hibernate(c echo.Context) error {
	var req sandbox.HibernateRequest
	if err := decode(c, maxSmallBody, true, &req); err != nil {
		return err
	}
	resp, err := a.Manager.Hibernate(c.Request().Context(), c.Param("id"), req.Tier, req.Force)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, resp)
}

func (a *API) snapshots(c echo.Context) error {
	all, err := a.Manager.Snapshots(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	resp := sandbox.SnapshotsResponse{Snapshots: make([]sandbox.Snapshot, 0, len(all))}
	for _, s := range all {
		resp.Snapshots = append(resp.Snapshots, s.Wire())
	}
	return c.JSON(http.StatusOK, resp)
}

// sync ignores the body. Its errors have what the worker's callers look for too.
func (a *API) sync(c echo.Context) error {
	id := c.Param("id")
	synced, err := a.Manager.Sync(c.Request().Context(), id)
	if err != nil {
		c.Set(syncFailed, true)
		return err
	}
	return c.JSON(http.StatusOK, sandbox.SyncResponse{
		Success: true, SandboxID: id, SyncedFiles: synced.Files, SkippedFiles: synced.Skipped,
		TotalSize: synced.Bytes, Timestamp: sandbox.At(time.Now()),
	})
}

func (a *API) stats(c echo.Context) error {
	stats, err := a.Manager.Stats(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, sandbox.StatsResponse{Stats: stats})
}
