package opencode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
)

// What OpenCode does for the first time it does slowly: the first turn takes
// seconds, and the first one in a folder a second. A turn warms the process, and
// asking for what a turn needs warms a folder. Nothing but a config that names a
// model of sandboxd's own keeps that turn from a real one, so it is taken in a
// folder of its own, before the workspace's config is there.

// The stub's provider and its model. No config but stubModel's names them.
const (
	stubProvider = "agentpod-warm-up"
	stubName     = "none"
	warmTitle    = "warm-up"
)

// stubModel is an OpenAI-compatible model on a loopback port that says one word.
type stubModel struct {
	url    string
	calls  atomic.Int64
	server *http.Server
	served sync.WaitGroup
}

func startStubModel(ctx context.Context) (*stubModel, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("bind a port: %w", err)
	}
	m := &stubModel{url: "http://" + listener.Addr().String() + "/v1"}
	m.server = &http.Server{
		Handler: http.HandlerFunc(m.answer), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	m.served.Go(func() { _ = m.server.Serve(listener) }) // it always ends with an error: that of being closed
	return m, nil
}

func (m *stubModel) close() {
	_ = m.server.Close() // nobody reads any more
	m.served.Wait()
}

// config has this model only, for whatever OpenCode wants a model for.
func (m *stubModel) config() guest.Config {
	type object = map[string]any
	raw, err := json.Marshal(object{
		"model": stubProvider + "/" + stubName, "small_model": stubProvider + "/" + stubName,
		"enabled_providers": []string{stubProvider},
		"provider": object{stubProvider: object{
			"npm": "@ai-sdk/openai-compatible", "options": object{"baseURL": m.url, "apiKey": stubName},
			"models": object{stubName: object{"tool_call": true, "limit": object{"context": 100_000, "output": 10_000}}},
		}},
	})
	if err != nil {
		panic(err) // maps of strings and numbers always marshal
	}
	return guest.Config{OpenCode: raw}
}

func (m *stubModel) answer(w http.ResponseWriter, r *http.Request) {
	m.calls.Add(1)
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxAnswer))
	const chunk = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"none","choices":[{"index":0,"delta":%s,"finish_reason":%s}]}` + "\n\n"
	w.Header().Set("Content-Type", "text/event-stream")
	// A caller that has left is none of the model's business.
	_, _ = fmt.Fprintf(w, chunk, `{"role":"assistant","content":"ok"}`, "null")
	_, _ = fmt.Fprintf(w, chunk, `{}`, `"stop"`)
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// rehearse has OpenCode take a turn with the stub's model, in a folder that is
// gone afterwards.
func (s *Supervisor) rehearse(ctx context.Context, r *run, model *stubModel) error {
	folder := s.set.ConfigDir + "-warm-up"
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(folder); err != nil {
			s.set.Log.WarnContext(ctx, "remove the folder of the warm-up", "error", err)
		}
	}()
	session, err := r.api.createSession(ctx, folder, warmTitle)
	if err != nil {
		return err
	}
	turn := message{Model: &modelName{stubProvider, stubName}, Parts: []textPart{{Type: "text", Text: warmTitle}}}
	if err := r.api.send(ctx, folder, session, turn); err != nil {
		return err
	}
	if model.calls.Load() == 0 {
		return errors.New("the turn did not reach its model")
	}
	if err := r.api.deleteSession(ctx, folder, session); err != nil {
		return err
	}
	return r.api.forget(ctx, folder)
}

// acquaint has a warm OpenCode, that nobody uses yet, read the workspace and its
// config, and take a message that asks no model.
func (s *Supervisor) acquaint(ctx context.Context, r *run) error {
	s.peruse(ctx, r)
	session, err := r.api.createSession(ctx, "", warmTitle)
	if err != nil {
		return opencodeDown("warm up the workspace", err)
	}
	if err := r.api.send(ctx, "", session, message{NoReply: true, Parts: []textPart{{Type: "text", Text: warmTitle}}}); err != nil {
		s.set.Log.DebugContext(ctx, "try a message", "error", err) // such as for want of any model
	}
	if err := r.api.deleteSession(ctx, "", session); err != nil {
		return opencodeDown("remove the session of the warm-up", err)
	}
	return nil
}

// OpenCode writes its log in batches, some of a second after what they tell of. Once
// it has not grown for logQuiet there is none to come.
const (
	logQuiet      = 2 * time.Second
	logLookEvery  = 100 * time.Millisecond
	logWaitsAtAll = 30 * time.Second
)

// cover removes what the warm-up left in OpenCode's database and log, which OpenCode
// goes on with.
func (s *Supervisor) cover(ctx context.Context) error {
	if err := s.set.Compact(ctx); err != nil {
		return internal("remove what the warm-up left", err)
	}
	const logs = ".local/share/opencode/log"
	dir, err := s.home.OpenRoot(logs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return internal("open the folder of OpenCode's logs", err)
	}
	defer dir.Close()
	if err := awaitQuiet(ctx, dir); err != nil {
		return internal("wait for OpenCode's log", err)
	}
	err = eachFile(dir, func(name string, _ int64) error {
		f, err := dir.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return fmt.Errorf("open it: %w", err)
		}
		return f.Close()
	})
	if err != nil {
		return internal("empty OpenCode's log", err)
	}
	return nil
}

// awaitQuiet waits until no file of the folder grows any more.
func awaitQuiet(ctx context.Context, dir *os.Root) error {
	ctx, cancel := context.WithTimeout(ctx, logWaitsAtAll)
	defer cancel()
	look := time.NewTicker(logLookEvery)
	defer look.Stop()
	last, since := int64(-1), time.Now()
	for {
		var size int64
		if err := eachFile(dir, func(_ string, n int64) error { size += n; return nil }); err != nil {
			return err
		}
		if size != last {
			last, since = size, time.Now()
		}
		if time.Since(since) >= logQuiet {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("it grows and grows: %w", ctx.Err())
		}
	}
}

// eachFile calls fn for each file of the folder, with its size.
func eachFile(dir *os.Root, fn func(name string, size int64) error) error {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folder: %w", err)
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("look at a file: %w", err)
		}
		if err := fn(entry.Name(), info.Size()); err != nil {
			return err
		}
	}
	return nil
}

// perusal is what has OpenCode read all that a turn needs, and changes nothing.
// The terminals and the files are behind what a turn's first step waits for
// longest.
//
//nolint:gochecknoglobals // a constant list
var perusal = []string{"/config/providers", "/agent", "/command", "/pty", "/file?path=.", "/experimental/tool/ids"}

// peruse has OpenCode read the workspace's config. What fails, fails a turn too
// and is told there.
func (s *Supervisor) peruse(ctx context.Context, r *run) {
	for _, path := range perusal {
		if err := r.api.visit(ctx, path); err != nil {
			s.set.Log.DebugContext(ctx, "have OpenCode read ahead", "path", path, "error", err)
		}
	}
}

// keepWarm has OpenCode read its config whenever it has forgotten it, ahead of
// the turn that would have to wait for that. A turn that comes meanwhile waits
// for the same reading, not for this.
func (s *Supervisor) keepWarm(ctx context.Context, r *run) {
	for {
		select {
		case <-r.cooled:
			s.peruse(ctx, r)
		case <-ctx.Done():
			return
		}
	}
}
