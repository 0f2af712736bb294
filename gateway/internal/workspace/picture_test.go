package workspace

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// seen is what one entry of a home is, found out without sandboxd's code.
type seen struct {
	Kind         string // file, folder or link
	Mode         uint32
	Size         int64
	Modified     unix.Timespec
	Target, Hash string
}

// picture walks a home, descriptor by descriptor, for no path is too long so.
// What is no file, folder or link is left out, as in a snapshot.
func picture(t *testing.T, home string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	fd, err := unix.Open(home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = look(all, fd, "")
	}
	if err != nil {
		t.Fatalf("walking a home: %v", err)
	}
	return all
}

// look walks an open folder, which it closes.
func look(all map[string]seen, fd int, path string) error {
	folder := os.NewFile(uintptr(fd), path)
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := lookAt(all, fd, name, path+name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

func lookAt(all map[string]seen, dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	s := seen{Mode: st.Mode & 0o7777, Modified: st.Mtim}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Kind, s.Size = "file", st.Size
		s.Hash, err = hashAt(dir, name, s.Mode)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, failed := unix.Readlinkat(dir, name, target)
		s.Kind, err = "link", failed
		s.Target = string(target[:max(0, n)])
	case unix.S_IFDIR:
		s.Kind = "folder"
		err = opened(dir, name, s.Mode, 0o700, func() error {
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return look(all, fd, path+"/")
		})
	default:
		return nil
	}
	all[path] = s
	return err
}

// opened does something while an ordinary user may use what is there; root may
// always.
func opened(dir int, name string, mode, need uint32, do func() error) error {
	if os.Getuid() == 0 || mode&need == need {
		return do()
	}
	if err := unix.Fchmodat(dir, name, mode|need, 0); err != nil {
		return err
	}
	return errors.Join(do(), unix.Fchmodat(dir, name, mode, 0))
}

func hashAt(dir int, name string, mode uint32) (sum string, err error) {
	err = opened(dir, name, mode, 0o400, func() error {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		hash := sha256.New()
		_, err = io.Copy(hash, file)
		sum = hex.EncodeToString(hash.Sum(nil))
		return err
	})
	return sum, err
}

// wantSame fails a test if two homes differ, and says where they do at first.
func wantSame(t *testing.T, want, got map[string]seen) {
	t.Helper()
	const most = 5
	differences := 0
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if want[path] == got[path] {
			continue
		}
		differences++
		if differences <= most {
			t.Errorf("%.300q is %+v, want %+v", path, got[path], want[path])
		}
	}
	if differences > most {
		t.Errorf("and %d more differ", differences-most)
	}
}

// files returns how many files a picture has, and the bytes in them.
func files(all map[string]seen) (count, bytes int64) {
	for _, s := range all {
		if s.Kind == "file" {
			count++
			bytes += s.Size
		}
	}
	return count, bytes
}

// below returns the part of a picture that is in a folder.
func below(all map[string]seen, folder string) map[string]seen {
	part := map[string]seen{}
	for path, s := range all {
		if strings.HasPrefix(path, folder+"/") {
			part[path] = s
		}
	}
	return part
}
