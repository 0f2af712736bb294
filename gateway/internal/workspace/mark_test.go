package workspace

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/shared/guest"
)

// markFile is where sandboxd has the mark of the disk, below the home.
const markFile = ".agentpod-mark"

func wantMark(t *testing.T, b *box, want guest.MarkStatus) {
	t.Helper()
	if got, err := b.Mark(t.Context()); err != nil || got != want {
		t.Errorf("the mark is %+v, %v; want %+v", got, err, want)
	}
}

func TestARoundTripNeitherCarriesTheMarkOfADiskNorRemovesIt(t *testing.T) {
	k, ref := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), refTo("box", "i1")
	mustBegin(t, k, ref)
	source, marked, bare := newBox(t), newBox(t), newBox(t)
	old, fresh := guest.Mark{Incarnation: "i1", Generation: 1}, guest.Mark{Incarnation: "i1", Generation: 2}
	source.write(t, "workspace/file", "content")
	if err := source.PutMark(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if taken := mustSnapshot(t, k, ref, source); taken.Files != 1 {
		t.Errorf("the snapshot has %d files", taken.Files)
	}
	if err := marked.PutMark(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*box{marked, bare} {
		if files, err := restore(t, k, ref, "", b); err != nil || files != 1 {
			t.Errorf("%d files restored, %v", files, err)
		}
	}
	wantMark(t, marked, guest.MarkStatus{Mark: fresh, Given: true})
	if raw, err := os.ReadFile(filepath.Join(marked.home, markFile)); err != nil || string(raw) != `{"incarnation":"i1","generation":2}` {
		t.Errorf("the restored home's mark is %q, %v", raw, err)
	}
	wantMark(t, bare, guest.MarkStatus{})
	wantMark(t, source, guest.MarkStatus{Mark: old, Given: true})
}

// sandboxd is an ordinary user here, as in a sandbox.
func TestAMarkThatWasLockedInsideIsReadAllTheSame(t *testing.T) {
	b := newBox(t)
	b.write(t, markFile, `{"incarnation":"i1","generation":5}`)
	if err := os.Chmod(filepath.Join(b.home, markFile), 0); err != nil {
		t.Fatal(err)
	}
	wantMark(t, b, guest.MarkStatus{Mark: guest.Mark{Incarnation: "i1", Generation: 5}})
}
