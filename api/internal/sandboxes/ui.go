package sandboxes

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// visitLife is longer than a cookie for a web UI and the ticket before it are
	// good for by themselves: 12 hours and a minute.
	visitLife = 13 * time.Hour
	// maxEnding is how many visits one look ends, and endTimeout bounds each.
	maxEnding  = 1000
	endTimeout = 10 * time.Second
)

// UI returns a way into a sandbox's web UI for one browser. What that opens ends
// with the session; with none, which is "", it ends by itself after 12 hours. The
// caller hands the way out only if the session is still good afterwards.
//
// The provider gets the session's id: it is random and has nothing of the token,
// opens nothing, is the same for every API on the database, and stays when
// secrets change.
func (s *Service) UI(ctx context.Context, userID, id, sessionID string) (sandbox.UIResponse, error) {
	_, backend, err := s.started(ctx, userID, id)
	if err != nil {
		return sandbox.UIResponse{}, err
	}
	if sessionID != "" {
		// First, so that no way is out which nobody would end.
		err := s.deps.Visits.Put(ctx, task.Visit{SessionID: sessionID, SandboxID: id, Until: s.now().Add(visitLife)})
		if errors.Is(err, task.ErrNotFound) {
			return sandbox.UIResponse{}, notFound()
		}
		if err != nil {
			return sandbox.UIResponse{}, err //nolint:wrapcheck // the store says what it was doing
		}
	}
	reply, err := backend.UI(ctx, id, sessionID)
	if sandbox.HasCode(err, sandbox.CodeForbidden) {
		err = sandbox.Errorf(sandbox.CodeUnauthorized, "the session has ended; sign in again").WithCause(err)
		return reply, err
	}
	return reply, provider.Told(err)
}

// SessionOver has EndVisits look at once.
func (s *Service) SessionOver() {
	select {
	case s.over <- struct{}{}:
	default: // it is about to
	}
}

// EndVisits ends what sessions that are over have opened in web UIs, until ctx
// ends. It goes by what the database has of sessions, so it does not matter how one
// ended, at which API, and whether any was there; and a provider that is away is
// told later.
func (s *Service) EndVisits(ctx context.Context) {
	tick := time.NewTicker(s.settings.VisitsEvery)
	defer tick.Stop()
	for troubled := false; ; {
		err := s.endVisits(ctx)
		if err != nil && ctx.Err() == nil {
			level := slog.LevelWarn
			if troubled { // it was said
				level = slog.LevelDebug
			}
			s.deps.Log.Log(ctx, level, "web UIs could not be closed whose sessions are over; it is tried again", "error", err)
		}
		troubled = err != nil
		select {
		case <-tick.C:
		case <-s.over:
		case <-ctx.Done():
			return
		}
	}
}

// endVisits ends those visits that are over, and returns why not all were.
func (s *Service) endVisits(ctx context.Context) error {
	look, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	over, err := s.deps.Visits.Over(look, s.now(), maxEnding)
	if err != nil {
		return err //nolint:wrapcheck // the store says what it was doing
	}
	away := map[string]bool{} // the providers that did not answer
	var failed error
	for _, v := range over {
		if away[v.Provider] {
			continue
		}
		if err := s.endVisit(ctx, v); err != nil {
			failed = err
			away[v.Provider] = sandbox.HasCode(err, sandbox.CodeBackendAway) || sandbox.HasCode(err, sandbox.CodeDeadline)
		}
	}
	return failed
}

func (s *Service) endVisit(ctx context.Context, v task.OverVisit) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if s.now().Before(v.Until) {
		backend, err := s.deps.Backends.Backend(v.Provider)
		if err == nil {
			err = backend.EndUI(ctx, v.SandboxID, v.SessionID)
		}
		// Where there is no web UI nothing is open.
		if err != nil && !sandbox.HasCode(err, sandbox.CodeUnsupported) {
			return err //nolint:wrapcheck // an error for the log
		}
	}
	return s.deps.Visits.Delete(ctx, v.Visit) //nolint:wrapcheck // the store says what it was doing
}
