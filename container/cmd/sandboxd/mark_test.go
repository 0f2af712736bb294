package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/agentpod/agentpod/container/internal/mark"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const markInFile = `{"incarnation":"abc","generation":7}`

func (b *box) wantMark(want guest.MarkStatus) {
	b.t.Helper()
	if got, err := b.Mark(b.t.Context()); err != nil || got != want {
		b.t.Errorf("the mark is %+v, %v; want %+v", got, err, want)
	}
}

func (b *box) markFile() string {
	raw, _ := os.ReadFile(filepath.Join(b.home, mark.File))
	return string(raw)
}

func TestTheNextRunFindsTheMarkThatWasGiven(t *testing.T) {
	given := guest.Mark{Incarnation: "abc", Generation: 7}
	home := filepath.Join(t.TempDir(), "home")
	must(t, os.Mkdir(home, 0o755))
	same := []string{"SANDBOXD_HOME=" + home, "SANDBOXD_WORKSPACE=" + filepath.Join(home, "workspace")}
	t.Run("a first run", func(t *testing.T) {
		b := newBox(t, same...)
		b.wantMark(guest.MarkStatus{})
		if err := b.PutMark(t.Context(), guest.Mark{Generation: 7}); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
			t.Errorf("a mark without an incarnation: %v", err)
		}
		b.wantMark(guest.MarkStatus{})
		must(t, b.PutMark(t.Context(), given))
		b.wantMark(guest.MarkStatus{Mark: given, Given: true})
	})
	t.Run("the next one", func(t *testing.T) {
		b := newBox(t, same...)
		b.wantMark(guest.MarkStatus{Mark: given})
		b.mustStart(config("m"))
		b.wantMark(guest.MarkStatus{Mark: given})
	})
}

func TestTheMarkSurvivesARemovalOfAllThatIsInTheHome(t *testing.T) {
	b := newBox(t)
	given := guest.Mark{Incarnation: "abc", Generation: 7}
	must(t, b.PutMark(t.Context(), given))
	b.mustStart(config("m"))
	err := b.Exec(t.Context(), guest.ExecRequest{Command: []string{"find", b.home, "-mindepth", "1", "-delete"}, WorkingDir: "/"},
		func(guest.ExecEvent) error { return nil })
	must(t, err)
	b.eventually("the mark is there again", func() bool { return b.markFile() == markInFile })
	b.wantMark(guest.MarkStatus{Mark: given, Given: true})
}

func TestAfterAStopTheMarkIsOnTheDisk(t *testing.T) {
	b := newBox(t)
	must(t, b.PutMark(t.Context(), guest.Mark{Incarnation: "abc", Generation: 7}))
	b.mustStart(config("m"))
	must(t, os.Remove(filepath.Join(b.home, mark.File)))
	must(t, os.MkdirAll(filepath.Join(b.home, mark.File, "full"), 0o700))
	_, err := b.Stop(t.Context(), guest.StopRequest{})
	must(t, err)
	if got := b.markFile(); got != markInFile {
		t.Errorf("the file has %q", got)
	}
}
