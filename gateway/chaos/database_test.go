package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// database is a Postgres server on the loopback. Unlike the one of the API's tests it
// writes to the disk, and is killed.
type database struct {
	folder, programs, port string
	owner                  *syscall.Credential
	cmd                    *exec.Cmd
	exited                 chan struct{}
}

const databaseTime = time.Minute

// newDatabase makes a server's data in a folder and starts it.
func newDatabase(ctx context.Context, folder string) (*database, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return nil, errors.Join(errors.New("there is no initdb: install Debian's package postgresql"), err)
	}
	d := &database{folder: filepath.Join(folder, "postgres"), programs: filepath.Dir(slices.Max(found))}
	owner, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("finding the database's user: %w", err)
	}
	uid, uidErr := strconv.ParseUint(owner.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(owner.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr, os.Mkdir(d.folder, 0o700)); err != nil {
		return nil, fmt.Errorf("making the database's folder: %w", err)
	}
	if err := os.Chown(d.folder, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("giving the database its folder: %w", err)
	}
	d.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("finding the database a port: %w", err)
	}
	_, d.port, _ = net.SplitHostPort(listener.Addr().String())
	_ = listener.Close()
	if err := d.program(ctx, "initdb", "--pgdata", d.folder, "--username", "test", "--auth", "trust", "--encoding", "UTF8", "--locale", "C"); err != nil {
		return nil, err
	}
	if err := d.up(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *database) address() string { return "127.0.0.1:" + d.port }

// program runs one of the server's programs.
func (d *database) program(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.programs, name), args...) //nolint:gosec // Postgres's own
	cmd.Dir, cmd.SysProcAttr = d.folder, &syscall.SysProcAttr{Credential: d.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// create makes an empty database and returns its name.
func (d *database) create(ctx context.Context, name string) error {
	return d.program(ctx, "createdb", "-h", "127.0.0.1", "-p", d.port, "-U", "test", name)
}

// up starts the server and waits until it answers.
func (d *database) up(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(filepath.Dir(d.folder), "postgres.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the database's log: %w", err)
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(d.programs, "postgres"), "-D", d.folder, "-k", d.folder, //nolint:gosec,noctx // ended by kill
		"-c", "listen_addresses=127.0.0.1", "-c", "port="+d.port, "-c", "shared_buffers=16MB", "-c", "max_connections=200")
	d.cmd.Dir, d.cmd.SysProcAttr = d.folder, &syscall.SysProcAttr{Credential: d.owner}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("starting the database: %w", err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() {
		_ = cmd.Wait() // killed, as a rule
		close(exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, databaseTime)
	defer cancel()
	for {
		err := d.program(ctx, "pg_isready", "-q", "-h", "127.0.0.1", "-p", d.port)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-exited:
			raw, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the database ended: %s", strings.TrimSpace(string(raw[max(0, len(raw)-2000):])))
		case <-ctx.Done():
			return fmt.Errorf("the database does not answer: %w", err)
		}
	}
}

// kill ends every process of the server at once. The server is the leader of none, so
// each is killed by itself.
func (d *database) kill() error {
	for _, pid := range append(children(d.cmd.Process.Pid), d.cmd.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("killing the database: %w", err)
		}
	}
	select {
	case <-d.exited:
		return nil
	case <-time.After(engineStop):
		return errors.New("the database does not end")
	}
}
