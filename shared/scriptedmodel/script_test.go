package scriptedmodel_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

func TestScripts(t *testing.T) {
	s := start(t, scriptedmodel.Options{Workspace: "/w"})
	for name, tc := range map[string]struct {
		messages []message
		want     reply
	}{
		"any message is echoed": {
			[]message{user("héllo there")}, reply{Text: "echo: héllo there"},
		},
		"several lines that are no script are echoed whole": {
			[]message{user("hello\nsay no")}, reply{Text: "echo: hello\nsay no"},
		},
		"an empty message is echoed": {
			[]message{user("")}, reply{Text: "echo: "},
		},
		"only the last user message counts": {
			[]message{user("run ls"), result("x"), {"role": "assistant", "content": "x"}, user("say two")}, reply{Text: "two"},
		},
		"content may be a list of parts, reminders left out": {
			[]message{{"role": "user", "content": []any{
				map[string]any{"type": "text", "text": "say hi"},
				map[string]any{"type": "text", "text": "<system-reminder>\nPlan mode</system-reminder>"},
				map[string]any{"type": "image_url"},
			}}}, reply{Text: "hi"},
		},
		"a write calls the tool with an absolute path": {
			[]message{user(`write a/b.txt: one\ntwo: 3`)},
			reply{Tool: "write", Args: `{"content":"one\ntwo: 3","filePath":"/w/a/b.txt"}`},
		},
		"a write to an absolute name stays there": {
			[]message{user(`write /etc/x: ü`)},
			reply{Tool: "write", Args: `{"content":"ü","filePath":"/etc/x"}`},
		},
		"a finished write is confirmed": {
			[]message{user(`write b.txt: x`), result("Wrote file successfully.")}, reply{Text: "wrote b.txt"},
		},
		"a failed write says so": {
			[]message{user(`write b.txt: x`), result("The user rejected")}, reply{Text: "could not write b.txt: The user rejected"},
		},
		"a run calls bash": {
			[]message{user(`run echo "a b" | wc`)}, reply{Tool: "bash", Args: `{"command":"echo \"a b\" | wc"}`},
		},
		"a finished run answers with its output, cut": {
			[]message{user("run x"), result(strings.Repeat("y", 100_000))}, reply{Text: strings.Repeat("y", 8<<10)},
		},
		"a question is asked": {
			[]message{user("ask Red?")},
			reply{Tool: "question", Args: `{"questions":[{"header":"Scripted","options":[{"label":"Yes","description":"Go on"},{"label":"No","description":"Stop here"}],"question":"Red?"}]}`},
		},
		"any tool can be called": {
			[]message{user(`call bash {"command":"x"}`)}, reply{Tool: "bash", Args: `{"command":"x"}`},
		},
		"a tool that is not offered is named": {
			[]message{user(`call nope {}`)}, reply{Text: `there is no tool "nope" here`},
		},
		"chunks are counted": {
			[]message{user("chunks 3 1ms")}, reply{Text: "chunk 1\nchunk 2\nchunk 3"},
		},
		"a stall may end": {
			[]message{user("stall 5ms")}, reply{Text: "stalled 5ms"},
		},
		"several steps: first the texts up to a call": {
			[]message{user("say one\n\nsay two\nwrite a: b\nsay three")}, reply{Text: "one\ntwo", Tool: "write", Args: `{"content":"b","filePath":"/w/a"}`},
		},
		"several steps: then on behind the result": {
			[]message{user("say one\nwrite a: b\nsay three\nrun ls\nplain"), result("Wrote file")}, reply{Text: "wrote a\nthree", Tool: "bash", Args: `{"command":"ls"}`},
		},
		"several steps: to the end": {
			[]message{user("say one\nwrite a: b\nsay three\nrun ls\nplain"), result("Wrote file"), {"role": "assistant", "content": nil}, result("a")}, reply{Text: "a\necho: plain"},
		},
		"more results than calls end the script": {
			[]message{user("say one"), result("x")}, reply{},
		},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", streamed", false: ", whole"}[stream], func(t *testing.T) {
				got := mustRead(t, ask(t.Context(), t, s, stream, tc.messages...))
				want := tc.want
				want.Usage, want.Done, want.Finish = true, stream, "stop"
				if want.Tool != "" {
					want.Finish = "tool_calls"
				}
				if stream && strings.HasPrefix(want.Text, "echo: h") && got.Chunks < 3 {
					t.Errorf("echo came in %d chunks", got.Chunks)
				}
				got.Chunks = 0
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestWhatLooksLikeACommandButIsNotIsEchoed(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for _, text := range []string{
		"say", "run", "write me a poem", "write a poem: about x", "fail", "fail 200", "fail often", "chunks 0 1s", "chunks 3", "chunks 3 2h",
		"flood", "flood 5GB", "flood 999999999MB", "stall soon", "once upon a time", "once fail", "html please", "drop it", "call bash {", "SAY x",
	} {
		if got := mustRead(t, ask(t.Context(), t, s, true, user(text))); got.Text != "echo: "+text {
			t.Errorf("%q answered %q", text, got.Text)
		}
	}
}

func TestFailuresComeWithStatusAndMessage(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for _, stream := range []bool{true, false} {
		for script, want := range map[string]struct {
			status  int
			message string
		}{
			"fail 401 bad key": {401, "bad key"},
			"fail 429":         {429, "scripted failure: 429 Too Many Requests"},
			"fail 500 broken":  {500, "broken"},
			"fail 503":         {503, "scripted failure: 503 Service Unavailable"},
			"fail 400 no":      {400, "no"},
		} {
			resp := ask(t.Context(), t, s, stream, user(script))
			if r := mustRead(t, resp); resp.StatusCode != want.status || r.Error != want.message {
				t.Errorf("%s: %d %+v", script, resp.StatusCode, r)
			}
			if got := resp.Header.Get("Retry-After") != ""; got != (want.status == 429) {
				t.Errorf("%s: Retry-After present %v", script, got)
			}
		}
	}
	resp := ask(t.Context(), t, s, true, user("say x\nfail 500 late"))
	if r := mustRead(t, resp); resp.StatusCode != http.StatusOK || r.Text != "x" || r.Error != "late" || r.Done {
		t.Errorf("a late failure: %d %+v", resp.StatusCode, r)
	}
}

func TestOnceFailsTheFirstTimeASessionAsks(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	script := user("once fail 500 hiccup\nsay fine")
	status := func(messages ...message) (int, string) {
		resp := ask(t.Context(), t, s, true, messages...)
		return resp.StatusCode, mustRead(t, resp).Text
	}
	if code, _ := status(script); code != 500 {
		t.Errorf("first: %d", code)
	}
	for range 2 {
		if code, text := status(script); code != 200 || text != "answered after failing once\nfine" {
			t.Errorf("again: %d %q", code, text)
		}
	}
	if code, _ := status(user("earlier"), script); code != 500 {
		t.Errorf("asked anew: %d", code)
	}
}

func TestATitleRequestRunsNoScript(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	resp := post(t.Context(), t, s, map[string]any{"model": "echo", "stream": true, "messages": []message{
		user("Generate a title for this conversation:\n"), user("fail 500"),
	}})
	if r := mustRead(t, resp); resp.StatusCode != http.StatusOK || r.Text != "Scripted answers" || r.Usage {
		t.Errorf("%d %+v", resp.StatusCode, r)
	}
}

func TestHTMLIsAPageWithStatus200(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	resp := ask(t.Context(), t, s, true, user("html"))
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !strings.HasPrefix(string(b), "<!doctype html>") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, b)
	}
}

