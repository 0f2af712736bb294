// Command hostile plays sandboxd and OpenCode in a sandbox whose owner attacks
// the gateway. HOSTILE says how: guest-* attacks from sandboxd's port, the
// others behave there and attack from OpenCode's.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	mode := os.Getenv("HOSTILE")
	go func() { fatal(serve(":4096", attack(mode))) }()
	guest := http.HandlerFunc(behave)
	if attackFromGuest, ok := strings.CutPrefix(mode, "guest-"); ok {
		guest = attack(attackFromGuest)
	}
	fatal(serve(":4095", guest))
}

func serve(addr string, h http.Handler) error {
	server := http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: time.Minute}
	return server.ListenAndServe()
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// behave is a sandboxd that says yes to everything.
func behave(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/v1/start", "/v1/config":
		fmt.Fprint(w, `{"written":[]}`)
	case "/v1/opencode":
		fmt.Fprint(w, `{"state":"ready"}`)
	default:
		fmt.Fprint(w, `{"opencode":{"state":"ready"}}`)
	}
}

func attack(mode string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch mode {
		case "redirect":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusTemporaryRedirect)
		case "endless":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"state":"ready","junk":"`)
			junk := strings.Repeat("x", 1<<20)
			for {
				if _, err := fmt.Fprint(w, junk); err != nil {
					return
				}
			}
		case "drip":
			w.Header().Set("Content-Type", "application/json")
			for {
				if _, err := fmt.Fprint(w, " "); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		case "headers":
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			endlessHeader(conn)
		case "cookies":
			h := w.Header()
			for _, c := range []string{"__Host-agentpod=stolen; Path=/; Secure", "agentpod=1; Domain=localhost", "x=1"} {
				h.Add("Set-Cookie", c)
			}
			h.Set("Clear-Site-Data", `"*"`)
			h.Set("Access-Control-Allow-Origin", "*")
			h.Set("Service-Worker-Allowed", "/")
			h.Set("Refresh", "0;url=http://evil.test")
			h.Set("Strict-Transport-Security", "max-age=1")
			h.Set("Alt-Svc", `h3=":443"`)
			h.Set("Content-Security-Policy", "default-src *")
			h.Set("Content-Type", "text/html")
			seen, _ := json.Marshal(r.Header)
			fmt.Fprintf(w, "<script>alert(1)</script>%s %s", seen, r.URL.String())
		case "silent":
			<-r.Context().Done()
		}
	}
}

func endlessHeader(conn net.Conn) {
	fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n")
	line := "X-Junk: " + strings.Repeat("y", 4000) + "\r\n"
	for {
		if _, err := conn.Write([]byte(line)); err != nil {
			return
		}
	}
}
