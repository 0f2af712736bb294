package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/canarytest"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

// marks are what a secret has around it that is written in many ways. Keys travel
// in headers, and have those only that can.
const (
	marks    = `+/"&<é%\`
	keyMarks = `+/"&<%\=`
)

// mine has an API, and a gateway behind it, with a secret in everything that takes
// one.
type mine struct {
	*api
	g    *gateway
	cage canarytest.Cage
	url  string // of the database

	mu  sync.Mutex
	out strings.Builder // what was answered
}

func (m *mine) plant(t *testing.T, name, around string) string {
	t.Helper()
	return m.cage.Plant(t, name, around, around)
}

// ask sends a request as somebody, and looks through the reply.
func (m *mine) ask(t *testing.T, c *caller, method, path string, body any, header http.Header) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	res, err := c.open(ctx, method, path, body, header)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	m.cage.Absent(t, fmt.Sprintf("the reply to %s %.60s", method, path), fmt.Appendf(nil, "%v\n%s", res.Header, raw))
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprintf(&m.out, "%v\n%s\n", res.Header, raw)
	return res.StatusCode, string(raw)
}

// must is ask for a reply that has to have a status.
func (m *mine) must(t *testing.T, c *caller, method, path string, body any, want int) string {
	t.Helper()
	status, raw := m.ask(t, c, method, path, body, nil)
	if status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, status, want, raw)
	}
	return raw
}

// sign signs somebody in or up, and keeps what he is let in with among the secrets:
// this one reply has it, and no other.
func (m *mine) sign(t *testing.T, path string, body object) *caller {
	t.Helper()
	res, err := (&caller{url: m.api.url()}).open(t.Context(), http.MethodPost, path, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out struct {
		Token string
		User  struct{ ID string }
	}
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("signing in: %d %v", res.StatusCode, err)
	}
	m.cage.Add(t, "a session's token", out.Token)
	for _, k := range res.Cookies() {
		if k.Name == sessionCookie {
			value, _ := url.QueryUnescape(k.Value)
			m.cage.Add(t, "a session's cookie", value)
		}
	}
	m.users = append(m.users, out.User.ID)
	return &caller{url: m.api.url(), bearer: out.Token, userID: out.User.ID}
}

// rows are all that the database has.
func (m *mine) rows(t *testing.T) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), m.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	texts := func(query string) []string {
		rows, err := conn.Query(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	var all strings.Builder
	for _, table := range texts("SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()") {
		for _, row := range texts(fmt.Sprintf("SELECT t::text FROM %q t", table)) {
			all.WriteString(table + " " + row + "\n")
		}
	}
	return all.String()
}

// search looks through everything that came out so far, and everything that is kept.
func (m *mine) search(t *testing.T, when string) {
	t.Helper()
	rows := m.rows(t)
	if !strings.Contains(rows, "provider_credentials") || !strings.Contains(rows, "tasks") {
		t.Errorf("the database has no rows %s: %.200s", when, rows)
	}
	m.cage.Absent(t, "the database "+when, []byte(rows))
	m.cage.Absent(t, "the API's log "+when, []byte(m.Log()))
	m.cage.Absent(t, "the gateway's log "+when, []byte(m.g.Log()))
	m.mu.Lock()
	m.cage.Absent(t, "what was answered "+when, []byte(m.out.String()))
	m.mu.Unlock()
	// These are where secrets belong.
	m.cage.AbsentBelow(t, m.dir, "api.secret", "encryption.key", "admin.password")
	m.cage.AbsentBelow(t, m.g.dir, "gateway.token", "sealing.key")
	installation := readSecret(m.g.dir, "installation")
	list, err := exec.CommandContext(t.Context(), "docker", "ps", "-aq", "--filter", "label=agentpod.installation="+installation).Output() //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	for id := range strings.FieldsSeq(string(list)) {
		for _, what := range []string{"inspect", "logs"} {
			out, _ := exec.CommandContext(t.Context(), "docker", what, id).CombinedOutput() //nolint:gosec // the test's own
			m.cage.Absent(t, "docker "+what+" "+when, out)
		}
	}
}

// repeating is a worker's answer that has all that it was sent.
func repeating(w *clienttest.Worker) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		asked := w.Requests()
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(rw).Encode(object{"error": "what is " + asked[len(asked)-1].Body + " of " + r.Header.Get("Authorization")})
	}
}

