package tree

import (
	"context"
	"fmt"
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

// copyDatabase makes a consistent copy of OpenCode's database and opens it.
// done removes it.
func (t *Tree) copyDatabase(ctx context.Context) (copied *os.File, done func(), err error) {
	base := filepath.Join(t.home, filepath.FromSlash(scratch))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make room for a copy of the database: %w", err)
	}
	dir, err := os.MkdirTemp(base, "database-")
	if err != nil {
		return nil, nil, fmt.Errorf("make room for a copy of the database: %w", err)
	}
	remove := func() { _ = os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			remove()
		}
	}()
	name := filepath.Join(dir, "copy.db")
	if err := t.runBackup(ctx, dir, name); err != nil {
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

func (t *Tree) runBackup(ctx context.Context, dir, name string) error {
	ctx, cancel := context.WithTimeout(ctx, backupTimeout)
	defer cancel()
	output, err := os.OpenFile(filepath.Join(dir, "output"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // G304: the folder is made above
	if err != nil {
		return fmt.Errorf("make room for a copy of the database: %w", err)
	}
	defer output.Close()
	proc, err := t.processes.Start(process.Command{
		// Isolated (-I): nothing of the home's becomes part of it.
		Args: []string{t.python, "-I", "-c", backup, filepath.Join(t.home, filepath.FromSlash(database)), name},
		Env:  []string{"LANG=C.UTF-8"}, Dir: "/",
		Stdout: output, Stderr: output, EndGroup: true,
	})
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	select {
	case <-proc.Done():
	case <-ctx.Done():
		proc.Signal(syscall.SIGKILL)
		<-proc.Done()
		return fmt.Errorf("copy the database: %w", ctx.Err())
	}
	if proc.ExitCode() == 0 {
		return nil
	}
	said := make([]byte, maxMessage)
	n, _ := output.ReadAt(said, max(0, size(output)-maxMessage)) // what it said, if anything
	return fmt.Errorf("copy the database: %s: %s", proc.ExitText(), printable.Line(string(said[:n]), maxMessage))
}

func size(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
