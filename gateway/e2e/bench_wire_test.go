package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is where the same backend is reached in one of several ways.
type endpoint struct {
	name, addr string
	prefix     string // of every path
	header     string // lines of every request
	pid        int    // of the proxy, 0 for none
}

// request is a whole request; with a body of so many bytes if there is to be one.
func (e endpoint) request(method, path string, body int) []byte {
	head := fmt.Sprintf("%s %s%s HTTP/1.1\r\nHost: %s\r\n%s", method, e.prefix, path, e.addr, e.header)
	if body > 0 {
		head += fmt.Sprintf("Content-Length: %d\r\n", body)
	}
	return append([]byte(head+"\r\n"), bytes.Repeat([]byte("x"), body)...)
}

// wire is a connection that speaks as much HTTP as a benchmark needs: a client
// library would cost more than the proxies that are measured.
type wire struct {
	net.Conn
	r *bufio.Reader
}

// wireTime bounds everything that is done on one wire.
const wireTime = 5 * time.Minute

func (e endpoint) dial(ctx context.Context) (*wire, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, err
	}
	return &wire{c, bufio.NewReaderSize(c, 4<<10)}, c.SetDeadline(time.Now().Add(wireTime))
}

// head reads a reply's beginning, and returns the length of its body, -1 for one
// that says none. Any status but 200 is an error.
func (w *wire) head() (length int64, err error) {
	line, err := w.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		rest, _ := w.r.Peek(w.r.Buffered())
		return 0, fmt.Errorf("%s %s", line, rest)
	}
	length = -1
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			return length, nil
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, err
			}
		}
	}
}

// exchange sends a request and reads its whole reply.
func (w *wire) exchange(request []byte) error {
	if _, err := w.Write(request); err != nil {
		return err
	}
	length, err := w.head()
	if err != nil {
		return err
	}
	if length < 0 {
		return errors.New("the reply does not say how long it is")
	}
	// Larger than the reader's own buffer, so that it is not used.
	buffer := buffers.Get().(*[64 << 10]byte) //nolint:errcheck // nothing else is in it
	defer buffers.Put(buffer)
	for length > 0 {
		n, err := w.r.Read(buffer[:min(length, int64(len(buffer)))])
		if err != nil {
			return err
		}
		length -= int64(n)
	}
	return nil
}

//nolint:gochecknoglobals // a pool
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// firstByte opens an event stream on a connection of its own, that is there
// already, and returns how long it took from the request to the first event.
func (e endpoint) firstByte(ctx context.Context, path string) (time.Duration, error) {
	w, err := e.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = w.Close() }()
	request := e.request("GET", path, 0)
	began := time.Now()
	if _, err := w.Write(request); err != nil {
		return 0, err
	}
	if _, err := w.head(); err != nil {
		return 0, err
	}
	if _, err := w.event(); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// event reads up to the next event's data, whatever the transfer's encoding has
// around it.
func (w *wire) event() ([]byte, error) {
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			return data, nil
		}
	}
}

// pool are connections to one endpoint on which the same is done again and again.
type pool struct {
	wires   []*wire
	request []byte
}

// open makes a pool of which every connection has been used once.
func (e endpoint) open(ctx context.Context, n int, path string) (*pool, error) {
	p := &pool{request: e.request("GET", path, 0)}
	for range n {
		w, err := e.dial(ctx)
		if err != nil {
			return p, err
		}
		p.wires = append(p.wires, w)
	}
	var failed failure
	p.each(func(w *wire) { failed.note(w.exchange(p.request)) })
	return p, failed.err()
}

func (p *pool) close() {
	for _, w := range p.wires {
		_ = w.Close()
	}
}

// each has all connections do the same at once, and waits for them.
func (p *pool) each(do func(w *wire)) {
	var all sync.WaitGroup
	for _, w := range p.wires {
		all.Go(func() { do(w) })
	}
	all.Wait()
}

// failure keeps the first error.
type failure struct{ first atomic.Pointer[error] }

func (f *failure) note(err error) {
	if err != nil {
		f.first.CompareAndSwap(nil, &err)
	}
}

func (f *failure) err() error {
	if err := f.first.Load(); err != nil {
		return *err
	}
	return nil
}

// atRate sends requests at a fixed rate, whatever becomes of those before, and
// returns how long each took from the moment at which it was to be sent.
func (p *pool) atRate(perSecond int, lasting time.Duration) ([]time.Duration, error) {
	n := int(lasting.Seconds() * float64(perSecond))
	due := make(chan time.Time, n)
	took := make([]time.Duration, n)
	var next atomic.Int64
	var failed failure
	var pacer sync.WaitGroup
	pacer.Go(func() {
		// The runtime's own timers are up to a millisecond late.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		began := time.Now()
		for i := range n {
			at := began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
			if wait := time.Until(at); wait > 0 {
				ts := unix.NsecToTimespec(wait.Nanoseconds())
				_ = unix.Nanosleep(&ts, nil) // one that is interrupted sends early by a little
			}
			due <- at
		}
		close(due)
	})
	p.each(func(w *wire) {
		for at := range due {
			if err := w.exchange(p.request); err != nil {
				failed.note(err)
				return
			}
			took[next.Add(1)-1] = time.Since(at)
		}
	})
	pacer.Wait()
	return took[:next.Load()], failed.err()
}

// saturate has every connection send one request after the other, and returns how
// many were answered, and how many that is a second.
func (p *pool) saturate(lasting time.Duration) (requests, perSecond float64, err error) {
	var answered atomic.Int64
	var failed failure
	began := time.Now()
	end := began.Add(lasting)
	p.each(func(w *wire) {
		for time.Now().Before(end) {
			if err := w.exchange(p.request); err != nil {
				failed.note(err)
				return
			}
			answered.Add(1)
		}
	})
	requests = float64(answered.Load())
	return requests, requests / time.Since(began).Seconds(), failed.err()
}

// transfer is how long one exchange takes, in MB/s of the body of so many bytes.
func (w *wire) transfer(request []byte, size int) (float64, error) {
	began := time.Now()
	err := w.exchange(request)
	return float64(size) / 1e6 / time.Since(began).Seconds(), err
}

// stream is what came of one stream of numbered events.
type stream struct {
	lost, twice int
	delays      []time.Duration // from when the backend wrote an event until it was read
}

// follow reads count numbered events from a wire whose request has been sent.
func (w *wire) follow(count int) (s stream, err error) {
	if _, err := w.head(); err != nil {
		return s, err
	}
	seen := 0
	for seen < count {
		data, err := w.event()
		if err != nil {
			return s, err
		}
		var seq int
		var at int64
		if _, err := fmt.Sscanf(string(data), `{"seq":%d,"at":%d}`, &seq, &at); err != nil {
			continue // one of the gateway's own
		}
		s.delays = append(s.delays, time.Duration(time.Now().UnixNano()-at))
		switch {
		case seq <= seen:
			s.twice++
			continue
		case seq > seen+1:
			s.lost += seq - seen - 1
		}
		seen = seq
	}
	return s, nil
}
