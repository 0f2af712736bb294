package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// exec runs a command in the workspace and returns what it printed; any other
// exit than 0 fails the test.
func (g *gateway) exec(t *testing.T, id string, command ...string) string {
	t.Helper()
	got := g.call(t, http.MethodPost, "/sandbox/"+id+"/exec", object{"command": command}, http.StatusOK)
	if got["exitCode"] != 0.0 {
		t.Fatalf("%v: %v", command, got)
	}
	out, _ := got["stdout"].(string)
	return out
}

// fingerprint is everything about the workspace that must survive: each entry
// with its type, mode, time, size, target and, of files, a hash. Below .git, in
// which OpenCode and git write whenever they look at it, times are left out.
func (g *gateway) fingerprint(t *testing.T, id string) []string {
	t.Helper()
	return strings.Split(g.exec(t, id, "sh", "-c", `
		find . -path ./.git -prune -o ! -type d -printf '%P %y %m %T@ %s %l\n' -o -printf '%P %y %m %T@\n' | sort
		find .git ! -type d -printf '%P %y %m %l\n' -o -printf '%P %y %m\n' | sort
		find . -type f -exec sha256sum {} + | sort -k2`), "\n")
}

func (g *gateway) hibernate(t *testing.T, id, tier string) {
	t.Helper()
	// After a turn OpenCode may have something to finish: the sandbox is busy then.
	var got object
	eventually(t, "the sandbox may be put to sleep", 30*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		status, raw, err := g.do(ctx, http.MethodPost, "/sandbox/"+id+"/hibernate", object{"tier": tier})
		if err != nil || status != http.StatusOK && status != http.StatusConflict {
			t.Fatalf("hibernating: %d %s %v", status, raw, err)
		}
		return status == http.StatusOK && json.Unmarshal(raw, &got) == nil
	})
	if got["status"] != "sleeping" || got["tier"] != tier {
		t.Fatalf("hibernating: %v", got)
	}
}

func (g *gateway) tier(t *testing.T, id string) string {
	t.Helper()
	return fmt.Sprint(g.call(t, http.MethodGet, "/sandbox/"+id, nil, http.StatusOK)["tier"])
}

// history is how many messages a session has, with the texts of the user's.
func (g *gateway) history(t *testing.T, id, session string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, raw, err := g.do(ctx, http.MethodGet, "/sandbox/"+id+"/opencode/session/"+session+"/message", nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("the history: %d %s %v", status, raw, err)
	}
	return string(raw)
}

func TestASandboxComesBackFromEveryTier(t *testing.T) {
	h := receiveHooks(t)
	g := start(t, h.env()...)
	g.create(t, "deep", object{"gitUrl": g.git.URL(), "config": object{"agents_md": "be brief"}})
	first := g.message(t, "deep", "write kept.txt: kept", http.StatusOK)
	session, _ := first["sessionId"].(string)
	if sync, _ := first["sync"].(object); sync["syncedFiles"] == 0.0 {
		t.Errorf("the reply came without a sync: %v", first["sync"])
	}
	g.exec(t, "deep", "sh", "-c", `git config user.email a@b.c; git config user.name n; git add -A && git commit -qm kept
		mkdir -p node_modules/x empty; echo dep > node_modules/x/i.js; ln -s ../kept.txt empty/link; ln -s nowhere dangling
		chmod 4750 kept.txt; touch -d '1965-03-01 12:34:56.789012345' kept.txt; : > zero; printf 'a' > "$(printf 'odd\nname')"`)
	want := g.fingerprint(t, "deep")
	for _, tier := range []string{"frozen", "stopped", "archived"} {
		g.hibernate(t, "deep", tier)
		if got := g.tier(t, "deep"); got != tier {
			t.Errorf("the tier is %s, want %s", got, tier)
		}
		if tier == "archived" {
			if left := g.engine("container") + g.engine("volume"); left != "" {
				t.Errorf("an archived sandbox has %q in the engine", left)
			}
		}
		health := g.call(t, http.MethodGet, "/sandbox/deep/opencode/global/health", nil, http.StatusOK)
		if health["healthy"] != true || health["version"] == "" || g.tier(t, "deep") != tier {
			t.Errorf("asleep, health is %v and the tier %s", health, g.tier(t, "deep"))
		}
		began := time.Now()
		got := g.call(t, http.MethodPost, "/sandbox/deep/message", object{"message": "say after " + tier, "sessionId": session}, http.StatusOK)
		t.Logf("%s: message answered after %s", tier, time.Since(began).Round(time.Millisecond))
		if got["response"] != "after "+tier {
			t.Errorf("after %s: %v", tier, got)
		}
		if diff := cmp.Diff(want, g.fingerprint(t, "deep")); diff != "" {
			t.Errorf("after %s the workspace is another: (-was +is)\n%s", tier, diff)
		}
		if out := g.exec(t, "deep", "git", "--no-optional-locks", "status", "--porcelain", "--", "kept.txt"); out != "" && !strings.Contains(out, "M kept.txt") {
			t.Errorf("git status: %q", out)
		}
		if log := g.history(t, "deep", session); !strings.Contains(log, "write kept.txt: kept") || !strings.Contains(log, "say after "+tier) {
			t.Errorf("the history after %s: %s", tier, log)
		}
	}
	info := g.call(t, http.MethodGet, "/sandbox/deep", nil, http.StatusOK)
	if last, _ := info["lastSnapshot"].(object); last["id"] == nil || last["files"] == 0.0 {
		t.Errorf("lastSnapshot = %v", info["lastSnapshot"])
	}
	snapshots, _ := g.call(t, http.MethodGet, "/sandbox/deep/snapshots", nil, http.StatusOK)["snapshots"].([]any)
	if len(snapshots) == 0 || len(snapshots) > 3 {
		t.Errorf("snapshots = %v", snapshots)
	}
	for _, event := range []string{"sandbox.hibernated deep", "sandbox.woken deep", "workspace.synced deep"} {
		if !strings.Contains(h.seen(), event) {
			t.Errorf("no webhook %q in %s", event, h.seen())
		}
	}
}

