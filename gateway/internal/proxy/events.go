package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/border"
)

const (
	// heartbeatGrace is how much later than OpenCode's own heartbeat ours comes, so
	// that it comes only when OpenCode is silent.
	heartbeatGrace = time.Second
	// maxEventBlock bounds one event in bytes: the largest carry a tool's whole output.
	maxEventBlock = 8 << 20
	// eventWriteSize is how much of a block one write may carry, so that the bound on
	// a write's time is not one on a slow client's whole block.
	eventWriteSize = 64 << 10

	// steadyStream is how long OpenCode's stream must have lived to be joined again
	// at once; otherwise a pause comes first, doubled each time.
	steadyStream   = time.Second
	minRejoinPause = 250 * time.Millisecond
	maxRejoinPause = 5 * time.Second
)

var (
	errEventTooLarge = fmt.Errorf("an event is larger than %d bytes", maxEventBlock)
	errReplyBroken   = errors.New("OpenCode's reply broke off")
	errReplyRefused  = errors.New("OpenCode's reply is no event stream")
	errNotJoined     = errors.New("OpenCode sent no event in time")
)

// EventRequest says where an event stream comes from and how it is guarded.
// Zero durations mean their defaults.
type EventRequest struct {
	// Path, Prefix and OwnHost are as in Request.
	Path, Prefix string
	OwnHost      bool
	// Done is as in Request: it ends the stream for good, through every sleep.
	Done context.Context //nolint:containedctx // it is a second lifetime, not the call's own
	// Next waits until the sandbox runs and returns where OpenCode is then. It is
	// asked before each joining and may return the same target again, as OpenCode can
	// be restarted inside its sandbox. Its error ends the stream; before a reply began
	// it is the reply. Calls do not overlap.
	Next func(ctx context.Context) (EventTarget, error)
	// Asleep says, without waiting, whether the sandbox sleeps at this moment, so
	// that the client is answered before Next returns. Nil means no.
	Asleep func() bool
	// Heartbeat is the time between two heartbeats while OpenCode is silent (default
	// 10 s, as OpenCode's own; its web UI gives a stream up after 15 s).
	Heartbeat time.Duration
	// WriteTimeout bounds one write to a client that does not read (default 30 s).
	WriteTimeout time.Duration
	// JoinTimeout bounds the wait for OpenCode's first event after each joining
	// (default 15 s). It has no meaning on streams that begin silent.
	JoinTimeout time.Duration
}

// EventTarget is where OpenCode is now.
type EventTarget struct {
	// OpenCodeURL and Password are as in Request.
	OpenCodeURL, Password string
	// Joined is called once, when this target's events flow or will not: its first
	// event came, it could not be joined in time, or the stream ended. The events of
	// a turn that begins after the call reach the client. Nil means nobody asks.
	Joined func()
}

func (r EventRequest) withDefaults() EventRequest {
	if r.Heartbeat <= 0 {
		r.Heartbeat = 10 * time.Second
	}
	if r.WriteTimeout <= 0 {
		r.WriteTimeout = 30 * time.Second
	}
	if r.JoinTimeout <= 0 {
		r.JoinTimeout = 15 * time.Second
	}
	return r
}

// at is the Request that one target gets.
func (r EventRequest) at(target EventTarget) Request {
	return Request{OpenCodeURL: target.OpenCodeURL, Password: target.Password, Path: r.Path, Prefix: r.Prefix, OwnHost: r.OwnHost, Done: r.Done}
}

