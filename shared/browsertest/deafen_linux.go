package browsertest

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deafen refuses this thread, and the program that it executes, the sockets through
// which the kernel tells of changes of the network.
func deafen() error {
	runtime.LockOSThread() // a filter is the thread's that sets it, and this one goes on
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	leave := func(with uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: with} }
	filter := []unix.SockFilter{
		load(0), unless(unix.SYS_SOCKET, 3), // the call's number
		load(16), unless(unix.AF_NETLINK, 1), // its first argument
		leave(unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)),
		leave(unix.SECCOMP_RET_ALLOW),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil { //nolint:gosec // the call takes an address
		return fmt.Errorf("setting a filter: %w", err)
	}
	return nil
}
