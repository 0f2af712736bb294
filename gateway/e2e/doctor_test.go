package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/doctor"
	"github.com/agentpod/agentpod/shared/processtest"
)

// soon is within what time a doctor has said that all is well.
const soon = 5 * time.Second

// setup is what somebody has set up for a gateway.
type setup struct {
	dir string // DATA_DIR
	env []string
}

// newSetup is one that works, of which nothing is there yet; more lines override
// the environment.
func newSetup(t *testing.T, more ...string) *setup {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	return &setup{dir: dir, env: append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "DOCKER_HOST=" + os.Getenv("DOCKER_HOST"),
		"AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN"),
		"GATEWAY_ADDR=127.0.0.1:0", "DATA_DIR=" + dir, "SANDBOX_IMAGE=" + os.Getenv(imageEnv), "LOG_FORMAT=json", "POOL_SIZE=0",
	}, more...)}
}

func (s *setup) set(lines ...string) { s.env = append(s.env, lines...) }

// make makes a folder below DATA_DIR.
func (s *setup) make(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *setup) write(t *testing.T, name, content string) {
	t.Helper()
	s.make(t, ".")
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs the gateway with arguments to its end.
func (s *setup) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...) //nolint:gosec // our own
	cmd.Env = s.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // how it ended is in the code
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// doctor returns what a doctor says.
func (s *setup) doctor(t *testing.T) (code int, report doctor.Report) {
	t.Helper()
	code, stdout, stderr := s.run(t, "doctor", "--json")
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	if stderr != "" {
		t.Errorf("it complains: %s", stderr)
	}
	return code, report
}

