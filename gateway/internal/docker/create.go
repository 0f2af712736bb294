package docker

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/go-connections/nat"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The ports of a sandbox as the engine words them.
//
//nolint:gochecknoglobals // constants of the engine's type
var (
	guestPort    = nat.Port(strconv.Itoa(guest.Port) + "/tcp")
	openCodePort = nat.Port(strconv.Itoa(sandbox.OpenCodePort) + "/tcp")
)

const loopback = "127.0.0.1"

// Create makes the volume (if absent, unless the spec says that it is kept) and the
// container, not started. When it fails it leaves no volume that was not there before.
func (r *Runtime) Create(ctx context.Context, spec lifecycle.Spec) (lifecycle.Container, error) {
	nw, err := r.useNetwork(ctx)
	if err != nil {
		return lifecycle.Container{}, err
	}
	var c lifecycle.Container
	s := step{call: "create", doing: "create the sandbox's container", timeout: r.set.SlowTimeout}
	err = r.call(ctx, s, func(ctx context.Context, e *engine) error {
		fresh, err := r.ensureVolume(ctx, e, spec.Volume, spec.Kept)
		if err != nil {
			return err
		}
		made, err := e.cli.ContainerCreate(ctx, r.config(spec, nw), r.hostConfig(spec, e, nw), nil, nil, r.nameOf(spec.SandboxID))
		if err != nil {
			if fresh {
				r.dropVolume(ctx, e, spec.Volume)
			}
			return err
		}
		if len(made.Warnings) > 0 && r.warned.CompareAndSwap(false, true) {
			r.log.WarnContext(ctx, "the container engine does not enforce every limit", "warnings", made.Warnings)
		}
		c = lifecycle.Container{ID: made.ID, SandboxID: spec.SandboxID, State: lifecycle.ContainerCreated, Volume: spec.Volume}
		return nil
	})
	return c, err
}

// CreateVolume makes a volume; one of that name that is ours is fine.
func (r *Runtime) CreateVolume(ctx context.Context, name string) error {
	return r.call(ctx, step{call: "create_volume", doing: "create a volume"}, func(ctx context.Context, e *engine) error {
		_, err := r.ensureVolume(ctx, e, name, false)
		return err
	})
}

// config is the portable half of a container.
func (r *Runtime) config(spec lifecycle.Spec, nw *network) *container.Config {
	cfg := &container.Config{
		Hostname: "sandbox",
		Image:    r.set.Image,
		Labels:   r.labels(),
		// PID 1 is asked to stop over its own route first; what is left when the
		// engine stops a container has nothing to wait for.
		StopSignal: "SIGKILL",
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Env)) {
		cfg.Env = append(cfg.Env, name+"="+spec.Env[name])
	}
	if !nw.direct {
		cfg.ExposedPorts = nat.PortSet{guestPort: {}, openCodePort: {}}
	}
	return cfg
}

// The weights of a container when processors are scarce: the kernel's least, and what
// the engine gives one of which nothing is said.
const (
	leastShares = 2
	usualShares = 1024
)

