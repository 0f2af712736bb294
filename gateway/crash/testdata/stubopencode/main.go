// Command stubopencode answers what sandboxd asks of OpenCode, and keeps a file
// in the folder of its state. It ends with its parent.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	// The signal goes with the thread that asked for it.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		panic(err)
	}
	if err := keep(filepath.Join(os.Getenv("HOME"), ".local", "share", "opencode", "storage", "born")); err != nil {
		panic(err)
	}
	// Called as: serve --hostname HOST --port PORT.
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(os.Args[3], os.Args[5]))
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(serve), ReadHeaderTimeout: 10 * time.Second}
	panic(server.Serve(listener))
}

// askModels asks every model of the config.
func askModels() {
	var config struct {
		Provider map[string]struct{ Options struct{ BaseURL string } }
	}
	raw, _ := os.ReadFile(filepath.Join(os.Getenv("OPENCODE_CONFIG_DIR"), "opencode.json"))
	_ = json.Unmarshal(raw, &config)
	for _, p := range config.Provider {
		if reply, err := http.Post(p.Options.BaseURL+"/chat/completions", "application/json", strings.NewReader("{}")); err == nil { //nolint:gosec,noctx // a test's
			_ = reply.Body.Close()
		}
	}
}

// keep makes a file that no other start makes the same, unless it is there.
func keep(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(rand.Text()), 0o600)
}

func serve(w http.ResponseWriter, r *http.Request) {
	if _, password, _ := r.BasicAuth(); password != os.Getenv("OPENCODE_SERVER_PASSWORD") {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	answer := `{}`
	switch r.URL.Path {
	case "/global/health":
		answer = `{"healthy":true,"version":"stub"}`
	case "/pty":
		answer = `[]`
	case "/session":
		answer = `{"id":"ses_stub"}`
	case "/session/ses_stub/message":
		askModels()
	}
	_, _ = fmt.Fprint(w, answer) // whoever asked may have left
}
