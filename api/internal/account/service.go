package account

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// How long sessions last, as the recorded server has it.
const (
	// SessionLife is how long a session lasts after it was made or renewed.
	SessionLife = 7 * 24 * time.Hour
	// RenewAfter is the age at which use renews a session.
	RenewAfter = 24 * time.Hour
	// ShortLife is how long one lasts that is not to be remembered.
	ShortLife = 24 * time.Hour
)

// sessionsKept bounds the sessions of a user.
const sessionsKept = 100

// The bounds of what is kept of a user and a session, in bytes.
const (
	maxName      = 200
	maxEmail     = 254 // RFC 5321
	maxImage     = 2000
	maxUserAgent = 500
)

// Limit lets a burst of tries through, and one more each Every after that.
type Limit struct {
	Burst int
	Every time.Duration
}

// Settings of a Service.
type Settings struct {
	// Secret signs cookies; at least 32 bytes. Changing it ends no session by
	// itself, but every cookie.
	Secret []byte
	// SignUp opens sign-up. MayOpen, unless it is nil, is asked at each sign-up; its
	// error, a *ClosedError, refuses that one.
	SignUp  bool
	MayOpen func(context.Context) error
	// APIToken is the service credential; empty for none.
	APIToken string
	// PerAccount and PerAddress limit sign-ins that fail; the latter sign-ups too.
	PerAccount, PerAddress Limit
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// DefaultPerAccount lets somebody who tries to guess a password try 1440 times
// a day.
func DefaultPerAccount() Limit { return Limit{Burst: 10, Every: time.Minute} }

// DefaultPerAddress is wider, for many may share an address.
func DefaultPerAddress() Limit { return Limit{Burst: 30, Every: 10 * time.Second} }

// Service signs users up, in and out, and says whose a token is. It is safe for
// concurrent use. Limits are this process's: two allow twice as many tries.
type Service struct {
	settings   Settings
	repository Repository
	hasher     hasher
	decoy      string // a hash that no password has
	token      [sha256.Size]byte
	perAccount *limiter
	perAddress *limiter
}

// New makes a service.
func New(ctx context.Context, settings Settings, repository Repository) (*Service, error) {
	if len(settings.Secret) < 32 {
		return nil, errors.New("the secret that signs sessions must have at least 32 bytes")
	}
	if settings.PerAccount.Burst < 1 || settings.PerAddress.Burst < 1 || settings.PerAccount.Every <= 0 || settings.PerAddress.Every <= 0 {
		return nil, errors.New("the limits on signing in must be above 0")
	}
	if settings.Now == nil {
		settings.Now = time.Now
	}
	s := &Service{
		settings: settings, repository: repository, hasher: newHasher(max(2, runtime.GOMAXPROCS(0))),
		token:      sha256.Sum256([]byte(settings.APIToken)),
		perAccount: newLimiter(settings.PerAccount.Burst, settings.PerAccount.Every),
		perAddress: newLimiter(settings.PerAddress.Burst, settings.PerAddress.Every),
	}
	var err error
	if s.decoy, err = s.hasher.hash(ctx, rand.Text()); err != nil {
		return nil, err
	}
	if settings.APIToken != "" {
		err = s.makeServiceUser(ctx)
	}
	return s, err
}

// ServiceUserID is the user that the service credential acts as.
const ServiceUserID = "service"

func (s *Service) makeServiceUser(ctx context.Context) error {
	now := s.now()
	_, err := s.repository.CreateUser(ctx, User{
		ID: ServiceUserID, Name: "Service", Email: "service@localhost.invalid", Role: RoleService, CreatedAt: now, UpdatedAt: now,
	}, "")
	if err != nil && !errors.Is(err, ErrEmailTaken) {
		return fmt.Errorf("making the service's user: %w", err)
	}
	return nil
}

// now is the time as it is kept: UTC, in milliseconds.
func (s *Service) now() time.Time { return s.settings.Now().UTC().Truncate(time.Millisecond) }

// Client is what is known of who sends a request.
type Client struct {
	Address   string // an IP address
	UserAgent string
}

// SignUp is a request for an account.
type SignUp struct {
	Name, Email, Password, Image string
	Remember                     bool
}

// SignIn is a request for a session.
type SignIn struct {
	Email, Password string
	Remember        bool
}

// Signed is a session that was just made or renewed, with its token.
type Signed struct {
	User    User
	Session Session
	Token   string
}

// SignUp makes an account and signs it in. The first account is an admin's.
// Errors: ErrSignUpClosed, ErrName, ErrEmail, ErrPasswordTooShort,
// ErrPasswordTooLong, ErrEmailTaken, *LimitedError.
func (s *Service) SignUp(ctx context.Context, req SignUp, client Client) (Signed, error) {
	if !s.settings.SignUp {
		return Signed{}, ErrSignUpClosed
	}
	user, err := s.checkNew(req)
	if err != nil {
		return Signed{}, err
	}
	if wait := s.perAddress.take(addressKey(client.Address), s.now()); wait > 0 {
		return Signed{}, &LimitedError{RetryAfter: wait}
	}
	if s.settings.MayOpen != nil {
		if err := s.settings.MayOpen(ctx); err != nil {
			return Signed{}, err
		}
	}
	if user, err = s.create(ctx, user, req.Password); err != nil {
		return Signed{}, err
	}
	return s.open(ctx, user, req.Remember, client)
}

// EnsureAdmin makes an admin if there is no user yet, whether sign-up is open
// or not, and tells whether it did.
func (s *Service) EnsureAdmin(ctx context.Context, name, email, password string) (bool, error) {
	n, err := s.repository.CountUsers(ctx)
	if err != nil || n > 0 {
		return false, err
	}
	user, err := s.checkNew(SignUp{Name: name, Email: email, Password: password})
	if err != nil {
		return false, err
	}
	user, err = s.create(ctx, user, password)
	if errors.Is(err, ErrEmailTaken) { // another process did
		return false, nil
	}
	return err == nil && user.Founder, err
}

func (s *Service) checkNew(req SignUp) (User, error) {
	if len(req.Name) > maxName || len(req.Image) > maxImage || !plain(req.Name) || !plain(req.Image) {
		return User{}, ErrName
	}
	email, err := NormalEmail(req.Email)
	if err != nil {
		return User{}, err
	}
	if err := CheckPassword(req.Password); err != nil {
		return User{}, err
	}
	now := s.now()
	return User{ID: newID(), Name: req.Name, Email: email, Image: req.Image, Role: RoleUser, CreatedAt: now, UpdatedAt: now}, nil
}

// plain tells whether a text may stand in a database, a log and a page.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func (s *Service) create(ctx context.Context, user User, password string) (User, error) {
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return User{}, err
	}
	user, err = s.repository.CreateUser(ctx, user, hash)
	if err != nil {
		return User{}, fmt.Errorf("making an account: %w", err)
	}
	return user, nil
}

