package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
)

// Bounds on replies, in bytes. Those of what a sandbox can fill follow from the
// gateway's own bounds and what JSON makes of the worst bytes.
const (
	maxSmallReply   = 1 << 20
	maxListReply    = 4 << 20
	maxMessageReply = 32 << 20 // OpenCode's message is at most 16 MiB
	maxExecReply    = 16 << 20 // twice 1 MiB of output, six bytes a byte
	maxLogsReply    = 48 << 20 // 8 MiB of logs, escaped, then as JSON
	maxFolderReply  = 32 << 20
	maxErrorReply   = 16 << 10
	maxErrorText    = 2 << 10
	maxSessionID    = 128
	// maxElements bounds lists: an empty element of a few bytes costs hundreds
	// as a struct.
	maxElements = 20_000
)

// Retries: at most maxAttempts, with pauses that double from firstPause to
// lastPause. A backend that asks for more than maxRetryAfter gets no retry: the
// caller can wait better.
const (
	maxAttempts   = 3
	firstPause    = 200 * time.Millisecond
	lastPause     = 2 * time.Second
	maxRetryAfter = 10 * time.Second
)

// caller sends requests to a backend, in the way that both dialects share.
type caller struct {
	who       string // in messages, such as "the gateway"
	http      *http.Client
	transport http.RoundTripper
	own       *http.Transport // the transport, if nobody handed one in
	base      string          // the address, without a slash at the end
	token     string
	log       *slog.Logger
	deadlines Deadlines
}

// call is one request for JSON.
type call struct {
	method string
	path   string // percent-encoded, begins with a slash
	query  url.Values
	body   any // sent as JSON; nil sends none
	limit  int64
	within time.Duration
	// retry says that doing it twice does no harm.
	retry bool
}

// do sends a call and reads its 2xx reply into out.
func (c *caller) do(ctx context.Context, call call, out any) error {
	ctx, cancel := context.WithTimeout(ctx, call.within)
	defer cancel()
	var body []byte
	if call.body != nil {
		var err error
		if body, err = json.Marshal(call.body); err != nil {
			return Errorf(CodeInvalidRequest, "the request for %s is not valid JSON", c.who).WithCause(err)
		}
	}
	resp, err := c.answer(ctx, call, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.decode(ctx, resp.Body, call.limit, out)
}

// answer sends a call, again if that is safe and helps, until there is a 2xx
// reply, whose body the caller closes.
func (c *caller) answer(ctx context.Context, call call, body []byte) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		resp, err := c.try(ctx, call, body)
		if err == nil {
			return resp, nil
		}
		if !call.retry || !err.passing || attempt == maxAttempts || !pause(ctx, attempt, err.why.RetryAfter) {
			return nil, err.why
		}
	}
}

// attemptError is why an attempt failed. passing says that another one might
// not.
type attemptError struct {
	why     *Error
	passing bool
}

func (c *caller) try(ctx context.Context, call call, body []byte) (*http.Response, *attemptError) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := c.request(ctx, call.method, call.path, call.query, reader)
	if err != nil {
		return nil, &attemptError{why: err}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.send(req)
}

// request makes a request and refuses one whose path could mean another.
func (c *caller) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, *Error) {
	address := c.base + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, Errorf(CodeInvalidRequest, "the request for %s cannot be sent", c.who).WithCause(c.clean(err))
	}
	if err := CheckPath(req.URL.EscapedPath()); err != nil {
		return nil, asError(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// send returns a 2xx reply, whose body the caller closes, or why there is none.
func (c *caller) send(req *http.Request) (*http.Response, *attemptError) {
	ctx := req.Context()
	resp, err := c.http.Do(req) //nolint:gosec // the address is a setting, and request checked the path
	if err != nil {
		return nil, &attemptError{c.failure(ctx, "does not answer", err), ctx.Err() == nil}
	}
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.refusal(ctx, resp)
}

// refusal makes an error of a reply that is no success: the backend's own code
// if it is one of ours, else what its status means. The caller closes the body.
func (c *caller) refusal(ctx context.Context, resp *http.Response) *attemptError {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorReply))
	if err != nil && ctx.Err() != nil {
		return &attemptError{why: c.failure(ctx, "broke off its answer", err)}
	}
	var body ErrorResponse
	if json.Unmarshal(raw, &body) != nil {
		body = ErrorResponse{} // a page, bare text, or JSON of another shape
	}
	_, known := statuses[body.Code]
	e := &Error{
		Code:       body.Code,
		Message:    printable.Line(c.hide(body.Error), maxErrorText),
		SessionID:  printable.Line(c.hide(body.SessionID), maxSessionID),
		RetryAfter: retryAfter(resp.Header),
	}
	if !known {
		e.Code = codeOfStatus(resp.StatusCode)
		e.Cause = fmt.Errorf("status %d, body %q", resp.StatusCode, printable.Line(c.hide(string(raw)), maxErrorText))
	}
	if e.Message == "" {
		e.Message = c.explainStatus(resp.StatusCode)
	}
	return &attemptError{e, passing(resp.StatusCode, known)}
}

