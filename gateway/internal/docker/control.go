package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// owned inspects a container and makes sure that it is this installation's. To
// everybody else's the answer is that there is none.
func (r *Runtime) owned(ctx context.Context, e *engine, id string) (container.InspectResponse, error) {
	if id == "" {
		return container.InspectResponse{}, fmt.Errorf("a container without an id: %w", lifecycle.ErrNoContainer)
	}
	resp, err := e.cli.ContainerInspect(ctx, id)
	if err != nil {
		if errdefs.IsNotFound(err) {
			r.mine.Delete(id)
		}
		return resp, err
	}
	if resp.ContainerJSONBase == nil || resp.State == nil || resp.Config == nil ||
		!r.ours(resp.Config.Labels) || r.sandboxOf(resp.Name) == "" {
		return resp, fmt.Errorf("container %s is not this installation's: %w", id, lifecycle.ErrNoContainer)
	}
	if !lowered(resp) {
		r.mine.Store(resp.ID, nil)
	}
	return resp, nil
}

// describe maps what inspect says.
func (r *Runtime) describe(resp container.InspectResponse) lifecycle.Container {
	c := lifecycle.Container{
		ID:        resp.ID,
		SandboxID: r.sandboxOf(resp.Name),
		State:     stateOf(resp.State.Status),
		StartedAt: resp.State.StartedAt,
		ExitCode:  resp.State.ExitCode,
		OOMKilled: resp.State.OOMKilled,
	}
	for _, m := range resp.Mounts {
		if m.Destination == guest.Home {
			c.Volume = m.Name
		}
	}
	if !alive(c.State) || resp.NetworkSettings == nil {
		return c
	}
	// How a container is reached was settled when it was created, whatever the
	// settings say now.
	if resp.HostConfig != nil && len(resp.HostConfig.PortBindings) > 0 {
		c.GuestAddr = published(resp.NetworkSettings.Ports, guestPort)
		c.OpenCodeAddr = published(resp.NetworkSettings.Ports, openCodePort)
		return c
	}
	if ep := resp.NetworkSettings.Networks[r.set.Network]; ep != nil && ep.IPAddress != "" {
		c.GuestAddr = net.JoinHostPort(ep.IPAddress, strconv.Itoa(guest.Port))
		c.OpenCodeAddr = net.JoinHostPort(ep.IPAddress, strconv.Itoa(sandbox.OpenCodePort))
	}
	return c
}

// stateOf maps the engine's states. A container that is being removed, or that
// could not be, does not run; ours are never restarted by the engine.
func stateOf(s container.ContainerState) lifecycle.State {
	switch s {
	case container.StateCreated:
		return lifecycle.ContainerCreated
	case container.StateRunning:
		return lifecycle.ContainerRunning
	case container.StatePaused:
		return lifecycle.ContainerPaused
	default:
		return lifecycle.ContainerExited
	}
}

// alive reports whether a container in this state holds its address.
func alive(s lifecycle.State) bool {
	return s == lifecycle.ContainerRunning || s == lifecycle.ContainerPaused
}

// filter selects what is the installation's in a list or stream.
func (r *Runtime) filter(more ...filters.KeyValuePair) filters.Args {
	return filters.NewArgs(append(more, filters.Arg("label", Label+"="+r.set.Installation))...)
}

// Inspect finds a container by its id.
func (r *Runtime) Inspect(ctx context.Context, id string) (lifecycle.Container, error) {
	var c lifecycle.Container
	err := r.call(ctx, step{call: "inspect", doing: "inspect the sandbox's container"}, func(ctx context.Context, e *engine) error {
		resp, err := r.owned(ctx, e, id)
		if err == nil {
			c = r.describe(resp)
		}
		return err
	})
	return c, err
}

// Current says whether a container is of the image that a new one would be of.
func (r *Runtime) Current(ctx context.Context, id string) (bool, error) {
	var current bool
	err := r.call(ctx, step{call: "image", doing: "look for the sandbox image"}, func(ctx context.Context, e *engine) error {
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		image, err := e.cli.ImageInspect(ctx, r.set.Image)
		current = err == nil && image.ID == resp.Image
		return err
	})
	return current, err
}

