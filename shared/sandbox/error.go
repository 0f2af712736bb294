package sandbox

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/agentpod/agentpod/shared/redact"
)

// Code says what kind of thing went wrong, in stable snake_case. Callers
// branch on it; people read Error.Message.
type Code string

// The codes of the contract. The status each one travels with stands in
// the table below and nowhere else.
const (
	CodeInvalidRequest   Code = "invalid_request"
	CodeInvalidID        Code = "invalid_id"
	CodeInvalidPath      Code = "invalid_path"
	CodeInvalidGitURL    Code = "invalid_git_url"
	CodeUnauthorized     Code = "unauthorized"
	CodeForbidden        Code = "forbidden"
	CodeForbiddenHost    Code = "forbidden_host"
	CodeForbiddenOrigin  Code = "forbidden_origin"
	CodeRouteNotFound    Code = "route_not_found"
	CodeSandboxNotFound  Code = "sandbox_not_found"
	CodeSessionNotFound  Code = "session_not_found"
	CodeFileNotFound     Code = "file_not_found"
	CodeSnapshotNotFound Code = "snapshot_not_found"
	CodeTaskNotFound     Code = "task_not_found"
	CodeTeamNotFound     Code = "team_not_found"
	CodeTemplateNotFound Code = "template_not_found"
	CodeUserNotFound     Code = "user_not_found"
	CodeProviderNotFound Code = "provider_not_found"
	CodeProviderMissing  Code = "provider_not_configured"
	CodeTaskEnded        Code = "task_ended"
	CodeTaskCancelled    Code = "task_cancelled"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeConflict         Code = "conflict"
	CodeOwnerConflict    Code = "owner_conflict"
	CodeNameTaken        Code = "name_taken"
	CodeSandboxDeleted   Code = "sandbox_deleted"
	CodeSandboxBusy      Code = "sandbox_busy"
	CodeSessionBusy      Code = "session_busy"
	CodeWorkspaceLost    Code = "workspace_lost"
	CodeSnapshotDamaged  Code = "snapshot_damaged"
	CodeWorkspaceLimit   Code = "workspace_too_large"
	CodeTooLarge         Code = "payload_too_large"
	CodeCloneFailed      Code = "clone_failed"
	CodeConfigRejected   Code = "config_rejected"
	CodeModelUnknown     Code = "model_unknown"
	CodeAgentUnknown     Code = "agent_unknown"
	CodeTooManyRequests  Code = "too_many_requests"
	CodeInternal         Code = "internal"
	CodeOpenCodeDown     Code = "opencode_down"
	CodeOpenCodeFailed   Code = "opencode_failed"
	CodeGuestFailed      Code = "guest_failed"
	CodeBootFailed       Code = "boot_failed"
	CodeNoCapacity       Code = "no_capacity"
	CodeEngineAway       Code = "engine_unavailable"
	CodeEngineTooOld     Code = "engine_too_old"
	CodeImageMissing     Code = "image_missing"
	CodeDiskFull         Code = "disk_full"
	CodeOutOfMemory      Code = "out_of_memory"
	CodeStoreAway        Code = "store_unavailable"
	CodeSettling         Code = "sandbox_settling"
	CodeShuttingDown     Code = "shutting_down"
	CodeClockSkew        Code = "clock_skew"
	CodeUnsupported      Code = "unsupported"
	CodeBackendFailed    Code = "backend_failed"
	CodeBackendAway      Code = "backend_unavailable"
	CodeDeadline         Code = "deadline_exceeded"
	CodeTurnDeadline     Code = "turn_deadline"
)

