package docker

import (
	"strconv"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
)

// BenchmarkRuntime measures the calls of a sandbox's life on the real engine.
func BenchmarkRuntime(b *testing.B) {
	r := newRuntime(b)
	ctx := b.Context()
	c := run(b, r, "bench")
	check := func(b *testing.B, err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for name, call := range map[string]func() error{
		"alive":   func() error { return r.Alive(ctx, c.Run()) },
		"inspect": func() error { _, err := r.Inspect(ctx, c.ID); return err },
		"list":    func() error { _, err := r.List(ctx); return err },
		"stats":   func() error { _, err := r.Stats(ctx, c.ID); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				check(b, call())
			}
		})
	}
	b.Run("alive-parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := r.Alive(ctx, c.Run()); err != nil {
					b.Error(err)
				}
			}
		})
	})
	timed := func(name string, before, call, after func() error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				check(b, before())
				b.StartTimer()
				check(b, call())
				b.StopTimer()
				check(b, after())
				b.StartTimer()
			}
		})
	}
	nothing := func() error { return nil }
	pause, unpause := func() error { return r.Pause(ctx, c.ID) }, func() error { return r.Unpause(ctx, c.ID) }
	timed("pause", nothing, pause, unpause)
	timed("unpause", pause, unpause, nothing)
	start, stop := func() error { _, err := r.Start(ctx, c.ID); return err }, func() error { return r.Stop(ctx, c.ID, 0) }
	timed("stop", nothing, stop, start)
	timed("start", stop, start, nothing)
	var made lifecycle.Container
	n := 0
	makeOne := func() (err error) {
		n++
		made, err = r.Create(ctx, specOf(r, "n"+strconv.Itoa(n)))
		return err
	}
	begin := func() error { _, err := r.Start(ctx, made.ID); return err }
	remove := func() error { return r.Remove(ctx, made.ID) }
	timed("create", nothing, makeOne, remove)
	timed("start-first", makeOne, begin, remove)
	timed("remove-running", func() error {
		if err := makeOne(); err != nil {
			return err
		}
		return begin()
	}, remove, nothing)
}
