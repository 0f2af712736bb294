package httpapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// maxTurn is the longest deadline that a caller may set for a turn.
const maxTurn = 24 * time.Hour

// turnEnd is how a turn ended.
type turnEnd struct {
	result turn.Result
	err    error
	synced lifecycle.Synced
}

// syncPatience is how long a reply waits for the sync that follows its turn; the
// counts are those of the sync before if it takes longer.
const syncPatience = time.Second

// message runs one turn. The turn is not the request's: a caller that leaves,
// or asks not to wait, does not end it.
func (a *API) message(c echo.Context) error {
	var req sandbox.MessageRequest
	if err := decode(c, maxConfigBody, false, &req); err != nil {
		return err
	}
	if err := checkMessage(req); err != nil {
		return err
	}
	began := time.Now()
	ctx, id := c.Request().Context(), c.Param("id")
	if len(req.Config) > 0 {
		if _, err := a.Manager.Wake(ctx, id, req.Config, ""); err != nil {
			return err
		}
	}
	h, err := a.Manager.Use(ctx, id, lifecycle.Working)
	if err != nil {
		return err
	}
	session := make(chan string, 1)
	ended := make(chan turnEnd, 1)
	a.running.Go(func() {
		defer h.Release()
		life := timeline.Carry(h.Life, ctx)
		turned := timeline.Begin(life, "turn")
		result, err := a.turn(life, h, req, session)
		turned()
		a.messages.Observe(time.Since(began).Seconds())
		stored := timeline.Begin(life, "sync")
		synced := a.Manager.Persist(life, h, syncPatience)
		stored()
		ended <- turnEnd{result, err, synced}
	})
	if wantsAsync(c.Request()) {
		return a.accepted(c, session, ended)
	}
	select {
	case end := <-ended:
		return a.answer(c, end)
	case <-ctx.Done():
		return ctx.Err() // nobody is there to answer
	}
}

func checkMessage(req sandbox.MessageRequest) error {
	switch {
	case strings.TrimSpace(req.Message) == "":
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "message must not be empty")
	case req.Model != nil && (req.Model.ProviderID == "" || req.Model.ModelID == ""):
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "model needs both providerID and modelID")
	case req.TimeoutMs < 0 || req.TimeoutMs > maxTurn.Milliseconds():
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "timeoutMs must be from 0 (the gateway's) to %d", maxTurn.Milliseconds())
	}
	return nil
}

// turn runs the turn for as long as the sandbox lives and the gateway serves.
func (a *API) turn(life context.Context, h lifecycle.Handle, req sandbox.MessageRequest, session chan<- string) (turn.Result, error) {
	ctx, cancel := context.WithCancelCause(life)
	defer cancel(nil)
	defer context.AfterFunc(a.turnsCtx, func() { cancel(context.Cause(a.turnsCtx)) })() //nolint:contextcheck // it ends with either
	began := time.Now()
	client := opencode.New(h.Transport, h.Link.OpenCodeURL, h.Password)
	result, err := a.Turns.Run(ctx, client, turn.Request{
		Message: req.Message, SessionID: req.SessionID, Model: req.Model, Agent: req.Agent,
		Deadline: time.Duration(req.TimeoutMs) * time.Millisecond, Secrets: a.Manager.Secrets(h.SandboxID),
	}, func(id string) {
		timeline.Note(ctx, "sessionId", id)
		session <- id
		if req.SessionID == "" {
			a.Manager.Tell(h, sandbox.EventSessionCreated, map[string]any{"sessionId": id})
		}
	})
	if sandbox.HasCode(err, sandbox.CodeOpenCodeDown) {
		a.Manager.Verify(ctx, h.SandboxID)
	}
	if err == nil {
		a.Manager.Tell(h, sandbox.EventSessionMessage, map[string]any{"sessionId": result.SessionID})
	}
	a.Log.InfoContext(ctx, "turn ended", "sandboxId", h.SandboxID, "userId", h.UserID, "sessionId", result.SessionID,
		"duration", time.Since(began), "failed", err != nil || result.ErrText != "")
	return result, err
}

func (a *API) answer(c echo.Context, end turnEnd) error {
	if end.err != nil {
		return end.err
	}
	r := end.result
	return c.JSON(http.StatusOK, sandbox.MessageResponse{
		SessionID: r.SessionID, Response: r.Response, Parts: r.Parts,
		Sync:  sandbox.SyncCounts{SyncedFiles: end.synced.Files, TotalSize: end.synced.Bytes},
		Error: r.ErrText, ErrorDetails: r.Err,
	})
}

// accepted answers as soon as the session is known: it can be watched then.
func (a *API) accepted(c echo.Context, session <-chan string, ended <-chan turnEnd) error {
	select {
	case id := <-session:
		c.Response().Header().Set("Preference-Applied", "respond-async")
		return c.JSON(http.StatusAccepted, sandbox.MessageAccepted{SessionID: id, Status: "running"})
	case end := <-ended:
		return a.answer(c, end) // it failed before there was a session
	case <-c.Request().Context().Done():
		return c.Request().Context().Err()
	}
}

func wantsAsync(r *http.Request) bool {
	for _, line := range r.Header.Values("Prefer") {
		for pref := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(pref, ";")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}
