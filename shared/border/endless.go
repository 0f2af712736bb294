package border

import (
	"net/http"
	"strings"
)

// EventPath says whether OpenCode answers a path with an event stream.
func EventPath(path string) bool {
	switch path {
	case "/event", "/global/event", "/api/event":
		return true
	}
	return strings.HasPrefix(path, "/api/session/") && strings.HasSuffix(path, "/event")
}

// Endless says whether a request lasts until somebody ends it, so that a drain
// must. The path is OpenCode's.
func Endless(r *http.Request, path string) bool {
	return r.Header.Get("Upgrade") != "" || EventPath(path) ||
		strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}
