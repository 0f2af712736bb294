package scriptedmodel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/daemon"
)

// The names that Config gives to provider and models.
const (
	ProviderID = "scripted"
	ModelID    = "echo"
	// SecondModelID is a model that behaves like the first, for whoever needs
	// to tell two models apart.
	SecondModelID = "echo-2"
)

const (
	// DefaultWorkspace is where a relative NAME of a write ends up.
	DefaultWorkspace = "/home/user/workspace"
	// DefaultAPIKey is the key in Config; the server itself accepts any.
	DefaultAPIKey = "scripted"

	maxBody     = 64 << 20
	maxRecords  = 512
	maxRecorded = 16 << 10
	headTimeout = 10 * time.Second
	bodyTimeout = 60 * time.Second
	idleTimeout = 2 * time.Minute
	// writeTimeout bounds one write to a client that does not read.
	writeTimeout = 30 * time.Second
)

// Options are a Server's settings; the zero value is ready to use.
type Options struct {
	// Workspace is the absolute folder that relative names are written to.
	Workspace string
	// APIKey is the key that Config carries, DefaultAPIKey when empty.
	APIKey string
	// Host is what URL names instead of the address listened on, for clients
	// that reach the server by another name. Without a port. Besides this name,
	// requests may name the address listened on and the loopback names only.
	Host string
	// Script, if set, chooses the script for a request instead of its last
	// user message. It must choose the same one for every request of a turn;
	// an empty script means the message after all. Called concurrently.
	Script func(Request) string
	// Logger gets a line for each request, never a key. Nil discards.
	Logger *slog.Logger
}

// Record is what Requests tells of one request.
type Record struct {
	At     time.Time
	Method string
	Path   string
	// Authorization is the header as it came.
	Authorization string
	// SessionID is OpenCode's session, empty when the client sent none.
	SessionID string
	Model     string
	Stream    bool
	Tools     []string
	// Messages counts the messages, ToolResults those tool results among them
	// that came after the last user message.
	Messages    int
	ToolResults int
	// UserMessage is the last user message, cut at 16 KiB.
	UserMessage string
}

// Server is the scripted model. It is an http.Handler of its own and can also
// listen by itself (Start). All methods are safe for concurrent use. Close it.
type Server struct {
	opts Options
	log  *slog.Logger
	mux  *http.ServeMux

	base   context.Context //nolint:containedctx // the server's life, ended by Close
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	handlers sync.WaitGroup // adds happen under mu, so that none follows Close
	http     *http.Server
	url      string
	hosts    daemon.Hosts
	served   chan struct{}
	records  []Record
	failed   onceSet
}

// New makes a server that does not listen yet.
func New(opts Options) *Server {
	if opts.Workspace == "" {
		opts.Workspace = DefaultWorkspace
	}
	if opts.APIKey == "" {
		opts.APIKey = DefaultAPIKey
	}
	s := &Server{opts: opts, log: opts.Logger, mux: http.NewServeMux(), hosts: daemon.NewHosts("", []string{opts.Host})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.base, s.cancel = context.WithCancel(context.Background())
	s.mux.HandleFunc("POST /v1/chat/completions", s.completions)
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.record(r, nil)
		writeError(w, http.StatusNotFound, "no such route: "+r.Method+" "+r.URL.Path)
	})
	return s
}

// Start listens on addr (host:port, port 0 for any) and serves until ctx ends
// or Close is called.
func (s *Server) Start(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for the scripted model: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.http != nil {
		return errors.Join(errors.New("the scripted model is started already or closed"), l.Close())
	}
	s.url = "http://" + publicAddr(l.Addr(), s.opts.Host) + "/v1"
	s.hosts = daemon.NewHosts(l.Addr().String(), []string{addr, s.opts.Host})
	s.served = make(chan struct{})
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return s.base },
	}
	stop := context.AfterFunc(ctx, s.shut)
	go func(srv *http.Server) {
		defer close(s.served)
		defer stop()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.ErrorContext(ctx, "scripted model stopped serving", "error", err)
		}
	}(s.http)
	return nil
}

// publicAddr is addr as clients reach it: with host in place of its host.
func publicAddr(addr net.Addr, host string) string {
	if host == "" {
		return addr.String()
	}
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return net.JoinHostPort(host, port)
}

// URL is the API's base URL, http://HOST:PORT/v1; empty before Start.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.url
}

// Config is the OpenCode configuration (a JSON object) that makes this server
// the default model. Meaningful after Start.
func (s *Server) Config() json.RawMessage { return configFor(s.URL(), s.opts.APIKey) }