// emailPattern is, together with the two dots below, what the login client's
// server takes for an address.
var emailPattern = regexp.MustCompile(`^[A-Za-z0-9_'+.-]*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$`)

// NormalEmail returns an address as it is kept, or ErrEmail.
func NormalEmail(email string) (string, error) {
	if len(email) > maxEmail || strings.HasPrefix(email, ".") || strings.Contains(email, "..") || !emailPattern.MatchString(email) {
		return "", ErrEmail
	}
	return strings.ToLower(email), nil
}

// SignIn makes a session for who knows the password. Its answer and its time
// are the same for an unknown user and a wrong password. Tries that fail are
// limited by account and by address. Errors: ErrEmail, ErrCredentials,
// ErrBanned, *LimitedError.
func (s *Service) SignIn(ctx context.Context, req SignIn, client Client) (Signed, error) {
	email, err := NormalEmail(req.Email)
	if err != nil {
		return Signed{}, err
	}
	address, now := addressKey(client.Address), s.now()
	if wait := s.perAddress.take(address, now); wait > 0 {
		return Signed{}, &LimitedError{RetryAfter: wait}
	}
	if wait := s.perAccount.take(email, now); wait > 0 {
		return Signed{}, &LimitedError{RetryAfter: wait}
	}
	user, hash, err := s.repository.UserByEmail(ctx, email)
	known := err == nil && hash != ""
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Signed{}, fmt.Errorf("signing in: %w", err)
	}
	if !known {
		hash = s.decoy
	}
	right, err := s.hasher.verify(ctx, req.Password, hash)
	if err != nil {
		return Signed{}, fmt.Errorf("signing in: %w", err)
	}
	if !known || !right {
		return Signed{}, ErrCredentials
	}
	s.perAddress.giveBack(address, now)
	s.perAccount.giveBack(email, now)
	if user.Banned {
		return Signed{}, ErrBanned
	}
	return s.open(ctx, user, req.Remember, client)
}

