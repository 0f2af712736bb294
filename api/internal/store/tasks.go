package store

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/migrations"
)

// Tasks is the task.Tasks.
type Tasks struct{ db *gorm.DB }

// Tasks returns the repository of tasks and their events.
func (s *Store) Tasks() *Tasks { return &Tasks{s.db} }

const (
	tasksTable  = "agent_tasks"
	eventsTable = "agent_task_events"
	// unfinished is written as the index agent_tasks_open has it.
	unfinished = "status IN ('pending', 'running')"
	newestSort = "created_at DESC, id DESC"
	oldestSort = "created_at, id"
)

// tasks begins a statement on the table of tasks.
func (t *Tasks) tasks(ctx context.Context) *gorm.DB { return t.db.WithContext(ctx).Table(tasksTable) }

// leased begins a statement on the task of a lease, if that still holds.
func leased(tx *gorm.DB, lease task.Lease) *gorm.DB {
	return tx.Table(tasksTable).Where("id = ? AND lease_owner = ? AND lease_owner <> '' AND "+unfinished, lease.TaskID, lease.Owner)
}

// Create implements task.Tasks.
func (t *Tasks) Create(ctx context.Context, row task.Task, with *task.Sandbox) error {
	err := t.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return createTask(tx, row, with) })
	return failed("creating a task", err, nil, task.ErrExists)
}

func createTask(tx *gorm.DB, row task.Task, with *task.Sandbox) error {
	if with != nil {
		if err := createSandbox(tx, *with); err != nil {
			return err
		}
	}
	row.CreatedAt, row.CompletedAt = at(row.CreatedAt), atPtr(row.CompletedAt)
	if row.LeaseUntil.IsZero() {
		row.LeaseUntil = row.CreatedAt
	}
	row.LeaseUntil = at(row.LeaseUntil)
	if row.Metadata == "" {
		row.Metadata = "{}"
	}
	return tx.Table(tasksTable).Create(&row).Error
}

// Get implements task.Tasks.
func (t *Tasks) Get(ctx context.Context, userID, id string) (task.Task, error) {
	var row task.Task
	err := t.tasks(ctx).Where("id = ? AND user_id = ?", id, userID).Take(&row).Error
	return row, failed("reading a task", err, task.ErrNotFound, nil)
}

// List implements task.Tasks.
func (t *Tasks) List(ctx context.Context, userID string, page task.Page) ([]task.Task, error) {
	rows := []task.Task{}
	err := t.tasks(ctx).Where("user_id = ?", userID).Order(newestSort).Limit(page.Limit).Offset(page.Offset).Find(&rows).Error
	return rows, failed("listing tasks", err, nil, nil)
}

// Claim implements task.Tasks.
func (t *Tasks) Claim(ctx context.Context, owner string, now, until time.Time) (task.Task, error) {
	next := t.tasks(ctx).Select("id").Where(unfinished+" AND lease_until <= ?", at(now)).Order("lease_until, id").Limit(1)
	if t.db.Name() == migrations.Postgres {
		// The row is locked and looked at again; who claims at the same time takes
		// the next one. SQLite has one writer.
		next = next.Clauses(clause.Locking{Strength: clause.LockingStrengthUpdate, Options: clause.LockingOptionsSkipLocked})
	}
	var rows []task.Task
	tx := t.tasks(ctx).Model(&rows).Clauses(clause.Returning{}).Where("id = (?)", next).
		Updates(map[string]any{
			"status": task.Running, "lease_owner": owner, "lease_until": at(until), "attempts": gorm.Expr("attempts + 1"),
		})
	if err := changed("claiming a task", tx, task.ErrNotFound); err != nil {
		return task.Task{}, err
	}
	return rows[0], nil
}

// Start implements task.Tasks.
func (t *Tasks) Start(ctx context.Context, lease task.Lease) error {
	tx := leased(t.db.WithContext(ctx), lease).Updates(map[string]any{"status": task.Running, "attempts": gorm.Expr("attempts + 1")})
	return changed("starting a task", tx, task.ErrLeaseLost)
}

