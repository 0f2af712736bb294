package provider_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a backend whose health a test decides.
type fake struct {
	sandbox.Backend
	mu     sync.Mutex
	err    error
	hang   time.Duration // how long a look takes, at most until its context ends
	probes atomic.Int64
	closed error
}

func (f *fake) be(err error, hang time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.hang = err, hang
}

func (f *fake) Health(ctx context.Context) error {
	f.probes.Add(1)
	f.mu.Lock()
	err, hang := f.err, f.hang
	f.mu.Unlock()
	select {
	case <-time.After(hang):
		return err
	case <-ctx.Done():
		return sandbox.Errorf(sandbox.CodeDeadline, "it did not answer in time").WithCause(ctx.Err())
	}
}

func (f *fake) Close(context.Context) error { return f.closed }

func away() error { return sandbox.Errorf(sandbox.CodeBackendAway, "it is out") }

func registry(t *testing.T, settings provider.Settings, backends map[string]*fake, log *slog.Logger) *provider.Registry {
	t.Helper()
	var all []provider.Provider
	for name, b := range backends {
		all = append(all, provider.Provider{Name: name, Backend: b})
	}
	r, err := provider.New(settings, all, log)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// watched runs Watch in a bubble until the test ends, after its first look.
func watched(t *testing.T, r *provider.Registry) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		r.Watch(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	synctest.Wait()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestAProviderIsSelected(t *testing.T) {
	t.Parallel()
	const docker, cloudflare = provider.Docker, provider.Cloudflare
	both := []string{docker, cloudflare}
	for name, c := range map[string]struct {
		settings   provider.Settings
		configured []string
		away       []string
		asked      string
		use        provider.UseCase
		want       string
		code       sandbox.Code
		says       string
	}{
		"nothing asked is docker":                             {configured: both, use: provider.QuickTask, want: docker},
		"nothing asked is the default":                        {settings: provider.Settings{Default: cloudflare}, configured: both, use: provider.Development, want: cloudflare},
		"what was asked wins over the default":                {configured: both, asked: cloudflare, use: provider.Development, want: cloudflare},
		"what was asked wins over the use case":               {settings: provider.Settings{AutoSelect: true}, configured: both, asked: docker, use: provider.Batch, want: docker},
		"development is for docker":                           {settings: provider.Settings{AutoSelect: true, Default: cloudflare}, configured: both, use: provider.Development, want: docker},
		"a quick task is for cloudflare":                      {settings: provider.Settings{AutoSelect: true}, configured: both, use: provider.QuickTask, want: cloudflare},
		"a batch is for cloudflare":                           {settings: provider.Settings{AutoSelect: true}, configured: both, use: provider.Batch, want: cloudflare},
		"a team is for cloudflare":                            {settings: provider.Settings{AutoSelect: true}, configured: both, use: provider.MultiAgent, want: cloudflare},
		"cloudflare that is away is not chosen":               {settings: provider.Settings{AutoSelect: true}, configured: both, away: []string{cloudflare}, use: provider.QuickTask, want: docker},
		"cloudflare that is missing is not chosen":            {settings: provider.Settings{AutoSelect: true}, configured: []string{docker}, use: provider.Batch, want: docker},
		"cloudflare asked for and missing":                    {configured: []string{docker}, asked: cloudflare, code: sandbox.CodeProviderMissing, says: "Cloudflare sandboxes not configured: set ENABLE_CLOUDFLARE_SANDBOXES=true and CLOUDFLARE_WORKER_URL, or ask for another provider"},
		"docker asked for and missing":                        {configured: []string{cloudflare}, asked: docker, code: sandbox.CodeProviderMissing, says: "Docker sandboxes not configured: set GATEWAY_URL, or ask for another provider"},
		"a default that is missing":                           {configured: []string{cloudflare}, code: sandbox.CodeProviderMissing, says: "Docker sandboxes not configured: set GATEWAY_URL, or ask for another provider"},
		"a name that is none":                                 {configured: both, asked: "moon", code: sandbox.CodeInvalidRequest, says: `provider must be "docker" or "cloudflare"`},
		"a provider asked for and away":                       {configured: both, away: []string{cloudflare}, asked: cloudflare, code: sandbox.CodeBackendAway, says: "away since 2000-01-01T00:00:00Z (it is out)"},
		"a default that is away":                              {configured: both, away: []string{docker}, code: sandbox.CodeBackendAway, says: "docker"},
		"the use case's last choice is away, as is the first": {settings: provider.Settings{AutoSelect: true}, configured: both, away: both, use: provider.Batch, code: sandbox.CodeBackendAway, says: "docker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				backends := map[string]*fake{}
				for _, p := range c.configured {
					backends[p] = &fake{}
				}
				for _, p := range c.away {
					backends[p].be(away(), 0)
				}
				r := registry(t, c.settings, backends, quiet())
				watched(t, r)
				got, backend, err := r.Select(t.Context(), c.asked, c.use)
				if c.code != "" {
					e, ok := errors.AsType[*sandbox.Error](err)
					if !ok || e.Code != c.code || !strings.Contains(e.Message, c.says) || backend != nil {
						t.Fatalf("%v, want %s: %s", err, c.code, c.says)
					}
					if c.code == sandbox.CodeProviderMissing && e.Message != c.says {
						t.Errorf("it says %q, want exactly %q", e.Message, c.says)
					}
					return
				}
				if err != nil || got != c.want || backend != sandbox.Backend(backends[c.want]) {
					t.Errorf("%q, %v; want %q", got, err, c.want)
				}
			})
		})
	}
}