// hostConfig is the isolation: what the container may use and see.
func (r *Runtime) hostConfig(spec lifecycle.Spec, e *engine, nw *network) *container.HostConfig {
	init := false // sandboxd is PID 1
	pids := r.set.Pids
	host := &container.HostConfig{
		NetworkMode:    container.NetworkMode(r.set.Network),
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"no-new-privileges"},
		ReadonlyRootfs: true,
		IpcMode:        container.IPCModePrivate,
		Runtime:        r.set.Runtime,
		Init:           &init,
		Mounts: []mount.Mount{{
			Type:   mount.TypeVolume,
			Source: spec.Volume,
			Target: guest.Home,
			// Should the volume have gone since it was made, the engine makes it
			// again here, and it must be ours then too.
			VolumeOptions: &mount.VolumeOptions{Labels: r.labels()},
		}},
		Tmpfs: map[string]string{
			"/tmp": fmt.Sprintf("rw,exec,nosuid,nodev,mode=1777,size=%d", r.set.TmpSize),
			"/run": fmt.Sprintf("rw,noexec,nosuid,nodev,mode=1777,size=%d", r.set.RunSize),
		},
		LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{
			"max-size": strconv.FormatInt(r.set.LogMaxSize, 10),
			"max-file": strconv.Itoa(r.set.LogMaxFiles),
		}},
		Resources: container.Resources{
			Memory:     r.set.Memory,
			MemorySwap: r.set.Memory,
			// The engine refuses more processors than it has.
			NanoCPUs:  int64(min(r.set.CPUs, float64(e.cpus)) * 1e9),
			PidsLimit: &pids,
			Ulimits:   []*container.Ulimit{{Name: "nofile", Soft: r.set.NoFile, Hard: r.set.NoFile}},
		},
	}
	if spec.Background {
		host.CPUShares = leastShares
	}
	if !nw.direct {
		// Port 0: the engine chooses one that is free.
		anyPort := []nat.PortBinding{{HostIP: loopback, HostPort: "0"}}
		host.PortBindings = nat.PortMap{guestPort: anyPort, openCodePort: anyPort}
	}
	return host
}

// ensureVolume makes the volume and reports whether it is new. One that is kept is
// never made.
func (r *Runtime) ensureVolume(ctx context.Context, e *engine, name string, kept bool) (fresh bool, err error) {
	v, err := e.cli.VolumeInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		if kept {
			return false, fmt.Errorf("the volume %s: %w", name, lifecycle.ErrNoVolume)
		}
		fresh = true
		v, err = e.cli.VolumeCreate(ctx, volume.CreateOptions{Name: name, Labels: r.labels()})
	}
	if err != nil {
		return false, err
	}
	if !r.ours(v.Labels) {
		return false, sandbox.Errorf(sandbox.CodeNameTaken,
			"a volume named %s exists already and is not this gateway's; remove it (docker volume rm) or rename it, and try again", name)
	}
	return fresh, nil
}

// dropVolume removes what a failed Create made, also when that failed because
// the caller left.
func (r *Runtime) dropVolume(ctx context.Context, e *engine, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.set.CallTimeout)
	defer cancel()
	if err := e.cli.VolumeRemove(ctx, name, false); err != nil && !errdefs.IsNotFound(err) {
		r.log.WarnContext(ctx, "a failed create left a volume behind", "volume", name, "error", err)
	}
}

// RemoveVolume removes a volume; removing what is gone is fine. It returns
// lifecycle.ErrNoContainer for a volume that is not this installation's.
func (r *Runtime) RemoveVolume(ctx context.Context, name string) error {
	return r.call(ctx, step{call: "remove_volume", doing: "remove the sandbox's volume"}, func(ctx context.Context, e *engine) error {
		v, err := e.cli.VolumeInspect(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return err
		case !r.ours(v.Labels):
			return fmt.Errorf("volume %s is not this installation's: %w", name, lifecycle.ErrNoContainer)
		}
		if err := e.cli.VolumeRemove(ctx, name, false); !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
}

// Volumes returns the names of the installation's volumes.
func (r *Runtime) Volumes(ctx context.Context) ([]string, error) {
	var names []string
	err := r.call(ctx, step{call: "volumes", doing: "list the volumes"}, func(ctx context.Context, e *engine) error {
		list, err := e.cli.VolumeList(ctx, volume.ListOptions{Filters: r.filter()})
		for _, v := range list.Volumes {
			names = append(names, v.Name)
		}
		return err
	})
	return names, err
}

// published is where the engine published a port, empty when it did not.
func published(ports nat.PortMap, port nat.Port) string {
	for _, b := range ports[port] {
		if b.HostIP == loopback && b.HostPort != "" {
			return net.JoinHostPort(loopback, b.HostPort)
		}
	}
	return ""
}
