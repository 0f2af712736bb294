// Package opencode is a small client of OpenCode's HTTP API: sessions, prompts,
// and what a headless turn has to watch and answer. What comes back was written
// inside a sandbox, so every reply is bounded in bytes, elements and time, no
// redirect is followed, and every text meant for people is cleaned.
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
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/timeline"
)

// Bounds on replies.
const (
	maxMessage   = 16 << 20 // bytes of one message
	maxDocument  = 8 << 20  // bytes of any other reply
	maxPoll      = 1 << 20  // bytes of a reply that is asked for again and again
	maxError     = 64 << 10 // bytes of an error's body
	maxParts     = 10_000
	maxElements  = 10_000
	maxProviders = 1_000
	maxModels    = 20_000 // of all providers together
	maxKeys      = 100    // of a message
	maxText      = 2_000  // bytes of a text for people

	// callTimeout bounds every call but a prompt that waits for its turn.
	callTimeout = 30 * time.Second
)

// Error is an answer of OpenCode that is not the one asked for. Name is
// OpenCode's (NotFoundError, BadRequest, UnknownError, …) or one of the Name
// constants; Message is cleaned and bounded.
type Error struct {
	Status  int
	Name    string
	Message string
}

// Names of errors that this package gives.
const (
	NameInvalidReply = "InvalidReply" // not the JSON that was expected
	NameTooLarge     = "ReplyTooLarge"
	NameNotFound     = "NotFoundError" // OpenCode's own
)

// Error words the failure for a person.
func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("OpenCode answered %d: %s", e.Status, e.Message)
	}
	return fmt.Sprintf("OpenCode answered %d: %s (%s)", e.Status, e.Message, e.Name)
}

// IsNotFound reports whether OpenCode said that what was named does not exist.
func IsNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}

// Client speaks to one OpenCode. Safe for concurrent use.
type Client struct {
	http     *http.Client
	base     string
	password string
}

// New makes a client of the OpenCode at baseURL, reached through transport. The
// transport must not have a deadline for response headers.
func New(transport http.RoundTripper, baseURL, password string) *Client {
	return &Client{
		http: &http.Client{
			Transport:     &timeline.Transport{Next: transport, Peer: "OpenCode"},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		base:     strings.TrimSuffix(baseURL, "/"),
		password: password,
	}
}

// call is one request. decode reads the body of a 2xx reply; nil means that it
// does not matter.
type call struct {
	method, path string
	body         any
	accept       string // the media type asked for, if it matters
	limit        int64
	endless      bool // bounded by the caller's context alone
	decode       func(io.Reader) error
}

func (c *Client) do(ctx context.Context, call call) error {
	if !call.endless {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	res, err := c.send(ctx, call)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if call.decode == nil {
		return nil
	}
	limited := &io.LimitedReader{R: res.Body, N: call.limit}
	if err := call.decode(full{limited}); err != nil {
		switch {
		case limited.N <= 0:
			return &Error{Status: res.StatusCode, Name: NameTooLarge, Message: fmt.Sprintf("the reply to %s %s is larger than %d bytes", call.method, call.path, call.limit)}
		case ctx.Err() != nil:
			return fmt.Errorf("reading OpenCode's reply to %s %s: %w", call.method, call.path, context.Cause(ctx))
		case isMalformed(err):
			return &Error{Status: res.StatusCode, Name: NameInvalidReply, Message: fmt.Sprintf("the reply to %s %s is not what OpenCode should send: %s", call.method, call.path, line(err.Error()))}
		}
		return fmt.Errorf("reading OpenCode's reply to %s %s: %w", call.method, call.path, err)
	}
	return nil
}

// send returns a 2xx reply, whose body the caller closes.
func (c *Client) send(ctx context.Context, call call) (*http.Response, error) {
	var body io.Reader
	if call.body != nil {
		data, err := json.Marshal(call.body)
		if err != nil {
			return nil, fmt.Errorf("encoding the body of %s %s: %w", call.method, call.path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, call.method, c.base+call.path, body)
	if err != nil {
		return nil, fmt.Errorf("making the request %s %s: %w", call.method, call.path, err)
	}
	if call.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if call.accept != "" {
		req.Header.Set("Accept", call.accept)
	}
	req.SetBasicAuth("opencode", c.password)
	res, err := c.http.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // its URL holds a key that means nothing to anybody
		}
		return nil, fmt.Errorf("asking OpenCode %s %s: %w", call.method, call.path, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		defer func() { _ = res.Body.Close() }()
		return nil, readError(res)
	}
	return res, nil
}

// full fills each buffer that it is given. The JSON decoder scans white space
// again after every read, so small reads would make a long run of it quadratic.
type full struct{ r io.Reader }

func (f full) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = f.r.Read(p[n:])
		n += m
	}
	return n, err
}

// errMalformed marks replies that are JSON of another shape than expected.
var errMalformed = errors.New("unexpected shape")

func isMalformed(err error) bool {
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return true
	}
	// io.EOF is a body that ended where it should; a lost connection is
	// io.ErrUnexpectedEOF.
	return errors.Is(err, errMalformed) || errors.Is(err, io.EOF)
}

