// Package webhook takes in what the providers tell of their sandboxes, and keeps
// it in the records of those.
//
// A sandbox's status is that of the newest event which told one, by the
// provider's clock; of two of the same millisecond the one further down in
// events counts as the newer. What happens in a session and in a workspace moves
// only times forward. So it matters neither in what order events come nor how
// often. A record is never removed here: a sandbox that was deleted at its
// provider is shown as stopped, and one that is made again under the same id
// tells that later than the delete did.
package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// MaxSkew is how far a provider's clock may be from the API's, either way.
const MaxSkew = 5 * time.Minute

// skewRetry is what a provider whose clock is off is told to wait: clocks are set.
const skewRetry = 30 * time.Second

// The bounds of what is kept or logged of a provider's text, in bytes.
const (
	maxReason = 500
	maxName   = 100
)

// Sandboxes keeps the records of sandboxes.
type Sandboxes interface {
	// Apply changes a record as an event says, and tells whether its provider has
	// such a sandbox.
	Apply(ctx context.Context, now time.Time, event task.SandboxEvent) (bool, error)
}

// Settings of a Receiver.
type Settings struct {
	// Tokens are the providers' tokens by their names; one that is empty is none.
	Tokens map[string]string
	// Now is the time; nil means time.Now.
	Now func() time.Time
}

// Receiver takes in the providers' events. It is safe for concurrent use.
type Receiver struct {
	tokens    map[string][sha256.Size]byte
	sandboxes Sandboxes
	now       func() time.Time
	log       *slog.Logger
}

// New makes a Receiver. Two providers may not have the same token, for it says
// which of them tells something.
func New(set Settings, sandboxes Sandboxes, log *slog.Logger) (*Receiver, error) {
	r := &Receiver{tokens: map[string][sha256.Size]byte{}, sandboxes: sandboxes, now: set.Now, log: log}
	if r.now == nil {
		r.now = time.Now
	}
	for _, name := range slices.Sorted(maps.Keys(set.Tokens)) {
		if set.Tokens[name] == "" {
			continue
		}
		sum := sha256.Sum256([]byte(set.Tokens[name]))
		for other, token := range r.tokens {
			if token == sum {
				return nil, fmt.Errorf("the webhook tokens of %s and %s must not be the same", other, name)
			}
		}
		r.tokens[name] = sum
	}
	return r, nil
}

// Provider returns the provider whose token this is, and whether there is one.
func (r *Receiver) Provider(token string) (name string, ok bool) {
	sum := sha256.Sum256([]byte(token))
	for provider, want := range r.tokens { // all of them, so that the time tells nothing
		if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 {
			name, ok = provider, true
		}
	}
	return name, ok
}

// Notice is the body of a webhook.
type Notice struct {
	Event     string                     `json:"event"`
	Data      map[string]json.RawMessage `json:"data"`
	Timestamp string                     `json:"timestamp"`
}

// text returns a field of Data if it is a string, and "" otherwise.
func (n Notice) text(field string) string {
	var s string
	if json.Unmarshal(n.Data[field], &s) != nil {
		return ""
	}
	return s
}

// Receive takes in what a provider tells. sent is the time of day at the provider
// when it sent the notice; zero if it does not say, and then the event's own is taken
// for it. Events and sandboxes that are unknown are logged and are no error. Errors:
// invalid_request; clock_skew, with which the event is to be sent again.
func (r *Receiver) Receive(ctx context.Context, provider string, sent time.Time, n Notice) error {
	told, err := time.Parse(time.RFC3339, n.Timestamp)
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "timestamp must be a time such as 2026-01-31T12:00:00.000Z")
	}
	now := r.now()
	if sent.IsZero() {
		sent = told
	}
	// An event of the future would count as the newest until then.
	if now.Sub(sent).Abs() > MaxSkew || told.Sub(now) > MaxSkew {
		r.log.WarnContext(ctx, "a webhook is refused, as the provider's clock and this one differ; it is to send it again",
			"provider", provider, "sent", sent, "timestamp", told)
		e := sandbox.Errorf(sandbox.CodeClockSkew,
			"the clock of who sends this is more than %s from this one, which shows %s; set the clocks, and send the event again", MaxSkew, now.UTC().Format(time.RFC3339))
		e.RetryAfter = skewRetry
		return e
	}
	if n.Event == "" {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "event must name what happened")
	}
	log := r.log.With("provider", provider, "event", printable.Line(n.Event, maxName), "sandboxId", printable.Line(n.text("sandboxId"), maxName))
	rank := slices.IndexFunc(events(), func(e event) bool { return string(e.name) == n.Event })
	if rank < 0 {
		log.WarnContext(ctx, "a webhook tells of an unknown event")
		return nil
	}
	id := n.text("sandboxId")
	if err := sandbox.CheckID(id); err != nil { // nothing of that name can be in the records
		log.WarnContext(ctx, "a webhook tells of a sandbox without a proper id", "error", err)
		return nil
	}
	change := events()[rank].change(n, told)
	known, err := r.sandboxes.Apply(ctx, now, task.SandboxEvent{
		Provider: provider, SandboxID: id, At: told, Key: key(rank, change), Change: change,
	})
	if err != nil {
		return fmt.Errorf("taking in a webhook: %w", err)
	}
	if !known {
		log.DebugContext(ctx, "a webhook tells of a sandbox that is not in the records")
	}
	return nil
}