func TestADropBreaksOffInTheMiddle(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	r, err := read(t, ask(t.Context(), t, s, true, user("drop")))
	if err == nil || r.Done || r.Text != "about to be cut o" {
		t.Errorf("%v %+v", err, r)
	}
	if _, err := read(t, ask(t.Context(), t, s, false, user("drop"))); err == nil {
		t.Error("a whole answer arrived")
	}
}

func TestAStallSendsHeadersFirst(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for _, stream := range []bool{true, false} {
		// ask returns once the headers are here, though the answer never comes.
		resp := ask(t.Context(), t, s, stream, user("stall"))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

func TestChunksAreAsFarApartAsAsked(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	begin := time.Now()
	got := mustRead(t, ask(t.Context(), t, s, true, user("chunks 4 20ms")))
	if took := time.Since(begin); took < 60*time.Millisecond || got.Chunks != 4 {
		t.Errorf("%d chunks in %v", got.Chunks, took)
	}
}

func TestAFloodHasTheSizeAskedFor(t *testing.T) {
	s := start(t, scriptedmodel.Options{})
	for script, want := range map[string]int{"flood 5": 5, "flood 3KB": 3 << 10, "flood 2mb": 2 << 20} {
		got := mustRead(t, ask(t.Context(), t, s, true, user(script)))
		if len(got.Text) != want || !got.Done {
			t.Errorf("%s: %d bytes", script, len(got.Text))
		}
	}
}

func TestAScriptHookTakesTheMessagesPlace(t *testing.T) {
	s := start(t, scriptedmodel.Options{Script: func(r scriptedmodel.Request) string {
		if r.UserMessage() == "hooked" {
			return "say by " + r.SessionID
		}
		return ""
	}})
	if got := mustRead(t, ask(t.Context(), t, s, true, user("hooked"))); got.Text != "by ses_1" {
		t.Errorf("%+v", got)
	}
	if got := mustRead(t, ask(t.Context(), t, s, true, user("other"))); got.Text != "echo: other" {
		t.Errorf("%+v", got)
	}
}