func TestTheBackendOfASandboxIsGivenWhetherItAnswersOrNot(t *testing.T) {
	t.Parallel()
	b := &fake{err: away()}
	r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: b}, quiet())
	if got, err := r.Backend(provider.Docker); err != nil || got != sandbox.Backend(b) || b.probes.Load() != 0 {
		t.Errorf("%v, %v, %d probes", got, err, b.probes.Load())
	}
	if _, err := r.Backend(provider.Cloudflare); !sandbox.HasCode(err, sandbox.CodeProviderMissing) {
		t.Errorf("%v", err)
	}
	if _, err := r.Backend("moon"); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
		t.Errorf("%v", err)
	}
}

func TestOneThatCameBackIsSelectedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &fake{err: away()}
		r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: b}, quiet())
		watched(t, r)
		b.be(nil, 0)
		if _, _, err := r.Select(t.Context(), "", provider.QuickTask); err != nil {
			t.Error(err)
		}
	})
}

func TestManyWhoAskForOneThatIsAwayShareALook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &fake{hang: time.Hour}
		r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: b}, quiet())
		began := time.Now()
		left, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 50 {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = left
			}
			all.Go(func() {
				_, _, err := r.Select(ctx, provider.Docker, provider.Batch)
				if !sandbox.HasCode(err, sandbox.CodeBackendAway) || !strings.Contains(err.Error(), "in time") {
					t.Errorf("%v", err)
				}
			})
		}
		synctest.Wait()
		leave() // whoever leaves does not spoil what others wait for
		all.Wait()
		if n, took := b.probes.Load(), time.Since(began); n != 1 || took != 3*time.Second {
			t.Errorf("%d looks in %s", n, took)
		}
	})
}

func TestASlowProviderHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow, quick := &fake{hang: time.Hour}, &fake{}
		r := registry(t, provider.Settings{ProbeEvery: time.Second}, map[string]*fake{provider.Docker: slow, provider.Cloudflare: quick}, quiet())
		watched(t, r)
		if !r.States()[provider.Cloudflare].Available {
			t.Error("the quick one waited for the slow one")
		}
		time.Sleep(30*time.Second + time.Millisecond)
		if n := quick.probes.Load(); n != 31 {
			t.Errorf("the quick one was looked at %d times in 30 s", n)
		}
		if s := r.States()[provider.Docker]; s.Available || !strings.Contains(s.Reason, "in time") {
			t.Errorf("%+v", s)
		}
	})
}

func TestSinceIsWhenItBecameSoAndOnlyChangesAreLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := &fake{}
		r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: b}, slog.New(slog.NewTextHandler(&out, nil)))
		start := time.Now().UTC()
		watched(t, r)
		is := func(available bool, since time.Duration, reason string) {
			t.Helper()
			if s := r.States()[provider.Docker]; s.Available != available || !s.Since.Equal(start.Add(since)) || s.Reason != reason || !s.Configured || s.Description == "" {
				t.Errorf("%+v, %s after the start; want %v since %s", s, s.Since.Sub(start), available, since)
			}
		}
		is(true, 0, "")
		b.be(away(), 0)
		time.Sleep(11 * time.Second)
		is(false, 10*time.Second, "it is out")
		b.be(errors.New("password in here"), 0)
		time.Sleep(20 * time.Second)
		is(false, 10*time.Second, "it does not answer as it should")
		b.be(nil, 0)
		time.Sleep(20 * time.Second)
		is(true, 40*time.Second, "")
		synctest.Wait()
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("%d lines for three pieces of news:\n%s", n, out.String())
		}
	})
}

func TestWhatIsNotConfiguredHasAStateToo(t *testing.T) {
	t.Parallel()
	r := registry(t, provider.Settings{}, nil, quiet())
	states := r.States()
	for _, name := range []string{provider.Docker, provider.Cloudflare} {
		if s := states[name]; s.Configured || s.Available || s.Description == "" || !s.Since.IsZero() {
			t.Errorf("%s: %+v", name, s)
		}
	}
	r.Watch(t.Context()) // there is nothing to wait for
}

func TestALookThatAShutdownCutSaysNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: b}, quiet())
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			r.Watch(ctx)
			close(done)
		}()
		synctest.Wait()
		b.be(nil, time.Hour)
		time.Sleep(10*time.Second + time.Millisecond)
		stop()
		<-done
		if s := r.States()[provider.Docker]; !s.Available {
			t.Errorf("%+v", s)
		}
	})
}

func TestAllBackendsAreClosedAndTheirErrorsJoined(t *testing.T) {
	t.Parallel()
	one, two := errors.New("one"), errors.New("two")
	r := registry(t, provider.Settings{}, map[string]*fake{provider.Docker: {closed: one}, provider.Cloudflare: {closed: two}}, quiet())
	if err := r.Close(t.Context()); !errors.Is(err, one) || !errors.Is(err, two) {
		t.Errorf("%v", err)
	}
}

func TestARegistryThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	b := &fake{}
	for name, c := range map[string]struct {
		settings  provider.Settings
		providers []provider.Provider
	}{
		"an unknown default":         {settings: provider.Settings{Default: "moon"}},
		"an unknown provider":        {providers: []provider.Provider{{Name: "moon", Backend: b}}},
		"a provider twice":           {providers: []provider.Provider{{Name: provider.Docker, Backend: b}, {Name: provider.Docker, Backend: b}}},
		"a provider without backend": {providers: []provider.Provider{{Name: provider.Docker}}},
	} {
		if _, err := provider.New(c.settings, c.providers, quiet()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
