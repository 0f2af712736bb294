package store

import (
	"context"
	"net"
)

// DialTo makes all connections to one address, whatever name they are for.
func (s *S3) DialTo(address string) {
	s.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

// Dial makes all connections in a test's own way.
func (s *S3) Dial(dial func() net.Conn) {
	s.transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return dial(), nil }
}
