package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Sandboxes is what a Carrier needs of the sandboxes; lifecycle.Manager has it.
type Sandboxes interface {
	Use(ctx context.Context, id string, purpose lifecycle.Purpose) (lifecycle.Handle, error)
	Peek(id string) (h lifecycle.Handle, running bool, err error)
	Health(id string) (version string, asleep bool, err error)
	Watch(id string) (*lifecycle.Watcher, error)
	Nudge(h lifecycle.Handle)
	Verify(ctx context.Context, id string) bool
}

// Visit says which sandbox one request goes to.
type Visit struct {
	SandboxID string
	// Incarnation is the only one that the request may reach; any if it is empty.
	Incarnation string
	// Path, Prefix and OwnHost are as in Request.
	Path, Prefix string
	OwnHost      bool
	// Done ends the request besides the sandbox's end; a sandbox.Error as its cause
	// is the reply if none began. Nil means never.
	Done context.Context //nolint:containedctx // a second lifetime, not the call's own
}

func (v Visit) request(h lifecycle.Handle) Request {
	return Request{OpenCodeURL: h.Link.OpenCodeURL, Password: h.Password, Path: v.Path, Prefix: v.Prefix, OwnHost: v.OwnHost}
}

// check refuses a sandbox that has another's id.
func (v Visit) check(h lifecycle.Handle) error {
	if v.Incarnation != "" && v.Incarnation != h.Incarnation {
		return lifecycle.ErrDeleted
	}
	return nil
}

// Carrier takes requests to the OpenCode of sandboxes that may sleep. Safe for
// concurrent use.
type Carrier struct {
	Sandboxes Sandboxes
	Proxy     *Proxy
	// Streams ends, with a cause, what would never end by itself.
	Streams context.Context //nolint:containedctx // a second lifetime of requests
}

// Carry serves one request, waking the sandbox unless it asks for OpenCode's health
// or its events. Errors and panics are Proxy.Serve's.
func (c *Carrier) Carry(w http.ResponseWriter, r *http.Request, v Visit) error {
	switch {
	case reads(r.Method) && healthPath(v.Path):
		return c.health(w, r, v)
	case r.Method == http.MethodGet && border.EventPath(v.Path):
		return c.events(w, r, v)
	}
	err := c.use(w, r, v)
	if sandbox.HasCode(err, sandbox.CodeOpenCodeDown) && c.Sandboxes.Verify(r.Context(), v.SandboxID) && r.ContentLength == 0 {
		// The run had ended without the engine's event having come yet. A request
		// that has no body can be sent again to the next run.
		err = c.use(w, r, v)
	}
	return err
}

// use carries a request that needs the sandbox, and wakes it for that.
func (c *Carrier) use(w http.ResponseWriter, r *http.Request, v Visit) error {
	upgrade := r.Header.Get("Upgrade") != ""
	purpose := lifecycle.Working
	if reads(r.Method) && !upgrade {
		purpose = lifecycle.Looking
	}
	h, err := c.Sandboxes.Use(r.Context(), v.SandboxID, purpose)
	if err != nil {
		return err
	}
	defer h.Release()
	req := v.request(h)
	if upgrade {
		// A terminal that nobody types into does not keep the sandbox awake.
		h.Release()
		req.Input = func() { c.Sandboxes.Nudge(h) }
		if v.OwnHost {
			req.Parting = func() []byte { return c.parting(v) }
		}
	}
	return c.serve(w, r, v, h, req)
}

// parting ends the WebSocket of a sandbox that is put to sleep as one that is done.
// OpenCode's UI opens a terminal that broke off anew, and so would wake the sandbox
// by itself.
func (c *Carrier) parting(v Visit) []byte {
	if _, asleep, err := c.Sandboxes.Health(v.SandboxID); err != nil || !asleep {
		return nil
	}
	return []byte{0x88, 2, 1000 >> 8, 1000 & 0xff} // a frame: closed, normally
}

func (c *Carrier) serve(w http.ResponseWriter, r *http.Request, v Visit, h lifecycle.Handle, req Request) error {
	if err := v.check(h); err != nil {
		return err
	}
	done, cancel := c.done(h, v, border.Endless(r, v.Path))
	defer cancel()
	req.Done = done
	return c.Proxy.Serve(w, r, req)
}

// done is the end of a request that is not its caller's: the sandbox's, the
// visit's and, of what would never end, the gateway's.
func (c *Carrier) done(h lifecycle.Handle, v Visit, endless bool) (done context.Context, release func()) {
	if v.Done == nil && !endless {
		return h.Life, func() {}
	}
	done, cancel := context.WithCancelCause(h.Life)
	stops := []func() bool{}
	ends := func(ctx context.Context) {
		stops = append(stops, context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) }))
	}
	if v.Done != nil {
		ends(v.Done)
	}
	if endless {
		ends(c.Streams)
	}
	return done, func() {
		for _, stop := range stops {
			stop()
		}
		cancel(nil)
	}
}

// health carries a probe of OpenCode's health, and answers it for a sandbox that
// sleeps: it is no reason to wake.
func (c *Carrier) health(w http.ResponseWriter, r *http.Request, v Visit) error {
	h, running, err := c.Sandboxes.Peek(v.SandboxID)
	if err != nil {
		return err
	}
	if running {
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		err := c.serve(w, r, v, h, v.request(h))
		if err == nil {
			return nil
		}
		if _, asleep, _ := c.Sandboxes.Health(v.SandboxID); !asleep { // it was put to sleep under the probe
			return err
		}
	}
	version, asleep, err := c.Sandboxes.Health(v.SandboxID)
	switch {
	case err != nil:
		return err
	case !asleep:
		return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode does not run in the sandbox at this moment; try again")
	}
	said := map[string]any{"healthy": true}
	if v.Path == "/global/health" && version != "" {
		said["version"] = version
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said) // a caller that left
	return nil
}

// events carries a subscription to OpenCode's events. It lasts while the sandbox
// sleeps, is no reason to wake it, and is there again before what wakes it begins.
func (c *Carrier) events(w http.ResponseWriter, r *http.Request, v Visit) error {
	watcher, err := c.Sandboxes.Watch(v.SandboxID)
	if err != nil {
		return err
	}
	defer watcher.Close()
	if err := v.check(watcher.Handle); err != nil {
		return err
	}
	done, cancel := c.done(watcher.Handle, v, true)
	defer cancel()
	return c.Proxy.ServeEvents(w, r, EventRequest{
		Path: v.Path, Prefix: v.Prefix, OwnHost: v.OwnHost, Done: done, Asleep: watcher.Asleep,
		Next: func(ctx context.Context) (EventTarget, error) {
			visit, err := watcher.Next(ctx)
			if err != nil {
				return EventTarget{}, err
			}
			return EventTarget{OpenCodeURL: visit.Handle.Link.OpenCodeURL, Password: visit.Handle.Password, Joined: visit.Joined}, nil
		},
	})
}

// healthTimeout bounds a probe of OpenCode's health.
const healthTimeout = 5 * time.Second

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// healthPath says whether OpenCode answers a path with its health.
func healthPath(path string) bool { return path == "/global/health" || path == "/api/health" }
