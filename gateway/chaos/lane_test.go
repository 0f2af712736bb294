package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/shared/processtest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/scriptedmodel"
)

type object = map[string]any

// lane is one gateway and the API before it, with a border at everything that they
// speak to. What is in them lasts from point to point.
type lane struct {
	world *world
	name  string
	dir   string
	ids   atomic.Int64 // the last number in a name of the lane's

	gateway, api processtest.Process
	image        string
	config       string // what every sandbox has
	memory       string
	gatewayAddr  string
	apiAddr      string
	token        string
	bearer       string // of a user of the API
	installation string

	engine   *proxy // gateway → engine
	store    *proxy // gateway → S3 server
	llm      *proxy // OpenCode → scripted model, if it is the real one
	receiver *proxy // gateway → API's webhooks
	front    *proxy // API → gateway
	sql      *wire  // API → Postgres

	model  *scriptedmodel.Server // nil with the stand-in
	client *http.Client
	ledger *ledger
	events *events
	slow   *slowness
	hasty  atomic.Pointer[hasty] // set while callers do not wait for their answers
	calm   *figures              // of the gateway, after the first point
	stored time.Time             // when the store last began to work again
}

const (
	webhookToken = "the-webhooks-token-of-a-lane"
	adminMail    = "admin@localhost.test"
	adminWord    = "a password of the tests"
	// callTime is longer than any answer may take.
	callTime = requestBound + 20*time.Second
	// drainTime is DRAIN_TIMEOUT of both.
	drainTime = 5 * time.Second
)

// newLane starts a lane, with the real OpenCode or its stand-in.
func newLane(ctx context.Context, w *world, name string, genuine bool) (_ *lane, err error) {
	l := &lane{
		world: w, name: name, dir: filepath.Join(w.folder, name), gatewayAddr: loopback, apiAddr: loopback,
		image: tagOf(w.folder), config: "{}", memory: "256MiB",
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}},
		ledger: newLedger(), events: &events{}, slow: &slowness{},
	}
	for _, dir := range []string{l.dir, l.apiDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a lane's folder: %w", err)
		}
	}
	if l.engine, err = newProxy("/run/engine-"+name+".sock", w.engine.socket, carriage{}); err != nil {
		return nil, err
	}
	if l.store, err = newProxy(loopback, w.s3.Address, carriage{keepHost: true}); err != nil {
		return nil, err
	}
	if l.sql, err = newWire(w.database.address()); err != nil {
		return nil, err
	}
	if err := w.database.create(ctx, name); err != nil {
		return nil, err
	}
	// The receiver's target is known when the API runs, which needs the gateway.
	front, receiver := &lateTarget{}, &lateTarget{}
	if l.receiver, err = newProxy(loopback, receiver.listen(), carriage{dial: receiver.dial, observe: l.events.take}); err != nil {
		return nil, err
	}
	if l.front, err = newProxy(loopback, front.listen(), carriage{dial: front.dial}); err != nil {
		return nil, err
	}
	if genuine {
		if err := l.useModel(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.startGateway(); err != nil {
		return nil, err
	}
	front.set(l.gatewayAddr)
	if err := l.startAPI(); err != nil {
		return nil, err
	}
	receiver.set(l.apiAddr)
	if err := l.signIn(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *lane) apiDir() string { return filepath.Join(l.dir, "api") }

// prefix is where the lane's objects are in the bucket.
func (l *lane) prefix() string { return l.name + "/" }

// id is a name that was never used before.
func (l *lane) id(kind string) string {
	return kind + strconv.FormatInt(l.ids.Add(1), 10)
}

// useModel has the lane's sandboxes be of the real image, with a scripted model.
func (l *lane) useModel(ctx context.Context) error {
	l.image, l.memory = os.Getenv(imageEnv), "2GiB"
	cmd := exec.CommandContext(ctx, filepath.Join(l.world.folder, "gateway"), "network") //nolint:gosec // the program under test
	cmd.Env = l.gatewayEnv()
	host, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("making the sandboxes' network: %w", err)
	}
	l.model = scriptedmodel.New(scriptedmodel.Options{})
	if err := l.model.Start(context.WithoutCancel(ctx), loopback); err != nil {
		return err
	}
	behind := strings.TrimSuffix(strings.TrimPrefix(l.model.URL(), "http://"), "/v1")
	if l.llm, err = newProxy(strings.TrimSpace(string(host))+":0", behind, carriage{}); err != nil {
		return err
	}
	l.config = strings.ReplaceAll(string(l.model.Config()), behind, l.llm.address)
	return nil
}

func (l *lane) startGateway() error {
	if err := l.gateway.Start(l.gatewayEnv(), filepath.Join(l.world.folder, "gateway"), "serve"); err != nil {
		return fmt.Errorf("starting the gateway: %w", err)
	}
	if l.installation != "" {
		return nil // its address, token and installation are what they were
	}
	l.gatewayAddr = l.gateway.Addr
	for name, to := range map[string]*string{"gateway.token": &l.token, "installation": &l.installation} {
		raw, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			return fmt.Errorf("reading what the gateway made: %w", err)
		}
		*to = strings.TrimSpace(string(raw))
	}
	return nil
}

