// Package docker runs sandboxes as containers of a Docker engine, API 1.41
// (Docker 20.10) or newer. It is the only package that knows the engine's
// client; the gateway sees lifecycle.Runtime.
//
// Everything it makes carries the installation's label, and it acts on nothing
// that does not. The engine may be absent when a Runtime is made and may be
// restarted or upgraded under it: each call fails with engine_unavailable
// meanwhile and works again afterwards.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Label names the label whose value is the installation, on every container,
// volume and network.
const Label = "agentpod.installation"

// minAPI is the oldest engine API that has all that is asked of it here.
const minAPI = "1.41"

// idleConns is how many connections to the engine are kept for the next call.
// The client's own two would make every third concurrent call dial anew.
const idleConns = 32

var _ lifecycle.Runtime = (*Runtime)(nil)

// Runtime is a lifecycle.Runtime on a Docker engine. It is safe for concurrent use.
type Runtime struct {
	set  Settings
	log  *slog.Logger
	host string

	// gate is held while the engine is asked for its version or the network is
	// made, so that one caller does it and the others wait for their own
	// context's time only.
	gate    chan struct{}
	engine  atomic.Pointer[engine]
	network atomic.Pointer[network]
	warned  atomic.Bool // the engine's warnings at create were logged
	// mine has the ids of containers that were seen to be the installation's (their
	// labels cannot change, and no other container ever gets such an id) and to have
	// the limits that they should.
	mine  sync.Map
	calls *metrics.Calls
}

// engine is a client that speaks a version that the engine knows.
type engine struct {
	cli      *client.Client
	cpus     int
	runtimes []string
}

// New returns a Runtime. It does not need the engine to be there; it fails only
// for settings that can never work, with a sentence that says which.
func New(set Settings, log *slog.Logger) (*Runtime, error) {
	set = set.withDefaults()
	if err := set.validate(); err != nil {
		return nil, fmt.Errorf("the container runtime's settings: %w", err)
	}
	cli, err := newClient(set.Host)
	if err != nil {
		return nil, err
	}
	return &Runtime{
		set:  set,
		log:  log.With("installation", set.Installation),
		host: cli.DaemonHost(),
		gate: make(chan struct{}, 1),

		calls: metrics.NewCalls("agentpod_engine", "call", "the container engine", proper, callNames()...),
	}, nil
}

// newClient returns a client that has not spoken to the engine yet.
func newClient(host string) (*client.Client, error) {
	at := client.WithHostFromEnv()
	if host != "" {
		at = client.WithHost(host)
	}
	// The address appears in messages, so one that could hold a password is not
	// taken, and a bad one is not repeated.
	probe, err := client.NewClientWithOpts(at)
	if err != nil || !usable(probe.DaemonHost()) {
		return nil, errors.New("DOCKER_HOST must be unix:///path or tcp://host:port, such as unix:///var/run/docker.sock, without user and password (certificates: DOCKER_CERT_PATH); forward the socket of one behind ssh")
	}
	// The version of DOCKER_API_VERSION is left alone on purpose: it would
	// switch the negotiation off.
	cli, err := client.NewClientWithOpts(
		client.WithTLSClientConfigFromEnv(),
		at,
		client.WithAPIVersionNegotiation(),
		client.WithTraceOptions(otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
			return "engine " + r.Method // and not the path, which has ids
		})),
		func(c *client.Client) error {
			if t, ok := c.HTTPClient().Transport.(*http.Transport); ok {
				t.MaxIdleConns, t.MaxIdleConnsPerHost = idleConns, idleConns
			}
			return nil
		},
	)
	if err != nil {
		return nil, fmt.Errorf("making the container engine's client: %w", err)
	}
	return cli, nil
}

func usable(host string) bool {
	return strings.HasPrefix(host, "unix://") || strings.HasPrefix(host, "tcp://") && !strings.Contains(host, "@")
}

// Close lets go of the idle connections to the engine. Containers stay.
func (r *Runtime) Close() {
	if e := r.engine.Load(); e != nil {
		_ = e.cli.Close() // only closes idle connections and cannot fail
	}
}

// lock takes the gate within the context's time.
func (r *Runtime) lock(ctx context.Context) error {
	select {
	case r.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the container engine: %w", ctx.Err())
	}
}

func (r *Runtime) unlock() { <-r.gate }

