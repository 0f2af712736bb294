package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

// onS3 is the environment of a gateway whose store is a bucket of a server of
// the test's own.
func onS3(t *testing.T) []string {
	t.Helper()
	return bucketOf(storetest.StartServer(t, storetest.ServerOptions{}))
}

// bucketOf is the environment of a gateway whose store is the bucket of a server.
func bucketOf(server *storetest.Server) []string {
	return []string{
		"S3_ENDPOINT=" + server.Endpoint, "S3_BUCKET=" + server.Bucket, "S3_REGION=us-east-1",
		"S3_ACCESS_KEY_ID=" + server.AccessKey, "S3_SECRET_ACCESS_KEY=" + server.SecretKey,
		"SEALING_KEY=" + strings.Repeat("5c", 32),
	}
}

// realSize makes a workspace as people have them: 20 000 files in a repository
// with history, node_modules, a virtual environment and binaries.
const realSize = `
import os, random, subprocess
rng = random.Random(7)
def put(path, size):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'wb') as f: f.write(rng.randbytes(size // 2).hex().encode()[:size])
def git(*args): subprocess.run(['git', '-c', 'user.name=n', '-c', 'user.email=a@b.c', *args], check=True, stdout=subprocess.DEVNULL)
git('init', '-q')
open('.gitignore', 'w').write('node_modules/\nvenv/\nbin/\n')
for i in range(3000): put(f'src/p{i % 60}/m{i}.py', 400 + i % 900)
git('add', '-A'); git('commit', '-qm', 'one')
for i in range(0, 3000, 3): put(f'src/p{i % 60}/m{i}.py', 500)
git('add', '-A'); git('commit', '-qm', 'two')
for i in range(15800): put(f'node_modules/d{i % 400}/lib/f{i}.js', 200 + i % 1500)
subprocess.run(['python3', '-m', 'venv', '--without-pip', 'venv'], check=True)
for i in range(200):
    with open(f'node_modules/d{i}/bin{i}.node', 'wb') as f: f.write(rng.randbytes(20000))
    os.chmod(f'node_modules/d{i}/bin{i}.node', 0o755)
os.makedirs('node_modules/.bin'); [os.symlink(f'../d{i}/bin{i}.node', f'node_modules/.bin/b{i}') for i in range(200)]
`

// digest is a fingerprint of a workspace that is too large to print.
func (g *gateway) digest(t *testing.T, id string) string {
	t.Helper()
	return g.exec(t, id, "sh", "-c", `
		find . -path ./.git -prune -o ! -type d -printf '%P %y %m %T@ %s %l\n' -o -printf '%P %y %m %T@\n' | sort | tee /tmp/listing | wc -l
		sha256sum < /tmp/listing
		find .git ! -type d -printf '%P %y %m %l\n' -o -printf '%P %y %m\n' | sort | sha256sum
		find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum`)
}

func TestAWholeWorkspaceMovesToAnotherHostThroughS3(t *testing.T) {
	env := onS3(t)
	g := start(t, env...)
	g.create(t, "whole", object{"config": object{"agents_md": "be brief"}})
	g.exec(t, "whole", "python3", "-c", realSize)
	session, _ := g.message(t, "whole", "run ls | wc -l", http.StatusOK)["sessionId"].(string)
	want := g.digest(t, "whole")
	began := time.Now()
	g.hibernate(t, "whole", "archived")
	t.Logf("archived after %s", time.Since(began).Round(time.Millisecond))
	if left := g.engine("container") + g.engine("volume"); left != "" {
		t.Fatalf("an archived sandbox has %q in the engine", left)
	}
	if err := g.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	other := start(t, env...) // with a data folder, and so an installation, of its own
	began = time.Now()
	got := other.call(t, http.MethodPost, "/sandbox/whole/message", object{"message": "say still here", "sessionId": session}, http.StatusOK)
	t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
	if got["response"] != "still here" {
		t.Errorf("got %v", got)
	}
	if log := other.history(t, "whole", session); !strings.Contains(log, "run ls | wc -l") {
		t.Errorf("the history is %s", log)
	}
	if out := other.exec(t, "whole", "git", "--no-optional-locks", "status", "--porcelain"); out != "" {
		t.Errorf("git status: %s", out)
	}
	if got := other.digest(t, "whole"); got != want {
		t.Errorf("the workspace is\n%s\nwant\n%s", got, want)
	}
	if agents := other.exec(t, "whole", "sh", "-c", "cat $OPENCODE_CONFIG_DIR/AGENTS.md 2>/dev/null || find / -name AGENTS.md -not -path '/proc/*' 2>/dev/null | head -1 | xargs cat"); !strings.Contains(agents, "be brief") {
		t.Errorf("the config was not written again: %q", agents)
	}
}

