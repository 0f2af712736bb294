// Package server serves the routes of shared/guest.
package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Bounds of requests.
const (
	maxJSON       = 32 << 20
	bodyTimeout   = 60 * time.Second  // for a JSON body to arrive
	writeTimeout  = 60 * time.Second  // for a piece of a stream to be taken
	configTimeout = 60 * time.Second  // for a config to be applied
	startTimeout  = 11 * time.Minute  // beyond what a start request may ask for
	stopTimeout   = 2 * time.Minute   // beyond any grace
	maxGrace      = 60 * time.Second  //
	headerTimeout = 10 * time.Second  //
	idleTimeout   = 120 * time.Second //
	maxHeader     = 64 << 10

	// What goes on at once. A file's bytes hold a thread while they are on their
	// way to or from the disk, so maxFiles is less than what main reserves.
	maxExecs = 64
	maxFiles = 32
)

// OpenCode is what the server needs of OpenCode's supervisor. Errors are
// *sandbox.Error.
type OpenCode interface {
	Start(ctx context.Context, req guest.StartRequest) (guest.Applied, error)
	Configure(ctx context.Context, cfg guest.Config) (guest.Applied, error)
	Stop(ctx context.Context, grace time.Duration) error
	Status() guest.OpenCode
	PendingConfig() bool
	Busy(ctx context.Context) []string
}

// Commands runs commands; emit is never called concurrently.
type Commands interface {
	Run(ctx context.Context, req guest.ExecRequest, emit func(guest.ExecEvent) error)
}

// Files is the home. Errors are *sandbox.Error.
type Files interface {
	OpenFile(name string) (*os.File, *guest.Listing, error)
	Write(name string, mode fs.FileMode, content io.Reader) error
	Remove(name string) error
}

// Mark is the mark of the disk. Errors are *sandbox.Error. See the package mark.
type Mark interface {
	Status() (guest.MarkStatus, error)
	Give(mark guest.Mark) error
	Renew()
}

// Server is the handler. All fields are required.
type Server struct {
	OpenCode OpenCode
	Commands Commands
	Files    Files
	Tree     Tree
	Mark     Mark
	// Token is the SHA-256 of the token that every request has to carry.
	Token [sha256.Size]byte
	Log   *slog.Logger
}

// ParseTokenHash reads the value of guest.TokenHashEnv: 64 hex digits.
func ParseTokenHash(text string) (hash [sha256.Size]byte, err error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(hash) {
		return hash, fmt.Errorf("%s must be the SHA-256 of the token, %d hex digits, such as the output of: printf TOKEN | sha256sum", guest.TokenHashEnv, 2*len(hash))
	}
	return [sha256.Size]byte(raw), nil
}

// HTTP returns an http.Server with limits that suit this handler.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// handler answers, or returns an error before it has written anything.
type handler func(w http.ResponseWriter, r *http.Request) error

// Handler returns the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	execs, transfers := make(chan struct{}, maxExecs), make(chan struct{}, maxFiles)
	trees := make(chan struct{}, maxTrees)
	routes := []struct {
		method, path string
		handle       handler
	}{
		{http.MethodGet, guest.RouteStatus, s.status},
		{http.MethodGet, guest.RouteOpenCode, s.openCode},
		{http.MethodPost, guest.RouteStart, s.start},
		{http.MethodPut, guest.RouteConfig, s.config},
		{http.MethodPost, guest.RouteStop, s.stop},
		{http.MethodGet, guest.RouteMark, s.mark},
		{http.MethodPut, guest.RouteMark, s.giveMark},
		{http.MethodPost, guest.RouteExec, bounded(execs, s.exec)},
		{http.MethodGet, guest.RouteFiles, bounded(transfers, s.readFile)},
		{http.MethodPut, guest.RouteFiles, bounded(transfers, s.writeFile)},
		{http.MethodDelete, guest.RouteFiles, bounded(transfers, s.deleteFile)},
		{http.MethodGet, guest.RouteTree, bounded(trees, s.listTree)},
		{http.MethodPost, guest.RouteTreeRead, bounded(trees, s.readTree)},
		{http.MethodPost, guest.RouteTreeRestore, bounded(trees, s.restoreTree)},
	}
	for _, route := range routes {
		mux.Handle(route.method+" "+route.path, s.wrap(route.handle))
	}
	for _, path := range []string{
		guest.RouteStatus, guest.RouteOpenCode, guest.RouteStart, guest.RouteConfig, guest.RouteStop, guest.RouteExec, guest.RouteFiles,
		guest.RouteTree, guest.RouteTreeRead, guest.RouteTreeRestore, guest.RouteMark,
	} {
		mux.Handle(path, s.wrap(wrongMethod))
	}
	mux.Handle("/", s.wrap(noRoute))
	return s.local(s.authorize(s.received(mux)))
}

