// Package tree lists, reads and restores the home for snapshots. Every path is
// walked element by element with openat(2) and no link is ever followed, so
// that neither a link nor a path longer than PATH_MAX matters.
package tree

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/mark"
	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// database is OpenCode's, below the home.
const (
	database    = ".local/share/opencode/opencode.db"
	databaseLog = database + "-wal"
	// scratch is sandboxd's own folder, which no snapshot holds.
	scratch = ".local/state/agentpod"
)

// excluded reports whether a snapshot leaves a path, and what is in it, out.
// This is the one list of it.
func excluded(path string) bool {
	switch path {
	case
		// Caches, which fill again by themselves.
		".cache", ".npm", ".bun/install/cache", ".cargo/registry",
		".config/opencode/node_modules", ".local/share/opencode/bin",
		// Logs.
		".local/share/opencode/log", ".npm/_logs",
		// Credentials: the gateway's config brings them again.
		".local/share/opencode/auth.json", ".local/share/opencode/mcp-auth.json",
		// What sandboxd knows of that config. The config itself is not in the home.
		scratch,
		// What tells the sandbox's disk from another.
		mark.File, mark.Temp,
		// SQLite's shared memory, which it makes from the log.
		database + "-shm":
		return true
	default:
		return false
	}
}

// isMark reports whether a path is the disk's mark or below it. A listing has no
// such path, but a snapshot of a former version may have one.
func isMark(path string) bool {
	top, _, _ := strings.Cut(path, "/")
	return top == mark.File || top == mark.Temp
}

// Tree is the home. It is safe for concurrent use; two restores at once must
// not write the same folders.
type Tree struct {
	home      string
	root      int // file descriptor
	dev       uint64
	holds     *holds
	processes *process.Table
	python    string
}

// Open opens the home. The table runs python, which copies OpenCode's database;
// an empty python means the image's. Close it at the end.
func Open(home string, processes *process.Table, python string) (*Tree, error) {
	if python == "" {
		python = "/usr/bin/python3"
	}
	fd, err := unix.Open(home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the home: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("look at the home: %w", err)
	}
	return &Tree{
		home: home, root: fd, dev: st.Dev, holds: &holds{held: make(map[identity]*hold)},
		processes: processes, python: python,
	}, nil
}

// Close closes the home.
func (t *Tree) Close() error {
	if err := unix.Close(t.root); err != nil {
		return fmt.Errorf("close the home: %w", err)
	}
	return nil
}

// nanoseconds is a time as an int64 holds it; one beyond is the nearest.
func nanoseconds(ts unix.Timespec) int64 {
	const second = 1_000_000_000
	switch {
	case ts.Sec >= math.MaxInt64/second:
		return math.MaxInt64
	case ts.Sec <= math.MinInt64/second:
		return math.MinInt64
	default:
		return ts.Sec*second + ts.Nsec
	}
}

// timespec is the reverse of nanoseconds; its Nsec is never negative.
func timespec(ns int64) unix.Timespec {
	const second = 1_000_000_000
	sec, rest := ns/second, ns%second
	if rest < 0 {
		sec, rest = sec-1, rest+second
	}
	return unix.Timespec{Sec: sec, Nsec: rest}
}

// retry calls f again while a signal interrupts it.
func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

func openat(dir int, name string, flags int, mode uint32) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, mode)
	})
}

// failure gives an error of the file system its code.
func failure(doing string, err error) error {
	coded := func(code sandbox.Code, what string) error {
		return sandbox.Errorf(code, "%s: %s", doing, what).WithCause(err)
	}
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return coded(sandbox.CodeDiskFull, "the sandbox's disk is full")
	case errors.Is(err, unix.ENOENT):
		return coded(sandbox.CodeFileNotFound, "no such file or folder")
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EEXIST),
		errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.ELOOP):
		return coded(sandbox.CodeConflict, "something else is there")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return coded(sandbox.CodeInvalidRequest, "permission denied")
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFBIG):
		return coded(sandbox.CodeInvalidRequest, "the file system cannot hold it")
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}
