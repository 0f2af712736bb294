// Package linktest gives tests a way to a server that can fall silent, as a network
// does that loses everything.
package linktest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Link is a way to a server that can fall silent: it accepts connections and
// carries nothing. What it cut stays cut: a connection from before or during the
// silence stays open and is never answered again. Its methods can be called
// concurrently.
type Link struct {
	network, address string // of the server
	listener         net.Listener
	ended            chan struct{} // closed when the test is over
	group            sync.WaitGroup

	mu      sync.Mutex
	state   linkState
	wires   map[*wire]struct{}
	revived bool // a silence is over
	late    int
}

type linkState int

const (
	speaking linkState = iota
	silent
	deafened // requests arrive, answers do not
)

// wire is a connection through a Link.
type wire struct {
	state          linkState
	client, server net.Conn
}

// Start opens a way to a server at an address of a network, such as "tcp" or "unix".
// The test's clean-up closes it.
func Start(t testing.TB, network, address string) *Link {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{network: network, address: address, listener: listener, ended: make(chan struct{}), wires: map[*wire]struct{}{}}
	l.group.Go(l.accept)
	t.Cleanup(func() {
		close(l.ended)
		_ = listener.Close()
		l.mu.Lock()
		for w := range l.wires {
			_, _ = w.client.Close(), w.server.Close()
		}
		l.mu.Unlock()
		l.group.Wait()
	})
	return l
}

// Address is the host and port to dial instead of the server's.
func (l *Link) Address() string { return l.listener.Addr().String() }

// Silence cuts all connections, and those that come, in both directions, until
// Speak.
func (l *Link) Silence() { l.cut(silent) }

// LoseReplies is Silence, but what clients send arrives at the server.
func (l *Link) LoseReplies() { l.cut(deafened) }

func (l *Link) cut(to linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.revived = to, false
	for w := range l.wires {
		w.state = to
	}
}

// Speak ends a silence for connections that come from now on.
func (l *Link) Speak() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.revived = speaking, true
}

// Late returns how many requests were sent, after a silence was over, on a
// connection that it had cut while the connection was idle.
func (l *Link) Late() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.late
}

func (l *Link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), l.network, l.address)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		w := &wire{state: l.state, client: client, server: server}
		l.wires[w] = struct{}{}
		l.mu.Unlock()
		select {
		case <-l.ended: // the clean-up may have missed it
			_, _ = client.Close(), server.Close()
		default:
		}
		l.group.Go(func() { l.carry(w, server, client, true) })
		l.group.Go(func() { l.carry(w, client, server, false) })
	}
}

// carry copies from one end of a wire to the other for as long as it is whole.
func (l *Link) carry(w *wire, to, from net.Conn, request bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		l.mu.Lock()
		cut := w.state == silent || w.state == deafened && !request
		if cut && request && n > 0 && l.revived {
			l.late++
		}
		l.mu.Unlock()
		if cut {
			<-l.ended
			return
		}
		if _, failed := to.Write(buffer[:n]); failed != nil || err != nil {
			if !errors.Is(err, io.EOF) || failed != nil {
				_, _ = w.client.Close(), w.server.Close()
				return
			}
			_ = to.Close()
			return
		}
	}
}
