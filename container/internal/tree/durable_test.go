package tree_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/tree"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestARestoreIsOnTheDiskBeforeItIsAcknowledged(t *testing.T) {
	broken := errors.New("the disk is broken")
	for name, fails := range map[string]error{"a disk that keeps it": nil, "a disk that does not": broken, "a disk that is full": unix.ENOSPC} {
		t.Run(name, func(t *testing.T) { restoreTo(t, fails) })
	}
}

// restoreTo restores to a disk that says fails when all is brought to it.
func restoreTo(t *testing.T, fails error) {
	t.Helper()
	dir := home(t)
	below, err := tree.Open(dir, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	syncs := 0
	below.OnSync(func(fd int) error {
		syncs++
		// Everything is as it is to be, names, contents, modes and times.
		var at, st unix.Stat_t
		if err := unix.Fstat(fd, &at); err != nil {
			t.Error(err)
		}
		if err := unix.Stat(dir, &st); err != nil || at.Ino != st.Ino || at.Dev != st.Dev {
			t.Error("another file system is brought to the disk")
		}
		content, err := os.ReadFile(filepath.Join(dir, "d", "f"))
		info, statErr := os.Stat(filepath.Join(dir, "d"))
		if err != nil || statErr != nil || string(content) != "content" || info.Mode().Perm() != 0o750 || !info.ModTime().Equal(time.Unix(0, 7e9)) {
			t.Errorf("when it is brought to the disk there is %q, %v, %v", content, info, errors.Join(err, statErr))
		}
		return fails
	})
	var stream bytes.Buffer
	writeEntry(t, &stream, guest.TreeEntry{Path: "d", Type: guest.TreeDirectory, Mode: 0o750, ModifiedNs: 7e9})
	writeEntry(t, &stream, guest.TreeEntry{Path: "d/f", Type: guest.TreeFile, Mode: 0o640, Size: 7, ModifiedNs: 8e9})
	writeFrame(t, &stream, guest.FrameData, []byte("content"))
	writeFrame(t, &stream, guest.FrameEnd, nil)
	_, err = below.Restore(t.Context(), &stream)
	if !errors.Is(err, fails) || syncs != 1 {
		t.Errorf("after %d syncs the restore says %v", syncs, err)
	}
	if errors.Is(fails, unix.ENOSPC) && !sandbox.HasCode(err, sandbox.CodeDiskFull) {
		t.Error(err)
	}
}
