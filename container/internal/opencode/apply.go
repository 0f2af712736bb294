package opencode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Configure applies a config to the OpenCode that runs. When the sandbox is busy
// the answer is Pending, and the newest such config is applied when it is idle.
// It fails with invalid_request, config_rejected (nothing has changed then),
// boot_failed, or conflict when OpenCode has not been started.
func (s *Supervisor) Configure(ctx context.Context, cfg guest.Config) (guest.Applied, error) {
	if err := cfg.Check(); err != nil {
		return guest.Applied{}, err
	}
	if err := s.take(ctx); err != nil {
		return guest.Applied{}, err
	}
	defer s.give()
	r := s.running()
	if r == nil {
		return guest.Applied{}, sandbox.Errorf(sandbox.CodeConflict, "OpenCode is not running; start it with this config")
	}
	return s.configure(ctx, r, s.complete(r, cfg))
}

// configure applies cfg, or keeps it for later. The caller has the turn.
func (s *Supervisor) configure(ctx context.Context, r *run, cfg guest.Config) (applied guest.Applied, err error) {
	before, _ := s.lastApplied()
	defer func() { err = withoutSecrets(err, cfg, before) }()
	if err := s.awaitReady(ctx, r); err != nil {
		return guest.Applied{}, err
	}
	files, err := changes(s.conf, cfg)
	if err != nil {
		return guest.Applied{}, internal("look at the config folder", err)
	}
	auth := planAuth(s.home, cfg)
	version := s.Status().Version
	if len(files) == 0 && auth.none() {
		s.setPending(nil)
		return guest.Applied{Written: []string{}, Version: version}, s.reload(ctx, r)
	}
	if len(s.Busy(ctx)) > 0 {
		if err := s.tryOut(ctx, r, before, cfg, files); err != nil {
			return guest.Applied{}, err
		}
		s.setPending(&cfg)
		select {
		case r.wake <- struct{}{}:
		default: // it is awake
		}
		return guest.Applied{Written: []string{}, Pending: true, Version: version}, nil
	}
	s.setPending(nil)
	if err := render(s.conf, cfg, files); err != nil {
		s.putBack(before)
		return guest.Applied{}, internal("write the config", err)
	}
	return s.settle(ctx, r, before, cfg, files, true, true)
}

// tryOut has OpenCode read a config that is for later, and puts before back
// whatever it says. What works now has read its config and goes on with it.
func (s *Supervisor) tryOut(ctx context.Context, r *run, before, cfg guest.Config, files []string) error {
	if len(files) == 0 {
		return nil
	}
	defer s.putBack(before)
	if err := render(s.conf, cfg, files); err != nil {
		return internal("write the config", err)
	}
	return s.validate(ctx, r)
}

// settle makes OpenCode take what has been written: it validates, sets the
// credentials and disposes once. When OpenCode says no, before is put back.
// checked says that OpenCode has accepted before; running says that it may have
// read the old files, so that new ones need a dispose.
func (s *Supervisor) settle(ctx context.Context, r *run, before, cfg guest.Config, files []string, checked, running bool) (guest.Applied, error) {
	if len(files) > 0 || !checked {
		if err := s.validate(ctx, r); err != nil {
			s.putBack(before)
			return guest.Applied{}, err
		}
	}
	auth := planAuth(s.home, cfg)
	if err := s.authenticate(ctx, r, auth); err != nil {
		s.putBack(before)
		return guest.Applied{}, err
	}
	written := append([]string{}, files...)
	if !auth.none() {
		written = append(written, guest.KeyAuth)
	}
	s.mu.Lock()
	s.applied, s.checked = cfg, true
	s.stale = s.stale || !auth.none() || (running && len(files) > 0)
	s.mu.Unlock()
	if err := s.reload(ctx, r); err != nil {
		return guest.Applied{}, err
	}
	return guest.Applied{Written: written, Version: s.Status().Version}, nil
}

