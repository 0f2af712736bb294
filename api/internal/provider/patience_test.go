package provider_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestWhatPassesIsTriedAgainForAsLongAsPatienceLasts(t *testing.T) {
	away, failed := sandbox.Errorf(sandbox.CodeEngineAway, "away"), sandbox.Errorf(sandbox.CodeBootFailed, "failed")
	for name, c := range map[string]struct {
		patience time.Duration
		lasts    time.Duration // of the condition
		then     error
		want     error
		atMost   time.Duration
		troubled int
	}{
		"it passes":                {time.Minute, 20 * time.Second, nil, nil, 26 * time.Second, 1},
		"it does not pass":         {time.Minute, time.Hour, nil, away, 66 * time.Second, 1},
		"it becomes a failure":     {time.Minute, 10 * time.Second, failed, failed, 16 * time.Second, 1},
		"there is nothing to pass": {time.Minute, 0, failed, failed, 0, 0},
		"there is no patience":     {0, time.Hour, nil, away, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, troubled := time.Now(), 0
				err := provider.Patiently(t.Context(), c.patience, func() error {
					if time.Since(began) < c.lasts {
						return away
					}
					return c.then
				}, func() { troubled++ })
				if took := time.Since(began); err != c.want || took > c.atMost || troubled != c.troubled { //nolint:errorlint // the same error
					t.Errorf("after %v, and %d times in trouble: %v", took, troubled, err)
				}
			})
		})
	}
}

func TestPatienceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		calls, began := 0, time.Now()
		err := provider.Patiently(ctx, time.Hour, func() error {
			calls++
			return sandbox.Errorf(sandbox.CodeDeadline, "not in time")
		}, nil)
		if took := time.Since(began); !sandbox.HasCode(err, sandbox.CodeDeadline) || took != 2500*time.Millisecond || calls != 2 {
			t.Errorf("%d calls in %v: %v", calls, took, err)
		}
	})
}

// A call that went on for long before it failed had success meanwhile.
func TestAFailureLongAfterTheLastIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, troubled := 0, 0
		err := provider.Patiently(t.Context(), time.Minute, func() error {
			time.Sleep(2 * time.Minute) // synctest's time
			calls++
			if calls == 5 {
				return nil
			}
			return sandbox.Errorf(sandbox.CodeOpenCodeDown, "it was restarted")
		}, func() { troubled++ })
		if err != nil || troubled != 4 {
			t.Errorf("%d times in trouble: %v", troubled, err)
		}
	})
}
