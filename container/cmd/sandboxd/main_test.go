package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const partEnv = "TEST_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(partEnv) {
	case "sandboxd":
		// Its children are the fake.
		_ = os.Setenv(partEnv, "opencode")
		main()
	case "opencode":
		fakeOpenCode()
	default:
		goleak.VerifyTestMain(m)
	}
}

// box is a sandboxd of its own with a fake OpenCode.
type box struct {
	*guest.Client
	t                 *testing.T
	cmd               *exec.Cmd
	addr              string
	home, conf, fake  string
	opencode, plugins string
}

const token = "the token of a test"

func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newBox(t *testing.T, extra ...string) *box {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	b := &box{
		t: t, home: filepath.Join(base, "home"), conf: filepath.Join(base, "run", "opencode"), fake: filepath.Join(base, "fake"),
		plugins: filepath.Join(base, "plugin"),
		addr:    "127.0.0.1:" + strconv.Itoa(freePort(t)), opencode: strconv.Itoa(freePort(t)),
	}
	for _, dir := range []string{b.home, b.fake, filepath.Join(b.plugins, "node_modules")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		if err := os.WriteFile(filepath.Join(b.plugins, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hash := sha256.Sum256([]byte(token))
	b.cmd = exec.Command(self) //nolint:gosec,noctx // this test itself, ended below in an orderly way
	b.cmd.Env = append(append(os.Environ(),
		partEnv+"=sandboxd", "FAKE_DIR="+b.fake, "HOME="+b.home,
		guest.TokenHashEnv+"="+hex.EncodeToString(hash[:]),
		"SANDBOXD_ADDR="+b.addr, "SANDBOXD_OPENCODE="+self, "SANDBOXD_OPENCODE_HOST=127.0.0.1", "SANDBOXD_OPENCODE_PORT="+b.opencode,
		"SANDBOXD_CONFIG_DIR="+b.conf, "SANDBOXD_HOME="+b.home, "SANDBOXD_WORKSPACE="+filepath.Join(b.home, "workspace"),
		"SANDBOXD_PLUGIN_DIR="+b.plugins), extra...)
	b.cmd.Stdout, b.cmd.Stderr = t.Output(), t.Output()
	b.cmd.WaitDelay = 5 * time.Second
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	b.Client = guest.NewClient(transport, "http://"+b.addr, token)
	t.Cleanup(func() {
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		if err := b.cmd.Wait(); err != nil {
			t.Errorf("sandboxd ended with %v", err)
		}
		transport.CloseIdleConnections()
	})
	b.eventually("sandboxd serves", func() bool {
		_, err := b.Status(t.Context())
		return err == nil
	})
	return b
}

func TestCallsThatDoNotServe(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args, env []string
		code      int
		says      string
	}{
		"help":                 {[]string{"--help"}, nil, 0, "SANDBOXD_TOKEN_SHA256"},
		"the version":          {[]string{"--version"}, nil, 0, "sandboxd "},
		"an unknown command":   {[]string{"dance"}, nil, exitUsage, "sandboxd: dance"},
		"no token":             {nil, nil, exitUsage, "SANDBOXD_TOKEN_SHA256 must be the SHA-256 of the token, 64 hex digits, such as"},
		"a port that is none":  {nil, []string{guest.TokenHashEnv + "=" + strings.Repeat("ab", 32), "SANDBOXD_OPENCODE_PORT=x"}, exitUsage, "SANDBOXD_OPENCODE_PORT must be a port number, such as"},
		"an address elsewhere": {nil, []string{guest.TokenHashEnv + "=" + strings.Repeat("ab", 32), "SANDBOXD_ADDR=192.0.2.1:1"}, exitFailed, "192.0.2.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), self, c.args...) //nolint:gosec // this test itself
			cmd.Env = append(append(os.Environ(), partEnv+"=sandboxd"), c.env...)
			out, _ := cmd.CombinedOutput() // how it ended is looked at below
			if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.says) {
				t.Errorf("exit %d, it says %s", code, out)
			}
		})
	}
}

func (b *box) eventually(what string, ok func() bool) {
	b.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			b.t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// asked counts the lines of the fake's log that are exactly line.
func (b *box) asked(line string) int {
	raw, _ := os.ReadFile(filepath.Join(b.fake, fakeLog))
	n := 0
	for l := range strings.SplitSeq(string(raw), "\n") {
		if l == line {
			n++
		}
	}
	return n
}

func (b *box) tell(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.fake, name), []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) rendered(key string) string {
	raw, err := os.ReadFile(filepath.Join(b.conf, key))
	if err != nil {
		return "absent"
	}
	return string(raw)
}

func (b *box) mustStart(cfg guest.Config) guest.Applied {
	b.t.Helper()
	applied, err := b.Start(b.t.Context(), guest.StartRequest{Password: "pw", Config: cfg})
	if err != nil {
		b.t.Fatal(err)
	}
	return applied
}

