package workspace

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
)

func TestAHomeThatShrinksToNothingIsToldAndComesBackWhole(t *testing.T) {
	onEveryStore(t, func(t *testing.T, s store.Store) {
		var log bytes.Buffer
		keys := ring(t, 1)
		k := NewKeeper(snapshot.New(s, keys, snapshot.Settings{Keep: 2}), mirror.New(s, keys, mirror.Settings{}), 1, slog.New(slog.NewTextHandler(&log, nil)))
		ref, source := refTo("box", "i1"), newBox(t)
		mustBegin(t, k, ref)
		source.write(t, ".local/share/opencode/opencode.db", strings.Repeat("state", 10_000))
		for i := range 40 {
			source.write(t, fmt.Sprintf("workspace/project/f%d", i), fmt.Sprint("content ", i))
		}
		good := mustSnapshot(t, k, ref, source)
		want := picture(t, source.home)
		if err := os.RemoveAll(filepath.Join(source.home, "workspace", "project")); err != nil {
			t.Fatal(err)
		}
		fallen := mustSnapshot(t, k, ref, source)
		if good.Collapsed || !fallen.Collapsed || fallen.Before != good.ID || fallen.Files != 1 {
			t.Errorf("the snapshots are %+v and %+v", good, fallen)
		}
		for i := range 5 {
			source.write(t, "workspace/new", fmt.Sprint(i))
			if taken := mustSnapshot(t, k, ref, source); taken.Collapsed {
				t.Errorf("round %d: %+v", i, taken)
			}
		}
		told := slices.DeleteFunc(strings.Split(log.String(), "\n"), func(line string) bool { return !strings.Contains(line, "shrunk") })
		if len(told) != 1 {
			t.Fatalf("the log has %s", log.String())
		}
		for _, part := range []string{"level=WARN", "sandboxId=box", "snapshot=" + fallen.ID, "before=" + good.ID} {
			if !strings.Contains(told[0], part) {
				t.Errorf("the log has no %s: %s", part, told[0])
			}
		}
		list, err := k.Snapshots(t.Context(), ref)
		if err != nil || len(list) != 3 || list[2].ID != good.ID || list[2].Files != 41 {
			t.Errorf("the list is %+v, %v", list, err)
		}
		wantRestored(t, k, ref, good.ID, want)
		wantRestored(t, k, ref, "", picture(t, source.home))
	})
}
