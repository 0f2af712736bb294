package opencode

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
)

const (
	busyTimeout = 5 * time.Second
	maxReasons  = 20
	maxReason   = 200
	maxTurns    = 1000 // sessions of a status that are looked at
	maxPtys     = 100  // terminals that are looked at
)

// Busy says why the sandbox is busy: turns, terminals whose shell has a child,
// and other tasks. An OpenCode that does not answer has no turns. The list is
// empty when the sandbox is idle, and bounded.
func (s *Supervisor) Busy(ctx context.Context) []string {
	reasons := s.set.OtherTasks()
	if r := s.running(); r != nil && s.Status().State == guest.StateReady {
		var turns, terminals []string
		var both sync.WaitGroup
		both.Go(func() { turns = s.turns(ctx, r) })
		both.Go(func() { terminals = s.terminals(ctx, r) })
		both.Wait()
		reasons = slices.Concat(reasons, turns, terminals)
	}
	if len(reasons) > maxReasons {
		reasons = reasons[:maxReasons]
	}
	for i := range reasons {
		reasons[i] = printable.Line(reasons[i], maxReason)
	}
	return reasons
}

func (s *Supervisor) turns(ctx context.Context, r *run) []string {
	status, err := r.api.sessionStatus(ctx)
	if err != nil {
		s.set.Log.DebugContext(ctx, "ask for turns", "error", err)
		return nil
	}
	var reasons []string
	for _, id := range sortedKeys(status) {
		if status[id] != "idle" {
			reasons = append(reasons, "turn: "+id)
		}
	}
	return reasons
}

func (s *Supervisor) terminals(ctx context.Context, r *run) []string {
	ptys, err := r.api.ptys(ctx)
	if err != nil {
		s.set.Log.DebugContext(ctx, "ask for terminals", "error", err)
		return nil
	}
	if len(ptys) == 0 || ctx.Err() != nil {
		return nil
	}
	var reasons []string
	busy := process.Parents()
	for _, p := range ptys {
		if p.PID > 0 && p.Status == "running" && busy[p.PID] {
			reasons = append(reasons, fmt.Sprintf("terminal: %s", p.ID))
		}
	}
	return reasons
}
