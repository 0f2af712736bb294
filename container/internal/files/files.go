// Package files reads, writes, lists and removes files below the home. Every
// path goes through an os.Root, so that no link leads out, whatever somebody
// inside changes at the same moment.
package files

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Tree is the home. It is safe for concurrent use. What it has changed when a call
// returns outlives a power cut.
type Tree struct {
	root      *os.Root
	workspace string                    // relative to the root
	sync      func(file *os.File) error // (*os.File).Sync, of a file or a folder
}

// Open opens the home; workspace is the folder in it, by its absolute path,
// that may not be removed. Close it at the end.
func Open(home, workspace string) (*Tree, error) {
	rel, err := filepath.Rel(home, workspace)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("the workspace %s is not below the home %s", workspace, home)
	}
	root, err := os.OpenRoot(home)
	if err != nil {
		return nil, fmt.Errorf("open the home: %w", err)
	}
	return &Tree{root: root, workspace: rel, sync: (*os.File).Sync}, nil
}

// Close closes the home.
func (t *Tree) Close() error {
	if err := t.root.Close(); err != nil {
		return fmt.Errorf("close the home: %w", err)
	}
	return nil
}

// local checks a path from a request and makes it clean.
func local(name string) (string, error) {
	if name == "" {
		return ".", nil
	}
	if strings.ContainsRune(name, 0) || !filepath.IsLocal(name) {
		return "", sandbox.Errorf(sandbox.CodeInvalidRequest, "the path must be relative to the home and stay below it")
	}
	return path.Clean(name), nil
}

// OpenFile opens a regular file, or lists a folder; exactly one of the results
// is set. The caller closes the file. It fails with file_not_found, or with
// invalid_request for what is neither file nor folder or leads out of the home.
func (t *Tree) OpenFile(name string) (*os.File, *guest.Listing, error) {
	name, err := local(name)
	if err != nil {
		return nil, nil, err
	}
	// O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
	f, err := t.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, failure("open", name, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = failure("look at", name, err)
	case info.Mode().IsRegular():
		return f, nil, nil
	case info.IsDir():
		var listing guest.Listing
		if listing, err = list(f, name); err == nil {
			_ = f.Close()
			return nil, &listing, nil
		}
	default:
		err = sandbox.Errorf(sandbox.CodeInvalidRequest, "%q is neither a file nor a folder", printable.Line(name, maxShown))
	}
	_ = f.Close()
	return nil, nil, err
}

// list reads the first guest.MaxEntries entries, in the file system's order,
// and sorts them by name. Bytes of a name that are not UTF-8 become U+FFFD.
func list(dir *os.File, name string) (guest.Listing, error) {
	infos, err := dir.Readdir(guest.MaxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return guest.Listing{}, failure("list", name, err)
	}
	listing := guest.Listing{Entries: []guest.Entry{}}
	if len(infos) > guest.MaxEntries {
		infos, listing.Truncated = infos[:guest.MaxEntries], true
	}
	for _, info := range infos {
		listing.Entries = append(listing.Entries, guest.Entry{
			Name:       strings.ToValidUTF8(info.Name(), "\uFFFD"),
			Type:       kind(info.Mode()),
			Size:       info.Size(),
			Mode:       permissions(info.Mode()),
			ModifiedAt: info.ModTime().UTC(),
		})
	}
	slices.SortFunc(listing.Entries, func(a, b guest.Entry) int { return cmp.Compare(a.Name, b.Name) })
	return listing, nil
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "file"
	case mode.IsDir():
		return "directory"
	case mode&fs.ModeSymlink != 0:
		return "symlink"
	default:
		return "other"
	}
}

