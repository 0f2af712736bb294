package server

import (
	"net"
	"net/netip"
	"sync"
)

// maxConns bounds the connections that are open at once.
const maxConns = 512

// Limit wraps a listener so that at most maxConns of its connections are open
// at once; more wait to be accepted. Those that refuse says no to are closed at
// once and count for nothing; a nil refuse takes all.
func Limit(inner net.Listener, refuse func(remote netip.Addr) bool) net.Listener {
	return &limited{Listener: inner, refuse: refuse, slots: make(chan struct{}, maxConns), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	refuse func(netip.Addr) bool
	slots  chan struct{}

	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		if l.refuse == nil || !l.refuse(remote(conn)) {
			return &counted{Conn: conn, free: func() { <-l.slots }}, nil
		}
		_ = conn.Close()
	}
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func remote(conn net.Conn) netip.Addr {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

type counted struct {
	net.Conn
	once sync.Once
	free func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.once.Do(c.free)
	return c.Conn.Close()
}

// FromInside reports whether an address is one of this machine's own. In a
// container only the code inside has those.
func FromInside(remote netip.Addr) bool {
	if remote.IsLoopback() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false // the token still guards every route
	}
	for _, addr := range own {
		if prefix, ok := addr.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(prefix.IP); ok && ip.Unmap() == remote.WithZone("") {
				return true
			}
		}
	}
	return false
}