func (b *box) mustPut(cfg guest.Config) guest.Applied {
	b.t.Helper()
	applied, err := b.PutConfig(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	return applied
}

func (b *box) auth() string {
	raw, _ := os.ReadFile(filepath.Join(b.home, ".local", "share", "opencode", "auth.json"))
	return string(raw)
}

func config(model string) guest.Config {
	rules := "be kind"
	return guest.Config{
		OpenCode: json.RawMessage(`{"model":"` + model + `"}`),
		AgentsMD: &rules,
		Files:    []guest.File{{Type: "agent", Name: "helper", Extension: "md", Content: "help"}},
		Auth:     map[string]json.RawMessage{"p": json.RawMessage(`{"type":"api","key":"k"}`)},
	}
}

func wantWritten(t *testing.T, got guest.Applied, want ...string) {
	t.Helper()
	if got.Pending || !slices.Equal(got.Written, want) {
		t.Errorf("written %q, pending %v; want %q", got.Written, got.Pending, want)
	}
}

func TestAStartWaitsForRoutesAndIsIdempotent(t *testing.T) {
	b := newBox(t)
	applied := b.mustStart(config("m"))
	wantWritten(t, applied, "AGENTS.md", "agent/helper.md", "opencode.json", "auth")
	if applied.Version != "fake" || b.asked("EARLY") == 0 {
		t.Errorf("version %q, %d early probes", applied.Version, b.asked("EARLY"))
	}
	wantWritten(t, b.mustStart(config("m")))
	if b.asked("START") != 1 || b.asked("POST /global/dispose") != 1 {
		t.Errorf("%d starts, %d disposes; want 1 and 1, for the credential", b.asked("START"), b.asked("POST /global/dispose"))
	}
	raw, _ := os.ReadFile(filepath.Join(b.fake, fakeLog))
	if strings.Contains(string(raw), "LEAK") {
		t.Error("OpenCode sees sandboxd's settings")
	}
	if got := b.auth(); got != `{"p":{"type":"api","key":"k"}}` {
		t.Errorf("auth.json is %s", got)
	}
	for _, dir := range []string{b.conf, filepath.Join(b.home, ".config", "opencode")} {
		if target, err := os.Readlink(filepath.Join(dir, "node_modules")); err != nil || target != filepath.Join(b.plugins, "node_modules") {
			t.Errorf("node_modules of %s: %q, %v", dir, target, err)
		}
	}
	info, err := os.Stat(filepath.Join(b.conf, "opencode.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("opencode.json: %v, %v", info, err)
	}
}

// rendering is opencode.json as OpenCode leaves it alone.
func rendering(model string) string {
	return `{"$schema":"https://opencode.ai/config.json","model":"` + model + `"}`
}

func TestTwoStartsAtOnceAreOne(t *testing.T) {
	b := newBox(t)
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", Config: config("m")})
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if b.asked("START") != 1 {
		t.Errorf("%d starts", b.asked("START"))
	}
}

func TestOneDisposeAfterAChangeAndNoneWithout(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	disposes := b.asked("POST /global/dispose")
	step := func(cfg guest.Config, more int, want ...string) {
		t.Helper()
		wantWritten(t, b.mustPut(cfg), want...)
		disposes += more
		if got := b.asked("POST /global/dispose"); got != disposes {
			t.Errorf("%d disposes, want %d", got, disposes)
		}
	}
	step(config("m"), 0)
	step(config("n"), 1, "opencode.json")
	changed := config("n")
	changed.Auth["p"] = json.RawMessage(`{"type":"api","key":"new"}`)
	changed.Files = nil
	step(changed, 1, "agent/helper.md", "auth")
	if got := b.rendered("agent/helper.md"); got != "absent" {
		t.Errorf("a file no longer named is %s", got)
	}
	step(guest.Config{}, 1, "AGENTS.md", "opencode.json", "auth")
	if got := b.auth(); got != `{}` {
		t.Errorf("auth.json is %s", got)
	}
}

func TestACredentialOfTheUsersOwnStays(t *testing.T) {
	b := newBox(t)
	own := filepath.Join(b.home, ".local", "share", "opencode", "auth.json")
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte(`{"own":{"type":"api","key":"mine"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.mustStart(config("m"))
	b.mustPut(guest.Config{})
	if got := b.auth(); got != `{"own":{"type":"api","key":"mine"}}` {
		t.Errorf("auth.json is %s", got)
	}
}

func TestARenewedOAuthCredentialIsNotSetBack(t *testing.T) {
	b := newBox(t)
	cfg := guest.Config{Auth: map[string]json.RawMessage{"p": json.RawMessage(`{"type":"oauth","refresh":"old","access":"a","expires":1}`)}}
	b.mustStart(cfg)
	renewed := `{"p":{"type":"oauth","refresh":"new","access":"b","expires":2}}`
	if err := os.WriteFile(filepath.Join(b.home, ".local", "share", "opencode", "auth.json"), []byte(renewed), 0o600); err != nil {
		t.Fatal(err)
	}
	wantWritten(t, b.mustPut(cfg))
	if b.auth() != renewed {
		t.Errorf("auth.json is %s", b.auth())
	}
}

func TestARejectedConfigChangesNothing(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	bad := config("x")
	bad.OpenCode = json.RawMessage(`{"model":5}`)
	_, err := b.PutConfig(t.Context(), bad)
	if !sandbox.HasCode(err, sandbox.CodeConfigRejected) || !strings.Contains(err.Error(), "model: Expected string;") {
		t.Errorf("got %v", err)
	}
	if got := b.rendered("opencode.json"); got != rendering("m") {
		t.Errorf("after a config that was rejected: %s", got)
	}
	refused := config("n")
	refused.Auth = map[string]json.RawMessage{
		"a": json.RawMessage(`{"type":"api","key":"good"}`),
		"q": json.RawMessage(`{"type":"api","key":"refuse-me"}`),
	}
	_, err = b.PutConfig(t.Context(), refused)
	if !sandbox.HasCode(err, sandbox.CodeConfigRejected) || strings.Contains(err.Error(), "refuse-me") {
		t.Errorf("got %v", err)
	}
	if b.rendered("opencode.json") != rendering("m") || b.auth() != `{"p":{"type":"api","key":"k"}}` {
		t.Errorf("left: %s, %s", b.rendered("opencode.json"), b.auth())
	}
	wantWritten(t, b.mustPut(config("m")))
	wantWritten(t, b.mustPut(config("n")), "opencode.json")
}

func TestAStartWithARejectedConfigLeavesNothingRunning(t *testing.T) {
	b := newBox(t)
	bad := config("x")
	bad.OpenCode = json.RawMessage(`{"model":5}`)
	_, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", Config: bad})
	if !sandbox.HasCode(err, sandbox.CodeConfigRejected) {
		t.Errorf("got %v", err)
	}
	status, err := b.Status(t.Context())
	if err != nil || status.OpenCode.State != guest.StateStopped || status.OpenCode.PID != 0 {
		t.Errorf("status %+v, %v", status.OpenCode, err)
	}
	b.mustStart(config("m"))
}

func TestABusySandboxTakesItsNewestConfigWhenIdle(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	disposes := b.asked("POST /global/dispose")
	b.tell(fakeSessions, `{"ses_1":{"type":"busy"},"ses_2":{"type":"idle"}}`)
	for _, model := range []string{"older", "newest"} {
		if applied := b.mustPut(config(model)); !applied.Pending {
			t.Errorf("applied %+v while busy", applied)
		}
	}
	status, err := b.Status(t.Context())
	if err != nil || !status.Busy || !status.PendingConfig || !slices.Equal(status.Reasons, []string{"turn: ses_1"}) {
		t.Errorf("status %+v, %v", status, err)
	}
	if b.rendered("opencode.json") != rendering("m") {
		t.Error("it was written during the turn")
	}
	bad := config("never")
	bad.OpenCode = json.RawMessage(`{"model":["a secret value"]}`)
	if _, err := b.PutConfig(t.Context(), bad); !sandbox.HasCode(err, sandbox.CodeConfigRejected) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a config that is not valid, while busy: %v", err)
	}
	if b.rendered("opencode.json") != rendering("m") || b.asked("POST /global/dispose") != disposes {
		t.Error("trying a config out changed what is in use")
	}
	b.tell(fakeSessions, `{}`)
	b.eventually("the newest config is applied", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && !s.PendingConfig && b.rendered("opencode.json") == rendering("newest")
	})
	b.eventually("one dispose", func() bool { return b.asked("POST /global/dispose") == disposes+1 })
}

func TestATerminalIsBusyWhileItsShellHasAChild(t *testing.T) {
	b := newBox(t)
	b.mustStart(guest.Config{})
	shell := exec.CommandContext(t.Context(), "sh", "-c", "read x; sleep 60 & wait")
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-shell.Process.Pid, syscall.SIGKILL)
		_ = shell.Wait()
	}()
	b.tell(fakePtys, `[{"id":"pty_1","status":"running","pid":`+strconv.Itoa(shell.Process.Pid)+`}]`)
	if s, err := b.Status(t.Context()); err != nil || s.Busy {
		t.Errorf("a shell at its prompt: %+v, %v", s, err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	b.eventually("the terminal is busy", func() bool {
		s, err := b.Status(t.Context())
		return err == nil && slices.Equal(s.Reasons, []string{"terminal: pty_1"})
	})
}