// permissions gives the bits as stat(2) does.
func permissions(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// Write puts content at name, atomically: a reader sees the old file or the
// new one, and after a failure the old one is still there. Missing parents are
// made. A link at name is replaced, not followed. It fails with
// invalid_request, conflict (a folder is there) or disk_full. If the disk fails while
// the new name is kept, the new file may be there all the same.
func (t *Tree) Write(name string, mode fs.FileMode, content io.Reader) error {
	name, err := local(name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	if base == "." {
		return sandbox.Errorf(sandbox.CodeConflict, "%q is a folder", printable.Line(name, maxShown))
	}
	parent := t.root
	if dir = path.Clean(dir); dir != "." {
		if err := t.mkdirAll(dir, name); err != nil {
			return err
		}
		// From here on the folder is held, whatever takes its name.
		if parent, err = t.root.OpenRoot(dir); err != nil {
			return failure("open the parent of", name, err)
		}
		defer parent.Close()
	}
	if info, err := parent.Lstat(base); err == nil && info.IsDir() {
		return sandbox.Errorf(sandbox.CodeConflict, "%q is a folder", printable.Line(name, maxShown))
	}
	temp := "." + rand.Text() + ".tmp"
	if err := t.fill(parent, temp, name, mode, content); err != nil {
		_ = parent.Remove(temp)
		return err
	}
	if err := parent.Rename(temp, base); err != nil {
		_ = parent.Remove(temp)
		return failure("put in place", name, err)
	}
	return t.keep(parent, ".", name)
}

// mkdirAll makes a folder with its parents, and keeps the names of those that were
// not there. name is the path that the caller sent.
func (t *Tree) mkdirAll(dir, name string) error {
	var made []string // the deepest first
	for at := dir; at != "."; at = path.Dir(at) {
		if _, err := t.root.Lstat(at); err == nil {
			break
		}
		made = append(made, at)
	}
	if err := t.root.MkdirAll(dir, 0o755); err != nil {
		return failure("make the parents of", name, err)
	}
	for _, folder := range slices.Backward(made) {
		if err := t.keep(t.root, path.Dir(folder), name); err != nil {
			return err
		}
	}
	return nil
}

// keep makes the names in a folder durable. name is the path that the caller sent.
func (t *Tree) keep(root *os.Root, dir, name string) error {
	f, err := root.Open(dir)
	if err != nil {
		return failure("keep", name, err)
	}
	defer f.Close()
	if err := t.sync(f); err != nil {
		return failure("keep", name, err)
	}
	return nil
}

func (t *Tree) fill(parent *os.Root, temp, name string, mode fs.FileMode, content io.Reader) error {
	f, err := parent.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return failure("create", name, err)
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = t.sync(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return failure("write", name, err)
	}
	return nil
}

// Remove removes a file, or a folder with all that is in it; a link itself and
// not what it points to. It fails with file_not_found, and with
// invalid_request for the home and the workspace.
func (t *Tree) Remove(name string) error {
	name, err := local(name)
	if err != nil {
		return err
	}
	info, err := t.root.Lstat(name)
	if err != nil {
		return failure("look at", name, err)
	}
	// By identity, as a link can give either of them another path.
	for _, kept := range []string{".", t.workspace} {
		if own, err := t.root.Lstat(kept); err == nil && os.SameFile(own, info) {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "the home and the workspace themselves cannot be removed")
		}
	}
	if err := t.root.RemoveAll(name); err != nil {
		return failure("remove", name, err)
	}
	if err := t.keep(t.root, path.Dir(name), name); !sandbox.HasCode(err, sandbox.CodeFileNotFound) {
		return err
	}
	return nil // the folder is gone as well
}

// maxShown bounds a path in a message, in bytes.
const maxShown = 1 << 10

// failure gives an error of the file system its code. name is the path that the
// caller sent, and the only one in the message.
func failure(doing, name string, err error) error {
	coded := func(code sandbox.Code, what string) error {
		return sandbox.Errorf(code, "%s %q: %s", doing, printable.Line(name, maxShown), what).WithCause(err)
	}
	var sandboxErr *sandbox.Error
	switch {
	case errors.As(err, &sandboxErr):
		return sandboxErr
	case errors.Is(err, fs.ErrNotExist):
		return coded(sandbox.CodeFileNotFound, "no such file or folder")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return coded(sandbox.CodeDiskFull, "the sandbox's disk is full")
	case errors.Is(err, syscall.ENOTDIR):
		return coded(sandbox.CodeConflict, "a file is where a folder should be")
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EEXIST), errors.Is(err, syscall.ENOTEMPTY):
		return coded(sandbox.CodeConflict, "something else is there")
	case errors.Is(err, fs.ErrPermission):
		return coded(sandbox.CodeInvalidRequest, "permission denied")
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENXIO), escapes(err):
		return coded(sandbox.CodeInvalidRequest, "it cannot be used")
	default:
		return coded(sandbox.CodeInternal, "input or output error")
	}
}

// escapes reports os.Root's refusal to leave the root, which has no exported
// error value.
func escapes(err error) bool {
	var pathErr *fs.PathError
	return errors.As(err, &pathErr) && pathErr.Err != nil && pathErr.Err.Error() == "path escapes from parent"
}
