package opencode

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
)

// The types of a Status; a session that is idle has none.
const (
	StatusBusy  = "busy"
	StatusRetry = "retry"
)

// Status is what a session does. Message says, for a retry, what the model's
// provider said.
type Status struct {
	Type    string `json:"type"`
	Attempt int    `json:"attempt"`
	Message string `json:"message"`
}

// SessionStatus returns the status of every session that is not idle.
func (c *Client) SessionStatus(ctx context.Context) (map[string]Status, error) {
	var all map[string]Status
	err := c.do(ctx, call{method: http.MethodGet, path: "/session/status", limit: maxPoll, decode: into(&all)})
	for id, s := range all {
		s.Message = Clean(s.Message)
		all[id] = s
	}
	return all, err
}

// PermissionRequest is a tool call that waits for somebody's leave.
type PermissionRequest struct {
	ID         string   `json:"id"`
	SessionID  string   `json:"sessionID"`
	Permission string   `json:"permission"`
	Patterns   []string `json:"patterns"`
}

// Reply answers a permission request.
type Reply string

// The replies to a permission request.
const (
	ReplyOnce   Reply = "once"
	ReplyAlways Reply = "always"
	ReplyReject Reply = "reject"
)

// Permissions returns the requests that wait, of every session.
func (c *Client) Permissions(ctx context.Context) ([]PermissionRequest, error) {
	var list []PermissionRequest
	err := c.do(ctx, call{method: http.MethodGet, path: "/permission", limit: maxPoll, decode: intoList(&list, maxElements)})
	return list, err
}

// ReplyPermission answers a permission request; one that waits no more is an
// error for which IsNotFound is true.
func (c *Client) ReplyPermission(ctx context.Context, id string, reply Reply) error {
	return c.answer(ctx, "/permission/", id, "per", "/reply", map[string]Reply{"reply": reply})
}

// Question is a question of the model to a person.
type Question struct {
	ID        string `json:"id"`
	SessionID string `json:"sessionID"`
	Questions []struct {
		Question string `json:"question"`
		Header   string `json:"header"`
		Options  []struct {
			Label       string `json:"label"`
			Description string `json:"description"`
		} `json:"options"`
	} `json:"questions"`
}

// Questions returns the questions that wait, of every session.
func (c *Client) Questions(ctx context.Context) ([]Question, error) {
	var list []Question
	err := c.do(ctx, call{method: http.MethodGet, path: "/question", limit: maxPoll, decode: intoList(&list, maxElements)})
	return list, err
}

// ReplyQuestion answers a question: for each of its questions the labels chosen.
func (c *Client) ReplyQuestion(ctx context.Context, id string, answers [][]string) error {
	return c.answer(ctx, "/question/", id, "que", "/reply", map[string][][]string{"answers": answers})
}

// RejectQuestion dismisses a question, which ends the turn that asked it.
func (c *Client) RejectQuestion(ctx context.Context, id string) error {
	return c.answer(ctx, "/question/", id, "que", "/reject", nil)
}

func (c *Client) answer(ctx context.Context, above, id, prefix, below string, body any) error {
	e, err := element(id, prefix)
	if err != nil {
		return err
	}
	return c.do(ctx, call{method: http.MethodPost, path: above + e + below, body: body})
}

// Agent is an agent that a prompt can name. Hidden ones do OpenCode's own work.
type Agent struct {
	Name   string `json:"name"`
	Mode   string `json:"mode"`
	Hidden bool   `json:"hidden"`
}

// Agents returns the agents that exist.
func (c *Client) Agents(ctx context.Context) ([]Agent, error) {
	var list []Agent
	err := c.do(ctx, call{method: http.MethodGet, path: "/agent", limit: maxDocument, decode: intoList(&list, maxElements)})
	return list, err
}

// Provider is a provider that is set up, with the ids of its models, sorted.
type Provider struct {
	ID     string
	Models []string
}

// Providers returns the providers that are set up and the default model of each,
// by provider id. Their keys and options are not read.
func (c *Client) Providers(ctx context.Context) (providers []Provider, defaults map[string]string, err error) {
	var reply struct {
		Providers []struct {
			ID     string              `json:"id"`
			Models map[string]struct{} `json:"models"`
		} `json:"providers"`
		Default map[string]string `json:"default"`
	}
	err = c.do(ctx, call{method: http.MethodGet, path: "/config/providers", limit: maxDocument, decode: into(&reply)})
	for _, p := range reply.Providers {
		providers = append(providers, Provider{ID: p.ID, Models: slices.Sorted(maps.Keys(p.Models))})
	}
	return providers, reply.Default, err
}

// Config returns OpenCode's effective config. It holds credentials: it is not
// for logs.
func (c *Client) Config(ctx context.Context) (json.RawMessage, error) {
	var config json.RawMessage
	err := c.do(ctx, call{method: http.MethodGet, path: "/config", limit: maxDocument, decode: func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&config)
	}})
	return config, err
}
