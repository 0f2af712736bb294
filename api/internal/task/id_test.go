package task_test

import (
	"regexp"
	"testing"

	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestAnIDIsOneOfTheContractAndNeverTheSame(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^(task|team|sbx)-[a-z0-9]{26}$`)
	seen := map[string]bool{}
	for _, prefix := range []string{task.PrefixTask, task.PrefixTeam, task.PrefixSandbox} {
		for range 100 {
			id := task.NewID(prefix)
			if err := sandbox.CheckID(id); err != nil || !form.MatchString(id) || seen[id] {
				t.Fatalf("%q: %v, seen before: %v", id, err, seen[id])
			}
			seen[id] = true
		}
	}
}
