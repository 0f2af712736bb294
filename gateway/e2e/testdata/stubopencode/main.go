// Command stubopencode stands in for OpenCode where a test is about the gateway
// and has many sandboxes: it boots at once and takes little memory. It lets itself be
// warmed for a pool.
package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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
		"/session": `{"id":"ses_stub"}`,
	}
	server := &http.Server{
		Addr: ":" + port, ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/message") {
				askModels()
			}
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

// askModels asks each model that the config has an address of, as a turn would.
func askModels() {
	raw, err := os.ReadFile(filepath.Join(os.Getenv("OPENCODE_CONFIG_DIR"), "opencode.json"))
	if err != nil {
		return // there is no config
	}
	var config struct {
		Provider map[string]struct {
			Options struct {
				BaseURL string `json:"baseURL"`
			} `json:"options"`
		} `json:"provider"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		panic(err)
	}
	for _, provider := range config.Provider {
		if resp, err := http.Post(provider.Options.BaseURL+"/chat/completions", "application/json", strings.NewReader("{}")); err == nil {
			_ = resp.Body.Close()
		}
	}
}
