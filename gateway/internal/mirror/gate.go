package mirror

import (
	"context"
	"fmt"
	"sync"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
)

// gates let one call at a time work on a sandbox's mirror.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	turn   chan struct{} // holds one value while somebody is inside
	users  int           // inside or waiting
	whose  string        // the incarnation of whoever is inside
	cancel context.CancelCauseFunc
}

// enter waits for the turn on a sandbox. The context that it returns ends with
// leave, and when somebody interrupts.
func (g *gates) enter(ctx context.Context, ref snapshot.Ref) (inside context.Context, leave func(), err error) {
	g.mu.Lock()
	here := g.open[ref.ID]
	if here == nil {
		here = &gate{turn: make(chan struct{}, 1)}
		g.open[ref.ID] = here
	}
	here.users++
	g.mu.Unlock()
	select {
	case here.turn <- struct{}{}:
	case <-ctx.Done():
		g.forget(ref.ID, here)
		return nil, nil, fmt.Errorf("waiting for what is done with the sandbox's mirror: %w", context.Cause(ctx))
	}
	inside, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	here.cancel, here.whose = cancel, ref.Incarnation
	g.mu.Unlock()
	return inside, func() {
		cancel(nil)
		g.mu.Lock()
		here.cancel = nil
		g.mu.Unlock()
		<-here.turn
		g.forget(ref.ID, here)
	}, nil
}

func (g *gates) forget(id string, here *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	here.users--
	if here.users == 0 {
		delete(g.open, id)
	}
}

// interrupt ends the context of whoever is inside for that incarnation; an empty
// one is any.
func (g *gates) interrupt(ref snapshot.Ref, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if here := g.open[ref.ID]; here != nil && here.cancel != nil && (ref.Incarnation == "" || here.whose == ref.Incarnation) {
		here.cancel(cause)
	}
}
