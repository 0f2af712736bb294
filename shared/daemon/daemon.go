// Package daemon is what every server of the project needs around its routes:
// a listener that is bound before anything is announced, a drain that covers
// streams, the check of the Host header, and a logger.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Server serves one handler on one listener until its context ends, and then
// drains.
type Server struct {
	Listener net.Listener
	Handler  http.Handler
	// Draining is called when the drain begins: it ends what would never end by
	// itself, such as event streams.
	Draining func()
	// DrainTimeout bounds the drain; what still runs then is cut.
	DrainTimeout time.Duration
	Log          *slog.Logger
}

// The bounds of every listener of the project.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// Run serves until ctx ends. It returns nil after a drain that ended in time.
func (s Server) Run(ctx context.Context) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var inFlight sync.WaitGroup
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Shutdown does not wait for hijacked connections; this does.
			inFlight.Add(1)
			defer inFlight.Done()
			s.Handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(s.Listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	s.Log.InfoContext(ctx, "draining", "timeout", s.DrainTimeout)
	if s.Draining != nil {
		s.Draining()
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.DrainTimeout)
	defer cancel()
	err := server.Shutdown(deadline)
	if err != nil {
		cut() // handlers see their context end, and answer what they can
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err = server.Shutdown(last)
		_ = server.Close()
	}
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", serveErr)
	}
	done := make(chan struct{})
	go func() {
		inFlight.Wait()
		close(done)
	}()
	cut()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		return errors.New("requests were still running after the drain")
	}
	if err != nil {
		s.Log.WarnContext(ctx, "drain cut requests short", "error", err)
	}
	return nil
}

// Hosts is an allow-list for the Host header: a browser that was led to a
// loopback address by a foreign name (DNS rebinding) does not pass.
type Hosts map[string]bool

// NewHosts allows the loopback names, the host that the server is bound to, and
// more. A name may be given with or without a port; the port does not matter.
func NewHosts(bound string, more []string) Hosts {
	hosts := Hosts{"localhost": true, "127.0.0.1": true, "::1": true}
	for _, h := range append([]string{bound}, more...) {
		if name := hostname(h); name != "" && name != "0.0.0.0" && name != "::" {
			hosts[name] = true
		}
	}
	return hosts
}

// Allow says whether a Host header is on the list.
func (h Hosts) Allow(header string) bool { return h[hostname(header)] }

func hostname(hostport string) string {
	host := strings.TrimSpace(hostport)
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// NewLogger makes the project's logger. Level is debug, info, warn or error;
// format is json, text, or auto: text on a terminal and JSON elsewhere. Both
// formats escape everything that is not printable, bidirectional characters
// too, so that what came from a sandbox can neither forge a line nor drive a
// terminal. A line has what its context's timeline knows. Durations in JSON are in
// seconds.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: %w", level, err)
	}
	if format == "auto" {
		format = "json"
		if f, ok := w.(*os.File); ok {
			if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
				format = "text"
			}
		}
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "text" {
		return slog.New(timeline.Handler(slog.NewTextHandler(printable.NewWriter(w), opts))), nil
	}
	opts.ReplaceAttr = inSeconds
	return slog.New(timeline.Handler(slog.NewJSONHandler(jsonLines{w}, opts))), nil
}

// inSeconds makes durations numbers in the unit that figures have.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

// jsonLines escapes what the JSON handler leaves raw: DEL, the C1 controls and
// format characters. JSON has them inside strings only, where \u is the way to
// write them, so each line stays the JSON that it was. A handler writes whole
// lines.
type jsonLines struct{ w io.Writer }

// Write implements io.Writer.
func (j jsonLines) Write(line []byte) (int, error) {
	out := make([]byte, 0, len(line)+64)
	for rest := line; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			out = append(out, `\ufffd`...)
		case r == '\n' || unicode.IsPrint(r):
			out = append(out, rest[:size]...)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				out = fmt.Appendf(out, `\u%04x`, unit)
			}
		}
		rest = rest[size:]
	}
	n, err := j.w.Write(out)
	if err != nil {
		return 0, err
	}
	if n < len(out) {
		return 0, io.ErrShortWrite
	}
	return len(line), nil
}

// Version says of what the program was built, and with which Go.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown build)"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			version += " " + s.Value
		}
	}
	return version + " " + info.GoVersion
}