func TestTenCyclesLoseNothing(t *testing.T) {
	g := start(t)
	g.create(t, "cycles", nil)
	session := ""
	for cycle := range 10 {
		body := object{"message": fmt.Sprintf("run echo %d >> log.txt; mkdir -p d%d; echo x%d > d%d/f; rm -rf d%d", cycle, cycle, cycle, cycle, cycle-2)}
		if session != "" {
			body["sessionId"] = session
		}
		got := g.call(t, http.MethodPost, "/sandbox/cycles/message", body, http.StatusOK)
		session, _ = got["sessionId"].(string)
		want := g.fingerprint(t, "cycles")
		g.hibernate(t, "cycles", "archived")
		g.call(t, http.MethodPost, "/sandbox/cycles/wake", nil, http.StatusOK)
		if now := g.fingerprint(t, "cycles"); strings.Join(now, "\n") != strings.Join(want, "\n") {
			t.Fatalf("after cycle %d the workspace is\n%s\nwant\n%s", cycle, strings.Join(now, "\n"), strings.Join(want, "\n"))
		}
	}
	if out := g.exec(t, "cycles", "cat", "log.txt"); out != "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n" {
		t.Errorf("the log is %q", out)
	}
	if log := g.history(t, "cycles", session); strings.Count(log, "run echo ") < 10 {
		t.Errorf("the history lost messages: %s", log)
	}
}

// many puts sandboxes to sleep and wakes them, all at once, and checks what each
// has afterwards.
func many(t *testing.T, g *gateway, ids []string) {
	t.Helper()
	together := func(what string, work func(id string) error) {
		began := time.Now()
		var group sync.WaitGroup
		for _, id := range ids {
			group.Go(func() {
				if err := work(id); err != nil {
					t.Errorf("%s %s: %v", what, id, err)
				}
			})
		}
		group.Wait()
		t.Logf("%s %d at once: %s", what, len(ids), time.Since(began).Round(time.Millisecond))
		if t.Failed() {
			t.FailNow()
		}
	}
	post := func(path string, body any) error {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		status, raw, err := g.do(ctx, http.MethodPost, path, body)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, raw)
		}
		return err
	}
	put := func(id string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		status, raw, err := g.do(ctx, http.MethodPut, "/sandbox/"+id+"/files/workspace/own.txt", []byte("of "+id))
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, raw)
		}
		return err
	}
	together("creating", func(id string) error { return post("/sandbox", object{"id": id, "userId": "u"}) })
	together("writing to", put)
	together("archiving", func(id string) error { return post("/sandbox/"+id+"/hibernate", object{"tier": "archived"}) })
	if left := g.engine("container") + g.engine("volume"); left != "" {
		t.Fatalf("archived sandboxes have %q in the engine", left)
	}
	together("waking", func(id string) error { return post("/sandbox/"+id+"/wake", nil) })
	together("reading from", func(id string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, raw, err := g.do(ctx, http.MethodGet, "/sandbox/"+id+"/files/workspace/own.txt", nil)
		if err == nil && string(raw) != "of "+id {
			err = fmt.Errorf("it has %q", raw)
		}
		return err
	})
	together("deleting", func(id string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		status, raw, err := g.do(ctx, http.MethodDelete, "/sandbox/"+id, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, raw)
		}
		return err
	})
}

func names(n int, prefix string) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, i)
	}
	return ids
}

