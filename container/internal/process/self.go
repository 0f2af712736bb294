package process

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Harden makes this process unreadable for others of the same user: no core,
// no ptrace, no /proc/PID/mem or environ, and no stack dump on a crash. It is
// the first thing that main does. As PID 1 it also makes the process deaf to
// faults that are sent instead of had.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process non-dumpable: %w", err)
	}
	debug.SetTraceback("none")
	unix.Umask(0o022)
	if os.Getpid() == 1 {
		return ignoreFaults()
	}
	// Descendants whose parent died come to this process, as they do to PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// ReserveThreads makes n threads of the operating system, which the runtime
// then keeps. It aborts the process when it needs one and gets none, as when
// the sandbox has used up its processes; whoever blocks in a system call needs
// one. Call it before anything else can run in the sandbox.
func ReserveThreads(n int) {
	var made, ended sync.WaitGroup
	made.Add(n)
	release := make(chan struct{})
	for range n {
		ended.Go(func() {
			// A goroutine that is locked has a thread to itself.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			<-release
		})
	}
	made.Wait()
	close(release)
	ended.Wait()
}

// faults are the signals that os/signal does not take over when they come
// through sigqueue(3) instead of kill(2): the Go runtime believes they are real
// faults and crashes, or it has no handler for them (32 to 34).
func faults() []unix.Signal {
	return []unix.Signal{
		unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS,
		32, 33, 34,
	}
}

// ignoreFaults makes the kernel drop faults that are sent, so that nobody
// inside can end PID 1 with one. It still ends the process on a real fault: a
// nil dereference is then fatal and not a panic. Children are not affected,
// they start with the default.
func ignoreFaults() error {
	type sigaction struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	ignore := sigaction{handler: 1} // SIG_IGN
	for _, sig := range faults() {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
			uintptr(unsafe.Pointer(&ignore)), 0, unsafe.Sizeof(ignore.mask), 0, 0) //nolint:gosec // os/signal would not reach the runtime's own handler
		runtime.KeepAlive(&ignore)
		if errno != 0 {
			return fmt.Errorf("ignore %s: %w", sig, errno)
		}
	}
	return nil
}

// HandleSignals takes every signal until ctx ends: SIGCHLD reaps, and all
// others are ignored, because anyone inside the sandbox can send them. If this
// process is not PID 1, SIGINT and SIGTERM call end. It returns once it listens;
// the returned channel is closed when it has stopped.
func (t *Table) HandleSignals(ctx context.Context, end func()) <-chan struct{} {
	// SIGCHLD has a channel of its own: a flood of other signals must not push
	// it out. One slot is enough, as Reap collects all that there is.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	all := make(chan os.Signal, 16)
	signal.Notify(all)

	done := make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(children)
		defer signal.Stop(all)
		for {
			select {
			case <-ctx.Done():
				return
			case <-children:
				t.Reap()
			case sig := <-all:
				if os.Getpid() != 1 && (sig == unix.SIGTERM || sig == unix.SIGINT) {
					end()
				}
			}
		}
	}()
	return done
}
