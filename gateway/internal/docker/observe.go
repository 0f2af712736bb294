package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// opening returns a context for a stream: it has no deadline, but unless opened
// is called within the call timeout it ends.
func (r *Runtime) opening(ctx context.Context) (stream context.Context, opened, cancel func()) {
	stream, end := context.WithCancelCause(ctx)
	timer := time.AfterFunc(r.set.CallTimeout, func() { end(context.DeadlineExceeded) })
	return stream, func() { timer.Stop() }, func() { timer.Stop(); end(context.Canceled) }
}

// Wait blocks until the container is not running.
func (r *Runtime) Wait(ctx context.Context, id string) (lifecycle.Exit, error) {
	s := step{call: "wait", doing: "wait for the sandbox's container"}
	if err := r.call(ctx, s, func(ctx context.Context, e *engine) error {
		_, err := r.owned(ctx, e, id)
		return err
	}); err != nil {
		return lifecycle.Exit{}, err
	}
	e, err := r.connect(ctx)
	if err != nil {
		return lifecycle.Exit{}, err
	}
	resp, err := waitFor(ctx, e, id, container.WaitConditionNotRunning)
	if err != nil {
		return lifecycle.Exit{}, r.explain(ctx, s, err)
	}
	// resp.Error repeats why the last start failed; that is no failure to wait.
	exit := lifecycle.Exit{Code: int(resp.StatusCode)}
	c, err := r.Inspect(ctx, id)
	if errors.Is(err, lifecycle.ErrNoContainer) {
		return exit, nil // removed as it ended; the code is known all the same
	}
	exit.OOMKilled = c.OOMKilled
	return exit, err
}

// waitFor waits for a condition of a container.
func waitFor(ctx context.Context, e *engine, id string, until container.WaitCondition) (container.WaitResponse, error) {
	// One of the two channels always delivers, as the client's reader ends with
	// the context; leaving before would leave that reader behind.
	done, failed := e.cli.ContainerWait(ctx, id, until)
	select {
	case resp := <-done:
		return resp, nil
	case err := <-failed:
		return container.WaitResponse{}, err
	}
}

// Events calls fn for each event of the installation's containers until the
// context ends (nil) or the engine goes away (error). Events from the moment
// it asked are delivered, so nothing between that and subscribed is missed;
// one may be told of something that a list had shown already.
//
// fn must be quick, and must not call the engine or wait for anything that does:
// it holds up the stream, and an engine drops the events that are not taken.
func (r *Runtime) Events(ctx context.Context, subscribed func(), fn func(lifecycle.Event)) error {
	s := step{doing: "report events", code: sandbox.CodeEngineAway}
	e, err := r.connect(ctx)
	if err != nil {
		return r.ended(ctx, s, err)
	}
	stream, opened, cancel := r.opening(ctx)
	defer cancel()

	// The engine sends its reply's head before it subscribes. Asking for events
	// since a moment before, by its own clock, closes that gap.
	info, err := e.cli.Info(stream)
	if err != nil {
		return r.ended(ctx, s, err)
	}
	messages, failed := e.cli.Events(stream, events.ListOptions{
		Since:   info.SystemTime,
		Filters: r.filter(eventFilter()...),
	})
	opened()
	subscribed()
	for {
		select {
		case m := <-messages:
			if ev, ok := r.event(m); ok {
				fn(ev)
			}
		case err := <-failed:
			return r.ended(ctx, s, err)
		}
	}
}

// ended is why a stream of events ended.
func (r *Runtime) ended(ctx context.Context, s step, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // a watch that was asked to end has ended well
	}
	if err == nil {
		err = io.EOF
	}
	return r.explain(ctx, s, err)
}

// kinds are the events that matter, by the engine's names for them.
func kinds() map[events.Action]lifecycle.EventKind {
	return map[events.Action]lifecycle.EventKind{
		events.ActionStart:   lifecycle.EventStarted,
		events.ActionDie:     lifecycle.EventDied,
		events.ActionDestroy: lifecycle.EventDestroyed,
		events.ActionOOM:     lifecycle.EventOOM,
		events.ActionRename:  lifecycle.EventRenamed,
		events.ActionPause:   lifecycle.EventPaused,
		events.ActionUnPause: lifecycle.EventUnpaused,
	}
}

func eventFilter() []filters.KeyValuePair {
	list := []filters.KeyValuePair{filters.Arg("type", string(events.ContainerEventType))}
	for action := range kinds() {
		list = append(list, filters.Arg("event", string(action)))
	}
	return list
}

// event maps an engine's event, and reports false for one that is not ours or
// does not matter.
func (r *Runtime) event(m events.Message) (lifecycle.Event, bool) {
	kind, known := kinds()[m.Action]
	id := r.sandboxOf(m.Actor.Attributes["name"])
	if !known || id == "" || !r.ours(m.Actor.Attributes) {
		return lifecycle.Event{}, false
	}
	ev := lifecycle.Event{Kind: kind, ContainerID: m.Actor.ID, SandboxID: id}
	if kind == lifecycle.EventDied {
		// An engine that gives no number gives nothing to act on: 0 it stays.
		ev.ExitCode, _ = strconv.Atoi(m.Actor.Attributes["exitCode"])
	}
	return ev, true
}

