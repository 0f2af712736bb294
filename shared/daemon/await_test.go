package daemon_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/agentpod/agentpod/shared/daemon"
)

func TestAwaitEndsWithTheGroupOrTheContext(t *testing.T) {
	var group sync.WaitGroup
	hold := make(chan struct{})
	group.Go(func() { <-hold })
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := daemon.Await(over, &group, "the work"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the work") {
		t.Errorf("%v", err)
	}
	close(hold)
	if err := daemon.Await(t.Context(), &group, "the work"); err != nil {
		t.Error(err)
	}
}