// Renew implements task.Tasks.
func (t *Tasks) Renew(ctx context.Context, lease task.Lease, until time.Time) error {
	tx := leased(t.db.WithContext(ctx), lease).Update("lease_until", at(until))
	return changed("renewing a lease", tx, task.ErrLeaseLost)
}

// Note implements task.Tasks.
func (t *Tasks) Note(ctx context.Context, lease task.Lease, p task.Progress) error {
	c := change{"status": task.Running}
	set(c, "sandbox_id", p.SandboxID)
	set(c, "session_id", p.SessionID)
	set(c, "metadata", p.Metadata)
	tx := leased(t.db.WithContext(ctx), lease).Updates(map[string]any(c))
	return changed("noting a task's progress", tx, task.ErrLeaseLost)
}

// Append implements task.Tasks.
func (t *Tasks) Append(ctx context.Context, lease task.Lease, now time.Time, events ...task.Event) ([]task.Event, error) {
	if len(events) == 0 {
		return nil, nil
	}
	size := sizeOf(events)
	var added []task.Event
	err := t.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		room := leased(tx, lease).Where("event_seq + ? <= ? AND event_bytes + ? <= ?", len(events), task.MaxEvents, size, task.MaxEventBytes)
		seq, err := advance(room, change{}, events)
		if errors.Is(err, task.ErrLeaseLost) {
			var n int64
			if err := leased(tx, lease).Count(&n).Error; err != nil {
				return err //nolint:wrapcheck // below
			}
			if n > 0 {
				return task.ErrLogFull
			}
		}
		if err != nil {
			return err
		}
		added, err = insertEvents(tx, lease.TaskID, seq, now, events)
		return err
	})
	return added, passOr("adding events to a task", err)
}

// advance changes a task that where selects, reserves room for its events, and
// returns the number of the last of them. No such task is ErrLeaseLost.
func advance(where *gorm.DB, c change, events []task.Event) (int64, error) {
	c["event_seq"] = gorm.Expr("event_seq + ?", len(events))
	c["event_bytes"] = gorm.Expr("event_bytes + ?", sizeOf(events))
	var rows []task.Task
	tx := where.Model(&rows).Clauses(clause.Returning{Columns: []clause.Column{{Name: "event_seq"}}}).Updates(map[string]any(c))
	if err := changed("numbering events", tx, task.ErrLeaseLost); err != nil {
		return 0, err
	}
	return rows[0].EventSeq, nil
}

func insertEvents(tx *gorm.DB, taskID string, last int64, now time.Time, events []task.Event) ([]task.Event, error) {
	rows := make([]task.Event, len(events))
	for i, e := range events {
		rows[i] = task.Event{TaskID: taskID, Seq: last - int64(len(events)-1-i), Type: e.Type, Data: e.Data, CreatedAt: at(now)}
	}
	if len(rows) == 0 {
		return rows, nil
	}
	const perStatement = 500 // SQLite and Postgres bound the parameters of one
	return rows, tx.Table(eventsTable).CreateInBatches(rows, perStatement).Error
}

func sizeOf(events []task.Event) int {
	n := 0
	for _, e := range events {
		n += len(e.Type) + len(e.Data)
	}
	return n
}

// passOr returns the domain's errors as they are, and says of others what was
// being done.
func passOr(doing string, err error) error {
	for _, known := range []error{task.ErrLeaseLost, task.ErrLogFull, task.ErrFinal, task.ErrNotFound} {
		if errors.Is(err, known) {
			return known
		}
	}
	return failed(doing, err, nil, nil)
}

// Finish implements task.Tasks.
func (t *Tasks) Finish(ctx context.Context, lease task.Lease, o task.Outcome, events ...task.Event) error {
	if !o.Status.Final() {
		return errors.New("a task can only end with a final status, not " + string(o.Status))
	}
	err := t.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return end(tx, leased(tx, lease), lease.TaskID, o, events) })
	return passOr("ending a task", err)
}

