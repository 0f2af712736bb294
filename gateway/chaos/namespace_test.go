package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs three times, one in the other. Outside, it prepares what
// needs the machine (builds, the image) and cleans up at the end. Inside new mount,
// network, process and IPC namespaces, it is process 1, which reaps what is
// orphaned; when that ends, the kernel ends everything inside, however this came
// about. The third runs the tests.
const (
	stageEnv  = "AGENTPOD_CHAOS_STAGE"
	folderEnv = "AGENTPOD_CHAOS_FOLDER"
	imageEnv  = "AGENTPOD_TEST_IMAGE"

	stageInit  = "init"
	stageTests = "tests"
)

// The files in the run's folder.
const (
	lockName  = "lock"
	stubImage = "agentpod-chaos"
	// folderPattern is on a real disk: an overlay cannot be on another one, and /tmp may be small.
	folderParent, folderPattern = "/var/tmp", "agentpod-chaos-"
)

const buildTime = 10 * time.Minute

// enter goes through the stages and returns the exit code of the tests.
func enter(m *testing.M) (int, error) {
	switch os.Getenv(stageEnv) {
	case stageInit:
		return reap()
	case stageTests:
		return m.Run(), nil
	}
	return outside()
}

// outside prepares a run, runs the next stage in its namespaces, and removes what
// the run made.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return asRoot()
	}
	base := os.Getenv(imageEnv)
	if base == "" {
		return 1, fmt.Errorf("%s is not set; run this with `make chaos` or `make test`, which build the sandbox image", imageEnv)
	}
	for _, program := range []string{"dockerd", "containerd", "docker", "ip", "go"} {
		if _, err := exec.LookPath(program); err != nil {
			return 1, fmt.Errorf("%s is needed: %w", program, err)
		}
	}
	removeStale()
	folder, err := os.MkdirTemp(folderParent, folderPattern)
	if err != nil {
		return 1, fmt.Errorf("making the run's folder: %w", err)
	}
	lock, err := os.Create(filepath.Join(folder, lockName))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return 1, fmt.Errorf("locking the run's folder: %w", err)
	}
	defer func() { err = errors.Join(err, cleanUp(folder), lock.Close()) }()
	// Ctrl-C ends the stages inside; this one stays to clean up.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT) // SIGQUIT is go test's, after its own deadline
	defer signal.Stop(interrupts)
	if err := prepare(folder, base); err != nil {
		return 1, err
	}
	return inNamespaces(folder, interrupts)
}

// asRoot runs the same with sudo: namespaces and mounts need it.
func asRoot() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 1, fmt.Errorf("finding the test binary: %w", err)
	}
	args := append([]string{"-n", "-E", "env", "PATH=" + os.Getenv("PATH"), self}, os.Args[1:]...)
	cmd := exec.Command("sudo", args...) //nolint:gosec,noctx // itself; ended by its own deadline
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("an engine of the run's own needs root, or sudo without a password: %w", err)
	}
	return 0, nil
}

// prepare builds the programs under test, the S3 server, and the image.
func prepare(folder, base string) error {
	if err := os.Chmod(folder, 0o755); err != nil { // Postgres runs as another user
		return fmt.Errorf("opening the run's folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(folder, "image"), 0o755); err != nil {
		return fmt.Errorf("making the image's folder: %w", err)
	}
	for output, source := range map[string]string{
		"gateway": "../cmd/gateway", "api": "../../api/cmd/api", "image/opencode": "./testdata/standin",
	} {
		if _, err := command(ctx, "", []string{"CGO_ENABLED=0"}, "go", "build", "-o", filepath.Join(folder, output), source); err != nil {
			return err
		}
	}
	// There is no network inside, so what has to be fetched is fetched here.
	if _, err := command(ctx, "../internal/store/storetest/testdata/versitygw", []string{"GOWORK=off", "GOFLAGS=-mod=readonly"}, "go", "tool", "-n", "versitygw"); err != nil {
		return err
	}
	file := "FROM " + base + "\nCOPY opencode /usr/local/bin/opencode\n"
	if err := os.WriteFile(filepath.Join(folder, "image", "Dockerfile"), []byte(file), 0o600); err != nil {
		return fmt.Errorf("writing the image's Dockerfile: %w", err)
	}
	_, err := command(ctx, "", []string{"DOCKER_BUILDKIT=0"}, "docker", "build", "-q", "-t", tagOf(folder), filepath.Join(folder, "image"))
	return err
}

// tagOf is the reference of the run's image, on the machine's engine and on its own.
func tagOf(folder string) string {
	return stubImage + ":" + strings.ToLower(strings.TrimPrefix(filepath.Base(folder), folderPattern))
}

// command runs a program and returns what it prints.
func command(ctx context.Context, folder string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the tests' own
	cmd.Dir, cmd.Env = folder, append(os.Environ(), env...)
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", cmd, err, out.String(), said.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// inNamespaces runs the next stage and hands it the image as a stream.
func inNamespaces(folder string, interrupts <-chan os.Signal) (int, error) {
	runtime.LockOSThread() // the death signal goes with the thread that asked for it
	defer runtime.UnlockOSThread()
	images := []string{"save", tagOf(folder)}
	if run.real > 0 {
		images = append(images, os.Getenv(imageEnv))
	}
	save := exec.Command("docker", images...) //nolint:gosec,noctx // its reader's end ends it
	read, write, err := os.Pipe()
	if err != nil {
		return 1, fmt.Errorf("making a pipe: %w", err)
	}
	save.Stdout, save.Stderr = write, os.Stderr
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec,noctx // ended by its signal
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit, folderEnv+"="+folder)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL, Setpgid: true,
	}
	if err := save.Start(); err != nil {
		return 1, fmt.Errorf("saving the image: %w", err)
	}
	_ = write.Close()
	err = cmd.Start()
	_ = read.Close()
	if err != nil {
		_ = save.Process.Kill()
		_ = save.Wait()
		return 1, fmt.Errorf("making namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-interrupts:
		_ = cmd.Process.Kill()
		err = errors.Join(errors.New("interrupted"), <-ended)
	}
	_ = save.Process.Kill()
	_ = save.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("the stage inside: %w", err)
	}
	return 0, nil
}

