package daemon

import (
	"context"
	"fmt"
	"sync"
)

// Await waits until the goroutines of a group have ended, no longer than ctx. The
// error names what did not end in time, which goes on. Nobody may add to the group
// any more.
func Await(ctx context.Context, group *sync.WaitGroup, what string) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		group.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s did not end in time: %w", what, context.Cause(ctx))
	}
}
