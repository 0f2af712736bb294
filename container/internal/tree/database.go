package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/container/internal/process"
	"github.com/agentpod/agentpod/shared/printable"
)

// backupTimeout bounds a copy of the database.
const backupTimeout = 2 * time.Minute

// backup copies a database that others write by SQLite's online backup, in one
// step under one read lock. Pages stay where they are, so that what has not
// changed is the same bytes again. The copy is thrown away, so it need not be
// durable.
const backup = `
import sqlite3, sys, urllib.parse
source = sqlite3.connect("file:" + urllib.parse.quote(sys.argv[1]) + "?mode=rw", uri=True, timeout=20)
copy = sqlite3.connect(sys.argv[2])
copy.execute("PRAGMA synchronous=OFF")
source.backup(copy)
copy.close()
source.close()
`

// compact rewrites a database in place without what was deleted from it, and does
// the same with its log. Others may have it open.
const compact = `
import sqlite3, sys, urllib.parse
database = sqlite3.connect("file:" + urllib.parse.quote(sys.argv[1]) + "?mode=rw", uri=True, timeout=20)
database.execute("VACUUM")
left = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
database.close()
sys.exit("somebody reads it" if left else 0)
`

// Compact frees OpenCode's database of what was deleted from it, for good. A home
// without one is fine.
func (t *Tree) Compact(ctx context.Context) error {
	if _, err := os.Lstat(filepath.Join(t.home, filepath.FromSlash(database))); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	dir, done, err := t.scratch()
	if err != nil {
		return err
	}
	defer done()
	return t.runPython(ctx, "compact the database", compact, dir)
}

// scratch makes a folder, which done removes.
func (t *Tree) scratch() (dir string, done func(), err error) {
	base := filepath.Join(t.home, filepath.FromSlash(scratch))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", nil, fmt.Errorf("make room for work on the database: %w", err)
	}
	dir, err = os.MkdirTemp(base, "database-")
	if err != nil {
		return "", nil, fmt.Errorf("make room for work on the database: %w", err)
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

// copyDatabase makes a consistent copy of OpenCode's database and opens it.
// done removes it.
func (t *Tree) copyDatabase(ctx context.Context) (copied *os.File, done func(), err error) {
	dir, remove, err := t.scratch()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	name := filepath.Join(dir, "copy.db")
	if err := t.runPython(ctx, "copy the database", backup, dir, name); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) //nolint:gosec // G304: the name is made above
	if err != nil {
		return nil, nil, fmt.Errorf("open the copy of the database: %w", err)
	}
	return f, func() {
		_ = f.Close()
		remove()
	}, nil
}

// runPython runs a program on the database's name and more arguments. dir is for what
// it says.
func (t *Tree) runPython(ctx context.Context, doing, program, dir string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, backupTimeout)
	defer cancel()
	output, err := os.OpenFile(filepath.Join(dir, "output"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // G304: the folder is made above
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	defer output.Close()
	proc, err := t.processes.Start(process.Command{
		// Isolated (-I): nothing of the home's becomes part of it.
		Args: append([]string{t.python, "-I", "-c", program, filepath.Join(t.home, filepath.FromSlash(database))}, args...),
		Env:  []string{"LANG=C.UTF-8"}, Dir: "/",
		Stdout: output, Stderr: output, EndGroup: true,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		proc.Signal(syscall.SIGKILL)
		<-proc.Done()
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	if proc.ExitCode() == 0 {
		return nil
	}
	said := make([]byte, maxMessage)
	n, _ := output.ReadAt(said, max(0, size(output)-maxMessage)) // what it said, if anything
	return fmt.Errorf("%s: %s: %s", doing, proc.ExitText(), printable.Line(string(said[:n]), maxMessage))
}

func size(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