// reap is process 1 of the namespaces: it makes them fit for an engine, starts the
// tests, and takes in whatever is orphaned until they end.
func reap() (int, error) {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return 1, fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:noctx // at once
		return 1, fmt.Errorf("bringing the loopback up: %w: %s", err, out)
	}
	if err := os.Setenv(stageEnv, stageTests); err != nil {
		return 1, fmt.Errorf("naming the next stage: %w", err)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, 3}}) //nolint:gosec // itself
	if err != nil {
		return 1, fmt.Errorf("starting the tests: %w", err)
	}
	_ = os.NewFile(3, "image").Close()
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("waiting for the tests: %w", err)
		case got == pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case got == pid:
			return status.ExitStatus(), nil
		}
	}
}

// cleanUp removes what a run has left on the machine: the image, the control
// groups of its containers, and its folder.
func cleanUp(folder string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := command(ctx, "", nil, "docker", "rmi", "-f", tagOf(folder))
	return errors.Join(err, removeGroups(groupOf(folder)), os.RemoveAll(folder))
}

// groupOf is the control group of the run's containers.
func groupOf(folder string) string { return filepath.Base(folder) }

// removeGroups removes control groups in every hierarchy. The processes in them may
// take a moment to be gone.
func removeGroups(name string) error {
	deadline, tick := time.NewTimer(10*time.Second), time.NewTicker(100*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
		if err != nil {
			return fmt.Errorf("looking for control groups: %w", err)
		}
		roots = append(roots, "/sys/fs/cgroup/"+name)
		var left error
		for _, root := range roots {
			left = errors.Join(left, removeGroup(root))
		}
		if left == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return left
		}
	}
}

// removeGroup removes a control group and those below it.
func removeGroup(root string) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading a control group: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(root, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(root); err != nil {
		return fmt.Errorf("removing a control group: %w", err)
	}
	return nil
}

// removeStale cleans up after runs that were killed before they could.
func removeStale() {
	folders, _ := filepath.Glob(filepath.Join(folderParent, folderPattern+"*")) // the pattern is ours
	for _, folder := range folders {
		lock, err := os.Open(filepath.Join(folder, lockName))
		if err != nil {
			continue // another run is making it
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = cleanUp(folder) // as far as it goes: the next run tries again
		}
		_ = lock.Close()
	}
}

// loadImage has the run's own engine load what the outer stage sends.
func loadImage(ctx context.Context, host string) error {
	images := os.NewFile(3, "image")
	defer images.Close()
	cmd := exec.CommandContext(ctx, "docker", "-H", host, "load", "-q") //nolint:gosec // the run's own engine
	cmd.Stdin = io.Reader(images)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("loading the image: %w: %s", err, out)
	}
	return nil
}

// children are the processes that a process has started, with any of its threads.
func children(pid int) []int {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is ours
	var pids []int
	for _, thread := range threads {
		raw, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		for text := range strings.FieldsSeq(string(raw)) {
			if n, err := strconv.Atoi(text); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}