// bounded refuses what comes while all slots are taken.
func bounded(slots chan struct{}, handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		select {
		case slots <- struct{}{}:
		default:
			return sandbox.Errorf(sandbox.CodeTooManyRequests,
				"this sandbox has %d requests of this kind under way, which is the most; try again when one has ended", cap(slots))
		}
		defer func() { <-slots }()
		return handle(w, r)
	}
}

func wrongMethod(_ http.ResponseWriter, r *http.Request) error {
	return sandbox.Errorf(sandbox.CodeMethodNotAllowed, "%s does not take this method", r.URL.Path)
}

func noRoute(http.ResponseWriter, *http.Request) error {
	return sandbox.Errorf(sandbox.CodeRouteNotFound, "no such route")
}

// local lets only requests past that name a loopback address, as the gateway's
// do wherever they come from: a browser that a foreign name led here (DNS
// rebinding) does not.
func (s *Server) local(next http.Handler) http.Handler {
	hosts := daemon.NewHosts("", nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hosts.Allow(r.Host) {
			w.Header().Set("Connection", "close") // its body is not worth reading
			s.fail(w, sandbox.Errorf(sandbox.CodeForbiddenHost, "this host name is not served here; name 127.0.0.1"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// authorize lets nobody past who does not have the token, not even to a 404.
func (s *Server) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(token))
		if !ok || subtle.ConstantTimeCompare(sum[:], s.Token[:]) != 1 {
			w.Header().Set("Connection", "close") // its body is not worth reading
			s.fail(w, sandbox.Errorf(sandbox.CodeUnauthorized, "the token is missing or wrong"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// received gives a request the id and the trace that it brings, and tells in the log
// that it came if it changes something.
func (s *Server) received(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		known, _, _ := timeline.Receive(r)
		next.ServeHTTP(timeline.Answer(known.Context(), w), known) //nolint:contextcheck // it is the request's
		level := slog.LevelInfo
		if r.Method == http.MethodGet {
			level = slog.LevelDebug
		}
		s.Log.Log(known.Context(), level, "request", "method", r.Method, "path", r.URL.Path, "duration", time.Since(began)) //nolint:contextcheck // as above
	})
}

// wrap turns errors and panics into error bodies.
func (s *Server) wrap(handle handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { //nolint:contextcheck // it takes the request's
			reason := recover()
			if reason == nil {
				return
			}
			if reason == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
				panic(reason)
			}
			s.Log.ErrorContext(r.Context(), "a handler panicked", "path", r.URL.Path, "reason", fmt.Sprint(reason), "stack", string(debug.Stack()))
			s.fail(w, errors.New("panic"))
		}()
		if err := handle(w, r); err != nil {
			s.Log.InfoContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			s.fail(w, err)
		}
	})
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	failure, ok := errors.AsType[*sandbox.Error](err)
	if !ok {
		failure = sandbox.Errorf(sandbox.CodeInternal, "sandboxd failed; its log says why")
	}
	s.reply(w, failure.Code.Status(), guest.ErrorBody{Error: failure.Message, Code: string(failure.Code)})
}

func (s *Server) reply(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		s.Log.Error("encode a reply", "error", err)
		status, raw = http.StatusInternalServerError, []byte(`{"error":"sandboxd failed","code":"internal"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(raw); err != nil {
		s.Log.Debug("write a reply", "error", err)
	}
}

// readJSON reads a bounded JSON body, in bounded time.
func readJSON(w http.ResponseWriter, r *http.Request, out any) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not all writers of tests can
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSON))
	_ = control.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "the body is larger than %d bytes", maxJSON)
	}
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the body did not arrive").WithCause(err)
	}
	if len(raw) == 0 {
		return nil // all fields have defaults where this is allowed
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the body is not the JSON expected").WithCause(err)
	}
	return nil
}

// lasting is for work that goes on if the caller leaves, so that nothing is
// left half done; the same request again then finds it done.
func lasting(r *http.Request, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), limit)
}