// end gives a task that where selects its final state, which happens once: a
// final task is not selected.
func end(tx, where *gorm.DB, id string, o task.Outcome, events []task.Event) error {
	c := change{"status": o.Status, "completed_at": at(o.At)}
	if o.Response != "" {
		c["response"] = o.Response
	}
	if o.Error != "" {
		c["error"] = o.Error
	}
	seq, err := advance(where, c, events)
	if err != nil {
		return err
	}
	_, err = insertEvents(tx, id, seq, o.At, events)
	return err
}

// Cancel implements task.Tasks.
func (t *Tasks) Cancel(ctx context.Context, userID, id string, now time.Time, events ...task.Event) error {
	err := t.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		open := tx.Table(tasksTable).Where("id = ? AND user_id = ? AND "+unfinished, id, userID)
		return end(tx, open, id, task.Outcome{Status: task.Cancelled, At: now}, events)
	})
	if errors.Is(err, task.ErrLeaseLost) {
		if _, err := t.Get(ctx, userID, id); err != nil {
			return err
		}
		return task.ErrFinal
	}
	return passOr("cancelling a task", err)
}

// Events implements task.Tasks.
func (t *Tasks) Events(ctx context.Context, taskID string, after int64, limit int) ([]task.Event, error) {
	rows := []task.Event{}
	err := t.db.WithContext(ctx).Table(eventsTable).Where("task_id = ? AND seq > ?", taskID, after).Order("seq").Limit(limit).Find(&rows).Error
	return rows, failed("reading a task's events", err, nil, nil)
}

// Teams is the task.Teams.
type Teams struct{ db *gorm.DB }

// Teams returns the repository of teams.
func (s *Store) Teams() *Teams { return &Teams{s.db} }

// Create implements task.Teams.
func (t *Teams) Create(ctx context.Context, team task.Team, members []task.NewMember) error {
	team.CreatedAt = at(team.CreatedAt)
	err := t.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := tx.Create(&team).Error; err != nil {
			return err //nolint:wrapcheck // below
		}
		for i, m := range members {
			if err := createTask(tx, m.Task, m.Sandbox); err != nil {
				return err
			}
			agent := task.TeamAgent{TeamID: team.ID, Position: int64(i), Role: m.Role, TaskID: m.Task.ID}
			if err := tx.Create(&agent).Error; err != nil {
				return err //nolint:wrapcheck // below
			}
		}
		return nil
	})
	return failed("creating a team", err, nil, task.ErrExists)
}

// Get implements task.Teams.
func (t *Teams) Get(ctx context.Context, userID, id string) (task.Team, []task.Member, error) {
	db := t.db.WithContext(ctx)
	var team task.Team
	if err := db.Where("id = ? AND user_id = ?", id, userID).Take(&team).Error; err != nil {
		return team, nil, failed("reading a team", err, task.ErrNotFound, nil)
	}
	var agents []task.TeamAgent
	if err := db.Where("team_id = ?", id).Order("position").Find(&agents).Error; err != nil {
		return team, nil, failed("reading a team's agents", err, nil, nil)
	}
	var tasks []task.Task
	of := db.Model(&task.TeamAgent{}).Select("task_id").Where("team_id = ?", id)
	if err := db.Table(tasksTable).Where("id IN (?)", of).Find(&tasks).Error; err != nil {
		return team, nil, failed("reading a team's tasks", err, nil, nil)
	}
	byID := make(map[string]task.Task, len(tasks))
	for _, row := range tasks {
		byID[row.ID] = row
	}
	members := make([]task.Member, len(agents))
	for i, a := range agents {
		members[i] = task.Member{Agent: a, Task: byID[a.TaskID]}
	}
	return team, members, nil
}

// List implements task.Teams.
func (t *Teams) List(ctx context.Context, userID string, page task.Page) ([]task.Team, error) {
	rows := []task.Team{}
	err := t.db.WithContext(ctx).Where("user_id = ?", userID).Order(newestSort).Limit(page.Limit).Offset(page.Offset).Find(&rows).Error
	return rows, failed("listing teams", err, nil, nil)
}
