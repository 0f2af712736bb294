package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// explain turns what the client returned into what the Runtime promises. ctx
// is the caller's context, without the call's own timeout. The engine's words
// are kept as the cause, for the log: they hold paths of its host.
func (r *Runtime) explain(ctx context.Context, s step, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*sandbox.Error](err); ok || errors.Is(err, lifecycle.ErrNoContainer) || errors.Is(err, lifecycle.ErrNoVolume) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("asking the container engine to %s: %w", s.doing, ctx.Err())
	}
	if timedOut(err) {
		return sandbox.Errorf(sandbox.CodeEngineAway,
			"the container engine at %s did not %s in time; try again, and look at its log if that goes on", r.host, s.doing).WithCause(err)
	}
	if unreachable(err) {
		return r.absent(err)
	}

	said := strings.ToLower(err.Error())
	switch {
	case mentions(said, "no space left on device", "disk quota exceeded"):
		return sandbox.Errorf(sandbox.CodeDiskFull,
			"the container engine's disk is full, so it could not %s; free space (docker system df shows what is used) and try again", s.doing).WithCause(err)
	case mentions(said, "cannot allocate memory", "not enough memory", "out of memory", "oom-killed", "oom killed"):
		return sandbox.Errorf(sandbox.CodeOutOfMemory,
			"there was not enough memory to %s; stop other sandboxes, or raise the sandboxes' memory limit", s.doing).WithCause(err)
	case mentions(said, "client version") && mentions(said, "is too old", "is too new"):
		// The engine was replaced by another version under a client that had
		// agreed with the old one.
		if e := r.engine.Load(); e != nil {
			r.forget(e)
		}
		return sandbox.Errorf(sandbox.CodeEngineAway, "the container engine at %s has changed its version; try again", r.host).WithCause(err)
	case mentions(said, "unknown runtime specified", "unknown or invalid runtime"):
		return sandbox.Errorf(sandbox.CodeEngineAway,
			"the container engine at %s does not know the runtime class %q; add it to the engine or change the setting", r.host, r.set.Runtime).WithCause(err)
	case mentions(said, "setting rlimit"):
		return sandbox.Errorf(sandbox.CodeBootFailed,
			"the container engine may not open %d files itself, so it cannot let a sandbox; lower the limit of open files, or raise the engine's", r.set.NoFile).WithCause(err)
	case mentions(said, "address pool"):
		return sandbox.Errorf(sandbox.CodeNoCapacity,
			"the container engine has no free addresses for the sandboxes' network; remove unused networks (docker network prune) or give it more default-address-pools").WithCause(err)
	case errdefs.IsNotFound(err) && mentions(said, "no such image"):
		return sandbox.Errorf(sandbox.CodeImageMissing,
			"the container engine has no image %q; build it with: make image", r.set.Image).WithCause(err)
	case errdefs.IsNotFound(err) && mentions(said, "no such container", "no such volume", "no such network"):
		return fmt.Errorf("asking the container engine to %s: %w", s.doing, lifecycle.ErrNoContainer)
	case errdefs.IsConflict(err) && mentions(said, "is already in use by container"):
		return sandbox.Errorf(sandbox.CodeNameTaken, "a container with the sandbox's name exists already; if it is not another sandbox of yours, remove it (docker rm) and try again").WithCause(err)
	case errdefs.IsConflict(err):
		return sandbox.Errorf(sandbox.CodeConflict,
			"the container engine could not %s in the state that it is in; try again", s.doing).WithCause(err)
	case errdefs.IsUnavailable(err):
		return r.absent(err)
	case dying(said):
		return sandbox.Errorf(sandbox.CodeEngineAway,
			"the container engine at %s is going down, or cannot reach its containerd, so it could not %s; it is tried again when the engine answers", r.host, s.doing).WithCause(err)
	}
	code := s.code
	switch {
	case code == "" && errdefs.IsInternal(err):
		// Nothing that is asked for here can be wrong with the sandbox.
		return sandbox.Errorf(sandbox.CodeEngineAway,
			"the container engine at %s could not %s; try again, and look at its log if that goes on", r.host, s.doing).WithCause(err)
	case code == "":
		code = sandbox.CodeInternal
	}
	return sandbox.Errorf(code, "the container engine could not %s; the gateway's log has its words", s.doing).WithCause(err)
}

// dying reports whether an answer is that of an engine that is going down, or whose
// containerd is: until its socket is closed, it answers 500 with the words of
// whatever was closed under it.
func dying(said string) bool {
	return mentions(said,
		"context canceled", "shutting down", // its own calls, cut short
		"containerd.sock", "error while dialing", "transport is closing", "client connection is closing", "ttrpc: closed", // its containerd
		"database not open") // its networks' state
}

// absent says that no engine answers, and what to do.
func (r *Runtime) absent(cause error) error {
	if mentions(strings.ToLower(cause.Error()), "permission denied") {
		return sandbox.Errorf(sandbox.CodeEngineAway,
			"the container engine at %s may not be used by this user; add the user to the docker group, or run the gateway as one that may", r.host).WithCause(cause)
	}
	return sandbox.Errorf(sandbox.CodeEngineAway,
		"no container engine answers at %s; start it (systemctl start docker), or set DOCKER_HOST to where one is", r.host).WithCause(cause)
}

// timedOut reports whether err is from the call's own timeout; the caller has
// made sure that it is not from the caller's context.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// unreachable reports whether err is from the connection, before or in the
// middle of a reply.
func unreachable(err error) bool {
	if client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

func mentions(said string, phrases ...string) bool {
	return slices.ContainsFunc(phrases, func(s string) bool { return strings.Contains(said, s) })
}
