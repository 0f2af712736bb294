// Package migrations carries the SQL migrations of the API's database. It is a
// module of its own because go:embed cannot reach a sibling folder.
package migrations
