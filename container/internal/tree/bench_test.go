package tree_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/tree"
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

// BenchmarkRestore writes 20 000 files of a kilobyte, as a package manager leaves
// them, to the disk of TMPDIR, which should be the engine's: with what makes them
// durable, and without.
func BenchmarkRestore(b *testing.B) {
	const files, perFolder = 20_000, 50
	content := bytes.Repeat([]byte("x"), 1<<10)
	for name, durable := range map[string]bool{"durable": true, "not durable": false} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				unix.Sync() // what came before is not this one's
				below, err := tree.Open(dir, nil, "")
				if err != nil {
					b.Fatal(err)
				}
				if !durable {
					below.OnSync(func(int) error { return nil })
				}
				var stream bytes.Buffer
				for i := range files {
					if i%perFolder == 0 {
						writeEntry(b, &stream, guest.TreeEntry{Path: fmt.Sprintf("d%d", i/perFolder), Type: guest.TreeDirectory, Mode: 0o755})
					}
					writeEntry(b, &stream, guest.TreeEntry{Path: fmt.Sprintf("d%d/f%d", i/perFolder, i), Type: guest.TreeFile, Mode: 0o644, Size: int64(len(content))})
					writeFrame(b, &stream, guest.FrameData, content)
				}
				writeFrame(b, &stream, guest.FrameEnd, nil)
				b.StartTimer()
				if _, err := below.Restore(b.Context(), &stream); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = below.Close()
				b.StartTimer()
			}
		})
	}
}

func writeEntry(t testingT, w io.Writer, e guest.TreeEntry) {
	t.Helper()
	writeFrame(t, w, guest.FrameEntry, e.AppendJSON(nil))
}

func writeFrame(t testingT, w io.Writer, kind guest.Frame, payload []byte) {
	t.Helper()
	if err := guest.WriteFrame(w, kind, payload); err != nil {
		t.Fatal(err)
	}
}
