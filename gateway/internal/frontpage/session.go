package frontpage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	cookieName = "__Host-agentpod-front"
	// sessionLife is how long a sign-in is good for.
	sessionLife = 12 * time.Hour
	// maxSessions bounds how many are remembered: who has the token can sign in as
	// often as they like.
	maxSessions = 1000
)

// sessions are who is signed in, by the hash of what their cookie holds. They are
// kept in memory only, so that none that was ended comes back.
type sessions struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]*session
}

// session is one sign-in.
type session struct {
	// name is what the session is called where it opens something: not a secret.
	name  string
	life  context.Context //nolint:containedctx // ends with the session
	stop  context.CancelFunc
	until time.Time

	opened map[string]bool // the sandboxes whose UI it has opened; guarded by sessions.mu
}

// begin makes a session and its cookie. The oldest gives way if there are too many.
func (s *sessions) begin() *http.Cookie {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[[sha256.Size]byte]*session{}
	}
	now := time.Now()
	for key, old := range s.open {
		if now.After(old.until) {
			old.stop()
			delete(s.open, key)
		}
	}
	if len(s.open) >= maxSessions {
		oldest := slices.MinFunc(slices.Collect(maps.Values(s.open)), func(a, b *session) int { return a.until.Compare(b.until) })
		s.removeLocked(oldest)
	}
	one := &session{name: "front page " + rand.Text(), until: now.Add(sessionLife), opened: map[string]bool{}}
	one.life, one.stop = context.WithDeadline(context.Background(), one.until)
	secret := rand.Text() + rand.Text()
	s.open[sha256.Sum256([]byte(secret))] = one
	return &http.Cookie{
		Name: cookieName, Value: secret, Path: "/", MaxAge: int(sessionLife / time.Second),
		// Lax: a link to the page may lead to it. What a page of another site asks for
		// besides is refused.
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// of returns the session of a request, nil if it has none that is open.
func (s *sessions) of(r *http.Request) *session {
	// More than one means that somebody else has set one, who must not choose.
	for i, c := range r.CookiesNamed(cookieName) {
		const most = 4
		if i == most {
			break
		}
		s.mu.Lock()
		one := s.open[sha256.Sum256([]byte(c.Value))]
		s.mu.Unlock()
		if one != nil && one.life.Err() == nil {
			return one
		}
	}
	return nil
}

// opens notes that a session opens a sandbox's UI. It says false if it is over.
func (s *sessions) opens(one *session, sandboxID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one.opened[sandboxID] = true
	return one.life.Err() == nil
}

// end ends a session and returns the sandboxes that it has opened.
func (s *sessions) end(one *session) (opened []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(one)
	return slices.Sorted(maps.Keys(one.opened))
}

func (s *sessions) removeLocked(one *session) {
	one.stop()
	maps.DeleteFunc(s.open, func(_ [sha256.Size]byte, other *session) bool { return other == one })
}

// close ends all of them.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.open {
		one.stop()
	}
	clear(s.open)
}
