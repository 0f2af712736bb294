package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// streamed runs a command and returns what came of each of its streams, event by
// event.
func (g *gateway) streamed(t *testing.T, id string, command ...string) map[string][]sandbox.ExecOutput {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := g.open(ctx, http.MethodPost, "/sandbox/"+id+"/exec", object{"command": command}, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	events := make(map[string][]sandbox.ExecOutput)
	var event string
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 64<<20))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = name
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var out sandbox.ExecOutput
			if err := json.Unmarshal([]byte(data), &out); err != nil {
				t.Fatalf("%v in %s", err, data)
			}
			events[event] = append(events[event], out)
		}
	}
	if len(events["exit"]) != 1 || lines.Err() != nil {
		t.Fatalf("the stream ended with %v and %d events of its exit", lines.Err(), len(events["exit"]))
	}
	return events
}

func joined(events []sandbox.ExecOutput) (text string, raw []byte, exact int) {
	for _, e := range events {
		text += e.Data
		raw = append(raw, e.Bytes()...)
		if e.Base64 != nil {
			exact++
		}
	}
	return text, raw, exact
}

func TestOutputComesOutAsItWentIn(t *testing.T) {
	g := shared(t)
	g.create(t, "output", nil)
	defer g.delete(t, "output")
	t.Run("characters in odd pieces, on both streams", func(t *testing.T) {
		const program = `const b = Buffer.from("€".repeat(60000)); let i = 0
			;(function next() { for (const fd of [1, 2]) require("fs").writeSync(fd, b.subarray(i, i + 4999)); if ((i += 4999) < b.length) setTimeout(next, 1) })()`
		events := g.streamed(t, "output", "node", "-e", program)
		for _, stream := range []string{"stdout", "stderr"} {
			text, _, exact := joined(events[stream])
			if len(events[stream]) < 2 || exact != 0 || strings.Count(text, "€") != 60_000 || strings.Count(text, "\uFFFD") != 0 || len(text) != 180_000 {
				t.Errorf("%s: %d events, %d with base64, %d bytes, %d characters, %d damaged",
					stream, len(events[stream]), exact, len(text), strings.Count(text, "€"), strings.Count(text, "\uFFFD"))
			}
		}
	})
	t.Run("bytes that are no UTF-8", func(t *testing.T) {
		const program = `const all = Buffer.from([...Array(256).keys()]); process.stdout.write(all); process.stderr.write(Buffer.from([0x61, 0xe2, 0x82]))`
		var all []byte
		for b := range 256 {
			all = append(all, byte(b))
		}
		events := g.streamed(t, "output", "node", "-e", program)
		text, raw, exact := joined(events["stdout"])
		if !slices.Equal(raw, all) || exact == 0 || !strings.Contains(text, "\uFFFD") {
			t.Errorf("%x, %q", raw, text)
		}
		if text, raw, _ := joined(events["stderr"]); string(raw) != "a\xe2\x82" || text != "a\uFFFD" {
			t.Errorf("%x, %q", raw, text)
		}
		encoded, err := json.Marshal(g.call(t, http.MethodPost, "/sandbox/output/exec", object{"command": []string{"node", "-e", program}}, http.StatusOK))
		if err != nil {
			t.Fatal(err)
		}
		var whole sandbox.ExecResponse
		if err := json.Unmarshal(encoded, &whole); err != nil {
			t.Fatal(err)
		}
		if stdout, stderr := whole.Output(); !slices.Equal(stdout, all) || string(stderr) != "a\xe2\x82" || !strings.Contains(whole.Stdout, "\uFFFD") {
			t.Errorf("not streamed: %s", encoded)
		}
	})
	t.Run("output that is cut ends with a character", func(t *testing.T) {
		command := []string{"node", "-e", `process.stdout.write("€".repeat(400000))`}
		text, _, exact := joined(g.streamed(t, "output", command...)["stdout"])
		got := g.call(t, http.MethodPost, "/sandbox/output/exec", object{"command": command}, http.StatusOK)
		atOnce, _ := got["stdout"].(string)
		for how, text := range map[string]string{"streamed": text, "at once": atOnce} {
			if len(text) != 1<<20-1 || strings.Trim(text, "€") != "" || exact != 0 || got["stdoutBase64"] != nil {
				t.Errorf("%s: %d bytes, %d events in base64, the end is %q", how, len(text), exact, text[max(0, len(text)-6):])
			}
		}
	})
	t.Run("a folder's entries by type, and a file that is missing", func(t *testing.T) {
		g.script(t, "output", "cd ~/workspace && mkdir -p of/folder && touch of/file && ln -s file of/link")
		for kind, want := range map[string]string{"file": "file", "directory": "folder", "symlink": "link", "other": "", "": "file folder link"} {
			entries, _ := g.call(t, http.MethodGet, "/sandbox/output/files/workspace/of?type="+kind, nil, http.StatusOK)["entries"].([]any)
			var names []string
			for _, e := range entries {
				name, _ := e.(object)["name"].(string)
				names = append(names, name)
			}
			if strings.Join(names, " ") != want {
				t.Errorf("type %q: %q", kind, names)
			}
		}
		if got := g.call(t, http.MethodGet, "/sandbox/output/files/workspace/of?type=folder", nil, http.StatusBadRequest); got["error"] != "type must be one of file, directory, symlink, other" {
			t.Errorf("%v", got)
		}
		got := g.call(t, http.MethodGet, "/sandbox/output/files/workspace/of/nope.txt", nil, http.StatusNotFound)
		if got["code"] != "file_not_found" || got["error"] != `open "workspace/of/nope.txt": no such file or folder` {
			t.Errorf("%v", got)
		}
	})
}

func TestACommitIsClonedByItsName(t *testing.T) {
	g := shared(t)
	work := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "git", "clone", "-q", g.git.URL(), work).CombinedOutput(); err != nil { //nolint:gosec // the test's own server
		t.Fatalf("%v: %s", err, out)
	}
	first, err := exec.CommandContext(t.Context(), "git", "-C", work, "rev-parse", "HEAD~1").Output() //nolint:gosec // the folder made above
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(first))
	g.create(t, "pinned", object{"gitUrl": " " + g.git.URL() + "\n", "gitBranch": commit})
	defer g.delete(t, "pinned")
	if got := g.script(t, "pinned", "git rev-parse HEAD && git status --short && git branch --show-current && git rev-list --count origin/main"); strings.TrimSpace(got) != commit+"\n2" {
		t.Errorf("%q, want %s", got, commit)
	}
	absent := strings.Repeat("1", 40)
	got := g.call(t, http.MethodPost, "/sandbox", object{"id": "absent", "userId": "user_1", "gitUrl": g.git.URL(), "gitBranch": absent}, http.StatusUnprocessableEntity)
	if said, _ := got["error"].(string); got["code"] != "clone_failed" || !strings.Contains(said, "The commit "+absent+" is on no branch") {
		t.Errorf("%v", got)
	}
}
