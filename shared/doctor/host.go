package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/shared/daemon"
)

// What a disk must have left: a snapshot, a log or a database needs some of it, and
// what is written when there is none is lost.
const (
	leastFree   = 1 << 30 // bytes
	leastInodes = 10_000
)

// Disk makes sure that there is room where a folder is, or will be. What says whose
// folder it is, such as "DATA_DIR".
func Disk(what, path string) (detail string, err error) {
	at, err := existing(path)
	if err != nil {
		return "", err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return "", fmt.Errorf("asking how much room there is for %s in %s: %w", what, at, err)
	}
	free := fs.Bavail * uint64(fs.Bsize)
	if free < leastFree {
		return "", fmt.Errorf("only %s are free for %s in %s: free at least %s there, or put it on a larger disk", size(free), what, at, size(leastFree))
	}
	detail = fmt.Sprintf("%s are free for %s", size(free), what)
	if fs.Files == 0 {
		return detail, nil // a file system without a number of inodes
	}
	if fs.Ffree < leastInodes {
		return "", fmt.Errorf("only %d more files can be made for %s in %s (df -i): remove some, so that at least %d can, or put it on another disk", fs.Ffree, what, at, leastInodes)
	}
	return detail, nil
}

// existing is the path, or the folder nearest above it that there is.
func existing(path string) (string, error) {
	at, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	for {
		_, err := os.Stat(at)
		parent := filepath.Dir(at)
		if err == nil || parent == at {
			return at, nil
		}
		at = parent
	}
}

func size(bytes uint64) string {
	if bytes < leastFree {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}

// Untouched returns what removes those of a path's folders again that are not
// there yet, if they are empty.
func Untouched(path string) (undo func()) {
	var made []string // the innermost first
	at, err := filepath.Abs(path)
	for err == nil {
		if _, err := os.Lstat(at); err == nil {
			break
		}
		made = append(made, at)
		at = filepath.Dir(at)
	}
	return func() {
		for _, folder := range made {
			_ = os.Remove(folder) // one that is in use by now stays
		}
	}
}

// Port makes sure that the address in a variable can be listened on, or that what
// does is the program itself, which ours finds out.
func Port(ctx context.Context, variable, addr string, ours func(context.Context) error) (detail string, err error) {
	listener, err := daemon.Listen(ctx, variable, addr)
	switch {
	case err == nil:
		return addr + " is free", listener.Close()
	case errors.Is(err, syscall.EADDRINUSE) && ours(ctx) == nil:
		return "it runs at " + addr + " with this configuration", nil
	}
	return "", err
}

// mostSkew is how far two clocks may be apart: webhooks, leases and signatures of
// requests allow more.
const mostSkew = time.Minute

// Clock compares a clock with this machine's. Whose is that of, such as "the
// engine"; its time was taken between two moments.
func Clock(whose string, its, before, after time.Time) (detail string, err error) {
	skew := its.Sub(before)
	if skew > 0 {
		skew = max(0, its.Sub(after))
	}
	if skew.Abs() > mostSkew {
		direction := "behind"
		if skew > 0 {
			direction = "ahead of"
		}
		return "", fmt.Errorf("the clock of %s is %s %s this machine's: set both by NTP (timedatectl set-ntp true)", whose, skew.Abs().Round(time.Second), direction)
	}
	return whose + " and this machine agree", nil
}
