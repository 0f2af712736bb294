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
