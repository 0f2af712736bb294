package folder

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// private is the mode of what is written here: a config may hold credentials.
const private = 0o600

// ErrNotRegular says that something is there, and that it is no regular file.
var ErrNotRegular = errors.New("no regular file")

// OpenRegular opens a regular file for reading, through links that stay below
// root. Code inside may have put anything there: it fails with ErrNotRegular for
// what is no file, and a FIFO does not hold it up.
func OpenRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", name, errors.Join(ErrNotRegular, err))
	}
	return f, nil
}

// OpenItself is OpenRegular for a name that must not be a link: a link fails
// with ErrNotRegular too.
func OpenItself(root *os.Root, name string) (*os.File, error) {
	// os.Root follows a link below itself whatever the flags say, so what was
	// opened is compared with what has the name.
	itself, err := root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	if !itself.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: %w", name, ErrNotRegular)
	}
	f, err := OpenRegular(root, name)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !os.SameFile(itself, info) {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", name, errors.Join(ErrNotRegular, err))
	}
	return f, nil
}

// Holds reports whether name itself is a file with exactly this content. What
// cannot be opened is none.
func Holds(root *os.Root, name string, content []byte) (bool, error) {
	f, err := OpenItself(root, name)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != int64(len(content)) {
		return false, nil
	}
	have, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	if err != nil {
		return false, fmt.Errorf("compare %s: %w", name, err)
	}
	return bytes.Equal(have, content), nil
}

// Replace writes a file atomically, with mode 0600, and makes the folder that it
// is in. A folder at name is removed with all that is in it.
func Replace(root *os.Root, name string, content []byte) error {
	dir := path.Dir(name)
	if err := root.MkdirAll(dir, fresh); err != nil {
		return fmt.Errorf("make the folder of %s: %w", name, err)
	}
	if info, err := root.Lstat(name); err == nil && info.IsDir() {
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("clear %s: %w", name, err)
		}
	}
	// A dot and an extension that nothing loads, should it be left behind.
	return put(root, path.Join(dir, "."+rand.Text()+".tmp"), name, content, false)
}

// ReplaceDurably writes a file atomically, with mode 0600. When it returns, the
// file and its name are on the disk; after a failure the former file is still
// there, or the new one. It writes by way of temp, a name beside it that is for
// nothing else. A folder at either name is moved aside unless it is empty, see
// Aside. Two calls for one name must not run at once.
func ReplaceDurably(root *os.Root, name, temp string, content []byte) error {
	if err := vacate(root, temp); err != nil {
		return err
	}
	if info, err := root.Lstat(name); err == nil && info.IsDir() {
		if err := vacate(root, name); err != nil {
			return err
		}
	}
	if err := put(root, temp, name, content, true); err != nil {
		return err
	}
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return fmt.Errorf("open the folder of %s: %w", name, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("sync the folder of %s: %w", name, err)
	}
	return nil
}

// vacate frees a name: it removes a file, a link and an empty folder, and moves
// a full one aside.
func vacate(root *os.Root, name string) error {
	err := root.Remove(name)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.EEXIST):
		return Aside(root, name)
	default:
		return fmt.Errorf("clear %s: %w", name, err)
	}
}

// put writes a new file at temp and renames it to name.
func put(root *os.Root, temp, name string, content []byte, durably bool) error {
	if err := fill(root, temp, content, durably); err != nil {
		_ = root.Remove(temp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := root.Rename(temp, name); err != nil {
		_ = root.Remove(temp)
		return fmt.Errorf("put %s in place: %w", name, err)
	}
	return nil
}

func fill(root *os.Root, name string, content []byte, durably bool) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, private)
	if err != nil {
		return err //nolint:wrapcheck // put wraps it
	}
	_, err = f.Write(content)
	if err == nil && durably {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
