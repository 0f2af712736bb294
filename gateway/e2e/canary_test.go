package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi" //nolint:gosec // git's server is one, and what was wrong with it is long mended
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/canarytest"
	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

// marks are what a secret has around it that is written in many ways. Keys travel
// in headers, and have those only that can.
const (
	marks    = `+/"&<é%\`
	keyMarks = `+/"&<%\=`
)

// mine has a gateway with a secret in everything that takes one, and all that came
// out of it.
type mine struct {
	*gateway
	cage canarytest.Cage

	mu    sync.Mutex
	out   bytes.Buffer // replies, webhooks, and what the engine shows
	hooks int
}

func (m *mine) note(text []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Write(append(text, '\n'))
}

// receive is an API that notes what webhooks say, and checks that they bring their
// token.
func (m *mine) receive(t *testing.T, token string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		m.note(fmt.Appendf(body, "%s %v", r.URL, r.Header))
		m.mu.Lock()
		m.hooks++
		m.mu.Unlock()
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// ask sends a request and notes the whole reply.
func (m *mine) ask(t *testing.T, method, path string, body any, header http.Header) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	resp, err := m.open(ctx, method, path, body, header)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	m.note(fmt.Appendf(nil, "%v\n%s", resp.Header, raw))
	m.cage.Absent(t, fmt.Sprintf("the reply to %s %.60s", method, path), fmt.Appendf(nil, "%v\n%s", resp.Header, raw))
	return resp.StatusCode, string(raw)
}

// must is ask for a reply that has to have a status.
func (m *mine) must(t *testing.T, method, path string, body any, want int) string {
	t.Helper()
	status, raw := m.ask(t, method, path, body, nil)
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, raw)
	}
	return raw
}

// inspect notes what the engine shows of the installation.
func (m *mine) inspect(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"container", "volume"} {
		for id := range strings.FieldsSeq(m.engine(kind)) {
			out, err := docker(kind, "inspect", id)
			if err != nil {
				t.Fatal(out)
			}
			m.note([]byte(out))
			if kind == "container" {
				logs, _ := docker("logs", id)
				m.note([]byte(logs))
				m.cage.Absent(t, "a container's log", []byte(logs))
			}
			m.cage.Absent(t, "what the engine shows of a "+kind, []byte(out))
		}
	}
	out, err := docker("network", "inspect", "agentpod-"+m.installation())
	if err != nil {
		t.Fatal(out)
	}
	m.note([]byte(out))
}

// search looks through everything that came out so far.
func (m *mine) search(t *testing.T, when string) {
	t.Helper()
	m.inspect(t)
	m.must(t, http.MethodGet, "/metrics", nil, http.StatusOK)
	m.cage.Absent(t, "the log "+when, []byte(m.log()))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cage.Absent(t, "what came out "+when, m.out.Bytes())
	// These two are where secrets belong.
	if files := m.cage.AbsentBelow(t, m.dir, "gateway.token", "sealing.key"); files < 2 {
		t.Errorf("the data folder has %d files", files)
	}
}

// gitHost is a server that has one repository for one user, and repeats to anybody
// else what he sent.
type gitHost struct {
	address *url.URL

	mu  sync.Mutex
	got []string
}

func serveGit(t *testing.T, host, user, password string) *gitHost {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", "work"},
		{"-C", "work", "-c", "user.name=n", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "one"},
		{"clone", "-q", "--bare", "work", "demo.git"},
	} {
		git := exec.CommandContext(t.Context(), "git", args...) //nolint:gosec // the test's own
		git.Dir = dir
		if out, err := git.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	path, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Dir: dir,
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},
	}
	g := &gitHost{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.got = append(g.got, r.Header.Get("Authorization"))
		g.mu.Unlock()
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			backend.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		status := http.StatusUnauthorized
		if r.Header.Get("Authorization") != "" {
			status = http.StatusForbidden
		}
		w.WriteHeader(status)
		u, p, _ := r.BasicAuth()
		_, _ = fmt.Fprintf(w, "who is %s with %s, %s, %s: %s\n", u, p, url.QueryEscape(p), url.PathEscape(p), r.Header.Get("Authorization"))
	}))
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	if g.address, err = url.Parse(server.URL + "/demo.git"); err != nil {
		t.Fatal(err)
	}
	return g
}