func TestNoSecretGetsOut(t *testing.T) {
	t.Parallel()
	m := &mine{g: ownGateway(t)}
	server, err := storetest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	m.url = server.URL(t) + "&password=" + m.plant(t, "the database's password", "")
	m.cage.Add(t, "the gateway's token", m.g.token())
	service, hook := m.plant(t, "API_TOKEN", ""), m.plant(t, "WEBHOOK_TOKEN_DOCKER", "")
	admin := m.plant(t, "ADMIN_PASSWORD", marks)
	w := clienttest.StartWorker(t)
	m.api = newAPI(t, m.g,
		"DATABASE_URL="+m.url, "ENCRYPTION_KEY="+m.cage.PlantKey(t, "ENCRYPTION_KEY"), "ENCRYPTION_KEYS_FORMER="+m.cage.PlantKey(t, "ENCRYPTION_KEYS_FORMER"),
		"API_SECRET="+m.plant(t, "API_SECRET", "sixteen+16+bytes"), "API_TOKEN="+service, "ADMIN_PASSWORD="+admin,
		"WEBHOOK_TOKEN_DOCKER="+hook, "WEBHOOK_TOKEN_CLOUDFLARE="+m.plant(t, "WEBHOOK_TOKEN_CLOUDFLARE", ""),
		"ENABLE_CLOUDFLARE_SANDBOXES=true", "CLOUDFLARE_WORKER_URL="+w.URL, "CLOUDFLARE_API_TOKEN="+m.plant(t, "CLOUDFLARE_API_TOKEN", ""))
	// A provider that repeats to who asks for it what it was sent.
	host := strings.TrimPrefix(m.g.model.URL(), "http://")
	model := scriptedmodel.New(scriptedmodel.Options{Script: func(r scriptedmodel.Request) string {
		if r.UserMessage() != "repeat my key" {
			return ""
		}
		return "fail 401 what is " + r.Authorization
	}})
	if err := model.Start(context.WithoutCancel(t.Context()), host[:strings.LastIndex(host, ":")]+":0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = model.Close() })

	m.sign(t, "/api/auth/sign-in/email", object{"email": adminEmail, "password": admin})
	password := m.plant(t, "a password", marks)
	c := m.sign(t, "/api/auth/sign-up/email", object{"email": "nest@example.com", "password": password, "name": "Nest"})
	m.sign(t, "/api/auth/sign-in/email", object{"email": "nest@example.com", "password": password})
	key := m.plant(t, "a user's key", keyMarks)
	m.must(t, c, http.MethodPost, "/api/providers/groq/configure", object{"apiKey": key}, http.StatusOK)
	m.must(t, c, http.MethodPost, "/api/providers/anthropic/configure", object{"apiKey": m.plant(t, "another key", keyMarks)}, http.StatusOK)
	m.must(t, c, http.MethodPut, "/api/users/"+c.userID+"/opencode/settings", object{"settings": object{"provider": object{"groq": object{
		"npm": "@ai-sdk/openai-compatible", "name": "Groq", "options": object{"baseURL": model.URL()}, "models": object{"echo": object{"name": "Echo"}},
	}}}}, http.StatusOK)
	var ran struct{ TaskID, SandboxID string }
	work := func(message string, want int) string {
		t.Helper()
		body := object{"message": message, "model": "groq/echo"}
		if ran.SandboxID != "" {
			body["sandboxId"] = ran.SandboxID
		}
		return m.must(t, c, http.MethodPost, taskPath, body, want)
	}
	if err := json.Unmarshal([]byte(work("say hello", http.StatusOK)), &ran); err != nil || ran.SandboxID == "" {
		t.Fatal(err)
	}
	// It did get where it belongs, or nothing of this would prove anything.
	got := ""
	for _, r := range model.Requests() {
		got += r.Authorization + "\n"
	}
	if !strings.Contains(got, "Bearer "+key) {
		t.Errorf("the provider did not get the key: %q", got)
	}
	for _, path := range []string{"/api/providers", configuredPath, "/api/providers/default", "/api/users/" + c.userID + "/opencode/config", "/api/v2/agents/tasks", boxesPath, boxPath + ran.SandboxID, boxPath + ran.SandboxID + "/logs", taskPath + "/" + ran.TaskID} {
		m.must(t, c, http.MethodGet, path, nil, http.StatusOK)
	}
	m.must(t, c, http.MethodPost, boxPath+ran.SandboxID+"/exec", object{"command": []string{"true"}, "env": object{"SECRET": m.plant(t, "a command's environment", marks)}}, http.StatusOK)
	m.must(t, c, http.MethodPost, boxPath+ran.SandboxID+"/sync", nil, http.StatusOK)
	m.must(t, &caller{url: m.api.url(), bearer: service}, http.MethodGet, "/metrics", nil, http.StatusOK)
	m.ask(t, &caller{url: m.api.url(), bearer: hook}, http.MethodPost, webhookPath, object{
		"event": "sandbox.running", "timestamp": time.Now().UTC().Format(time.RFC3339), "data": object{"sandboxId": ran.SandboxID, "provider": "docker", "x": m.plant(t, "a webhook's text", marks)},
	}, nil)
	m.search(t, "after a task")

	t.Run("in refusals", func(t *testing.T) { m.refusals(t, c, w) })
	t.Run("of a provider that repeats them", func(t *testing.T) {
		raw := work("repeat my key", http.StatusBadGateway)
		if !strings.Contains(raw, "what is Bearer ***") {
			t.Errorf("the provider's words are missing: %s", raw)
		}
		var failed struct{ TaskID string }
		_ = json.Unmarshal([]byte(raw), &failed)
		m.must(t, c, http.MethodGet, taskPath+"/"+failed.TaskID+"/stream", nil, http.StatusOK)
		// What a worker says of its provider the API has to look through by itself.
		w.Break(http.MethodPost, "/message", 1, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(rw).Encode(object{"error": "what is Bearer " + key})
		})
		status, raw := m.ask(t, c, http.MethodPost, taskPath, object{"message": "repeat my key", "provider": "cloudflare"}, nil)
		if status != http.StatusBadGateway || !strings.Contains(raw, "what is Bearer ***") {
			t.Errorf("the worker's words are missing: %d %s", status, raw)
		}
		m.search(t, "after a failing model")
	})
	t.Run("with the gateway away", func(t *testing.T) {
		if err := m.g.Stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.ask(t, c, http.MethodPost, boxPath+ran.SandboxID+"/sync", nil, nil)
		m.ask(t, c, http.MethodGet, boxPath+ran.SandboxID+"/opencode/session?auth_token="+m.plant(t, "a query's token", ""), nil, nil)
		if err := m.g.up(); err != nil {
			t.Fatal(err)
		}
		m.search(t, "after a gateway's end")
	})
	t.Run("with the database away", func(t *testing.T) {
		if err := server.Down(); err != nil {
			t.Fatal(err)
		}
		m.ask(t, c, http.MethodGet, "/api/v2/agents/tasks", nil, nil)
		m.ask(t, c, http.MethodPost, "/api/providers/openai/configure", object{"apiKey": m.plant(t, "a key that is not kept", keyMarks)}, nil)
		m.ask(t, c, http.MethodPost, "/api/auth/sign-in/email", object{"email": "nest@example.com", "password": password}, nil)
		if err := m.Stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := server.Up(); err != nil {
			t.Fatal(err)
		}
		if err := m.up(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a task runs again", time.Minute, func() bool {
			status, _ := m.ask(t, c, http.MethodPost, taskPath, object{"message": "say back", "sandboxId": ran.SandboxID}, nil)
			return status == http.StatusOK
		})
		m.search(t, "after a crash")
	})
}

