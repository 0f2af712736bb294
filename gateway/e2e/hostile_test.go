package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHostileCallersGetAClearRefusal(t *testing.T) {
	g := shared(t)
	g.create(t, "target", nil)
	defer g.delete(t, "target")
	post := func(body any) func(t *testing.T) (int, []byte) {
		return func(t *testing.T) (int, []byte) {
			t.Helper()
			status, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox", body)
			if err != nil {
				t.Fatal(err)
			}
			return status, raw
		}
	}
	file := func(name string) object {
		return object{"id": "h", "userId": "u", "config": object{"files": []object{{"type": "agent", "name": name, "extension": "md", "content": "x"}}}}
	}
	for name, c := range map[string]struct {
		send func(t *testing.T) (int, []byte)
		want int
		code string
	}{
		"an empty id":                  {post(object{"userId": "u"}), 400, "invalid_id"},
		"an id with a slash":           {post(object{"id": "../x", "userId": "u"}), 400, "invalid_id"},
		"an id with a dot":             {post(object{"id": "a.b", "userId": "u"}), 400, "invalid_id"},
		"an id that is too long":       {post(object{"id": strings.Repeat("a", 64), "userId": "u"}), 400, "invalid_id"},
		"an id with a line feed":       {post(object{"id": "a\nb", "userId": "u"}), 400, "invalid_id"},
		"a reserved id":                {post(object{"id": "admin", "userId": "u"}), 400, "invalid_id"},
		"an id that is a number":       {post(object{"id": 7, "userId": "u"}), 400, "invalid_request"},
		"no owner":                     {post(object{"id": "h"}), 400, "invalid_request"},
		"bad JSON":                     {post([]byte(`{bad`)), 400, "invalid_request"},
		"a list":                       {post([]byte(`[]`)), 400, "invalid_request"},
		"nothing":                      {post([]byte{}), 400, "invalid_request"},
		"an oversize body":             {post(bytes.Repeat([]byte(" "), 17<<20)), 413, "payload_too_large"},
		"a directory outside":          {post(object{"id": "h", "userId": "u", "directory": "/etc"}), 400, "invalid_request"},
		"a config name that climbs":    {post(file("../../../.bashrc")), 400, "invalid_request"},
		"a config name with a slash":   {post(file("a/b")), 400, "invalid_request"},
		"a config name that is hidden": {post(file(".x")), 400, "invalid_request"},
		"a file as git URL":            {post(object{"id": "h", "userId": "u", "gitUrl": "file:///etc"}), 400, "invalid_git_url"},
		"a transport helper":           {post(object{"id": "h", "userId": "u", "gitUrl": "ext::sh -c id"}), 400, "invalid_git_url"},
		"an option as git URL":         {post(object{"id": "h", "userId": "u", "gitUrl": "--upload-pack=touch /tmp/x"}), 400, "invalid_git_url"},
		"an option as branch":          {post(object{"id": "h", "userId": "u", "gitUrl": "https://example.test/a", "gitBranch": "--x"}), 400, "invalid_git_url"},
	} {
		t.Run(name, func(t *testing.T) {
			status, raw := c.send(t)
			var e struct{ Error, Code string }
			if err := json.Unmarshal(raw, &e); err != nil || status != c.want || e.Code != c.code || e.Error == "" {
				t.Errorf("%d %s, want %d %s", status, raw, c.want, c.code)
			}
		})
	}
	for _, path := range []string{
		"/sandbox/target/opencode/../../x", "/sandbox/target/opencode/%2e%2e/x", "/sandbox/target/opencode/%2E%2e%2fx",
		"/sandbox/target/opencode/%252e%252e/x", "/sandbox/target/opencode/%25252e%25252e%25252fx", "/sandbox/target/opencode/..%5cx", `/sandbox/target/opencode/..\x`,
		"/sandbox/target/opencode/.%2e/x", "/sandbox/target/opencode/a%00b", "/sandbox/target/opencode/a%0d%0ab", "/sandbox/target/opencode/..;/x",
		"/sandbox/target/files/../../etc/passwd", "/sandbox/target/files/%2e%2e/%2e%2e/etc/passwd", "/sandbox/%2e%2e/sandboxes", "/sandbox/t%61rget/opencode/session",
	} {
		t.Run(path, func(t *testing.T) {
			if status := rawGet(t, g, path); status != http.StatusBadRequest {
				t.Errorf("status %d", status)
			}
		})
	}
	t.Run("a foreign Host", func(t *testing.T) {
		for _, host := range []string{"evil.test", "evil.test:80", "localhost.evil.test", "127.0.0.1.nip.test", ""} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/sandboxes", nil)
			req.Host = host
			if host == "" {
				req.Host = "[::2]"
			}
			req.Header.Set("Authorization", "Bearer "+g.token)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %d", req.Host, resp.StatusCode)
			}
		}
	})
	t.Run("who has no token cannot hold a connection", func(t *testing.T) {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = fmt.Fprintf(conn, "POST /sandbox HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("it was still open after 20 s: %v", err)
		}
	})
	t.Run("no token and wrong tokens", func(t *testing.T) {
		for _, header := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "Basic " + g.token, g.token, "Bearer " + g.token + "x"} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/sandboxes", nil)
			if header != "" {
				req.Header.Set("Authorization", header)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized || strings.Contains(string(raw), g.token) {
				t.Errorf("%q: %d %s", header, resp.StatusCode, raw)
			}
		}
	})
}