// as is the repository's URL with credentials.
func (g *gitHost) as(user *url.Userinfo) string {
	u := *g.address
	u.User = user
	return u.String()
}

func (g *gitHost) seen() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.got, "\n")
}

// indiscreet is a provider that repeats to who asks for it what it was sent.
func indiscreet(t *testing.T, host, key string) *scriptedmodel.Server {
	t.Helper()
	model := scriptedmodel.New(scriptedmodel.Options{APIKey: key, Script: func(r scriptedmodel.Request) string {
		status, ok := strings.CutPrefix(r.UserMessage(), "repeat my key with ")
		if !ok {
			return ""
		}
		return "fail " + status + " what is " + r.Authorization
	}})
	if err := model.Start(context.WithoutCancel(t.Context()), host+":0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = model.Close() })
	return model
}

func TestNoSecretGetsOut(t *testing.T) {
	m := &mine{}
	plant := func(name, around string) string { return m.cage.Plant(t, name, around, around) }
	hookToken := plant("AGENTPOD_API_TOKEN", "")
	m.gateway = start(t, "AGENTPOD_API_URL="+m.receive(t, hookToken), "AGENTPOD_API_TOKEN="+hookToken, "GIT_PROTOCOLS=http,git", "POOL_SIZE=1",
		"SEALING_KEYS_FORMER="+m.cage.PlantKey(t, "SEALING_KEYS_FORMER"),
		"ANTHROPIC_API_KEY="+plant("a provider's key of the environment", keyMarks))
	m.cage.Add(t, "the gateway's token that was made", m.token)
	host := strings.TrimPrefix(m.model.URL(), "http://")
	host = host[:strings.LastIndex(host, ":")]

	// Again, with a token, a key and a config of the operator's.
	if err := m.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(filepath.Join(m.dir, "sealing.key"))
	if err != nil {
		t.Fatal(err)
	}
	m.cage.Add(t, "the sealing key that was made", strings.TrimSpace(string(made)))
	modelKey := plant("the default provider's key", keyMarks)
	model := indiscreet(t, host, modelKey)
	var config object
	if err := json.Unmarshal(model.Config(), &config); err != nil {
		t.Fatal(err)
	}
	config["auth"] = object{"openai": object{"type": "api", "key": plant("a key of DEFAULT_CONFIG", keyMarks)}}
	raw, _ := json.Marshal(config)
	token := plant("GATEWAY_TOKEN", "")
	m.env = append(m.env, "GATEWAY_TOKEN="+token, "SEALING_KEYS_FORMER="+strings.TrimSpace(string(made)),
		"SEALING_KEY="+m.cage.PlantKey(t, "SEALING_KEY"), "DEFAULT_CONFIG="+string(raw))
	again := func() {
		t.Helper()
		if err := m.run(); err != nil {
			t.Fatal(err)
		}
		m.token = token
	}
	again()

	// A create with everything that may be secret.
	user, password := plant("a git user", ""), plant("a git password", marks)
	git := serveGit(t, host, user, password)
	otherKey := plant("a provider's apiKey", keyMarks)
	own := object{
		"auth": object{
			"groq":           object{"type": "api", "key": plant("a sandbox's key", keyMarks)},
			"github-copilot": object{"type": "oauth", "refresh": plant("a refresh token", keyMarks), "access": plant("an access token", keyMarks), "expires": 4e12},
		},
		"provider": object{"other": object{
			"npm": "@ai-sdk/openai-compatible", "name": "Other", "models": object{"echo": object{"name": "Echo"}},
			"options": object{"baseURL": model.URL(), "apiKey": otherKey, "headers": object{"X-Key": plant("a provider's header", keyMarks)}},
		}},
		"mcp": object{"tool": object{"type": "remote", "enabled": false, "url": "http://127.0.0.1:9/", "headers": object{"Authorization": plant("an MCP server's header", keyMarks)}}},
	}
	m.must(t, http.MethodPost, "/sandbox", object{"id": "nest", "userId": "user_1", "gitUrl": git.as(url.UserPassword(user, password)), "config": own}, http.StatusOK)
	m.must(t, http.MethodPost, "/sandbox/nest/message", object{"message": "write notes.txt: hello"}, http.StatusOK)
	m.must(t, http.MethodPost, "/sandbox/nest/message", object{"message": "say hi", "model": object{"providerID": "other", "modelID": "echo"}}, http.StatusOK)
	m.must(t, http.MethodPost, "/sandbox/nest/exec", object{"command": []string{"true"}, "env": object{"SECRET": plant("a command's environment", marks)}}, http.StatusOK)
	m.must(t, http.MethodPost, "/sandbox/nest/sync", nil, http.StatusOK)

	// They did get where they belong, or nothing of this would prove anything.
	var keys strings.Builder
	for _, r := range model.Requests() {
		keys.WriteString(r.Authorization + "\n")
	}
	for where, text := range map[string]string{"the provider": keys.String(), "the git server": git.seen()} {
		if len(m.cage.Find([]byte(text))) == 0 {
			t.Errorf("%s saw no secret: %q", where, text)
		}
	}
	for _, secret := range []string{modelKey, otherKey} {
		if !strings.Contains(keys.String(), "Bearer "+secret) {
			t.Errorf("the provider did not get a key in %q", keys.String())
		}
	}
	m.clean(t, "after a create")

	// A way into the web UI: the address and the cookie are the secrets.
	link := m.ui(t, "nest")
	_, ticket, _ := strings.Cut(link, "ticket=")
	m.cage.Add(t, "a ticket", ticket)
	visit := m.onHost(t, http.MethodGet, link, nil)
	cookie, _, _ := strings.Cut(visit.Header.Get("Set-Cookie"), ";")
	_, value, _ := strings.Cut(cookie, "=")
	m.cage.Add(t, "the cookie of the web UI", value)
	if got := m.onHost(t, http.MethodGet, strings.Split(link, "?")[0], http.Header{"Cookie": {cookie}}); got.StatusCode != http.StatusOK {
		t.Errorf("the cookie opens nothing: %d", got.StatusCode)
	}
	m.onHost(t, http.MethodGet, link, nil) // a second time, which is refused
	front := plant("a wrong token of the front page", marks)
	form := url.Values{"token": {front}}.Encode()
	m.ask(t, http.MethodPost, "/login", []byte(form), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
	m.search(t, "after a create")

	t.Run("in refusals", func(t *testing.T) { m.refusals(t, git) })
	t.Run("through sleep and wake", func(t *testing.T) {
		for _, tier := range []string{"stopped", "archived"} {
			m.hibernate(t, "nest", tier)
			m.search(t, tier)
			m.must(t, http.MethodPost, "/sandbox/nest/message", object{"message": "say awake"}, http.StatusOK)
		}
		m.clean(t, "after an archive")
	})
	// From here on OpenCode's own history in the sandbox has what the provider said.
	t.Run("of a provider that repeats them", func(t *testing.T) {
		for _, c := range []struct {
			status, want int
			model        string
		}{{401, http.StatusOK, "scripted"}, {401, http.StatusOK, "other"}, {500, http.StatusGatewayTimeout, "other"}} {
			_, body := m.ask(t, http.MethodPost, "/sandbox/nest/message", object{
				"message": fmt.Sprint("repeat my key with ", c.status), "timeoutMs": 8000, "model": object{"providerID": c.model, "modelID": "echo"},
			}, nil)
			if !strings.Contains(body, "what is Bearer ***") {
				t.Errorf("the provider's words are missing: %s", body)
			}
		}
		m.search(t, "after a failing model")
	})
	t.Run("after a crash", func(t *testing.T) {
		if err := m.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		again()
		m.must(t, http.MethodPost, "/sandbox/nest/message", object{"message": "say still here"}, http.StatusOK)
		if out, err := docker("kill", m.container("nest")); err != nil {
			t.Fatal(out)
		}
		eventually(t, "the death is noticed", time.Minute, func() bool {
			return strings.Contains(m.must(t, http.MethodGet, "/metrics", nil, http.StatusOK), "agentpod_container_deaths_total 1")
		})
		m.must(t, http.MethodPost, "/sandbox/nest/message", object{"message": "say back"}, http.StatusOK)
		m.search(t, "after a crash")
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hooks == 0 {
		t.Error("no webhook came")
	}
}

// clean looks where a sandbox's own programs keep things, but for OpenCode's own
// credentials, and at what the environment and the arguments of its processes are.
func (m *mine) clean(t *testing.T, when string) {
	t.Helper()
	const files = `cd ~ && find . -type f ! -path './.local/share/opencode/auth.json' ! -path './.cache/*' ! -path './.npm/*' -size -4M -print -exec cat {} + && cat workspace/.git/config`
	text := m.exec(t, "nest", "bash", "-c", files+" | base64 -w0 | head -c 900000 | base64 -d 2>/dev/null; echo; echo workspace/.git/config; cat ~/workspace/.git/config")
	if !strings.Contains(text, "[remote") || !strings.Contains(text, "hello") {
		t.Errorf("the files of the sandbox %s: %.300s", when, text)
	}
	m.cage.Absent(t, "a file in the sandbox "+when, []byte(text))
	processes := m.exec(t, "nest", "bash", "-c", `for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline; tr '\0' '\n' <$p/environ; done 2>/dev/null; true`)
	if !strings.Contains(processes, "OPENCODE_SERVER_PASSWORD") {
		t.Errorf("no process of OpenCode's %s: %s", when, processes)
	}
	m.cage.Absent(t, "a process in the sandbox "+when, []byte(processes))
}

// refusals sends secrets to where they are of no use.
func (m *mine) refusals(t *testing.T, git *gitHost) {
	secret := m.cage.Plant(t, "a secret in a bad request", marks, marks)
	plain := m.cage.Plant(t, "a secret in a bad address", "", "")
	quoted, _ := json.Marshal(secret)
	create := func(more object) any {
		body := object{"id": "never", "userId": "user_1"}
		for k, v := range more {
			body[k] = v
		}
		return body
	}
	for name, c := range map[string]struct {
		method, path string
		body         any
		header       http.Header
	}{
		"a body that ends early":      {http.MethodPost, "/sandbox", []byte(`{"id":"never","config":{"auth":{"x":{"key":` + string(quoted)), nil},
		"a body that is a text":       {http.MethodPost, "/sandbox", quoted, nil},
		"a body with a bad escape":    {http.MethodPost, "/sandbox", []byte(`{"id":"` + plain + `\q"}`), nil},
		"a config that is a text":     {http.MethodPost, "/sandbox", create(object{"config": secret}), nil},
		"credentials that are a text": {http.MethodPost, "/sandbox", create(object{"config": object{"auth": secret}}), nil},
		"a number with it":            {http.MethodPost, "/sandbox", create(object{"userId": []string{secret}}), nil},
		"files that are a text":       {http.MethodPost, "/sandbox", create(object{"config": object{"files": secret}}), nil},
		"a git URL of no protocol":    {http.MethodPost, "/sandbox", create(object{"gitUrl": "ext::" + secret}), nil},
		"a git URL that is none":      {http.MethodPost, "/sandbox", create(object{"gitUrl": "http://u:" + plain + "%zz@host/x"}), nil},
		"a git URL of a file":         {http.MethodPost, "/sandbox", create(object{"gitUrl": "file://u:" + plain + "@host/x"}), nil},
		"a git URL with a query":      {http.MethodPost, "/sandbox", create(object{"gitUrl": "http://host/x?token=" + plain}), nil},
		"a query":                     {http.MethodGet, "/sandboxes?token=" + plain + "&limit=no", nil, nil},
		"a query of a sandbox":        {http.MethodGet, "/sandbox/nest/none?token=" + plain, nil, nil},
		"a query to OpenCode":         {http.MethodGet, "/sandbox/nest/opencode/path?auth_token=" + plain, nil, nil},
		"a query to nobody":           {http.MethodGet, "/sandbox/nobody/opencode/path?auth_token=" + plain, nil, nil},
		"a bad token":                 {http.MethodGet, "/sandboxes", nil, http.Header{"Authorization": {"Bearer " + plain}}},
		"a bad password":              {http.MethodGet, "/sandbox/nest/opencode/path", nil, http.Header{"Authorization": {"Basic " + plain}}},
		"other headers":               {http.MethodGet, "/sandbox/nobody", nil, http.Header{"Cookie": {"a=" + plain}, "X-Api-Key": {plain}, "X-Request-Id": {"a b " + plain}, "Referer": {"http://x/?t=" + plain}}},
		"a config OpenCode refuses":   {http.MethodPost, "/sandbox/nest/wake", object{"config": object{"provider": object{"x": object{"options": secret}}}}, nil},
		"a config of a wrong type":    {http.MethodPost, "/sandbox/nest/wake", object{"config": object{"mcp": object{"x": object{"type": "remote", "url": 7, "headers": object{"Authorization": secret}}}}}, nil},
		"a key that is a number":      {http.MethodPost, "/sandbox/nest/message", object{"message": []string{secret}}, nil},
		"a clone with a bad password": {http.MethodPost, "/sandbox", create(object{"gitUrl": git.as(url.UserPassword("somebody", secret))}), nil},
		"a clone with a bad token":    {http.MethodPost, "/sandbox", create(object{"gitUrl": git.as(url.User(plain))}), nil},
		"a clone from nowhere":        {http.MethodPost, "/sandbox", create(object{"gitUrl": "http://user:" + plain + "@127.0.0.1:9/x.git"}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			status, raw := m.ask(t, c.method, c.path, c.body, c.header)
			if status < 400 && c.path != "/sandbox/nest/opencode/path?auth_token="+plain && c.path != "/sandboxes?token="+plain+"&limit=no" {
				t.Errorf("it was taken: %d %s", status, raw)
			}
		})
	}
	for _, sent := range []string{secret, plain} {
		if !strings.Contains(git.decoded(), sent) {
			t.Errorf("the git server did not get a secret of a failing clone: %q", git.decoded())
		}
	}
	m.search(t, "after refusals")
}

// decoded are the credentials that came.
func (g *gitHost) decoded() string {
	var b strings.Builder
	for line := range strings.Lines(g.seen()) {
		r := http.Request{Header: http.Header{"Authorization": {strings.TrimSpace(line)}}}
		user, password, _ := r.BasicAuth()
		b.WriteString(user + ":" + password + "\n")
	}
	return b.String()
}

// The store has a secret of its own, and refuses the requests that are signed with it.
func TestNoSecretOfTheStoreGetsOut(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	m := &mine{}
	m.cage.Add(t, "S3_SECRET_ACCESS_KEY", server.SecretKey)
	m.gateway = start(t, "S3_ENDPOINT="+server.Endpoint, "S3_BUCKET="+server.Bucket, "S3_REGION=us-east-1",
		"S3_ACCESS_KEY_ID="+server.AccessKey, "S3_SECRET_ACCESS_KEY="+server.SecretKey, "SEALING_KEY="+m.cage.PlantKey(t, "SEALING_KEY"))
	m.must(t, http.MethodPost, "/sandbox", object{"id": "nest", "userId": "user_1"}, http.StatusOK)
	m.must(t, http.MethodPost, "/sandbox/nest/sync", nil, http.StatusOK)
	m.hibernate(t, "nest", "archived")
	m.search(t, "on S3")
}

// What is wrong with a setting is said without the setting.
func TestAGatewayThatDoesNotStartShowsNoSecret(t *testing.T) {
	var cage canarytest.Cage
	plain := cage.Plant(t, "a setting", "", "")
	marked := cage.Plant(t, "a setting with marks", marks, marks)
	for name, env := range map[string][]string{
		"a short token":                 {"GATEWAY_TOKEN=" + plain[:15]},
		"a sealing key that is none":    {"SEALING_KEY=" + marked},
		"a former key that is none":     {"SEALING_KEYS_FORMER=" + marked},
		"a store with a password":       {"S3_ENDPOINT=https://u:" + plain + "@127.0.0.1:9", "S3_BUCKET=b", "S3_ACCESS_KEY_ID=a", "S3_SECRET_ACCESS_KEY=" + marked, "SEALING_KEY=" + cage.PlantKey(t, "a key")},
		"a store that is away":          {"S3_ENDPOINT=http://127.0.0.1:9", "S3_BUCKET=b", "S3_ACCESS_KEY_ID=a", "S3_SECRET_ACCESS_KEY=" + marked, "SEALING_KEY=" + cage.PlantKey(t, "a key")},
		"a store without its address":   {"S3_SECRET_ACCESS_KEY=" + marked},
		"a config that is a text":       {`DEFAULT_CONFIG="` + plain + `"`},
		"a config that ends early":      {`DEFAULT_CONFIG={"auth":{"a":{"type":"api","key":"` + plain},
		"credentials that are a text":   {`DEFAULT_CONFIG={"auth":"` + plain + `"}`},
		"an API with a password":        {"AGENTPOD_API_URL=ftp://u:" + plain + "@127.0.0.1:9", "AGENTPOD_API_TOKEN=" + marked},
		"an API with a bad password":    {"AGENTPOD_API_URL=http://u:" + plain + "%zz@127.0.0.1:9", "AGENTPOD_API_TOKEN=" + marked},
		"an engine with a password":     {"DOCKER_HOST=tcp://u:" + plain + "@127.0.0.1:9"},
		"an address that is a secret":   {"PUBLIC_URL=http://u:" + plain + "@%zz"},
		"secrets that are all in order": {"GATEWAY_TOKEN=" + plain, "ANTHROPIC_API_KEY=" + marked, "AGENTPOD_API_URL=http://127.0.0.1:9", "AGENTPOD_API_TOKEN=" + marked, "DOCKER_HOST=tcp://127.0.0.1:9"},
	} {
		for _, command := range [][]string{{"serve"}, {"doctor"}, {"doctor", "--json"}} {
			t.Run(name+", "+strings.Join(command, " "), func(t *testing.T) {
				dir := t.TempDir()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, binary, command...) //nolint:gosec // our own
				cmd.Env = append([]string{
					"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "DATA_DIR=" + dir, "GATEWAY_ADDR=127.0.0.1:0", "LOG_LEVEL=debug", "LOG_FORMAT=json", "DOCKER_HOST=unix://" + dir + "/none",
				}, env...)
				out, err := cmd.CombinedOutput()
				if err == nil || len(out) == 0 {
					t.Errorf("it ended well: %s", out)
				}
				cage.Absent(t, "the output", out)
				cage.AbsentBelow(t, dir, "gateway.token", "sealing.key")
			})
		}
	}
}