func configFor(baseURL, apiKey string) json.RawMessage {
	type object = map[string]any
	options := object{"baseURL": baseURL, "apiKey": apiKey}
	model := func(name string) object {
		return object{
			"name": name, "tool_call": true,
			"limit": object{"context": 200_000, "output": 32_000},
		}
	}
	b, err := json.Marshal(object{
		"model":       ProviderID + "/" + ModelID,
		"small_model": ProviderID + "/" + ModelID,
		"provider": object{ProviderID: object{
			"npm": "@ai-sdk/openai-compatible", "name": "Scripted model", "options": options,
			"models": object{ModelID: model("Scripted"), SecondModelID: model("Scripted, second")},
		}},
	})
	if err != nil {
		panic(err) // maps of strings and numbers always marshal
	}
	return b
}

// Requests returns what arrived, oldest first; of very many, the latest.
func (s *Server) Requests() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Record(nil), s.records...)
}

// Close ends every answer under way, stops listening and waits until all
// handlers have returned. It may be called more than once.
func (s *Server) Close() error {
	s.shut()
	s.mu.Lock()
	served := s.served
	s.mu.Unlock()
	if served != nil {
		<-served
	}
	s.handlers.Wait()
	return nil
}

func (s *Server) shut() {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	srv := s.http
	s.mu.Unlock()
	if srv != nil {
		if err := srv.Close(); err != nil {
			s.log.Debug("closing the scripted model", "error", err)
		}
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		writeError(w, http.StatusServiceUnavailable, "the scripted model is closed")
		return
	}
	s.handlers.Add(1)
	hosts := s.hosts
	s.mu.Unlock()
	defer s.handlers.Done()
	if !hosts.Allow(r.Host) {
		writeError(w, http.StatusForbidden, "this host name is not served here")
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.base, cancel)() //nolint:contextcheck // Close ends the answer too
	s.mux.ServeHTTP(w, r.WithContext(ctx))
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	s.record(r, nil)
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []model{
		{ModelID, "model", 0, ProviderID}, {SecondModelID, "model", 0, ProviderID},
	}})
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	// A handler served by something without deadlines goes without them.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	var req Request
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req)
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		s.record(r, nil)
		writeError(w, http.StatusBadRequest, "the request body is not a chat completion request: "+err.Error())
		return
	}
	req.SessionID = r.Header.Get("X-Session-Id")
	req.Authorization = r.Header.Get("Authorization")
	s.record(r, &req)
	if req.Model != ModelID && req.Model != SecondModelID {
		writeError(w, http.StatusNotFound, fmt.Sprintf("the model %q does not exist", req.Model))
		return
	}
	s.log.InfoContext(r.Context(), "scripted model asked", "session", req.SessionID, "model", req.Model, "messages", len(req.Messages), "tools", len(req.Tools))
	s.reply(r.Context(), newAnswer(w, rc, &req), &req)
}

// reply runs the part of the script that this request is for.
func (s *Server) reply(ctx context.Context, a *answer, req *Request) {
	err := s.play(ctx, a, req)
	switch {
	case err == nil:
		err = a.finish()
	case errors.Is(err, errReplied):
		err = nil
	}
	if err == nil {
		return
	}
	s.log.DebugContext(ctx, "scripted answer broken off", "session", req.SessionID, "error", err)
	if a.started {
		// The one way to end a reply so that the client sees it broken.
		panic(http.ErrAbortHandler)
	}
	if ctx.Err() != nil {
		writeError(a.w, http.StatusServiceUnavailable, "the scripted model is closing")
	}
}

func (s *Server) record(r *http.Request, req *Request) {
	rec := Record{At: time.Now(), Method: r.Method, Path: r.URL.Path, Authorization: r.Header.Get("Authorization")}
	if req != nil {
		rec.SessionID, rec.Model, rec.Stream = req.SessionID, req.Model, req.Stream
		rec.Messages, rec.ToolResults = len(req.Messages), len(req.toolResults())
		rec.UserMessage = cut(req.UserMessage(), maxRecorded)
		for _, t := range req.Tools {
			rec.Tools = append(rec.Tools, t.Function.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == maxRecords {
		s.records = append(s.records[:0], s.records[1:]...)
	}
	s.records = append(s.records, rec)
}

// onceSet remembers a bounded number of keys.
type onceSet struct {
	seen  map[string]bool
	order []string
}

// first reports whether key is new, and remembers it.
func (o *onceSet) first(key string) bool {
	if o.seen == nil {
		o.seen = map[string]bool{}
	}
	if o.seen[key] {
		return false
	}
	if len(o.order) == maxRecords {
		delete(o.seen, o.order[0])
		o.order = append(o.order[:0], o.order[1:]...)
	}
	o.seen[key] = true
	o.order = append(o.order, key)
	return true
}
