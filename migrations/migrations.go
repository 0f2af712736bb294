// Package migrations carries the SQL migrations of the API's database, one set
// for Postgres and SQLite, and runs them. It is a module of its own because an
// embed cannot reach a sibling folder.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed sql/*.sql
var files embed.FS

// The dialects of SQL that the migrations are for.
const (
	Postgres = "postgres"
	SQLite   = "sqlite"
)

// Up brings a database to the newest version. Of processes that start at once
// one migrates and the others wait for it: by an advisory lock on Postgres, and
// by a lock on a file beside the database (its name with -migrate) on SQLite.
func Up(ctx context.Context, db *sql.DB, dialect string) error {
	provider, err := open(db, dialect)
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	return nil
}

// Down takes every migration back, and with them all data. It is for tests.
func Down(ctx context.Context, db *sql.DB, dialect string) error {
	provider, err := open(db, dialect)
	if err != nil {
		return err
	}
	if _, err := provider.DownTo(ctx, 0); err != nil {
		return fmt.Errorf("taking the migrations back: %w", err)
	}
	return nil
}

// Versions returns the version of a database's tables, 0 if it has none, and the
// one that Up would bring it to. It changes nothing and waits for no lock.
func Versions(ctx context.Context, db *sql.DB, dialect string) (current, newest int64, err error) {
	provider, err := open(db, dialect)
	if err != nil {
		return 0, 0, err
	}
	for _, script := range provider.ListSources() {
		newest = max(newest, script.Version)
	}
	// Asked for the versions at once, goose would make its table.
	look := "SELECT to_regclass('" + goose.DefaultTablename + "') IS NOT NULL"
	if dialect == SQLite {
		look = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '" + goose.DefaultTablename + "')"
	}
	var exists bool
	if err := db.QueryRowContext(ctx, look).Scan(&exists); err != nil || !exists {
		return 0, newest, wrap("looking for the database's version", err)
	}
	current, newest, err = provider.GetVersions(ctx)
	return current, newest, wrap("reading the database's version", err)
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// How often and for how long a process tries to get the lock. A migration of
// much data may take minutes.
const (
	lockEvery = 250 * time.Millisecond
	lockWait  = 10 * time.Minute
)

func open(db *sql.DB, dialect string) (*goose.Provider, error) {
	scripts, err := fs.Sub(files, "sql")
	if err != nil {
		return nil, fmt.Errorf("opening the migrations: %w", err)
	}
	var locker lock.SessionLocker
	kind := goose.DialectPostgres
	switch dialect {
	case Postgres:
		// Goose counts tries; its period is in seconds.
		if locker, err = lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, uint64(lockWait/time.Second))); err != nil {
			return nil, fmt.Errorf("making the migrations' lock: %w", err)
		}
	case SQLite:
		kind, locker = goose.DialectSQLite3, &fileLock{}
	default:
		return nil, fmt.Errorf("there are no migrations for the dialect %q", dialect)
	}
	provider, err := goose.NewProvider(kind, db, scripts, goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("reading the migrations: %w", err)
	}
	return provider, nil
}

// fileLock is a lock between processes on an SQLite database. SQLite's own locks
// last for a transaction, and goose runs several.
type fileLock struct{ file *os.File }

// SessionLock waits for the lock. A database in memory has one process and
// needs none.
func (l *fileLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	var name sql.NullString
	if err := conn.QueryRowContext(ctx, "SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&name); err != nil {
		return fmt.Errorf("asking for the database's file: %w", err)
	}
	if name.String == "" {
		return nil
	}
	file, err := os.OpenFile(name.String+"-migrate", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the migrations' lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			l.file = file
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return errors.Join(fmt.Errorf("locking %s: %w", file.Name(), err), file.Close())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("another process has been migrating: %w", ctx.Err()), file.Close())
		}
	}
}

// SessionUnlock gives the lock back. The file stays: whoever waits has it open.
func (l *fileLock) SessionUnlock(context.Context, *sql.Conn) error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return fmt.Errorf("giving the migrations' lock back: %w", err)
	}
	return nil
}
