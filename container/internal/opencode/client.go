package opencode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
)

const (
	// A request sent before OpenCode's routes exist hangs for ever, so a probe
	// is short and on a connection of its own.
	healthTimeout = 500 * time.Millisecond
	callTimeout   = 15 * time.Second
	maxAnswer     = 4 << 20
)

// api speaks to the OpenCode of one run.
type api struct {
	base     string
	password string
	http     *http.Client
}

func newAPI(port int, password string) *api {
	return &api{
		base:     fmt.Sprintf("http://127.0.0.1:%d", port),
		password: password,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                  nil, // the sandbox's proxy settings are not for this
				DisableKeepAlives:      true,
				MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// call makes one request and decodes a 200 into out, which may be nil.
func (a *api) call(ctx context.Context, timeout time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode for OpenCode: %w", err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return fmt.Errorf("address OpenCode: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.SetBasicAuth("opencode", a.password)
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask OpenCode: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("read OpenCode's answer: %w", err)
	case len(raw) > maxAnswer:
		return fmt.Errorf("OpenCode's answer to %s is larger than %d bytes", path, maxAnswer)
	case resp.StatusCode == http.StatusBadRequest:
		return refused(raw)
	case resp.StatusCode != http.StatusOK:
		// Its body may repeat what was sent.
		return fmt.Errorf("OpenCode answered %s with status %d", path, resp.StatusCode)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("decode OpenCode's answer to %s: %w", path, err)
	}
	return nil
}

// health returns OpenCode's version if it is ready.
func (a *api) health(ctx context.Context) (version string, err error) {
	var body struct {
		Healthy bool   `json:"healthy"`
		Version string `json:"version"`
	}
	if err := a.call(ctx, healthTimeout, http.MethodGet, "/global/health", nil, &body); err != nil {
		return "", err
	}
	if !body.Healthy {
		return "", errors.New("OpenCode is not healthy")
	}
	return printable.Line(body.Version, 64), nil
}

// checkConfig makes OpenCode read its config afresh, on behalf of a directory
// that it has not seen. A directory whose config once failed to load stays
// broken until OpenCode restarts, so it must not be one that is worked in.
func (a *api) checkConfig(ctx context.Context, directory string) error {
	return a.call(ctx, callTimeout, http.MethodGet, "/config"+in(directory), nil, nil)
}

// forget disposes what OpenCode holds for one directory.
func (a *api) forget(ctx context.Context, directory string) error {
	return a.call(ctx, callTimeout, http.MethodPost, "/instance/dispose"+in(directory), nil, nil)
}

func (a *api) setAuth(ctx context.Context, provider string, credential json.RawMessage) error {
	return a.call(ctx, callTimeout, http.MethodPut, "/auth/"+url.PathEscape(provider), credential, nil)
}

func (a *api) removeAuth(ctx context.Context, provider string) error {
	return a.call(ctx, callTimeout, http.MethodDelete, "/auth/"+url.PathEscape(provider), nil, nil)
}

// dispose makes OpenCode forget what it read; the next request reads it anew.
func (a *api) dispose(ctx context.Context) error {
	return a.call(ctx, callTimeout, http.MethodPost, "/global/dispose", nil, nil)
}

// createSession makes a session with a title, which spares the model the call
// that would find one. An empty directory is the one that OpenCode runs in.
func (a *api) createSession(ctx context.Context, directory, title string) (id string, err error) {
	var body struct {
		ID string `json:"id"`
	}
	err = a.call(ctx, callTimeout, http.MethodPost, "/session"+in(directory), map[string]string{"title": title}, &body)
	if err == nil && body.ID == "" {
		err = errors.New("OpenCode made a session without an id")
	}
	return body.ID, err
}

func (a *api) deleteSession(ctx context.Context, directory, id string) error {
	return a.call(ctx, callTimeout, http.MethodDelete, "/session/"+url.PathEscape(id)+in(directory), nil, nil)
}

// message is what is sent to a session. Without a Model it is the session's own.
type message struct {
	Model   *modelName `json:"model,omitempty"`
	NoReply bool       `json:"noReply,omitempty"`
	Parts   []textPart `json:"parts"`
}

type modelName struct {
	ProviderID string `json:"providerID"`
	ModelID    string `json:"modelID"`
}

type textPart struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// send sends a message and waits for the end of the turn.
func (a *api) send(ctx context.Context, directory, session string, m message) error {
	return a.call(ctx, maxBoot, http.MethodPost, "/session/"+url.PathEscape(session)+"/message"+in(directory), m, nil)
}

// visit asks for something whose answer, of any length, nobody needs.
func (a *api) visit(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return fmt.Errorf("address OpenCode: %w", err)
	}
	req.SetBasicAuth("opencode", a.password)
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask OpenCode: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("OpenCode answered %s with status %d", path, resp.StatusCode)
	}
	return nil
}

// in is the query that names a directory.
func in(directory string) string {
	if directory == "" {
		return ""
	}
	return "?" + url.Values{"directory": {directory}}.Encode()
}

// sessionStatus maps the ids of the first maxTurns sessions that have a status
// to "busy", "retry" or "idle".
func (a *api) sessionStatus(ctx context.Context) (map[string]string, error) {
	var body turns
	err := a.call(ctx, busyTimeout, http.MethodGet, "/session/status", nil, &body)
	return body, err
}

// turns is decoded one by one: OpenCode is what the agent made of it, and
// megabytes of nothing must not become many times that.
type turns map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (t *turns) UnmarshalJSON(raw []byte) error {
	*t = make(turns)
	return eachElement(raw, '{', maxTurns, func(dec *json.Decoder) error {
		id, err := dec.Token()
		if err != nil {
			return err
		}
		var status struct {
			Type string `json:"type"`
		}
		if err := dec.Decode(&status); err != nil {
			return err
		}
		(*t)[fmt.Sprint(id)] = status.Type
		return nil
	})
}

// pty is a terminal.
type pty struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	PID    int    `json:"pid"`
}

// ptys returns the first maxPtys terminals.
func (a *api) ptys(ctx context.Context) ([]pty, error) {
	var body terminals
	err := a.call(ctx, busyTimeout, http.MethodGet, "/pty", nil, &body)
	return body, err
}

// terminals is decoded one by one, as turns is.
type terminals []pty

// UnmarshalJSON implements json.Unmarshaler.
func (t *terminals) UnmarshalJSON(raw []byte) error {
	return eachElement(raw, '[', maxPtys, func(dec *json.Decoder) error {
		var p pty
		err := dec.Decode(&p)
		*t = append(*t, p)
		return err
	})
}

// eachElement has element read each element of a list or an object, and stops
// without an error after most of them.
func eachElement(raw []byte, open json.Delim, most int, element func(*json.Decoder) error) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if token, err := dec.Token(); err != nil || token != open {
		return fmt.Errorf("no %s where one should be", open)
	}
	for n := 0; n < most && dec.More(); n++ {
		if err := element(dec); err != nil {
			return err
		}
	}
	return nil
}
