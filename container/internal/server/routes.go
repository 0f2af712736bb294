package server

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/agentpod/agentpod/container/internal/command"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	reasons := s.OpenCode.Busy(r.Context())
	s.reply(w, http.StatusOK, guest.Status{
		OpenCode:      s.OpenCode.Status(),
		Busy:          len(reasons) > 0,
		Reasons:       reasons,
		PendingConfig: s.OpenCode.PendingConfig(),
	})
	return nil
}

func (s *Server) openCode(w http.ResponseWriter, _ *http.Request) error {
	s.reply(w, http.StatusOK, s.OpenCode.Status())
	return nil
}

func (s *Server) start(w http.ResponseWriter, r *http.Request) error {
	var req guest.StartRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := lasting(r, startTimeout)
	defer cancel()
	applied, err := s.OpenCode.Start(ctx, req)
	if err != nil {
		return err
	}
	s.applied(w, applied)
	return nil
}

func (s *Server) config(w http.ResponseWriter, r *http.Request) error {
	var cfg guest.Config
	if err := readJSON(w, r, &cfg); err != nil {
		return err
	}
	ctx, cancel := lasting(r, configTimeout)
	defer cancel()
	applied, err := s.OpenCode.Configure(ctx, cfg)
	if err != nil {
		return err
	}
	s.applied(w, applied)
	return nil
}

func (s *Server) applied(w http.ResponseWriter, applied guest.Applied) {
	status := http.StatusOK
	if applied.Pending {
		status = http.StatusAccepted
	}
	s.reply(w, status, applied)
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) error {
	var req guest.StopRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	grace := guest.DefaultStopGrace
	if req.GraceMs > 0 {
		grace = time.Duration(min(req.GraceMs, maxGrace.Milliseconds())) * time.Millisecond
	}
	ctx, cancel := lasting(r, stopTimeout)
	defer cancel()
	err := s.OpenCode.Stop(ctx, grace)
	// What ran may have touched the mark last, and a stop of the container follows.
	s.Mark.Renew()
	if err != nil {
		return err
	}
	return s.status(w, r)
}

func (s *Server) mark(w http.ResponseWriter, _ *http.Request) error {
	status, err := s.Mark.Status()
	if err != nil {
		return err
	}
	s.reply(w, http.StatusOK, status)
	return nil
}

func (s *Server) giveMark(w http.ResponseWriter, r *http.Request) error {
	var mark guest.Mark
	if err := readJSON(w, r, &mark); err != nil {
		return err
	}
	if err := s.Mark.Give(mark); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	var req guest.ExecRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := command.Check(req); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := paced{w: w, control: http.NewResponseController(w)}
	_ = out.control.Flush() // a first event may be long in coming
	s.Commands.Run(r.Context(), req, func(event guest.ExecEvent) error {
		line, err := json.Marshal(event)
		if err != nil {
			return fmt.Errorf("encode an event: %w", err)
		}
		if _, err := out.Write(append(line, '\n')); err != nil {
			return err
		}
		return out.control.Flush()
	})
	return nil
}

// paced writes with a deadline on every piece, so that a reader that stopped
// reading does not hold a command or a file for ever.
type paced struct {
	w       io.Writer
	control *http.ResponseController
}

// Write implements io.Writer.
func (p paced) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not all writers of tests can
	n, err := p.w.Write(b)
	if err != nil {
		return n, fmt.Errorf("write to the caller: %w", err)
	}
	return n, nil
}

func (s *Server) readFile(w http.ResponseWriter, r *http.Request) error {
	file, listing, err := s.Files.OpenFile(r.URL.Query().Get(guest.PathQuery))
	if err != nil {
		return err
	}
	if listing != nil {
		w.Header().Set(guest.TypeHeader, "directory")
		s.reply(w, http.StatusOK, listing)
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	w.Header().Set(guest.TypeHeader, "file")
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	out := paced{w: w, control: http.NewResponseController(w)}
	if _, err := io.CopyN(out, file, info.Size()); err != nil {
		// The size has been promised: only breaking off tells the reader.
		s.Log.InfoContext(r.Context(), "send a file", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) error {
	mode := fs.FileMode(0o644)
	if text := r.URL.Query().Get(guest.ModeQuery); text != "" {
		bits, err := strconv.ParseUint(text, 8, 16)
		if err != nil || bits > 0o777 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "the mode must be octal permission bits, such as 644")
		}
		mode = fs.FileMode(bits)
	}
	if err := s.Files.Write(r.URL.Query().Get(guest.PathQuery), mode, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request) error {
	if err := s.Files.Remove(r.URL.Query().Get(guest.PathQuery)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
