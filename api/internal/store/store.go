// Package store keeps the API's data in Postgres, or in SQLite where no server
// is wanted. The tables are what the module migrations makes of them; nothing
// here changes a schema. Everything of the mapper stays in here: the domain's
// types are the rows, and the repositories take and return those.
package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/glebarez/sqlite"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/agentpod/agentpod/migrations"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Store is a database at the newest schema. It is safe for concurrent use.
type Store struct {
	db  *gorm.DB
	sql *sql.DB
}

// The bounds of the pool. SQLite has one writer at a time; more connections only
// read. Neither may be 1: a migration holds its lock on one and works on another.
const (
	postgresConns = 20
	sqliteConns   = 8
	idleConn      = 5 * time.Minute
	connectWait   = 10 * time.Second
	busyEvery     = 20 * time.Millisecond // a try to open a file that is locked
)

// Open opens a database and migrates it. A URL is postgres://… or sqlite:PATH;
// an SQLite file is made if there is none. Errors do not repeat the URL, for it
// may hold a password.
func Open(ctx context.Context, databaseURL string) (*Store, error) {
	db, dialect, dialector, err := connect(databaseURL)
	if err != nil {
		return nil, err
	}
	s := &Store{sql: db}
	db.SetConnMaxIdleTime(idleConn)
	if dialect == migrations.SQLite {
		if err := firstConn(ctx, db); err != nil {
			return nil, errors.Join(explained(err), db.Close())
		}
	}
	if err := migrations.Up(ctx, db, dialect); err != nil {
		return nil, errors.Join(explained(err), db.Close())
	}
	s.db, err = gorm.Open(dialector, &gorm.Config{
		// A row's values may be secrets; what fails is returned.
		Logger:                 logger.Discard,
		TranslateError:         true,
		SkipDefaultTransaction: true,
		DisableAutomaticPing:   true,
		NowFunc:                func() time.Time { return at(time.Now()) },
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database: %w", err), db.Close())
	}
	return s, nil
}

// firstConn makes a first connection, which gives a new SQLite file its WAL. Two
// that do so at once are told that it is locked, in spite of the busy timeout.
func firstConn(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	tick := time.NewTicker(busyEvery)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		if !strings.Contains(err.Error(), "SQLITE_BUSY") {
			return fmt.Errorf("opening the database: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("opening the database: %w", err)
		}
	}
}

func connect(databaseURL string) (*sql.DB, string, gorm.Dialector, error) {
	scheme, rest, _ := strings.Cut(databaseURL, ":")
	switch scheme {
	case "postgres", "postgresql":
		config, err := pgx.ParseConfig(databaseURL)
		if err != nil {
			return nil, "", nil, errors.New("the database's URL must be like postgres://user:password@host:5432/name?sslmode=require")
		}
		if config.ConnectTimeout == 0 {
			config.ConnectTimeout = connectWait
		}
		config.RuntimeParams["timezone"] = "UTC"
		var db *sql.DB
		db = stdlib.OpenDB(*config, stdlib.OptionShouldPing(func(ctx context.Context, p stdlib.ShouldPingParams) bool {
			return !answers(ctx, p) && forgetIdle(db)
		}))
		db.SetMaxOpenConns(postgresConns)
		db.SetMaxIdleConns(postgresConns)
		return db, migrations.Postgres, postgres.New(postgres.Config{Conn: db}), nil
	case "sqlite":
		path, err := filepath.Abs(rest)
		if rest == "" || err != nil {
			return nil, "", nil, errors.New("the database's URL must be like sqlite:.agentpod/agentpod.db")
		}
		// SQLite would make it readable for everybody.
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator's own setting
		if err != nil {
			return nil, "", nil, fmt.Errorf("opening the database; let this user write the file and its folder: %w", err)
		}
		if err := file.Close(); err != nil {
			return nil, "", nil, fmt.Errorf("opening the database: %w", err)
		}
		db, err := sql.Open(sqlite.DriverName, sqliteURI(path))
		if err != nil {
			return nil, "", nil, fmt.Errorf("opening the database: %w", err)
		}
		db.SetMaxOpenConns(sqliteConns)
		db.SetMaxIdleConns(sqliteConns)
		return db, migrations.SQLite, &sqlite.Dialector{Conn: db}, nil
	default:
		return nil, "", nil, errors.New("the database's URL must begin with postgres:// or sqlite: and a path")
	}
}

// pingAfter is how long a connection may be idle before it is asked whether it still
// answers, and pingTime how long its answer may take. The shortest deadline of a
// caller is a lease's renewal, 5 s.
const (
	pingAfter = time.Second
	pingTime  = time.Second
)

// answers tells whether an idle connection can be used. One that died silently
// would take all of its user's time. If it does not answer it is closed.
func answers(ctx context.Context, p stdlib.ShouldPingParams) bool {
	if p.IdleDuration <= pingAfter {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	return p.Conn.PgConn().Ping(ctx) == nil
}

// forgetIdle closes all idle connections: what silenced one silenced others. It
// returns true.
func forgetIdle(db *sql.DB) bool {
	db.SetMaxIdleConns(0)
	db.SetMaxIdleConns(postgresConns)
	return true
}

// sqliteURI says how a file is opened. A transaction takes the write lock at its
// start, or two that read first could not both go on. A transaction that was
// committed outlives a power cut (synchronous FULL). Times are written as
// Go prints them, which sorts as long as all are in one zone, as at makes them:
// the driver ignores _txlock where _time_format asks for another form.
func sqliteURI(path string) string {
	query := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(10000)", "foreign_keys(1)", "journal_mode(WAL)", "synchronous(FULL)"},
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + query.Encode()
}

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.sql.PingContext(ctx); err != nil {
		return fmt.Errorf("asking the database: %w", err)
	}
	return nil
}

// Close closes the connections.
func (s *Store) Close() error {
	if err := s.sql.Close(); err != nil {
		return fmt.Errorf("closing the database: %w", err)
	}
	return nil
}

// at is a time as a row has it: UTC, in milliseconds.
func at(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func atPtr(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	utc := at(*t)
	return &utc
}

// failed says what was being done, and makes of the mapper's errors those of the
// domain: missing of no row, and taken of a row that exists.
func failed(doing string, err, missing, taken error) error {
	switch {
	case err == nil:
		return nil
	case missing != nil && errors.Is(err, gorm.ErrRecordNotFound):
		return missing
	case taken != nil && errors.Is(err, gorm.ErrDuplicatedKey):
		return taken
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if away(err) {
		return sandbox.Errorf(sandbox.CodeStoreAway, "the API's database does not answer; it is tried again by itself").WithCause(err)
	}
	return err
}

// away tells whether an error says that the database cannot be reached, or not
// just now.
func away(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection exceptions, a server that starts or stops, too many clients.
		return strings.HasPrefix(e.Code, "08") || strings.HasPrefix(e.Code, "57P") || e.Code == "53300"
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok && !errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	for _, known := range []error{driver.ErrBadConn, net.ErrClosed, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, known) {
			return true
		}
	}
	return strings.Contains(err.Error(), "SQLITE_BUSY")
}

// changed is failed for a change: it must have met a row.
func changed(doing string, tx *gorm.DB, missing error) error {
	if tx.Error == nil && tx.RowsAffected == 0 {
		return missing
	}
	return failed(doing, tx.Error, missing, nil)
}

// change collects the columns that are to be changed: those with a value.
type change map[string]any

// set adds a column unless the value is nil.
func set[T any](c change, column string, value *T) {
	if value == nil {
		return
	}
	if t, ok := any(*value).(time.Time); ok {
		c[column] = at(t)
		return
	}
	c[column] = *value
}
