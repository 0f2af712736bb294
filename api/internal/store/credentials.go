package store

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/agentpod/agentpod/api/internal/credential"
)

// Credentials is the credential.Credentials.
type Credentials struct{ db *gorm.DB }

// Credentials returns the repository of sealed credentials.
func (s *Store) Credentials() *Credentials { return &Credentials{s.db} }

func (c *Credentials) rows(ctx context.Context) *gorm.DB {
	return c.db.WithContext(ctx).Table("provider_credentials")
}

// upsert replaces the named columns of a row whose key exists.
func upsert(key []string, replaced ...string) clause.OnConflict {
	var columns []clause.Column
	for _, name := range key {
		columns = append(columns, clause.Column{Name: name})
	}
	return clause.OnConflict{Columns: columns, DoUpdates: clause.AssignmentColumns(append(replaced, "updated_at"))}
}

// Save implements credential.Credentials.
func (c *Credentials) Save(ctx context.Context, row credential.Credential) error {
	row.CreatedAt, row.UpdatedAt = at(row.CreatedAt), at(row.UpdatedAt)
	err := c.rows(ctx).Clauses(upsert([]string{"user_id", "provider_id"}, "sealed", "key_id")).Create(&row).Error
	return failed("saving a credential", err, nil, nil)
}

// List implements credential.Credentials.
func (c *Credentials) List(ctx context.Context, userID string) ([]credential.Credential, error) {
	list := []credential.Credential{}
	err := c.rows(ctx).Where("user_id = ?", userID).Order("provider_id").Find(&list).Error
	return list, failed("listing credentials", err, nil, nil)
}

// SetDefault implements credential.Credentials.
func (c *Credentials) SetDefault(ctx context.Context, userID, providerID string, now time.Time) error {
	err := c.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		// All of a user's rows are locked in one order, so that two at once queue.
		var ids []string
		lock := tx.Table("provider_credentials").Where("user_id = ?", userID).Order("id").
			Clauses(clause.Locking{Strength: clause.LockingStrengthUpdate}).Pluck("id", &ids)
		if lock.Error != nil {
			return lock.Error
		}
		mine := func() *gorm.DB { return tx.Table("provider_credentials").Where("user_id = ?", userID) }
		if err := mine().Where("is_default").Update("is_default", false).Error; err != nil {
			return err //nolint:wrapcheck // below
		}
		set := mine().Where("provider_id = ?", providerID).Updates(map[string]any{"is_default": true, "updated_at": at(now)})
		return changed("setting it", set, credential.ErrNotFound)
	})
	if errors.Is(err, credential.ErrNotFound) {
		return credential.ErrNotFound
	}
	return failed("setting the default provider", err, nil, nil)
}

// Delete implements credential.Credentials.
func (c *Credentials) Delete(ctx context.Context, userID, providerID string) error {
	tx := c.rows(ctx).Where("user_id = ? AND provider_id = ?", userID, providerID).Delete(&credential.Credential{})
	return changed("deleting a credential", tx, credential.ErrNotFound)
}

// SealedOtherwise implements credential.Credentials.
func (c *Credentials) SealedOtherwise(ctx context.Context, keyID string, limit int) ([]credential.Credential, error) {
	list := []credential.Credential{}
	err := c.rows(ctx).Where("key_id <> ?", keyID).Order("key_id, id").Limit(limit).Find(&list).Error
	return list, failed("listing credentials to seal again", err, nil, nil)
}

// Reseal implements credential.Credentials.
func (c *Credentials) Reseal(ctx context.Context, was credential.Credential, sealed, keyID string, now time.Time) (bool, error) {
	tx := c.rows(ctx).Where("id = ? AND sealed = ?", was.ID, was.Sealed).
		Updates(map[string]any{"sealed": sealed, "key_id": keyID, "updated_at": at(now)})
	return tx.RowsAffected > 0, failed("sealing a credential again", tx.Error, nil, nil)
}

// Configs is the credential.Configs.
type Configs struct{ db *gorm.DB }

// Configs returns the repository of OpenCode's configurations.
func (s *Store) Configs() *Configs { return &Configs{s.db} }

// Get implements credential.Configs.
func (c *Configs) Get(ctx context.Context, userID string) (credential.OpenCode, error) {
	var row credential.OpenCode
	err := c.db.WithContext(ctx).Table("user_opencode_config").Where("user_id = ?", userID).Take(&row).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return credential.OpenCode{UserID: userID, Settings: "{}"}, nil
	}
	return row, failed("reading a configuration", err, nil, nil)
}

func (c *Configs) save(ctx context.Context, row credential.OpenCode, column string) error {
	err := c.db.WithContext(ctx).Table("user_opencode_config").Clauses(upsert([]string{"user_id"}, column)).Create(&row).Error
	return failed("saving a configuration", err, nil, nil)
}

// SaveSettings implements credential.Configs.
func (c *Configs) SaveSettings(ctx context.Context, userID, settings string, now time.Time) error {
	return c.save(ctx, credential.OpenCode{UserID: userID, Settings: settings, CreatedAt: at(now), UpdatedAt: at(now)}, "settings")
}

// SaveAgentsMD implements credential.Configs.
func (c *Configs) SaveAgentsMD(ctx context.Context, userID, content string, now time.Time) error {
	return c.save(ctx, credential.OpenCode{UserID: userID, Settings: "{}", AgentsMD: content, CreatedAt: at(now), UpdatedAt: at(now)}, "agents_md")
}

func (c *Configs) files(ctx context.Context, userID string) *gorm.DB {
	return c.db.WithContext(ctx).Table("user_opencode_files").Where("user_id = ?", userID)
}

// Files implements credential.Configs.
func (c *Configs) Files(ctx context.Context, userID string, limit int) ([]credential.File, error) {
	list := []credential.File{}
	err := c.files(ctx, userID).Order("type, name").Limit(limit).Find(&list).Error
	return list, failed("listing files", err, nil, nil)
}

// File implements credential.Configs.
func (c *Configs) File(ctx context.Context, userID, kind, name string) (credential.File, error) {
	var row credential.File
	err := c.files(ctx, userID).Where("type = ? AND name = ?", kind, name).Take(&row).Error
	return row, failed("reading a file", err, credential.ErrNotFound, nil)
}

// SaveFile implements credential.Configs.
func (c *Configs) SaveFile(ctx context.Context, row credential.File) error {
	row.CreatedAt, row.UpdatedAt = at(row.CreatedAt), at(row.UpdatedAt)
	err := c.db.WithContext(ctx).Table("user_opencode_files").
		Clauses(upsert([]string{"user_id", "type", "name"}, "extension", "content")).Create(&row).Error
	return failed("saving a file", err, nil, nil)
}

// DeleteFile implements credential.Configs.
func (c *Configs) DeleteFile(ctx context.Context, userID, kind, name string) error {
	tx := c.files(ctx, userID).Where("type = ? AND name = ?", kind, name).Delete(&credential.File{})
	return changed("deleting a file", tx, credential.ErrNotFound)
}
