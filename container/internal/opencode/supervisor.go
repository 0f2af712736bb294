// Package opencode starts, supervises, configures and stops OpenCode.
package opencode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The times of supervision.
const (
	probeEvery      = 100 * time.Millisecond
	maxBoot         = 10 * time.Minute
	firstBackoff    = 250 * time.Millisecond
	longestBackoff  = 15 * time.Second
	stableAfter     = time.Minute
	termGrace       = 2 * time.Second
	killGrace       = 5 * time.Second
	bootAttempts    = 3
	pendingInterval = 500 * time.Millisecond
)

// Settings are what a Supervisor needs to know. All fields are required.
type Settings struct {
	Binary     string // absolute: the agent writes in PATH
	Hostname   string // where OpenCode listens
	Port       int
	ConfigDir  string // OPENCODE_CONFIG_DIR, managed altogether
	Home       string
	Workspace  string
	PluginDir  string   // the plugin package that the image holds; empty means none
	Env        []string // what every child inherits
	Output     io.Writer
	Log        *slog.Logger
	Processes  *process.Table
	OtherTasks func() []string // what keeps the sandbox busy besides OpenCode
	// Compact frees OpenCode's database of what was deleted.
	Compact func(context.Context) error
}

// Supervisor owns OpenCode. Its methods are safe for concurrent use; those
// that change something happen one after another.
type Supervisor struct {
	set  Settings
	conf *os.Root
	home *os.Root

	// turn is held by whoever starts, stops or configures.
	turn chan struct{}

	mu      sync.Mutex
	status  guest.OpenCode
	current *run
	applied guest.Config // what is rendered and accepted
	checked bool         // whether OpenCode has accepted it
	stale   bool         // whether OpenCode still works with an older one
	pending *guest.Config
	probes  int
}

// run is OpenCode from a start to a stop, restarts included.
type run struct {
	password  string
	directory string
	// noProject keeps OpenCode from the workspace's config, bare from the home's too.
	noProject, bare bool
	api             *api
	boot            time.Duration
	cancel          context.CancelFunc
	done            chan struct{} // closed when supervision has ended
	wake            chan struct{} // a config is pending
	cooled          chan struct{} // OpenCode has forgotten what it read

	// readiness is guarded by the supervisor's mu. ready is closed when
	// OpenCode is, and replaced when it dies.
	ready  chan struct{}
	failed chan struct{} // closed when it never became ready
	out    *output
}

// New opens the folders and returns a Supervisor of an OpenCode that is stopped.
// Close it at the end.
func New(set Settings) (*Supervisor, error) {
	if err := os.MkdirAll(set.ConfigDir, 0o750); err != nil {
		return nil, fmt.Errorf("make the config folder: %w", err)
	}
	conf, err := os.OpenRoot(set.ConfigDir)
	if err != nil {
		return nil, fmt.Errorf("open the config folder: %w", err)
	}
	home, err := os.OpenRoot(set.Home)
	if err != nil {
		_ = conf.Close()
		return nil, fmt.Errorf("open the home: %w", err)
	}
	return &Supervisor{
		set: set, conf: conf, home: home,
		turn:   make(chan struct{}, 1),
		status: guest.OpenCode{State: guest.StateStopped, Since: time.Now()},
	}, nil
}

// Close ends supervision, and OpenCode with it, and closes the folders.
func (s *Supervisor) Close() error {
	s.end()
	return errors.Join(s.conf.Close(), s.home.Close())
}

// Abandon stops supervision without waiting, so that an OpenCode that dies next
// stays dead.
func (s *Supervisor) Abandon() {
	if r := s.running(); r != nil {
		r.cancel()
	}
}

// take waits for the turn; give it back.
func (s *Supervisor) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return sandbox.Errorf(sandbox.CodeDeadline, "another start, stop or config change did not end in time").WithCause(ctx.Err())
	}
}

func (s *Supervisor) give() { <-s.turn }

