package doctor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/shared/doctor"
)

// tiny mounts a file system in memory; options are such as "size=1m".
func tiny(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mounting a file system (it takes root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestADiskWithoutRoomIsTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ options, says string }{
		"bytes":  {"size=1m", "1.0 MiB are free for DATA_DIR"},
		"inodes": {"size=2g,nr_inodes=100", "more files can be made for DATA_DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tiny(t, c.options)
			_, err := doctor.Disk("DATA_DIR", filepath.Join(dir, "not", "there"))
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v", err)
			}
		})
	}
	if detail, err := doctor.Disk("DATA_DIR", tiny(t, "size=2g,nr_inodes=100000")); err != nil || detail != "2.0 GiB are free for DATA_DIR" {
		t.Errorf("%q, %v", detail, err)
	}
}

func TestOnlyWhatWasNotThereIsRemovedAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inner := filepath.Join(dir, "a", "b")
	undo := doctor.Untouched(inner)
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	undo()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	doctor.Untouched(inner)()
	if _, err := os.Stat(inner); err != nil {
		t.Error(err)
	}
}

func TestAPortIsFreeOrOurs(t *testing.T) {
	t.Parallel()
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	addr := taken.Addr().String()
	ours := func(context.Context) error { return nil }
	foreign := func(context.Context) error { return errors.New("it is something else") }
	for name, c := range map[string]struct {
		addr string
		ours func(context.Context) error
		says string
	}{
		"free":                {"127.0.0.1:0", foreign, "is free"},
		"ours":                {addr, ours, "it runs at " + addr},
		"another's":           {addr, foreign, "listening on TEST_ADDR " + addr + ": another program listens there; stop it, or set another port"},
		"of another machine":  {"192.0.2.1:1", ours, "listening on TEST_ADDR 192.0.2.1:1: this machine does not have that address"},
		"a port that is none": {"127.0.0.1:x", ours, "set it to an address of this machine and a port"},
	} {
		detail, err := doctor.Port(t.Context(), "TEST_ADDR", c.addr, c.ours)
		if err != nil {
			detail = err.Error()
		}
		if !strings.Contains(detail, c.says) {
			t.Errorf("%s: %s", name, detail)
		}
	}
}

func TestClocksThatDifferAreTold(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for says, its := range map[string]time.Time{
		"the engine and this machine agree":                  now.Add(3 * time.Second),
		"the clock of the engine is 2m0s behind this":        now.Add(-2 * time.Minute),
		"the clock of the engine is 2m0s ahead of this":      now.Add(2*time.Minute + 10*time.Second),
		"the engine and this machine agree, but for a while": now.Add(-59 * time.Second),
	} {
		detail, err := doctor.Clock("the engine", its, now, now.Add(10*time.Second))
		if err != nil {
			detail = err.Error()
		}
		says, _, _ = strings.Cut(says, ",")
		if !strings.HasPrefix(detail, says) {
			t.Errorf("%s: %s", its, detail)
		}
	}
}
