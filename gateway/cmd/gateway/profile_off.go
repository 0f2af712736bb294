//go:build !profile

package main

import (
	"context"
	"log/slog"
)

// profile does nothing: profiles are for a build of their own.
func profile(context.Context, *slog.Logger) (stop func()) { return func() {} }
