package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// What ReadTree's reader says of one file; the others are not affected.
var (
	// ErrTreeChanged means that the file was written, grew or shrank meanwhile.
	ErrTreeChanged = errors.New("the file changed while it was read")
	// ErrTreeGone means that no such file is there any more.
	ErrTreeGone = errors.New("the file is gone")
	// ErrTreeFailed means that the file cannot be read.
	ErrTreeFailed = errors.New("the file cannot be read")
)

const (
	// treeTimeout is for calls whose context has no deadline.
	treeTimeout = 30 * time.Minute
	// treeLineMean bounds how long the lines of a listing are on average.
	treeLineMean = 4 << 10
	treeBuffer   = 256 << 10
	treePiece    = 128 << 10
	maxReasonLen = 64
)

// Tree lists the home and calls fn for every entry, which has passed Check; an
// error of fn ends the listing and is returned as it is. More than maxEntries
// are refused. That a folder comes before what is in it, and each path once,
// is the guest's word alone.
func (c *Client) Tree(ctx context.Context, maxEntries int64, fn func(TreeEntry) error) (TreeEnd, error) {
	ctx, cancel := withDefault(ctx, treeTimeout)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, RouteTree, nil, -1, "")
	if err != nil {
		return TreeEnd{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return TreeEnd{}, replyError(ctx, resp)
	}
	maxEntries = max(0, min(maxEntries, maxOutput/treeLineMean))
	lines := bufio.NewScanner(&boundedReader{r: resp.Body, left: maxEntries*treeLineMean + 2*MaxTreeLine})
	lines.Buffer(make([]byte, 0, 64<<10), MaxTreeLine)
	for got := int64(0); lines.Scan(); got++ {
		var line treeLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			if lines.Err() != nil {
				break // the rest of a line that was broken off
			}
			return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent an entry that is not JSON").WithCause(err)
		}
		if line.End {
			return line.ended(got)
		}
		if got == maxEntries {
			return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox lists more than %d files and folders", maxEntries)
		}
		entry := line.entry()
		if err := entry.Check(); err != nil {
			return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox lists what cannot be: %s", printable.Line(err.Error(), maxMessage)).WithCause(err)
		}
		if err := fn(entry); err != nil {
			return TreeEnd{}, err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, errTooMuch), errors.Is(err, bufio.ErrTooLong):
		return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's listing is too long").WithCause(err)
	case err != nil:
		return TreeEnd{}, failure(ctx, "the sandbox broke off the listing", err)
	default:
		return TreeEnd{}, failure(ctx, "the sandbox broke off the listing", io.ErrUnexpectedEOF)
	}
}

