package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/proxy"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// proxy carries a request to OpenCode. The path goes on as it came: it is cut
// from the request line, never decoded and encoded again.
func (a *API) proxy(c echo.Context) error {
	r, id := c.Request(), c.Param("id")
	prefix := "/sandbox/" + id + "/opencode"
	path, ok := strings.CutPrefix(rawPath(r), prefix)
	if !ok {
		// An id that is written with percent-encoding is not an id of the contract.
		return sandbox.Errorf(sandbox.CodeInvalidID, "write the sandbox id in the path as it is, without percent-encoding")
	}
	var err error
	switch {
	case reads(r.Method) && healthPath(path):
		err = a.openCodeHealth(c, id, prefix, path)
	case r.Method == http.MethodGet && border.EventPath(path):
		err = a.events(c, id, prefix, path)
	default:
		err = a.use(c, id, prefix, path)
		if sandbox.HasCode(err, sandbox.CodeOpenCodeDown) && a.Manager.Verify(r.Context(), id) && r.ContentLength == 0 {
			// The run had ended without the engine's event having come yet. A request
			// that has no body can be sent again to the next run.
			err = a.use(c, id, prefix, path)
		}
	}
	if errors.Is(err, proxy.ErrClientGone) {
		return nil
	}
	return err
}

// use carries a request that needs the sandbox, and wakes it for that.
func (a *API) use(c echo.Context, id, prefix, path string) error {
	r := c.Request()
	upgrade := r.Header.Get("Upgrade") != ""
	purpose := lifecycle.Working
	if reads(r.Method) && !upgrade {
		purpose = lifecycle.Looking
	}
	h, err := a.Manager.Use(r.Context(), id, purpose)
	if err != nil {
		return err
	}
	defer h.Release()
	req := proxy.Request{OpenCodeURL: h.Link.OpenCodeURL, Password: h.Password, Path: path, Prefix: prefix}
	if upgrade {
		// A terminal that nobody types into does not keep the sandbox awake.
		h.Release()
		req.Input = func() { a.Manager.Nudge(h) }
	}
	return a.serve(c, h, path, req)
}

func (a *API) serve(c echo.Context, h lifecycle.Handle, path string, req proxy.Request) error {
	done, cancel := context.WithCancelCause(h.Life)
	defer cancel(nil)
	if border.Endless(c.Request(), path) {
		defer context.AfterFunc(a.streams, func() { cancel(context.Cause(a.streams)) })()
	}
	req.Done = done
	return a.Proxy.Serve(c.Response(), c.Request(), req)
}

// openCodeHealth carries a probe of OpenCode's health, and answers it for a
// sandbox that sleeps: it is no reason to wake.
func (a *API) openCodeHealth(c echo.Context, id, prefix, path string) error {
	h, running, err := a.Manager.Peek(id)
	if err != nil {
		return err
	}
	if running {
		ctx, cancel := context.WithTimeout(c.Request().Context(), healthTimeout)
		defer cancel()
		c.SetRequest(c.Request().WithContext(ctx))
		err := a.serve(c, h, path, proxy.Request{OpenCodeURL: h.Link.OpenCodeURL, Password: h.Password, Path: path, Prefix: prefix})
		if err == nil || c.Response().Committed {
			return err
		}
		if _, asleep, _ := a.Manager.Health(id); !asleep { // it was put to sleep under the probe
			return err
		}
	}
	version, asleep, err := a.Manager.Health(id)
	switch {
	case err != nil:
		return err
	case !asleep:
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode does not run in the sandbox at this moment; try again")
	case path == "/global/health" && version != "":
		return c.JSON(http.StatusOK, map[string]any{"healthy": true, "version": version})
	default:
		return c.JSON(http.StatusOK, map[string]any{"healthy": true})
	}
}

// events carries a subscription to OpenCode's events. It lasts while the sandbox
// sleeps, is no reason to wake it, and is there again before what wakes it begins.
func (a *API) events(c echo.Context, id, prefix, path string) error {
	w, err := a.Manager.Watch(id)
	if err != nil {
		return err
	}
	defer w.Close()
	done, cancel := context.WithCancelCause(w.Handle.Life)
	defer cancel(nil)
	defer context.AfterFunc(a.streams, func() { cancel(context.Cause(a.streams)) })()
	return a.Proxy.ServeEvents(c.Response(), c.Request(), proxy.EventRequest{
		Path: path, Prefix: prefix, Done: done, Asleep: w.Asleep,
		Next: func(ctx context.Context) (proxy.EventTarget, error) {
			visit, err := w.Next(ctx)
			if err != nil {
				return proxy.EventTarget{}, err
			}
			return proxy.EventTarget{OpenCodeURL: visit.Handle.Link.OpenCodeURL, Password: visit.Handle.Password, Joined: visit.Joined}, nil
		},
	})
}

// healthTimeout bounds a probe of OpenCode's health.
const healthTimeout = 5 * time.Second

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// healthPath says whether OpenCode answers a path with its health.
func healthPath(path string) bool { return path == "/global/health" || path == "/api/health" }
