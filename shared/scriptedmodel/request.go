package scriptedmodel

import (
	"encoding/json"
	"errors"
	"strings"
)

// Request is what a client asks: the parts of a chat completion request that
// the server looks at.
type Request struct {
	Model         string    `json:"model"`
	Stream        bool      `json:"stream"`
	Messages      []Message `json:"messages"`
	Tools         []Tool    `json:"tools"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`

	// SessionID and Authorization come from the headers.
	SessionID     string `json:"-"`
	Authorization string `json:"-"`
}

// Message is one message of a request.
type Message struct {
	Role    string  `json:"role"`
	Content Content `json:"content"`
}

// Tool is a tool that the client offers.
type Tool struct {
	Function struct {
		Name       string          `json:"name"`
		Parameters json.RawMessage `json:"parameters"`
	} `json:"function"`
}

// Content is a message's text. On the wire it is a string, null or a list of
// parts, of which the text parts count; what OpenCode slips in as a
// <system-reminder> does not.
type Content string

// UnmarshalJSON implements json.Unmarshaler.
func (c *Content) UnmarshalJSON(b []byte) error {
	var s *string
	if json.Unmarshal(b, &s) == nil {
		if s != nil {
			*c = Content(*s)
		}
		return nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return errors.New("a message's content is neither text nor a list of parts")
	}
	var texts []string
	for _, p := range parts {
		if p.Type == "text" && !strings.HasPrefix(strings.TrimSpace(p.Text), "<system-reminder>") {
			texts = append(texts, p.Text)
		}
	}
	*c = Content(strings.Join(texts, "\n"))
	return nil
}

// UserMessage is the text of the last user message, empty if there is none.
func (r *Request) UserMessage() string {
	if i := r.lastUser(); i >= 0 {
		return string(r.Messages[i].Content)
	}
	return ""
}

func (r *Request) lastUser() int {
	for i := len(r.Messages) - 1; i >= 0; i-- {
		if r.Messages[i].Role == "user" {
			return i
		}
	}
	return -1
}

// toolResults are the results that came back since the last user message.
func (r *Request) toolResults() []string {
	var out []string
	for _, m := range r.Messages[r.lastUser()+1:] {
		if m.Role == "tool" {
			out = append(out, string(m.Content))
		}
	}
	return out
}

func (r *Request) offers(tool string) bool {
	for _, t := range r.Tools {
		if t.Function.Name == tool {
			return true
		}
	}
	return false
}
