package processtest

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// networkTime bounds how long an engine may take to see that a network is not
// used any more: it forgets an endpoint some time after its container is gone.
const networkTime = 30 * time.Second

// RemoveNetwork removes a network of the engine, of which no container is left.
func RemoveNetwork(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTime)
	defer cancel()
	tick := time.NewTicker(time.Second / 2)
	defer tick.Stop()
	var said []byte
	for {
		out, err := exec.CommandContext(ctx, "docker", "network", "rm", name).CombinedOutput() //nolint:gosec // the tests' own
		if err == nil {
			return nil
		}
		if len(out) > 0 {
			said = out
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("removing the network: %w: %s", err, said)
		}
	}
}
