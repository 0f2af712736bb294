package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// errTooMuch says that a stream exceeds its bound.
var errTooMuch = errors.New("more than the bound")

// Exec runs a command and calls fn for every event, the exit event last; an
// error of fn ends the command and is returned as it is. A command that fails
// or cannot be started is no error of Exec: the exit event says so.
func (c *Client) Exec(ctx context.Context, req ExecRequest, fn func(ExecEvent) error) error {
	ctx, cancel := withDefault(ctx, milliseconds(req.TimeoutMs, DefaultExecTimeout)+slack)
	defer cancel()
	resp, err := c.sendJSON(ctx, http.MethodPost, RouteExec, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return replyError(ctx, resp)
	}

	// Output travels as base64 in JSON, at worst one byte an event, so the bytes
	// on the wire are more than the output: both are bounded.
	outputMax := min(req.MaxOutput, maxOutput)
	if outputMax <= 0 {
		outputMax = DefaultMaxOutput
	}
	wire := &boundedReader{r: resp.Body, left: 2*outputMax*eventOverhead + execSlack}
	lines := bufio.NewScanner(wire)
	lines.Buffer(make([]byte, 0, 32<<10), maxExecLine)
	output := map[string]int64{EventStdout: outputMax, EventStderr: outputMax}
	for lines.Scan() {
		var event ExecEvent
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			if lines.Err() != nil {
				break // the rest of a line that was broken off
			}
			return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent an event that is not JSON").WithCause(err)
		}
		switch event.Type {
		case EventStdout, EventStderr:
			if output[event.Type] -= int64(len(event.Data)); output[event.Type] < 0 {
				return tooMuchOutput()
			}
		case EventExit:
			event.Error = printable.Line(event.Error, maxMessage)
		default:
			continue // an event of a later version
		}
		if err := fn(event); err != nil {
			return err
		}
		if event.Type == EventExit {
			return nil
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, errTooMuch), errors.Is(err, bufio.ErrTooLong):
		return tooMuchOutput()
	case err != nil:
		return failure(ctx, "the sandbox broke off the command's output", err)
	default:
		return failure(ctx, "the sandbox ended the command's output without an exit status", io.ErrUnexpectedEOF)
	}
}

// Run is Exec for callers that want the output at the end. Output that was cut ends with
// a whole character, and why a command could not be started is the end of its stderr. After an error the response holds what came until then.
func (c *Client) Run(ctx context.Context, req ExecRequest) (sandbox.ExecResponse, error) {
	var resp sandbox.ExecResponse
	var stdout, stderr bytes.Buffer
	err := c.Exec(ctx, req, func(e ExecEvent) error {
		switch e.Type {
		case EventStdout:
			stdout.Write(e.Data)
		case EventStderr:
			stderr.Write(e.Data)
		case EventExit:
			if e.Truncated {
				trim(&stdout, req.MaxOutput)
				trim(&stderr, req.MaxOutput)
			}
			resp.ExitCode, resp.Truncated, resp.TimedOut = e.ExitCode, e.Truncated, e.TimedOut
			if e.Error != "" && stderr.Len() > 0 {
				stderr.WriteByte('\n')
			}
			stderr.WriteString(e.Error)
		}
		return nil
	})
	resp.SetOutput(stdout.Bytes(), stderr.Bytes())
	return resp, err
}

// trim takes the part of a character from the end of output that was cut at limit.
func trim(output *bytes.Buffer, limit int64) {
	if limit <= 0 {
		limit = DefaultMaxOutput
	}
	if int64(output.Len()) >= limit {
		_, rest := printable.Whole(output.Bytes())
		output.Truncate(output.Len() - len(rest))
	}
}

func tooMuchOutput() error {
	return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent more output than was asked for")
}

// boundedReader fails, where io.LimitReader would pretend an end.
type boundedReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooMuch
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}
