package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	dockernet "github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// deadline bounds every wait of these tests.
const deadline = 60 * time.Second

// world is what the tests share: an engine with the stub's image.
//
//nolint:gochecknoglobals // TestMain has no other way to hand it over
var world struct {
	cli   *client.Client
	image string
	run   string // begins every installation id of this run
}

func TestMain(m *testing.M) {
	world.run = "t" + strings.ToLower(rand.Text()[:6])
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "these tests need a Docker engine that may be used:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(tidied{m}, goleak.IgnoreCurrent())
}

// tidied takes back what the tests share before anybody looks for goroutines: the
// client that they share keeps connections.
type tidied struct{ m *testing.M }

func (t tidied) Run() int {
	code := t.m.Run()
	if err := finish(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// prepare makes an image of the stub.
func prepare() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	defer cancel()
	dir, err := os.MkdirTemp("", "stub")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin := filepath.Join(dir, "stub")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./testdata/stub") //nolint:gosec // a temporary folder
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the stub: %w: %s", err, out)
	}
	rootfs, err := stubRoot(bin)
	if err != nil {
		return err
	}
	if world.cli, err = newClient(""); err != nil {
		return err
	}
	if _, err := world.cli.Ping(ctx); err != nil {
		return err
	}
	world.image = "agentpod-dockertest:" + world.run
	progress, err := world.cli.ImageImport(ctx, image.ImportSource{Source: rootfs, SourceName: "-"}, world.image,
		image.ImportOptions{Changes: []string{`ENTRYPOINT ["/stub"]`, "USER 1000"}})
	if err != nil {
		return err
	}
	defer func() { _ = progress.Close() }()
	_, err = io.Copy(io.Discard, progress)
	return err
}

func stubRoot(bin string) (io.Reader, error) {
	program, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "home/", Mode: 0o755, Typeflag: tar.TypeDir},
		{Name: "home/user/", Mode: 0o755, Typeflag: tar.TypeDir, Uid: 1000, Gid: 1000},
		{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir},
		{Name: "run/", Mode: 0o1777, Typeflag: tar.TypeDir},
		{Name: "stub", Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(program))},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(program); err != nil {
				return nil, err
			}
		}
	}
	return &buf, tw.Close()
}

// finish removes the image and fails when a test left something behind.
func finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var errs []error
	left := func(kind, name string, labels map[string]string) {
		if strings.HasPrefix(labels[Label], world.run) {
			errs = append(errs, fmt.Errorf("the tests left the %s %s behind", kind, name))
		}
	}
	labelled := filters.NewArgs(filters.Arg("label", Label))
	containers, err := world.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: labelled})
	errs = append(errs, err)
	for _, c := range containers {
		left("container", c.ID, c.Labels)
	}
	volumes, err := world.cli.VolumeList(ctx, volume.ListOptions{Filters: labelled})
	errs = append(errs, err)
	for _, v := range volumes.Volumes {
		left("volume", v.Name, v.Labels)
	}
	networks, err := world.cli.NetworkList(ctx, dockernet.ListOptions{Filters: labelled})
	errs = append(errs, err)
	for _, n := range networks {
		left("network", n.Name, n.Labels)
	}
	_, err = world.cli.ImageRemove(ctx, world.image, image.RemoveOptions{Force: true})
	return errors.Join(append(errs, err, world.cli.Close())...)
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func testLog(t testing.TB) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

const mebibyte = 1 << 20

// limits are settings with every limit that is required.
func limits(installation, image string) Settings {
	return Settings{
		Installation: installation, Image: image,
		Memory: 64 * mebibyte, CPUs: 1, Pids: 1024, NoFile: 16384,
		TmpSize: 8 * mebibyte, RunSize: 16 * mebibyte, LogMaxSize: 10 * mebibyte, LogMaxFiles: 2,
	}
}

// newRuntime returns a Runtime with an installation of its own on the real
// engine; everything that it makes is removed when the test ends.
func newRuntime(t testing.TB, change ...func(*Settings)) *Runtime {
	t.Helper()
	set := limits(world.run+strings.ToLower(rand.Text()[:8]), world.image)
	for _, f := range change {
		f(&set)
	}
	r, err := New(set, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer r.Close()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		list, err := r.List(ctx)
		errs := []error{err}
		for _, c := range list {
			errs = append(errs, r.Remove(ctx, c.ID))
		}
		volumes, err := r.Volumes(ctx)
		errs = append(errs, err)
		for _, v := range volumes {
			errs = append(errs, r.RemoveVolume(ctx, v))
		}
		if err := errors.Join(append(errs, r.RemoveNetwork(ctx))...); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	return r
}

func specOf(r *Runtime, id string) lifecycle.Spec {
	return lifecycle.Spec{SandboxID: id, Volume: r.nameOf(id) + "-home", Env: map[string]string{"STUB_NAME": id}}
}

func create(t testing.TB, r *Runtime, spec lifecycle.Spec) lifecycle.Container {
	t.Helper()
	c, err := r.Create(testContext(t), spec)
	if err != nil {
		t.Fatalf("create %s: %v", spec.SandboxID, err)
	}
	return c
}

// run creates and starts a container and waits until the stub answers.
func run(t testing.TB, r *Runtime, id string) lifecycle.Container {
	t.Helper()
	c, err := r.Start(testContext(t), create(t, r, specOf(r, id)).ID)
	if err != nil {
		t.Fatalf("start %s: %v", id, err)
	}
	if c.GuestAddr == "" || c.OpenCodeAddr == "" {
		t.Fatalf("%s runs without addresses: %+v", id, c)
	}
	if got := ask(t, c, "/name", nil); got != id {
		t.Fatalf("at the address of %s answers %q", id, got)
	}
	return c
}

// ask sends a request to the stub, again and again until it answers.
func ask(t testing.TB, c lifecycle.Container, path string, query url.Values) string {
	t.Helper()
	var got string
	eventually(t, "the stub answers "+path, func() (err error) {
		got, err = tell(t, c, path, query)
		return err
	})
	return got
}

// tell sends a request to the stub once.
func tell(t testing.TB, c lifecycle.Container, path string, query url.Values) (string, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+c.GuestAddr+path+"?"+query.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// eventually polls until try returns nil.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came about that %s: %v", what, err)
		}
	}
}

func wantCode(t testing.TB, err error, code sandbox.Code) {
	t.Helper()
	if !sandbox.HasCode(err, code) {
		t.Fatalf("got error %v, want code %s", err, code)
	}
	t.Logf("%s: %s", code, messageOf(err))
}

func messageOf(err error) string {
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return e.Message
	}
	return ""
}

func wantGone(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Fatalf("got error %v, want ErrNoContainer", err)
	}
}