func (l *treeLine) ended(got int64) (TreeEnd, error) {
	end := l.TreeEnd
	if end.Error != "" {
		return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox could not list its files: %s", printable.Line(end.Error, maxMessage))
	}
	if end.Entries != got || end.Skipped < 0 {
		return TreeEnd{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's listing is not whole")
	}
	reasons := make(map[string]int64)
	for reason, n := range end.Reasons {
		if len(reasons) < maxReasons && n > 0 {
			reasons[printable.Line(reason, maxReasonLen)] = n
		}
	}
	end.Reasons = reasons
	return end, nil
}

// ReadTree reads files and calls fn for each, in the order of paths, with the
// size that the guest promises: r gives exactly as many bytes and io.EOF, or
// fails with ErrTreeChanged, ErrTreeGone or ErrTreeFailed (then size is 0), which
// fn may take note of and go on. What fn does not read is skipped. Any other
// error ends it, as does one of fn, which is returned as it is. Files with
// together more than maxBytes are refused.
func (c *Client) ReadTree(ctx context.Context, paths []string, maxBytes int64, fn func(path string, size int64, r io.Reader) error) error {
	ctx, cancel := withDefault(ctx, treeTimeout)
	defer cancel()
	for len(paths) > 0 {
		var body bytes.Buffer
		n := 0
		for ; n < min(len(paths), MaxTreeReads) && body.Len()+FrameHeader*2+len(paths[n]) <= MaxTreeReadBody; n++ {
			if err := CheckTreePath(paths[n]); err != nil {
				return err
			}
			if err := WriteFrame(&body, FramePath, []byte(paths[n])); err != nil {
				return err
			}
		}
		if err := WriteFrame(&body, FrameEnd, nil); err != nil {
			return err
		}
		left, err := c.readBatch(ctx, paths[:n], &body, maxBytes, fn)
		if err != nil {
			return err
		}
		maxBytes, paths = left, paths[n:]
	}
	return nil
}

func (c *Client) readBatch(ctx context.Context, paths []string, body *bytes.Buffer, maxBytes int64, fn func(string, int64, io.Reader) error) (left int64, err error) {
	resp, err := c.send(ctx, http.MethodPost, RouteTreeRead, body, int64(body.Len()), "application/octet-stream")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, replyError(ctx, resp)
	}
	frames := bufio.NewReaderSize(resp.Body, treeBuffer)
	for i, path := range paths {
		first, err := fileFrame(ctx, frames, FrameFile, i)
		if err != nil {
			return 0, err
		}
		file := &treeFile{ctx: ctx, r: frames, index: i}
		switch {
		case first.Status != TreeOK:
			first.Size = 0
			file.result = statusError(first)
		case first.Size > maxBytes:
			return 0, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox's files have more bytes than expected")
		default:
			maxBytes -= first.Size
			file.left = first.Size
		}
		if err := fn(path, first.Size, file); err != nil {
			return 0, err
		}
		if err := file.finish(); err != nil {
			return 0, err
		}
	}
	if kind, _, err := ReadFrameHeader(frames); err != nil {
		return 0, failure(ctx, "the sandbox broke off its files", err)
	} else if kind != FrameEnd {
		return 0, badFrames("more than was asked for")
	}
	return maxBytes, nil
}

func badFrames(what string) error {
	return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent files that cannot be: %s", what)
}

func statusError(f FileFrame) error {
	switch f.Status {
	case TreeChanged:
		return ErrTreeChanged
	case TreeGone:
		return ErrTreeGone
	default:
		return fmt.Errorf("%w: %s", ErrTreeFailed, printable.Line(f.Message, maxMessage))
	}
}

// fileFrame reads the frame of a file that has to come next.
func fileFrame(ctx context.Context, r io.Reader, want Frame, index int) (FileFrame, error) {
	kind, n, err := ReadFrameHeader(r)
	if err != nil {
		return FileFrame{}, failure(ctx, "the sandbox broke off its files", err)
	}
	if kind != want {
		return FileFrame{}, badFrames("not the frame expected")
	}
	return fileFrameOf(ctx, r, n, index)
}

func fileFrameOf(ctx context.Context, r io.Reader, n, index int) (FileFrame, error) {
	if n > maxMessage {
		return FileFrame{}, badFrames("a long message")
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return FileFrame{}, failure(ctx, "the sandbox broke off its files", err)
	}
	f, err := ParseFileFrame(raw)
	if err != nil || int64(f.Index) != int64(index) {
		return FileFrame{}, badFrames("not the file expected")
	}
	return f, nil
}

// treeFile is a file on its way.
type treeFile struct {
	ctx    context.Context //nolint:containedctx // the deadline of the transfer that this is
	r      io.Reader
	index  int
	left   int64 // of what was promised
	frame  int   // of the frame at hand
	result error // once it has ended
}

// Read implements io.Reader.
func (f *treeFile) Read(p []byte) (int, error) {
	for f.result == nil && f.frame == 0 {
		f.result = f.next()
	}
	if f.result != nil {
		return 0, f.result
	}
	if len(p) > f.frame {
		p = p[:f.frame]
	}
	n, err := f.r.Read(p)
	f.frame -= n
	f.left -= int64(n)
	if err != nil {
		f.result = failure(f.ctx, "the sandbox broke off a file", err)
		return n, f.result
	}
	return n, nil
}

func (f *treeFile) next() error {
	kind, n, err := ReadFrameHeader(f.r)
	if err != nil {
		return failure(f.ctx, "the sandbox broke off a file", err)
	}
	switch kind {
	case FrameData:
		if n == 0 || int64(n) > f.left {
			return badFrames("other bytes than promised")
		}
		f.frame = n
		return nil
	case FrameDone:
		done, err := fileFrameOf(f.ctx, f.r, n, f.index)
		switch {
		case err != nil:
			return err
		case done.Status != TreeOK:
			return statusError(done)
		case f.left != 0:
			return badFrames("fewer bytes than promised")
		default:
			return io.EOF
		}
	default:
		return badFrames("not the frame expected")
	}
}

