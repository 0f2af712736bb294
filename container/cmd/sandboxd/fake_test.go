package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Files in the folder FAKE_DIR by which a test tells the fake what to do.
const (
	fakeCrash    = "crash"    // exit at once
	fakeHome     = "home"     // something in the home has it "exit" at once, or "hang"
	fakeSessions = "sessions" // the answer of /session/status
	fakePtys     = "ptys"     // the answer of /pty
	fakeLog      = "log"      // one line a request, and one a start
	fakeDeaf     = "deaf"     // a turn asks no model
)

// fakeOpenCode behaves as OpenCode was measured to: its socket accepts before
// its routes exist and requests of that time hang for ever; a folder's config
// is read once, until a dispose, and one that fails stays failed.
func fakeOpenCode() {
	dir := os.Getenv("FAKE_DIR")
	note := func(line string) {
		f, err := os.OpenFile(filepath.Join(dir, fakeLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		defer f.Close()
		_, _ = fmt.Fprintln(f, line)
	}
	note("START")
	if _, err := os.Stat(filepath.Join(dir, fakeCrash)); err == nil {
		_, _ = os.Stdout.WriteString("cannot go on\x1b[31m, sorry\n")
		os.Exit(7)
	}
	// The real one finds what lies in the home below these.
	atFault, _ := os.ReadFile(filepath.Join(dir, fakeHome))
	if os.Getenv("XDG_CONFIG_HOME") != "" && os.Getenv("OPENCODE_TEST_HOME") != "" {
		atFault = nil
	}
	if string(atFault) == "exit" {
		os.Exit(9)
	}
	for _, name := range []string{"OPENCODE_DISABLE_SHARE", "OPENCODE_DISABLE_PROJECT_CONFIG", "OPENCODE_PURE"} {
		note(name + "=" + os.Getenv(name))
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "SANDBOXD_") {
			note("LEAK " + kv)
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:"+os.Args[len(os.Args)-1])
	if err != nil {
		_, _ = os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(8)
	}
	routesAt := time.Now().Add(700 * time.Millisecond)
	fake := &fake{dir: dir, hangs: string(atFault) == "hang", loaded: map[string]string{}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if time.Now().Before(routesAt) {
			note("EARLY")
			<-r.Context().Done()
			return
		}
		if _, password, _ := r.BasicAuth(); password != os.Getenv("OPENCODE_SERVER_PASSWORD") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		note(r.Method + " " + r.URL.Path)
		fake.serve(w, r)
	})
	_ = http.Serve(listener, handler) //nolint:gosec // a test's
}

type fake struct {
	dir    string
	hangs  bool
	mu     sync.Mutex
	loaded map[string]string
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file := func(name, fallback string) {
		raw, err := os.ReadFile(filepath.Join(f.dir, name))
		if err != nil {
			raw = []byte(fallback)
		}
		_, _ = w.Write(raw)
	}
	auth := filepath.Join(os.Getenv("HOME"), ".local", "share", "opencode", "auth.json")
	have := map[string]json.RawMessage{}
	if raw, err := os.ReadFile(auth); err == nil {
		_ = json.Unmarshal(raw, &have)
	}
	save := func() {
		raw, _ := json.Marshal(have)
		_ = os.MkdirAll(filepath.Dir(auth), 0o755)
		if err := os.WriteFile(auth, raw, 0o600); err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("true"))
	}
	provider, isAuth := strings.CutPrefix(r.URL.Path, "/auth/")
	switch {
	case r.URL.Path == "/global/health":
		_, _ = w.Write([]byte(`{"healthy":true,"version":"fake"}`))
	case r.URL.Path == "/session/status":
		file(fakeSessions, "{}")
	case r.URL.Path == "/pty":
		file(fakePtys, "[]")
	case r.URL.Path == "/global/dispose":
		for dir, failure := range f.loaded {
			if failure == "" {
				delete(f.loaded, dir)
			}
		}
		_, _ = w.Write([]byte("true"))
	case r.URL.Path == "/config" && f.hangs:
		<-r.Context().Done()
	case r.URL.Path == "/config":
		dir := r.URL.Query().Get("directory")
		if _, ok := f.loaded[dir]; !ok {
			f.loaded[dir] = readConfig()
		}
		if failure := f.loaded[dir]; failure != "" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(failure))
			return
		}
		_, _ = w.Write([]byte("{}"))
	case r.Method == http.MethodPost && r.URL.Path == "/session":
		_, _ = w.Write([]byte(`{"id":"ses_fake"}`))
	case strings.HasSuffix(r.URL.Path, "/message"):
		f.turn(r)
		_, _ = w.Write([]byte("{}"))
	case isAuth && r.Method == http.MethodPut:
		var body json.RawMessage
		_ = json.NewDecoder(r.Body).Decode(&body)
		if strings.Contains(string(body), "refuse-me") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"name":"BadRequest","data":{"message":"Expected Auth, got \"refuse-me\""}}`))
			return
		}
		have[provider] = body
		save()
	case isAuth && r.Method == http.MethodDelete:
		delete(have, provider)
		save()
	default:
		_, _ = w.Write([]byte("<html>the web UI</html>"))
	}
}

// turn asks the model that the config has on disk at this moment, unless no
// reply is wanted.
func (f *fake) turn(r *http.Request) {
	var message struct{ NoReply bool }
	_ = json.NewDecoder(r.Body).Decode(&message)
	if _, err := os.Stat(filepath.Join(f.dir, fakeDeaf)); err == nil || message.NoReply {
		return
	}
	var config struct {
		Provider map[string]struct{ Options struct{ BaseURL string } }
	}
	raw, _ := os.ReadFile(configFile())
	_ = json.Unmarshal(raw, &config)
	for _, p := range config.Provider {
		ask := &http.Client{Timeout: 10 * time.Second}
		if reply, err := ask.Post(p.Options.BaseURL+"/chat/completions", "application/json", strings.NewReader("{}")); err == nil { //nolint:noctx // it has a deadline
			_ = reply.Body.Close()
		}
	}
}

func configFile() string { return filepath.Join(os.Getenv("OPENCODE_CONFIG_DIR"), "opencode.json") }

// readConfig returns the error body of a config that is not valid.
func readConfig() string {
	path := configFile()
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if !strings.Contains(string(raw), "$schema") { // as the real one
		_ = os.WriteFile(path, []byte(strings.Replace(string(raw), "{", "{\n  \"$schema\": \"x\",", 1)), 0o600)
	}
	var config struct {
		Model string `json:"model"`
	}
	if err := json.Unmarshal(raw, &config); err == nil {
		return ""
	}
	body, _ := json.Marshal(map[string]any{"name": "ConfigInvalidError", "data": map[string]any{
		"path": path, "issues": []any{map[string]any{"path": []string{"model"}, "message": "Expected string, got " + string(raw)}},
	}})
	return string(body)
}
