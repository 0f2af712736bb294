// Command standin takes OpenCode's place in a sandbox: it boots at once, and keeps
// sessions and messages in a file below the home, each on the disk before it is
// answered for. A message is a small script:
//
//	say TEXT            answer TEXT
//	chunks N DELAY      answer N chunks, DELAY apart, each an event
//	wait DURATION       answer "waited" after it
//	write NAME: TEXT    write a file in the workspace, then answer "wrote NAME"
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

type object = map[string]any

// message is one message of a session, as OpenCode shows it.
type message struct {
	Info  object   `json:"info"`
	Parts []object `json:"parts"`
}

// entry is a line of the file: a session, or a message of one.
type entry struct {
	Session string   `json:"session"`
	Message *message `json:"message,omitempty"`
	Deleted bool     `json:"deleted,omitempty"`
}

// server holds all sessions; mu guards everything but the fixed fields.
type server struct {
	password string

	mu       sync.Mutex
	file     *os.File
	sessions map[string][]*message
	busy     map[string]context.CancelFunc
	readers  map[chan []byte]bool
}

func main() {
	s := &server{
		password: os.Getenv("OPENCODE_SERVER_PASSWORD"),
		sessions: map[string][]*message{}, busy: map[string]context.CancelFunc{}, readers: map[chan []byte]bool{},
	}
	if err := s.open(filepath.Join(os.Getenv("HOME"), ".local", "share", "opencode", "storage", "standin.jsonl")); err != nil {
		panic(err)
	}
	// Called as: serve --hostname HOST --port PORT.
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(os.Args[3], os.Args[5]))
	if err != nil {
		panic(err)
	}
	panic((&http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second}).Serve(listener))
}

// open reads what was kept. A line that a kill cut off is none.
func (s *server) open(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the folder: %w", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the sessions: %w", err)
	}
	whole := raw[:strings.LastIndexByte(string(raw), '\n')+1]
	lines := bufio.NewScanner(strings.NewReader(string(whole)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("the sessions are damaged: %w", err)
		}
		s.apply(e)
	}
	if s.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("opening the sessions: %w", err)
	}
	if len(whole) < len(raw) {
		if err := s.file.Truncate(int64(len(whole))); err != nil {
			return fmt.Errorf("cutting half a line off: %w", err)
		}
	}
	return nil
}

func (s *server) apply(e entry) {
	switch {
	case e.Deleted:
		delete(s.sessions, e.Session)
	case e.Message == nil:
		s.sessions[e.Session] = []*message{}
	default:
		list := s.sessions[e.Session]
		if at := slices.IndexFunc(list, func(m *message) bool { return m.Info["id"] == e.Message.Info["id"] }); at >= 0 {
			list[at] = e.Message
			return
		}
		s.sessions[e.Session] = append(list, e.Message)
	}
}

// keep writes an entry to the disk and applies it.
func (s *server) keep(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding an entry: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing an entry: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("writing an entry: %w", err)
	}
	s.apply(e)
	return nil
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if _, password, _ := r.BasicAuth(); password != s.password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/global/health" || r.URL.Path == "/api/health":
		answer(w, object{"healthy": true, "version": "0.0.0-standin"})
	case r.URL.Path == "/event" || r.URL.Path == "/global/event":
		s.events(w, r)
	case r.URL.Path == "/pty" || r.URL.Path == "/permission" || r.URL.Path == "/question":
		answer(w, []object{})
	case r.URL.Path == "/agent":
		answer(w, []object{{"name": "build", "mode": "primary"}})
	case r.URL.Path == "/config/providers":
		answer(w, object{"providers": []object{}})
	case r.URL.Path == "/session/status":
		s.status(w)
	case r.URL.Path == "/session" && r.Method == http.MethodPost:
		id := "ses_" + rand.Text()
		if err := s.keep(entry{Session: id}); err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		answer(w, object{"id": id})
	case parts[0] == "session" && len(parts) >= 2:
		s.session(w, r, parts[1], strings.Join(parts[2:], "/"))
	default:
		answer(w, object{})
	}
}

func (s *server) session(w http.ResponseWriter, r *http.Request, id, below string) {
	s.mu.Lock()
	list, known := s.sessions[id]
	list = slices.Clone(list)
	s.mu.Unlock()
	if !known {
		fail(w, http.StatusNotFound, "no such session")
		return
	}
	switch {
	case below == "" && r.Method == http.MethodDelete:
		_ = s.keep(entry{Session: id, Deleted: true}) // a session that stays is no harm
		answer(w, true)
	case below == "":
		answer(w, object{"id": id})
	case below == "message" && r.Method == http.MethodGet:
		answer(w, list)
	case below == "message":
		s.message(w, r, id)
	case below == "prompt_async":
		go s.message(nil, r.Clone(context.WithoutCancel(r.Context())), id)
		w.WriteHeader(http.StatusNoContent)
	case below == "abort":
		s.mu.Lock()
		if cancel := s.busy[id]; cancel != nil {
			cancel()
		}
		s.mu.Unlock()
		answer(w, true)
	default:
		answer(w, object{})
	}
}

