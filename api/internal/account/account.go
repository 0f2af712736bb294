// Package account is who may use the API: users, their passwords and sessions,
// the limits on guessing either, and the service credential.
package account

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Role says what a user may do.
type Role string

// The roles. RoleService is the user behind the service credential; nobody can
// sign in as it.
const (
	RoleUser    Role = "user"
	RoleAdmin   Role = "admin"
	RoleService Role = "service"
)

// User is somebody with an account. Times are UTC, in milliseconds.
type User struct {
	ID            string
	Name          string
	Email         string // lower case, and unique
	EmailVerified bool
	Image         string // a URL, or empty
	Role          Role
	// Founder is the first who signed up, and so an admin.
	Founder   bool
	Banned    bool
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Admin tells whether the user may act for every other.
func (u User) Admin() bool { return u.Role == RoleAdmin || u.Role == RoleService }

// Session is a user's sign-in. Its token is known to whoever signed in, and
// only by its hash to us. Times are UTC, in milliseconds.
type Session struct {
	ID        string
	UserID    string
	TokenHash string
	// Remember is false for a session that ends with the browser, or after a day.
	Remember  bool
	IPAddress string
	UserAgent string
	ExpiresAt time.Time
	CreatedAt time.Time
	UpdatedAt time.Time
}

// What a Repository says when it is not asked in vain.
var (
	// ErrNotFound means that there is no such row.
	ErrNotFound = errors.New("account: not found")
	// ErrEmailTaken means that a user has that e-mail address already.
	ErrEmailTaken = errors.New("account: e-mail address taken")
)

// Repository keeps users and sessions. It is safe for concurrent use.
type Repository interface {
	// CreateUser keeps a new user, with a password's hash unless that is empty. A
	// user of RoleUser who is the first but for RoleService becomes founder and
	// admin; of several at once one is. It returns the user as it was kept, or
	// ErrEmailTaken.
	CreateUser(ctx context.Context, user User, passwordHash string) (User, error)
	// UserByEmail returns a user and the password's hash, or ErrNotFound.
	UserByEmail(ctx context.Context, email string) (User, string, error)
	// UserByID returns a user, or ErrNotFound.
	UserByID(ctx context.Context, id string) (User, error)
	// CountUsers counts those who are not RoleService.
	CountUsers(ctx context.Context) (int64, error)
	// CreateSession keeps a session, and forgets those of the same user that are
	// over, or beyond the newest keep.
	CreateSession(ctx context.Context, session Session, keep int) error
	// SessionByHash returns a session and its user, or ErrNotFound.
	SessionByHash(ctx context.Context, tokenHash string) (Session, User, error)
	// RenewSession moves the end of a session, unless that was moved meanwhile.
	RenewSession(ctx context.Context, id string, seen, updated, expires time.Time) error
	// DeleteSession ends the session; it need not exist.
	DeleteSession(ctx context.Context, tokenHash string) error
}

// What is wrong with a request, for errors.Is.
var (
	// ErrCredentials means that no user has that e-mail address and password.
	ErrCredentials = errors.New("account: invalid e-mail address or password")
	// ErrEmail means that the address is not one.
	ErrEmail = errors.New("account: not an e-mail address")
	// ErrPasswordTooShort means fewer than MinPassword characters.
	ErrPasswordTooShort = errors.New("account: password too short")
	// ErrPasswordTooLong means more than MaxPassword characters.
	ErrPasswordTooLong = errors.New("account: password too long")
	// ErrName means that the name is too long, or not text.
	ErrName = errors.New("account: not a name")
	// ErrSignUpClosed means that accounts are not for everybody to make.
	ErrSignUpClosed = errors.New("account: sign-up is closed")
	// ErrBanned means that the user may not sign in.
	ErrBanned = errors.New("account: banned")
	// ErrNoSession means that the token belongs to no session.
	ErrNoSession = errors.New("account: no session")
)

// ClosedError is ErrSignUpClosed for a reason that is told.
type ClosedError struct{ Why string }

// Error implements error.
func (e *ClosedError) Error() string { return ErrSignUpClosed.Error() + ": " + e.Why }

// Is implements errors.Is.
func (e *ClosedError) Is(target error) bool { return target == ErrSignUpClosed }

// LimitedError means that there were too many tries.
type LimitedError struct {
	// RetryAfter is how long it takes until another try is let through.
	RetryAfter time.Duration
}

// Error gives the time to wait.
func (e *LimitedError) Error() string {
	return fmt.Sprintf("account: too many tries, again in %s", e.RetryAfter)
}
