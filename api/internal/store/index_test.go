package store_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/migrations"
)

// The queries stand here as the repositories' lists send them; a plan that scans
// or sorts a table grows with everybody's rows.
func TestEveryListHasAnIndex(t *testing.T) {
	t.Parallel()
	db, dialect := raw(t, "sqlite:"+t.TempDir()+"/plans.db")
	if err := migrations.Up(t.Context(), db, dialect); err != nil {
		t.Fatal(err)
	}
	for name, query := range map[string]string{
		"tasks of a user":              "SELECT * FROM agent_tasks WHERE user_id = 'u' ORDER BY created_at DESC, id DESC LIMIT 50",
		"tasks to claim":               "SELECT id FROM agent_tasks WHERE status IN ('pending', 'running') AND lease_until <= 'x' ORDER BY lease_until, id LIMIT 1",
		"events of a task":             "SELECT * FROM agent_task_events WHERE task_id = 't' AND seq > 5 ORDER BY seq LIMIT 50",
		"teams of a user":              "SELECT * FROM teams WHERE user_id = 'u' ORDER BY created_at DESC, id DESC LIMIT 50",
		"agents of a team":             "SELECT * FROM team_agents WHERE team_id = 't' ORDER BY position",
		"sandboxes of a user":          "SELECT * FROM sandboxes WHERE user_id = 'u' ORDER BY created_at DESC, id DESC LIMIT 50",
		"sandboxes with a status":      "SELECT * FROM sandboxes WHERE user_id = 'u' AND status = 'running' ORDER BY created_at DESC, id DESC LIMIT 50",
		"sessions of a user":           "SELECT id FROM sessions WHERE user_id = 'u' ORDER BY created_at DESC, id DESC LIMIT 100",
		"a session by its token":       "SELECT * FROM sessions WHERE token_hash = 'h'",
		"a user by the e-mail address": "SELECT * FROM users WHERE email = 'e'",
		"credentials of a user":        "SELECT * FROM provider_credentials WHERE user_id = 'u' ORDER BY provider_id",
		"files of a user":              "SELECT * FROM user_opencode_files WHERE user_id = 'u' ORDER BY type, name",
		"templates of a user":          "SELECT * FROM task_templates WHERE user_id = 'u' ORDER BY created_at, id",
	} {
		plan, err := planOf(t, db, query)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := strings.Join(plan, "; "); !strings.Contains(got, "INDEX") || strings.Contains(got, "TEMP B-TREE") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// planOf returns the steps of a query's plan.
func planOf(t testing.TB, db *sql.DB, query string) (plan []string, err error) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			return nil, err
		}
		plan = append(plan, detail)
	}
	return plan, rows.Err()
}
