package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// shrunkMemory is the limit under which a container is for a moment, so that the
	// kernel moves the rest of its memory to swap. A sandbox's own limit is more.
	shrunkMemory = 32 << 20
	// swapReserve is what stays free of the swap, for everything else on the host.
	swapReserve = 256 << 20
)

// errNoSwap says that there is nowhere to move memory to.
var errNoSwap = sandbox.Errorf(sandbox.CodeUnsupported, "the engine's host has not enough free swap to shrink a sandbox")

// Shrink moves what a paused container has in memory to the host's swap, by lowering
// its limit and putting it back. That takes a second or two. It is unsupported if
// there is not enough free swap, or that cannot be known as the engine is on another
// machine. Whatever fails, the limit is put back, by the next Unpause or Start if it
// cannot be at once; a container that the kernel kills meanwhile has ended by itself.
func (r *Runtime) Shrink(ctx context.Context, id string) error {
	return r.call(ctx, step{call: "shrink", doing: "shrink the sandbox's container", timeout: r.set.SlowTimeout}, func(ctx context.Context, e *engine) error {
		resp, err := r.owned(ctx, e, id)
		if err != nil {
			return err
		}
		if now := stateOf(resp.State.Status); now != lifecycle.ContainerPaused {
			return sandbox.Errorf(sandbox.CodeConflict, "the sandbox's container is %s; only a paused one is shrunk", now)
		}
		if resp.HostConfig.Memory <= shrunkMemory {
			return r.restoreLimit(ctx, e, resp)
		}
		used, err := sample(ctx, e, id)
		if err != nil {
			return err
		}
		if free, known := r.freeSwap(); !known || free < used.MemoryStats.Usage+swapReserve {
			return errNoSwap
		}
		r.mine.Delete(id) // until its limit is as it was, it is looked at before it runs
		lowerErr := setLimit(ctx, e, id, shrunkMemory, resp.HostConfig.MemorySwap)
		// However that ended, and whoever waits for it no more.
		backCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoring)
		defer cancel()
		backErr := setLimit(backCtx, e, id, resp.HostConfig.Memory, resp.HostConfig.MemorySwap)
		if backErr == nil {
			r.mine.Store(resp.ID, nil)
		}
		return errors.Join(lowerErr, backErr)
	})
}

// restoring bounds the call that puts a limit back.
const restoring = 30 * time.Second

// restoreLimit puts the limit of a container back that was shrunk when something, or
// the whole gateway, ended.
func (r *Runtime) restoreLimit(ctx context.Context, e *engine, resp container.InspectResponse) error {
	if !lowered(resp) {
		return nil
	}
	limit := resp.HostConfig.MemorySwap // the two are the same otherwise
	return setLimit(ctx, e, resp.ID, limit, limit)
}

// lowered says whether a container is under the limit of one that is being shrunk.
func lowered(resp container.InspectResponse) bool {
	return resp.HostConfig != nil && resp.HostConfig.Memory == shrunkMemory
}

func setLimit(ctx context.Context, e *engine, id string, memory, withSwap int64) error {
	_, err := e.cli.ContainerUpdate(ctx, id, container.UpdateConfig{Resources: container.Resources{Memory: memory, MemorySwap: withSwap}})
	return err
}

// FreeSwap is how much of the swap of the engine's host is free for sandboxes, in
// bytes; it is known if the engine is on this machine.
func (r *Runtime) FreeSwap() (free uint64, known bool) {
	free, known = r.freeSwap()
	return free - min(free, swapReserve), known
}

// freeSwap is how much of it is free at all.
func (r *Runtime) freeSwap() (free uint64, known bool) {
	if !strings.HasPrefix(r.host, "unix://") {
		return 0, false
	}
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	free, err = swapIn(string(raw))
	return free, err == nil
}

// swapIn reads the free swap out of the kernel's figures.
func swapIn(meminfo string) (uint64, error) {
	for line := range strings.Lines(meminfo) {
		if value, ok := strings.CutPrefix(line, "SwapFree:"); ok {
			kB, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
			if err != nil {
				return 0, fmt.Errorf("reading SwapFree: %w", err)
			}
			return kB << 10, nil
		}
	}
	return 0, errors.New("there is no SwapFree")
}
