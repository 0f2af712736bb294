package sandbox

import (
	"context"
	"sync"
	"time"
)

// Record is what a worker's client remembers of a sandbox, because the worker
// cannot be asked: it calls every sandbox sleeping, unknown ones too.
type Record struct {
	SandboxID string
	// UserID is empty if the sandbox was made by somebody else and only woken
	// here.
	UserID    string
	Status    Status
	Directory string
	// GitURL is what was cloned into it, without credentials.
	GitURL       string
	CreatedAt    time.Time // zero if it was made by somebody else
	LastActiveAt time.Time
}

// Records keeps the records of a worker's sandboxes. It is safe for concurrent
// use. The client makes no two changes of one record at once by itself, but
// calls for one sandbox that run at once can: the last one wins.
type Records interface {
	// Record returns a record; ok is false if there is none.
	Record(ctx context.Context, sandboxID string) (record Record, ok bool, err error)
	// PutRecord replaces or adds a record.
	PutRecord(ctx context.Context, record Record) error
	// DeleteRecord removes a record; one that does not exist is a success.
	DeleteRecord(ctx context.Context, sandboxID string) error
}

// MemoryRecords keeps records in memory, a few hundred bytes for each sandbox
// that was not deleted. A restart loses them: sandboxes with a stored workspace
// are sleeping then, others are not found. The zero value is ready to use.
type MemoryRecords struct {
	mu      sync.Mutex
	records map[string]Record
}

// Record implements Records.
func (m *MemoryRecords) Record(_ context.Context, sandboxID string) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[sandboxID]
	return r, ok, nil
}

// PutRecord implements Records.
func (m *MemoryRecords) PutRecord(_ context.Context, record Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records == nil {
		m.records = make(map[string]Record)
	}
	m.records[record.SandboxID] = record
	return nil
}

// DeleteRecord implements Records.
func (m *MemoryRecords) DeleteRecord(_ context.Context, sandboxID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, sandboxID)
	return nil
}
