// Package sandboxes is what the API does with single sandboxes: it keeps whose
// they are and what was last heard of them, and hands everything else to their
// provider.
package sandboxes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Backends are the providers. It is safe for concurrent use; its errors are
// *sandbox.Error.
type Backends interface {
	// Select returns the provider that was asked for or, of "", the one for a use
	// case.
	Select(ctx context.Context, asked string, use provider.UseCase) (string, sandbox.Backend, error)
	// Backend returns a provider by its name.
	Backend(name string) (sandbox.Backend, error)
}

// Settings of a Service; a zero field means its default.
type Settings struct {
	// CreateTimeout bounds the making of a sandbox (default 16 min).
	CreateTimeout time.Duration
	// LookTimeout bounds the look at a sandbox that Get takes (default 3 s), and
	// ListTimeout that at all of a user's (default 2 s).
	LookTimeout, ListTimeout time.Duration
	// StartGrace is how long a sandbox may be starting without its provider knowing
	// of it (default 2 min).
	StartGrace time.Duration
	// VisitsEvery is how often EndVisits looks for sessions that are over (default 5 s).
	VisitsEvery time.Duration
	// MeasureEvery is how often Measure looks at what users store (default 1 min).
	MeasureEvery time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

func (s Settings) withDefaults() Settings {
	for _, field := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&s.CreateTimeout, 16 * time.Minute},
		{&s.LookTimeout, 3 * time.Second},
		{&s.ListTimeout, 2 * time.Second},
		{&s.StartGrace, 2 * time.Minute},
		{&s.VisitsEvery, 5 * time.Second},
		{&s.MeasureEvery, time.Minute},
	} {
		if *field.value <= 0 {
			*field.value = field.fallback
		}
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	return s
}

// Deps are what a Service calls.
type Deps struct {
	Sandboxes task.Sandboxes
	Visits    task.Visits
	Backends  Backends
	// Config returns a user's OpenCode config and its hash. Nil means that nobody
	// has one.
	Config func(ctx context.Context, userID string) (config json.RawMessage, hash string, err error)
	Log    *slog.Logger
}

// Service is the sandboxes of users. Every method takes whose sandbox it is and
// knows none of others: that is sandbox_not_found, as for one that never was.
// Errors are *sandbox.Error, but for those of the repository. It is safe for
// concurrent use.
type Service struct {
	deps     Deps
	settings Settings
	ctx      context.Context //nolint:containedctx // the lifetime of what is made in the background
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	over     chan struct{} // rings for EndVisits
	storage  storage

	mu     sync.Mutex
	making map[string]*making
	closed bool
}

// making is a sandbox that is being made in the background.
type making struct {
	cancel  context.CancelFunc
	done    chan struct{}
	dropped bool // by its deletion; guarded by Service.mu
}

// New makes a service. Close ends it.
func New(settings Settings, deps Deps) *Service {
	s := &Service{deps: deps, settings: settings.withDefaults(), making: map[string]*making{}, over: make(chan struct{}, 1)}
	if s.deps.Log == nil {
		s.deps.Log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close lets nothing new begin, waits for what is being made until ctx ends, and
// then gives it up: such a sandbox stays "starting" until somebody looks at it.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.cancel)
	s.wg.Wait()
	cut := !stop()
	s.cancel()
	if cut {
		return fmt.Errorf("waiting for sandboxes that are being made: %w", ctx.Err())
	}
	return nil
}

func (s *Service) now() time.Time { return s.settings.Now() }

// row returns the record of a user's sandbox.
func (s *Service) row(ctx context.Context, userID, id string) (task.Sandbox, error) {
	row, err := s.deps.Sandboxes.Get(ctx, userID, id)
	if errors.Is(err, task.ErrNotFound) {
		return row, notFound()
	}
	return row, err //nolint:wrapcheck // the store says what it was doing
}

func notFound() error {
	return sandbox.Errorf(sandbox.CodeSandboxNotFound, "there is no such sandbox")
}

// Check returns nil if a sandbox is the user's.
func (s *Service) Check(ctx context.Context, userID, id string) error {
	_, err := s.row(ctx, userID, id)
	return err
}

// started returns a user's sandbox that has been made, and where it is.
func (s *Service) started(ctx context.Context, userID, id string) (task.Sandbox, sandbox.Backend, error) {
	row, err := s.row(ctx, userID, id)
	if err != nil {
		return row, nil, err
	}
	if row.StartedAt == nil {
		if row.Status == task.SandboxStarting {
			return row, nil, sandbox.Errorf(sandbox.CodeSettling, "the sandbox is being made; try again in a moment")
		}
		return row, nil, sandbox.Errorf(sandbox.CodeConflict, "the sandbox has never run; start it first")
	}
	backend, err := s.deps.Backends.Backend(row.Provider)
	return row, backend, err
}

// settleTimeout bounds the writing down of what was done.
const settleTimeout = 30 * time.Second

// settling is for writing down what was done, whether the caller waits or not.
func settling(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
}

// change updates a record and returns it as it is then. One that is gone is
// sandbox_not_found.
func (s *Service) change(ctx context.Context, row task.Sandbox, c task.SandboxChange) (task.Sandbox, error) {
	ctx, cancel := settling(ctx)
	defer cancel()
	err := s.deps.Sandboxes.Update(ctx, row.ID, s.now(), c)
	if errors.Is(err, task.ErrNotFound) {
		return row, notFound()
	}
	if err != nil {
		return row, err //nolint:wrapcheck // the store says what it was doing
	}
	return s.row(ctx, row.UserID, row.ID)
}

// maxErrorText bounds what a record says of a failure, in bytes.
const maxErrorText = 500

// sentence is what a record says of a failure.
func sentence(err error) string {
	if e, ok := errors.AsType[*sandbox.Error](provider.Told(err)); ok && e.Code != sandbox.CodeInternal {
		return printable.Line(e.Message, maxErrorText)
	}
	return "something went wrong in the API; start the sandbox again"
}

func ptr[T any](v T) *T { return &v }
