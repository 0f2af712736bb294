package opencode

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Session is one conversation. ParentID is set for a subagent's.
type Session struct {
	ID       string `json:"id"`
	ParentID string `json:"parentID,omitempty"`
}

// Prompt is a message to a session. Model and Agent are the session's own when
// they are not set. An unknown model is stored with the session and breaks its
// next message too, so check it first. Mark, unless empty, is kept beside the text, where no model sees it: the
// message can be told by it afterwards.
type Prompt struct {
	Text  string
	Model *sandbox.Model
	Agent string
	Mark  string
}

// Message is one message of a session. Parts are as OpenCode sent them.
type Message struct {
	Info  Info
	Parts []json.RawMessage
}

// Info describes a message. Error is set when the model failed; Finish is empty
// when an assistant's message was cut short.
type Info struct {
	ID         string   `json:"id"`
	SessionID  string   `json:"sessionID"`
	ParentID   string   `json:"parentID"`
	Role       string   `json:"role"`
	Finish     string   `json:"finish"`
	ProviderID string   `json:"providerID"`
	ModelID    string   `json:"modelID"`
	Agent      string   `json:"agent"`
	Error      *Failure `json:"error"`
}

// Failure is why a message failed. Texts are cleaned; nothing else that OpenCode
// says of it is kept, as it names URLs and headers of the provider.
type Failure struct {
	Name       string
	Message    string
	StatusCode int // the provider's, 0 if there was none
}

// UnmarshalJSON reads OpenCode's {name,data:{message,statusCode}}.
func (f *Failure) UnmarshalJSON(data []byte) error {
	var raw struct {
		Name string `json:"name"`
		Data struct {
			Message    string  `json:"message"`
			StatusCode float64 `json:"statusCode"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	*f = Failure{Name: line(raw.Name), Message: line(raw.Data.Message)}
	if code := int(raw.Data.StatusCode); code >= 100 && code <= 999 {
		f.StatusCode = code
	}
	return nil
}

var idPattern = regexp.MustCompile(`^[a-z]{3}[A-Za-z0-9_-]{1,120}$`)

// element checks an id and makes it a path element. OpenCode answers an id of
// another form with a 500, or not at all.
func element(id, prefix string) (string, error) {
	if !idPattern.MatchString(id) || id[:3] != prefix {
		return "", &Error{Status: http.StatusNotFound, Name: NameNotFound, Message: fmt.Sprintf("%q is no id of the kind %s", line(id), prefix)}
	}
	return id, nil
}

func (c *Client) session(ctx context.Context, id, below string, call call) error {
	e, err := element(id, "ses")
	if err != nil {
		return err
	}
	call.path = "/session/" + e + below
	return c.do(ctx, call)
}

// CreateSession begins a session.
func (c *Client) CreateSession(ctx context.Context, title string) (Session, error) {
	var s Session
	err := c.do(ctx, call{
		method: http.MethodPost, path: "/session", body: map[string]string{"title": title},
		limit: maxDocument, decode: into(&s),
	})
	if err != nil {
		return s, err
	}
	if _, err := element(s.ID, "ses"); err != nil {
		return s, &Error{Status: http.StatusOK, Name: NameInvalidReply, Message: "the new session has no valid id"}
	}
	return s, nil
}

// GetSession returns a session; one that does not exist is an error for which
// IsNotFound is true.
func (c *Client) GetSession(ctx context.Context, id string) (Session, error) {
	var s Session
	err := c.session(ctx, id, "", call{method: http.MethodGet, limit: maxDocument, decode: into(&s)})
	return s, err
}

// markKey is where a Prompt's Mark is in a part's metadata.
const markKey = "agentpod"

func (p Prompt) body() any {
	type part struct {
		Text     string            `json:"text"`
		Type     string            `json:"type"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}
	text := part{Type: "text", Text: p.Text}
	if p.Mark != "" {
		text.Metadata = map[string]string{markKey: p.Mark}
	}
	return struct {
		Model *sandbox.Model `json:"model,omitempty"`
		Agent string         `json:"agent,omitempty"`
		Parts []part         `json:"parts"`
	}{p.Model, p.Agent, []part{text}}
}

// Carries says whether a message is that of a Prompt with this Mark.
func (m *Message) Carries(mark string) bool {
	return slices.ContainsFunc(m.Parts, func(raw json.RawMessage) bool {
		var part struct{ Metadata map[string]any }
		return json.Unmarshal(raw, &part) == nil && part.Metadata[markKey] == mark
	})
}

// Message returns one message of a session; one that does not exist is an error for
// which IsNotFound is true.
func (c *Client) Message(ctx context.Context, session, id string) (Message, error) {
	var m Message
	e, err := element(id, "msg")
	if err != nil {
		return m, err
	}
	err = c.session(ctx, session, "/message/"+e, call{method: http.MethodGet, limit: maxMessage, decode: m.decode})
	return m, err
}

// PromptMessage sends a prompt and waits until the turn is over, however long
// that takes: only ctx bounds it. Ending ctx does not end the turn. The reply is
// the turn's last message; look at its Error, and at Finish.
func (c *Client) PromptMessage(ctx context.Context, id string, p Prompt) (Message, error) {
	var m Message
	err := c.session(ctx, id, "/message", call{
		method: http.MethodPost, body: p.body(),
		limit: maxMessage, endless: true, decode: m.decode,
	})
	return m, err
}

// PromptAsync sends a prompt and does not wait. OpenCode accepts even nonsense
// here; only events and messages tell what becomes of it.
func (c *Client) PromptAsync(ctx context.Context, id string, p Prompt) error {
	return c.session(ctx, id, "/prompt_async", call{method: http.MethodPost, body: p.body()})
}

// Abort ends what a session does. A waiting PromptMessage then gets what there
// is, which can look like an empty success.
func (c *Client) Abort(ctx context.Context, id string) error {
	return c.session(ctx, id, "/abort", call{method: http.MethodPost})
}

// Messages returns the newest messages of a session, oldest first; limit 0
// means all.
func (c *Client) Messages(ctx context.Context, id string, limit int) ([]Message, error) {
	below := "/message"
	if limit > 0 {
		below += "?" + url.Values{"limit": {strconv.Itoa(limit)}}.Encode()
	}
	var list []Message
	err := c.session(ctx, id, below, call{method: http.MethodGet, limit: maxMessage, decode: func(r io.Reader) error {
		dec := json.NewDecoder(r)
		if err := expect(dec, '['); err != nil {
			return err
		}
		for dec.More() {
			if len(list) == maxElements {
				return fmt.Errorf("%w: more than %d messages", errMalformed, maxElements)
			}
			var m Message
			if err := m.read(dec); err != nil {
				return err
			}
			list = append(list, m)
		}
		return expect(dec, ']')
	}})
	return list, err
}

func (m *Message) decode(r io.Reader) error { return m.read(json.NewDecoder(r)) }

// read decodes key by key, so that beside the parts themselves only one of them
// is held at a time.
func (m *Message) read(dec *json.Decoder) error {
	err := decodeObject(dec, maxKeys, func(key string) error {
		switch key {
		case "info":
			return dec.Decode(&m.Info)
		case "parts":
			m.Parts = []json.RawMessage{}
			return decodeList(dec, &m.Parts, maxParts)
		default:
			return dec.Decode(&skipped{})
		}
	})
	if err != nil {
		return err
	}
	if m.Info.ID == "" || m.Parts == nil {
		return fmt.Errorf("%w: a message without info or parts", errMalformed)
	}
	return nil
}
