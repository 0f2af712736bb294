package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// world is what all lanes of a run share: an engine, an S3 server whose disk is a
// tmpfs, so that it can be full, and a database server.
type world struct {
	folder   string
	engine   *engine
	s3       *storetest.Server
	disk     string // the S3 server's
	database *database
	lanes    []*lane
}

// storeSize is the size of the S3 server's disk.
const storeSize = "512m"

// newWorld starts a world with some lanes. The test's clean-up stops it.
func newWorld(t *testing.T, lanes int) *world {
	t.Helper()
	w := &world{folder: os.Getenv(folderEnv)}
	w.disk = filepath.Join(w.folder, "store")
	err := os.Mkdir(w.disk, 0o700)
	if err == nil {
		err = unix.Mount("tmpfs", w.disk, "tmpfs", 0, "size="+storeSize)
	}
	if err != nil {
		t.Fatalf("making the S3 server's disk: %v", err)
	}
	t.Setenv("TMPDIR", w.disk)
	w.s3 = storetest.StartServer(t, storetest.ServerOptions{})
	began := time.Now()
	if w.engine, err = newEngine(t.Context(), w.folder); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.engine.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	if err := loadImage(t.Context(), w.engine.host()); err != nil {
		t.Fatal(err)
	}
	t.Logf("engine and image: %s", time.Since(began).Round(time.Millisecond))
	if w.database, err = newDatabase(t.Context(), w.folder); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.database.kill(); err != nil {
			t.Error(err)
		}
	})
	if err := w.open(t.Context(), lanes, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.closeLanes(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// open starts lanes, all of a kind, in the place of those that there were.
func (w *world) open(ctx context.Context, n int, genuine bool) error {
	if err := w.closeLanes(); err != nil {
		return err
	}
	name := "lane"
	if genuine {
		name = "genuine"
	}
	made, errs := make([]*lane, n), make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { made[i], errs[i] = newLane(ctx, w, fmt.Sprint(name, i), genuine) })
	}
	group.Wait()
	for i, l := range made {
		if errs[i] == nil {
			w.lanes = append(w.lanes, l)
		}
	}
	return errors.Join(errs...)
}

// closeLanes stops all lanes, which takes what they have in the engine along.
func (w *world) closeLanes() error {
	var errs []error
	for _, l := range w.lanes {
		errs = append(errs, l.close(), l.clear(context.Background()))
	}
	w.lanes = nil
	return errors.Join(errs...)
}

// lateTarget is the address of a server that is not known yet when the proxy before
// it is made.
type lateTarget struct {
	mu      sync.Mutex
	address string
}

// listen is what the proxy is told meanwhile.
func (*lateTarget) listen() string { return "127.0.0.1:1" }

func (t *lateTarget) set(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.address = address
}

func (t *lateTarget) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	t.mu.Lock()
	address := t.address
	t.mu.Unlock()
	if address == "" {
		return nil, http.ErrServerClosed
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}
