package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	endPoll = 20 * time.Millisecond
	// killDeadline bounds the time that SIGKILL may take; only a process stuck
	// in the kernel outlives it.
	killDeadline = 5 * time.Second
)

// EndAll ends every process but this one: as PID 1 whatever is in the
// container, else every descendant. SIGTERM first, SIGKILL when grace has
// passed or ctx ends, again until nothing is left. Start fails meanwhile.
func (t *Table) EndAll(ctx context.Context, grace time.Duration) error {
	t.setEnding(true)
	defer t.setEnding(false)

	t.signalOthers(unix.SIGTERM)
	t.signalOthers(unix.SIGCONT) // a stopped process does not get SIGTERM until it continues
	graceCtx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if t.awaitNobody(graceCtx, nil) == 0 {
		return nil
	}
	// Once begun the killing goes on even if the caller has left.
	killCtx, cancelKill := context.WithTimeout(context.WithoutCancel(ctx), killDeadline)
	defer cancelKill()
	if left := t.awaitNobody(killCtx, func() { t.signalOthers(unix.SIGKILL) }); left > 0 {
		return fmt.Errorf("%d processes outlived SIGKILL for %s", left, killDeadline)
	}
	return nil
}

func (t *Table) setEnding(v bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = v
}

// awaitNobody returns how many processes are left when ctx ends, 0 as soon as
// there are none. each runs before every look.
func (t *Table) awaitNobody(ctx context.Context, each func()) int {
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for {
		if each != nil {
			each()
		}
		t.Reap()
		left := len(others())
		if left == 0 {
			return 0
		}
		select {
		case <-ctx.Done():
			return left
		case <-tick.C:
		}
	}
}

func (t *Table) signalOthers(sig unix.Signal) {
	if os.Getpid() == 1 {
		// One call for all of them, so that nobody can fork out of the way.
		if err := unix.Kill(-1, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			t.log.Warn("signal every process", "signal", sig.String(), "error", err)
		}
		return
	}
	for _, pid := range others() {
		_ = unix.Kill(pid, sig)
	}
}

// others lists the living processes that EndAll is to end.
func others() []int {
	parents := parentsOfLiving()
	self := os.Getpid()
	var pids []int
	for pid := range parents {
		if pid != self && (self == 1 || descends(parents, pid, self)) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func descends(parents map[int]int, pid, ancestor int) bool {
	for range len(parents) + 1 {
		parent, ok := parents[pid]
		if !ok {
			return false
		}
		if parent == ancestor {
			return true
		}
		pid = parent
	}
	return false
}

// parentsOfLiving maps each process that is not a zombie to its parent.
func parentsOfLiving() map[int]int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read before an error still counts
	parents := make(map[int]int, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if state, parent, ok := stat(pid); ok && state != "Z" && state != "X" {
			parents[pid] = parent
		}
	}
	return parents
}

// Parents returns the set of processes that have a living child.
func Parents() map[int]bool {
	parents := make(map[int]bool)
	for _, parent := range parentsOfLiving() {
		parents[parent] = true
	}
	return parents
}

// stat reads state and parent from /proc/PID/stat. The name in it is chosen by
// the process and may hold anything, so what counts starts after the last ')'.
func stat(pid int) (state string, parent int, ok bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, false
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}