// event is what a provider may tell, and what it means for a record.
type event struct {
	name   sandbox.Event
	change func(n Notice, told time.Time) task.SandboxChange
}

// events are all of the contract's. Of two that happened in the same millisecond
// the later one here counts as the newer: a sandbox that is wrongly shown as
// asleep wakes when it is used, and what went wrong should be seen.
func events() []event {
	runs := func(_ Notice, told time.Time) task.SandboxChange {
		c := state(task.SandboxRunning, sandbox.TierRunning, "")
		c.StartedAt, c.LastActiveAt = &told, &told
		return c
	}
	active := func(_ Notice, told time.Time) task.SandboxChange { return task.SandboxChange{LastActiveAt: &told} }
	return []event{
		{sandbox.EventSessionCreated, active},
		{sandbox.EventSessionMessage, active},
		{sandbox.EventWorkspaceSynced, func(_ Notice, told time.Time) task.SandboxChange {
			return task.SandboxChange{WorkspaceSyncedAt: &told}
		}},
		{sandbox.EventSandboxCreated, runs},
		{sandbox.EventSandboxStarted, runs},
		{sandbox.EventSandboxWoken, runs}, // its tier is the one that it was woken from
		{sandbox.EventSandboxHibernated, func(n Notice, _ time.Time) task.SandboxChange {
			return state(task.SandboxSleeping, tierOf(n), "")
		}},
		{sandbox.EventSandboxStopped, func(n Notice, _ time.Time) task.SandboxChange {
			return state(task.SandboxStopped, sandbox.TierStopped, reason(n))
		}},
		{sandbox.EventSandboxError, func(n Notice, _ time.Time) task.SandboxChange {
			why := reason(n)
			if why == "" {
				why = "its provider says that it failed, and not why"
			}
			return state(task.SandboxError, "", why)
		}},
		{sandbox.EventSandboxDeleted, func(Notice, time.Time) task.SandboxChange {
			return state(task.SandboxStopped, "", "it was deleted at its provider")
		}},
	}
}

func state(status task.SandboxStatus, tier sandbox.Tier, why string) task.SandboxChange {
	text := string(tier)
	return task.SandboxChange{Status: &status, Tier: &text, ErrorMessage: &why}
}

// tierOf returns the tier that a sandbox sleeps in, if that is told.
func tierOf(n Notice) sandbox.Tier {
	tier := sandbox.Tier(n.text("tier"))
	if slices.Contains([]sandbox.Tier{sandbox.TierFrozen, sandbox.TierStopped, sandbox.TierArchived}, tier) {
		return tier
	}
	return ""
}

// reason returns why something happened, as one line.
func reason(n Notice) string {
	for _, field := range []string{"reason", "error", "message"} {
		if why := printable.Line(n.text(field), maxReason); why != "" {
			return why
		}
	}
	return ""
}

// key orders the events of one moment: by rank, and those of one rank by what
// they tell, in an order that means nothing but is always the same.
func key(rank int, c task.SandboxChange) string {
	if c.Status == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(*c.Tier + "\x00" + *c.ErrorMessage))
	return fmt.Sprintf("%02d%x", rank, sum[:8])
}
