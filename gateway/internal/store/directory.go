package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// Directory is a Store in a directory. An object is a file with the object's
// bytes, under its key as its path (diskname.go has the exceptions), so the
// usual tools can read and copy it; a copy keeps modification times (cp -a), for
// ETags and metadata go by them. The file system must be case-sensitive and
// keep times to the nanosecond, which Probe finds out.
//
// One process at a time may use a directory, and seeing to that is the caller's
// work. Nothing outside the directory is reached through it: see os.Root.
type Directory struct {
	root  *os.Root
	names sync.RWMutex // makes what happens to names one step
	stamp stamper
	disk  *syncer
	temp  string // the folder of what is being written
	guest bool   // of VisitDirectory, which made temp
}

var _ Store = (*Directory)(nil)

const (
	folderMode = 0o700
	fileMode   = 0o600
)

// OpenDirectory opens the store in a directory, making it if it is not there,
// and removes what a write that did not finish left behind.
func OpenDirectory(name string) (*Directory, error) {
	root, err := openFolder(name)
	if err != nil {
		return nil, err
	}
	err = root.RemoveAll(tempFolder)
	if err == nil {
		err = root.Mkdir(tempFolder, folderMode)
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("emptying %s in the store's directory %s; let this user write there: %w", tempFolder, name, err)
	}
	return newDirectory(root, tempFolder), nil
}

func newDirectory(root *os.Root, temp string) *Directory {
	return &Directory{root: root, temp: temp, disk: newSyncer(func(folder string) error { return syncFolder(root, folder) })}
}

// openFolder opens the store's directory, making it if it is not there.
func openFolder(name string) (*os.Root, error) {
	if err := os.MkdirAll(name, folderMode); err != nil {
		return nil, fmt.Errorf("the store's directory %s cannot be made; let this user write there, and remove what is in its place: %w", name, err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("opening the store's directory: %w", err)
	}
	return root, nil
}

// VisitDirectory opens the store in a directory that another process may be using,
// or may begin to use, to look at what
// is there and for Probe, and for nothing else. Close leaves it as
// it was, but for the directory itself, which is made if it is not there.
func VisitDirectory(name string) (*Directory, error) {
	root, err := openFolder(name)
	if err != nil {
		return nil, err
	}
	// Not tempFolder, which a process that starts meanwhile empties, and then relies on.
	d := newDirectory(root, visitPrefix+randomName())
	d.guest = true
	if err := root.Mkdir(d.temp, folderMode); err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("making %s in the store's directory %s; let this user write there: %w", d.temp, name, err)
	}
	return d, nil
}

// Close gives the directory up. Open readers stay usable.
func (d *Directory) Close() error {
	if d.guest {
		_ = d.root.RemoveAll(d.temp)
	}
	return d.root.Close()
}

func syncFolder(root *os.Root, name string) error {
	folder, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile, and whoever did that sees to its parent
	}
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// stamper gives out modification times that are all different, so that a time
// and a size name one state of an object.
type stamper struct {
	mu   sync.Mutex
	last int64
}

func (s *stamper) next() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last+1, time.Now().UnixNano())
	return time.Unix(0, s.last)
}

func etagOf(modified time.Time, size int64) ETag {
	return ETag(fmt.Sprintf("%x-%x", modified.UnixNano(), size))
}

func infoOf(key string, stat fs.FileInfo) Info {
	return Info{Key: key, Size: stat.Size(), Modified: stat.ModTime(), ETag: etagOf(stat.ModTime(), stat.Size())}
}

// missing is failed for a read, which may be of what is not there.
func missing(doing, key string, err error) error {
	if absent(err) {
		return fmt.Errorf("%s %q: %w", doing, key, ErrNotFound)
	}
	return failed(doing, key, err)
}

// absent tells whether an error is that nothing has a name.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// failed says that the disk is at fault, and whether that may pass.
func failed(doing, key string, err error) error {
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, syscall.EAGAIN, syscall.EINTR} {
		if errors.Is(err, passing) {
			return fmt.Errorf("%s %q: %w: %w", doing, key, ErrAway, err)
		}
	}
	return refused(fmt.Errorf("%s %q: %w", doing, key, err))
}

