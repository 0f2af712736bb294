package daemon

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAServerIsHealthyIfItAnswers200(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
		case "/moved":
			http.Redirect(w, r, "/health", http.StatusFound)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	addr := server.Listener.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, c := range map[string]struct{ addr, path, says string }{
		"it does":                           {addr, "/health", ""},
		"it listens everywhere":             {"0.0.0.0:" + port, "/health", ""},
		"it was told a port only":           {":" + port, "/health", ""},
		"it is not ready":                   {addr, "/readyz", "503"},
		"a redirect is not followed":        {addr, "/moved", "302"},
		"nobody listens":                    {closed.Listener.Addr().String(), "/health", "refused"},
		"the address is none, but is named": {"3001", "/health", `"3001"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckHealth(t.Context(), c.addr, c.path)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v", err)
			}
		})
	}
}
