// Command stubopencode stands in for OpenCode where a test is about the gateway
// and has many sandboxes: it boots at once and takes little memory.
package main

import (
	"net/http"
	"os"
	"time"
)

func main() {
	port := "4096"
	for i, arg := range os.Args {
		if arg == "--port" && i+1 < len(os.Args) {
			port = os.Args[i+1]
		}
	}
	replies := map[string]string{
		"/global/health": `{"healthy":true,"version":"0.0.0-stub"}`, "/api/health": `{"healthy":true}`, "/session/status": `{}`, "/pty": `[]`,
	}
	server := &http.Server{
		Addr: ":" + port, ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reply, ok := replies[r.URL.Path]
			if !ok {
				reply = "{}"
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(reply))
		}),
	}
	if err := server.ListenAndServe(); err != nil {
		panic(err)
	}
}