// readError makes an Error of a reply that is no success. OpenCode has two
// shapes: {name,data:{message}} and {_tag,message}.
func readError(res *http.Response) error {
	e := &Error{Status: res.StatusCode, Message: strings.ToLower(http.StatusText(res.StatusCode))}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxError))
	if err != nil {
		return e // the status says enough
	}
	var body struct {
		Name    string                        `json:"name"`
		Tag     string                        `json:"_tag"`
		Message string                        `json:"message"`
		Data    struct{ Message, Ref string } `json:"data"`
	}
	if json.Unmarshal(data, &body) != nil {
		if strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") && len(data) > 0 {
			e.Message = line(string(data))
		}
		return e
	}
	e.Name = line(body.Name + body.Tag)
	if text := line(body.Data.Message + body.Message); text != "" {
		e.Message = text
	}
	if ref := line(body.Data.Ref); ref != "" {
		e.Message += " [" + ref + "]"
	}
	return e
}

// line makes a text of OpenCode's fit for people.
func line(s string) string { return printable.Line(s, maxText) }

// into decodes one JSON document.
func into(out any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(r).Decode(out) }
}

// intoList decodes an array element by element, so that a reply of a million
// empty ones costs no memory.
func intoList[T any](out *[]T, limit int) func(io.Reader) error {
	return func(r io.Reader) error { return decodeList(json.NewDecoder(r), out, limit) }
}

func decodeList[T any](dec *json.Decoder, out *[]T, limit int) error {
	if err := expect(dec, '['); err != nil {
		return err
	}
	for dec.More() {
		if len(*out) == limit {
			return fmt.Errorf("%w: more than %d elements", errMalformed, limit)
		}
		var element T
		if err := dec.Decode(&element); err != nil {
			return err
		}
		*out = append(*out, element)
	}
	return expect(dec, ']')
}

// decodeObject calls value for each key of an object, which reads what belongs
// to it: more than limit keys are refused, however often one is repeated.
func decodeObject(dec *json.Decoder, limit int, value func(key string) error) error {
	if err := expect(dec, '{'); err != nil {
		return err
	}
	for keys := 0; dec.More(); keys++ {
		if keys == limit {
			return fmt.Errorf("%w: more than %d keys", errMalformed, limit)
		}
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("%w: a key that is no string", errMalformed)
		}
		if err := value(key); err != nil {
			return err
		}
	}
	return expect(dec, '}')
}

// skipped takes any value and keeps nothing of it.
type skipped struct{}

// UnmarshalJSON implements json.Unmarshaler.
func (*skipped) UnmarshalJSON([]byte) error { return nil }

func expect(dec *json.Decoder, want json.Delim) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("%w: no %q", errMalformed, want.String())
	}
	return nil
}