// ServeEvents carries a subscription to OpenCode's events (a GET of one of its
// event streams) and keeps it up while the sandbox sleeps or OpenCode restarts:
// heartbeats fill the silence, and OpenCode is joined again when Next returns.
// Whole events travel byte for byte; one that OpenCode did not finish is dropped.
// A first reply that is no event stream is passed on as Serve would.
//
// It returns when the stream has ended, with errors and panics as Serve has them:
// an error only while nothing has been written to w, a panic with
// http.ErrAbortHandler for every end of a stream that began.
func (p *Proxy) ServeEvents(w http.ResponseWriter, r *http.Request, req EventRequest) error {
	req = req.withDefaults()
	base := req.at(EventTarget{})
	if err := border.CheckPath(base.path()); err != nil {
		return err
	}
	if err := base.over(); err != nil {
		return err
	}
	p.figures.events.Inc()
	defer p.figures.events.Dec()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer base.whenOver(cancel)()
	out := border.NewWriter(ctx, w, nil)
	f := &eventFeed{
		proxy: p, in: eventSubscription(ctx, r), req: req, form: eventFormOf(req.Path),
		out: make(chan eventDelivery),
	}
	go func() {
		defer close(f.out)
		f.err = f.run(ctx)
	}()
	defer func() {
		out.Release() // before the cancel, which would cut what is written already
		cancel(nil)
		for range f.out {
			continue // until the feed has ended
		}
	}()
	s := &eventStream{
		ctx: ctx, out: out, control: http.NewResponseController(out), feed: f,
		silence: time.NewTimer(req.Heartbeat + heartbeatGrace),
	}
	defer s.silence.Stop()
	err := s.run()
	switch {
	case err == nil:
		return nil
	case !out.Started():
		return p.explain(r, &exchange{req: base, err: err})
	}
	p.log.DebugContext(ctx, "an event stream ended", "error", err)
	panic(http.ErrAbortHandler)
}

// eventSubscription is the client's request in the form in which it can be sent
// to OpenCode again and again: without a body, and for a reply that can be cut
// into events.
func eventSubscription(ctx context.Context, r *http.Request) *http.Request {
	in := r.Clone(ctx)
	in.Body, in.ContentLength = http.NoBody, 0
	in.Header.Del("Accept-Encoding")
	in.Header.Del("Expect")
	in.Header.Del("Upgrade")
	return in
}

// eventForm is what OpenCode says by itself on one of its event streams.
// "{id}" stands for an event id.
type eventForm struct {
	// connected is the first event, empty if there is none.
	connected string
	// heartbeat is what it sends while there is nothing to say.
	heartbeat string
	// durable streams replay every event after the query parameter "after", a number
	// that each event carries. They send nothing, not even headers, before the first
	// event, and no heartbeats: ours are comments, which every client ignores.
	durable bool
}

// eventFormOf holds the forms as OpenCode 1.18.33 has them. Every path that is
// not named is read as /api/session/ID/event.
func eventFormOf(path string) eventForm {
	switch path {
	case "/event": // heartbeat after 10 s
		return eventForm{
			connected: `data: {"id":"{id}","type":"server.connected","properties":{}}` + "\n\n",
			heartbeat: `data: {"id":"{id}","type":"server.heartbeat","properties":{}}` + "\n\n",
		}
	case "/global/event": // heartbeat after 10 s
		return eventForm{
			connected: `data: {"payload":{"id":"{id}","type":"server.connected","properties":{}}}` + "\n\n",
			heartbeat: `data: {"payload":{"id":"{id}","type":"server.heartbeat","properties":{}}}` + "\n\n",
		}
	case "/api/event": // heartbeat at once and after 15 s
		return eventForm{
			connected: `data: {"id":"{id}","type":"server.connected","data":{}}` + "\n\n",
			heartbeat: ": heartbeat\n\n",
		}
	default:
		return eventForm{heartbeat: ": heartbeat\n\n", durable: true}
	}
}

// withEventID fills in an event id as OpenCode makes them, which sort by time:
// 12 hexadecimal digits of milliseconds and a counter, then 14 random characters.
func withEventID(text string) []byte {
	at := uint64(time.Now().UnixMilli()) << 12 & (1<<48 - 1)
	return []byte(strings.Replace(text, "{id}", fmt.Sprintf("evt_%012x%s", at, rand.Text()[:14]), 1))
}

// eventHead is the beginning of a reply, its headers clean.
type eventHead struct {
	status int
	header http.Header
	events bool // it is an event stream
}

