package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Facts are what an engine says of itself.
type Facts struct {
	Host    string // its address
	Version string
	API     string // the version that is spoken with it
	Time    string // its clock (RFC 3339, with a fraction)
	CPUs    int
	// Lacks are the limits that its kernel does not enforce.
	Lacks []string
}

// Facts asks the engine what it is like. It fails as Ready does, but for the image.
func (r *Runtime) Facts(ctx context.Context) (Facts, error) {
	var f Facts
	err := r.call(ctx, step{doing: "describe itself"}, func(ctx context.Context, e *engine) error {
		info, err := e.cli.Info(ctx)
		if err != nil {
			return err
		}
		f = Facts{Host: r.host, Version: info.ServerVersion, API: e.cli.ClientVersion(), Time: info.SystemTime, CPUs: info.NCPU}
		for _, limit := range []struct {
			name string
			has  bool
		}{
			{"memory", info.MemoryLimit},
			{"swap", info.SwapLimit},
			{"processes", info.PidsLimit},
			{"processors", info.CPUCfsPeriod && info.CPUCfsQuota},
		} {
			if !limit.has {
				f.Lacks = append(f.Lacks, limit.name)
			}
		}
		return nil
	})
	return f, err
}

const (
	// trialPrefix begins the name of a trial's container where a sandbox has its id,
	// which never begins with a dot.
	trialPrefix = ".trial-"
	// trialLabel marks it; its installation is not a gateway's, which would remove it.
	trialLabel, trialSuffix = "agentpod.trial", "-trial"
	// trialAge is the age of one that nobody removes any more.
	trialAge = 10 * time.Minute
)

// Trial is a container as a sandbox gets it, and the network that it takes, for
// somebody who wants to know whether sandboxes will work. Close leaves nothing that
// was not there before. A gateway of the same installation may run meanwhile. Its
// methods are for one goroutine at a time.
type Trial struct {
	r    *Runtime
	made bool // the network
	id   string
}

// NewTrial begins a trial, which has made nothing yet.
func (r *Runtime) NewTrial() *Trial { return &Trial{r: r} }

// Network makes the installation's network unless it exists, and returns the host's
// address on it, and whether containers are reached at their own addresses.
func (t *Trial) Network(ctx context.Context) (hostAddr string, direct bool, err error) {
	r := t.r
	err = r.call(ctx, step{doing: "look for the sandboxes' network"}, func(ctx context.Context, e *engine) error {
		found, err := r.findNetworks(ctx, e)
		t.made = len(found) == 0
		return err
	})
	if err != nil {
		t.made = false
		return "", false, err
	}
	nw, err := r.makeNetwork(ctx)
	if err != nil {
		return "", false, err
	}
	return nw.gateway, nw.direct, nil
}

// Start makes and starts a container with everything that a sandbox's has, but with
// a volume without a name, which goes with it.
func (t *Trial) Start(ctx context.Context, env map[string]string) (c lifecycle.Container, warnings []string, err error) {
	r := t.r
	nw, err := r.useNetwork(ctx)
	if err != nil {
		return c, nil, err
	}
	s := step{doing: "start a container as a sandbox has one", code: sandbox.CodeBootFailed, timeout: r.set.SlowTimeout}
	err = r.call(ctx, s, func(ctx context.Context, e *engine) error {
		r.sweepTrials(ctx, e)
		spec := lifecycle.Spec{SandboxID: trialPrefix + strings.ToLower(rand.Text()), Env: env}
		labels := map[string]string{Label: r.set.Installation + trialSuffix, trialLabel: "true"}
		config, host := r.config(spec, nw), r.hostConfig(spec, e, nw)
		config.Labels, host.Mounts[0].VolumeOptions.Labels = labels, labels
		made, err := e.cli.ContainerCreate(ctx, config, host, nil, nil, r.nameOf(spec.SandboxID))
		if err != nil {
			return err
		}
		t.id, warnings = made.ID, made.Warnings
		if err := e.cli.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
			return err
		}
		c, err = t.look(ctx, e)
		if err != nil {
			return err
		}
		return began(c)
	})
	return c, warnings, err
}

// Look returns the container as it is now.
func (t *Trial) Look(ctx context.Context) (c lifecycle.Container, err error) {
	err = t.r.call(ctx, step{doing: "inspect a container"}, func(ctx context.Context, e *engine) error {
		c, err = t.look(ctx, e)
		return err
	})
	return c, err
}

func (t *Trial) look(ctx context.Context, e *engine) (lifecycle.Container, error) {
	resp, err := e.cli.ContainerInspect(ctx, t.id)
	if err != nil {
		return lifecycle.Container{}, err
	}
	if resp.ContainerJSONBase == nil || resp.State == nil {
		return lifecycle.Container{}, errors.New("the engine describes no container")
	}
	return t.r.describe(resp), nil
}

// sweepTrials removes what trials left that were killed. It is a courtesy.
func (r *Runtime) sweepTrials(ctx context.Context, e *engine) {
	list, err := e.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", trialLabel))})
	if err != nil {
		return
	}
	for _, c := range list {
		if time.Since(time.Unix(c.Created, 0)) > trialAge {
			_ = e.cli.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		}
	}
}

// Close removes what the trial made.
func (t *Trial) Close(ctx context.Context) error {
	var errs []error
	if t.id != "" {
		errs = append(errs, t.r.call(ctx, step{doing: "remove a container", timeout: t.r.set.SlowTimeout}, func(ctx context.Context, e *engine) error {
			// Some engines count it among those on the network for a while after it has gone.
			_ = e.cli.NetworkDisconnect(ctx, t.r.set.Network, t.id, true)
			err := e.cli.ContainerRemove(ctx, t.id, container.RemoveOptions{Force: true, RemoveVolumes: true})
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}))
		t.id = ""
	}
	if t.made {
		t.made = false
		errs = append(errs, t.r.RemoveNetwork(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("taking back what was tried: %w", err)
	}
	return nil
}
