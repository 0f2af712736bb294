package sandbox

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/timeline"
)

// Backend is a place where sandboxes live, seen from its caller: a gateway or a
// Cloudflare worker. It is safe for concurrent use.
//
// Every error is an *Error. Beside what the backend itself says, each call can
// fail with
//   - invalid_id, invalid_path, invalid_request: refused here, nothing was sent;
//   - unsupported: this backend cannot do that, whoever asks;
//   - backend_unavailable: it does not answer; whether it acted is not known;
//   - backend_failed: what it answered is no answer of the contract;
//   - deadline_exceeded: the time was up, or the caller's context ended, which
//     errors.Is then finds.
//
// No redirect is followed, every reply is bounded, and no error holds the token.
type Backend interface {
	// Health returns nil if the backend answers as it should. It is asked once.
	Health(ctx context.Context) error

	// Create makes a sandbox, or brings up the one that its owner has under this
	// id; another owner's is an owner_conflict.
	Create(ctx context.Context, req CreateRequest) (CreateResponse, error)
	// Get returns one sandbox; one that does not exist is sandbox_not_found.
	Get(ctx context.Context, id string) (Info, error)
	// List returns a page of the sandboxes in the order of their ids.
	List(ctx context.Context, opts ListOptions) (ListResponse, error)
	// Delete removes a sandbox with everything that it has. Deleting what does
	// not exist is a success.
	Delete(ctx context.Context, id string) error
	// Wake brings a sandbox up and applies the config, if there is one.
	Wake(ctx context.Context, id string, req WakeRequest) (WakeResponse, error)
	// Hibernate puts a sandbox to sleep.
	Hibernate(ctx context.Context, id string, req HibernateRequest) (HibernateResponse, error)

	// Message runs one turn of the agent and returns when it is over. A model
	// that failed is no error: the response's Error says so. A caller that gives
	// up does not end the turn.
	Message(ctx context.Context, id string, req MessageRequest) (MessageResponse, error)
	// Sync makes the stored copy of the workspace equal to it.
	Sync(ctx context.Context, id string) (SyncResponse, error)
	// Snapshots returns what can be restored, the newest first.
	Snapshots(ctx context.Context, id string) ([]Snapshot, error)

	// Logs returns the last lines that the sandbox printed; 0 means 100 of them.
	Logs(ctx context.Context, id string, tail int) (LogsResponse, error)
	// Exec runs a command; one that fails is no error, its exit code says so.
	Exec(ctx context.Context, id string, req ExecRequest) (ExecResponse, error)
	// Stats returns what a running sandbox uses.
	Stats(ctx context.Context, id string) (Stats, error)

	// ReadFile opens a file. Paths of files are relative to the sandbox's home
	// folder, separated by slashes, and not percent-encoded.
	ReadFile(ctx context.Context, id, path string) (*File, error)
	// WriteFile replaces a file as a whole with size bytes of body; folders above
	// it are made. Size -1 means unknown, mode 0 means 0644.
	WriteFile(ctx context.Context, id, path string, mode fs.FileMode, body io.Reader, size int64) error
	// DeleteFile removes a file, or a folder with all that is in it.
	DeleteFile(ctx context.Context, id, path string) error
	// ListFiles returns a folder's entries; the empty path is the home folder.
	ListFiles(ctx context.Context, id, path string) (FileListing, error)

	// OpenCode returns a transport to the sandbox's OpenCode and the address that
	// requests through it begin with; together they make an opencode.Client or a
	// reverse proxy. It carries requests below that address and no others: one
	// that could mean another path to somebody further on is an invalid_path.
	// Nothing but the request's context bounds how long an answer takes, and the
	// body is the sandbox's, so the reader bounds it. Authorization and Cookie
	// are replaced. Redirects are given back, not followed. What a gateway answers
	// in OpenCode's place, such as sandbox_not_found, is an *Error, not a reply.
	OpenCode(id string) (transport http.RoundTripper, baseURL string, err error)

	// UI returns a way into OpenCode's web UI for one browser. What it opens ends
	// with the sandbox, and with EndUI of the session: an opaque text of at most 256
	// bytes that may be empty, and no secret. A session that was ended is forbidden.
	UI(ctx context.Context, id, session string) (UIResponse, error)
	// EndUI ends what a session has opened in a sandbox, and the session there. Ending
	// what does not exist is a success.
	EndUI(ctx context.Context, id, session string) error

	// Close waits for what goes on in the background until ctx ends, ends the
	// rest, and frees idle connections. No call may begin after it.
	Close(ctx context.Context) error
}

// ListOptions choose a page of sandboxes. Zero fields do not restrict.
type ListOptions struct {
	UserID string
	Status Status
	Limit  int    // at most 100; 0 means 50
	Cursor string // NextCursor of the page before
}