// rawGet sends a path that net/http would not send as it is.
func rawGet(t *testing.T, g *gateway, path string) int {
	t.Helper()
	addr := strings.TrimPrefix(g.url, "http://")
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", path, addr, g.token)
	var status int
	if _, err := fmt.Fscanf(conn, "HTTP/1.1 %d", &status); err != nil {
		t.Fatal(err)
	}
	return status
}

// script runs a shell script in a sandbox and returns what it printed.
func (g *gateway) script(t *testing.T, id, script string) string {
	t.Helper()
	out := g.call(t, http.MethodPost, "/sandbox/"+id+"/exec", object{"command": []string{"bash", "-c", script}, "timeoutMs": 60000}, http.StatusOK)
	return fmt.Sprint(out["stdout"], out["stderr"])
}

func TestExecAndFilesGoRoundAndStayInside(t *testing.T) {
	g := shared(t)
	g.create(t, "files", nil)
	defer g.delete(t, "files")
	ctx := t.Context()
	t.Run("a file of every byte comes back as it was", func(t *testing.T) {
		content := make([]byte, 3<<20)
		for i := range content {
			content[i] = byte(i * 7)
		}
		path := "/sandbox/files/files/workspace/dir%20with%20space/%C3%BC%25.bin"
		g.call(t, http.MethodPut, path+"?mode=0600", content, http.StatusOK)
		status, got, err := g.do(ctx, http.MethodGet, path, nil)
		if err != nil || status != http.StatusOK || !bytes.Equal(got, content) {
			t.Errorf("%d, %d bytes, %v", status, len(got), err)
		}
		list := g.call(t, http.MethodGet, "/sandbox/files/files/workspace/dir%20with%20space", nil, http.StatusOK)
		raw, _ := json.Marshal(list)
		if !strings.Contains(string(raw), `"mode":"0600"`) || !strings.Contains(string(raw), `ü%.bin`) {
			t.Errorf("listing %s", raw)
		}
		g.call(t, http.MethodDelete, path, nil, http.StatusOK)
		g.call(t, http.MethodGet, path, nil, http.StatusNotFound)
	})
	t.Run("links that lead out are not followed", func(t *testing.T) {
		g.script(t, "files", `cd ~/workspace; ln -s /etc/passwd abs; ln -s ../../../etc/passwd rel; ln -s /etc dir; ln -s /proc/self/environ env; mkfifo fifo`)
		for _, name := range []string{"abs", "rel", "dir/passwd", "env", "fifo"} {
			status, raw, err := g.do(ctx, http.MethodGet, "/sandbox/files/files/workspace/"+name, nil)
			if err != nil || status < 400 || status >= 500 || strings.Contains(string(raw), "root:") {
				t.Errorf("read %s: %d %.80s %v", name, status, raw, err)
			}
			if status, raw, err = g.do(ctx, http.MethodPut, "/sandbox/files/files/workspace/dir/x", []byte("x")); err != nil || status < 400 {
				t.Errorf("write through %s: %d %s %v", name, status, raw, err)
			}
		}
	})
	t.Run("output is streamed, capped, and its exit code kept", func(t *testing.T) {
		resp, err := g.open(ctx, http.MethodPost, "/sandbox/files/exec",
			object{"command": []string{"bash", "-c", "echo out; echo err >&2; sleep 1; echo late; exit 3"}}, http.Header{"Accept": {"text/event-stream"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		began, buf := time.Now(), make([]byte, 4096)
		n, _ := resp.Body.Read(buf)
		if time.Since(began) > 900*time.Millisecond || !strings.Contains(string(buf[:n]), "event: std") {
			t.Errorf("the first output came after %s: %s", time.Since(began), buf[:n])
		}
		rest, _ := io.ReadAll(resp.Body)
		if !strings.Contains(string(rest), "event: exit\ndata: {\"error\":\"\",\"exitCode\":3") {
			t.Errorf("stream %s", rest)
		}
		flood := g.call(t, http.MethodPost, "/sandbox/files/exec", object{"command": []string{"bash", "-c", "head -c 20000000 /dev/zero | tr '\\0' x"}}, http.StatusOK)
		if out, _ := flood["stdout"].(string); len(out) > 1<<20 || flood["truncated"] != true || flood["exitCode"] != 0.0 {
			t.Errorf("%d bytes, truncated %v, exit %v", len(out), flood["truncated"], flood["exitCode"])
		}
		slow := g.call(t, http.MethodPost, "/sandbox/files/exec", object{"command": []string{"sleep", "60"}, "timeoutMs": 500}, http.StatusOK)
		if slow["timedOut"] != true {
			t.Errorf("slow: %v", slow)
		}
		absent := g.call(t, http.MethodPost, "/sandbox/files/exec", object{"command": []string{"no-such-program"}}, http.StatusOK)
		if absent["exitCode"] != 127.0 {
			t.Errorf("absent: %v", absent)
		}
	})
}

func TestASandboxCannotHarmItsSandboxdItsNeighbourOrItsHost(t *testing.T) {
	g := shared(t)
	g.create(t, "attacker", nil)
	defer g.delete(t, "attacker")
	g.create(t, "neighbour", nil)
	defer g.delete(t, "neighbour")

	t.Run("sandboxd cannot be read, traced, signalled or replaced", func(t *testing.T) {
		out := g.script(t, "attacker", `
id -u
for f in environ mem maps fd/0 root cwd exe; do cat /proc/1/$f >/dev/null 2>&1 && echo "READ $f"; done
(exec 3<>/proc/1/mem) 2>/dev/null && echo OPENED
python3 - <<'P'
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, 1, 0, 0) == 0: print("TRACED")
for n in range(1, 65):
    try: os.kill(1, n)
    except OSError: pass
for port in (4095,):
    for host in ("0.0.0.0", "127.0.0.1"):
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try: s.bind((host, port)); s.listen(); print("BOUND", host)
        except OSError: pass
P
touch /usr/x /etc/x / 2>/dev/null && echo WROTE
grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
tr '\0' '\n' </proc/self/environ | grep -i -E 'token|sandboxd' && echo ENV
exit 0`)
		for _, bad := range []string{"READ", "OPENED", "TRACED", "BOUND", "WROTE", "ENV"} {
			if strings.Contains(out, bad) {
				t.Errorf("%s:\n%s", bad, out)
			}
		}
		if !strings.Contains(out, "1000\n") || !strings.Contains(out, "CapEff:\t0000000000000000") || !strings.Contains(out, "NoNewPrivs:\t1") {
			t.Errorf("privileges:\n%s", out)
		}
		if got := g.message(t, "attacker", "still here", http.StatusOK); got["response"] != "echo: still here" {
			t.Errorf("after the attack: %v", got)
		}
	})
	t.Run("nothing of ours but the model is reachable from inside", func(t *testing.T) {
		ip, err := docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}", g.container("neighbour"))
		if err != nil {
			t.Fatal(ip)
		}
		neighbour, host, _ := strings.Cut(ip, " ")
		port := g.url[strings.LastIndex(g.url, ":")+1:]
		out := g.script(t, "attacker", `
reach() { timeout 3 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null && echo "REACHED $1:$2"; }
reach `+neighbour+` 4095; reach `+neighbour+` 4096; reach `+host+` `+port+`; reach 127.0.0.1 `+port+`
curl -s -m 5 -o /dev/null -w 'model %{http_code}\n' `+g.model.URL()+`/models`)
		if strings.Contains(out, "REACHED") || !strings.Contains(out, "model 200") {
			t.Errorf("it prints:\n%s", out)
		}
	})
	t.Run("a flood of logs stays capped and cannot drive a terminal", func(t *testing.T) {
		g.script(t, "attacker", `
printf 'evil\x1b]0;title\x07\x1b[2Jline\n' >/proc/$(pgrep -x -o opencode)/fd/1
yes "a line of log that comes again and again and again and again" | head -c 60000000 >/proc/$(pgrep -x -o opencode)/fd/1`)
		path, err := docker("inspect", "-f", "{{.LogPath}}", g.container("attacker"))
		if err != nil {
			t.Fatal(path)
		}
		var size int64
		logs, _ := filepath.Glob(path + "*")
		for _, log := range logs {
			if st, err := os.Stat(log); err == nil {
				size += st.Size()
			}
		}
		if size == 0 || size > 25<<20 {
			t.Errorf("%d bytes of logs in %v", size, logs)
		}
		g.script(t, "attacker", `printf 'evil\x1b]0;title\x07\x1b[2Jline\n' >/proc/$(pgrep -x -o opencode)/fd/1`)
		eventually(t, "the line is in the logs", 10*time.Second, func() bool {
			got := g.call(t, http.MethodGet, "/sandbox/attacker/logs?tail=20", nil, http.StatusOK)
			text, _ := got["logs"].(string)
			if strings.ContainsAny(text, "\x1b\x07") {
				t.Fatalf("logs have control characters: %q", text)
			}
			return strings.Contains(text, "evil")
		})
	})
	t.Run("inspect shows the limits and no secret", func(t *testing.T) {
		g.call(t, http.MethodPost, "/sandbox/attacker/wake", object{"config": object{"auth": object{"openai": object{"type": "api", "key": "sk-canary-in-auth"}}}}, http.StatusOK)
		out, err := docker("inspect", g.container("attacker"))
		if err != nil {
			t.Fatal(out)
		}
		for _, want := range []string{`"Memory": 2147483648`, `"MemorySwap": 2147483648`, `"PidsLimit": 1024`, `"NanoCpus": 2000000000`, `"ReadonlyRootfs": true`, `no-new-privileges`, `"max-size": "10`} {
			if !strings.Contains(out, want) {
				t.Errorf("inspect has no %s", want)
			}
		}
		auth := g.script(t, "attacker", `cat ~/.local/share/opencode/auth.json; tr '\0' '\n' </proc/$(pgrep -x -o opencode)/environ | grep OPENCODE_SERVER_PASSWORD`)
		if !strings.Contains(auth, "sk-canary-in-auth") {
			t.Errorf("OpenCode did not get the credential: %s", auth)
		}
		_, password, _ := strings.Cut(strings.TrimSpace(auth), "OPENCODE_SERVER_PASSWORD=")
		if len(password) < 20 {
			t.Fatalf("no password in %q", auth)
		}
		for name, secret := range map[string]string{"a credential": "sk-canary-in-auth", "OpenCode's password": password, "the gateway's token": g.token, "the model's key": `"apiKey"`} {
			if strings.Contains(out, secret) {
				t.Errorf("inspect shows %s", name)
			}
			if strings.Contains(g.log(), secret) {
				t.Errorf("the log shows %s", name)
			}
		}
	})
}

func TestCloneCredentialsStayOutOfEverythingThatIsKept(t *testing.T) {
	g := shared(t)
	url := strings.Replace(g.git.URL(), "git://", "git://user:hunter2canary@", 1)
	g.create(t, "creds", object{"gitUrl": url})
	defer g.delete(t, "creds")
	got := g.call(t, http.MethodGet, "/sandbox/creds", nil, http.StatusOK)
	record, err := os.ReadFile(filepath.Join(g.dir, "store", "sandboxes", "creds", "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	inspect, _ := docker("inspect", g.container("creds"))
	config := g.script(t, "creds", `cat ~/workspace/.git/config; grep -rl hunter2canary ~ 2>/dev/null`)
	if !strings.Contains(config, "[remote") {
		t.Errorf("there is no clone: %s", config)
	}
	for name, text := range map[string]string{
		"the answer": fmt.Sprint(got), "the record": string(record), "inspect": inspect, ".git/config": config, "the log": g.log(),
	} {
		if strings.Contains(text, "hunter2canary") {
			t.Errorf("%s has the password", name)
		}
	}
}

// hostileImage builds an image whose sandboxd and OpenCode attack.
func hostileImage(t *testing.T, mode string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "hostile"), "./testdata/hostile") //nolint:gosec // our own
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dockerfile := "FROM scratch\nCOPY hostile /hostile\nENV HOSTILE=" + mode + "\nUSER 1000\nENTRYPOINT [\"/hostile\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	tag := "agentpod-hostile:" + mode
	cmd := exec.CommandContext(ctx, "docker", "build", "-q", "-t", tag, dir) //nolint:gosec // our own
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { _, _ = docker("rmi", "-f", tag) })
	return tag
}

// memory is the resident memory of the gateway process, in bytes.
func (g *gateway) memory(t *testing.T) int64 {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(g.PID()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), "VmRSS:")
	n, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

func TestAFakeSandboxdIsRefusedOrBounded(t *testing.T) {
	for _, mode := range []string{"redirect", "endless", "drip", "headers", "silent"} {
		t.Run(mode, func(t *testing.T) {
			g := start(t, "SANDBOX_IMAGE="+hostileImage(t, "guest-"+mode), "GUEST_TIMEOUT=4s", "BOOT_TIMEOUT=4s")
			before := g.memory(t)
			began := time.Now()
			status, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox", object{"id": "h", "userId": "u"})
			if err != nil || status < 500 {
				t.Errorf("create: %d %s %v", status, raw, err)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("it took %s", took)
			}
			if grown := g.memory(t) - before; grown > 64<<20 {
				t.Errorf("memory grew by %d MB", grown>>20)
			}
			if left := g.engine("container") + g.engine("volume"); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

func TestAFakeOpenCodeIsRefusedOrBounded(t *testing.T) {
	for _, mode := range []string{"redirect", "endless", "drip", "headers", "silent", "cookies"} {
		t.Run(mode, func(t *testing.T) {
			g := start(t, "SANDBOX_IMAGE="+hostileImage(t, mode), "MESSAGE_TIMEOUT=4s")
			g.create(t, "h", nil)
			before := g.memory(t)
			began := time.Now()
			status, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox/h/message", object{"message": "x"})
			if err != nil || status < 500 {
				t.Errorf("message: %d %.200s %v", status, raw, err)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("it took %s", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			resp, err := g.open(ctx, http.MethodGet, "/sandbox/h/opencode/page?token=hidden&x=1", nil, http.Header{"Cookie": {"__Host-agentpod=mine"}})
			if err == nil {
				body, _ := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
				_ = resp.Body.Close()
				checkBorder(t, mode, resp, string(body), g.token)
			}
			if grown := g.memory(t) - before; grown > 96<<20 {
				t.Errorf("memory grew by %d MB", grown>>20)
			}
		})
	}
}

func checkBorder(t *testing.T, mode string, resp *http.Response, body, token string) {
	t.Helper()
	for _, name := range []string{
		"Set-Cookie", "Clear-Site-Data", "Access-Control-Allow-Origin", "Service-Worker-Allowed", "Refresh", "Strict-Transport-Security", "Alt-Svc",
	} {
		if v := resp.Header.Get(name); v != "" {
			t.Errorf("%s: %s came through", name, v)
		}
	}
	if mode == "headers" && resp.StatusCode != http.StatusBadGateway {
		t.Errorf("endless headers: %d", resp.StatusCode)
	}
	if mode != "cookies" {
		return
	}
	if resp.Header.Get("Content-Security-Policy") != "sandbox" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", resp.Header)
	}
	for _, secret := range []string{token, "__Host-agentpod=mine", "token=hidden"} {
		if strings.Contains(body, secret) {
			t.Errorf("the sandbox saw %s", secret)
		}
	}
	if !strings.Contains(body, "x=1") {
		t.Errorf("the query did not arrive: %s", body)
	}
}

func TestAnAddressThatIsTakenByAnotherContainerGetsNothingMeantForTheFirst(t *testing.T) {
	g := start(t)
	g.create(t, "first", nil)
	name := "agentpod-" + g.installation() + "-thief"
	// The thief listens on both ports, and prints whatever reaches it.
	const listen = `import socket, threading
def serve(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("0.0.0.0", port)); s.listen(64)
    while True:
        c, _ = s.accept()
        def read(c=c):
            d = c.recv(4096)
            print("BYTES" if d else "CLOSED", flush=True)
        threading.Thread(target=read).start()
for p in (4095, 4096): threading.Thread(target=serve, args=(p,)).start()`
	if out, err := docker("create", "--name", name, "--label", "agentpod.installation="+g.installation(), "--network", "agentpod-"+g.installation(),
		"--entrypoint", "python3", os.Getenv(imageEnv), "-c", listen); err != nil {
		t.Fatal(out)
	}
	defer func() { _, _ = docker("rm", "-f", name) }()
	address := func(container string) string {
		out, _ := docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
		return out
	}
	firsts := address(g.container("first"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 4 {
		go func() {
			for ctx.Err() == nil {
				// Passive requests on fresh and on pooled connections alike.
				_, _, _ = g.do(ctx, http.MethodGet, "/sandbox/first/opencode/global/health", nil)
				_, _, _ = g.do(ctx, http.MethodGet, "/sandbox/first", nil)
			}
		}()
	}
	// The gateway stands still while the thief takes the address, so that it goes
	// on with requests under way and an address that is no longer the first's.
	if err := g.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	out, err := docker("kill", g.container("first"))
	if err == nil {
		out, err = docker("start", name)
	}
	taken := address(name)
	if err := g.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err != nil || taken != firsts {
		t.Fatalf("the thief has %s and the first had %s: the test shows nothing (%s)", taken, firsts, out)
	}
	eventually(t, "the first is served again, elsewhere", time.Minute, func() bool {
		status, _, err := g.do(t.Context(), http.MethodGet, "/sandbox/first/opencode/global/health", nil)
		return err == nil && status == http.StatusOK && address(g.container("first")) != firsts
	})
	stop()
	logs, _ := docker("logs", name)
	if strings.Contains(logs, "BYTES") {
		t.Errorf("the thief received bytes:\n%s", logs)
	}
	_, _ = docker("rm", "-f", name)
}
