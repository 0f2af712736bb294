// Package gate lets one call at a time work on what is stored of a sandbox.
package gate

import (
	"context"
	"sync"
)

// Gates are one for each sandbox. The zero value is ready, and its methods can be
// called concurrently.
type Gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	turn   chan struct{} // holds one value while somebody is inside
	users  int           // inside or waiting
	whose  string        // the incarnation of whoever is inside
	cancel context.CancelCauseFunc
}

// Enter waits for the turn on a sandbox; its error is the context's cause. The
// context that it returns ends with leave, and when somebody interrupts.
func (g *Gates) Enter(ctx context.Context, id, incarnation string) (inside context.Context, leave func(), err error) {
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]*gate{}
	}
	here := g.open[id]
	if here == nil {
		here = &gate{turn: make(chan struct{}, 1)}
		g.open[id] = here
	}
	here.users++
	g.mu.Unlock()
	select {
	case here.turn <- struct{}{}:
	case <-ctx.Done():
		g.forget(id, here)
		return nil, nil, context.Cause(ctx)
	}
	inside, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	here.cancel, here.whose = cancel, incarnation
	g.mu.Unlock()
	return inside, func() {
		cancel(nil)
		g.mu.Lock()
		here.cancel = nil
		g.mu.Unlock()
		<-here.turn
		g.forget(id, here)
	}, nil
}

func (g *Gates) forget(id string, here *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	here.users--
	if here.users == 0 {
		delete(g.open, id)
	}
}

// Interrupt ends the context of whoever is inside for that incarnation; an empty
// one is any.
func (g *Gates) Interrupt(id, incarnation string, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if here := g.open[id]; here != nil && here.cancel != nil && (incarnation == "" || here.whose == incarnation) {
		here.cancel(cause)
	}
}
