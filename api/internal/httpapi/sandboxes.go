package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/sandboxes"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// sandboxRoutes are the routes of single sandboxes.
func (a *API) sandboxRoutes(g *echo.Group) {
	g.GET("", a.listSandboxes)
	g.POST("", a.createSandbox)
	g.GET("/:id", a.getSandbox)
	g.DELETE("/:id", a.deleteSandbox)
	for name, route := range map[string]struct {
		act  func(s *sandboxes.Service, ctx context.Context, userID, id string) (task.Sandbox, error)
		done string
	}{
		"start":   {(*sandboxes.Service).Start, "Sandbox started"},
		"wake":    {(*sandboxes.Service).Start, "Sandbox woken"},
		"unpause": {(*sandboxes.Service).Start, "Sandbox unpaused"},
		"stop":    {(*sandboxes.Service).Stop, "Sandbox stopped"},
		"pause":   {(*sandboxes.Service).Pause, "Sandbox paused"},
		"restart": {(*sandboxes.Service).Restart, "Sandbox restarted"},
	} {
		g.POST("/:id/"+name, func(c echo.Context) error {
			row, err := route.act(a.Sandboxes, c.Request().Context(), callerOf(c).ID, c.Param("id"))
			if err != nil {
				return err
			}
			message := route.done
			if row.Status == task.SandboxStarting {
				message = "Sandbox is starting"
			}
			return c.JSON(http.StatusOK, map[string]any{"sandbox": sandboxOf(row), "message": message})
		})
	}
	g.GET("/:id/status", a.sandboxStatus)
	g.GET("/:id/logs", a.sandboxLogs)
	g.GET("/:id/stats", a.sandboxStats)
	g.GET("/:id/ui", a.openUI)
	g.POST("/:id/sync", a.syncSandbox)
	g.POST("/:id/exec", a.execInSandbox)
	for _, path := range []string{"/:id/files", "/:id/files/*"} {
		g.GET(path, a.readFile)
		g.PUT(path, a.writeFile)
		g.DELETE(path, a.deleteFile)
	}
	for _, path := range []string{"/:id/opencode", "/:id/opencode/*"} {
		g.Any(path, a.proxy)
		g.Match([]string{"COPY", "LOCK", "MKCOL", "MOVE", "PURGE", "SEARCH", "UNLOCK"}, path, a.proxy)
	}
}

// sandboxBody is a sandbox on the wire.
type sandboxBody struct {
	ID                string             `json:"id"`
	UserID            string             `json:"userId"`
	Name              string             `json:"name"`
	Slug              string             `json:"slug"`
	Description       string             `json:"description,omitempty"`
	Provider          string             `json:"provider"`
	RepoName          string             `json:"repoName"`
	GithubURL         string             `json:"githubUrl,omitempty"`
	ResourceTierID    string             `json:"resourceTierId,omitempty"`
	FlavorID          string             `json:"flavorId,omitempty"`
	AddonIDs          json.RawMessage    `json:"addonIds"`
	ContainerID       string             `json:"containerId,omitempty"`
	ContainerName     string             `json:"containerName,omitempty"`
	Status            task.SandboxStatus `json:"status"`
	ErrorMessage      string             `json:"errorMessage,omitempty"`
	OpenCodeURL       string             `json:"opencodeUrl"`
	URLs              sandboxURLs        `json:"urls"`
	CreatedAt         sandbox.Time       `json:"createdAt"`
	UpdatedAt         sandbox.Time       `json:"updatedAt"`
	LastAccessedAt    *sandbox.Time      `json:"lastAccessedAt,omitempty"`
	StartedAt         *sandbox.Time      `json:"startedAt,omitempty"`
	Tier              string             `json:"tier,omitempty"`
	WorkspaceSyncedAt *sandbox.Time      `json:"workspaceSyncedAt,omitempty"`
	Region            string             `json:"region,omitempty"`
}

type sandboxURLs struct {
	OpenCode string `json:"opencode"`
}

func sandboxOf(s task.Sandbox) sandboxBody {
	address := sandboxesRoot + "/" + s.ID + "/opencode"
	addons := json.RawMessage(s.AddonIDs)
	if !json.Valid(addons) {
		addons = json.RawMessage("[]")
	}
	return sandboxBody{
		ID: s.ID, UserID: s.UserID, Name: s.Name, Slug: s.Slug, Description: s.Description, Provider: s.Provider,
		RepoName: s.RepoName, GithubURL: s.GithubURL, ResourceTierID: s.ResourceTierID, FlavorID: s.FlavorID, AddonIDs: addons,
		ContainerID: s.ContainerID, ContainerName: s.ContainerName, Status: s.Status, ErrorMessage: s.ErrorMessage,
		OpenCodeURL: address, URLs: sandboxURLs{address}, CreatedAt: sandbox.At(s.CreatedAt), UpdatedAt: sandbox.At(s.UpdatedAt),
		LastAccessedAt: timeOf(s.LastActiveAt), StartedAt: timeOf(s.StartedAt), Tier: s.Tier,
		WorkspaceSyncedAt: timeOf(s.WorkspaceSyncedAt), Region: s.Region,
	}
}