// open makes a session. Its token is always a new one, whatever the client sent.
func (s *Service) open(ctx context.Context, user User, remember bool, client Client) (Signed, error) {
	now, token := s.now(), newID()
	session := Session{
		ID: newID(), UserID: user.ID, TokenHash: hashToken(token), Remember: remember,
		IPAddress: cut(client.Address, maxUserAgent), UserAgent: cut(client.UserAgent, maxUserAgent),
		ExpiresAt: now.Add(life(remember)), CreatedAt: now, UpdatedAt: now,
	}
	if err := s.repository.CreateSession(ctx, session, sessionsKept); err != nil {
		return Signed{}, fmt.Errorf("making a session: %w", err)
	}
	return Signed{User: user, Session: session, Token: token}, nil
}

func life(remember bool) time.Duration {
	if remember {
		return SessionLife
	}
	return ShortLife
}

// Session returns the session of a token, or ErrNoSession. A session that is to
// be remembered and older than RenewAfter is renewed, which renewed tells.
func (s *Service) Session(ctx context.Context, token string) (signed Signed, renewed bool, err error) {
	signed, err = s.Look(ctx, token)
	if err != nil {
		return signed, false, err
	}
	session, now := signed.Session, s.now()
	if session.Remember && now.Sub(session.UpdatedAt) >= RenewAfter {
		seen := session.UpdatedAt
		session.UpdatedAt, session.ExpiresAt, renewed = now, now.Add(SessionLife), true
		if err := s.repository.RenewSession(ctx, session.ID, seen, session.UpdatedAt, session.ExpiresAt); err != nil {
			return Signed{}, false, fmt.Errorf("renewing a session: %w", err)
		}
	}
	signed.Session = session
	return signed, renewed, nil
}

// Look returns the session of a token, or ErrNoSession, and is no use of it that
// would renew it.
func (s *Service) Look(ctx context.Context, token string) (Signed, error) {
	session, user, err := s.repository.SessionByHash(ctx, hashToken(token))
	switch {
	case errors.Is(err, ErrNotFound):
		return Signed{}, ErrNoSession
	case err != nil:
		return Signed{}, fmt.Errorf("reading a session: %w", err)
	case !s.now().Before(session.ExpiresAt), user.Banned:
		return Signed{}, ErrNoSession
	}
	return Signed{User: user, Session: session, Token: token}, nil
}

// ServiceUser returns the user behind the service credential if the token is
// that, and ErrNoSession otherwise.
func (s *Service) ServiceUser(ctx context.Context, token string) (User, error) {
	sum := sha256.Sum256([]byte(token))
	if s.settings.APIToken == "" || subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 {
		return User{}, ErrNoSession
	}
	user, err := s.repository.UserByID(ctx, ServiceUserID)
	if err != nil {
		return User{}, fmt.Errorf("reading the service's user: %w", err)
	}
	return user, nil
}

// User returns a user. Errors: ErrNotFound.
func (s *Service) User(ctx context.Context, id string) (User, error) {
	if !plain(id) {
		return User{}, ErrNotFound
	}
	user, err := s.repository.UserByID(ctx, id)
	if err != nil {
		return User{}, fmt.Errorf("reading a user: %w", err)
	}
	return user, nil
}

// SignOut ends the session of a token, if there is one.
func (s *Service) SignOut(ctx context.Context, token string) error {
	if err := s.repository.DeleteSession(ctx, hashToken(token)); err != nil {
		return fmt.Errorf("ending a session: %w", err)
	}
	return nil
}

// Sign returns value.signature, as the login client's cookies have it: the
// signature is HMAC-SHA256 in base64.
func (s *Service) Sign(value string) string {
	return value + "." + base64.StdEncoding.EncodeToString(s.mac(value))
}

// Verify returns the value of a text that Sign made, and whether it did.
func (s *Service) Verify(signed string) (string, bool) {
	value, signature, found := strings.Cut(signed, ".")
	mac, err := base64.StdEncoding.DecodeString(signature)
	if !found || err != nil || !hmac.Equal(mac, s.mac(value)) {
		return "", false
	}
	return value, true
}

func (s *Service) mac(value string) []byte {
	m := hmac.New(sha256.New, s.settings.Secret)
	_, _ = m.Write([]byte(value)) // never fails
	return m.Sum(nil)
}

// newID returns 32 random letters and digits (160 bits).
func newID() string { return rand.Text() + rand.Text()[:6] }

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// cut returns what of a header may be kept.
func cut(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// addressKey is what an address is counted as: an IPv6 network of 64 bits is
// one customer's.
func addressKey(address string) string {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}
