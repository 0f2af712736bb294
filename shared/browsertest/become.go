package browsertest

import (
	"fmt"
	"os"
	"syscall"
)

// programEnv makes a test's program the browser that it names.
const programEnv = "AGENTPOD_TEST_BROWSER"

// Become is to be called first in TestMain. In a process that a Browser started it
// does not return: the process becomes the browser, but one that cannot hear of
// changes of the network. Each container that starts or ends is such a change, and a
// browser drops all its connections then.
func Become() {
	path := os.Getenv(programEnv)
	if path == "" {
		return
	}
	err := deafen()
	if err == nil {
		err = syscall.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ()) //nolint:gosec // what the test found
	}
	fmt.Fprintln(os.Stderr, "browser:", err)
	os.Exit(1)
}
