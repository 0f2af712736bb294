package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxExecOutput caps each of a command's outputs, in bytes: an answer that is
// not streamed is kept in memory, several times over as JSON.
const maxExecOutput = 1 << 20

func (a *API) exec(c echo.Context) error {
	var req sandbox.ExecRequest
	if err := decode(c, maxSmallBody, false, &req); err != nil {
		return err
	}
	if len(req.Command) == 0 || req.Command[0] == "" {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, `command must be an array of strings, such as ["ls","-la"], of which the first is the program`)
	}
	if most := a.settings.ExecTimeout.Milliseconds(); req.TimeoutMs < 0 || req.TimeoutMs > most {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "timeoutMs must be from 0 to %d (EXEC_TIMEOUT)", most)
	}
	timeout := time.Duration(req.TimeoutMs) * time.Millisecond
	if timeout == 0 {
		timeout = a.settings.ExecTimeout
	}
	h, err := a.Manager.Use(c.Request().Context(), c.Param("id"), lifecycle.Working)
	if err != nil {
		return err
	}
	defer h.Release()
	ctx, cancel := a.within(c, h, timeout+10*time.Second)
	defer cancel()
	guestReq := guest.ExecRequest{
		Command: req.Command, WorkingDir: req.WorkingDir, Env: req.Env,
		TimeoutMs: timeout.Milliseconds(), MaxOutput: maxExecOutput,
	}
	if strings.Contains(c.Request().Header.Get("Accept"), "text/event-stream") {
		return a.execStream(ctx, c, h, guestReq)
	}
	resp, err := h.Guest.Run(ctx, guestReq)
	if err != nil {
		return a.explainGuest(ctx, h, err)
	}
	return c.JSON(http.StatusOK, resp)
}

// execStream sends a command's output as it comes: events stdout and stderr, each a
// sandbox.ExecOutput, at last exit with {"exitCode","truncated","timedOut"}.
func (a *API) execStream(ctx context.Context, c echo.Context, h lifecycle.Handle, req guest.ExecRequest) error {
	w := c.Response()
	send := func(event string, data any) error {
		raw, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encoding an event: %w", err)
		}
		if !w.Committed {
			w.Header().Set(echo.HeaderContentType, "text/event-stream")
			w.WriteHeader(http.StatusOK)
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, raw); err != nil {
			return fmt.Errorf("sending an event: %w", err)
		}
		w.Flush()
		return nil
	}
	// Output comes in pieces that end anywhere; a character that is not whole waits
	// for the next piece of the same stream.
	unfinished, size := make(map[string][]byte, 2), make(map[string]int64, 2)
	output := func(stream string, data []byte) error {
		if len(data) == 0 {
			return nil
		}
		return send(stream, sandbox.NewExecOutput(data))
	}
	flush := func() error {
		for _, stream := range []string{guest.EventStdout, guest.EventStderr} {
			if err := output(stream, unfinished[stream]); err != nil {
				return err
			}
			delete(unfinished, stream)
		}
		return nil
	}
	err := h.Guest.Exec(ctx, req, func(e guest.ExecEvent) error {
		if e.Type != guest.EventExit {
			whole, rest := printable.Whole(append(unfinished[e.Type], e.Data...))
			unfinished[e.Type] = slices.Clone(rest)
			size[e.Type] += int64(len(e.Data))
			return output(e.Type, whole)
		}
		for stream, total := range size {
			if e.Truncated && total >= req.MaxOutput {
				delete(unfinished, stream) // the limit has cut it
			}
		}
		if err := flush(); err != nil {
			return err
		}
		return send("exit", map[string]any{
			"exitCode": e.ExitCode, "truncated": e.Truncated, "timedOut": e.TimedOut, "error": e.Error,
		})
	})
	if err == nil {
		return nil
	}
	err = a.explainGuest(ctx, h, err)
	if w.Committed && c.Request().Context().Err() == nil {
		if err := flush(); err != nil {
			return err
		}
		e := a.explain(err)
		return send("error", sandbox.ErrorResponse{Error: e.Message, Code: e.Code})
	}
	return err
}