// Find finds the container that has a sandbox's name.
func (r *Runtime) Find(ctx context.Context, sandboxID string) (lifecycle.Container, error) {
	c, err := r.Inspect(ctx, r.nameOf(sandboxID))
	if err != nil {
		return lifecycle.Container{}, err
	}
	if c.SandboxID != sandboxID {
		return lifecycle.Container{}, fmt.Errorf("the container of sandbox %s was renamed: %w", sandboxID, lifecycle.ErrNoContainer)
	}
	return c, nil
}

// Alive returns nil when exactly this run still runs or is paused, and
// lifecycle.ErrNoContainer when it has ended. An address belongs to a run from
// its start to its end, so a connection that was made before Alive says nil
// was made to that run and to nothing else.
func (r *Runtime) Alive(ctx context.Context, run lifecycle.Run) error {
	c, err := r.Inspect(ctx, run.ID)
	if err != nil {
		return err
	}
	if !alive(c.State) || c.Run() != run {
		return fmt.Errorf("this run of the container has ended: %w", lifecycle.ErrNoContainer)
	}
	return nil
}

// List returns the installation's containers, whatever their state. Addresses,
// start times, exits and volumes are not filled in.
func (r *Runtime) List(ctx context.Context) ([]lifecycle.Container, error) {
	var all []lifecycle.Container
	err := r.call(ctx, step{call: "list", doing: "list the containers"}, func(ctx context.Context, e *engine) error {
		list, err := e.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: r.filter()})
		for _, s := range list {
			if !r.ours(s.Labels) || len(s.Names) == 0 {
				continue
			}
			if id := r.sandboxOf(s.Names[0]); id != "" {
				all = append(all, lifecycle.Container{ID: s.ID, SandboxID: id, State: stateOf(s.State)})
			}
		}
		return err
	})
	return all, err
}

// Start starts a created or exited container and returns it with addresses.
// Starting one that runs is fine. One that ends at once is boot_failed, or
// out_of_memory when that was why.
func (r *Runtime) Start(ctx context.Context, id string) (lifecycle.Container, error) {
	c, err := r.start(ctx, id)
	if !errors.Is(err, errNoNetwork) {
		return c, err
	}
	if err := r.reattach(ctx, id); err != nil {
		return lifecycle.Container{}, err
	}
	return r.start(ctx, id)
}

// reattach puts a stopped container on the network that has replaced the one
// it was created on: a network without a running container is fair game for a prune.
func (r *Runtime) reattach(ctx context.Context, id string) error {
	if _, err := r.makeNetwork(ctx); err != nil {
		return err
	}
	s := step{call: "attach", doing: "attach the sandbox's container to its network", code: sandbox.CodeBootFailed}
	return r.call(ctx, s, func(ctx context.Context, e *engine) error {
		// The container remembers the old network under the same name.
		if err := e.cli.NetworkDisconnect(ctx, r.set.Network, id, true); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return e.cli.NetworkConnect(ctx, r.set.Network, id, nil)
	})
}

// errNoNetwork says that the network was removed under a container.
var errNoNetwork = &sandbox.Error{Code: sandbox.CodeBootFailed, Message: "the sandboxes' network is gone"}

func (r *Runtime) start(ctx context.Context, id string) (lifecycle.Container, error) {
	var c lifecycle.Container
	s := step{call: "start", doing: "start the sandbox's container", code: sandbox.CodeBootFailed, timeout: r.set.SlowTimeout}
	err := r.call(ctx, s, func(ctx context.Context, e *engine) error {
		before, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		if err := r.restoreLimit(ctx, e, before); err != nil {
			return err
		}
		if err := e.cli.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
			if errdefs.IsNotFound(err) && mentions(strings.ToLower(err.Error()), "network") {
				return errNoNetwork
			}
			return err
		}
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		c = r.describe(resp)
		return began(c)
	})
	return c, err
}

// began returns nil for a container that was started and runs.
func began(c lifecycle.Container) error {
	switch {
	case alive(c.State):
		return nil
	case c.OOMKilled:
		return sandbox.Errorf(sandbox.CodeOutOfMemory, "the sandbox ran out of memory as it started; raise the sandboxes' memory limit")
	default:
		return sandbox.Errorf(sandbox.CodeBootFailed, "the sandbox's first process ended at once with exit code %d; its log (docker logs) says why", c.ExitCode)
	}
}