// Logs returns the container's output, stdout and stderr interleaved as plain
// bytes. Without Follow it is at most what the log's cap lets the engine keep.
// The caller closes it; it ends with the context too.
func (r *Runtime) Logs(ctx context.Context, id string, opts lifecycle.LogOptions) (io.ReadCloser, error) {
	s := step{call: "logs", doing: "read the sandbox's log"}
	if err := r.call(ctx, s, func(ctx context.Context, e *engine) error {
		_, err := r.owned(ctx, e, id)
		return err
	}); err != nil {
		return nil, err
	}
	e, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	tail := "all"
	if opts.Tail > 0 {
		tail = strconv.Itoa(opts.Tail)
	}
	stream, opened, cancel := r.opening(ctx)
	body, err := e.cli.ContainerLogs(stream, id, container.LogsOptions{
		ShowStdout: true, ShowStderr: true, Follow: opts.Follow, Tail: tail,
	})
	if err != nil {
		cancel()
		return nil, r.explain(ctx, s, err)
	}
	opened()
	pr, pw := io.Pipe()
	l := &logReader{PipeReader: pr, cancel: cancel, done: make(chan struct{})}
	// A reader that has stopped reading must not keep the copy from ending.
	stop := context.AfterFunc(ctx, func() { _ = pw.CloseWithError(ctx.Err()) })
	go func() {
		defer close(l.done)
		defer stop()
		defer func() { _ = body.Close() }()
		_, err := stdcopy.StdCopy(pw, pw, body)
		_ = pw.CloseWithError(r.explain(ctx, s, err)) // documented to return nil
	}()
	return l, nil
}

// logReader is a pipe that ends its writer when it is closed.
type logReader struct {
	*io.PipeReader
	cancel func()
	done   chan struct{}
}

// Close ends the stream and returns when nothing of it is left.
func (l *logReader) Close() error {
	l.cancel()
	err := l.PipeReader.Close()
	<-l.done
	return err
}

// statsInterval lies between the two samples that a CPU percentage needs.
const statsInterval = 200 * time.Millisecond

// Stats measures a container twice, 200 ms apart. An engine that samples on a
// clock of its own, as 20.10 does each second, makes that up to two seconds.
// A container that does not run has zeroes.
func (r *Runtime) Stats(ctx context.Context, id string) (sandbox.Stats, error) {
	var stats sandbox.Stats
	err := r.call(ctx, step{call: "stats", doing: "measure the sandbox"}, func(ctx context.Context, e *engine) error {
		if _, err := r.owned(ctx, e, id); err != nil {
			return err
		}
		before, err := sample(ctx, e, id)
		if err != nil {
			return err
		}
		timer := time.NewTimer(statsInterval)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("between two samples: %w", ctx.Err())
		}
		after, err := sample(ctx, e, id)
		if err != nil {
			return err
		}
		stats = compute(before, after)
		return nil
	})
	return stats, err
}

func sample(ctx context.Context, e *engine, id string) (container.StatsResponse, error) {
	resp, err := e.cli.ContainerStatsOneShot(ctx, id)
	if err != nil {
		return container.StatsResponse{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var s container.StatsResponse
	err = json.NewDecoder(resp.Body).Decode(&s)
	return s, err
}

// compute makes figures of two samples. Memory leaves out what the kernel
// caches of files and gives back at once.
func compute(before, after container.StatsResponse) sandbox.Stats {
	s := sandbox.Stats{MemoryUsage: after.MemoryStats.Usage, MemoryLimit: after.MemoryStats.Limit}
	wall := after.Read.Sub(before.Read)
	used, had := after.CPUStats.CPUUsage.TotalUsage, before.CPUStats.CPUUsage.TotalUsage
	if wall > 0 && used > had {
		s.CPUPercent = float64(used-had) / float64(wall.Nanoseconds()) * 100
	}
	cache, v1 := after.MemoryStats.Stats["total_inactive_file"] // cgroup v1
	if !v1 {
		cache = after.MemoryStats.Stats["inactive_file"]
	}
	s.MemoryUsage -= min(cache, s.MemoryUsage)
	if s.MemoryLimit > 0 {
		s.MemoryPercent = float64(s.MemoryUsage) / float64(s.MemoryLimit) * 100
	}
	for _, n := range after.Networks {
		s.NetworkRx += n.RxBytes
		s.NetworkTx += n.TxBytes
	}
	for _, b := range after.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op) {
		case "read":
			s.BlockRead += b.Value
		case "write":
			s.BlockWrite += b.Value
		}
	}
	return s
}