// Start brings OpenCode up with a config, or applies the config to the one that
// runs with the same password and directory. An OpenCode that does not get ready
// is started once more, if that may be, without what lies in the home and the
// workspace for it: Applied.Bare says so. It fails with invalid_request, config_rejected or
// boot_failed; after the latter two, if nothing ran before, nothing runs.
func (s *Supervisor) Start(ctx context.Context, req guest.StartRequest) (guest.Applied, error) {
	if req.Password == "" {
		return guest.Applied{}, sandbox.Errorf(sandbox.CodeInvalidRequest, "the start request has no password")
	}
	if err := req.Config.Check(); err != nil {
		return guest.Applied{}, err
	}
	boot := guest.DefaultStartTimeout
	if req.TimeoutMs > 0 {
		boot = time.Duration(min(req.TimeoutMs, maxBoot.Milliseconds())) * time.Millisecond
	}
	limited, cancel := context.WithTimeout(ctx, boot)
	defer cancel()
	if err := s.take(limited); err != nil {
		return guest.Applied{}, err
	}
	defer s.give()

	directory := req.Directory
	if directory == "" {
		directory = s.set.Workspace
	}
	if r := s.running(); r != nil {
		if r.password == req.Password && r.directory == directory {
			s.mu.Lock()
			s.stale = s.stale || req.Reload
			s.mu.Unlock()
			return s.configure(limited, r, s.complete(r, req.Config))
		}
		s.end()
	}
	applied, err := s.boot(limited, &run{password: req.Password, directory: directory, noProject: req.NoProjectConfig, boot: boot}, req)
	if err != nil {
		s.end()
	}
	if !req.MayBare || !sandbox.HasCode(err, sandbox.CodeBootFailed) && !sandbox.HasCode(err, sandbox.CodeOpenCodeDown) || ctx.Err() != nil {
		return applied, err
	}
	s.set.Log.WarnContext(ctx, "OpenCode does not get ready; it is started without the plugins and configs of the home and the workspace", "error", err)
	applied, bareErr := s.boot(ctx, &run{password: req.Password, directory: directory, noProject: true, bare: true, boot: boot}, req)
	if bareErr != nil {
		s.end()
		s.set.Log.WarnContext(ctx, "OpenCode does not get ready without them either", "error", bareErr)
		return guest.Applied{}, err
	}
	return applied, nil
}

// complete adds to a config what the kind of the run asks for.
func (s *Supervisor) complete(r *run, cfg guest.Config) guest.Config {
	if r.noProject {
		return withAgentsMD(cfg, s.set.Workspace, r.directory)
	}
	return cfg
}

// boot starts supervision with the config on disk already, so that OpenCode
// reads it once; to be warmed it begins with another one, which nothing of the
// workspace's reads. It takes r.boot at most.
func (s *Supervisor) boot(ctx context.Context, r *run, req guest.StartRequest) (applied guest.Applied, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.boot)
	defer cancel()
	cfg := s.complete(r, req.Config)
	defer func() { applied.Bare = r.bare && err == nil }()
	before, checked := s.lastApplied()
	defer func() { err = withoutSecrets(err, cfg, before) }()
	s.mend()
	if err := s.seed(); err != nil {
		// OpenCode then installs the package itself: slow, but it works.
		s.set.Log.WarnContext(ctx, "seed the plugin package", "error", err)
	}
	first := cfg
	var model *stubModel
	if req.Warm {
		if model, err = startStubModel(ctx); err != nil {
			return guest.Applied{}, internal("play a model", err)
		}
		defer model.close()
		first = model.config()
	}
	written, err := s.write(first)
	if err != nil {
		return guest.Applied{}, err
	}
	s.begin(ctx, r)
	if err := s.awaitReady(ctx, r); err != nil {
		return guest.Applied{}, err
	}
	if !req.Warm {
		return s.settle(ctx, r, before, cfg, written, checked, false)
	}
	if err := s.rehearse(ctx, r, model); err != nil {
		return guest.Applied{}, opencodeDown("warm it up", err)
	}
	if written, err = s.write(cfg); err != nil {
		return guest.Applied{}, err
	}
	if applied, err = s.settle(ctx, r, before, cfg, written, checked, false); err != nil {
		return guest.Applied{}, err
	}
	if err := s.acquaint(ctx, r); err != nil {
		return guest.Applied{}, err
	}
	return applied, s.cover(ctx)
}