// timeOf is a time on the wire, and nil of nil.
func timeOf(t *time.Time) *sandbox.Time {
	if t == nil {
		return nil
	}
	at := sandbox.At(*t)
	return &at
}

// sandboxStatuses are what a list can be restricted to.
func sandboxStatuses() []task.SandboxStatus {
	return []task.SandboxStatus{
		task.SandboxCreated, task.SandboxStarting, task.SandboxRunning, task.SandboxStopping, task.SandboxStopped,
		task.SandboxSleeping, task.SandboxError,
	}
}

func (a *API) listSandboxes(c echo.Context) error {
	page, err := pageOf(c)
	if err != nil {
		return err
	}
	filter := task.SandboxFilter{UserID: callerOf(c).ID, Page: page}
	if asked := c.QueryParam("status"); asked != "" {
		for name := range strings.SplitSeq(asked, ",") {
			status := task.SandboxStatus(strings.TrimSpace(name))
			if !slices.Contains(sandboxStatuses(), status) {
				return sandbox.Errorf(sandbox.CodeInvalidRequest, "status must be a list, with commas, of: %v", sandboxStatuses())
			}
			if !slices.Contains(filter.Statuses, status) {
				filter.Statuses = append(filter.Statuses, status)
			}
		}
	}
	rows, count, err := a.Sandboxes.List(c.Request().Context(), filter)
	if err != nil {
		return err
	}
	list := make([]sandboxBody, 0, len(rows))
	for _, row := range rows {
		list = append(list, sandboxOf(row))
	}
	return c.JSON(http.StatusOK, map[string]any{"sandboxes": list, "count": count})
}

func (a *API) createSandbox(c echo.Context) error {
	var req struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		GithubURL   string `json:"githubUrl" example:"\"https://github.com/octocat/Hello-World.git\""`
		GitBranch   string `json:"gitBranch"`
		UserID      string `json:"userId"`
		Provider    string `json:"provider"`
		AutoStart   *bool  `json:"autoStart"`
	}
	if err := decode(c, &req); err != nil {
		return err
	}
	owner := callerOf(c)
	if req.UserID != "" {
		var err error
		if owner, err = a.userNamed(c, req.UserID); err != nil {
			return err
		}
	}
	row, err := a.Sandboxes.Create(c.Request().Context(), owner.ID, sandboxes.NewSandbox{
		Name: req.Name, Description: req.Description, GithubURL: strings.TrimSpace(req.GithubURL), GitBranch: strings.TrimSpace(req.GitBranch),
		Provider: req.Provider, Later: req.AutoStart != nil && !*req.AutoStart,
	})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, map[string]any{"sandbox": sandboxOf(row), "repository": nil})
}

func (a *API) getSandbox(c echo.Context) error {
	row, err := a.Sandboxes.Get(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"sandbox": sandboxOf(row), "repository": nil, "config": nil})
}

func (a *API) sandboxStatus(c echo.Context) error {
	row, err := a.Sandboxes.Get(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"status": row.Status})
}

func (a *API) deleteSandbox(c echo.Context) error {
	id := c.Param("id")
	if err := a.Sandboxes.Delete(c.Request().Context(), callerOf(c).ID, id); err != nil {
		return err
	}
	a.streams.deleted(id)
	return c.JSON(http.StatusOK, map[string]any{"success": true, "message": "Sandbox deleted"})
}

// The lines of a sandbox's logs that can be asked for.
const (
	defaultTail = 100
	maxTail     = 5000
)

func (a *API) sandboxLogs(c echo.Context) error {
	tail := defaultTail
	if text := c.QueryParam("tail"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxTail {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "tail must be a number of lines from 1 to %d", maxTail)
		}
		tail = n
	}
	logs, err := a.Sandboxes.Logs(c.Request().Context(), callerOf(c).ID, c.Param("id"), tail)
	if err != nil {
		return err
	}
	logs.Tail = tail
	return c.JSON(http.StatusOK, logs)
}

func (a *API) sandboxStats(c echo.Context) error {
	stats, err := a.Sandboxes.Stats(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, sandbox.StatsResponse{Stats: stats})
}

// openUI gives out a way into a sandbox's web UI, which is as good as a password
// until it was used.
func (a *API) openUI(c echo.Context) error {
	ctx, who := c.Request().Context(), admitted(c)
	reply, err := a.Sandboxes.UI(ctx, who.user.ID, c.Param("id"), who.sessionID)
	if err != nil {
		return err
	}
	// Who signed out meanwhile may have been told of before the way was there.
	if lost, err := recheck(ctx, who, held{}); lost != nil || err != nil {
		return cmp.Or(lost, err)
	}
	return c.JSON(http.StatusOK, reply)
}

func (a *API) syncSandbox(c echo.Context) error {
	reply, err := a.Sandboxes.Sync(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, reply)
}

func (a *API) execInSandbox(c echo.Context) error {
	var req sandbox.ExecRequest
	if err := decode(c, &req); err != nil {
		return err
	}
	reply, err := a.Sandboxes.Exec(c.Request().Context(), callerOf(c).ID, c.Param("id"), req)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, reply)
}
