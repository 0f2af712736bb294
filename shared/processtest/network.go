package processtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// networkTime bounds how long an engine may take to see that a network is not
// used any more: it forgets an endpoint some time after its container is gone.
const networkTime = 10 * time.Second

// RemoveNetwork removes a network of the engine, of which no container is left. An
// engine (20.10 is known for it) can go on counting the endpoint of a container
// that it has removed, until it is restarted: that is said on stderr, and no error.
func RemoveNetwork(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTime)
	defer cancel()
	tick := time.NewTicker(time.Second / 2)
	defer tick.Stop()
	for {
		if _, err := docker(ctx, "network", "rm", name); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return miscounted(context.WithoutCancel(ctx), name)
		}
	}
}

// miscounted returns nil if a network stays for that reason, and why it stays
// otherwise.
func miscounted(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTime)
	defer cancel()
	on, look := docker(ctx, "network", "inspect", "--format", "{{len .Containers}}", name)
	said, err := docker(ctx, "network", "rm", name)
	switch {
	case err == nil:
		return nil
	case look == nil && on == "0" && strings.Contains(said, "has active endpoints"):
		fmt.Fprintf(os.Stderr, "the engine counts an endpoint of a removed container in the network %s until it is restarted\n", name)
		return nil
	}
	return fmt.Errorf("removing the network: %w: %s", err, said)
}

func docker(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput() //nolint:gosec // the tests' own
	return strings.TrimSpace(string(out)), err
}
