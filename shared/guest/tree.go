package guest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// The routes by which a snapshot is taken and put back. Every path is relative
// to Home, raw bytes, and passes CheckTreePath.
const (
	// RouteTree lists: GET → one JSON object a line, a TreeEntry each, a folder
	// before what is in it, and a TreeEnd at last. Without it the listing was
	// cut off.
	RouteTree = "/v1/tree"
	// RouteTreeRead reads files: POST of frames, a FramePath for each file and
	// FrameEnd → frames. For each file, in the order of the request, a FrameFile;
	// if that says TreeOK, FrameData with together as many bytes as it promised,
	// unless the file changed, and a FrameDone. FrameEnd at last.
	RouteTreeRead = "/v1/tree/read"
	// RouteTreeRestore writes: POST of frames → Restored. For each entry a
	// FrameEntry and, for a file, FrameData with exactly its size; a folder comes
	// before what is in it. FrameEnd at last, without which what came is kept but
	// the restore has failed. It may be repeated.
	RouteTreeRestore = "/v1/tree/restore"
)

// Bounds of these routes. What is beyond is skipped by a listing, with a reason.
const (
	MaxTreePath  = 128 << 10 // of a path, in bytes
	MaxTreeDepth = 512       // of a path, in elements
	MaxTreeName  = 255       // of an element, in bytes
	MaxTreeLine  = 256 << 10 // of a line of a listing, in bytes
	// MaxTreeReads and MaxTreeReadBody bound one request for files.
	MaxTreeReads    = 4096
	MaxTreeReadBody = 4 << 20
	// MaxFrame bounds the payload of a frame.
	MaxFrame = 256 << 10
)

// The types of a TreeEntry.
const (
	TreeFile      = "file"
	TreeDirectory = "directory"
	TreeSymlink   = "symlink"
)

// TreeEntry is a file, a folder or a symbolic link. A hard link is a file of its
// own. In JSON, path and target are base64, as they may be any bytes.
type TreeEntry struct {
	Path string
	Type string
	// Mode are the permission bits with setuid, setgid and sticky, 07777.
	Mode uint32
	// Size is in bytes, and 0 for what is no file.
	Size int64
	// ModifiedNs and ChangedNs are mtime and ctime in nanoseconds since 1970,
	// negative before; what int64 cannot hold (before 1678, after 2262) is
	// the nearest that it can.
	ModifiedNs int64
	ChangedNs  int64 // not in a restore
	Inode      uint64
	Target     string // of a link
	// Database marks OpenCode's database while OpenCode runs. What RouteTreeRead
	// gives of it is a consistent copy whose size may be another; its times are
	// the later of the file's and its log's (-wal), so that a change shows.
	Database bool
}

// TreeEnd is the last line of a listing.
type TreeEnd struct {
	End     bool  `json:"end"`
	Entries int64 `json:"entries"`
	Skipped int64 `json:"skipped"`
	// Reasons count what was skipped: "socket", "device", "fifo", "too deep",
	// "long path", "other file system", "unreadable".
	Reasons map[string]int64 `json:"reasons,omitempty"`
	// Error says why the listing is not whole; the client makes it an error.
	Error string `json:"error,omitempty"`
}

// Restored is what a restore wrote. Bytes are those of files.
type Restored struct {
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	Symlinks    int64 `json:"symlinks"`
	Bytes       int64 `json:"bytes"`
}

// treeLine is a line of a listing: an entry, or the end.
type treeLine struct {
	Path     []byte `json:"path"`
	Type     string `json:"type"`
	Mode     uint32 `json:"mode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"mtime"`
	Changed  int64  `json:"ctime"`
	Inode    uint64 `json:"inode"`
	Target   []byte `json:"target"`
	Database bool   `json:"database"`
	TreeEnd
}

func (l *treeLine) entry() TreeEntry {
	return TreeEntry{
		Path: string(l.Path), Type: l.Type, Mode: l.Mode, Size: l.Size, ModifiedNs: l.Modified,
		ChangedNs: l.Changed, Inode: l.Inode, Target: string(l.Target), Database: l.Database,
	}
}