// connect returns a client that has agreed on a version with the engine.
func (r *Runtime) connect(ctx context.Context) (*engine, error) {
	if e := r.engine.Load(); e != nil {
		return e, nil
	}
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	defer r.unlock()
	if e := r.engine.Load(); e != nil {
		return e, nil
	}
	cli, err := newClient(r.set.Host)
	if err != nil {
		return nil, err
	}
	e, err := r.negotiate(ctx, cli)
	if err != nil {
		_ = cli.Close()
		return nil, err
	}
	r.engine.Store(e)
	return e, nil
}

func (r *Runtime) negotiate(ctx context.Context, cli *client.Client) (*engine, error) {
	const doing = "say its version"
	callCtx, cancel := context.WithTimeout(ctx, r.set.CallTimeout)
	defer cancel()
	ping, err := cli.Ping(callCtx)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, r.explain(ctx, step{doing: doing}, err)
	}
	if err != nil || ping.APIVersion == "" {
		return nil, sandbox.Errorf(sandbox.CodeEngineAway,
			"what answers at %s is not a Docker engine; check DOCKER_HOST", r.host)
	}
	if versions.LessThan(ping.APIVersion, minAPI) {
		return nil, sandbox.Errorf(sandbox.CodeEngineTooOld,
			"the container engine at %s speaks API %s; at least %s is needed: upgrade it to Docker 20.10 or newer", r.host, ping.APIVersion, minAPI)
	}
	cli.NegotiateAPIVersionPing(ping)
	info, err := cli.Info(callCtx)
	if err != nil {
		return nil, r.explain(ctx, step{doing: doing}, err)
	}
	e := &engine{cli: cli, cpus: info.NCPU}
	for name := range info.Runtimes {
		e.runtimes = append(e.runtimes, name)
	}
	slices.Sort(e.runtimes)
	r.log.InfoContext(ctx, "container engine connected", "engine", r.host,
		"version", info.ServerVersion, "api", cli.ClientVersion(), "cpus", info.NCPU)
	return e, nil
}

// step is one thing that is asked of the engine. call is what the figures call it,
// and doing completes "the container engine could not …"; code is what a failure is
// that has no code of its own; when that is empty, engine_unavailable for a 500 of the
// engine and internal for all else.
type step struct {
	call    string // one of callNames
	doing   string
	code    sandbox.Code
	timeout time.Duration // 0 means the settings' CallTimeout
}

// call runs fn with a connected client under the step's timeout, explains its
// error, and counts it.
func (r *Runtime) call(ctx context.Context, s step, fn func(context.Context, *engine) error) error {
	began := time.Now()
	err := r.ask(ctx, s, fn)
	r.calls.Count(ctx, s.call, time.Since(began), err)
	return err
}

func (r *Runtime) ask(ctx context.Context, s step, fn func(context.Context, *engine) error) error {
	e, err := r.connect(ctx)
	if err != nil {
		return err
	}
	timeout := s.timeout
	if timeout == 0 {
		timeout = r.set.CallTimeout
	}
	callCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return r.explain(ctx, s, fn(callCtx, e))
}

// Ready returns nil when the engine answers, is new enough, has the image and
// the runtime class.
func (r *Runtime) Ready(ctx context.Context) error {
	return r.call(ctx, step{call: "image", doing: "look for the sandbox image"}, func(ctx context.Context, e *engine) error {
		if r.set.Runtime != "" && !slices.Contains(e.runtimes, r.set.Runtime) {
			// Asked again, so that a runtime added since then is seen.
			r.forget(e)
			return sandbox.Errorf(sandbox.CodeEngineAway,
				"the container engine at %s has no runtime class %q (it has %s); add it to the engine or change the setting",
				r.host, r.set.Runtime, strings.Join(e.runtimes, ", "))
		}
		_, err := e.cli.ImageInspect(ctx, r.set.Image)
		return err
	})
}

// forget makes the next call ask the engine for its version anew.
func (r *Runtime) forget(e *engine) {
	if r.engine.CompareAndSwap(e, nil) {
		_ = e.cli.Close()
	}
}

// nameOf is the name of a sandbox's container.
func (r *Runtime) nameOf(sandboxID string) string {
	return "agentpod-" + r.set.Installation + "-" + sandboxID
}

// sandboxOf is the sandbox id in a container's name, with or without the
// engine's leading slash; empty when the name is not one of ours.
func (r *Runtime) sandboxOf(name string) string {
	id, ok := strings.CutPrefix(strings.TrimPrefix(name, "/"), r.nameOf(""))
	if !ok {
		return ""
	}
	return id
}

// labels mark what is ours.
func (r *Runtime) labels() map[string]string {
	return map[string]string{Label: r.set.Installation}
}

func (r *Runtime) ours(labels map[string]string) bool {
	return labels[Label] == r.set.Installation
}