// passing says whether a status may be another in a moment. A 502 or 504 with a
// code of ours is the backend's considered answer, one without comes from
// something in between.
func passing(status int, known bool) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return !known
	}
	return false
}

// codeOfStatus is what a status means that came without a code.
func codeOfStatus(status int) Code {
	switch status {
	case http.StatusUnauthorized:
		return CodeUnauthorized
	case http.StatusForbidden:
		return CodeForbiddenHost
	case http.StatusNotFound:
		return CodeRouteNotFound
	case http.StatusMethodNotAllowed:
		return CodeMethodNotAllowed
	case http.StatusConflict:
		return CodeConflict
	case http.StatusRequestEntityTooLarge:
		return CodeTooLarge
	case http.StatusTooManyRequests:
		return CodeTooManyRequests
	case http.StatusServiceUnavailable:
		return CodeBackendAway
	case http.StatusGatewayTimeout:
		return CodeDeadline
	}
	if status >= 400 && status <= 499 {
		return CodeInvalidRequest
	}
	return CodeBackendFailed
}

func (c *caller) explainStatus(status int) string {
	switch {
	case status >= 300 && status <= 399:
		return fmt.Sprintf("%s answered with a redirect, which is not followed; check its address", c.who)
	case status == http.StatusNotFound:
		return c.who + " does not know this route; check its address"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return c.who + " does not let this client in; check the token"
	}
	return fmt.Sprintf("%s answered with status %d", c.who, status)
}

// retryAfter reads the header in either of its forms; 0 if there is none that
// makes sense.
func retryAfter(header http.Header) time.Duration {
	const most = 24 * time.Hour
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, most)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), most)
	}
	return 0
}

// pause waits before the next attempt. It returns false at once if that cannot
// be within ctx, or if the backend asks for more patience than we have.
func pause(ctx context.Context, attempt int, asked time.Duration) bool {
	wait := min(firstPause<<(attempt-1), lastPause)
	wait = wait/2 + rand.N(wait/2+1) //nolint:gosec // jitter is no secret
	if asked > maxRetryAfter {
		return false
	}
	wait = max(wait, asked)
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// decode reads a reply's JSON. Nil means that it does not matter.
func (c *caller) decode(ctx context.Context, body io.Reader, limit int64, out any) error {
	if out == nil {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return c.failure(ctx, "broke off its answer", err)
	}
	if int64(len(raw)) > limit {
		return Errorf(CodeBackendFailed, "the answer of %s is larger than %d bytes", c.who, limit)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return Errorf(CodeBackendFailed, "the answer of %s is not the JSON expected", c.who).WithCause(c.clean(err))
	}
	return nil
}

// failure is why there is no answer, or only half of one.
func (c *caller) failure(ctx context.Context, what string, err error) *Error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own // of the body that was being sent
	}
	err = c.clean(err)
	switch ctxErr := ctx.Err(); {
	case errors.Is(ctxErr, context.DeadlineExceeded):
		c.closeIdle() // what silenced this connection silenced others: no later call waits for one
		return Errorf(CodeDeadline, "%s did not answer in time", c.who).WithCause(errors.Join(ctxErr, err))
	case ctxErr != nil:
		return Errorf(CodeDeadline, "the call was given up before %s answered", c.who).WithCause(errors.Join(ctxErr, err))
	}
	return Errorf(CodeBackendAway, "%s %s", c.who, what).WithCause(err)
}

// clean makes an error fit for the log: without the address, which whoever reads
// it has, and without the token, which a peer that talks nonsense may repeat.
func (c *caller) clean(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if text := err.Error(); c.hide(text) != text {
		return errors.New(c.hide(text))
	}
	return err
}

// hide takes the token out of a text.
func (c *caller) hide(s string) string {
	if c.token == "" {
		return s
	}
	return strings.ReplaceAll(s, c.token, "[token]")
}

// notSuccess is an answer that says itself that it is none.
func (c *caller) notSuccess() error {
	return Errorf(CodeBackendFailed, "%s answered without success", c.who)
}

func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Errorf(CodeInternal, "something went wrong in the client").WithCause(err)
}

// route is the path of a sandbox, or of what is below it. The id goes into it as
// it is.
func route(id, below string) (string, error) {
	if err := CheckID(id); err != nil {
		return "", err
	}
	return "/sandbox/" + id + below, nil
}

// bounded is a list that is decoded element by element up to maxElements; what
// comes after them is an error.
type bounded[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (b *bounded[T]) UnmarshalJSON(raw []byte) error {
	*b = bounded[T]{}
	if string(raw) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('[') {
		return errors.New("not a list")
	}
	for dec.More() {
		if len(*b) == maxElements {
			return fmt.Errorf("a list of more than %d elements", maxElements)
		}
		var element T
		if err := dec.Decode(&element); err != nil {
			return err
		}
		*b = append(*b, element)
	}
	return nil
}
