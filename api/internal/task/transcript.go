package task

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/opencode"
	"github.com/agentpod/agentpod/shared/printable"
)

// transcript is the text that an agent wrote in one session: the text parts of
// its messages in their order, joined with line breaks. It gives each byte once.
// It is not safe for concurrent use.
type transcript struct {
	texts [][]byte
	index map[string]int // by part
	roles map[string]string
	tools map[string]bool // the tool calls that were told already
	// The next byte to give is texts[at][offset]; begun says that one was given.
	at, offset int
	begun      bool
	size       int    // of all texts
	held       []byte // on its way out
	before     string // what somebody gave before
}

// newTranscript begins one of which somebody gave the beginning before.
func newTranscript(before string) *transcript {
	return &transcript{index: map[string]int{}, roles: map[string]string{}, tools: map[string]bool{}, before: before}
}

// part is what a task reads of a part of a message.
type part struct {
	ID        string `json:"id"`
	Type      string `json:"type"`
	SessionID string `json:"sessionID"`
	MessageID string `json:"messageID"`
	Text      string `json:"text"`
	Synthetic bool   `json:"synthetic"`
	Ignored   bool   `json:"ignored"`
	Tool      string `json:"tool"`
	State     struct {
		Status string `json:"status"`
	} `json:"state"`
}

func (p part) isText() bool { return p.Type == "text" && !p.Synthetic && !p.Ignored }

// The bounds of a transcript: parts and messages, and bytes of text.
const (
	maxTold = 10_000
	maxText = MaxEventBytes
)

// event takes an event of a session, and returns what the agent began to do with
// a tool, if it did.
func (t *transcript) event(session string, e opencode.Event) (doing string) {
	switch e.Type {
	case "message.updated":
		var p struct{ Info opencode.Info }
		if json.Unmarshal(e.Properties, &p) == nil && p.Info.SessionID == session && len(t.roles) < maxTold {
			t.roles[p.Info.ID] = p.Info.Role
		}
	case "message.part.updated":
		var p struct{ Part part }
		if json.Unmarshal(e.Properties, &p) != nil || p.Part.SessionID != session || t.roles[p.Part.MessageID] != roleAssistant {
			return ""
		}
		switch {
		case p.Part.isText():
			t.set(p.Part.ID, p.Part.Text)
		case p.Part.Type == "tool" && p.Part.State.Status == "running" && !t.tools[p.Part.ID] && len(t.tools) < maxTold:
			t.tools[p.Part.ID] = true
			return printable.Line(p.Part.Tool, maxToolName)
		}
	case "message.part.delta":
		var p struct{ SessionID, PartID, Field, Delta string }
		if json.Unmarshal(e.Properties, &p) == nil && p.SessionID == session && p.Field == "text" {
			t.add(p.PartID, p.Delta)
		}
	}
	return ""
}

const (
	roleAssistant = "assistant"
	roleUser      = "user"
	maxToolName   = 64 // bytes
)

// parts takes the parts of a finished message.
func (t *transcript) parts(raw []json.RawMessage) {
	for _, r := range raw {
		var p part
		if json.Unmarshal(r, &p) == nil && p.isText() {
			t.set(p.ID, p.Text)
		}
	}
}

// set replaces a part's text, and adds the part if it is new.
func (t *transcript) set(id, text string) {
	i, ok := t.index[id]
	grown := len(text)
	if ok {
		grown -= len(t.texts[i])
	}
	if len(t.texts) == maxTold && !ok || t.size+grown > maxText {
		return
	}
	t.size += grown
	if !ok {
		t.index[id] = len(t.texts)
		t.texts = append(t.texts, []byte(text))
		return
	}
	// What was given cannot be taken back.
	given := t.given(i)
	if len(text) < given {
		t.size -= grown
		return
	}
	t.texts[i] = append(t.texts[i][:given], text[given:]...)
}

// add adds to a part that is known.
func (t *transcript) add(id, delta string) {
	if i, ok := t.index[id]; ok && t.size+len(delta) <= maxText {
		t.size += len(delta)
		t.texts[i] = append(t.texts[i], delta...)
	}
}

// given is how many bytes of a part were given.
func (t *transcript) given(i int) int {
	switch {
	case i < t.at:
		return len(t.texts[i])
	case i == t.at:
		return t.offset
	}
	return 0
}

// rest returns what is new since the last call. Until the whole text begins with
// what somebody gave before, which is then left out, that is nothing.
func (t *transcript) rest() string {
	for t.at < len(t.texts) {
		if text := t.texts[t.at][t.offset:]; len(text) > 0 {
			if t.offset == 0 && t.begun {
				t.held = append(t.held, '\n')
			}
			t.held = append(t.held, text...)
			t.offset += len(text)
			t.begun = true
		}
		if t.at == len(t.texts)-1 {
			break
		}
		t.at, t.offset = t.at+1, 0
	}
	out, ok := strings.CutPrefix(string(t.held), t.before)
	if !ok {
		return ""
	}
	t.held, t.before = t.held[:0], ""
	return out
}

// end returns what is new at the end. If the whole does not begin with what
// somebody gave before, because OpenCode keeps a part without the white space at
// its end, that is what follows the beginning that both have.
func (t *transcript) end() string {
	if out := t.rest(); out != "" || t.before == "" {
		return out
	}
	n := 0
	for n < min(len(t.held), len(t.before)) && t.held[n] == t.before[n] {
		n++
	}
	for n > 0 && n < len(t.held) && !utf8.RuneStart(t.held[n]) {
		n--
	}
	out := string(t.held[n:])
	t.held, t.before = nil, ""
	return out
}

// empty tells whether there is no text.
func (t *transcript) empty() bool {
	for _, text := range t.texts {
		if len(text) > 0 {
			return false
		}
	}
	return true
}
