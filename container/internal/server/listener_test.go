package server

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func listen(t *testing.T, refuse func(netip.Addr) bool, most int) net.Listener {
	t.Helper()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{Listener: inner, refuse: refuse, slots: make(chan struct{}, most), closed: make(chan struct{})}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestAConnectionBeyondTheMostWaitsForAnotherToEnd(t *testing.T) {
	l := listen(t, nil, 1)
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
		}
	}()
	dial(t, l)
	first := <-accepted
	dial(t, l)
	select {
	case <-accepted:
		t.Fatal("a second one was accepted")
	case <-time.After(100 * time.Millisecond):
	}
	for range 2 { // a second close frees nothing more
		_ = first.Close()
	}
	second := <-accepted
	dial(t, l)
	select {
	case <-accepted:
		t.Fatal("a third one was accepted")
	case <-time.After(100 * time.Millisecond):
	}
	_ = l.Close() // ends an Accept that waits for a slot
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	_ = second.Close()
}

func TestConnectionsFromInsideAreClosedAtOnce(t *testing.T) {
	l := listen(t, FromInside, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	for range 3 { // more than there are slots
		conn := dial(t, l)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.ErrNoProgress) {
			t.Error("it was served")
		} else if failure, ok := errors.AsType[net.Error](err); ok && failure.Timeout() {
			t.Error("it was held")
		}
	}
	_ = l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestWhichAddressesAreInside(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range own {
		prefix, ok := addr.(*net.IPNet)
		if !ok {
			continue
		}
		ip, _ := netip.AddrFromSlice(prefix.IP)
		if !FromInside(ip.Unmap()) {
			t.Errorf("%s is an own address", ip)
		}
	}
	if !FromInside(netip.MustParseAddr("127.9.9.9")) || !FromInside(netip.IPv6Loopback()) || FromInside(netip.MustParseAddr("203.0.113.7")) {
		t.Error("loopback is inside, a stranger is not")
	}
}