// Stop kills the container after grace; stopping one that is stopped is fine.
// With a grace the first process gets a SIGTERM first; one that is paused
// cannot act on it and is killed at once.
func (r *Runtime) Stop(ctx context.Context, id string, grace time.Duration) error {
	s := step{call: "stop", doing: "stop the sandbox's container", timeout: grace + r.set.SlowTimeout}
	return r.call(ctx, s, func(ctx context.Context, e *engine) error {
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		if grace > 0 && stateOf(resp.State.Status) == lifecycle.ContainerRunning {
			if err := e.cli.ContainerKill(ctx, id, "SIGTERM"); err != nil && !errdefs.IsConflict(err) {
				return err
			}
			graceCtx, cancel := context.WithTimeout(ctx, grace)
			// Whatever comes of it, the kill below has the last word.
			_, _ = waitFor(graceCtx, e, id, container.WaitConditionNotRunning)
			cancel()
		}
		now := 0
		return e.cli.ContainerStop(ctx, id, container.StopOptions{Timeout: &now})
	})
}

// Pause freezes a running container; pausing one that is paused is fine.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.freeze(ctx, id, lifecycle.ContainerRunning, lifecycle.ContainerPaused)
}

// Unpause thaws a paused container; unpausing one that runs is fine.
func (r *Runtime) Unpause(ctx context.Context, id string) error {
	return r.freeze(ctx, id, lifecycle.ContainerPaused, lifecycle.ContainerRunning)
}

func (r *Runtime) freeze(ctx context.Context, id string, from, to lifecycle.State) error {
	s := step{call: "pause", doing: "pause the sandbox's container"}
	if to == lifecycle.ContainerRunning {
		s = step{call: "unpause", doing: "unpause the sandbox's container"}
	}
	return r.call(ctx, s, func(ctx context.Context, e *engine) error {
		change := e.cli.ContainerPause
		if to == lifecycle.ContainerRunning {
			change = e.cli.ContainerUnpause
		}
		if _, known := r.mine.Load(id); known && change(ctx, id) == nil {
			return nil // nearly always: a wake is not to wait for another question
		}
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		switch now := stateOf(resp.State.Status); now {
		case to:
			return nil
		case from:
		default:
			return sandbox.Errorf(sandbox.CodeConflict, "the sandbox's container is %s, so it cannot be made %s; start it first", now, to)
		}
		if to == lifecycle.ContainerRunning {
			if err := r.restoreLimit(ctx, e, resp); err != nil {
				return err
			}
		}
		return change(ctx, id)
	})
}

// Foreground gives a container that was made with Spec.Background the same part of the
// processors as any other.
func (r *Runtime) Foreground(ctx context.Context, id string) error {
	return r.call(ctx, step{call: "foreground", doing: "give the sandbox's container its part of the processors"}, func(ctx context.Context, e *engine) error {
		if _, err := r.owned(ctx, e, id); err != nil {
			return err
		}
		_, err := e.cli.ContainerUpdate(ctx, id, container.UpdateConfig{Resources: container.Resources{CPUShares: usualShares}})
		return err
	})
}

// Rename gives the container the name of another sandbox id, atomically. It is
// name_taken when another container has that name.
func (r *Runtime) Rename(ctx context.Context, id, sandboxID string) error {
	return r.call(ctx, step{call: "rename", doing: "rename the sandbox's container"}, func(ctx context.Context, e *engine) error {
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		if r.sandboxOf(resp.Name) == sandboxID {
			return nil // the engine would call it an error
		}
		return e.cli.ContainerRename(ctx, id, r.nameOf(sandboxID))
	})
}

// Remove kills and removes the container; removing what is gone is fine. It
// returns lifecycle.ErrNoContainer for one that is not this installation's.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	s := step{call: "remove", doing: "remove the sandbox's container", timeout: r.set.SlowTimeout}
	return r.call(ctx, s, func(ctx context.Context, e *engine) error {
		// Somebody else may be removing it: then what counts is that it goes.
		for {
			if _, err := r.owned(ctx, e, id); err != nil {
				if errdefs.IsNotFound(err) {
					return nil
				}
				return err
			}
			err := e.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
			switch {
			case err == nil || errdefs.IsNotFound(err):
				r.mine.Delete(id)
				return nil
			case !errdefs.IsConflict(err) || !mentions(strings.ToLower(err.Error()), "already in progress"):
				return err
			}
			resp, err := waitFor(ctx, e, id, container.WaitConditionRemoved)
			switch {
			case errdefs.IsNotFound(err):
				return nil
			case err != nil:
				return err
			case resp.Error != nil:
				return errors.New(resp.Error.Message)
			}
		}
	})
}
