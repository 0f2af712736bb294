package e2e

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// browserEnv makes this program the browser that it names.
const browserEnv = "AGENTPOD_TEST_BROWSER"

// becomeBrowser replaces this process by a browser that cannot hear of changes of
// the network. Each container that starts or ends is one, and a browser drops all
// its connections then. It returns only if that fails.
func becomeBrowser(path string) int {
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
		fmt.Fprintln(os.Stderr, "browser:", err)
		return 1
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil { //nolint:gosec // the call takes an address
		fmt.Fprintln(os.Stderr, "browser:", err)
		return 1
	}
	err := unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
	fmt.Fprintln(os.Stderr, "browser:", err)
	return 1
}
