package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Listen listens on an address (host:port) that a variable holds. Its error is a
// sentence for the operator.
func Listen(ctx context.Context, variable, addr string) (net.Listener, error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", addr)
	if err == nil {
		return listener, nil
	}
	advice := "set it to an address of this machine and a port"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		advice = "another program listens there; stop it, or set another port"
	case errors.Is(err, syscall.EACCES):
		advice = "this user may not listen on that port; set one above 1023"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		advice = "this machine does not have that address; set one that it has, such as 127.0.0.1"
	}
	return nil, fmt.Errorf("listening on %s %s: %s (%w)", variable, addr, advice, err)
}

// MakeDataDir makes a data folder unless it is there, readable by its owner only.
// Its error is a sentence for the operator.
func MakeDataDir(dir string) error {
	return unusable(dir, os.MkdirAll(dir, 0o700))
}

// TryDataDir is MakeDataDir, and makes sure that the folder can be written.
func TryDataDir(dir string) error {
	if err := MakeDataDir(dir); err != nil {
		return err
	}
	return unusable(dir, tryToWrite(dir))
}

func unusable(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the disk of DATA_DIR %s is full, or has no inodes left; free some, or set DATA_DIR to a folder on another one: %w", dir, err)
	}
	return fmt.Errorf("DATA_DIR %s cannot be used; let this user write there, or set another folder: %w", dir, err)
}

func tryToWrite(dir string) error {
	file, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	_, err = file.WriteString("x")
	return errors.Join(err, file.Close(), os.Remove(file.Name()))
}
