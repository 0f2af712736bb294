package timeline_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/agentpod/agentpod/shared/timeline"
)

func TestARequestSaysWhereItsTimeWent(t *testing.T) {
	ctx, line := timeline.New(t.Context())
	end := timeline.Begin(ctx, "clone")
	timeline.Begin(timeline.Carry(context.Background(), ctx), "boot")()
	end()
	stages := line.Stages()
	if len(stages) != 2 || stages[0].Name != "boot" || stages[1].Name != "clone" || stages[1].Took < stages[0].Took {
		t.Errorf("%v", stages)
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("done", "stages", line)
	if !strings.Contains(out.String(), "stages.boot=") || !strings.Contains(out.String(), "stages.clone=") {
		t.Errorf("%s", out.String())
	}
}

func TestWithoutATimelineNothingIsNoted(t *testing.T) {
	timeline.Begin(t.Context(), "boot")()
	if line := timeline.From(timeline.Carry(t.Context(), t.Context())); line.Stages() != nil {
		t.Errorf("%v", line.Stages())
	}
}

func TestATimelineIsBounded(t *testing.T) {
	ctx, line := timeline.New(t.Context())
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for range 100 {
				timeline.Begin(ctx, "again")()
			}
		})
	}
	all.Wait()
	if n := len(line.Stages()); n != 64 {
		t.Errorf("%d stages", n)
	}
}
