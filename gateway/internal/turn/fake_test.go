package turn_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// fake is an OpenCode whose turn is a script. Its lists can be changed while a
// turn runs; what it was told is kept.
type fake struct {
	t *testing.T
	// message answers POST /session/ses_root/message.
	message http.HandlerFunc

	mu          sync.Mutex
	status      string
	permissions string
	questions   string
	asked       []string // "METHOD /path body" of everything that changes something
	told        chan string
	broken      bool // every look fails
}

// marks are those of the messages, another each time.
var marks = regexp.MustCompile(`,"metadata":\{"agentpod":"[A-Z0-9]+"\}`)

// parents are the sessions that exist, with their parents.
func parentOf(id string) (string, bool) {
	parent, ok := map[string]string{
		"ses_root": "", "ses_child": "ses_root", "ses_grandchild": "ses_child",
		"ses_other": "", "ses_stranger": "ses_other", "ses_loop": "ses_loop",
	}[id]
	return parent, ok
}

func newFake(t *testing.T, message http.HandlerFunc) *fake {
	t.Helper()
	return &fake{t: t, message: message, status: "{}", permissions: "[]", questions: "[]", told: make(chan string, 1000)}
}

func (f *fake) set(status, permissions, questions string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.permissions, f.questions = status, permissions, questions
}

func (f *fake) client() *opencode.Client {
	s := httptest.NewServer(f)
	f.t.Cleanup(s.Close)
	transport := &http.Transport{}
	f.t.Cleanup(transport.CloseIdleConnections)
	return opencode.New(transport, s.URL, "secret")
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	looks := map[string]string{"/session/status": f.status, "/permission": f.permissions, "/question": f.questions}
	look, isLook := looks[r.URL.Path]
	if r.Method == http.MethodPost {
		entry := strings.TrimSpace(r.URL.Path + " " + marks.ReplaceAllString(string(body), ""))
		f.asked = append(f.asked, entry)
		f.told <- entry
	}
	broken := f.broken
	f.mu.Unlock()
	id := strings.TrimPrefix(r.URL.Path, "/session/")
	switch {
	case isLook && broken:
		http.Error(w, "broken", http.StatusInternalServerError)
	case isLook:
		_, _ = io.WriteString(w, look)
	case r.URL.Path == "/agent":
		_, _ = io.WriteString(w, `[{"name":"plan"},{"name":"build"},{"name":"title","hidden":true}]`)
	case r.URL.Path == "/config/providers":
		_, _ = io.WriteString(w, `{"providers":[{"id":"p","models":{"m2":{},"m1":{}}},{"id":"q\u001b[31m","models":{}}],"default":{}}`)
	case r.URL.Path == "/session":
		_, _ = io.WriteString(w, `{"id":"ses_root","title":"Agent Task"}`)
	case r.URL.Path == "/session/ses_root/message", strings.HasPrefix(r.URL.Path, "/session/ses_root/message/"):
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		f.message(w, r)
	case r.Method == http.MethodPost:
		_, _ = io.WriteString(w, "true")
	default:
		parent, ok := parentOf(id)
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"name":"NotFoundError","data":{"message":"Session not found"}}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"id":%q,"parentID":%q}`, id, parent)
	}
}

// await returns when OpenCode was told that.
func (f *fake) await(want string) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-f.told:
			if got == want {
				return
			}
		case <-deadline:
			f.t.Errorf("OpenCode was never told %s", want)
			return
		}
	}
}

// log is what OpenCode was told so far: it may still take what its caller has left.
func (f *fake) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *fake) wasTold(what string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.asked, what)
}

// says answers a message at once.
func says(reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, reply) }
}

const finished = `{"info":{"id":"msg_1","finish":"stop"},"parts":[{"type":"text","text":"done"}]}`

// until answers a message when the channel closes, or never if the client leaves.
func until(ready <-chan struct{}, reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
			_, _ = io.WriteString(w, reply)
		case <-r.Context().Done():
		}
	}
}

func quick() *turn.Runner {
	return &turn.Runner{Deadline: 2 * patience, PollEvery: time.Millisecond}
}

func sandboxError(t *testing.T, err error) *sandbox.Error {
	t.Helper()
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok {
		t.Fatalf("error %v is no sandbox error", err)
	}
	return e
}
