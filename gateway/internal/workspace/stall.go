package workspace

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// stallAfter is how long a sandbox may send nothing while it is waited for. It may
// copy OpenCode's database before that begins to come.
const stallAfter = 2 * time.Minute

var errStalled = sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent nothing for %s while its files were listed or read", stallAfter)

// stall ends a call to a sandbox that sends nothing. It runs only while the
// sandbox is waited for: the gateway's own store may take longer.
type stall struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// patient begins to wait. It is to be ended with over.
func patient(ctx context.Context, limit time.Duration) (context.Context, *stall) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &stall{cancel: cancel, timer: time.AfterFunc(limit, func() { cancel(errStalled) }), limit: limit}
}

func (p *stall) wait() { p.timer.Reset(p.limit) }
func (p *stall) rest() { p.timer.Stop() }

// over ends the waiting, and says why a call failed if that took too long.
func (p *stall) over(ctx context.Context, err error) error {
	p.timer.Stop()
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	p.cancel(nil)
	return err
}

// reader is r, waited for with patience.
func (p *stall) reader(r io.Reader) io.Reader { return &waited{p, r} }

type waited struct {
	*stall
	r io.Reader
}

// Read implements io.Reader.
func (w *waited) Read(b []byte) (int, error) {
	w.wait()
	defer w.rest()
	return w.r.Read(b)
}
