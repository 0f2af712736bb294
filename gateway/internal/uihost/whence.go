package uihost

import (
	"net/http"
	"slices"
	"strings"
)

// origin of a request, as far as its browser tells.
type origin int

const (
	fromItself    origin = iota // a page of the same host, the address bar, or no browser
	fromElsewhere               // any other page, a sibling's too
)

// whence says where a request comes from. What changes something, and a WebSocket,
// for which browsers ask nobody, must name exactly the host's own origin.
func whence(r *http.Request, own string) origin {
	sent := r.Header.Values("Origin")
	exact := len(sent) == 1 && sent[0] == own
	if len(sent) > 0 && !exact {
		return fromElsewhere
	}
	if !exact && (!reads(r.Method) || r.Header.Get("Upgrade") != "") {
		return fromElsewhere
	}
	if slices.ContainsFunc(r.Header.Values("Sec-Fetch-Site"), func(site string) bool { return site != "same-origin" && site != "none" }) {
		return fromElsewhere
	}
	return fromItself
}

// visits says whether a request is for a page to look at, in a tab of its own.
func visits(r *http.Request) bool {
	// Who does not tell what it wants is a program, or a browser of long ago.
	return navigates(r) && (len(r.Header.Values("Sec-Fetch-Mode")) > 0 || strings.Contains(r.Header.Get("Accept"), "text/html"))
}

// navigates says whether a request is a browser's way to another address, in a tab
// of its own, or may be.
func navigates(r *http.Request) bool {
	is := func(name, value string) bool {
		sent := r.Header.Values(name)
		return len(sent) == 0 || len(sent) == 1 && sent[0] == value
	}
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" || len(r.Header.Values("Origin")) > 0 {
		return false
	}
	return is("Sec-Fetch-Mode", "navigate") && is("Sec-Fetch-Dest", "document")
}

// serviceWorker says whether a browser asks for the script of a service worker.
func serviceWorker(r *http.Request) bool {
	return len(r.Header.Values("Service-Worker")) > 0 || slices.Contains(r.Header.Values("Sec-Fetch-Dest"), "serviceworker")
}

// manifest says whether a browser asks for the manifest of a page of the same host.
func manifest(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Dest") == "manifest" && r.Header.Get("Sec-Fetch-Site") == "same-origin"
}

func reads(method string) bool { return method == http.MethodGet || method == http.MethodHead }
