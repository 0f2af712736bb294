package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/agentpod/agentpod/container/internal/tree"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// maxTrees bounds what goes on of these routes at once: listings, reads and
	// restores, each holding a few hundred kilobytes.
	maxTrees = 8
	// treeBuffer is how much is gathered before it is sent.
	treeBuffer = 64 << 10
	// restoreStall is how long a restore waits for its next bytes: the gateway
	// may be trying its store again.
	restoreStall = 5 * time.Minute
	lastWords    = time.Second
)

// Tree is the home as snapshots see it. See the package tree.
type Tree interface {
	List(ctx context.Context, live bool, emit func(*guest.TreeEntry) error) (guest.TreeEnd, error)
	Read(ctx context.Context, live bool, paths []string, w io.Writer) error
	Restore(ctx context.Context, r io.Reader) (guest.Restored, error)
}

// live tells whether OpenCode may be writing its database.
func (s *Server) live() bool { return s.OpenCode.Status().State != guest.StateStopped }

func (s *Server) listTree(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(paced{w: w, control: http.NewResponseController(w)}, treeBuffer)
	var line []byte
	end, err := s.Tree.List(r.Context(), s.live(), func(e *guest.TreeEntry) error {
		line = append(e.AppendJSON(line[:0]), '\n')
		_, err := out.Write(line)
		return err
	})
	if err != nil {
		s.Log.InfoContext(r.Context(), "list the home", "error", err)
		end.Error = "sandboxd failed; its log says why"
	}
	raw, err := json.Marshal(end)
	if err == nil {
		_, err = out.Write(append(raw, '\n'))
	}
	if err == nil {
		err = out.Flush()
	}
	return s.sent(err)
}

// sent breaks off an answer that could not be sent whole: its status is gone.
func (s *Server) sent(err error) error {
	if err != nil {
		s.Log.Info("send an answer", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) readTree(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not all writers of tests can
	paths, err := tree.Paths(bufio.NewReader(http.MaxBytesReader(w, r.Body, guest.MaxTreeReadBody)))
	_ = control.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "the body is larger than %d bytes", guest.MaxTreeReadBody)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(paced{w: w, control: control}, treeBuffer)
	err = s.Tree.Read(r.Context(), s.live(), paths, out)
	if err == nil {
		err = out.Flush()
	}
	return s.sent(err)
}

func (s *Server) restoreTree(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	body := bufio.NewReaderSize(&arriving{r: r.Body, control: control}, treeBuffer)
	restored, err := s.Tree.Restore(r.Context(), body)
	if err == nil {
		_, err = body.ReadByte() // the end, so that the connection can be used again
		if err == nil {
			err = sandbox.Errorf(sandbox.CodeInvalidRequest, "the restore goes on after its end")
		}
	}
	if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// A failure is told at once: the rest of the body is not worth reading. But
		// a little of it is, or the answer would be lost in the reset connection.
		w.Header().Set("Connection", "close")
		_ = control.SetReadDeadline(time.Now().Add(lastWords))
		return err
	}
	_ = control.SetReadDeadline(time.Time{})
	s.reply(w, http.StatusOK, restored)
	return nil
}

// arriving reads with a deadline for every piece.
type arriving struct {
	r       io.Reader
	control *http.ResponseController
}

// Read implements io.Reader.
func (a *arriving) Read(p []byte) (int, error) {
	_ = a.control.SetReadDeadline(time.Now().Add(restoreStall)) // not all writers of tests can
	n, err := a.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read from the caller: %w", err)
	}
	return n, err
}
