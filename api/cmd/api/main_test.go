package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gatewayToken = "GATEWAY_TOKEN=a-token-of-the-gateway"

func TestCallsThatDoNotServe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args, env []string
		code      int
		says      string
	}{
		"help":                       {[]string{"--help"}, nil, 0, "api migrate"},
		"version":                    {[]string{"version"}, nil, 0, "api "},
		"--version":                  {[]string{"--version"}, nil, 0, "api "},
		"help for a command":         {[]string{"migrate", "-h"}, nil, 0, "api doctor"},
		"--json where it is not":     {[]string{"migrate", "--json"}, nil, exitUsage, "api: migrate --json"},
		"a value of another type":    {nil, []string{"TEAM_SIZE=many", "TASK_TIMEOUT=soon"}, exitUsage, "TASK_TIMEOUT must be a time with a unit (s, m or h), such as 10m"},
		"a doctor's bad settings":    {[]string{"doctor"}, []string{"TEAM_SIZE=0"}, exitUsage, "✗ configuration: TEAM_SIZE must be 1 to 100, such as 10"},
		"an unknown command":         {[]string{"dance"}, nil, exitUsage, "api: dance"},
		"too many arguments":         {[]string{"serve", "now"}, nil, exitUsage, "serve now"},
		"a bad configuration":        {nil, []string{"TEAM_SIZE=0", "LOG_LEVEL=loud"}, exitUsage, "TEAM_SIZE"},
		"a migration's bad settings": {[]string{"migrate"}, []string{"TEAM_SIZE=0"}, exitUsage, "TEAM_SIZE"},
		"a database that is away":    {nil, []string{"DATABASE_URL=postgres://api:hidden@127.0.0.1:1/api", "ENCRYPTION_KEY=" + strings.Repeat("ab", 32), "API_SECRET=" + strings.Repeat("s", 32)}, exitFailed, "DATABASE_URL"},
		"a migration":                {[]string{"migrate"}, nil, 0, "the database is up to date"},
		"the health of nobody":       {[]string{"health"}, []string{"API_ADDR=127.0.0.1:1"}, exitFailed, "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(t.Context(), c.args, append(c.env, gatewayToken, "DATA_DIR="+t.TempDir()), &out, &errs)
			said := out.String() + errs.String()
			if code != c.code || !strings.Contains(said, c.says) || strings.Contains(said, "hidden") {
				t.Errorf("exit %d, it says %s", code, said)
			}
		})
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	t.Parallel()
	var config net.ListenConfig
	taken, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = taken.Close() }()
	dir := filepath.Join(t.TempDir(), "data")
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"serve"}, []string{gatewayToken, "DATA_DIR=" + dir, "API_ADDR=" + taken.Addr().String()}, &out, &errs)
	if code != exitFailed || !strings.Contains(errs.String(), "API_ADDR "+taken.Addr().String()) {
		t.Errorf("exit %d, it says %s", code, errs.String())
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, "api.secret": 0o600, "encryption.key": 0o600, "api.db": 0o600} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs the API on a free port; stop ends it and returns its exit code.
func start(t *testing.T, env ...string) (url string, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	read, write := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, nil, append(env, "API_ADDR=127.0.0.1:0", "LOG_FORMAT=json"), io.Discard, write)
		_ = write.Close()
	}()
	lines := bufio.NewScanner(read)
	var said []string
	for url == "" && lines.Scan() {
		var line struct{ Msg, Addr string }
		said = append(said, lines.Text())
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			url = "http://" + line.Addr
		}
	}
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, read)
		close(drained)
	}()
	stop = func() int {
		cancel()
		defer func() { <-drained }()
		return <-code
	}
	if url == "" {
		t.Fatalf("it does not serve, exit %d: %s", stop(), strings.Join(said, "\n"))
	}
	return url, stop
}

// call sends a request, and closes its connection.
func call(t *testing.T, method, url, token, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	must(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, string(raw)
}

func TestItServesAndComesBackWithWhatItKept(t *testing.T) {
	t.Parallel()
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"ok","credentials":[]}`)
	}))
	defer gateway.Close()
	env := []string{gatewayToken, "GATEWAY_URL=" + gateway.URL, "DATA_DIR=" + t.TempDir()}

	url, stop := start(t, env...)
	for _, path := range []string{"/health", "/readyz"} {
		if resp, body := call(t, "GET", url+path, "", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	resp, body := call(t, "POST", url+"/api/auth/sign-up/email", "", `{"name":"Ada","email":"ada@example.com","password":"password1"}`)
	token := resp.Header.Get("set-auth-token")
	if resp.StatusCode != http.StatusOK || token == "" {
		t.Fatalf("signing up: %d %s", resp.StatusCode, body)
	}
	if code := stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}

	// A signed token is taken again: the secret was kept, and the session too.
	url, stop = start(t, env...)
	resp, body = call(t, "GET", url+"/api/auth/get-session", token, "")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, "ada@example.com") {
		t.Errorf("after a restart: %d %s", resp.StatusCode, body)
	}
	var out, errs bytes.Buffer
	asked := append(slices.Clone(env), "API_ADDR="+strings.TrimPrefix(url, "http://"))
	if code := run(t.Context(), []string{"health"}, asked, &out, &errs); code != 0 {
		t.Errorf("its health: exit %d, it says %s", code, errs.String())
	}
	if resp, body := call(t, "GET", url+"/api/v2/agents/providers", token, ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"docker"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestAnAdminIsMadeOnceWithAPasswordThatIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{gatewayToken, "GATEWAY_URL=http://127.0.0.1:1", "DATA_DIR=" + dir, "MAKE_ADMIN=true", "SIGN_UP=false"}
	for range 2 {
		url, stop := start(t, env...)
		password, err := os.ReadFile(filepath.Join(dir, "admin.password"))
		must(t, err)
		resp, body := call(t, "POST", url+"/api/auth/sign-in/email", "", `{"email":"admin@localhost.test","password":"`+strings.TrimSpace(string(password))+`"}`)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"role":"admin"`) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if code := stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "admin.password"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestNoPasswordIsMadeWhereThereIsAUser(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{gatewayToken, "DATA_DIR=" + dir, "GATEWAY_URL=http://127.0.0.1:1", "SIGN_UP=true"}
	url, stop := start(t, env...)
	if resp, body := call(t, "POST", url+"/api/auth/sign-up/email", "", `{"name":"Ada","email":"ada@example.com","password":"password1"}`); resp.StatusCode != http.StatusOK {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	stop()
	_, stop = start(t, append(env, "MAKE_ADMIN=true")...)
	stop()
	if _, err := os.Stat(filepath.Join(dir, "admin.password")); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
}
