package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/agentpod/agentpod/migrations"
)

// State is how a database is before anything is done to it.
type State struct {
	// Absent is set if it is a file that is not there; Open would make it.
	Absent bool
	// Version is that of its tables, 0 if it has none, and Newest the one that this
	// program makes of them.
	Version, Newest int64
	// Time is the server's clock, taken between Before and After; zero if there is
	// no server.
	Time, Before, After time.Time
}

// Look says how a database is, and changes nothing. Its errors are Open's.
func Look(ctx context.Context, databaseURL string) (State, error) {
	var s State
	if path, ok := strings.CutPrefix(databaseURL, "sqlite:"); ok {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return State{Absent: true}, nil
		}
	}
	db, dialect, _, err := connect(databaseURL)
	if err != nil {
		return s, err
	}
	defer func() { _ = db.Close() }() // nothing was written
	if err := db.PingContext(ctx); err != nil {
		return s, explained(fmt.Errorf("opening the database: %w", err))
	}
	if s.Version, s.Newest, err = migrations.Versions(ctx, db, dialect); err != nil {
		return s, explained(err)
	}
	if dialect == migrations.Postgres {
		if err := s.askTime(ctx, db); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *State) askTime(ctx context.Context, db *sql.DB) error {
	s.Before = time.Now()
	err := db.QueryRowContext(ctx, "SELECT clock_timestamp()").Scan(&s.Time)
	s.After = time.Now()
	if err != nil {
		return fmt.Errorf("asking the database for its time: %w", err)
	}
	return nil
}

// explained adds to an error of a database that is opened what to do.
func explained(err error) error {
	if err == nil {
		return nil
	}
	advice := ""
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case strings.HasPrefix(e.Code, "28"): // invalid_authorization_specification, invalid_password
			advice = "the server refuses the user or the password; set those that it knows"
		case e.Code == "3D000":
			advice = "the server has no database of that name; create it (createdb), or set the right name"
		case e.Code == "42501":
			advice = "the user may not make tables there; make it the owner of the database"
		}
	}
	switch said := err.Error(); {
	case advice != "":
	case away(err):
		advice = "the server does not answer; start it, and check host and port"
	case strings.Contains(said, "file is not a database"):
		advice = "the file is no database; set another path, or remove it"
	case strings.Contains(said, "readonly database"):
		advice = "the file cannot be written; let this user write it and its folder"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", advice, err)
}
