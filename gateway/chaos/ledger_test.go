package chaos

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ledger is what a lane's programs have acknowledged. What was asked for and never
// answered may or may not have happened, and is kept apart. Its methods are safe for
// concurrent use; what they return may be read while no actor works on the sandbox.
type ledger struct {
	mu       sync.Mutex
	accounts map[string]*account
	tasks    []*launched
}

// account is one sandbox from a create to a delete. One actor writes it.
type account struct {
	id      string
	session string // the last one that was told
	// deleting: a delete was asked for and not acknowledged.
	deleting bool
	files    map[string]*versions
	commands map[string]bool // what a command was to write: whether it was acknowledged
	turns    []turn
	// unstored are when the writes were acknowledged that no snapshot is known to have.
	unstored []time.Time
}

// versions are what a file may hold.
type versions struct {
	acknowledged string   // its hash; "" if none was
	maybe        []string // of writes that were not; one whose caller has left may come late
	synced       bool     // a sync was acknowledged since then
}

// turn is a message that was acknowledged.
type turn struct{ session, text, reply string }

// launched is a task that the API has told the number of.
type launched struct{ id, message, want string }

func newLedger() *ledger { return &ledger{accounts: map[string]*account{}} }

func hash(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// open begins an account when a create was acknowledged.
func (l *ledger) open(id string) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.accounts[id]; a != nil {
		return a
	}
	a := &account{id: id, files: map[string]*versions{}, commands: map[string]bool{}}
	l.accounts[id] = a
	return a
}

// close ends an account when a delete was acknowledged.
func (l *ledger) close(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.accounts, id)
}

// get is an account; nil if there is none.
func (l *ledger) get(id string) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accounts[id]
}

// all are the accounts, by name.
func (l *ledger) all() []*account {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*account
	for _, a := range l.accounts {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *account) int { return cmpString(a.id, b.id) })
	return list
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// launch notes a task.
func (l *ledger) launch(t *launched) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tasks = append(l.tasks, t)
}

// launches returns the tasks since the last call.
func (l *ledger) launches() []*launched {
	l.mu.Lock()
	defer l.mu.Unlock()
	tasks := l.tasks
	l.tasks = nil
	return tasks
}

// wrote notes a write of a file.
func (a *account) wrote(name string, content []byte, acknowledged bool) {
	v := a.files[name]
	if v == nil {
		v = &versions{}
		a.files[name] = v
	}
	if !acknowledged {
		v.maybe = append(v.maybe, hash(content))
		return
	}
	v.acknowledged, v.synced = hash(content), false
	a.unstored = append(a.unstored, time.Now())
}

// synced notes a sync that was acknowledged.
func (a *account) synced() {
	for _, v := range a.files {
		v.synced = v.acknowledged != ""
	}
}

// allows tells whether a file may hold what it does; "" is a file that is not there.
func (v *versions) allows(got string) bool {
	return got == v.acknowledged || slices.Contains(v.maybe, got)
}

// event is a webhook that the API has taken.
type event struct {
	Event     string
	Timestamp time.Time
	Data      struct{ SandboxID string }
}

// events are a lane's webhooks in the order of their acknowledgement.
type events struct {
	mu   sync.Mutex
	list []event
	seen map[string]bool
}

// take notes a webhook that was acknowledged. A repeat is none.
func (e *events) take(_ *http.Request, body []byte, status int) {
	if status < 200 || status > 299 {
		return
	}
	var got event
	if json.Unmarshal(body, &got) != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seen == nil {
		e.seen = map[string]bool{}
	}
	if !e.seen[string(body)] {
		e.seen[string(body)] = true
		e.list = append(e.list, got)
	}
}

// has tells whether an event of a sandbox came that is not older than a time.
func (e *events) has(kind, sandbox string, since time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.list, func(got event) bool {
		return got.Event == kind && got.Data.SandboxID == sandbox && !got.Timestamp.Before(since.Truncate(time.Millisecond))
	})
}

// overtaken returns a webhook that came before an older one of its sandbox.
func (e *events) overtaken() (late, early event, found bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := map[string]event{}
	for _, got := range e.list {
		before, ok := last[got.Data.SandboxID]
		if ok && got.Timestamp.Before(before.Timestamp) {
			return got, before, true
		}
		last[got.Data.SandboxID] = got
	}
	return late, early, false
}

// forget starts anew, when a point is over.
func (e *events) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list, e.seen = nil, nil
}
