// Package folder keeps the folders that a sandbox cannot work without, and reads
// and writes sandboxd's own files: code inside may have removed them, locked
// them, or put something else there.
package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	usable = 0o700
	fresh  = 0o755
	// tries bounds the search for a name that is free.
	tries = 100
)

// Unlock gives the owner of a folder read, write and search permission on it.
func Unlock(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	if mode := info.Mode(); mode&usable != usable {
		if err := os.Chmod(name, bits(mode)); err != nil {
			return fmt.Errorf("unlock %s: %w", name, err)
		}
	}
	return nil
}

// Ensure makes name, a path with slashes below root, a folder that its owner
// can use, and every folder above it too. What is there and is no folder, or a
// link that leads to none below root, is moved aside, see Aside.
func Ensure(root *os.Root, name string) error {
	at := ""
	for element := range strings.SplitSeq(path.Clean(name), "/") {
		at = path.Join(at, element)
		if err := ensure(root, at); err != nil {
			return err
		}
	}
	return nil
}

func ensure(root *os.Root, name string) error {
	info, err := root.Stat(name)
	if err == nil && info.IsDir() {
		if mode := info.Mode(); mode&usable != usable {
			if err := root.Chmod(name, bits(mode)); err != nil {
				return fmt.Errorf("unlock %s: %w", name, err)
			}
		}
		return nil
	}
	if err := Aside(root, name); err != nil {
		return err
	}
	if err := root.Mkdir(name, fresh); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// bits are a folder's permission bits with the owner's restored.
func bits(mode fs.FileMode) fs.FileMode {
	return mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) | usable
}

// Aside renames name to "NAME.moved-TIME", in seconds since 1970, or to the
// next such name that is free. Where nothing is, nothing happens.
func Aside(root *os.Root, name string) error {
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	now := time.Now().Unix()
	for second := now; second < now+tries; second++ {
		to := name + ".moved-" + strconv.FormatInt(second, 10)
		if _, err := root.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := root.Rename(name, to); err != nil {
			return fmt.Errorf("move %s aside: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("move %s aside: %w", name, fs.ErrExist)
}
