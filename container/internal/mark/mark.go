// Package mark keeps the mark of the disk: a small file in the home by which the
// gateway tells the disk of a sandbox from an empty one and from an old copy.
package mark

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/container/internal/folder"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Where the mark is, below the home. It stands at the top, so that no folder
// above it can be in the way, and nothing of it in the way of a restore.
const (
	File = ".agentpod-mark"
	// Temp is the mark while it is written. What a crash leaves there goes with
	// the next write.
	Temp = ".agentpod-mark.new"
)

const (
	// maxFile bounds the file, in bytes: it is some ten times what a mark takes.
	maxFile = 4 << 10
	// every is the time between two looks at the file. A mistake inside the
	// sandbox costs the disk only if the container dies before the next look.
	every = 3 * time.Second
	// maxLogged bounds an error in the log, in bytes.
	maxLogged = 256
)

// Keeper keeps the mark of one home. It is safe for concurrent use.
type Keeper struct {
	root  *os.Root
	log   *slog.Logger
	end   context.CancelFunc
	ended chan struct{}

	mu      sync.Mutex
	given   guest.Mark
	content []byte // of the file, from the given mark; nil until one was given
}

// Open opens the home and starts to look after the mark that is given later.
// Close it at the end.
func Open(home string, log *slog.Logger) (*Keeper, error) {
	root, err := os.OpenRoot(home)
	if err != nil {
		return nil, fmt.Errorf("open the home: %w", err)
	}
	ctx, end := context.WithCancel(context.Background())
	k := &Keeper{root: root, log: log, end: end, ended: make(chan struct{})}
	go func() {
		defer close(k.ended)
		k.watch(ctx)
	}()
	return k, nil
}

// Close ends the watch and closes the home.
func (k *Keeper) Close() error {
	k.end()
	<-k.ended
	if err := k.root.Close(); err != nil {
		return fmt.Errorf("close the home: %w", err)
	}
	return nil
}

func (k *Keeper) watch(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.Renew()
		}
	}
}

// Status returns the mark that was given, else the one that the disk has. It
// fails with internal if the disk cannot be read: that does not mean that there
// is no mark.
func (k *Keeper) Status() (guest.MarkStatus, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.content != nil {
		return guest.MarkStatus{Mark: k.given, Given: true}, nil
	}
	found, err := read(k.root)
	if err != nil {
		return guest.MarkStatus{}, failure("read", err)
	}
	return guest.MarkStatus{Mark: found}, nil
}

// Give puts a mark on the disk, durably, and keeps it there from then on. It
// fails with invalid_request, disk_full or internal; the disk then has its
// former mark or the new one, and what was given before is still kept.
func (k *Keeper) Give(mark guest.Mark) error {
	if err := mark.Check(); err != nil {
		return err
	}
	content, err := json.Marshal(mark)
	if err != nil {
		return fmt.Errorf("encode the mark: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := folder.ReplaceDurably(k.root, File, Temp, content); err != nil {
		return failure("write", err)
	}
	k.given, k.content = mark, content
	return nil
}

// Renew writes the given mark again if the disk has another or none. Code inside
// may have removed it by mistake. A failure is only logged: the next look may do
// better.
func (k *Keeper) Renew() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.content == nil {
		return
	}
	same, err := folder.Holds(k.root, File, k.content)
	if err == nil && same {
		return
	}
	if err := folder.ReplaceDurably(k.root, File, Temp, k.content); err != nil {
		k.log.Debug("write the mark of the disk again", "error", printable.Line(err.Error(), maxLogged))
		return
	}
	k.log.Debug("the mark of the disk was changed inside and is written again", "generation", k.given.Generation)
}

// read returns the mark of the disk; whatever is there and is none, hostile or
// not, counts as no mark. An error means that the disk did not tell.
func read(root *os.Root) (guest.Mark, error) {
	f, err := folder.OpenItself(root, File)
	if errors.Is(err, fs.ErrPermission) {
		// It was locked inside (chmod -R 0 ~), and is this user's all the same.
		if err = root.Chmod(File, 0o600); err == nil {
			f, err = folder.OpenItself(root, File)
		}
	}
	if isNone(err) {
		return guest.Mark{}, nil
	}
	if err != nil {
		return guest.Mark{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return guest.Mark{}, fmt.Errorf("read %s: %w", File, err)
	}
	var found guest.Mark
	if len(raw) > maxFile || json.Unmarshal(raw, &found) != nil || found.Check() != nil {
		return guest.Mark{}, nil
	}
	return found, nil
}

// isNone tells what stands in place of a mark, or nothing, from a disk that
// fails.
func isNone(err error) bool {
	for _, none := range []error{
		fs.ErrNotExist, folder.ErrNotRegular, fs.ErrPermission,
		syscall.ELOOP, syscall.ENXIO, syscall.ENOTDIR,
	} {
		if errors.Is(err, none) {
			return true
		}
	}
	return false
}

func failure(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return sandbox.Errorf(sandbox.CodeDiskFull, "%s the mark of the disk: the sandbox's disk is full", doing).WithCause(err)
	}
	return sandbox.Errorf(sandbox.CodeInternal, "%s the mark of the disk: the home does not let sandboxd; its log says why", doing).WithCause(err)
}
