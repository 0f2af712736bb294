// Package webhook tells the API what happens to sandboxes. Events are posted in
// the background, in order for each sandbox and independently of the others,
// with retries; nobody ever waits for them. Memory is bounded: when the API
// stays away the oldest events are dropped, which is logged and counted.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Provider is what the gateway's events name as data.provider.
const Provider = "docker"

// path is where the API takes webhooks; the worker's and ours alike.
const path = "/api/v2/cloudflare/webhook"

// Settings of a Sender. What is zero takes its default.
type Settings struct {
	// URL is the API's base URL, http or https, and Token what it knows us by.
	// Without either nothing is sent.
	URL   string
	Token string

	// MaxQueued bounds the events that wait in all (default 10000),
	// MaxPerSandbox those of one sandbox (default 200).
	MaxQueued     int
	MaxPerSandbox int
	// Concurrency bounds the requests under way at once (default 8).
	Concurrency int
	// AttemptTimeout bounds one request (default 10 s), GiveUpAfter all
	// attempts for one event together (default 1 h: an API that is away and a clock
	// that is off are for people to mend).
	AttemptTimeout time.Duration
	GiveUpAfter    time.Duration
	// FirstWait and MaxWait bound the wait before a retry, which grows from one
	// to the other with jitter (default 500 ms and 30 s). A Retry-After is
	// honoured up to MaxRetryAfter (default 60 s).
	FirstWait     time.Duration
	MaxWait       time.Duration
	MaxRetryAfter time.Duration

	// Now is the time of day; nil means time.Now.
	Now func() time.Time

	// Transport carries the requests. The default goes through the proxy that
	// the environment names, if any: the operator chose the API's address.
	Transport http.RoundTripper
}

func (s Settings) withDefaults() Settings {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	count := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	count(&s.MaxQueued, 10_000)
	count(&s.MaxPerSandbox, 200)
	count(&s.Concurrency, 8)
	def(&s.AttemptTimeout, 10*time.Second)
	def(&s.GiveUpAfter, time.Hour)
	def(&s.FirstWait, 500*time.Millisecond)
	def(&s.MaxWait, 30*time.Second)
	def(&s.MaxRetryAfter, time.Minute)
	return s
}

// Stats counts events since the Sender was made. Every event that Send took is
// in exactly one of them.
type Stats struct {
	Sent      uint64 // taken by the API
	Failed    uint64 // refused by the API, or given up after retries
	Dropped   uint64 // not sent because a queue was full or the sender closed
	Forgotten uint64 // not sent because the sandbox was deleted
	Queued    int    // waiting or under way
}

// Sender delivers events. All methods are safe for concurrent use. Close it.
type Sender struct {
	settings Settings
	log      *slog.Logger
	client   *http.Client
	owned    *http.Transport // ours to close, nil if the caller gave one
	endpoint string
	slots    chan struct{}

	base   context.Context //nolint:containedctx // the sender's life: ends when Close has waited long enough
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  bool
	queues  map[string]*queue
	total   int
	stats   Stats
	deleted tombstones
	workers sync.WaitGroup // adds happen under mu while not closed
}

// New makes a Sender; without a URL or a token one that does nothing. It fails
// only for a URL that cannot be.
func New(settings Settings, logger *slog.Logger) (*Sender, error) {
	settings = settings.withDefaults()
	s := &Sender{settings: settings, log: logger, queues: map[string]*queue{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.base, s.cancel = context.WithCancel(context.Background())
	if settings.URL == "" || settings.Token == "" {
		return s, nil
	}
	u, err := url.Parse(settings.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		// The URL may hold a password, so the text does not repeat it.
		return nil, errors.New("the API's URL must be an http or https URL, such as https://api.example.com")
	}
	u.RawQuery, u.Fragment = "", ""
	s.endpoint = strings.TrimSuffix(u.String(), "/") + path
	s.slots = make(chan struct{}, settings.Concurrency)
	transport := settings.Transport
	if transport == nil {
		s.owned = newTransport(settings)
		transport = s.owned
	}
	s.client = &http.Client{
		Transport: transport,
		// A redirect would carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// Enabled reports whether events go anywhere.
func (s *Sender) Enabled() bool { return s.client != nil }

// Send queues an event and returns at once. The data is copied, and gets
// sandboxId and provider. When the sandbox's queue is full its oldest waiting
// event is dropped; when all are, the oldest of the longest queue. The notice
// that a sandbox was deleted is never what makes room. Events of an incarnation
// that Drop was called for are ignored, except that notice.
func (s *Sender) Send(sandboxID, incarnation string, event sandbox.Event, data map[string]any) {
	if !s.Enabled() {
		return
	}
	full := make(map[string]any, len(data)+2)
	for k, v := range data {
		full[k] = v
	}
	full["sandboxId"], full["provider"] = sandboxID, Provider
	n := &notice{sandboxID: sandboxID, incarnation: incarnation, event: event, stamp: s.settings.Now(), happened: time.Now()}
	var err error
	n.data, err = json.Marshal(full)

	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.drop(n, "its data cannot be encoded: "+err.Error())
		return
	case s.closed:
		s.drop(n, "the gateway is closing")
		return
	case event != sandbox.EventSandboxDeleted && s.deleted.has(incarnationKey(sandboxID, incarnation)):
		s.stats.Forgotten++
		return
	}
	q := s.queues[sandboxID]
	if q != nil && len(q.notices) >= s.settings.MaxPerSandbox && !s.makeRoom(q, n, "too many events of the sandbox wait") {
		return
	}
	if s.total >= s.settings.MaxQueued && !s.makeRoom(s.longest(), n, "too many events wait") {
		return
	}
	s.total++
	if q != nil {
		q.notices = append(q.notices, n)
		return
	}
	q = &queue{notices: []*notice{n}}
	s.queues[sandboxID] = q
	s.workers.Go(func() { s.drain(sandboxID, q) })
}

// Drop forgets what waits to be told of a deleted incarnation, except that it
// was deleted, and whatever may still be sent in its name: nothing of it
// reaches a successor of the same id. A request under way is waited for, before
// anything else of that id is sent, and not repeated.
func (s *Sender) Drop(sandboxID, incarnation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted.add(incarnationKey(sandboxID, incarnation))
	q := s.queues[sandboxID]
	if q == nil {
		return
	}
	var kept []*notice
	for _, n := range q.notices {
		switch {
		case n.incarnation != incarnation || n.event == sandbox.EventSandboxDeleted:
			kept = append(kept, n)
		case n.cancel != nil:
			// Its worker counts it and takes it out.
			n.cancel(errForgotten)
			kept = append(kept, n)
		default:
			s.total--
			s.stats.Forgotten++
		}
	}
	q.notices = kept
}

// Stats returns the counters.
func (s *Sender) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Queued = s.total
	return st
}

// Close takes no more events, delivers what waits until ctx ends, and then ends
// everything. What could not be delivered is counted as dropped and reported.
// It may be called more than once.
func (s *Sender) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	before := s.stats.Dropped
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.workers.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.cancel()
	<-done // requests are bound to the base context, so this is soon
	if s.owned != nil {
		s.owned.CloseIdleConnections()
	}
	if lost := s.Stats().Dropped - before; lost > 0 {
		return fmt.Errorf("%d webhook events were not delivered before the deadline", lost)
	}
	return nil
}

// drop counts and logs a loss. The caller holds mu.
func (s *Sender) drop(n *notice, why string) {
	s.stats.Dropped++
	s.log.Warn("webhook event dropped", "event", n.event, "sandboxId", n.sandboxID, "reason", why, "dropped", s.stats.Dropped)
}
