package opencode

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"
)

// Bounds on an event stream, which itself has no end.
const (
	maxEvent      = 8 << 20 // bytes of one event; those of a part carry it whole
	maxEventLines = 10_000  // of data in one event; OpenCode sends one
	// silence is how long a stream may say nothing. OpenCode's heartbeats come
	// every 10 s, and a gateway's while the sandbox sleeps every 11 s.
	silence = 60 * time.Second
)

// ErrStreamEnded means that the other side ended an event stream, or fell silent.
// Events may have been missed: look at the session again after the next
// subscription.
var ErrStreamEnded = errors.New("the event stream ended")

// Event is one event of OpenCode's, such as message.part.updated. Properties are
// as OpenCode sent them; nil if there were none.
type Event struct {
	Type       string          `json:"type"`
	Properties json.RawMessage `json:"properties"`
}

// Types of events that every reader of a stream meets.
const (
	EventConnected = "server.connected" // the first one
	EventHeartbeat = "server.heartbeat" // when nothing happens
	EventIdle      = "session.idle"     // a turn is over
)

// Events subscribes to what happens in every session and calls fn for each event
// in turn, heartbeats too, from this goroutine. It returns fn's error as it is,
// an error that wraps ErrStreamEnded when the stream is over or silent for 60 s,
// and one that wraps ctx's cause when that has ended; never nil. An event of more
// than 8 MiB or 10,000 lines, or one that is no JSON, is an Error and the end.
func (c *Client) Events(ctx context.Context, fn func(Event) error) error {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	end := func(err error) error {
		switch {
		case caller.Err() != nil:
			return fmt.Errorf("reading OpenCode's events: %w", context.Cause(caller))
		case ctx.Err() != nil:
			return fmt.Errorf("%w: nothing came for %s", ErrStreamEnded, silence)
		}
		return err
	}
	res, err := c.send(ctx, call{method: http.MethodGet, path: "/event", accept: eventStream})
	if err != nil {
		return end(err)
	}
	defer func() { _ = res.Body.Close() }()
	if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind != eventStream {
		return &Error{Status: res.StatusCode, Name: NameInvalidReply, Message: "the reply to GET /event is no event stream"}
	}
	stream := newEventReader(&watched{res.Body, watchdog})
	for {
		data, err := stream.next()
		switch {
		case errors.Is(err, errTooLong):
			return &Error{Status: res.StatusCode, Name: NameTooLarge, Message: fmt.Sprintf("an event has more than %d bytes or %d lines", maxEvent, maxEventLines)}
		case err != nil:
			return end(fmt.Errorf("%w: %w", ErrStreamEnded, err))
		}
		var event Event
		if err := json.Unmarshal(data, &event); err != nil || event.Type == "" {
			return &Error{Status: res.StatusCode, Name: NameInvalidReply, Message: "an event is not what OpenCode should send"}
		}
		watchdog.Stop() // fn's time is its own
		if err := fn(event); err != nil {
			return err
		}
		watchdog.Reset(silence)
	}
}

const eventStream = "text/event-stream"

// errTooLong says that an event exceeds its bounds.
var errTooLong = errors.New("the event is too long")

// watched puts a watchdog off whenever something comes.
type watched struct {
	r        io.Reader
	watchdog *time.Timer
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.watchdog.Reset(silence)
	}
	return n, err
}

// eventReader takes an event stream apart. Lines end in "\n" or "\r\n"; a lone
// "\r", which the HTML standard allows too, OpenCode does not send. Names and ids
// of events are not kept: it sends none.
type eventReader struct {
	r    *bufio.Reader
	line []byte
	data []byte
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the data of the next event that has some; it is valid until the
// call after it. The error is io.EOF at the end,
// where half an event is dropped, and errTooLong beyond the bounds.
func (e *eventReader) next() ([]byte, error) {
	e.data = e.data[:0]
	lines := 0
	for {
		if err := e.readLine(); err != nil {
			return nil, err
		}
		if len(e.line) == 0 {
			if lines > 0 {
				return e.data, nil
			}
			continue
		}
		field, value, _ := bytes.Cut(e.line, []byte(":"))
		if string(field) != "data" {
			continue // a comment, or a field that OpenCode does not use
		}
		lines++
		if lines > 1 {
			e.data = append(e.data, '\n')
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		if lines > maxEventLines || len(e.data)+len(value) > maxEvent {
			return nil, errTooLong
		}
		e.data = append(e.data, value...)
	}
}

// readLine reads one line without its end. Every byte is looked at once: a
// bufio.Scanner would search a long line from its beginning after every read.
func (e *eventReader) readLine() error {
	e.line = e.line[:0]
	for {
		part, err := e.r.ReadSlice('\n')
		if len(e.line)+len(part) > maxEvent+len("data: \r\n") {
			return errTooLong
		}
		e.line = append(e.line, part...)
		switch {
		case err == nil:
			e.line = bytes.TrimSuffix(e.line[:len(e.line)-1], []byte("\r"))
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}