// write makes the config folder what cfg wants, and returns what that changed.
func (s *Supervisor) write(cfg guest.Config) (written []string, err error) {
	if written, err = changes(s.conf, cfg); err != nil {
		return nil, internal("look at the config folder", err)
	}
	if err := render(s.conf, cfg, written); err != nil {
		return nil, internal("write the config", err)
	}
	return written, nil
}

// seed keeps OpenCode from installing its plugin package into the folders.
func (s *Supervisor) seed() error {
	if s.set.PluginDir == "" {
		return nil
	}
	if err := seedPlugin(s.conf, s.set.PluginDir, true); err != nil {
		return err
	}
	const own = ".config/opencode"
	if err := s.home.MkdirAll(own, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", own, err)
	}
	root, err := s.home.OpenRoot(own)
	if err != nil {
		return fmt.Errorf("open %s: %w", own, err)
	}
	defer root.Close()
	return seedPlugin(root, s.set.PluginDir, false)
}

// begin starts the goroutines of a run, which outlives the request for it.
func (s *Supervisor) begin(ctx context.Context, r *run) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.api, r.cancel = newAPI(s.set.Port, r.password), cancel
	r.done, r.ready, r.failed = make(chan struct{}), make(chan struct{}), make(chan struct{})
	r.wake, r.cooled = make(chan struct{}, 1), make(chan struct{}, 1)
	r.out = &output{to: s.set.Output}
	s.mu.Lock()
	s.current = r
	s.mu.Unlock()
	var tasks sync.WaitGroup
	tasks.Go(func() { s.supervise(ctx, r) })
	tasks.Go(func() { s.applyPending(ctx, r) })
	tasks.Go(func() { s.keepWarm(ctx, r) })
	go func() {
		defer close(r.done)
		tasks.Wait()
	}()
}

// end stops the current run and waits until its process is gone.
func (s *Supervisor) end() {
	r := s.running()
	if r == nil {
		return
	}
	r.cancel()
	<-r.done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.pending = nil, nil
	s.status.State, s.status.PID, s.status.Since = guest.StateStopped, 0, time.Now()
	s.status.Bare = false
}

// Stop ends OpenCode and every process in the sandbox. Stopping twice is fine.
func (s *Supervisor) Stop(ctx context.Context, grace time.Duration) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if r := s.running(); r != nil {
		r.cancel() // or it would be restarted
	}
	err := s.set.Processes.EndAll(ctx, grace)
	s.end()
	if err != nil {
		return internal("end the sandbox's processes", err)
	}
	return nil
}

func (s *Supervisor) running() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// awaitReady waits until OpenCode answers.
func (s *Supervisor) awaitReady(ctx context.Context, r *run) error {
	s.mu.Lock()
	ready := r.ready
	s.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-r.failed:
		return sandbox.Errorf(sandbox.CodeBootFailed, "OpenCode ended %d times before it was ready (%s): %s",
			bootAttempts, s.Status().LastExit, r.out.tail())
	case <-r.done:
		return sandbox.Errorf(sandbox.CodeConflict, "OpenCode was stopped")
	case <-ctx.Done():
		return sandbox.Errorf(sandbox.CodeBootFailed, "OpenCode was not ready in time: %s", r.out.tail()).WithCause(ctx.Err())
	}
}

// Status returns how OpenCode's process fares.
func (s *Supervisor) Status() guest.OpenCode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// PendingConfig reports whether a config waits for the sandbox to be idle.
func (s *Supervisor) PendingConfig() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending != nil
}

func internal(doing string, err error) error {
	code := sandbox.CodeInternal
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = sandbox.CodeDiskFull
	}
	return sandbox.Errorf(code, "%s: %w", doing, err)
}
