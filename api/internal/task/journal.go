package task

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"
)

// The types of events, as the frontend's stream has them.
const (
	EventStart  = "start"
	EventStatus = "status"
	EventChunk  = "chunk"
	EventDone   = "done"
	EventError  = "error"
)

// entry is an event in the frontend's shape; each type has some of the fields.
type entry struct {
	Type              string `json:"type"`
	TaskID            string `json:"taskId,omitempty"`
	Message           string `json:"message,omitempty"`
	Content           string `json:"content,omitempty"`
	Code              string `json:"code,omitempty"`
	SandboxID         string `json:"sandboxId,omitempty"`
	SessionID         string `json:"sessionId,omitempty"`
	MessageID         string `json:"messageId,omitempty"`
	CreatedNewSandbox *bool  `json:"createdNewSandbox,omitempty"`
}

func (e entry) event() Event {
	data, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and a bool always can be
	}
	return Event{Type: e.Type, Data: string(data)}
}

// The bounds of a journal.
const (
	// gather is how long text is gathered into one event: few enough events for
	// the database, often enough for a reader.
	gather = 30 * time.Millisecond
	// maxChunk bounds the text of one event, in bytes.
	maxChunk = 64 << 10
	// retryEvery is how often an event is offered to a database that is away.
	retryEvery = time.Second
	writeTime  = 10 * time.Second
)

// journal writes a running task's events in their order, behind its back: who
// notes something does not wait for the database. Text that comes while an event
// is being written is gathered into the next one. A write of which nobody knows
// whether it was done is looked for before it is done again.
type journal struct {
	tasks Tasks
	lease Lease
	rang  func() // after each write
	lost  func() // when the lease is
	log   *slog.Logger

	mu      sync.Mutex
	pending []entry
	bell    chan struct{} // holds one ring

	// The writer's own, and after it whoever ends the task.
	batch  []entry // is being written
	unsure bool    // the batch may be written already
	full   bool
	seq    int64 // of the last event that is written
}

func newJournal(tasks Tasks, lease Lease, seq int64, rang, lost func(), log *slog.Logger) *journal {
	return &journal{tasks: tasks, lease: lease, seq: seq, rang: rang, lost: lost, log: log, bell: make(chan struct{}, 1)}
}

// note adds an event. A chunk is joined to one that waits.
func (j *journal) note(e entry) {
	if e.Type == EventChunk && e.Content == "" {
		return
	}
	for len(e.Content) > maxChunk {
		cut := maxChunk
		for !utf8.RuneStart(e.Content[cut]) {
			cut--
		}
		j.note(entry{Type: EventChunk, Content: e.Content[:cut]})
		e.Content = e.Content[cut:]
	}
	j.mu.Lock()
	if n := len(j.pending); n > 0 && e.Type == EventChunk && j.pending[n-1].Type == EventChunk && len(j.pending[n-1].Content)+len(e.Content) <= maxChunk {
		j.pending[n-1].Content += e.Content
	} else {
		j.pending = append(j.pending, e)
	}
	j.mu.Unlock()
	j.ring()
}

func (j *journal) ring() {
	select {
	case j.bell <- struct{}{}:
	default:
	}
}

func (j *journal) status(message string) { j.note(entry{Type: EventStatus, Message: message}) }

// run writes until ctx ends; what waits then is left for last.
func (j *journal) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.bell:
		}
		wait := gather
		if err := j.write(ctx); err != nil {
			if errors.Is(err, ErrLeaseLost) {
				j.lost()
				return
			}
			j.log.WarnContext(ctx, "a task's events cannot be written; it is tried again", "taskId", j.lease.TaskID, "error", err)
			wait = retryEvery
			j.ring()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// write writes what waits. On an error it waits still.
func (j *journal) write(ctx context.Context) error {
	// One that is broken off leaves nobody the wiser.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if err := j.settle(ctx); err != nil {
		return err
	}
	j.load()
	if len(j.batch) == 0 {
		return nil
	}
	written, err := j.tasks.Append(ctx, j.lease, time.Now(), events(j.batch)...)
	switch {
	case err == nil:
		j.seq = written[len(written)-1].Seq
		j.batch = nil
		j.rang()
	case errors.Is(err, ErrLogFull):
		j.batch, j.full = nil, true
		return nil
	default:
		j.unsure = true
	}
	return err
}

// settle finds out whether the last batch was written.
func (j *journal) settle(ctx context.Context) error {
	if !j.unsure {
		return nil
	}
	there, err := j.tasks.Events(ctx, j.lease.TaskID, j.seq, len(j.batch))
	if err != nil {
		return err
	}
	j.unsure = false
	if len(there) > 0 { // nobody else writes under this lease
		j.seq += int64(len(j.batch))
		j.batch = nil
		j.rang()
	}
	return nil
}

// load makes what waits the batch, unless there is one, or no room for any.
func (j *journal) load() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full {
		j.pending = nil
	}
	if len(j.batch) == 0 {
		j.batch, j.pending = j.pending, nil
	}
}

// last returns everything that is not written, for the write that ends the task.
// run has ended.
func (j *journal) last(ctx context.Context) ([]Event, error) {
	if err := j.settle(ctx); err != nil {
		return nil, err
	}
	j.load()
	j.mu.Lock()
	defer j.mu.Unlock()
	return append(events(j.batch), events(j.pending)...), nil
}

func events(entries []entry) []Event {
	out := make([]Event, len(entries))
	for i, e := range entries {
		out[i] = e.event()
	}
	return out
}
