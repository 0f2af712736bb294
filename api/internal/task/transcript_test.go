package task

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/agentpod/agentpod/shared/opencode"
)

const session = "ses_1"

func happened(kind string, properties string, args ...any) opencode.Event {
	return opencode.Event{Type: kind, Properties: json.RawMessage(fmt.Sprintf(properties, args...))}
}

func message(id, role string) opencode.Event {
	return happened("message.updated", `{"sessionID":"ses_1","info":{"id":%q,"role":%q,"sessionID":"ses_1"}}`, id, role)
}

func snapshot(messageID, id, text string) opencode.Event {
	return happened("message.part.updated", `{"part":{"id":%q,"type":"text","text":%q,"messageID":%q,"sessionID":"ses_1"}}`, id, text, messageID)
}

func delta(id, text string) opencode.Event {
	return happened("message.part.delta", `{"sessionID":"ses_1","partID":%q,"field":"text","delta":%q}`, id, text)
}

func TestATranscriptGivesTheAgentsText(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		events []opencode.Event
		want   []string // after each event
	}{
		"increments, and then the whole": {
			[]opencode.Event{message("m", "assistant"), snapshot("m", "p", ""), delta("p", "one "), delta("p", "two"), snapshot("m", "p", "one two three")},
			[]string{"", "", "one ", "two", " three"},
		},
		"not what the user wrote": {
			[]opencode.Event{message("u", "user"), snapshot("u", "p", "hello"), delta("p", "!")},
			[]string{"", "", ""},
		},
		"not what nobody is known to have written": {
			[]opencode.Event{snapshot("m", "p", "hello"), delta("p", "!")},
			[]string{"", ""},
		},
		"not another session's": {
			[]opencode.Event{
				message("m", "assistant"),
				happened("message.part.updated", `{"part":{"id":"p","type":"text","text":"no","messageID":"m","sessionID":"ses_2"}}`),
				happened("message.part.delta", `{"sessionID":"ses_2","partID":"p","field":"text","delta":"no"}`),
			},
			[]string{"", "", ""},
		},
		"not its thoughts, nor what the program added": {
			[]opencode.Event{
				message("m", "assistant"),
				happened("message.part.updated", `{"part":{"id":"r","type":"reasoning","text":"hm","messageID":"m","sessionID":"ses_1"}}`), delta("r", "hm"),
				happened("message.part.updated", `{"part":{"id":"s","type":"text","synthetic":true,"text":"x","messageID":"m","sessionID":"ses_1"}}`),
			},
			[]string{"", "", "", ""},
		},
		"parts on lines of their own": {
			[]opencode.Event{message("m", "assistant"), snapshot("m", "p", "one"), snapshot("m", "q", ""), delta("q", "two"), snapshot("m", "q", "two")},
			[]string{"", "one", "", "\ntwo", ""},
		},
		"nothing twice when a part is told again in fewer words": {
			[]opencode.Event{message("m", "assistant"), snapshot("m", "p", "one two"), snapshot("m", "p", "one"), snapshot("m", "p", "one two three")},
			[]string{"", "one two", "", " three"},
		},
		"nothing of events that are none": {
			[]opencode.Event{happened("message.part.delta", `[]`), happened("message.updated", `"x"`), happened("message.part.updated", `{`)},
			[]string{"", "", ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := newTranscript("")
			for i, e := range c.events {
				text.event(session, e)
				if got := text.rest(); got != c.want[i] {
					t.Errorf("after event %d: %q, want %q", i, got, c.want[i])
				}
			}
		})
	}
}

func TestAToolIsToldOnceWhenItRuns(t *testing.T) {
	t.Parallel()
	text := newTranscript("")
	tool := func(status string) opencode.Event {
		return happened("message.part.updated", `{"part":{"id":"p","type":"tool","tool":"write\u001b[2J","messageID":"m","sessionID":"ses_1","state":{"status":%q}}}`, status)
	}
	var told []string
	for _, e := range []opencode.Event{message("m", "assistant"), tool("pending"), tool("running"), tool("running"), tool("completed")} {
		if doing := text.event(session, e); doing != "" {
			told = append(told, doing)
		}
	}
	if len(told) != 1 || told[0] != "write [2J" {
		t.Errorf("told %q", told)
	}
}

// Whoever read the beginning gets the rest, wherever the first reading broke off.
func TestATranscriptGoesOnWhereAnotherBrokeOff(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-c\n]{0,6}`), 0, 6).Draw(t, "parts")
		whole := newTranscript("")
		for i, text := range parts {
			whole.set(fmt.Sprint(i), text)
		}
		all := whole.rest()
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		second, given := newTranscript(all[:cut]), all[:cut]
		for i, text := range parts {
			n := rapid.IntRange(0, len(text)).Draw(t, "told")
			second.set(fmt.Sprint(i), text[:n])
			given += second.rest()
			second.set(fmt.Sprint(i), text)
			given += second.rest()
		}
		if given != all {
			t.Fatalf("given %q, want %q", given, all)
		}
	})
}

func TestATranscriptThatBeginsOtherwiseGivesNothing(t *testing.T) {
	t.Parallel()
	text := newTranscript("what was given")
	text.set("p", "something else")
	if got := text.rest(); got != "" {
		t.Errorf("it gave %q", got)
	}
}

func TestATranscriptIsBounded(t *testing.T) {
	t.Parallel()
	text := newTranscript("")
	text.event(session, message("m", "assistant"))
	text.set("p", "")
	chunk := strings.Repeat("x", 1<<20)
	for range 80 {
		text.add("p", chunk)
	}
	for i := range 2 * maxTold {
		text.set(fmt.Sprint(i), "y")
	}
	if n := len(text.rest()); n > maxText+2*maxTold || len(text.texts) > maxTold {
		t.Errorf("%d bytes in %d parts", n, len(text.texts))
	}
}
