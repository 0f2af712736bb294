package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// agentRoutes are the routes of tasks and teams.
func (a *API) agentRoutes(g *echo.Group) {
	g.POST("/task", a.runTask)
	g.POST("/task/stream", a.runTaskStreamed)
	g.GET("/task/:id", a.getTask)
	g.GET("/task/:id/stream", a.streamTask)
	g.POST("/task/:id/cancel", a.cancelTask)
	g.GET("/tasks", a.listTasks)
	g.POST("/team", a.runTeam)
	g.GET("/team/:id", a.getTeam)
}

// modelField is a model in a body: {"providerID":…,"modelID":…}, or the text
// "provider/model" that OpenCode's own settings have.
type modelField struct{ *sandbox.Model }

// UnmarshalJSON reads either form; null and "" are no model.
func (m *modelField) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) != nil {
		if json.Unmarshal(data, &m.Model) != nil {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, `model must be a string, such as "anthropic/claude-sonnet-4-5", or an object with providerID and modelID, each a string`)
		}
		return nil
	}
	if text == "" {
		return nil
	}
	provider, model, _ := strings.Cut(text, "/")
	m.Model = &sandbox.Model{ProviderID: provider, ModelID: model}
	return nil
}

// taskRequest is the body of a task.
type taskRequest struct {
	Message   string     `json:"message"`
	GitURL    string     `json:"gitUrl"`
	GitBranch string     `json:"gitBranch"`
	Model     modelField `json:"model"`
	SandboxID string     `json:"sandboxId"`
	Provider  string     `json:"provider"`
}

// launch begins the task of a request.
func (a *API) launch(c echo.Context) (task.Task, error) {
	var body taskRequest
	if err := decode(c, &body); err != nil {
		return task.Task{}, err
	}
	return a.Tasks.Launch(c.Request().Context(), task.Request{
		UserID: callerOf(c).ID, Message: body.Message, SandboxID: body.SandboxID, GitURL: strings.TrimSpace(body.GitURL), GitBranch: strings.TrimSpace(body.GitBranch),
		Model: body.Model.Model, Provider: body.Provider,
	})
}

// taskResult is the answer of a task that is over.
type taskResult struct {
	TaskID    string            `json:"taskId"`
	SandboxID string            `json:"sandboxId"`
	SessionID string            `json:"sessionId"`
	Response  string            `json:"response"`
	Parts     []json.RawMessage `json:"parts"`
}

// taskFailure is the answer of one that failed: an error that names the task.
type taskFailure struct {
	sandbox.ErrorResponse
	TaskID    string `json:"taskId"`
	SandboxID string `json:"sandboxId,omitempty"`
}

func (a *API) runTask(c echo.Context) error {
	t, err := a.launch(c)
	if err != nil {
		return err
	}
	ctx, release := a.hold(c, held{bounded: true})
	defer release()
	r, err := a.Tasks.Wait(ctx, t.UserID, t.ID)
	if ctx.Err() != nil {
		return ended(ctx, c)
	}
	if err != nil {
		return err
	}
	if r.Err != nil {
		return c.JSON(r.Err.Code.Status(), taskFailure{
			ErrorResponse: sandbox.ErrorResponse{Error: r.Err.Message, Code: r.Err.Code, SessionID: r.SessionID}, TaskID: r.TaskID, SandboxID: r.SandboxID,
		})
	}
	return c.JSON(http.StatusOK, taskResult{TaskID: r.TaskID, SandboxID: r.SandboxID, SessionID: r.SessionID, Response: r.Response, Parts: r.Parts})
}

func (a *API) runTaskStreamed(c echo.Context) error {
	t, err := a.launch(c)
	if err != nil {
		return err
	}
	return a.stream(c, t.ID, 0)
}

func (a *API) streamTask(c echo.Context) error {
	after := int64(0)
	if last := c.Request().Header.Get("Last-Event-ID"); last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "Last-Event-ID must be the id of an event of this stream")
		}
		after = n
	}
	return a.stream(c, c.Param("id"), after)
}

const (
	// keepaliveEvery is how often a quiet stream says that it is there.
	keepaliveEvery = 5 * time.Second
	// readerTime is how long a reader may take to accept an event.
	readerTime = 30 * time.Second
)

// stream sends a task's events after a number, until its end.
func (a *API) stream(c echo.Context, taskID string, after int64) error {
	userID := callerOf(c).ID
	if _, err := a.Tasks.Get(c.Request().Context(), userID, taskID); err != nil {
		return err
	}
	ctx, release := a.hold(c, held{})
	defer release()
	h := c.Response().Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	control := http.NewResponseController(c.Response())
	send := func(format string, args ...any) error {
		if err := context.Cause(ctx); err != nil { // which has set a deadline of its own
			return err
		}
		_ = control.SetWriteDeadline(time.Now().Add(readerTime))
		if _, err := fmt.Fprintf(c.Response(), format, args...); err != nil {
			return err
		}
		return control.Flush()
	}
	c.Response().WriteHeader(http.StatusOK)
	if err := send(""); err != nil {
		return err
	}
	err := a.Tasks.Follow(ctx, userID, taskID, after, keepaliveEvery,
		func(e task.Event) error { return send("id: %d\ndata: %s\n\n", e.Seq, e.Data) },
		func() error { return send("data: {\"type\":\"keepalive\"}\n\n") })
	if ctx.Err() != nil {
		return ended(ctx, c)
	}
	return err
}

