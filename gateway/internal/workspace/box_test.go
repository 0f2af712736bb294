package workspace

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/mirror"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/shared/guest"
)

const (
	boxToken = "the token of a test"
	// boxUser is who sandboxd runs as if the test is root: nobody's files are
	// closed to root. An ordinary user's sandboxd is that user's.
	boxUser = 1000
)

// sandboxd is the real program, built once for all tests.
var sandboxd struct { //nolint:gochecknoglobals // see above
	once   sync.Once
	folder string
	err    error
}

// buildSandboxd returns the program's path.
func buildSandboxd(t *testing.T) string {
	t.Helper()
	sandboxd.once.Do(func() {
		sandboxd.folder, sandboxd.err = os.MkdirTemp("", "sandboxd-") //nolint:usetesting // it outlives this test
		if sandboxd.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", sandboxd.folder, "./cmd/sandboxd") //nolint:gosec,noctx // go test's own deadline ends it
		build.Dir = filepath.Join("..", "..", "..", "container")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			sandboxd.err = fmt.Errorf("%w: %s", err, out)
			return
		}
		sandboxd.err = os.Chmod(sandboxd.folder, 0o755)
	})
	if sandboxd.err != nil {
		t.Fatalf("building sandboxd: %v", sandboxd.err)
	}
	return filepath.Join(sandboxd.folder, "sandboxd")
}

// removeSandboxd removes the program once all tests are done.
func removeSandboxd() {
	if sandboxd.folder != "" {
		_ = os.RemoveAll(sandboxd.folder)
	}
}

// box is a sandboxd with a home of its own, and no OpenCode.
type box struct {
	*guest.Client
	home    string
	address string // sandboxd's URL
}

// newBox starts one as an ordinary user without capabilities.
func newBox(t *testing.T) *box {
	t.Helper()
	binary := buildSandboxd(t)
	base := t.TempDir()
	b := &box{home: filepath.Join(base, "home")}
	for _, dir := range []string{filepath.Dir(base), base} { // for the user to get through
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(b.home, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, base) // its config is beside the home
	own(t, b.home)
	t.Cleanup(func() { // whatever modes are in it, it can be removed
		_ = filepath.WalkDir(b.home, func(name string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(name, 0o700) //nolint:gosec // G122: nobody else is there
			}
			return nil
		})
	})
	hash := sha256.Sum256([]byte(boxToken))
	address := freeAddress(t)
	command := exec.Command(binary) //nolint:gosec,noctx // built above, and ended below in an orderly way
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), guest.TokenHashEnv + "=" + hex.EncodeToString(hash[:]),
		"SANDBOXD_ADDR=" + address, "SANDBOXD_HOME=" + b.home, "SANDBOXD_WORKSPACE=" + filepath.Join(b.home, workspaceFolder),
		"SANDBOXD_CONFIG_DIR=" + filepath.Join(base, "config"),
	}
	command.Stdout, command.Stderr = t.Output(), t.Output()
	command.WaitDelay = 5 * time.Second
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: boxUser, Gid: boxUser}
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	b.address = "http://" + address
	b.Client = guest.NewClient(transport, b.address, boxToken)
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		if err := command.Wait(); err != nil {
			t.Errorf("sandboxd ended with %v", err)
		}
	}()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = command.Process.Signal(syscall.SIGTERM)
		<-exited
	})
	b.awaitServing(t, exited)
	return b
}

func (b *box) awaitServing(t *testing.T, exited <-chan struct{}) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := b.Status(t.Context())
		if err == nil {
			return
		}
		select {
		case <-exited:
			t.FailNow()
		case <-deadline.C:
			t.Fatalf("sandboxd does not serve: %v", err)
		case <-tick.C:
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// own gives a path, and not what it links to, to who sandboxd runs as.
func own(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	if err := os.Lchown(path, boxUser, boxUser); err != nil {
		t.Fatal(err)
	}
}

// write makes a file of the home, with the folders that it is in.
func (b *box) write(t *testing.T, name, content string) {
	t.Helper()
	full := filepath.Join(b.home, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(full); dir != b.home; dir = filepath.Dir(dir) {
		own(t, dir)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	own(t, full)
}

// newKeeper makes a Keeper as the gateway does. The limits are the mirror's too.
func newKeeper(t *testing.T, s store.Store, settings snapshot.Settings) *Keeper {
	t.Helper()
	keys := ring(t, 1)
	mirrors := mirror.Settings{MaxEntries: settings.MaxEntries, MaxNames: settings.MaxNames, MaxBytes: settings.MaxBytes}
	return NewKeeper(snapshot.New(s, keys, settings), mirror.New(s, keys, mirrors), 4, slog.New(slog.DiscardHandler))
}

func refTo(id, incarnation string) lifecycle.Ref {
	return lifecycle.Ref{SandboxID: id, Incarnation: incarnation}
}

func mustBegin(t *testing.T, k *Keeper, ref lifecycle.Ref) {
	t.Helper()
	if err := k.Begin(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
}

func mustSnapshot(t *testing.T, k *Keeper, ref lifecycle.Ref, b *box) lifecycle.Snapshot {
	t.Helper()
	taken, err := k.Snapshot(t.Context(), ref, b.Client)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

// restore writes a snapshot into a box as a wake does: the state first.
func restore(t *testing.T, k *Keeper, ref lifecycle.Ref, id string, b *box) (files int64, err error) {
	t.Helper()
	for _, part := range []lifecycle.Part{lifecycle.PartState, lifecycle.PartWorkspace} {
		n, err := k.Restore(t.Context(), ref, id, part, b.Client, nil)
		if err != nil {
			return files, err
		}
		files += n
	}
	return files, nil
}

// unlock gives the owner of a folder, and of all below it, the use of it. relock
// puts the modes back, wherever the folders are by then.
func unlock(folder string) (relock func() error, err error) {
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s up: %w", folder, err)
	}
	all := &unlocked{}
	if err := all.add(fd); err != nil {
		return nil, fmt.Errorf("opening %s up: %w", folder, errors.Join(err, all.relock()))
	}
	return all.relock, nil
}

type unlocked struct {
	folders []lockedFolder
}

type lockedFolder struct {
	fd   int // O_PATH
	mode uint32
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// add opens a folder up, and what is in it. The descriptor is its own then.
func (u *unlocked) add(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if mode := st.Mode & 0o7777; mode&0o700 != 0o700 {
		u.folders = append(u.folders, lockedFolder{fd, mode})
		if err := unix.Chmod(procPath(fd), mode|0o700); err != nil {
			return err
		}
	} else {
		defer unix.Close(fd) //nolint:errcheck // nothing was written
	}
	listed, err := os.Open(procPath(fd))
	if err != nil {
		return err
	}
	defer listed.Close()
	names, err := listed.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		below, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err == nil {
			err = u.add(below)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *unlocked) relock() error {
	var failed error
	for _, f := range u.folders {
		failed = errors.Join(failed, unix.Chmod(procPath(f.fd), f.mode), unix.Close(f.fd))
	}
	u.folders = nil
	return failed
}
