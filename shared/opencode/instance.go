package opencode

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	Message string `json:"message"`
}

// SessionStatus returns the status of every session that is not idle.
func (c *Client) SessionStatus(ctx context.Context) (map[string]Status, error) {
	all := make(map[string]Status)
	err := c.do(ctx, call{method: http.MethodGet, path: "/session/status", limit: maxPoll, decode: func(r io.Reader) error {
		dec := json.NewDecoder(r)
		return decodeObject(dec, maxElements, func(id string) error {
			var s Status
			if err := dec.Decode(&s); err != nil {
				return err
			}
			s.Message = line(s.Message)
			all[id] = s
			return nil
		})
	}})
	return all, err
}

// PermissionRequest is a tool call that waits for somebody's leave.
type PermissionRequest struct {
	ID        string `json:"id"`
	SessionID string `json:"sessionID"`
}

// Reply answers a permission request.
type Reply string

// The replies to a permission request.
const (
	ReplyOnce   Reply = "once"
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
}

// Questions returns the questions that wait, of every session.
func (c *Client) Questions(ctx context.Context) ([]Question, error) {
	var list []Question
	err := c.do(ctx, call{method: http.MethodGet, path: "/question", limit: maxPoll, decode: intoList(&list, maxElements)})
	return list, err
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

// Providers returns the providers that are set up. Their keys and options are
// not read.
func (c *Client) Providers(ctx context.Context) ([]Provider, error) {
	providers := []Provider{}
	err := c.do(ctx, call{method: http.MethodGet, path: "/config/providers", limit: maxDocument, decode: func(r io.Reader) error {
		dec := json.NewDecoder(r)
		models := 0
		return decodeObject(dec, maxKeys, func(key string) error {
			if key != "providers" {
				return dec.Decode(&skipped{})
			}
			return decodeProviders(dec, &providers, &models)
		})
	}})
	return providers, err
}

func decodeProviders(dec *json.Decoder, out *[]Provider, models *int) error {
	if err := expect(dec, '['); err != nil {
		return err
	}
	for dec.More() {
		if len(*out) == maxProviders {
			return fmt.Errorf("%w: more than %d providers", errMalformed, maxProviders)
		}
		var p Provider
		err := decodeObject(dec, maxKeys, func(key string) error {
			switch key {
			case "id":
				return dec.Decode(&p.ID)
			case "models":
				return decodeObject(dec, maxModels-*models, func(id string) error {
					*models++
					p.Models = append(p.Models, id)
					return dec.Decode(&skipped{})
				})
			default:
				return dec.Decode(&skipped{})
			}
		})
		if err != nil {
			return err
		}
		slices.Sort(p.Models)
		*out = append(*out, p)
	}
	return expect(dec, ']')
}
