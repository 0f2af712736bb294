package uihost

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"html/template"
	"net/http"

	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

//go:embed page.html
var pageHTML string

//nolint:gochecknoglobals // a constant, parsed once
var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// view is what a page shows. Its texts may come from a sandbox.
type view struct {
	Title, Text string
	// Waiting has the page ask until the sandbox is there, and turn into its UI.
	Waiting bool
	// Link and Again offer a way on: to the UI, or to the same page once more.
	Link, LinkText string
	Again          bool
	Nonce          string
}

// page writes a page of the gateway's own on a sandbox's host.
func (h *Host) page(w http.ResponseWriter, status int, v view) {
	v.Nonce = rand.Text()
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, v); err != nil {
		h.Log.Error("a page could not be made", "error", err)
	}
	ownReply(w.Header(), "text/html; charset=utf-8",
		"default-src 'none'; script-src 'nonce-"+v.Nonce+"'; style-src 'nonce-"+v.Nonce+"'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // to somebody who left
}

// ownReply are the headers of what the gateway itself says on a sandbox's host.
func ownReply(header http.Header, kind, policy string) {
	header.Set("Content-Type", kind)
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", policy)
	border.OwnHost(header)
}

func titleOf(code sandbox.Code) string {
	switch code {
	case sandbox.CodeUnauthorized:
		return "You are not signed in to this sandbox"
	case sandbox.CodeRouteNotFound, sandbox.CodeSandboxNotFound:
		return "There is no such sandbox"
	case sandbox.CodeForbiddenOrigin:
		return "This came from another site"
	default:
		return "The sandbox cannot be opened"
	}
}
