package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// DefaultProbeEvery is how often Watch looks at each provider.
	DefaultProbeEvery = 10 * time.Second
	// probeTimeout bounds one look, and so how long Select can take.
	probeTimeout = 3 * time.Second
)

// Settings of a Registry.
type Settings struct {
	// Default is the provider of who names none; empty means Docker.
	Default string
	// AutoSelect chooses by the use case instead.
	AutoSelect bool
	// ProbeEvery is how often Watch looks; 0 means DefaultProbeEvery.
	ProbeEvery time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Registry holds the providers and what is known of each. It is safe for
// concurrent use.
type Registry struct {
	settings Settings
	log      *slog.Logger
	places   map[string]*place // both names, whether configured or not
	flights  singleflight.Group
}

// place is a provider and its state.
type place struct {
	name    string
	title   string
	remedy  string          // how it gets configured
	backend sandbox.Backend // nil if it is not configured

	mu     sync.Mutex
	state  State
	looked bool // at least once
}

// New makes a registry of the providers that are configured. What it says of
// them comes from Watch, and from Select where that finds one away.
func New(settings Settings, providers []Provider, log *slog.Logger) (*Registry, error) {
	if settings.Default == "" {
		settings.Default = Docker
	}
	if settings.ProbeEvery <= 0 {
		settings.ProbeEvery = DefaultProbeEvery
	}
	if settings.Now == nil {
		settings.Now = time.Now
	}
	r := &Registry{settings: settings, log: log, places: map[string]*place{
		Docker:     {name: Docker, title: "Docker", remedy: "set GATEWAY_URL, or ask for another provider", state: State{Description: "Containers on a machine of your own, behind a gateway"}},
		Cloudflare: {name: Cloudflare, title: "Cloudflare", remedy: "set ENABLE_CLOUDFLARE_SANDBOXES=true and CLOUDFLARE_WORKER_URL, or ask for another provider", state: State{Description: "Sandboxes on Cloudflare, behind a worker"}},
	}}
	for _, p := range providers {
		at, ok := r.places[p.Name]
		if !ok || p.Backend == nil || at.backend != nil {
			return nil, fmt.Errorf("the provider %q is unknown, twice there, or has no backend", p.Name)
		}
		at.backend = p.Backend
		at.state.Configured, at.state.Since, at.state.Reason = true, r.now(), "nobody has looked at it yet"
	}
	if r.places[settings.Default] == nil {
		return nil, fmt.Errorf("the default provider must be %s or %s", Docker, Cloudflare)
	}
	return r, nil
}

func (r *Registry) now() time.Time { return r.settings.Now().UTC().Truncate(time.Millisecond) }

// Select returns the provider of a new sandbox: the one that was asked for, or
// the default, or what fits the use case. One that is known to be away is looked
// at again first, which takes three seconds at most. Errors: invalid_request for
// a name that is none, provider_not_configured, backend_unavailable.
func (r *Registry) Select(ctx context.Context, asked string, use UseCase) (name string, backend sandbox.Backend, err error) {
	if asked == "" {
		asked = r.choose(use)
	}
	p, err := r.configured(asked)
	if err != nil {
		return "", nil, err
	}
	if p.get().Available {
		return asked, p.backend, nil
	}
	// Others wait for the same look, so it does not end with this caller.
	r.look(context.WithoutCancel(ctx), p)
	if state := p.get(); !state.Available {
		return "", nil, sandbox.Errorf(sandbox.CodeBackendAway, "the provider %s has been away since %s (%s); try again later, or ask for another one",
			asked, state.Since.Format(time.RFC3339), state.Reason)
	}
	return asked, p.backend, nil
}

// choose names a provider for who asked for none.
func (r *Registry) choose(use UseCase) string {
	switch {
	case !r.settings.AutoSelect:
		return r.settings.Default
	case use != Development && r.places[Cloudflare].get().Available:
		return Cloudflare
	default:
		return Docker
	}
}

// Backend returns the backend of a sandbox that exists, whether it answers or
// not. Errors: invalid_request for a name that is none, provider_not_configured.
func (r *Registry) Backend(name string) (sandbox.Backend, error) {
	p, err := r.configured(name)
	if err != nil {
		return nil, err
	}
	return p.backend, nil
}

func (r *Registry) configured(name string) (*place, error) {
	p, ok := r.places[name]
	if !ok {
		return nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "provider must be %q or %q", Docker, Cloudflare)
	}
	if p.backend == nil {
		return nil, sandbox.Errorf(sandbox.CodeProviderMissing, "%s sandboxes not configured: %s", p.title, p.remedy)
	}
	return p, nil
}

// States returns what is known of each provider, configured or not, by name.
func (r *Registry) States() map[string]State {
	states := make(map[string]State, len(r.places))
	for name, p := range r.places {
		states[name] = p.get()
	}
	return states
}

// Watch looks at every provider at once and then each ProbeEvery, until ctx
// ends. None waits for another.
func (r *Registry) Watch(ctx context.Context) {
	var all sync.WaitGroup
	for _, p := range r.places {
		if p.backend != nil {
			all.Go(func() { r.watch(ctx, p) })
		}
	}
	all.Wait()
}

func (r *Registry) watch(ctx context.Context, p *place) {
	tick := time.NewTicker(r.settings.ProbeEvery)
	defer tick.Stop()
	for {
		r.look(ctx, p)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look asks a provider how it is. Whoever wants to know at the same time shares
// one look.
func (r *Registry) look(ctx context.Context, p *place) {
	_, _, _ = r.flights.Do(p.name, func() (any, error) {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		err := p.backend.Health(probe)
		if ctx.Err() == nil { // or it is not known why it failed
			r.note(p, err)
		}
		return nil, nil
	})
}

// note keeps what a look found, and logs it if it is news.
func (r *Registry) note(p *place, err error) {
	reason := ""
	if err != nil {
		reason = "it does not answer as it should"
		if e, ok := errors.AsType[*sandbox.Error](err); ok {
			reason = e.Message
		}
	}
	p.mu.Lock()
	news := !p.looked || p.state.Available != (err == nil)
	if p.state.Available != (err == nil) {
		p.state.Available, p.state.Since = err == nil, r.now()
	}
	p.state.Reason, p.looked = reason, true
	p.mu.Unlock()
	switch {
	case news && err != nil:
		r.log.Warn("a provider is away", "provider", p.name, "error", err)
	case news:
		r.log.Info("a provider answers", "provider", p.name)
	}
}

func (p *place) get() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Close closes the backends, all of them at once. Nothing may be called after it.
func (r *Registry) Close(ctx context.Context) error {
	var (
		all  sync.WaitGroup
		errs = make(chan error, len(r.places))
	)
	for _, p := range r.places {
		if p.backend == nil {
			continue
		}
		all.Go(func() {
			if err := p.backend.Close(ctx); err != nil {
				errs <- fmt.Errorf("closing the provider %s: %w", p.name, err)
			}
		})
	}
	all.Wait()
	close(errs)
	var failed []error
	for err := range errs {
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