// finish skips what was not read; what concerns this file alone is no error.
func (f *treeFile) finish() error {
	if f.result == nil {
		_, _ = io.Copy(io.Discard, f) // result says how it went
	}
	if f.result == nil || errors.Is(f.result, io.EOF) && !errors.Is(f.result, io.ErrUnexpectedEOF) {
		return nil
	}
	if errors.Is(f.result, ErrTreeChanged) || errors.Is(f.result, ErrTreeGone) || errors.Is(f.result, ErrTreeFailed) {
		return nil
	}
	return f.result
}

// RestoreEntry is what RestoreTree writes. Content is for a file: exactly Size
// bytes. It is read before the next entry is asked for.
type RestoreEntry struct {
	TreeEntry
	Content io.Reader
}

// sourceError is one of whoever provides the entries.
type sourceError struct{ error }

// Unwrap implements what errors.Is asks for.
func (e sourceError) Unwrap() error { return e.error }

// RestoreTree writes entries to the home, a folder before what is in it. An
// error of entries or of a Content ends it and is returned as it is; both have
// to end when ctx does, as this waits for them. entries is used by another
// goroutine, but never after the return. A failure leaves what was written; it
// may be repeated.
func (c *Client) RestoreTree(ctx context.Context, entries iter.Seq2[RestoreEntry, error]) (Restored, error) {
	ctx, cancel := withDefault(ctx, treeTimeout)
	defer cancel()
	read, write := io.Pipe()
	var sent Restored
	produced := make(chan error, 1)
	go func() {
		err := writeEntries(write, entries, &sent)
		_ = write.CloseWithError(err) // never fails
		produced <- err
	}()
	resp, err := c.send(ctx, http.MethodPost, RouteTreeRestore, read, -1, "application/octet-stream")
	var restored Restored
	if err == nil {
		err = finish(ctx, resp, &restored)
	}
	_ = read.CloseWithError(io.ErrClosedPipe) // never fails
	sendErr := <-produced
	if source, ok := errors.AsType[sourceError](sendErr); ok {
		return Restored{}, source.error
	}
	switch {
	case err != nil:
		return Restored{}, err
	case sendErr != nil || restored != sent:
		return Restored{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox did not restore what it was sent").WithCause(sendErr)
	default:
		return restored, nil
	}
}

func writeEntries(w io.Writer, entries iter.Seq2[RestoreEntry, error], sent *Restored) error {
	out := bufio.NewWriterSize(w, treeBuffer)
	buf := make([]byte, FrameHeader+treePiece)
	for entry, err := range entries {
		if err != nil {
			return sourceError{err}
		}
		if err := entry.Check(); err != nil {
			return sourceError{err}
		}
		switch entry.Type {
		case TreeDirectory:
			sent.Directories++
		case TreeSymlink:
			sent.Symlinks++
		default:
			sent.Files++
			sent.Bytes += entry.Size
		}
		if err := WriteFrame(out, FrameEntry, entry.AppendJSON(nil)); err != nil {
			return err
		}
		if err := writeContent(out, &entry, buf); err != nil {
			return err
		}
	}
	if err := WriteFrame(out, FrameEnd, nil); err != nil {
		return err
	}
	return out.Flush()
}

func writeContent(out io.Writer, entry *RestoreEntry, buf []byte) error {
	for left := entry.Size; left > 0; {
		n := int(min(left, treePiece))
		if _, err := io.ReadFull(entry.Content, buf[FrameHeader:FrameHeader+n]); err != nil {
			return sourceError{fmt.Errorf("read the content of %s: %w", strconv.QuoteToASCII(show(entry.Path)), err)}
		}
		PutFrameHeader(buf, FrameData, n)
		if _, err := out.Write(buf[:FrameHeader+n]); err != nil {
			return fmt.Errorf("send a file: %w", err)
		}
		left -= int64(n)
	}
	return nil
}