func TestTenSandboxesSleepAndWakeAtOnce(t *testing.T) {
	many(t, start(t), names(10, "ten"))
}

func TestFiftySandboxesWithAStubOpenCodeSleepAndWakeAtOnce(t *testing.T) {
	image := stubImage(t, "./testdata/stubopencode")
	many(t, start(t, "SANDBOX_IMAGE="+image, "MAX_RUNNING=60", "SANDBOX_MEMORY=256MiB", "HOLD_TIMEOUT=4m"), names(50, "stub"))
}

// stubImage is the sandbox image with a stub in OpenCode's place, which boots at
// once: what is tested is the gateway.
func stubImage(t testing.TB, program string) string {
	t.Helper()
	tag := buildStub(t, program)
	t.Cleanup(func() { _, _ = docker("rmi", "-f", tag) })
	return tag
}

// buildStub is stubImage for who removes the image.
func buildStub(t testing.TB, program string) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "opencode"), program) //nolint:gosec // our own
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := "FROM " + os.Getenv(imageEnv) + "\nCOPY opencode /usr/local/bin/opencode\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	tag := fmt.Sprintf("agentpod-stub:t%d", rand.Uint32())
	if out, err := docker("build", "-q", "-t", tag, dir); err != nil {
		t.Fatal(out)
	}
	return tag
}

func TestAnOpenTabDoesNotKeepASandboxAwakeAndSeesWhatWakesIt(t *testing.T) {
	g := start(t)
	g.create(t, "tab", object{"idle": object{"freezeAfterMs": 1500, "stopAfterMs": 0, "archiveAfterMs": 0}})
	g.create(t, "tab2", object{"idle": object{"freezeAfterMs": 0, "stopAfterMs": 0, "archiveAfterMs": 1500}})
	for id, tier := range map[string]string{"tab": "frozen", "tab2": "archived"} {
		t.Run(tier, func(t *testing.T) {
			session, _ := g.message(t, id, "say warm", http.StatusOK)["sessionId"].(string)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			stream, err := g.open(ctx, http.MethodGet, "/sandbox/"+id+"/opencode/global/event", nil, http.Header{"Accept": {"text/event-stream"}})
			if err != nil || stream.StatusCode != http.StatusOK {
				t.Fatalf("%v %v", stream, err)
			}
			defer func() { _ = stream.Body.Close() }()
			seen := follow(stream)
			eventually(t, "the sandbox is "+tier+" with the tab open", time.Minute, func() bool {
				health := g.call(t, http.MethodGet, "/sandbox/"+id+"/opencode/global/health", nil, http.StatusOK)
				return health["healthy"] == true && g.tier(t, id) == tier
			})
			beats := seen.count("server.heartbeat")
			eventually(t, "heartbeats go on", 30*time.Second, func() bool { return seen.count("server.heartbeat") > beats })
			if got := g.tier(t, id); got != tier {
				t.Fatalf("the stream woke it: %s", got)
			}
			g.call(t, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "say the words that woke it", "sessionId": session}, http.StatusOK)
			for _, event := range []string{"the words that woke it", "session.idle"} {
				eventually(t, "the stream carries "+event, 20*time.Second, func() bool { return seen.count(event) > 0 })
			}
		})
	}
}

// lines are what came of a stream.
type lines struct {
	mu  sync.Mutex
	all []string
}