// refusals sends secrets to where they are of no use.
func (m *mine) refusals(t *testing.T, c *caller, w *clienttest.Worker) {
	secret, plain := m.plant(t, "a secret in a bad request", marks), m.plant(t, "a secret in a bad address", "")
	quoted, _ := json.Marshal(secret)
	nobody := &caller{url: m.api.url()}
	const signIn, signUp, configure = "/api/auth/sign-in/email", "/api/auth/sign-up/email", "/api/providers/openai/configure"
	settings := "/api/users/" + c.userID + "/opencode/settings"
	for name, r := range map[string]struct {
		as           *caller
		method, path string
		body         any
		header       http.Header
	}{
		"a wrong password":                    {nobody, http.MethodPost, signIn, object{"email": "nest@example.com", "password": secret}, nil},
		"a password of nobody":                {nobody, http.MethodPost, signIn, object{"email": "nobody@example.com", "password": secret}, nil},
		"a password in a list":                {nobody, http.MethodPost, signIn, object{"email": "nest@example.com", "password": []string{secret}}, nil},
		"a password as an address":            {nobody, http.MethodPost, signIn, object{"email": secret, "password": secret}, nil},
		"a sign-in that ends early":           {nobody, http.MethodPost, signIn, []byte(`{"email":"nest@example.com","password":` + string(quoted)), nil},
		"a password that is too long":         {nobody, http.MethodPost, signUp, object{"email": "more@example.com", "name": "More", "password": strings.Repeat(plain, 9)}, nil},
		"a sign-up of somebody there":         {nobody, http.MethodPost, signUp, object{"email": "nest@example.com", "name": "More", "password": secret}, nil},
		"a key that is a list":                {c, http.MethodPost, configure, object{"apiKey": []string{secret}}, nil},
		"a key of many lines":                 {c, http.MethodPost, configure, object{"apiKey": plain + "\n" + plain}, nil},
		"a key of no provider":                {c, http.MethodPost, "/api/providers/none/configure", object{"apiKey": secret}, nil},
		"a key that ends early":               {c, http.MethodPost, configure, []byte(`{"apiKey":` + string(quoted)), nil},
		"settings that are a text":            {c, http.MethodPut, settings, object{"settings": secret}, nil},
		"settings with credentials":           {c, http.MethodPut, settings, object{"settings": object{"auth": secret}}, nil},
		"a bad token":                         {nobody, http.MethodGet, boxesPath, nil, http.Header{"Authorization": {"Bearer " + plain}}},
		"a bad cookie":                        {nobody, http.MethodGet, boxesPath, nil, http.Header{"Cookie": {sessionCookie + "=" + plain + "." + plain}}},
		"a query":                             {nobody, http.MethodGet, boxesPath + "?token=" + plain, nil, nil},
		"a query of somebody":                 {c, http.MethodGet, boxPath + unknownSandbox + "?token=" + plain, nil, nil},
		"other headers":                       {c, http.MethodGet, boxPath + unknownSandbox, nil, http.Header{"X-Api-Key": {plain}, "X-Request-Id": {"a b " + plain}, "Referer": {"http://x/?t=" + plain}}},
		"a webhook's bad token":               {&caller{url: m.api.url(), bearer: plain}, http.MethodPost, webhookPath, object{"event": "x"}, nil},
		"a git URL with a query":              {c, http.MethodPost, taskPath, object{"message": "x", "gitUrl": "https://host/x?token=" + plain}, nil},
		"a git URL that is none":              {c, http.MethodPost, taskPath, object{"message": "x", "gitUrl": "https://u:" + plain + "%zz@host/x"}, nil},
		"a git URL of no protocol":            {c, http.MethodPost, boxesPath, object{"name": "x", "githubUrl": "ftp://u:" + plain + "@host/x"}, nil},
		"a git URL for later":                 {c, http.MethodPost, boxesPath, object{"name": "x", "autoStart": false, "githubUrl": "https://u:" + plain + "@host/x"}, nil},
		"a clone from nowhere":                {c, http.MethodPost, taskPath, object{"message": "x", "gitUrl": "https://user:" + plain + "@127.0.0.1:9/x.git"}, nil},
		"a clone with a token":                {c, http.MethodPost, taskPath, object{"message": "x", "gitUrl": "https://" + plain + "@127.0.0.1:9/x.git"}, nil},
		"a worker that repeats its body":      {c, http.MethodPost, taskPath, object{"message": "x", "provider": "cloudflare", "gitUrl": "https://user:" + plain + "@127.0.0.1:9/x.git"}, nil},
		"a message that is of the wrong kind": {c, http.MethodPost, taskPath, object{"message": []string{secret}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "a worker that repeats") {
				w.Break(http.MethodPost, "/sandbox", 1, repeating(w))
			}
			if status, raw := m.ask(t, r.as, r.method, r.path, r.body, r.header); status < 400 {
				t.Errorf("it was taken: %d %s", status, raw)
			}
		})
	}
	m.search(t, "after refusals")
}