func (l *lane) gatewayEnv() []string {
	w := l.world
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN"),
		"DOCKER_HOST=unix://" + l.engine.address, "GATEWAY_ADDR=" + l.gatewayAddr, "DATA_DIR=" + l.dir, "SANDBOX_IMAGE=" + l.image,
		"S3_ENDPOINT=" + l.store.url(), "S3_BUCKET=" + w.s3.Bucket, "S3_REGION=us-east-1", "S3_PREFIX=" + l.prefix(),
		"S3_ACCESS_KEY_ID=" + w.s3.AccessKey, "S3_SECRET_ACCESS_KEY=" + w.s3.SecretKey, "SEALING_KEY=" + strings.Repeat("5c", 32),
		"AGENTPOD_API_URL=" + l.receiver.url(), "AGENTPOD_API_TOKEN=" + webhookToken,
		"POOL_SIZE=1", "SANDBOX_MEMORY=" + l.memory, "DEFAULT_CONFIG=" + l.config, "MAX_RUNNING=30", "LOG_LEVEL=debug", "LOG_FORMAT=json", "DRAIN_TIMEOUT=" + drainTime.String(),
		"HOLD_TIMEOUT=60s", "GUEST_TIMEOUT=20s", "BOOT_TIMEOUT=40s", "MESSAGE_TIMEOUT=3m", // a request has 80 s in all; turns have their own
	}
}

func (l *lane) startAPI() error {
	err := l.api.Start([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + l.apiDir(), "AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN"),
		"API_ADDR=" + l.apiAddr, "DATA_DIR=" + l.apiDir(), "MAKE_ADMIN=true", "ADMIN_EMAIL=" + adminMail, "ADMIN_PASSWORD=" + adminWord,
		"GATEWAY_URL=" + l.front.url(), "GATEWAY_TOKEN=" + l.token, "WEBHOOK_TOKEN_DOCKER=" + webhookToken,
		"API_SECRET=" + strings.Repeat("a1", 32), "ENCRYPTION_KEY=" + strings.Repeat("b2", 32),
		"DATABASE_URL=postgres://test@" + l.sql.listener.Addr().String() + "/" + l.name + "?sslmode=disable",
		"LOG_LEVEL=debug", "LOG_FORMAT=json", "DRAIN_TIMEOUT=" + drainTime.String(),
	}, filepath.Join(l.world.folder, "api"), "serve")
	if err != nil {
		return fmt.Errorf("starting the API: %w", err)
	}
	if l.apiAddr == loopback {
		l.apiAddr = l.api.Addr // which it keeps
	}
	return nil
}

func (l *lane) signIn(ctx context.Context) error {
	var out struct{ Token string }
	got := l.ask(ctx, "http://"+l.apiAddr, "", http.MethodPost, "/api/auth/sign-in/email", object{"email": adminMail, "password": adminWord})
	if err := got.into(&out); err != nil {
		return fmt.Errorf("signing in: %w", err)
	}
	l.bearer = out.Token
	return nil
}

// close stops what the lane has started. What is in the engine goes with the engine.
func (l *lane) close() error {
	l.client.CloseIdleConnections()
	err := errors.Join(ended(l.api.Stop(syscall.SIGKILL)), ended(l.gateway.Stop(syscall.SIGTERM)))
	for _, p := range []*proxy{l.engine, l.store, l.receiver, l.front} {
		p.close()
	}
	if l.model != nil {
		l.llm.close()
		err = errors.Join(err, l.model.Close())
	}
	l.sql.close()
	return err
}

// container is the name of a sandbox's container.
func (l *lane) container(id string) string { return "agentpod-" + l.installation + "-" + id }

// answer is what came of a request.
type answer struct {
	what   string
	status int
	raw    []byte
	err    error
	took   time.Duration
}

