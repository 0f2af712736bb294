package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/agentpod/agentpod/shared/doctor"
	"github.com/agentpod/agentpod/shared/sandbox/clienttest"
)

// soon is within what time a doctor has said that all is well.
const soon = 5 * time.Second

// setup is what somebody has set up for an API.
type setup struct {
	dir string // DATA_DIR
	env []string
}

// newSetup is one that works, in front of a gateway, of which nothing is there yet.
func newSetup(t *testing.T, g *gateway) *setup {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	return &setup{dir: dir, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), runEnv(), "API_ADDR=127.0.0.1:0", "DATA_DIR=" + dir,
		"GATEWAY_URL=" + g.url(), "GATEWAY_TOKEN=" + g.token(), "LOG_FORMAT=json",
	}}
}

func (s *setup) set(lines ...string) { s.env = append(s.env, lines...) }

// on has it use a database server.
func (s *setup) on(databaseURL string) {
	s.set("DATABASE_URL="+databaseURL, "API_SECRET="+strings.Repeat("s", 32), "ENCRYPTION_KEY="+strings.Repeat("ab", 32))
}

func (s *setup) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs the API with arguments to its end.
func (s *setup) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "api"), args...) //nolint:gosec // our own
	cmd.Env = s.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // how it ended is in the code
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// migrate makes the tables.
func (s *setup) migrate(t *testing.T) {
	t.Helper()
	if code, _, stderr := s.run(t, "migrate"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
}

// doctor returns what a doctor says.
func (s *setup) doctor(t *testing.T) (code int, report doctor.Report) {
	t.Helper()
	code, stdout, stderr := s.run(t, "doctor", "--json")
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || stderr != "" {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	return code, report
}

// below lists the files and folders below a folder.
func below(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil && name != dir {
			all = append(all, strings.TrimPrefix(name, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestADoctorFindsAWorkingSetUpWell(t *testing.T) {
	g := sharedGateway.get(t)
	for name, prepare := range map[string]func(t *testing.T, s *setup) (check, says string){
		"that nobody has used yet": func(*testing.T, *setup) (string, string) { return "database", "the first start makes the file" },
		"that has been used":       func(t *testing.T, s *setup) (string, string) { s.migrate(t); return "migrations", "the newest" },
		"on Postgres": func(t *testing.T, s *setup) (string, string) {
			s.on(postgres.URL(t))
			s.migrate(t)
			return "database's clock", "agree"
		},
		"with a worker": func(t *testing.T, s *setup) (string, string) {
			s.set(workerSettings(clienttest.StartWorker(t))...)
			return "worker", "answers, and takes the token"
		},
		"beside its API": func(t *testing.T, s *setup) (string, string) {
			a := newAPI(t, g)
			s.dir, s.env = a.dir, append(s.env, "DATA_DIR="+a.dir, "API_ADDR="+a.addr)
			return "port", "it runs at " + a.addr
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t, g)
			check, says := prepare(t, s)
			before := below(t, filepath.Dir(s.dir))
			begun := time.Now()
			code, report := s.doctor(t)
			if took := time.Since(begun); code != 0 || !report.OK || took > soon {
				t.Errorf("exit %d after %s: %+v", code, took, report)
			}
			found := false
			for _, r := range report.Checks {
				found = found || r.Name == check && strings.Contains(r.Detail, says)
			}
			if !found {
				t.Errorf("%s does not say %q: %+v", check, says, report)
			}
			if name == "beside its API" {
				return // which writes meanwhile
			}
			if after := below(t, filepath.Dir(s.dir)); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("before there was %q, after there is %q", before, after)
			}
		})
	}
}

// otherDatabase is the URL of a database of that name on a server.
func otherDatabase(t *testing.T, databaseURL, name string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// Each set-up is broken for real, in one thing, and that one is named. Where the
// API does not start with it, it says the same.
func TestADoctorNamesWhatIsBroken(t *testing.T) {
	g := sharedGateway.get(t)
	for name, c := range map[string]struct {
		broken func(t *testing.T, s *setup)
		check  string
		says   string
		boot   bool // so does a start
		code   int  // 1 if it is 0
	}{
		"a data folder that cannot be made": {
			func(t *testing.T, s *setup) {
				if err := os.WriteFile(s.dir, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			"data folder", "cannot be used; let this user write there, or set another folder", true, 0,
		},
		"a disk without room": {
			func(t *testing.T, s *setup) {
				s.write(t, "x", "")
				if err := syscall.Mount("tmpfs", s.dir, "tmpfs", 0, "size=8m"); err != nil {
					t.Fatalf("mounting a file system (it takes root): %v", err)
				}
				t.Cleanup(func() {
					if err := syscall.Unmount(s.dir, 0); err != nil {
						t.Error(err)
					}
				})
			},
			"disk", "MiB are free for DATA_DIR", false, 0,
		},
		"a key that is none": {
			func(t *testing.T, s *setup) { s.write(t, "encryption.key", "a password") },
			"keys", "64 hex digits or in base64; make one with: openssl rand -hex 32", true, 0,
		},
		"a database that is away": {
			func(_ *testing.T, s *setup) { s.on("postgres://api:hidden@127.0.0.1:1/api") },
			"database", "DATABASE_URL: the server does not answer; start it, and check host and port", true, 0,
		},
		"a database that the server does not have": {
			func(t *testing.T, s *setup) { s.on(otherDatabase(t, postgres.URL(t), "nowhere")) },
			"database", "DATABASE_URL: the server has no database of that name; create it", true, 0,
		},
		"a database that is none": {
			func(t *testing.T, s *setup) { s.write(t, "api.db", strings.Repeat("this is no database. ", 1000)) },
			"database", "DATABASE_URL: the file is no database", true, 0,
		},
		"a database that was not migrated": {
			func(t *testing.T, s *setup) { s.on(postgres.URL(t)) },
			"migrations", "of version 0 and this program needs", false, 0,
		},
		"a database of a newer program": {
			func(t *testing.T, s *setup) {
				at := postgres.URL(t)
				s.on(at)
				s.migrate(t)
				conn, err := pgx.Connect(t.Context(), at)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
				if _, err := conn.Exec(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)"); err != nil {
					t.Fatal(err)
				}
			},
			"migrations", "of version 99999 and this program knows them up to", false, 0,
		},
		"a gateway that is away": {
			func(_ *testing.T, s *setup) { s.set("GATEWAY_URL=http://127.0.0.1:1") },
			"gateway", "GATEWAY_URL http://127.0.0.1:1: the gateway does not answer", false, 0,
		},
		"a gateway that is something else": {
			func(t *testing.T, s *setup) {
				other := httptest.NewServer(http.NotFoundHandler())
				t.Cleanup(other.Close)
				s.set("GATEWAY_URL=" + other.URL)
			},
			"gateway", "does not know this route; check its address", false, 0,
		},
		"another token than the gateway's": {
			func(_ *testing.T, s *setup) { s.set("GATEWAY_TOKEN=not-the-token-of-the-gateway") },
			"gateway", "set GATEWAY_TOKEN to the token that it has", false, 0,
		},
		"another token than the worker's": {
			func(t *testing.T, s *setup) {
				w := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/health" {
						w.WriteHeader(http.StatusUnauthorized)
					}
					_, _ = w.Write([]byte(`{"status":"ok"}`))
				}))
				t.Cleanup(w.Close)
				s.set("ENABLE_CLOUDFLARE_SANDBOXES=true", "CLOUDFLARE_WORKER_URL="+w.URL, "CLOUDFLARE_API_TOKEN=not-the-token-of-the-worker")
			},
			"worker", "set CLOUDFLARE_API_TOKEN to the token that it has", false, 0,
		},
		"a port that is taken": {
			func(t *testing.T, s *setup) {
				taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = taken.Close() })
				s.set("API_ADDR=" + taken.Addr().String())
			},
			"port", "another program listens there; stop it, or set another port", true, 0,
		},
		"a variable that is malformed": {
			func(_ *testing.T, s *setup) { s.set("TASK_TIMEOUT=soon") },
			"configuration", "TASK_TIMEOUT must be a time with a unit (s, m or h), such as 10m", true, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t, g)
			c.broken(t, s)
			code, report := s.doctor(t)
			if want := max(c.code, 1); code != want || report.OK {
				t.Errorf("exit %d, want %d", code, want)
			}
			for _, r := range report.Checks {
				switch {
				case strings.Contains(r.Fix+r.Detail, "hidden"), strings.Contains(r.Fix+r.Detail, "not-the-token"):
					t.Errorf("%s gives a secret away: %s", r.Name, r.Fix)
				case r.Name == c.check && !strings.Contains(r.Fix, c.says):
					t.Errorf("%s: it says %q %q", r.Name, r.Detail, r.Fix)
				case r.Name == c.check:
					t.Logf("✗ %s: %s", r.Name, r.Fix)
				case !r.OK && !r.Skipped:
					t.Errorf("it names %s, too: %s", r.Name, r.Fix)
				}
			}
			if !c.boot {
				return
			}
			code, _, stderr := s.run(t, "serve")
			if want := max(c.code, 1); code != want || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "hidden") {
				t.Errorf("a start ends with %d and says %s", code, stderr)
			}
		})
	}
}
