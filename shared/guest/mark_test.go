package guest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// answering is a guest that gives every request one answer.
func answering(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestASandboxdOfAFormerVersionIsToldFromOneThatFails(t *testing.T) {
	const former = `{"error":"no such route","code":"route_not_found"}`
	for name, tc := range map[string]struct {
		handle http.HandlerFunc
		code   sandbox.Code
	}{
		"a former version":              {answering(404, "application/json", former), sandbox.CodeUnsupported},
		"another 404":                   {answering(404, "text/plain", former), sandbox.CodeGuestFailed},
		"a 404 of a file":               {answering(404, "application/json", `{"error":"x","code":"file_not_found"}`), sandbox.CodeFileNotFound},
		"the words with another status": {answering(500, "application/json", former), sandbox.CodeGuestFailed},
		"unsupported by its own words":  {answering(501, "application/json", `{"error":"x","code":"unsupported"}`), sandbox.CodeGuestFailed},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake(t, tc.handle)
			_, err := c.Mark(t.Context())
			wantCode(t, err, tc.code)
			wantCode(t, c.PutMark(t.Context(), guest.Mark{Incarnation: "a"}), tc.code)
		})
	}
	_, err := fake(t, answering(404, "application/json", former)).Status(t.Context())
	wantCode(t, err, sandbox.CodeGuestFailed) // of a route that every version has
}

func TestOnlyAMarkThatCanBeIsBelieved(t *testing.T) {
	for body, want := range map[string]guest.MarkStatus{
		`{"incarnation":"","generation":0,"given":false}`:   {},
		`{"incarnation":"abc","generation":2,"given":true}`: {Mark: guest.Mark{Incarnation: "abc", Generation: 2}, Given: true},
	} {
		if got, err := fake(t, answering(200, "application/json", body)).Mark(t.Context()); err != nil || got != want {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
	for _, body := range []string{
		``, `[]`, `{"incarnation":5}`, `{"generation":1}`, `{"given":true}`, `{"incarnation":"a","generation":-1}`,
		`{"incarnation":"a\u001b[31m"}`, `{"incarnation":"` + strings.Repeat("a", 129) + `"}`,
	} {
		got, err := fake(t, answering(200, "application/json", body)).Mark(t.Context())
		if !sandbox.HasCode(err, sandbox.CodeGuestFailed) || got != (guest.MarkStatus{}) {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
}
