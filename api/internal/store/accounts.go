package store

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"

	"github.com/agentpod/agentpod/api/internal/account"
)

// Accounts is the account.Repository.
type Accounts struct{ db *gorm.DB }

// Accounts returns the repository of users and sessions.
func (s *Store) Accounts() *Accounts { return &Accounts{s.db} }

// credentialProvider is the provider of accounts with e-mail and password.
const credentialProvider = "credential"

// login is a row of accounts.
type login struct {
	ID, UserID, ProviderID, AccountID, Password string
	CreatedAt, UpdatedAt                        time.Time
}

// TableName is the table of users' ways to sign in.
func (login) TableName() string { return "accounts" }

// founderRaces bounds how often a first user tries again: who lost the race sees
// the winner at the second try.
const founderRaces = 3

// CreateUser implements account.Repository.
func (a *Accounts) CreateUser(ctx context.Context, user account.User, passwordHash string) (account.User, error) {
	user.CreatedAt, user.UpdatedAt = at(user.CreatedAt), at(user.UpdatedAt)
	var err error
	for range founderRaces {
		created := user
		err = a.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return createUser(tx, &created, passwordHash) })
		if !errors.Is(err, gorm.ErrDuplicatedKey) {
			return created, failed("creating a user", err, nil, nil)
		}
		if _, _, findErr := a.UserByEmail(ctx, user.Email); findErr == nil {
			return account.User{}, account.ErrEmailTaken
		}
	}
	return account.User{}, failed("creating a user", err, nil, nil)
}

func createUser(tx *gorm.DB, user *account.User, passwordHash string) error {
	if user.Role == account.RoleUser {
		n, err := countUsers(tx)
		if err != nil {
			return err
		}
		if n == 0 {
			user.Role, user.Founder = account.RoleAdmin, true
		}
	}
	if err := tx.Create(user).Error; err != nil || passwordHash == "" {
		return err //nolint:wrapcheck // CreateUser does
	}
	return tx.Create(&login{
		ID: user.ID, UserID: user.ID, ProviderID: credentialProvider, AccountID: user.ID, Password: passwordHash,
		CreatedAt: user.CreatedAt, UpdatedAt: user.UpdatedAt,
	}).Error
}

func countUsers(tx *gorm.DB) (n int64, err error) {
	err = tx.Model(&account.User{}).Where("role <> ?", account.RoleService).Count(&n).Error
	return n, err
}

// CountUsers implements account.Repository.
func (a *Accounts) CountUsers(ctx context.Context) (int64, error) {
	n, err := countUsers(a.db.WithContext(ctx))
	return n, failed("counting users", err, nil, nil)
}

// UserByEmail implements account.Repository.
func (a *Accounts) UserByEmail(ctx context.Context, email string) (account.User, string, error) {
	var user account.User
	if err := a.db.WithContext(ctx).Where("email = ?", email).Take(&user).Error; err != nil {
		return user, "", failed("reading a user", err, account.ErrNotFound, nil)
	}
	var way login
	err := a.db.WithContext(ctx).Where("provider_id = ? AND account_id = ?", credentialProvider, user.ID).Take(&way).Error
	if err != nil && !errors.Is(err, gorm.ErrRecordNotFound) {
		return user, "", failed("reading a user's account", err, nil, nil)
	}
	return user, way.Password, nil
}

// UserByID implements account.Repository.
func (a *Accounts) UserByID(ctx context.Context, id string) (account.User, error) {
	var user account.User
	err := a.db.WithContext(ctx).Where("id = ?", id).Take(&user).Error
	return user, failed("reading a user", err, account.ErrNotFound, nil)
}

// CreateSession implements account.Repository.
func (a *Accounts) CreateSession(ctx context.Context, session account.Session, keep int) error {
	session.CreatedAt, session.UpdatedAt, session.ExpiresAt = at(session.CreatedAt), at(session.UpdatedAt), at(session.ExpiresAt)
	err := a.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := tx.Create(&session).Error; err != nil {
			return err //nolint:wrapcheck // below
		}
		newest := tx.Model(&account.Session{}).Select("id").Where("user_id = ?", session.UserID).Order("created_at DESC, id DESC").Limit(keep)
		return tx.Where("user_id = ? AND id <> ?", session.UserID, session.ID).
			Where(tx.Where("expires_at <= ?", session.CreatedAt).Or("id NOT IN (?)", newest)).
			Delete(&account.Session{}).Error
	})
	return failed("creating a session", err, nil, nil)
}

// SessionByHash implements account.Repository.
func (a *Accounts) SessionByHash(ctx context.Context, tokenHash string) (account.Session, account.User, error) {
	var session account.Session
	if err := a.db.WithContext(ctx).Where("token_hash = ?", tokenHash).Take(&session).Error; err != nil {
		return session, account.User{}, failed("reading a session", err, account.ErrNotFound, nil)
	}
	user, err := a.UserByID(ctx, session.UserID)
	return session, user, err
}

// RenewSession implements account.Repository.
func (a *Accounts) RenewSession(ctx context.Context, id string, seen, updated, expires time.Time) error {
	err := a.db.WithContext(ctx).Model(&account.Session{}).Where("id = ? AND updated_at = ?", id, at(seen)).
		Updates(map[string]any{"updated_at": at(updated), "expires_at": at(expires)}).Error
	return failed("renewing a session", err, nil, nil)
}

// DeleteSession implements account.Repository.
func (a *Accounts) DeleteSession(ctx context.Context, tokenHash string) error {
	err := a.db.WithContext(ctx).Where("token_hash = ?", tokenHash).Delete(&account.Session{}).Error
	return failed("deleting a session", err, nil, nil)
}
