package workspace

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestPatienceRunsOnlyWhileTheSandboxIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, p := patient(t.Context(), time.Minute)
		read, write := io.Pipe()
		r := p.reader(read)
		go func() {
			for range 3 {
				time.Sleep(50 * time.Second) // slow, but not for too long
				_, _ = write.Write([]byte("x"))
			}
		}()
		for range 3 {
			if _, err := r.Read(make([]byte, 1)); err != nil || ctx.Err() != nil {
				t.Fatalf("a slow sandbox was given up: %v %v", err, context.Cause(ctx))
			}
			time.Sleep(10 * time.Minute) // the store is slow
		}
		if ctx.Err() != nil {
			t.Fatalf("a slow store was taken for a stalled sandbox: %v", context.Cause(ctx))
		}
		stop := context.AfterFunc(ctx, func() { _ = read.CloseWithError(context.Cause(ctx)) })
		defer stop()
		_, err := r.Read(make([]byte, 1))
		if err = p.over(ctx, err); !errors.Is(err, errStalled) || !sandbox.HasCode(err, sandbox.CodeGuestFailed) {
			t.Errorf("a sandbox that sends nothing: %v", err)
		}
	})
}
