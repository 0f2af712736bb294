package e2e

import (
	"strings"
	"testing"
	"time"
)

// members lists the containers of the pool, by state such as paused.
func (g *gateway) members(state string) []string {
	out, err := docker("ps", "-aq", "--filter", "name="+g.container(".pool-"), "--filter", "status="+state)
	if err != nil {
		return nil
	}
	return strings.Fields(out)
}

// pooled waits until a container is ready ahead.
func (g *gateway) pooled(tb testing.TB) (container string) {
	tb.Helper()
	eventually(tb, "a container is ready ahead", 2*time.Minute, func() bool { return len(g.members("paused")) > 0 })
	return g.members("paused")[0]
}