func follow(resp *http.Response) *lines {
	l := &lines{}
	go func() {
		scan := bufio.NewScanner(resp.Body)
		scan.Buffer(nil, 8<<20)
		for scan.Scan() {
			l.mu.Lock()
			l.all = append(l.all, scan.Text())
			l.mu.Unlock()
		}
	}()
	return l
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.all {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (g *gateway) lastSnapshot(t *testing.T, id string) string {
	t.Helper()
	last, _ := g.call(t, http.MethodGet, "/sandbox/"+id, nil, http.StatusOK)["lastSnapshot"].(object)
	return fmt.Sprint(last["id"])
}

func TestADamagedSnapshotIsNamedAndTheOneBeforeIsOffered(t *testing.T) {
	g := start(t)
	g.create(t, "hurt", nil)
	g.exec(t, "hurt", "sh", "-c", "echo first > f.txt; head -c 300000 /dev/urandom > big")
	g.hibernate(t, "hurt", "archived")
	older := g.lastSnapshot(t, "hurt")
	g.exec(t, "hurt", "sh", "-c", "echo second > f.txt; head -c 300000 /dev/urandom > big2")
	g.hibernate(t, "hurt", "archived")
	newest := g.lastSnapshot(t, "hurt")
	packs, err := filepath.Glob(filepath.Join(g.dir, "store", "snapshots", "hurt", "packs", newest, "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs of %s: %v", newest, err)
	}
	raw, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(packs[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	got := g.call(t, http.MethodPost, "/sandbox/hurt/wake", nil, http.StatusConflict)
	text := fmt.Sprint(got["error"])
	if got["code"] != "snapshot_damaged" || !strings.Contains(text, "snapshots/hurt/packs/"+newest) || !strings.Contains(text, older) {
		t.Fatalf("got %v; the one before is %s", got, older)
	}
	if left := g.engine("container") + g.engine("volume"); left != "" {
		t.Errorf("the wake that failed left %q in the engine", left)
	}
	g.call(t, http.MethodPost, "/sandbox/hurt/wake", object{"snapshot": older}, http.StatusOK)
	if out := g.exec(t, "hurt", "cat", "f.txt"); out != "first\n" {
		t.Errorf("the snapshot before has %q", out)
	}
	g.hibernate(t, "hurt", "archived")
	g.call(t, http.MethodPost, "/sandbox/hurt/wake", nil, http.StatusOK)
	if out := g.exec(t, "hurt", "cat", "f.txt"); out != "first\n" {
		t.Errorf("after another cycle it has %q", out)
	}
}

func TestAWorkersMirrorBecomesASandboxAndTheOtherWayRound(t *testing.T) {
	g := start(t)
	folder := filepath.Join(g.dir, "store", "workspaces", "fromworker")
	want := map[string]string{}
	for i := range 1105 {
		content := make([]byte, 64)
		for j := range content {
			content[j] = byte(i + j*7) // not text
		}
		name := fmt.Sprintf("dir%d/file%d.bin", i%30, i)
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		want[name] = hex.EncodeToString(sum[:])
	}
	g.create(t, "fromworker", nil)
	check := func(out string) {
		t.Helper()
		got := 0
		for line := range strings.Lines(out) {
			sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
			if want[strings.TrimPrefix(name, "./")] != sum {
				t.Fatalf("%s is %s, want %s", name, sum, want[strings.TrimPrefix(name, "./")])
			}
			got++
		}
		if got != len(want) {
			t.Fatalf("%d files, want %d", got, len(want))
		}
	}
	check(g.exec(t, "fromworker", "sh", "-c", "find . -type f -path './dir*' | xargs sha256sum"))
	g.exec(t, "fromworker", "sh", "-c", "mkdir -p node_modules builder; echo no > node_modules/x; echo yes > builder/y; printf '\\000\\377' > .gitignore; rm dir0/file0.bin")
	synced := g.call(t, http.MethodPost, "/sandbox/fromworker/sync", nil, http.StatusOK)
	if synced["syncedFiles"] != float64(len(want)+1) || synced["skippedFiles"] != 1.0 || synced["success"] != true {
		t.Errorf("synced: %v", synced)
	}
	delete(want, "dir0/file0.bin")
	for name, content := range map[string]string{"builder/y": "yes\n", ".gitignore": "\x00\xff"} {
		raw, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil || !bytes.Equal(raw, []byte(content)) {
			t.Errorf("%s is %q in the mirror: %v", name, raw, err)
		}
		sum := sha256.Sum256([]byte(content))
		want[name] = hex.EncodeToString(sum[:])
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "cd "+folder+" && find . -type f ! -name '*%meta' | xargs sha256sum").Output() //nolint:gosec // a folder of the test's
	if err != nil {
		t.Fatal(err)
	}
	check(string(out))
	raw, _ := json.Marshal(synced)
	t.Logf("%s", raw)
}