// What is wrong with a setting is said without the setting.
func TestAnAPIThatDoesNotStartShowsNoSecret(t *testing.T) {
	t.Parallel()
	var cage canarytest.Cage
	plain := cage.Plant(t, "a setting", "", "")
	marked := cage.Plant(t, "a setting with marks", marks, marks)
	long := plain + plain
	for name, env := range map[string][]string{
		"a database that is away":       {"DATABASE_URL=postgres://u:" + plain + "@127.0.0.1:9/x", "ENCRYPTION_KEY=" + cage.PlantKey(t, "a key"), "API_SECRET=" + long},
		"a database with a bad URL":     {"DATABASE_URL=postgres://u:" + plain + "%zz@127.0.0.1:9/x", "ENCRYPTION_KEY=" + cage.PlantKey(t, "a key"), "API_SECRET=" + long},
		"a database with a bad port":    {"DATABASE_URL=postgres://u:" + plain + "@127.0.0.1:port/x", "ENCRYPTION_KEY=" + cage.PlantKey(t, "a key"), "API_SECRET=" + long},
		"a database with a bad setting": {"DATABASE_URL=postgres://u@127.0.0.1:9/x?sslmode=" + plain + "&password=" + plain, "ENCRYPTION_KEY=" + cage.PlantKey(t, "a key"), "API_SECRET=" + long},
		"a database of another kind":    {"DATABASE_URL=mysql://u:" + plain + "@127.0.0.1:9/x"},
		"a key that is none":            {"ENCRYPTION_KEY=" + marked},
		"a former key that is none":     {"ENCRYPTION_KEYS_FORMER=" + marked},
		"a short secret":                {"API_SECRET=" + plain},
		"a token with marks":            {"API_TOKEN=" + marked, "WEBHOOK_TOKEN_DOCKER=" + marked, "WEBHOOK_TOKEN_CLOUDFLARE=" + marked},
		"a password that is too long":   {"ADMIN_PASSWORD=" + strings.Repeat(plain, 9)},
		"a gateway with a password":     {"GATEWAY_URL=http://u:" + plain + "@127.0.0.1:9", "GATEWAY_TOKEN=" + marked},
		"a gateway with a bad password": {"GATEWAY_URL=http://u:" + plain + "%zz@127.0.0.1:9", "GATEWAY_TOKEN=" + marked},
		"a worker with a bad password":  {"ENABLE_CLOUDFLARE_SANDBOXES=true", "CLOUDFLARE_WORKER_URL=http://u:" + plain + "%zz@127.0.0.1:9", "CLOUDFLARE_API_TOKEN=" + marked},
		"a catalogue with a password":   {"CATALOGUE=https://u:" + plain + "@127.0.0.1:9/x"},
		"an origin that is a secret":    {"CORS_ORIGINS=https://u:" + plain + "@host"},
		"a proxy that is a secret":      {"TRUSTED_PROXIES=" + plain},
		"secrets that are all in order": {"API_TOKEN=" + plain, "API_SECRET=" + long, "ADMIN_PASSWORD=" + plain, "DATABASE_URL=sqlite:/none/of/this"},
	} {
		for _, command := range [][]string{{"serve"}, {"doctor"}, {"doctor", "--json"}} {
			t.Run(name+", "+strings.Join(command, " "), func(t *testing.T) {
				dir := t.TempDir()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, filepath.Join(binaries, "api"), command...) //nolint:gosec // our own
				cmd.Env = append([]string{
					"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "DATA_DIR=" + dir, "API_ADDR=127.0.0.1:0", "LOG_LEVEL=debug", "LOG_FORMAT=json", "GATEWAY_URL=http://127.0.0.1:9", "GATEWAY_TOKEN=" + long,
				}, env...)
				out, err := cmd.CombinedOutput()
				if err == nil || len(out) == 0 {
					t.Errorf("it ended well: %s", out)
				}
				cage.Absent(t, "the output", out)
				cage.AbsentBelow(t, dir, "api.secret", "encryption.key", "admin.password")
			})
		}
	}
}