// File is a file on its way out of a sandbox. Body gives exactly Size bytes or
// an *Error. Whoever has it calls Close, which ends the transfer.
type File struct {
	Size int64
	Body io.ReadCloser
}

// Close ends the transfer.
func (f *File) Close() error { return f.Body.Close() }

// ClientSettings are what a client of a gateway or a worker needs.
type ClientSettings struct {
	// BaseURL is the backend's address, such as "http://127.0.0.1:8787". It may
	// have a path, but no user, query or fragment.
	BaseURL string
	// Token is sent as Bearer. A gateway needs one.
	Token string
	// Transport is optional; without it the client has one of its own. One that
	// is handed in must have no proxy, bound the headers of replies, and have no
	// deadline for them: a turn answers when it is over.
	Transport http.RoundTripper
	// Log gets what nobody waits for, such as a sync in the background that
	// failed. Nil discards it.
	Log *slog.Logger
	// Deadlines of the calls; zero fields mean the defaults.
	Deadlines Deadlines
}

// Deadlines bound calls with all their retries. The caller's context can only
// shorten them. The defaults leave a gateway with its own default timeouts room
// to say itself what took too long.
type Deadlines struct {
	// Probe is Health's, 5 s.
	Probe time.Duration
	// Look is that of Get, List, Snapshots, Logs, Stats, UI and EndUI, which wake
	// nothing: 30 s.
	Look time.Duration
	// Boot is that of Create, Wake and Delete: 15 min.
	Boot time.Duration
	// Persist is that of Hibernate and Sync: 35 min.
	Persist time.Duration
	// Work is that of Message and Exec: 15 min, or what the request itself allows
	// and three minutes, in which a sandbox can wake.
	Work time.Duration
	// Transfer is that of the calls about files: 15 min.
	Transfer time.Duration
}

// wakeSlack is what a call gets beyond the time that its request names: the
// sandbox may have to wake first.
const wakeSlack = 3 * time.Minute

func (d Deadlines) orDefault() Deadlines {
	for _, field := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&d.Probe, 5 * time.Second},
		{&d.Look, 30 * time.Second},
		{&d.Boot, 15 * time.Minute},
		{&d.Persist, 35 * time.Minute},
		{&d.Work, 15 * time.Minute},
		{&d.Transfer, 15 * time.Minute},
	} {
		if *field.value <= 0 {
			*field.value = field.fallback
		}
	}
	return d
}

// work is the deadline of a request that may name one itself, in milliseconds.
func (d Deadlines) work(ms int64) time.Duration {
	const most = int64(24 * time.Hour / time.Millisecond)
	if ms <= 0 {
		return d.Work
	}
	return time.Duration(min(ms, most))*time.Millisecond + wakeSlack
}

// maxHeaderBytes bounds the headers of a reply.
const maxHeaderBytes = 256 << 10

// newTransport makes the transport of a client: it knows no proxy setting, asks
// for no compression, so that bodies stay as they are, and bounds headers.
func newTransport() *http.Transport {
	// A turn is silent for minutes, so only the network itself can tell a peer that is
	// gone: within half a minute.
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    128,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// newCaller checks the settings. who is the backend's name in messages.
func newCaller(who string, settings ClientSettings) (*caller, error) {
	base, err := url.Parse(settings.BaseURL)
	switch {
	case err != nil:
		// The error repeats the address, which may hold a password.
		return nil, fmt.Errorf("%s's address is not a URL", who)
	case base.Scheme != "http" && base.Scheme != "https", base.Host == "", base.Opaque != "":
		return nil, fmt.Errorf("%s's address must begin with http:// or https:// and name a host", who)
	case base.User != nil, base.RawQuery != "", base.ForceQuery, base.Fragment != "":
		return nil, fmt.Errorf("%s's address must have no user, query or fragment", who)
	}
	if err := CheckPath(base.EscapedPath()); err != nil {
		return nil, fmt.Errorf("%s's address: %w", who, err)
	}
	for i := range len(settings.Token) {
		if c := settings.Token[i]; c <= ' ' || c >= 0x7f {
			return nil, fmt.Errorf("the token for %s has a space or a character that is not ASCII", who)
		}
	}
	c := &caller{
		who:       who,
		base:      strings.TrimRight(base.Scheme+"://"+base.Host+base.EscapedPath(), "/"),
		token:     settings.Token,
		log:       settings.Log,
		deadlines: settings.Deadlines.orDefault(),
		transport: settings.Transport,
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.transport == nil {
		c.own = newTransport()
		c.transport = c.own
	}
	c.http = &http.Client{
		Transport:     &timeline.Transport{Next: c.transport, Peer: strings.TrimPrefix(who, "the ")},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}
