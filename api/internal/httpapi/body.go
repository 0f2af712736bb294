package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxBody bounds the JSON bodies of every route that does not say otherwise, in
// bytes, and bodyTimeout how long one may take to arrive.
const (
	maxBody     = 1 << 20
	bodyTimeout = time.Minute
)

// decode reads a JSON object. Fields that the route does not know are ignored;
// an empty body is an empty object.
func decode(c echo.Context, into any) error { return decodeUpTo(c, into, maxBody) }

// bodyRead marks a request of whose body nothing is still to come.
const bodyRead = "bodyRead"

// decodeUpTo is decode with a bound of its own, in bytes.
func decodeUpTo(c echo.Context, into any, limit int64) error {
	control := http.NewResponseController(c.Response())
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	raw, err := io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, limit))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the request body could not be read").WithCause(err)
	}
	c.Set(bodyRead, true)
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	return sandbox.Decode(raw, into)
}

// The pages of lists.
const (
	defaultLimit = 50
	maxLimit     = 100
	maxOffset    = 1_000_000
)

// pageOf reads limit and offset. Beyond their bounds they are an error, not cut.
func pageOf(c echo.Context) (task.Page, error) {
	page := task.Page{Limit: defaultLimit}
	for _, p := range []struct {
		name        string
		into        *int
		least, most int
	}{{"limit", &page.Limit, 1, maxLimit}, {"offset", &page.Offset, 0, maxOffset}} {
		text := c.QueryParam(p.name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < p.least || n > p.most {
			return page, sandbox.Errorf(sandbox.CodeInvalidRequest, "%s must be a number from %d to %d", p.name, p.least, p.most)
		}
		*p.into = n
	}
	return page, nil
}

// caller is who sends a request, and by what right.
type caller struct {
	user account.User
	// key is the same for every request with the same credential.
	key credentialKey
	// sessionID is the session's, or empty for the service.
	sessionID string
	// cookie says that the credential came as a cookie.
	cookie bool
	// signOuts is how many there were before the credential was looked at.
	signOuts uint64
	// valid returns nil while the credential is good.
	valid func(ctx context.Context) error
}

// callerKey is where border leaves who sends a request.
const callerKey = "caller"

// callerOf returns who sends a request; border has made sure that there is one.
func callerOf(c echo.Context) account.User { return admitted(c).user }

func admitted(c echo.Context) caller {
	who, _ := c.Get(callerKey).(caller)
	return who
}
