package store

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/agentpod/agentpod/api/internal/task"
)

// Visits is the task.Visits.
type Visits struct{ db *gorm.DB }

// Visits returns the repository of visits to sandboxes' web UIs.
func (s *Store) Visits() *Visits { return &Visits{s.db} }

// visits begins a statement on the visits.
func (v *Visits) visits(ctx context.Context) *gorm.DB {
	return v.db.WithContext(ctx).Table("ui_visits")
}

// Put implements task.Visits.
func (v *Visits) Put(ctx context.Context, row task.Visit) error {
	row.Until = at(row.Until)
	err := v.visits(ctx).Clauses(clause.OnConflict{
		Columns:   []clause.Column{{Name: "session_id"}, {Name: "sandbox_id"}},
		DoUpdates: clause.AssignmentColumns([]string{"until"}),
	}).Create(&row).Error
	if errors.Is(err, gorm.ErrForeignKeyViolated) {
		return task.ErrNotFound
	}
	return failed("keeping a visit", err, nil, nil)
}

// Over implements task.Visits.
func (v *Visits) Over(ctx context.Context, now time.Time, limit int) ([]task.OverVisit, error) {
	rows := []task.OverVisit{}
	err := v.visits(ctx).Select("ui_visits.*, sandboxes.provider").
		Joins("JOIN sandboxes ON sandboxes.id = ui_visits.sandbox_id").
		Joins("LEFT JOIN sessions ON sessions.id = ui_visits.session_id AND sessions.expires_at > ?", at(now)).
		Joins("LEFT JOIN users ON users.id = sessions.user_id AND NOT users.banned").
		Where("users.id IS NULL OR ui_visits.until <= ?", at(now)).
		Order("RANDOM()").Limit(limit).Find(&rows).Error // so that those which cannot be ended now do not hide the rest
	return rows, failed("listing visits that are over", err, nil, nil)
}

// Delete implements task.Visits.
func (v *Visits) Delete(ctx context.Context, row task.Visit) error {
	err := v.visits(ctx).Where("session_id = ? AND sandbox_id = ? AND until = ?", row.SessionID, row.SandboxID, at(row.Until)).
		Delete(&task.Visit{}).Error
	return failed("forgetting a visit", err, nil, nil)
}