// statuses is the one table between codes and HTTP statuses, read by the
// server on the way out and by a client on the way in.
//
//nolint:gochecknoglobals // a constant table; Go has no constant maps
var statuses = map[Code]int{
	CodeInvalidRequest:   http.StatusBadRequest,
	CodeInvalidID:        http.StatusBadRequest,
	CodeInvalidPath:      http.StatusBadRequest,
	CodeInvalidGitURL:    http.StatusBadRequest,
	CodeUnauthorized:     http.StatusUnauthorized,
	CodeForbidden:        http.StatusForbidden,
	CodeForbiddenHost:    http.StatusForbidden,
	CodeForbiddenOrigin:  http.StatusForbidden,
	CodeRouteNotFound:    http.StatusNotFound,
	CodeSandboxNotFound:  http.StatusNotFound,
	CodeSessionNotFound:  http.StatusNotFound,
	CodeFileNotFound:     http.StatusNotFound,
	CodeSnapshotNotFound: http.StatusNotFound,
	CodeTaskNotFound:     http.StatusNotFound,
	CodeTeamNotFound:     http.StatusNotFound,
	CodeTemplateNotFound: http.StatusNotFound,
	CodeUserNotFound:     http.StatusNotFound,
	CodeProviderNotFound: http.StatusNotFound,
	CodeProviderMissing:  http.StatusBadRequest,
	CodeTaskEnded:        http.StatusConflict,
	CodeTaskCancelled:    http.StatusConflict,
	CodeMethodNotAllowed: http.StatusMethodNotAllowed,
	CodeConflict:         http.StatusConflict,
	CodeOwnerConflict:    http.StatusConflict,
	CodeNameTaken:        http.StatusConflict,
	CodeSandboxDeleted:   http.StatusConflict,
	CodeSandboxBusy:      http.StatusConflict,
	CodeSessionBusy:      http.StatusConflict,
	CodeWorkspaceLost:    http.StatusConflict,
	CodeSnapshotDamaged:  http.StatusConflict,
	CodeWorkspaceLimit:   http.StatusConflict,
	CodeTooLarge:         http.StatusRequestEntityTooLarge,
	CodeCloneFailed:      http.StatusUnprocessableEntity,
	CodeConfigRejected:   http.StatusUnprocessableEntity,
	CodeModelUnknown:     http.StatusUnprocessableEntity,
	CodeAgentUnknown:     http.StatusUnprocessableEntity,
	CodeTooManyRequests:  http.StatusTooManyRequests,
	CodeInternal:         http.StatusInternalServerError,
	CodeOpenCodeDown:     http.StatusBadGateway,
	CodeOpenCodeFailed:   http.StatusBadGateway,
	CodeGuestFailed:      http.StatusBadGateway,
	CodeBootFailed:       http.StatusBadGateway,
	CodeNoCapacity:       http.StatusServiceUnavailable,
	CodeEngineAway:       http.StatusServiceUnavailable,
	CodeEngineTooOld:     http.StatusServiceUnavailable,
	CodeImageMissing:     http.StatusServiceUnavailable,
	CodeDiskFull:         http.StatusServiceUnavailable,
	CodeOutOfMemory:      http.StatusServiceUnavailable,
	CodeStoreAway:        http.StatusServiceUnavailable,
	CodeSettling:         http.StatusServiceUnavailable,
	CodeShuttingDown:     http.StatusServiceUnavailable,
	CodeClockSkew:        http.StatusServiceUnavailable,
	CodeUnsupported:      http.StatusNotImplemented,
	CodeBackendFailed:    http.StatusBadGateway,
	CodeBackendAway:      http.StatusServiceUnavailable,
	CodeDeadline:         http.StatusGatewayTimeout,
	CodeTurnDeadline:     http.StatusGatewayTimeout,
}

// Status returns the HTTP status a code travels with; an unknown code is 500.
func (c Code) Status() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Passing tells whether the condition that a code stands for can pass by itself, so
// that the same call may succeed later. The reply to a call that was acted on may
// have been lost all the same: what must not be done twice is asked about first.
func (c Code) Passing() bool {
	switch c {
	case CodeBackendAway, CodeEngineAway, CodeStoreAway, CodeShuttingDown, CodeSettling, CodeNoCapacity, CodeOpenCodeDown,
		CodeTooManyRequests, CodeDeadline:
		return true
	default:
		return false
	}
}

// ErrorHeader is set, to the error's code, on every error that a gateway or an API
// answers itself. No sandbox's reply carries it across, so on the paths below
// /opencode/ it tells their errors from OpenCode's. A Cloudflare worker neither sets
// nor removes it.
const ErrorHeader = "X-Agentpod-Error"

// DefaultRetryAfter is what a 429 or 503 advises when nothing better is known.
const DefaultRetryAfter = 5 * time.Second

// Error is the one error type that crosses a border of the project. Message
// goes to the caller: it says what happened and what to do, and never holds a
// secret. Cause is for the log only.
type Error struct {
	Code    Code
	Message string
	// RetryAfter is sent as the header of that name; zero means the default
	// for a 429 or 503 and no header otherwise.
	RetryAfter time.Duration
	// SessionID names the session a failed turn belongs to, if there is one.
	SessionID string
	Cause     error
}

// Errorf makes an Error whose message is for the caller. A %w operand becomes
// the cause and must be fit for the caller too, as it is part of the text.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// WithCause returns the error with a cause that only the log sees.
func (e *Error) WithCause(cause error) *Error {
	clone := *e
	clone.Cause = cause
	return &clone
}

// Redacted returns a copy that repeats none of the secrets. A cause that has one is
// dropped: the message says what can be said.
func (e *Error) Redacted(secrets ...string) *Error {
	clone := *e
	clone.Message = redact.Text(e.Message, secrets...)
	if e.Cause != nil {
		if words := e.Cause.Error(); redact.Text(words, secrets...) != words {
			clone.Cause = nil
		}
	}
	return &clone
}

// Error gives code, message and cause, for logs.
func (e *Error) Error() string {
	if e.Cause == nil {
		return string(e.Code) + ": " + e.Message
	}
	return fmt.Sprintf("%s: %s (%v)", e.Code, e.Message, e.Cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is reports two Errors alike when their codes are, so that errors.Is can be
// asked for a code: errors.Is(err, &sandbox.Error{Code: ...}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// CodeOf returns the code in err's chain, CodeInternal when there is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// HasCode reports whether err carries code.
func HasCode(err error, code Code) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}

// Public is the part of err that is for callers: its own Error, or one that is
// internal and says otherwise, with err as the cause, which only a log has.
func Public(err error, otherwise string) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Errorf(CodeInternal, "%s", otherwise).WithCause(err)
}