// locate returns where an object is, or would be put: beside a folder of its
// name, or in the ordinary place. Called with names held.
func (d *Directory) locate(p place) (string, fs.FileInfo, error) {
	if stat, err := d.root.Lstat(p.otherFile()); err == nil && stat.Mode().IsRegular() {
		return p.otherFile(), stat, nil
	}
	stat, err := d.root.Lstat(p.file())
	switch {
	case err != nil:
		return p.file(), nil, err
	case stat.IsDir():
		return p.otherFile(), nil, fs.ErrNotExist
	case !stat.Mode().IsRegular():
		return p.file(), nil, fs.ErrNotExist // not ours
	}
	return p.file(), stat, nil
}

// Head implements Store.
func (d *Directory) Head(ctx context.Context, key string) (Info, error) {
	if err := errors.Join(CheckKey(key), ctx.Err()); err != nil {
		return Info{}, err
	}
	d.names.RLock()
	defer d.names.RUnlock()
	p := placeOf(key)
	_, stat, err := d.locate(p)
	if err != nil {
		return Info{}, missing("looking at", key, err)
	}
	return d.describe(p, key, stat)
}

// describe makes an Info with what lies beside the object.
func (d *Directory) describe(p place, key string, stat fs.FileInfo) (Info, error) {
	info := infoOf(key, stat)
	kept, err := d.readMeta(p)
	if err != nil {
		return Info{}, failed("reading the metadata of", key, err)
	}
	attributes := kept[info.ETag]
	info.ContentType = contentTypeOf(attributes.ContentType)
	info.Metadata = lowered(attributes.Metadata)
	return info, nil
}

// Get implements Store.
func (d *Directory) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	if err := errors.Join(CheckKey(key), checkRange(r), ctx.Err()); err != nil {
		return nil, Info{}, err
	}
	file, info, err := d.open(key)
	if err != nil {
		return nil, Info{}, err
	}
	if r.Offset > 0 && r.Offset >= info.Size {
		_ = file.Close()
		return nil, Info{}, fmt.Errorf("reading %q from byte %d of %d: %w", key, r.Offset, info.Size, ErrRange)
	}
	length := info.Size - r.Offset
	if r.Length > 0 {
		length = min(length, r.Length)
	}
	return &opened{ctx: ctx, SectionReader: io.NewSectionReader(file, r.Offset, length), file: file, key: key}, info, nil
}

func checkRange(r Range) error {
	if r.Offset < 0 || r.Length < 0 {
		return fmt.Errorf("%w: the range of %d bytes from %d on", ErrInvalid, r.Length, r.Offset)
	}
	return nil
}

func (d *Directory) open(key string) (*os.File, Info, error) {
	d.names.RLock()
	defer d.names.RUnlock()
	p := placeOf(key)
	name, _, err := d.locate(p)
	if err != nil {
		return nil, Info{}, missing("opening", key, err)
	}
	file, err := d.root.Open(name)
	if err != nil {
		return nil, Info{}, missing("opening", key, err)
	}
	stat, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, Info{}, missing("opening", key, err)
	}
	info, err := d.describe(p, key, stat)
	if err != nil {
		_ = file.Close()
		return nil, Info{}, err
	}
	return file, info, nil
}

// opened is an object that is being read.
type opened struct {
	*io.SectionReader
	ctx  context.Context //nolint:containedctx // governs the reader until it is closed, as Store.Get says
	file *os.File
	key  string
}

// Read implements io.Reader.
func (o *opened) Read(p []byte) (int, error) {
	if o.ctx.Err() != nil {
		return 0, context.Cause(o.ctx)
	}
	n, err := o.SectionReader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("reading %q: %w: %w", o.key, ErrAway, err)
	}
	return n, err
}

// Close implements io.Closer.
func (o *opened) Close() error { return o.file.Close() }
