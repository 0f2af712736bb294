package guest

import (
	"context"
	"net/http"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// RouteMark is where the mark of the disk is asked for and given:
//
//	GET → MarkStatus: what the disk says, or what was given in this run.
//	PUT Mark → 204 when it is on the disk for good. sandboxd keeps it there from
//	then on, whatever code in the sandbox does to the file.
//
// An error of PUT is invalid_request, disk_full or internal; the disk then has
// its former mark or the new one. An error of GET is internal, and does not mean
// that there is no mark.
const RouteMark = "/v1/mark"

// MaxIncarnation is how long the incarnation of a mark may be, in bytes.
const MaxIncarnation = 128

// Mark tells the disk of a sandbox from one that the engine made anew at mount,
// and from an old copy of it. No snapshot holds it and no restore changes it.
type Mark struct {
	// Incarnation is the sandbox's; empty means that there is no mark.
	Incarnation string `json:"incarnation"`
	// Generation counts the starts of the sandbox's containers.
	Generation int64 `json:"generation"`
}

// Check refuses with invalid_request a mark that cannot be given: the incarnation
// is 1 to MaxIncarnation bytes of printable characters without spaces at its
// ends, and the generation is not negative.
func (m Mark) Check() error {
	if m.Incarnation == "" || printable.Line(m.Incarnation, MaxIncarnation) != m.Incarnation {
		return sandbox.Errorf(sandbox.CodeInvalidRequest,
			"the incarnation of a mark must be 1 to %d bytes of printable characters without spaces around them", MaxIncarnation)
	}
	if m.Generation < 0 {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the generation of a mark must not be negative")
	}
	return nil
}

// MarkStatus is what sandboxd knows of the disk's mark.
type MarkStatus struct {
	// Mark is the one that was given, else the disk's; its zero value says that
	// the disk has none.
	Mark
	// Given says that a mark was put on the disk in this run of sandboxd.
	Given bool `json:"given"`
}

// Mark asks which mark the disk has. A sandboxd of a version that knew of no marks
// is the error unsupported.
func (c *Client) Mark(ctx context.Context) (MarkStatus, error) {
	var status MarkStatus
	if err := c.callMark(ctx, http.MethodGet, nil, &status); err != nil {
		return MarkStatus{}, err
	}
	if status.Mark != (Mark{}) || status.Given {
		if err := status.Check(); err != nil {
			return MarkStatus{}, sandbox.Errorf(sandbox.CodeGuestFailed, "the sandbox told a mark that cannot be").WithCause(err)
		}
	}
	return status, nil
}

// PutMark puts a mark on the disk, and returns when it is there for good. It
// fails as RouteMark says, where internal is guest_failed, and with unsupported
// as Mark does.
func (c *Client) PutMark(ctx context.Context, mark Mark) error {
	return c.callMark(ctx, http.MethodPut, mark, nil)
}

func (c *Client) callMark(ctx context.Context, method string, in, out any) error {
	ctx, cancel := withDefault(ctx, statusTimeout)
	defer cancel()
	resp, err := c.sendJSON(ctx, method, RouteMark, in)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNotFound {
		return finish(ctx, resp, out)
	}
	defer resp.Body.Close()
	said, err := readError(ctx, resp)
	if err != nil {
		return err
	}
	if said.code() == sandbox.CodeRouteNotFound {
		return sandbox.Errorf(sandbox.CodeUnsupported, "the sandboxd of this sandbox is of a former version, which marks no disks")
	}
	return said.failure()
}
