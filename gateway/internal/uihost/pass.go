package uihost

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	cookieName = "__Host-agentpod"
	// ticketLife is how long a ticket can be redeemed, visitLife how long the cookie
	// is good for that it is redeemed for.
	ticketLife = time.Minute
	visitLife  = 12 * time.Hour
	// cookieKept is how long a browser keeps the cookie. One that is over lets nobody
	// in, but still tells whose storage the browser has.
	cookieKept = 30 * 24 * time.Hour
	// landing is how long after the ticket its browser may come from elsewhere: the
	// redirect that follows it still counts as that.
	landing = 30 * time.Second

	maxTickets = 10_000
	// maxOfOne bounds those of one sandbox, so that its owner cannot use up all.
	maxOfOne   = 100
	maxCookies = 8 // of our name, in one request
	maxSession = 256
)

// pass is what lets a browser in: to one incarnation of one sandbox.
type pass struct {
	SandboxID   string    `json:"id"`
	Incarnation string    `json:"in"`
	Session     string    `json:"s,omitempty"`
	Issued      time.Time `json:"at"`
	Expires     time.Time `json:"to"`
}

// sign makes a cookie's value of a pass.
func sign(key []byte, p pass) (string, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return "", err //nolint:wrapcheck // a struct of texts and times
	}
	body := base64.RawURLEncoding.EncodeToString(raw)
	return body + "." + base64.RawURLEncoding.EncodeToString(sum(key, body)), nil
}

func sum(key []byte, body string) []byte {
	m := hmac.New(sha256.New, key)
	_, _ = m.Write([]byte(body)) // never fails
	return m.Sum(nil)
}

// read returns the pass in a cookie's value if it was signed with the key.
func read(key []byte, value string) (p pass, ok bool) {
	body, mac, ok := strings.Cut(value, ".")
	if !ok {
		return p, false
	}
	got, err := base64.RawURLEncoding.DecodeString(mac)
	if err != nil || !hmac.Equal(got, sum(key, body)) {
		return p, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	return p, err == nil && json.Unmarshal(raw, &p) == nil
}

// passes are the passes for a label that a request carries, whether or not they
// are over. Others' cookies are passed over: who can set one cannot sign it.
func passes(key []byte, r *http.Request, label string) []pass {
	var found []pass
	for i, c := range r.CookiesNamed(cookieName) {
		if i == maxCookies {
			break
		}
		if p, ok := read(key, c.Value); ok && Label(p.SandboxID) == label {
			found = append(found, p)
		}
	}
	return found
}

func cookie(value string) *http.Cookie {
	return &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: int(cookieKept / time.Second),
		// Lax: Strict would be left out of the redirect that follows a ticket. Requests
		// of other sites are refused by where they come from.
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// tickets are the one-time tickets that nobody has redeemed yet, by their hashes.
type tickets struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]pass
}

// issue makes a ticket for a pass, which ends with the ticket's life.
func (t *tickets) issue(p pass) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, ofOne := time.Now(), 0
	maps.DeleteFunc(t.open, func(_ [sha256.Size]byte, old pass) bool {
		if now.After(old.Expires) {
			return true
		}
		if old.SandboxID == p.SandboxID {
			ofOne++
		}
		return false
	})
	if len(t.open) >= maxTickets || ofOne >= maxOfOne {
		return "", sandbox.Errorf(sandbox.CodeTooManyRequests, "too many tickets wait to be redeemed; try again in a minute")
	}
	ticket := rand.Text() + rand.Text()
	if t.open == nil {
		t.open = map[[sha256.Size]byte]pass{}
	}
	t.open[sha256.Sum256([]byte(ticket))] = p
	return ticket, nil
}

// redeem takes a ticket back. It is of no use afterwards, wherever it was shown.
func (t *tickets) redeem(ticket string) (p pass, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := sha256.Sum256([]byte(ticket))
	p, ok = t.open[key]
	delete(t.open, key)
	return p, ok && time.Now().Before(p.Expires)
}

// sessions are what passes can be ended by together: each is a text that its
// opener chose, for one sandbox. They are kept in memory only, so that after a
// restart of the gateway none is believed that may have been ended meanwhile.
type sessions struct {
	mu    sync.Mutex
	known map[sessionKey]*session
}

type sessionKey struct{ sandboxID, text string }

type session struct {
	ctx   context.Context //nolint:containedctx // ends with the session
	end   context.CancelCauseFunc
	until time.Time // no pass of it is good for longer
}

// at returns a session, making it if there is none.
func (s *sessions) at(key sessionKey) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.known, func(_ sessionKey, old *session) bool { return now.After(old.until) })
	if s.known == nil {
		s.known = map[sessionKey]*session{}
	}
	one := s.known[key]
	if one == nil {
		one = &session{}
		one.ctx, one.end = context.WithCancelCause(context.Background())
		s.known[key] = one
	}
	one.until = now.Add(ticketLife + visitLife)
	return one
}

// life is the context of what a pass opens, which has ended already if the pass is
// of a session that is over or unknown.
func (s *sessions) life(p pass) context.Context {
	if p.Session == "" {
		return context.Background()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.known[sessionKey{p.SandboxID, p.Session}]; one != nil {
		return one.ctx
	}
	over, end := context.WithCancelCause(context.Background())
	end(errOver)
	return over
}