// eventDelivery is what the feed hands to the stream: exactly one of head, failed
// and data. The first two wait for the verdict.
type eventDelivery struct {
	head    *eventHead
	failed  error // no reply came
	data    []byte
	verdict chan bool // whether the feed shall go on with it; never blocks the sender
}

// eventStream is the client's side. Only the handler's goroutine uses it.
type eventStream struct {
	ctx     context.Context //nolint:containedctx // the call's own, which this type serves
	out     *border.Writer
	control *http.ResponseController
	feed    *eventFeed
	silence *time.Timer // when the next heartbeat is due
	passing bool        // the reply is no event stream
}

// run returns nil when a reply that was passed on is complete, otherwise why the
// stream ended.
func (s *eventStream) run() error {
	if s.feed.req.Asleep != nil && s.feed.req.Asleep() {
		if err := s.beginAlone(); err != nil {
			return err
		}
	}
	for {
		var err error
		select {
		case <-s.ctx.Done():
			err = context.Cause(s.ctx)
		case <-s.silence.C:
			if s.out.Started() {
				err = s.beat(s.feed.form.heartbeat)
			} else {
				err = s.beginAlone()
			}
		case d, open := <-s.feed.out:
			if !open {
				// The server still has the reply's end to write.
				_ = s.control.SetWriteDeadline(time.Time{})
				return s.feed.err
			}
			err = s.take(d)
		}
		if err != nil {
			return err
		}
	}
}

func (s *eventStream) take(d eventDelivery) error {
	switch {
	case d.head != nil:
		going, err := s.begin(*d.head)
		d.verdict <- going
		return err
	case d.failed != nil:
		d.verdict <- s.out.Started()
		if !s.out.Started() {
			return d.failed
		}
		return nil
	}
	if !s.passing {
		s.silence.Reset(s.feed.req.Heartbeat + heartbeatGrace)
	}
	return s.write(d.data)
}

// begin begins the client's reply with OpenCode's, if it has not begun, and says
// whether what follows is wanted.
func (s *eventStream) begin(head eventHead) (bool, error) {
	if s.out.Started() {
		return head.events, nil
	}
	if head.events {
		head.header.Del("Content-Length")
		s.silence.Reset(s.feed.req.Heartbeat + heartbeatGrace)
	} else {
		s.passing = true
		s.silence.Stop()
	}
	header := s.out.Header()
	for name, values := range head.header {
		header[name] = append(header[name], values...)
	}
	s.out.WriteHeader(head.status)
	return true, s.write(nil)
}

// beginAlone begins an event stream as OpenCode would.
func (s *eventStream) beginAlone() error {
	header := http.Header{
		"Content-Type":      {"text/event-stream"},
		"Cache-Control":     {"no-cache, no-transform"},
		"X-Accel-Buffering": {"no"},
	}
	border.CleanResponse(header, s.feed.req.at(EventTarget{}).mount())
	if _, err := s.begin(eventHead{status: http.StatusOK, header: header, events: true}); err != nil {
		return err
	}
	return s.beat(s.feed.form.connected)
}

// beat writes an event of ours. The next heartbeat is due one interval later.
func (s *eventStream) beat(text string) error {
	s.silence.Reset(s.feed.req.Heartbeat)
	return s.write(withEventID(text))
}

// write sends what is handed to it at once.
func (s *eventStream) write(data []byte) error {
	for part := range slices.Chunk(data, eventWriteSize) {
		if err := s.bound(); err != nil {
			return err
		}
		if _, err := s.out.Write(part); err != nil {
			return fmt.Errorf("writing to the client: %w", err)
		}
	}
	if err := s.bound(); err != nil {
		return err
	}
	if err := s.control.Flush(); err != nil {
		return fmt.Errorf("writing to the client: %w", err)
	}
	return nil
}

