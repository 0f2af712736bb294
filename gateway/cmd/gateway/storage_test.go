package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	oneKey   = "1111111111111111111111111111111111111111111111111111111111111111"
	otherKey = "2222222222222222222222222222222222222222222222222222222222222222"
)

// configured is a configuration with a DATA_DIR of its own.
func configured(t *testing.T, environ map[string]string) config.Config {
	t.Helper()
	all := map[string]string{"DATA_DIR": t.TempDir()}
	maps.Copy(all, environ)
	cfg, err := config.Load(all)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// bucket is the environment for a server.
func bucket(server *storetest.Server, prefix string) map[string]string {
	return map[string]string{
		"S3_ENDPOINT": server.Endpoint, "S3_REGION": "us-east-1", "S3_BUCKET": server.Bucket, "S3_PREFIX": prefix, "S3_ADDRESSING": "auto",
		"S3_ACCESS_KEY_ID": server.AccessKey, "S3_SECRET_ACCESS_KEY": server.SecretKey, "SEALING_KEY": oneKey,
	}
}

func mustOpen(t *testing.T, cfg config.Config) *storage {
	t.Helper()
	s, err := openStorage(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustFail checks that a store is not opened, and that the sentence is of use.
func mustFail(t *testing.T, cfg config.Config, says ...string) {
	t.Helper()
	s, err := openStorage(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		s.close(t.Context())
		t.Fatalf("it was opened, and should say %q", says)
	}
	for _, what := range says {
		if !strings.Contains(err.Error(), what) {
			t.Errorf("it says %q, without %q", err, what)
		}
	}
	for _, secret := range []string{oneKey, otherKey, cfg.S3SecretAccessKey} {
		if secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("it gives a secret away: %v", err)
		}
	}
}

func TestAFolderHasOneOwnerAndOneKey(t *testing.T) {
	t.Parallel()
	cfg := configured(t, nil)
	first := mustOpen(t, cfg)
	mustFail(t, cfg, "another gateway uses the store in "+cfg.DataDir, "DATA_DIR")
	if _, err := first.records.Create(t.Context(), lifecycle.Record{SandboxID: "a"}); err != nil {
		t.Fatal(err)
	}
	first.close(t.Context())
	wrong := cfg
	wrong.SealingKey = oneKey
	mustFail(t, wrong, "SEALING_KEY", first.keyring.KeyID())
	again := mustOpen(t, cfg)
	defer again.close(t.Context())
	if listing, err := again.records.List(t.Context()); err != nil || len(listing.Stored) != 1 {
		t.Errorf("%+v, %v", listing, err)
	}
}

func TestABucketIsFoundAgainWithNothingButItsKey(t *testing.T) {
	t.Parallel()
	server := storetest.StartServer(t, storetest.ServerOptions{})
	environ := bucket(server, "some/prefix/")
	first := mustOpen(t, configured(t, environ))
	err := first.hold(t.Context(), func(ctx context.Context) error {
		_, err := first.records.Create(ctx, lifecycle.Record{SandboxID: "a", Secrets: lifecycle.Secrets{Token: "of a"}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	first.close(t.Context())
	if _, err := first.records.Create(t.Context(), lifecycle.Record{SandboxID: "b"}); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("a write after the end: %v", err)
	}

	mustHave := func(s *storage) {
		t.Helper()
		defer s.close(t.Context())
		listing, err := s.records.List(t.Context())
		if err != nil || len(listing.Stored) != 1 || listing.Stored[0].Record.Secrets.Token != "of a" {
			t.Errorf("%+v, %v", listing, err)
		}
	}
	mustHave(mustOpen(t, configured(t, environ)))

	wrong := configured(t, environ)
	wrong.SealingKey = otherKey
	mustFail(t, wrong, "SEALING_KEY", first.keyring.KeyID(), server.Bucket)
	rotated := wrong
	rotated.SealingKeysFormer = []string{oneKey}
	mustHave(mustOpen(t, rotated))
	mustHave(mustOpen(t, wrong))
	mustFail(t, configured(t, environ), "SEALING_KEY")
}

func TestABucketThatCannotBeUsedIsNamed(t *testing.T) {
	t.Parallel()
	server := storetest.StartServer(t, storetest.ServerOptions{})
	for name, c := range map[string]struct{ variable, value, says string }{
		"no such bucket":        {"S3_BUCKET", "nothing-here", `no bucket "nothing-here"`},
		"a wrong secret":        {"S3_SECRET_ACCESS_KEY", "not-the-secret-of-the-test", "secret key"},
		"an unknown key":        {"S3_ACCESS_KEY_ID", "nobody", `"nobody"`},
		"a CA file that is not": {"S3_CA_FILE", "/nonexistent", "CA file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environ := bucket(server, "")
			environ[c.variable] = c.value
			if c.variable == "S3_CA_FILE" {
				environ["S3_ENDPOINT"] = "https://127.0.0.1:1"
			}
			mustFail(t, configured(t, environ), c.says)
		})
	}
}

// leased is a storage with a lease on a directory; it takes part in a bubble's
// time, which a server does not.
func leased(t *testing.T, inner *store.Directory, holder string) (*storage, error) {
	t.Helper()
	s := &storage{log: slog.New(slog.DiscardHandler), inner: inner, name: "here"}
	err := s.acquire(t.Context(), holder)
	return s, err
}

func openDirectory(t *testing.T) *store.Directory {
	t.Helper()
	d, err := store.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func write(t *testing.T, s store.Store, key, content string) error {
	t.Helper()
	_, err := s.Put(t.Context(), key, strings.NewReader(content), int64(len(content)), store.PutOptions{})
	return err
}

func TestAStoreThatIsHeldIsNotTaken(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		first, err := leased(t, d, "first")
		if err != nil {
			t.Fatal(err)
		}
		err = first.hold(t.Context(), func(context.Context) error {
			_, err := leased(t, d, "second")
			return err
		})
		if err == nil || !strings.Contains(err.Error(), `another gateway uses the store in here, and its DATA_DIR/installation says "first"`) {
			t.Errorf("%v", err)
		}
		restarted, err := leased(t, d, "first") // at once, also if it was killed
		if err != nil {
			t.Fatal(err)
		}
		if err := write(t, restarted.store, "x", "x"); err != nil {
			t.Error(err)
		}
	})
}

func TestWorkEndsWithTheLease(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := leased(t, d, "first")
		if err != nil {
			t.Fatal(err)
		}
		err = s.hold(t.Context(), func(ctx context.Context) error {
			if err := write(t, s.store, "x", "x"); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * leaseTTL)
			if ctx.Err() != nil {
				t.Error("a lease that is renewed was lost")
			}
			if err := write(t, d, leaseKey, `{"holder":"second","turn":"x","ttlMs":1000}`); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), store.ErrLeaseLost) {
				t.Errorf("the cause is %v", context.Cause(ctx))
			}
			return nil // as a server that drains does
		})
		if !errors.Is(err, store.ErrLeaseLost) || !strings.Contains(err.Error(), "the store in here is not this gateway's any more") {
			t.Errorf("%v", err)
		}
	})
}

