package clienttest

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// recordings are observations of the real worker, copies of those in
// sandbox/testdata/worker.
//
//go:embed testdata/*.json
var recordings embed.FS

// Request is one request as the fake worker got it.
type Request struct {
	Method string
	Target string // as it stood in the request line
	Path   string // as the worker's runtime reads it
	Header http.Header
	Body   string
}

// Worker is a fake of the Cloudflare worker that answers with what the real one
// was seen to answer, its ids and texts replaced. It keeps as much state as that
// takes: which sandboxes have a container, a clone, sessions and a stored
// workspace. Like the real one it takes any token, reads paths as the WHATWG URL
// parser does, deletes the stored workspace on a DELETE of whatever is below a
// sandbox, and never says that a sandbox runs. It is safe for concurrent use.
type Worker struct {
	// URL is where it listens.
	URL string

	mu        sync.Mutex
	sandboxes map[string]*container
	requests  []Request
	faults    []*fault
	sessions  int
}

// container is what the worker has of one sandbox. It outlives a delete there.
type container struct {
	cloned   bool
	stored   bool // its workspace is in the store
	sessions map[string]bool
}

type fault struct {
	method, below string
	times         int
	handler       http.HandlerFunc
}

// maxBody bounds what the fake reads of a request, in bytes.
const maxBody = 1 << 20

// StartWorker starts a fake worker, which ends with the test.
func StartWorker(t testing.TB) *Worker {
	t.Helper()
	w := &Worker{sandboxes: make(map[string]*container)}
	server := httptest.NewServer(w)
	w.URL = server.URL
	t.Cleanup(server.Close)
	return w
}

// Break lets the next requests of a method whose path ends in below be answered
// by handler, as many as times says; 0 means all of them.
func (w *Worker) Break(method, below string, times int, handler http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, &fault{method, below, times, handler})
}

// Requests returns what was asked so far.
func (w *Worker) Requests() []Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Request(nil), w.requests...)
}

// Stored says whether the workspace of a sandbox is in the worker's store.
func (w *Worker) Stored(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sandboxes[id] != nil && w.sandboxes[id].stored
}

// ServeHTTP implements http.Handler.
func (w *Worker) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	if err != nil {
		replay(rw, "raw_sync")
		return
	}
	path := NormalizePath(r.RequestURI)
	if handler := w.note(Request{r.Method, r.RequestURI, path, r.Header.Clone(), string(body)}); handler != nil {
		handler(rw, r)
		return
	}
	switch {
	case r.Method == http.MethodGet && path == "/health":
		replay(rw, "health")
	case r.Method == http.MethodPost && path == "/sandbox":
		w.create(rw, body)
	case strings.HasPrefix(path, "/sandbox/"):
		id, below, _ := strings.Cut(strings.TrimPrefix(path, "/sandbox/"), "/")
		w.sandbox(rw, r, id, "/"+below, body)
	default:
		replay(rw, "raw_404")
	}
}

// note keeps a request and returns the fault that it meets, if there is one.
func (w *Worker) note(r Request) http.HandlerFunc {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r)
	for i, f := range w.faults {
		if f.method != r.Method || !strings.HasSuffix(r.Path, f.below) {
			continue
		}
		if f.times > 0 {
			f.times--
			if f.times == 0 {
				w.faults = append(w.faults[:i:i], w.faults[i+1:]...)
			}
		}
		return f.handler
	}
	return nil
}

func (w *Worker) create(rw http.ResponseWriter, body []byte) {
	var req sandbox.CreateRequest
	if json.Unmarshal(body, &req) != nil || sandbox.CheckID(req.ID) != nil {
		replay(rw, "raw_sync")
		return
	}
	w.mu.Lock()
	c := w.container(req.ID)
	again := c.cloned && req.GitURL != ""
	c.cloned = c.cloned || req.GitURL != ""
	w.mu.Unlock()
	if again {
		HTMLError(rw, nil) // the folder is not empty
		return
	}
	replay(rw, "create_ok", "sbx-plain", req.ID)
}

// container returns a sandbox's, made if there is none. The caller holds mu.
func (w *Worker) container(id string) *container {
	c, ok := w.sandboxes[id]
	if !ok {
		c = &container{sessions: make(map[string]bool)}
		w.sandboxes[id] = c
	}
	return c
}

func (w *Worker) sandbox(rw http.ResponseWriter, r *http.Request, id, below string, body []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	route := r.Method + " " + below
	switch {
	case sandbox.CheckID(id) != nil && strings.HasPrefix(below, "/opencode"):
		replay(rw, "proxy_bad_id", "www", id)
	case sandbox.CheckID(id) != nil:
		replay(rw, "raw_sync")
	case r.Method == http.MethodDelete:
		if c := w.sandboxes[id]; c != nil {
			c.stored = false
		}
		replay(rw, "delete_known", "sbx-git", id)
	case route == "GET /":
		if c := w.sandboxes[id]; c != nil && c.stored {
			replay(rw, "get_known_after_sync", "sbx-cfg", id)
			return
		}
		replay(rw, "get_unknown", "unknown1", id)
	case route == "POST /wake":
		if !json.Valid(body) {
			replay(rw, "raw_sync")
			return
		}
		w.container(id)
		replay(rw, "wake_cold")
	case route == "POST /sync":
		c := w.sandboxes[id]
		if c == nil {
			replay(rw, "sync_error", "sbx-never3", id)
			return
		}
		c.stored = true
		replay(rw, "sync_ok", "sbx-cfg", id)
	case route == "POST /message":
		w.message(rw, id, body)
	case below == "/opencode" || strings.HasPrefix(below, "/opencode/"):
		w.openCode(rw, r, w.container(id), strings.TrimPrefix(below, "/opencode"), body)
	default:
		replay(rw, "raw_404")
	}
}