func TestIdleSandboxesGoDownTheLadderByThemselves(t *testing.T) {
	g := start(t)
	g.create(t, "idle", object{"idle": object{"freezeAfterMs": 1000, "stopAfterMs": 20_000, "archiveAfterMs": 25_000}})
	for _, tier := range []string{"frozen", "stopped", "archived"} {
		eventually(t, "the sandbox is "+tier, 40*time.Second, func() bool { return g.tier(t, "idle") == tier })
	}
	if got := g.message(t, "idle", "say awake", http.StatusOK); got["response"] != "awake" {
		t.Errorf("got %v", got)
	}
	g.create(t, "brief", object{"idle": object{"deleteAfterMs": 1000}})
	eventually(t, "the sandbox is deleted", 20*time.Second, func() bool {
		status, _, err := g.do(t.Context(), http.MethodGet, "/sandbox/brief", nil)
		return err == nil && status == http.StatusNotFound
	})
}

func TestAWorkspaceOutlivesItsHost(t *testing.T) {
	g := start(t)
	g.create(t, "moved", object{"gitUrl": g.git.URL()})
	session, _ := g.message(t, "moved", "write here.txt: here", http.StatusOK)["sessionId"].(string)
	g.hibernate(t, "moved", "stopped")
	want := "here"
	if err := g.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The engine has nothing any more, as on another host.
	for _, kind := range []string{"container", "volume"} {
		if ids := strings.Fields(g.engine(kind)); len(ids) > 0 {
			if out, err := docker(append([]string{kind, "rm", "-f"}, ids...)...); err != nil {
				t.Fatal(out)
			}
		}
	}
	if err := g.run(); err != nil {
		t.Fatal(err)
	}
	got := g.call(t, http.MethodPost, "/sandbox/moved/message", object{"message": "run cat here.txt", "sessionId": session}, http.StatusOK)
	if text, _ := got["response"].(string); !strings.Contains(text, want) {
		t.Errorf("got %v", got)
	}
	if out := g.exec(t, "moved", "git", "log", "--oneline"); out == "" {
		t.Error("the git history is gone")
	}
}

// As docs/operations.md has it: archive, stop, copy the data folder, start on the copy.
func TestABackupIsRestoredIntoAnotherDataFolder(t *testing.T) {
	restored, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup.tar")
	g := start(t)
	g.create(t, "kept", object{"gitUrl": g.git.URL(), "config": object{"agents_md": "be brief"}})
	session, _ := g.message(t, "kept", "write here.txt: here", http.StatusOK)["sessionId"].(string)
	want := g.fingerprint(t, "kept")
	g.hibernate(t, "kept", "archived")
	if left := g.engine("container") + g.engine("volume"); left != "" {
		t.Fatalf("the engine has %q, which no backup of the data folder has", left)
	}
	if err := g.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	first := g.dir
	for _, args := range [][]string{{"-C", first, "-cf", backup, "."}, {"-C", restored, "-xf", backup}} {
		if out, err := exec.CommandContext(t.Context(), "tar", args...).CombinedOutput(); err != nil { //nolint:gosec // the test's own folders
			t.Fatalf("tar %v: %v\n%s", args, err, out)
		}
	}
	if err := os.RemoveAll(first); err != nil {
		t.Fatal(err)
	}
	g.dir = restored
	if err := g.run(); err != nil {
		t.Fatal(err)
	}
	if status := g.call(t, http.MethodGet, "/sandbox/kept", nil, http.StatusOK); status["tier"] != "archived" {
		t.Errorf("after the restore it is %v", status)
	}
	g.call(t, http.MethodPost, "/sandbox/kept/wake", nil, http.StatusOK)
	if diff := cmp.Diff(want, g.fingerprint(t, "kept")); diff != "" {
		t.Errorf("the workspace (-want +got):\n%s", diff)
	}
	got := g.call(t, http.MethodPost, "/sandbox/kept/message", object{"message": "run cat here.txt", "sessionId": session}, http.StatusOK)
	if text, _ := got["response"].(string); !strings.Contains(text, "here") || got["sessionId"] != session {
		t.Errorf("got %v", got)
	}
	if log := g.history(t, "kept", session); !strings.Contains(log, "write here.txt: here") {
		t.Errorf("the history is %s", log)
	}
}

func TestADeletedSandboxLeavesNothingInTheStore(t *testing.T) {
	g := start(t)
	g.create(t, "gone", nil)
	g.message(t, "gone", "write a.txt: a", http.StatusOK)
	g.call(t, http.MethodPost, "/sandbox/gone/sync", nil, http.StatusOK)
	g.hibernate(t, "gone", "archived")
	g.delete(t, "gone")
	var left []string
	err := filepath.WalkDir(filepath.Join(g.dir, "store"), func(name string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.Contains(name, "gone") {
			left = append(left, name)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("left in the store: %v %v", left, err)
	}
}
