package store

import "context"

// Pragma returns what SQLite says of a setting of a connection.
func (s *Store) Pragma(ctx context.Context, name string) (value string, err error) {
	err = s.sql.QueryRowContext(ctx, "PRAGMA "+name).Scan(&value)
	return value, err
}
