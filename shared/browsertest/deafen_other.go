//go:build !linux

package browsertest

// deafen does nothing where containers are not on the network of this machine.
func deafen() error { return nil }