// bound gives the next write its deadline. The context is asked afterwards: its
// end sets the deadline to now, and that must not be undone unseen.
func (s *eventStream) bound() error {
	// A writer that knows no deadlines says so; Serve could not cut it either.
	_ = s.control.SetWriteDeadline(time.Now().Add(s.feed.req.WriteTimeout))
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return nil
}

// eventFeed is OpenCode's side: one reply after the other, each carried by the
// ReverseProxy that Serve uses. Only its own goroutine uses it, but for out, and
// for err once out is closed.
type eventFeed struct {
	proxy *Proxy
	in    *http.Request
	req   EventRequest
	form  eventForm
	out   chan eventDelivery
	err   error // why it ended; nil after a reply that was passed on whole

	last    int64 // the number of the last durable event that was handed over
	hasLast bool
}

func (f *eventFeed) run(ctx context.Context) error {
	var pause time.Duration
	for {
		target, err := f.req.Next(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the sandbox: %w", err)
		}
		opened := time.Now()
		reply, err := f.join(ctx, target)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case reply.accepted && !reply.events:
			return err
		case errors.Is(err, errEventTooLarge):
			return err
		}
		f.proxy.log.DebugContext(ctx, "an event stream is to be joined again", "error", err)
		if time.Since(opened) >= steadyStream && !errors.Is(err, errReplyRefused) {
			pause = 0
			continue
		}
		pause = min(max(2*pause, minRejoinPause), maxRejoinPause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// join carries one reply of OpenCode to its end and returns why it ended; nil if
// it was complete.
func (f *eventFeed) join(ctx context.Context, target EventTarget) (*eventReply, error) {
	joined := sync.OnceFunc(func() {
		if target.Joined != nil {
			target.Joined()
		}
	})
	defer joined()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	reply := &eventReply{ctx: ctx, cancel: cancel, feed: f, header: make(http.Header), joined: joined}
	if f.form.durable {
		joined() // however late OpenCode takes it up, nothing is lost
	} else {
		reply.late = time.AfterFunc(f.req.JoinTimeout, func() { cancel(errNotJoined) })
		defer reply.late.Stop()
	}
	x := &exchange{req: f.req.at(target)}
	in := f.in.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	if f.hasLast {
		at := *in.URL
		at.RawQuery = withAfter(at.RawQuery, f.last)
		in.URL = &at
	}
	whole := reply.carry(f.proxy, in)
	err := x.err
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	switch {
	case x.err != nil:
		f.ask(ctx, eventDelivery{failed: err})
	case err == nil && !whole:
		err = errReplyBroken
	}
	return reply, err
}

// send hands something over and says whether it was taken before ctx ended.
func (f *eventFeed) send(ctx context.Context, d eventDelivery) bool {
	select {
	case f.out <- d:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask hands something over and returns the verdict; false if ctx ended first.
func (f *eventFeed) ask(ctx context.Context, d eventDelivery) bool {
	d.verdict = make(chan bool, 1)
	if !f.send(ctx, d) {
		return false
	}
	select {
	case going := <-d.verdict:
		return going
	case <-ctx.Done():
		return false
	}
}

// eventReply is what the ReverseProxy writes one reply of OpenCode to.
type eventReply struct {
	ctx      context.Context //nolint:containedctx // the reply's own, which this type serves
	cancel   context.CancelCauseFunc
	feed     *eventFeed
	header   http.Header
	joined   func()
	late     *time.Timer // ends the reply unless its first event comes; may be nil
	events   bool
	accepted bool
	blocks   eventBlocks
}

// carry runs the exchange and says whether the reply, if any came, is complete.
func (r *eventReply) carry(p *Proxy, in *http.Request) (whole bool) {
	defer func() {
		if v := recover(); v != nil {
			// The ReverseProxy's way to say that the reply broke off.
			if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
		}
	}()
	p.streams.ServeHTTP(r, in)
	return true
}

// Header returns the header that WriteHeader hands over.
func (r *eventReply) Header() http.Header { return r.header }

// WriteHeader offers the reply to the client's side and ends it if that wants
// none of it.
func (r *eventReply) WriteHeader(status int) {
	r.events = isEventStream(status, r.header)
	if !r.events {
		r.begun()
	}
	r.accepted = r.feed.ask(r.ctx, eventDelivery{head: &eventHead{status: status, header: r.header, events: r.events}})
	if !r.accepted {
		r.cancel(errReplyRefused)
	}
}

// begun stops the wait for the reply's first event.
func (r *eventReply) begun() {
	if r.late != nil {
		r.late.Stop()
	}
	r.joined()
}

// Write hands over the events that p completes, or p as it is if the reply is no
// event stream. It keeps nothing of p.
func (r *eventReply) Write(p []byte) (int, error) {
	if !r.accepted {
		return 0, errReplyRefused
	}
	if !r.events {
		if !r.feed.send(r.ctx, eventDelivery{data: bytes.Clone(p)}) {
			return 0, context.Cause(r.ctx)
		}
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		var block []byte
		var err error
		block, rest, err = r.blocks.cut(rest)
		if err != nil {
			r.cancel(err)
			return 0, err
		}
		if block == nil {
			break
		}
		r.begun()
		if !r.feed.send(r.ctx, eventDelivery{data: block}) {
			return 0, context.Cause(r.ctx)
		}
		if r.feed.form.durable {
			r.feed.remember(block)
		}
	}
	return len(p), nil
}

// isEventStream says whether a reply can be cut into events.
func isEventStream(status int, header http.Header) bool {
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	return err == nil && kind == "text/event-stream" && status == http.StatusOK && header.Get("Content-Encoding") == ""
}

// remember keeps the number of a durable event, if it has one: the next reply
// shall begin after it.
func (f *eventFeed) remember(block []byte) {
	var event struct {
		Durable struct {
			Seq *int64 `json:"seq"`
		} `json:"durable"`
	}
	data, ok := bytes.CutPrefix(block, []byte("data:"))
	if ok && json.Unmarshal(data, &event) == nil && event.Durable.Seq != nil {
		f.last, f.hasLast = *event.Durable.Seq, true
	}
}

// withAfter sets the query parameter "after" and leaves every other byte alone.
func withAfter(raw string, seq int64) string {
	pairs := slices.DeleteFunc(strings.Split(raw, "&"), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		return pair == "" || err == nil && plain == "after"
	})
	return strings.Join(append(pairs, "after="+strconv.FormatInt(seq, 10)), "&")
}

// eventBlocks cuts a byte stream into blocks that end with a blank line. A line
// ends with LF, CRLF or CR.
type eventBlocks struct {
	unfinished []byte
	text       bool // the line under way is not blank
	cr         bool // the byte before was a CR
}

// cut returns the first block that p completes and what of p follows it; nil if
// it completes none, all of p being kept then.
func (b *eventBlocks) cut(p []byte) (block, rest []byte, err error) {
	for i := 0; i < len(p); i++ {
		end := false
		switch {
		case p[i] == '\n' && b.cr:
			// The second half of a CRLF. If the block was handed over at the first, it
			// goes after it at once: a client may wait for just this byte.
			b.cr = false
			end = len(b.unfinished) == 0 && i == 0
		case p[i] == '\n' || p[i] == '\r':
			end = !b.text
			b.text, b.cr = false, p[i] == '\r'
			if end && b.cr && i+1 < len(p) && p[i+1] == '\n' {
				b.cr = false
				i++
			}
		default:
			b.text, b.cr = true, false
		}
		if !end {
			continue
		}
		if err := b.keep(p[:i+1]); err != nil {
			return nil, nil, err
		}
		block, b.unfinished = b.unfinished, nil
		return block, p[i+1:], nil
	}
	return nil, nil, b.keep(p)
}

func (b *eventBlocks) keep(p []byte) error {
	if len(b.unfinished)+len(p) > maxEventBlock {
		return errEventTooLarge
	}
	b.unfinished = append(b.unfinished, p...)
	return nil
}
