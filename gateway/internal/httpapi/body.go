package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// The bounds of JSON bodies, in bytes. A create carries whole agent files.
const (
	maxConfigBody = 16 << 20
	maxSmallBody  = 1 << 20
)

// bodyTimeout bounds the reading of a JSON body.
const bodyTimeout = time.Minute

// decode reads a JSON object of at most limit bytes. Unknown fields are
// ignored, as the contract says. An empty body is an error unless optional.
func decode(c echo.Context, limit int64, optional bool, into any) error {
	r := c.Request()
	// Who sends slower than this has no honest reason. Ignored where the
	// connection cannot do it, as in tests.
	control := http.NewResponseController(c.Response())
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	body := http.MaxBytesReader(c.Response(), r.Body, limit)
	raw, err := io.ReadAll(body)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the request body could not be read").WithCause(err)
	}
	if len(raw) == 0 && optional {
		return nil
	}
	if len(raw) == 0 {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the request needs a JSON body")
	}
	return sandbox.Decode(raw, into) //nolint:wrapcheck // it is for the caller
}