// AppendJSON appends the entry as JSON, without a newline. It is by hand, as a
// listing has a hundred thousand of them.
func (e *TreeEntry) AppendJSON(b []byte) []byte {
	b = append(b, `{"path":"`...)
	b = base64.StdEncoding.AppendEncode(b, []byte(e.Path))
	b = append(b, `","type":"`...)
	b = append(b, e.Type...) // one of three words
	b = append(b, `","mode":`...)
	b = strconv.AppendUint(b, uint64(e.Mode), 10)
	b = append(b, `,"size":`...)
	b = strconv.AppendInt(b, e.Size, 10)
	b = append(b, `,"mtime":`...)
	b = strconv.AppendInt(b, e.ModifiedNs, 10)
	b = append(b, `,"ctime":`...)
	b = strconv.AppendInt(b, e.ChangedNs, 10)
	b = append(b, `,"inode":`...)
	b = strconv.AppendUint(b, e.Inode, 10)
	if e.Target != "" {
		b = append(b, `,"target":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(e.Target))
		b = append(b, '"')
	}
	if e.Database {
		b = append(b, `,"database":true`...)
	}
	return append(b, '}')
}

// ParseTreeEntry reads what AppendJSON wrote, and checks it as Check does.
func ParseTreeEntry(raw []byte) (TreeEntry, error) {
	var line treeLine
	if err := json.Unmarshal(raw, &line); err != nil {
		return TreeEntry{}, sandbox.Errorf(sandbox.CodeInvalidRequest, "the entry is not the JSON expected").WithCause(err)
	}
	entry := line.entry()
	if err := entry.Check(); err != nil {
		return TreeEntry{}, err
	}
	return entry, nil
}

// Check refuses an entry that cannot be, with invalid_request.
func (e *TreeEntry) Check() error {
	if err := CheckTreePath(e.Path); err != nil {
		return err
	}
	refuse := func(what string) error {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the entry %q %s", show(e.Path), what)
	}
	switch e.Type {
	case TreeFile, TreeDirectory:
		if e.Target != "" {
			return refuse("is no link and has a target")
		}
	case TreeSymlink:
		if e.Target == "" || len(e.Target) >= maxLink || strings.IndexByte(e.Target, 0) >= 0 {
			return refuse("has a target that no link can have")
		}
	default:
		return refuse("has a type that is not known")
	}
	if e.Size < 0 || (e.Size > 0 && e.Type != TreeFile) {
		return refuse("has a size that cannot be")
	}
	if e.Mode > 0o7777 {
		return refuse("has a mode that cannot be")
	}
	return nil
}

// maxLink is Linux's PATH_MAX, which a link's target stays below.
const maxLink = 4096

// CheckTreePath refuses, with invalid_request, a path that is not one below the
// home: empty, absolute, too long or too deep, with NUL, or with an element that
// is empty, ".", ".." or longer than a name can be.
func CheckTreePath(path string) error {
	refuse := func(what string) error {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the path %q %s", show(path), what)
	}
	if len(path) > MaxTreePath {
		return refuse("is too long")
	}
	if strings.IndexByte(path, 0) >= 0 {
		return refuse("has a NUL")
	}
	depth := 0
	for element := range strings.SplitSeq(path, "/") {
		switch {
		case element == "" || element == "." || element == "..":
			return refuse("must be relative to the home, without empty elements, '.' and '..'")
		case len(element) > MaxTreeName:
			return refuse("has an element that is too long")
		}
		depth++
	}
	if depth > MaxTreeDepth {
		return refuse("is too deep")
	}
	return nil
}

// Frame is the kind of a frame. A frame is its kind (one byte), the length of
// its payload (four bytes, big endian, at most MaxFrame) and the payload.
type Frame byte

// The kinds of a frame.
const (
	FramePath  Frame = 'P' // a path
	FrameFile  Frame = 'F' // the FileFrame with which a file begins
	FrameDone  Frame = 'S' // the FileFrame with which it ends: its Size is what was sent
	FrameEntry Frame = 'N' // a TreeEntry as JSON, its times and inode but mtime ignored
	FrameData  Frame = 'D' // bytes
	FrameEnd   Frame = 'E' // the end of the stream, empty
)

// The status of a FileFrame.
const (
	TreeOK      byte = 0
	TreeChanged byte = 1 // it was written, grew or shrank while it was read
	TreeGone    byte = 2 // there is no such file, or something else is there
	TreeFailed  byte = 3 // it cannot be read; Message says why
)

// FileFrame is the payload of FrameFile and FrameDone: the file's index in the
// request (four bytes), its status (one), its size in bytes (eight), and the
// message.
type FileFrame struct {
	Index   uint32
	Status  byte
	Size    int64
	Message string
}

// Append appends the payload.
func (f FileFrame) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, f.Index)
	b = append(b, f.Status)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Size))
	return append(b, f.Message...)
}

// ParseFileFrame reads what Append wrote.
func ParseFileFrame(raw []byte) (FileFrame, error) {
	const fixed = 13
	if len(raw) < fixed {
		return FileFrame{}, errors.New("a file's frame is too short")
	}
	f := FileFrame{
		Index: binary.BigEndian.Uint32(raw), Status: raw[4],
		Size: int64(binary.BigEndian.Uint64(raw[5:])), Message: string(raw[fixed:]),
	}
	if f.Size < 0 || f.Status > TreeFailed {
		return FileFrame{}, errors.New("a file's frame has a size or status that cannot be")
	}
	return f, nil
}

// FrameHeader is how many bytes come before a frame's payload.
const FrameHeader = 5

// PutFrameHeader writes the header of a payload of n bytes to the front of b.
func PutFrameHeader(b []byte, kind Frame, n int) {
	b[0] = byte(kind)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

// WriteFrame writes a frame.
func WriteFrame(w io.Writer, kind Frame, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes", len(payload))
	}
	var header [FrameHeader]byte
	PutFrameHeader(header[:], kind, len(payload))
	if _, err := w.Write(header[:]); err != nil {
		return fmt.Errorf("write a frame: %w", err)
	}
	if _, err := w.Write(payload); err != nil {
		return fmt.Errorf("write a frame: %w", err)
	}
	return nil
}

// ReadFrameHeader reads what precedes a payload, and refuses one that is longer
// than MaxFrame. An end of r is io.ErrUnexpectedEOF, as FrameEnd did not come.
func ReadFrameHeader(r io.Reader) (kind Frame, length int, err error) {
	var header [FrameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, fmt.Errorf("read a frame: %w", err)
	}
	n := binary.BigEndian.Uint32(header[1:])
	if n > MaxFrame {
		return 0, 0, fmt.Errorf("read a frame: %w: %d bytes", errTooMuch, n)
	}
	return Frame(header[0]), int(n), nil
}

// ReadFrame reads a frame, into buf if it is large enough.
func ReadFrame(r io.Reader, buf []byte) (kind Frame, payload []byte, err error) {
	kind, n, err := ReadFrameHeader(r)
	if err != nil {
		return 0, nil, err
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, fmt.Errorf("read a frame: %w", err)
	}
	return kind, buf[:n], nil
}
