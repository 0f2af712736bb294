package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// errTooMuch says that a stream exceeds its bound.
var errTooMuch = errors.New("more than the bound")

// Exec runs a command and calls fn for every event, the exit event last; an
// error of fn ends the command and is returned as it is. A command that fails
// or cannot be started is no error of Exec: the exit event says so.
func (c *Client) Exec(ctx context.Context, req ExecRequest, fn func(ExecEvent) error) error {
	ctx, cancel := withDefault(ctx, milliseconds(req.TimeoutMs, defaultExec)+slack)
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
		outputMax = defaultMaxOutput
	}
	wire := &boundedReader{r: resp.Body, left: 2*outputMax*eventOverhead + execSlack}
	lines := bufio.NewScanner(wire)
	lines.Buffer(make([]byte, 0, 32<<10), maxExecLine)
	output := map[string]int64{"stdout": outputMax, "stderr": outputMax}
	for lines.Scan() {
		var event ExecEvent
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			if lines.Err() != nil {
				break // the rest of a line that was broken off
			}
			return sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox sent an event that is not JSON").WithCause(err)
		}
		switch event.Type {
		case "stdout", "stderr":
			if output[event.Type] -= int64(len(event.Data)); output[event.Type] < 0 {
				return tooMuchOutput()
			}
		case "exit":
			event.Error = Printable(event.Error, maxMessage)
		default:
			continue // an event of a later version
		}
		if err := fn(event); err != nil {
			return err
		}
		if event.Type == "exit" {
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
