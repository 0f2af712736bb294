package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// read reads an event stream until its end, or until next says that it is enough.
func read(t testing.TB, r io.Reader, next func(event) bool) {
	t.Helper()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	var e event
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			e.ID = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e.Data); err != nil {
				t.Fatalf("%v in %q", err, value)
			}
			e.Type, _ = e.Data["type"].(string)
		case "":
			if !next(e) {
				return
			}
			e = event{}
		}
	}
}

const streamPath = "/api/v2/agents/task/stream"

// The Node program reads the stream as the frontend does, then cuts it after each
// event in turn and goes on with what it saw last.
func TestAFrontendSeesEachEventOnceWhereverItsStreamIsCut(t *testing.T) {
	t.Parallel()
	a := newAPI(t, sharedGateway.get(t))
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", filepath.Join("testdata", "stream", "frontend.mjs")) //nolint:gosec // the test's own
	cmd.Env = append(os.Environ(), "API_URL="+a.url(), "EMAIL="+adminEmail, "PASSWORD="+adminPassword, "MESSAGE=say before\nchunks 8 60ms\nwrite a.txt: b\nsay after")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var seen struct {
		Types []string // of the stream that nobody cut, in order
		Text  string
		Done  map[string]any
		Cuts  []struct {
			After int
			Same  bool
		}
		Refused struct {
			Status int
			Error  string
		}
	}
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	kinds := strings.Join(seen.Types, " ")
	if !strings.HasPrefix(kinds, "start status ") || !strings.HasSuffix(kinds, " done") || strings.Count(kinds, "chunk") < 3 {
		t.Errorf("the frontend saw %s", kinds)
	}
	if !strings.Contains(seen.Text, "before") || !strings.HasSuffix(seen.Text, "after") || !strings.Contains(seen.Text, "wrote a.txt") {
		t.Errorf("the text is %q", seen.Text)
	}
	for _, name := range []string{"taskId", "sandboxId", "sessionId", "messageId"} {
		if text, _ := seen.Done[name].(string); text == "" {
			t.Errorf("done has no %s: %v", name, seen.Done)
		}
	}
	if seen.Done["createdNewSandbox"] != true {
		t.Errorf("done: %v", seen.Done)
	}
	if len(seen.Cuts) != len(seen.Types) {
		t.Errorf("cut %d times in %d events", len(seen.Cuts), len(seen.Types))
	}
	for _, cut := range seen.Cuts {
		if !cut.Same {
			t.Errorf("cut after event %d the frontend saw something else", cut.After)
		}
	}
	if seen.Refused.Status != http.StatusBadRequest || seen.Refused.Error == "" {
		t.Errorf("a message that is none: %+v", seen.Refused)
	}
}

// A stream that is cut while the agent works is gone on with while it works.
func TestAStreamIsTakenUpInTheMiddle(t *testing.T) {
	t.Parallel()
	c := newAPI(t, sharedGateway.get(t)).admin(t)
	first := c.stream(t, http.MethodPost, streamPath, object{"message": "chunks 30 100ms"}, "", func(e event) bool { return e.Type == "chunk" })
	last := first[len(first)-1]
	id, _ := first[0].Data["taskId"].(string)
	rest := c.stream(t, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, last.ID, nil)
	if len(rest) < 3 || rest[len(rest)-1].Type != "done" {
		t.Fatalf("then came %v", rest)
	}
	whole := c.stream(t, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, "", nil)
	if got, want := texts(append(first, rest...)), texts(whole); got != want || got != c.final(t, id, time.Minute).Response {
		t.Errorf("%q in two, %q in one", got, want)
	}
	if nothing := c.stream(t, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, whole[len(whole)-1].ID, nil); len(nothing) > 0 {
		t.Errorf("after the end came %v", nothing)
	}
}

func TestAQuietStreamSaysThatItIsThere(t *testing.T) {
	t.Parallel()
	c := newAPI(t, sharedGateway.get(t)).admin(t)
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	res, err := c.open(ctx, http.MethodPost, streamPath, object{"message": "stall 14s\nsay done"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	alive := 0
	read(t, res.Body, func(e event) bool {
		if e.Type == "keepalive" {
			alive++
			if e.ID != "" {
				t.Error("it has an id, which no stream can be taken up from")
			}
		}
		return e.Type != "done" && e.Type != "error"
	})
	if alive < 2 {
		t.Errorf("it said so %d times in 14 s", alive)
	}
}