// reload disposes if OpenCode works with an older config. If that fails the
// next config does it, even one that changes nothing.
func (s *Supervisor) reload(ctx context.Context, r *run) error {
	s.mu.Lock()
	stale := s.stale
	s.mu.Unlock()
	if !stale {
		return nil
	}
	if err := r.api.dispose(ctx); err != nil {
		return opencodeDown("reload the config", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = false
	select {
	case r.cooled <- struct{}{}:
	default: // it is known
	}
	return nil
}

// validate has OpenCode read the config for a folder that nobody works in, so
// that a bad config never reaches an instance that is in use.
func (s *Supervisor) validate(ctx context.Context, r *run) error {
	s.mu.Lock()
	s.probes++
	probe := fmt.Sprintf("%s-probe-%d", s.set.ConfigDir, s.probes)
	s.mu.Unlock()
	err := r.api.checkConfig(ctx, probe)
	if err == nil {
		// Its plugins and servers are not needed any more.
		if err := r.api.forget(ctx, probe); err != nil {
			s.set.Log.DebugContext(ctx, "dispose the probed folder", "error", err)
		}
		return nil
	}
	var no *refusal
	if !errors.As(err, &no) {
		return opencodeDown("check the config", err)
	}
	if no.path != "" && !strings.HasPrefix(no.path, s.set.ConfigDir+string(filepath.Separator)) {
		// A file that somebody inside wrote is broken; this config is not.
		s.set.Log.WarnContext(ctx, "OpenCode complains about a config file of the user's", "path", no.path)
		return nil
	}
	return sandbox.Errorf(sandbox.CodeConfigRejected, "OpenCode rejected the config: %s", no.words)
}

// authenticate sets and removes credentials; on failure it undoes what it did.
func (s *Supervisor) authenticate(ctx context.Context, r *run, auth authChanges) error {
	// Whatever fails from here on, no provider that was ever ours is forgotten.
	both := make(managed)
	for name := range auth.managedBefore {
		both[name] = auth.managedBefore[name]
	}
	for name := range auth.managedAfter {
		if _, ok := both[name]; !ok {
			both[name] = ""
		}
	}
	s.remember(both)
	if !auth.none() {
		if err := mendAuth(s.home); err != nil {
			s.set.Log.WarnContext(ctx, "clear the way for auth.json", "error", err)
		}
	}
	for _, provider := range auth.remove {
		if err := r.api.removeAuth(ctx, provider); err != nil {
			s.undo(ctx, r, auth)
			return opencodeDown("remove the credential of "+provider, err)
		}
	}
	for _, provider := range sortedKeys(auth.set) {
		err := r.api.setAuth(ctx, provider, auth.set[provider])
		if errors.Is(err, errRefused) {
			s.undo(ctx, r, auth)
			return sandbox.Errorf(sandbox.CodeConfigRejected, "OpenCode rejected the credential of %s: %s", provider, err.Error())
		}
		if err != nil {
			s.undo(ctx, r, auth)
			return opencodeDown("set the credential of "+provider, err)
		}
	}
	s.remember(auth.managedAfter)
	return nil
}

// remember writes which providers are ours. Where that fails a credential may
// outlive its config, which is less than a sandbox that cannot start.
func (s *Supervisor) remember(providers managed) {
	if err := writeManaged(s.home, providers); err != nil {
		s.set.Log.Warn("remember the providers", "error", err)
	}
}

// undo makes the credentials what they were.
func (s *Supervisor) undo(ctx context.Context, r *run, auth authChanges) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	restore := func(provider string, old json.RawMessage, had bool) error {
		if had {
			return r.api.setAuth(ctx, provider, old)
		}
		return r.api.removeAuth(ctx, provider)
	}
	for _, provider := range append(sortedKeys(auth.set), auth.remove...) {
		old, had := auth.before[provider]
		if err := restore(provider, old, had); err != nil {
			s.set.Log.WarnContext(ctx, "put a credential back", "provider", provider, "error", err)
		}
	}
	s.remember(auth.managedBefore)
}

// putBack renders the config that was accepted last. No dispose follows:
// nothing that is in use has read the other one.
func (s *Supervisor) putBack(before guest.Config) {
	keys, err := changes(s.conf, before)
	if err == nil {
		err = render(s.conf, before, keys)
	}
	if err != nil {
		s.set.Log.Error("put the previous config back", "error", err)
	}
}

func (s *Supervisor) lastApplied() (cfg guest.Config, checked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied, s.checked
}

func (s *Supervisor) setPending(cfg *guest.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = cfg
}

// applyPending waits for pending configs and applies each when the sandbox is idle.
func (s *Supervisor) applyPending(ctx context.Context, r *run) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for s.PendingConfig() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pendingInterval):
			}
			if len(s.Busy(ctx)) > 0 {
				continue
			}
			s.tryPending(ctx, r)
		}
	}
}

func (s *Supervisor) tryPending(ctx context.Context, r *run) {
	if s.take(ctx) != nil {
		return // stopped
	}
	defer s.give()
	s.mu.Lock()
	cfg := s.pending
	s.mu.Unlock()
	if cfg == nil || s.running() != r {
		return
	}
	limit, cancel := context.WithTimeout(ctx, guest.DefaultStartTimeout)
	defer cancel()
	applied, err := s.configure(limit, r, *cfg)
	switch {
	case err != nil:
		s.setPending(nil) // trying the same again would fail the same way
		s.set.Log.ErrorContext(ctx, "apply the pending config", "error", err)
	case !applied.Pending:
		s.set.Log.InfoContext(ctx, "applied the pending config", "written", applied.Written)
	}
}

func opencodeDown(doing string, err error) error {
	return sandbox.Errorf(sandbox.CodeOpenCodeDown, "OpenCode did not answer (%s)", doing).WithCause(err)
}