func (w *Worker) message(rw http.ResponseWriter, id string, body []byte) {
	var req sandbox.MessageRequest
	c := w.sandboxes[id]
	if c == nil || json.Unmarshal(body, &req) != nil {
		HTMLError(rw, nil)
		return
	}
	c.stored = true
	if req.SessionID != "" && !c.sessions[req.SessionID] {
		replay(rw, "message_unknown_session", "ses_doesnotexist000000000000", req.SessionID)
		return
	}
	if req.SessionID == "" {
		req.SessionID = w.session(c)
	}
	if req.Message == "" || req.Model != nil && req.Model.ProviderID != "fake" || req.Agent != "" && req.Agent != "build" {
		replay(rw, "message_bad_model", "ses_df89e1c82ffex9MCOpIwiw4uD3", req.SessionID)
		return
	}
	replay(rw, "message_first", "ses_df89e7689ffegUoJnu21BgdSOs", req.SessionID, "hello one", quoted(req.Message))
}

// session begins one. The caller holds mu.
func (w *Worker) session(c *container) string {
	w.sessions++
	id := fmt.Sprintf("ses_fake%020d", w.sessions)
	c.sessions[id] = true
	return id
}

func (w *Worker) openCode(rw http.ResponseWriter, r *http.Request, c *container, path string, body []byte) {
	session, below, _ := strings.Cut(strings.TrimPrefix(path, "/session/"), "/")
	route := r.Method + " " + path
	if strings.HasPrefix(path, "/session/") {
		route = r.Method + " session " + below
	}
	switch route {
	case "POST /session":
		replay(rw, "proxy_session_create", "ses_df89dd827ffe4gvbiVR8npbIJA", w.session(c))
	case "GET /session":
		replay(rw, "proxy_session_list")
	case "POST session message":
		var prompt struct{ Parts []struct{ Text string } }
		switch err := json.Unmarshal(body, &prompt); {
		case err != nil || len(prompt.Parts) == 0:
			replay(rw, "proxy_message_badjson", "ses_df89dd827ffe4gvbiVR8npbIJA", session)
		case !c.sessions[session]:
			replay(rw, "proxy_message_unknown_session")
		default:
			replay(rw, "proxy_message", "ses_df89dd827ffe4gvbiVR8npbIJA", session, "echo: proxied", "echo: "+quoted(prompt.Parts[0].Text))
		}
	case "POST session prompt_async":
		replay(rw, "proxy_prompt_async")
	case "POST session abort":
		replay(rw, "proxy_abort")
	case "GET /event":
		w.mu.Unlock()
		defer w.mu.Lock()
		replay(rw, "proxy_event_sse_idle", "data: {\"type\":\"server.heartb", ": the recording ends here\n\n")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	default:
		replay(rw, "proxy_root") // a page
	}
}

// quoted is a text as it stands inside a JSON string.
func quoted(text string) string {
	raw, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string always can be
	}
	return string(raw[1 : len(raw)-1])
}

// replay answers with a recording in which texts, given in pairs, are replaced.
func replay(rw http.ResponseWriter, name string, oldnew ...string) {
	raw, err := recordings.ReadFile("testdata/" + name + ".json")
	if err != nil {
		panic(err) // it is embedded, or the fake is wrong
	}
	var recording struct {
		Response struct {
			Status  int
			Headers map[string]string
			Body    json.RawMessage
		}
	}
	if err := json.Unmarshal(raw, &recording); err != nil {
		panic(fmt.Errorf("recording %s: %w", name, err))
	}
	resp := recording.Response
	// The body was indented in the recording, and is text if it is a string.
	var body bytes.Buffer
	var text string
	if json.Unmarshal(resp.Body, &text) == nil {
		body.WriteString(text)
	} else if err := json.Compact(&body, resp.Body); err != nil {
		panic(fmt.Errorf("recording %s: %w", name, err))
	}
	for header, value := range resp.Headers {
		if header != "Transfer-Encoding" && header != "Connection" {
			rw.Header().Set(header, value)
		}
	}
	if rw.Header().Get("Content-Type") == "" {
		rw.Header()["Content-Type"] = nil // net/http would guess one
	}
	rw.WriteHeader(resp.Status)
	if resp.Status != http.StatusNoContent {
		_, _ = strings.NewReplacer(oldnew...).WriteString(rw, body.String())
	}
}
