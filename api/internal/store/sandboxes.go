package store

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/agentpod/agentpod/api/internal/task"
)

// Sandboxes is the task.Sandboxes.
type Sandboxes struct{ db *gorm.DB }

// Sandboxes returns the repository of sandboxes' records.
func (s *Store) Sandboxes() *Sandboxes { return &Sandboxes{s.db} }

// Create implements task.Sandboxes.
func (s *Sandboxes) Create(ctx context.Context, row task.Sandbox) error {
	err := createSandbox(s.db.WithContext(ctx), row)
	if errors.Is(err, gorm.ErrForeignKeyViolated) {
		return task.ErrNotFound
	}
	return failed("creating a sandbox's record", err, nil, task.ErrExists)
}

func createSandbox(tx *gorm.DB, row task.Sandbox) error {
	row.CreatedAt, row.UpdatedAt = at(row.CreatedAt), at(row.UpdatedAt)
	for _, t := range []**time.Time{&row.StartedAt, &row.EventAt, &row.WorkspaceSyncedAt, &row.LastActiveAt} {
		*t = atPtr(*t)
	}
	if row.AddonIDs == "" {
		row.AddonIDs = "[]"
	}
	return tx.Create(&row).Error
}

// Get implements task.Sandboxes.
func (s *Sandboxes) Get(ctx context.Context, userID, id string) (task.Sandbox, error) {
	var row task.Sandbox
	err := s.db.WithContext(ctx).Where("id = ? AND user_id = ?", id, userID).Take(&row).Error
	return row, failed("reading a sandbox's record", err, task.ErrNotFound, nil)
}

// Find implements task.Sandboxes.
func (s *Sandboxes) Find(ctx context.Context, id string) (task.Sandbox, error) {
	var row task.Sandbox
	err := s.db.WithContext(ctx).Where("id = ?", id).Take(&row).Error
	return row, failed("reading a sandbox's record", err, task.ErrNotFound, nil)
}

// List implements task.Sandboxes.
func (s *Sandboxes) List(ctx context.Context, filter task.SandboxFilter) ([]task.Sandbox, int64, error) {
	query := func() *gorm.DB {
		q := s.db.WithContext(ctx).Model(&task.Sandbox{}).Where("user_id = ?", filter.UserID)
		if len(filter.Statuses) > 0 {
			q = q.Where("status IN ?", filter.Statuses)
		}
		return q
	}
	var n int64
	if err := query().Count(&n).Error; err != nil {
		return nil, 0, failed("counting sandboxes", err, nil, nil)
	}
	rows := []task.Sandbox{}
	err := query().Order(newestSort).Limit(filter.Page.Limit).Offset(filter.Page.Offset).Find(&rows).Error
	return rows, n, failed("listing sandboxes", err, nil, nil)
}

// columns returns what a change sets.
func columns(c task.SandboxChange, now time.Time) change {
	out := change{"updated_at": at(now)}
	set(out, "status", c.Status)
	set(out, "tier", c.Tier)
	set(out, "error_message", c.ErrorMessage)
	set(out, "container_id", c.ContainerID)
	set(out, "container_name", c.ContainerName)
	set(out, "region", c.Region)
	set(out, "worker_url", c.WorkerURL)
	set(out, "config_hash", c.ConfigHash)
	set(out, "started_at", c.StartedAt)
	set(out, "workspace_synced_at", c.WorkspaceSyncedAt)
	set(out, "last_active_at", c.LastActiveAt)
	return out
}

// Update implements task.Sandboxes.
func (s *Sandboxes) Update(ctx context.Context, id string, now time.Time, c task.SandboxChange) error {
	tx := s.db.WithContext(ctx).Model(&task.Sandbox{}).Where("id = ?", id).Updates(map[string]any(columns(c, now)))
	return changed("changing a sandbox's record", tx, task.ErrNotFound)
}

// Apply implements task.Sandboxes.
func (s *Sandboxes) Apply(ctx context.Context, provider, id string, event, now time.Time, c task.SandboxChange) (bool, error) {
	set := columns(c, now)
	set["event_at"] = at(event)
	tx := s.db.WithContext(ctx).Model(&task.Sandbox{}).
		Where("id = ? AND provider = ? AND (event_at IS NULL OR event_at <= ?)", id, provider, at(event)).Updates(map[string]any(set))
	return tx.RowsAffected > 0, failed("applying an event to a sandbox's record", tx.Error, nil, nil)
}

// Delete implements task.Sandboxes.
func (s *Sandboxes) Delete(ctx context.Context, userID, id string) error {
	err := s.db.WithContext(ctx).Where("id = ? AND user_id = ?", id, userID).Delete(&task.Sandbox{}).Error
	return failed("deleting a sandbox's record", err, nil, nil)
}

// Templates is the task.Templates.
type Templates struct{ db *gorm.DB }

// Templates returns the repository of templates.
func (s *Store) Templates() *Templates { return &Templates{s.db} }

// templates begins a statement on the templates that a user may see.
func (t *Templates) templates(ctx context.Context, userID string) *gorm.DB {
	return t.db.WithContext(ctx).Table("task_templates").Where("(user_id = ? OR user_id IS NULL)", userID)
}

// Save implements task.Templates.
func (t *Templates) Save(ctx context.Context, row task.Template) error {
	row.CreatedAt, row.UpdatedAt = at(row.CreatedAt), at(row.UpdatedAt)
	if row.Placeholders == "" {
		row.Placeholders = "[]"
	}
	// Only a row of the same owner is replaced.
	tx := t.db.WithContext(ctx).Table("task_templates").Clauses(clause.OnConflict{
		Columns:   []clause.Column{{Name: "id"}},
		DoUpdates: clause.AssignmentColumns([]string{"name", "description", "icon", "category", "prompt", "placeholders", "updated_at"}),
		Where: clause.Where{Exprs: []clause.Expression{
			clause.Expr{SQL: "task_templates.user_id = excluded.user_id OR (task_templates.user_id IS NULL AND excluded.user_id IS NULL)"},
		}},
	}).Create(&row)
	return changed("saving a template", tx, task.ErrExists)
}

// Get implements task.Templates.
func (t *Templates) Get(ctx context.Context, userID, id string) (task.Template, error) {
	var row task.Template
	err := t.templates(ctx, userID).Where("id = ?", id).Take(&row).Error
	return row, failed("reading a template", err, task.ErrNotFound, nil)
}

// List implements task.Templates.
func (t *Templates) List(ctx context.Context, userID string, page task.Page) ([]task.Template, error) {
	rows := []task.Template{}
	err := t.templates(ctx, userID).Order(oldestSort).Limit(page.Limit).Offset(page.Offset).Find(&rows).Error
	return rows, failed("listing templates", err, nil, nil)
}

// Delete implements task.Templates.
func (t *Templates) Delete(ctx context.Context, userID, id string) error {
	tx := t.db.WithContext(ctx).Table("task_templates").Where("id = ? AND user_id = ?", id, userID).Delete(&task.Template{})
	return changed("deleting a template", tx, task.ErrNotFound)
}
