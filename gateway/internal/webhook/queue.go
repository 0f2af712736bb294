package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// notice is one event on its way. Every attempt says the same, with the time at
// which it happened.
type notice struct {
	sandboxID   string
	incarnation string
	event       sandbox.Event
	data        json.RawMessage
	// stamp is the time of day at which it happened, by the clock as it was then.
	// happened is the same moment, from which time that passes is measured whatever
	// the clock is set to.
	stamp, happened time.Time
	// skewed says that a refusal for a clock was logged.
	skewed bool
	// cancel breaks the delivery off; set, under the sender's mutex, while the
	// notice is under way.
	cancel context.CancelCauseFunc
}

// stepped is by how much a clock must have been set for events to be stamped anew.
// Below it an attempt must not differ from the one before.
const stepped = 2 * time.Second

// body is what an attempt at a time of day says. If the clock was set since the
// event, the event's time is by the clock as it is now.
func (n *notice) body(now time.Time) ([]byte, error) {
	at := now.Add(-time.Since(n.happened))
	if at.Sub(n.stamp).Abs() < stepped {
		at = n.stamp
	}
	raw, err := json.Marshal(struct { // sandbox.Webhook, with data that is encoded
		Event     sandbox.Event   `json:"event"`
		Data      json.RawMessage `json:"data"`
		Timestamp sandbox.Time    `json:"timestamp"`
	}{n.event, n.data, sandbox.At(at)})
	if err != nil {
		return nil, fmt.Errorf("encoding the event: %w", err)
	}
	return raw, nil
}

// queue is what waits for one sandbox, oldest first; the first may be under way.
// It exists while it is not empty, and has one goroutine that drains it.
type queue struct {
	notices []*notice
}

// victim is the index of the oldest notice that may be dropped, or -1.
func (q *queue) victim() int {
	for i, n := range q.notices {
		if n.cancel == nil && n.event != sandbox.EventSandboxDeleted {
			return i
		}
	}
	return -1
}

// makeRoom drops one notice from q, and reports false if that had to be the new
// one. The caller holds mu.
func (s *Sender) makeRoom(q *queue, incoming *notice, why string) bool {
	i := q.victim()
	if i < 0 {
		s.drop(incoming, why)
		return false
	}
	s.drop(q.notices[i], why)
	q.notices = append(q.notices[:i], q.notices[i+1:]...)
	s.total--
	return true
}

// longest finds the queue with the most notices. It looks at all of them, which
// only a full sender has to. The caller holds mu.
func (s *Sender) longest() *queue {
	most := &queue{}
	for _, q := range s.queues {
		if len(q.notices) > len(most.notices) {
			most = q
		}
	}
	return most
}

// maxTombstones bounds how many deleted incarnations are remembered. A notice
// of one comes late by seconds at most.
const maxTombstones = 4096

// tombstones is a set of bounded size that forgets the oldest.
type tombstones struct {
	set  map[string]bool
	ring []string
	next int
}

func (t *tombstones) has(key string) bool { return t.set[key] }

func (t *tombstones) add(key string) {
	if t.set[key] {
		return
	}
	if t.set == nil {
		t.set, t.ring = map[string]bool{}, make([]string, maxTombstones)
	}
	delete(t.set, t.ring[t.next])
	t.ring[t.next], t.set[key] = key, true
	t.next = (t.next + 1) % maxTombstones
}

func incarnationKey(sandboxID, incarnation string) string { return sandboxID + "\x00" + incarnation }
