package provider

import (
	"context"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Patience is how long a condition that can pass (sandbox.Code.Passing) is borne
// before it is a failure.
const Patience = 40 * time.Second

const (
	firstWait = time.Second
	lastWait  = 5 * time.Second
)

// Patiently makes a call, and makes it again while it fails for a condition that can
// pass, for as long as patience lasts since the first such failure. A failure of a
// call that went on for longer than that is another one: patience begins anew. troubled
// is called, if it is not nil, each time that it begins. When ctx ends, its error is
// the call's last one: the caller looks at ctx first.
func Patiently(ctx context.Context, patience time.Duration, call func() error, troubled func()) error {
	var since time.Time
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		began := time.Now()
		err := call()
		if err == nil || ctx.Err() != nil || !sandbox.CodeOf(err).Passing() {
			return err
		}
		if since.IsZero() || time.Since(began) > patience {
			since = time.Now()
			if troubled != nil {
				troubled()
			}
		}
		if time.Since(since) >= patience {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