// serving starts a gateway; the test's clean-up stops it.
func (s *setup) serving(t *testing.T) *processtest.Process {
	t.Helper()
	p := &processtest.Process{}
	if err := p.Start(s.env, binary, "serve"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	return p
}

// mount mounts a file system in memory.
func mount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
		t.Fatalf("mounting a file system (it takes root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// s3 is the environment for a server's bucket.
func s3(server *storetest.Server, more ...string) []string {
	return append([]string{
		"S3_ENDPOINT=" + server.Endpoint, "S3_REGION=us-east-1", "S3_BUCKET=" + server.Bucket, "S3_ACCESS_KEY_ID=" + server.AccessKey,
		"S3_SECRET_ACCESS_KEY=" + server.SecretKey, "SEALING_KEY=" + strings.Repeat("ab", 32),
	}, more...)
}

// between is a proxy in front of a server. It returns the proxy's URL.
func between(t *testing.T, target string, transport http.RoundTripper, refuse func(*http.Request) bool, change func(*http.Response) error) string {
	t.Helper()
	at, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(at)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: transport, ModifyResponse: change,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse != nil && refuse(r) {
			w.WriteHeader(http.StatusNotImplemented)
			_, _ = io.WriteString(w, "<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>")
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// engineSaying is the address of the real engine, with something else in what it
// says of itself.
func engineSaying(t *testing.T, pattern, instead string) string {
	t.Helper()
	address := os.Getenv("DOCKER_HOST")
	if address == "" {
		address = "unix:///var/run/docker.sock"
	}
	network, at, _ := strings.Cut(address, "://")
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, at)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	expression := regexp.MustCompile(pattern)
	proxy := between(t, "http://engine", transport, nil, func(r *http.Response) error {
		if !strings.HasSuffix(r.Request.URL.Path, "/info") {
			return nil
		}
		raw, err := io.ReadAll(r.Body)
		if err == nil && !expression.Match(raw) {
			err = errors.New("the engine does not say that")
		}
		raw = expression.ReplaceAll(raw, []byte(instead))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
		r.Header.Set("Content-Length", strconv.Itoa(len(raw)))
		return err
	})
	return "tcp://" + strings.TrimPrefix(proxy, "http://")
}

// engineHas lists what a doctor may have left on the engine for an installation.
func engineHas(t *testing.T, installation string) string {
	t.Helper()
	var all []string
	for _, args := range [][]string{
		{"container", "ls", "-aq", "--filter", "label=agentpod.installation=" + installation + "-trial"},
		{"volume", "ls", "-q", "--filter", "label=agentpod.installation=" + installation + "-trial"},
		{"network", "ls", "-q", "--filter", "label=agentpod.installation=" + installation},
	} {
		out, err := docker(args...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out != "" {
			all = append(all, args[0]+" "+out)
		}
	}
	return strings.Join(all, ", ")
}

// below lists the files and folders below a folder.
func below(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil && name != dir {
			all = append(all, strings.TrimPrefix(name, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

// wantWell checks that everything is well and soon said.
func wantWell(t *testing.T, s *setup) doctor.Report {
	t.Helper()
	begun := time.Now()
	code, report := s.doctor(t)
	took := time.Since(begun)
	if code != 0 || !report.OK || took > soon {
		t.Errorf("exit %d after %s: %+v", code, took, report)
	}
	t.Logf("it took %s", took)
	return report
}

func detail(report doctor.Report, name string) string {
	for _, c := range report.Checks {
		if c.Name == name {
			return c.Detail
		}
	}
	return "there is no such check"
}

func TestADoctorFindsAWorkingSetUpWellAndLeavesNothing(t *testing.T) {
	t.Run("that nobody has used yet", func(t *testing.T) {
		s := newSetup(t)
		report := wantWell(t, s)
		for name, says := range map[string]string{
			"engine": "API", "network": "this host is", "sandbox": "it reaches this host, too", "sealing key": "the first start makes one",
			"port": "is free", "sandboxes' hosts": "*.sandbox.localhost", "webhooks": "off", "traces": "off",
		} {
			if got := detail(report, name); !strings.Contains(got, says) {
				t.Errorf("%s: %s", name, got)
			}
		}
		if left := below(t, filepath.Dir(s.dir)); len(left) != 0 {
			t.Errorf("it leaves %q", left)
		}
	})
	t.Run("that has been used", func(t *testing.T) {
		const installation = "doctor1"
		s := newSetup(t)
		s.write(t, "installation", installation)
		s.make(t, "store")
		before := below(t, s.dir)
		wantWell(t, s)
		if left := below(t, s.dir); !slices.Equal(left, before) {
			t.Errorf("it leaves %q", left)
		}
		if left := engineHas(t, installation); left != "" {
			t.Errorf("it leaves %s", left)
			_ = processtest.RemoveNetwork(t.Context(), "agentpod-"+installation)
		}
	})
	t.Run("on a bucket", func(t *testing.T) {
		server := storetest.StartServer(t, storetest.ServerOptions{})
		s := newSetup(t, s3(server, "S3_PREFIX=a/b/")...)
		report := wantWell(t, s)
		if got := detail(report, "store's clock"); !strings.Contains(got, "agree") {
			t.Error(got)
		}
		for _, name := range below(t, server.Folder) {
			if stat, err := os.Stat(filepath.Join(server.Folder, name)); err == nil && stat.Mode().IsRegular() {
				t.Errorf("it leaves %s", name)
			}
		}
	})
	t.Run("beside its gateway", func(t *testing.T) {
		g := shared(t)
		s := &setup{dir: g.dir, env: append(g.environ("{}"), "GATEWAY_ADDR="+g.Addr)}
		report := wantWell(t, s)
		if got := detail(report, "port"); got != "it runs at "+g.Addr+" with this configuration" {
			t.Errorf("port: %s", got)
		}
		if out, err := docker("container", "ls", "-aq", "--filter", "label=agentpod.installation="+g.installation()+"-trial"); err != nil || out != "" {
			t.Errorf("it leaves %s, %v", out, err)
		}
		if log := g.log(); strings.Contains(log, ".trial-") {
			t.Errorf("the gateway saw the doctor's container")
		}
	})
	t.Run("in words", func(t *testing.T) {
		code, stdout, stderr := newSetup(t).run(t, "doctor")
		if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "✔ configuration: ") || strings.Contains(stdout, "✗") || strings.Count(stdout, "\n") < 15 {
			t.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
		t.Log("\n" + stdout)
	})
}

// Each set-up is broken for real, in one thing, and that one is named. Where the
// gateway does not start with it, it says the same.
func TestADoctorNamesWhatIsBroken(t *testing.T) {
	bucket := storetest.StartServer(t, storetest.ServerOptions{})
	for name, c := range map[string]struct {
		broken func(t *testing.T, s *setup)
		check  string
		says   string
		boot   bool // so does a start
		code   int  // 1 if it is 0
	}{
		"no engine": {
			func(_ *testing.T, s *setup) { s.set("DOCKER_HOST=unix:///nowhere/docker.sock") },
			"engine", "no container engine answers at unix:///nowhere/docker.sock; start it", false, 0,
		},
		"an engine that is too old": {
			func(t *testing.T, s *setup) {
				old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.24") }))
				t.Cleanup(old.Close)
				s.set("DOCKER_HOST=tcp://" + old.Listener.Addr().String())
			},
			"engine", "speaks API 1.24; at least 1.41 is needed: upgrade it", false, 0,
		},
		"a collector that is away": {
			func(_ *testing.T, s *setup) { s.set("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1") },
			"traces", "the collector of traces does not take them: start it, correct OTEL_EXPORTER_OTLP_ENDPOINT", false, 0,
		},
		"a protocol for traces that is not spoken": {
			func(_ *testing.T, s *setup) {
				s.set("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
			},
			"traces", "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", true, 0,
		},
		"something that is no engine": {
			func(t *testing.T, s *setup) {
				other := httptest.NewServer(http.NotFoundHandler())
				t.Cleanup(other.Close)
				s.set("DOCKER_HOST=tcp://" + other.Listener.Addr().String())
			},
			"engine", "check DOCKER_HOST", false, 0,
		},
		"an engine whose clock is behind": {
			func(t *testing.T, s *setup) {
				s.set("DOCKER_HOST=" + engineSaying(t, `"SystemTime":"[^"]*"`, `"SystemTime":"2020-01-02T03:04:05.678Z"`))
			},
			"engine's clock", "behind this machine's: set both by NTP", false, 0,
		},
		"a kernel without a limit of processes": {
			func(t *testing.T, s *setup) {
				s.set("DOCKER_HOST=" + engineSaying(t, `"PidsLimit":true`, `"PidsLimit":false`))
			},
			"limits", "does not enforce the limits of processes", false, 0,
		},
		"no image": {
			func(_ *testing.T, s *setup) { s.set("SANDBOX_IMAGE=agentpod-sandbox:nowhere") },
			"image", `no image "agentpod-sandbox:nowhere"; build it with: make image`, false, 0,
		},
		"a runtime class that the engine does not have": {
			func(_ *testing.T, s *setup) { s.set("SANDBOX_RUNTIME=nosuch") },
			"image", `no runtime class "nosuch"`, false, 0,
		},
		"a network of somebody else's with the name": {
			func(t *testing.T, s *setup) {
				s.write(t, "installation", "doctor2")
				if out, err := docker("network", "create", "agentpod-doctor2"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				t.Cleanup(func() {
					if err := processtest.RemoveNetwork(context.Background(), "agentpod-doctor2"); err != nil {
						t.Error(err)
					}
				})
			},
			"network", "a network named agentpod-doctor2 exists and is not this gateway's; remove it", false, 0,
		},
		"more open files than the kernel lets a process have": {
			func(_ *testing.T, s *setup) { s.set("SANDBOX_NOFILE=2000000000") },
			"sandbox", "lower the limit of open files", false, 0,
		},
		"a data folder that cannot be made": {
			func(t *testing.T, s *setup) {
				if err := os.WriteFile(s.dir, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			"data folder", "cannot be used; let this user write there, or set another folder", true, 0,
		},
		"a data folder that is another gateway's": {
			func(t *testing.T, s *setup) {
				s.write(t, "installation", "doctor3")
				s.serving(t)
			},
			"data folder", "another gateway uses the store in", true, 0,
		},
		"a disk without room": {
			func(t *testing.T, s *setup) { mount(t, s.make(t, "."), 0, "size=8m") },
			"disk", "MiB are free for DATA_DIR", false, 0,
		},
		"a disk without inodes": {
			func(t *testing.T, s *setup) { mount(t, s.make(t, "."), 0, "size=2g,nr_inodes=100") },
			"disk", "more files can be made for DATA_DIR", false, 0,
		},
		"a store that is a file": {
			func(t *testing.T, s *setup) { s.write(t, "store", "") },
			"store", "remove what is in its place", true, 0,
		},
		"a store that cannot be written": {
			func(t *testing.T, s *setup) { mount(t, s.make(t, "store"), unix.MS_RDONLY, "size=2g,nr_inodes=100000") },
			"store", "let this user write there", true, 0,
		},
		"no such bucket": {
			func(_ *testing.T, s *setup) { s.set(s3(bucket, "S3_BUCKET=nothing-here")...) },
			"store", `there is no bucket "nothing-here"`, true, 0,
		},
		"a wrong secret for the bucket": {
			func(_ *testing.T, s *setup) { s.set(s3(bucket, "S3_SECRET_ACCESS_KEY=not-the-secret-of-the-test")...) },
			"store", "the secret key does not belong to the access key", true, 0,
		},
		"a server that knows no conditions": {
			func(t *testing.T, s *setup) {
				s.set(s3(bucket, "S3_ENDPOINT="+between(t, bucket.Endpoint, nil, func(r *http.Request) bool {
					return r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != ""
				}, nil))...)
			},
			"store", "it has no conditional writes", true, 0,
		},
		"a server whose clock is ahead": {
			func(t *testing.T, s *setup) {
				s.set(s3(bucket, "S3_ENDPOINT="+between(t, bucket.Endpoint, nil, nil, func(r *http.Response) error {
					r.Header.Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
					return nil
				}))...)
			},
			"store's clock", "ahead of this machine's: set both by NTP", false, 0,
		},
		"another sealing key": {
			func(t *testing.T, s *setup) {
				s.write(t, "installation", "doctor4")
				p := &processtest.Process{}
				if err := p.Start(s.env, binary, "serve"); err != nil {
					t.Fatal(err)
				}
				if err := p.Stop(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				s.write(t, "sealing.key", strings.Repeat("cd", 32))
			},
			"sealing key", "set SEALING_KEY to the key with the id", true, 0,
		},
		"a sealing key that is none": {
			func(t *testing.T, s *setup) { s.write(t, "sealing.key", "a password") },
			"sealing key", "64 hex digits or in base64; make one with: openssl rand -hex 32", true, 0,
		},
		"a port that is taken": {
			func(t *testing.T, s *setup) {
				taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = taken.Close() })
				s.set("GATEWAY_ADDR=" + taken.Addr().String())
			},
			"port", "another program listens there; stop it, or set another port", true, 0,
		},
		"a domain without an address": {
			func(_ *testing.T, s *setup) {
				s.set("SANDBOX_DOMAIN=sandboxes.invalid", "PUBLIC_URL=https://agentpod.example.com")
			},
			"sandboxes' hosts", "make a DNS record *.sandboxes.invalid", false, 0,
		},
		"webhooks without a token": {
			func(_ *testing.T, s *setup) { s.set("AGENTPOD_API_URL=http://127.0.0.1:3001") },
			"webhooks", "AGENTPOD_API_TOKEN is not, so none are sent: set both", false, 0,
		},
		"a variable that is malformed": {
			func(_ *testing.T, s *setup) { s.set("SANDBOX_MEMORY=much") },
			"configuration", "SANDBOX_MEMORY must be a size, such as 2GiB", true, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			c.broken(t, s)
			code, report := s.doctor(t)
			if want := max(c.code, 1); code != want || report.OK {
				t.Errorf("exit %d, want %d", code, want)
			}
			for _, r := range report.Checks {
				switch {
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
			if want := max(c.code, 1); code != want || !strings.Contains(stderr, c.says) {
				t.Errorf("a start ends with %d and says %s", code, stderr)
			}
		})
	}
}