func TestWhatEndsKeepsTheLeaseUntilItHasEnded(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := leased(t, d, "first")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err = s.hold(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(10 * leaseTTL) // it drains
			return write(t, s.store, "x", "x")
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsWrittenWithoutTheLease(t *testing.T) {
	t.Parallel()
	d := openDirectory(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := leased(t, d, "first")
		if err != nil {
			t.Fatal(err)
		}
		if err := write(t, s.store, "a/x", "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseTTL) // nobody renews it
		for name, err := range map[string]error{
			"put": write(t, s.store, "a/y", "y"), "delete": s.store.Delete(t.Context(), "a/x"), "delete of a prefix": s.store.DeletePrefix(t.Context(), "a/"),
		} {
			if !errors.Is(err, store.ErrLeaseLost) || !errors.Is(err, store.ErrAway) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := s.store.Head(t.Context(), "a/x"); err != nil {
			t.Errorf("what is there is not there: %v", err)
		}
	})
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
	wrote  chan struct{} // gets something after a write
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// The README's variables for S3, and the main program.
func TestTheGatewayServesFromABucket(t *testing.T) {
	t.Parallel()
	server := storetest.StartServer(t, storetest.ServerOptions{})
	dir := t.TempDir()
	environ := []string{"DATA_DIR=" + dir, "GATEWAY_ADDR=127.0.0.1:0", "LOG_FORMAT=text", "DOCKER_HOST=unix://" + filepath.Join(dir, "no-engine")}
	for name, value := range bucket(server, "gateway/") {
		environ = append(environ, name+"="+value)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := &lockedBuffer{wrote: make(chan struct{}, 1)}
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"serve"}, environ, errs, errs) }()
	serving := regexp.MustCompile(`msg=serving addr=(\S+)`)
	for !serving.MatchString(errs.String()) {
		select {
		case <-errs.wrote:
		case got := <-code:
			t.Fatalf("exit %d, it says %s", got, errs)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+serving.FindStringSubmatch(errs.String())[1]+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	reply, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = reply.Body.Close()
	cancel()
	if got := <-code; got != 0 || reply.StatusCode != http.StatusOK {
		t.Errorf("health %d, exit %d, it says %s", reply.StatusCode, got, errs)
	}
	for _, name := range []string{"key.json", leaseKey} {
		if _, err := os.Stat(filepath.Join(server.Folder, "gateway", name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "sealing.key")); !os.IsNotExist(err) {
		t.Errorf("a sealing key was made: %v", err)
	}
}