// taskBody is a task on the wire.
type taskBody struct {
	ID            string          `json:"id"`
	UserID        string          `json:"userId"`
	SandboxID     *string         `json:"sandboxId"`
	Provider      string          `json:"provider"`
	Status        task.Status     `json:"status"`
	Message       string          `json:"message"`
	Response      *string         `json:"response"`
	GitURL        *string         `json:"gitUrl"`
	ModelProvider *string         `json:"modelProvider"`
	ModelID       *string         `json:"modelId"`
	SessionID     *string         `json:"sessionId"`
	CreatedAt     sandbox.Time    `json:"createdAt"`
	CompletedAt   *sandbox.Time   `json:"completedAt"`
	Error         *string         `json:"error"`
	Metadata      json.RawMessage `json:"metadata"`
}

// known returns nil for what is not known.
func known(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func taskOf(t task.Task) taskBody {
	b := taskBody{
		ID: t.ID, UserID: t.UserID, SandboxID: t.SandboxID, Provider: t.Provider, Status: t.Status, Message: t.Message, Response: known(t.Response),
		GitURL: known(t.GitURL), ModelProvider: known(t.ModelProvider), ModelID: known(t.ModelID), SessionID: known(t.SessionID),
		CreatedAt: sandbox.At(t.CreatedAt), Error: known(t.Error), Metadata: json.RawMessage(t.Metadata),
	}
	if t.CompletedAt != nil {
		at := sandbox.At(*t.CompletedAt)
		b.CompletedAt = &at
	}
	return b
}

func (a *API) getTask(c echo.Context) error {
	t, err := a.Tasks.Get(c.Request().Context(), callerOf(c).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, taskOf(t))
}

func (a *API) listTasks(c echo.Context) error {
	page, err := pageOf(c)
	if err != nil {
		return err
	}
	tasks, err := a.Tasks.List(c.Request().Context(), callerOf(c).ID, page)
	if err != nil {
		return err
	}
	bodies := make([]taskBody, len(tasks))
	for i, t := range tasks {
		bodies[i] = taskOf(t)
	}
	return c.JSON(http.StatusOK, map[string]any{"tasks": bodies, "limit": page.Limit, "offset": page.Offset})
}

func (a *API) cancelTask(c echo.Context) error {
	id := c.Param("id")
	if err := a.Tasks.Cancel(c.Request().Context(), callerOf(c).ID, id); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"success": true, "taskId": id, "status": task.Cancelled})
}

// teamRequest is the body of a team.
type teamRequest struct {
	Agents []struct {
		Role    string     `json:"role"`
		Message string     `json:"message"`
		Model   modelField `json:"model"`
	} `json:"agents"`
	GitURL    string `json:"gitUrl"`
	GitBranch string `json:"gitBranch"`
	Provider  string `json:"provider"`
}

// teamAgent is an agent of a team on the wire. TaskID and Status are ours.
type teamAgent struct {
	Role      string      `json:"role"`
	TaskID    string      `json:"taskId"`
	SandboxID string      `json:"sandboxId"`
	SessionID string      `json:"sessionId"`
	Status    task.Status `json:"status"`
	Response  string      `json:"response"`
	Error     string      `json:"error,omitempty"`
}

func (a *API) runTeam(c echo.Context) error {
	var body teamRequest
	if err := decode(c, &body); err != nil {
		return err
	}
	req := task.TeamRequest{UserID: callerOf(c).ID, GitURL: strings.TrimSpace(body.GitURL), GitBranch: strings.TrimSpace(body.GitBranch), Provider: body.Provider}
	for _, agent := range body.Agents {
		req.Agents = append(req.Agents, task.Agent{Role: agent.Role, Message: agent.Message, Model: agent.Model.Model})
	}
	team, members, err := a.Tasks.LaunchTeam(c.Request().Context(), req)
	if err != nil {
		return err
	}
	ctx, release := a.hold(c, held{bounded: true})
	defer release()
	for _, m := range members {
		_, err := a.Tasks.Wait(ctx, team.UserID, m.Task.ID)
		if ctx.Err() != nil {
			return ended(ctx, c)
		}
		if err != nil {
			return err
		}
	}
	return a.sendTeam(c, team.ID)
}

func (a *API) getTeam(c echo.Context) error { return a.sendTeam(c, c.Param("id")) }

func (a *API) sendTeam(c echo.Context, id string) error {
	team, members, err := a.Tasks.Team(c.Request().Context(), callerOf(c).ID, id)
	if err != nil {
		return err
	}
	agents := make([]teamAgent, len(members))
	for i, m := range members {
		agents[i] = teamAgent{
			Role: m.Agent.Role, TaskID: m.Task.ID, SessionID: m.Task.SessionID, Status: m.Task.Status, Response: m.Task.Response, Error: m.Task.Error,
		}
		if m.Task.SandboxID != nil {
			agents[i].SandboxID = *m.Task.SandboxID
		}
		if m.Task.Status == task.Cancelled {
			agents[i].Error = "the task was cancelled"
		}
	}
	return c.JSON(http.StatusOK, map[string]any{"teamId": team.ID, "agents": agents})
}
