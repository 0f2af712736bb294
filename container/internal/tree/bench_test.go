package tree_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
)

// BenchmarkTree lists 50 000 entries of one folder, end to end.
func BenchmarkTree(b *testing.B) {
	dir := b.TempDir()
	const entries = 50_000
	for i := range entries {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	box, done := open(b, dir, "")
	defer done()
	for b.Loop() {
		end, err := box.Tree(b.Context(), entries, func(guest.TreeEntry) error { return nil })
		if err != nil || end.Entries != entries {
			b.Fatal(end, err)
		}
	}
}