// ok tells whether the request was acknowledged.
func (a answer) ok() bool { return a.err == nil && a.status == http.StatusOK }

// code is the contract's code of an error.
func (a answer) code() sandbox.Code {
	var body struct{ Code sandbox.Code }
	_ = json.Unmarshal(a.raw, &body) // no JSON has no code
	return body.Code
}

// refused tells whether the answer is final: trying again is of no use.
func (a answer) refused() bool {
	return a.err == nil && a.status >= 400 && a.status < 500 && a.status != http.StatusTooManyRequests
}

func (a answer) String() string {
	if a.err != nil {
		return fmt.Sprintf("%s: %v (after %s)", a.what, a.err, a.took.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s: %d %s (after %s)", a.what, a.status, clip(a.raw), a.took.Round(time.Millisecond))
}

func (a answer) into(v any) error {
	if !a.ok() {
		return errors.New(a.String())
	}
	if err := json.Unmarshal(a.raw, v); err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	return nil
}

func clip(raw []byte) string {
	if len(raw) > 400 {
		return string(raw[:400]) + "…"
	}
	return string(raw)
}

// call sends a request to the gateway.
func (l *lane) call(ctx context.Context, method, path string, body any) answer {
	return l.ask(ctx, "http://"+l.gatewayAddr, l.token, method, path, body)
}

// callAPI sends a request to the API.
func (l *lane) callAPI(ctx context.Context, method, path string, body any) answer {
	return l.ask(ctx, "http://"+l.apiAddr, l.bearer, method, path, body)
}

// ask sends a request and notes how long the answer took.
func (l *lane) ask(ctx context.Context, base, bearer, method, path string, body any) (got answer) {
	began := time.Now()
	got.what = method + " " + path
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if h := l.hasty.Load(); h != nil {
		var leave context.CancelFunc
		ctx, leave = context.WithTimeout(ctx, h.next())
		defer leave()
	}
	defer func() {
		got.took = time.Since(began)
		l.slow.note(got)
	}()
	var resp *http.Response
	if resp, got.err = l.open(ctx, base, bearer, method, path, body); got.err != nil {
		return got
	}
	defer func() { _ = resp.Body.Close() }()
	got.status = resp.StatusCode
	got.raw, got.err = io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	return got
}

func (l *lane) open(ctx context.Context, base, bearer, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, reader)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return l.client.Do(req)
}

// retry sends a request as a patient caller would, until it is acknowledged, refused
// for good, or the bound is over.
func (l *lane) retry(ctx context.Context, bound time.Duration, method, path string, body any) answer {
	deadline := time.Now().Add(bound)
	for {
		got := l.call(ctx, method, path, body)
		if got.ok() || got.refused() && got.code() != sandbox.CodeSandboxBusy || time.Now().After(deadline) || !pause(ctx, 300*time.Millisecond) {
			return got
		}
	}
}

// hasty says how long a caller waits that does not wait. Safe for concurrent use.
type hasty struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (h *hasty) next() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Duration(h.rng.Int64N(int64(300 * time.Millisecond)))
}

// pause waits, and tells whether the context goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// within polls until a check finds nothing wrong, and returns what was wrong last.
func within(ctx context.Context, bound time.Duration, check func() string) string {
	deadline := time.Now().Add(bound)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		wrong := check()
		if wrong == "" || time.Now().After(deadline) || !pause(ctx, wait) {
			return wrong
		}
	}
}

// slowness remembers answers that took too long.
type slowness struct {
	mu   sync.Mutex
	late []answer
}

func (s *slowness) note(a answer) {
	if a.took <= requestBound {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late = append(s.late, a)
}

func (s *slowness) take() []answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := s.late
	s.late = nil
	return late
}

// figures are what a process must not gather.
type figures struct {
	memory            int64
	goroutines, files int
}

var goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

// measure reads the gateway's figures.
func (l *lane) measure(ctx context.Context) (figures, error) {
	got := l.call(ctx, http.MethodGet, "/metrics", nil)
	found := goroutines.FindSubmatch(got.raw)
	if found == nil {
		return figures{}, errors.New("no go_goroutines: " + got.String())
	}
	f := figures{}
	f.goroutines, _ = strconv.Atoi(string(found[1]))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.gateway.PID()))
	if err != nil {
		return f, fmt.Errorf("counting the gateway's files: %w", err)
	}
	f.files = len(files)
	f.memory, err = l.gateway.Memory()
	return f, err
}