// message takes a turn. It goes on when the caller leaves, as OpenCode's does.
func (s *server) message(w http.ResponseWriter, r *http.Request, session string) {
	var in struct {
		NoReply bool
		Model   struct{ ProviderID string }
		Parts   []struct{ Text string }
	}
	raw, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(raw, &in)
	}
	if err != nil || len(in.Parts) == 0 {
		fail(w, http.StatusBadRequest, "no message")
		return
	}
	text := in.Parts[0].Text
	user := &message{
		Info:  object{"id": "msg_" + rand.Text(), "sessionID": session, "role": "user"},
		Parts: []object{{"id": "prt_" + rand.Text(), "sessionID": session, "type": "text", "text": text}},
	}
	if err := s.keep(entry{session, user, false}); err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	if in.NoReply {
		answer(w, user)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	s.busy[session] = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.busy, session)
		s.mu.Unlock()
		s.emit("session.idle", object{"sessionID": session})
	}()
	if in.Model.ProviderID != "" {
		askModels(ctx)
	}
	reply := s.turn(ctx, session, user, text)
	if err := s.keep(entry{session, reply, false}); err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.emit("message.updated", object{"info": reply.Info})
	answer(w, reply)
}

// turn plays a script and returns the agent's message.
func (s *server) turn(ctx context.Context, session string, user *message, text string) *message {
	reply := &message{Info: object{"id": "msg_" + rand.Text(), "parentID": user.Info["id"], "sessionID": session, "role": "assistant"}}
	part := object{"id": "prt_" + rand.Text(), "sessionID": session, "messageID": reply.Info["id"], "type": "text", "text": ""}
	s.emit("message.updated", object{"info": reply.Info})
	said := ""
	say := func(more string) {
		said += more
		part["text"] = said
		s.emit("message.part.updated", object{"part": part})
	}
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "chunks":
		number, delay, _ := strings.Cut(rest, " ")
		n, _ := strconv.Atoi(number)
		every, _ := time.ParseDuration(delay)
		for i := range n {
			if i > 0 {
				if !pause(ctx, every) {
					break
				}
				say("\n")
			}
			say(fmt.Sprintf("chunk %d", i+1))
		}
	case "wait":
		d, _ := time.ParseDuration(rest)
		pause(ctx, d)
		say("waited")
	case "write":
		name, content, _ := strings.Cut(rest, ": ")
		if err := write(filepath.Join(os.Getenv("HOME"), "workspace", name), content); err != nil {
			say("failed: " + err.Error())
			break
		}
		say("wrote " + name)
	default:
		say(strings.TrimPrefix(text, "say "))
	}
	if ctx.Err() == nil {
		reply.Info["finish"] = "stop"
	}
	reply.Parts = []object{{"id": part["id"], "sessionID": session, "messageID": reply.Info["id"], "type": "text", "text": said}}
	return reply
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func write(name, content string) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *server) status(w http.ResponseWriter) {
	all := object{}
	s.mu.Lock()
	for id := range s.busy {
		all[id] = object{"type": "busy"}
	}
	s.mu.Unlock()
	answer(w, all)
}

// emit sends an event to all readers. One that does not keep up is let go.
func (s *server) emit(kind string, properties object) {
	raw, err := json.Marshal(object{"type": kind, "properties": properties})
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for reader := range s.readers {
		select {
		case reader <- raw:
		default:
			delete(s.readers, reader)
			close(reader)
		}
	}
}

func (s *server) events(w http.ResponseWriter, r *http.Request) {
	events := make(chan []byte, 1024)
	s.mu.Lock()
	s.readers[events] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.readers, events)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	beat := time.NewTicker(10 * time.Second)
	defer beat.Stop()
	next := []byte(`{"type":"server.connected","properties":{}}`)
	for {
		if _, err := fmt.Fprintf(w, "data: %s\n\n", next); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		var open bool
		select {
		case next, open = <-events:
			if !open {
				return
			}
		case <-beat.C:
			next = []byte(`{"type":"server.heartbeat","properties":{}}`)
		case <-r.Context().Done():
			return
		}
	}
}

func answer(w http.ResponseWriter, body any) {
	if w == nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the caller may have left
}

func fail(w http.ResponseWriter, status int, text string) {
	if w == nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object{"name": "NotFoundError", "data": object{"message": text}})
}

// askModels asks each model that the config has an address of, as a turn would.
func askModels(ctx context.Context) {
	raw, err := os.ReadFile(filepath.Join(os.Getenv("OPENCODE_CONFIG_DIR"), "opencode.json"))
	if err != nil {
		return // there is no config
	}
	var config struct {
		Provider map[string]struct{ Options struct{ BaseURL string } }
	}
	if json.Unmarshal(raw, &config) != nil {
		return
	}
	for _, p := range config.Provider {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Options.BaseURL+"/chat/completions", strings.NewReader("{}"))
		if err != nil {
			continue
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}
}
