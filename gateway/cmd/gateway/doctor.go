package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/config"
	"github.com/agentpod/agentpod/gateway/internal/docker"
	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/webhook"
	"github.com/agentpod/agentpod/gateway/internal/workspace"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/doctor"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
	"github.com/agentpod/agentpod/shared/tracing"
)

const (
	// checkTimeout bounds each check. callTimeout is for each call to the engine,
	// which says more than that the time was up.
	checkTimeout = 20 * time.Second
	callTimeout  = 8 * time.Second
	// tryEvery is how often a container is asked until it answers, and tryTimeout
	// how long it may take each time.
	tryEvery   = 20 * time.Millisecond
	tryTimeout = time.Second
)

// The names of the checks that others need.
const (
	configurationCheck = "configuration"
	dataDirCheck       = "data folder"
	engineCheck        = "engine"
	imageCheck         = "image"
	networkCheck       = "network"
	sandboxCheck       = "sandbox"
	storeCheck         = "store"
)

// examine says for each thing that the gateway needs whether it is there. loadErr
// is what is wrong with the configuration.
func examine(ctx context.Context, cfg config.Config, loadErr error, asJSON bool, stdout, stderr io.Writer) int {
	x := &examination{cfg: cfg}
	var report doctor.Report
	code := 0
	if loadErr != nil {
		report, code = doctor.Failed(configurationCheck, loadErr, x.checks()...), exitUsage
	} else if report = doctor.Run(ctx, checkTimeout, append([]doctor.Check{{Name: configurationCheck, Do: x.configuration}}, x.checks()...)); !report.OK {
		code = exitFailed
	}
	failed := errors.Join(report.Print(stdout, asJSON), x.close(context.WithoutCancel(ctx)))
	if failed != nil {
		_, _ = fmt.Fprintf(stderr, "gateway: %s\n", failed)
		return max(code, exitFailed)
	}
	return code
}

// examination is one look at all that the gateway needs. It changes nothing: what
// it makes to find out, it takes back.
type examination struct {
	cfg   config.Config
	undos []func() // of what is made in the file system

	// What checks leave for those that need them.
	runtime  *docker.Runtime
	facts    docker.Facts
	asked    time.Time // before the facts came
	told     time.Time // and after
	trial    *docker.Trial
	hostAddr string
	direct   bool
	objects  objects
	where    string // the store
}

func (x *examination) checks() []doctor.Check {
	checks := []doctor.Check{
		{Name: dataDirCheck, Do: x.dataDir},
		{Name: "disk", Do: x.disk},
		{Name: engineCheck, Do: x.engine},
		{Name: "limits", Needs: []string{engineCheck}, Do: x.limits},
		{Name: imageCheck, Needs: []string{engineCheck}, Do: x.image},
		{Name: networkCheck, Needs: []string{engineCheck}, Do: x.network},
		{Name: sandboxCheck, Needs: []string{imageCheck, networkCheck}, Do: x.sandbox},
		{Name: storeCheck, Needs: []string{dataDirCheck}, Do: x.store},
		{Name: "sealing key", Needs: []string{storeCheck}, Do: x.sealingKey},
		{Name: "engine's clock", Needs: []string{engineCheck}, Do: x.engineClock},
	}
	if x.cfg.S3Endpoint != "" {
		checks = append(checks, doctor.Check{Name: "store's clock", Needs: []string{storeCheck}, Do: x.storeClock})
	}
	return append(checks,
		doctor.Check{Name: "swap", Needs: []string{engineCheck}, Do: x.swap},
		doctor.Check{Name: "port", Do: x.port},
		doctor.Check{Name: "sandboxes' hosts", Do: x.domain},
		doctor.Check{Name: "default credentials", Do: x.defaultCredentials},
		doctor.Check{Name: "webhooks", Do: x.webhooks},
		doctor.Check{Name: "traces", Do: func(ctx context.Context) (string, error) {
			return tracing.Check(ctx, os.Getenv, service, daemon.Version())
		}},
	)
}

// close takes back what was made.
func (x *examination) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	var errs []error
	if x.trial != nil {
		errs = append(errs, x.trial.Close(ctx))
	}
	if x.runtime != nil {
		x.runtime.Close()
	}
	if x.objects != nil {
		errs = append(errs, x.objects.Close())
	}
	for _, undo := range x.undos {
		undo()
	}
	return errors.Join(errs...)
}

func (x *examination) configuration(context.Context) (string, error) {
	return "every variable has a value that it can have", nil
}

// dataDir looks whether the data folder can be used, and is nobody else's.
func (x *examination) dataDir(ctx context.Context) (string, error) {
	dir := x.cfg.DataDir
	if x.cfg.S3Endpoint == "" {
		x.undos = append(x.undos, doctor.Untouched(storeFolder(x.cfg)))
	} else {
		x.undos = append(x.undos, doctor.Untouched(dir))
	}
	if err := daemon.TryDataDir(dir); err != nil {
		return "", err
	}
	lock, err := takeLock(dir, 0)
	switch {
	case err == nil:
		_ = lock.Close() // nothing was written to it
	case errors.Is(err, unix.EWOULDBLOCK):
		if x.running(ctx) != nil {
			return "", err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	return dir + " can be written", nil
}

func (x *examination) disk(context.Context) (string, error) {
	detail, err := doctor.Disk("DATA_DIR", x.cfg.DataDir)
	if err != nil || x.cfg.S3Endpoint != "" {
		return detail, err
	}
	if _, err := doctor.Disk("the store", storeFolder(x.cfg)); err != nil { // it may be on another disk
		return "", err
	}
	return detail, nil
}

// engine looks whether the engine can be used.
func (x *examination) engine(ctx context.Context) (string, error) {
	id, err := readIfThere(filepath.Join(x.cfg.DataDir, installationFile))
	if err != nil {
		return "", err
	}
	if id != "" {
		id, err = installation(x.cfg.DataDir)
	} else {
		id = strings.ToLower(rand.Text()[:8]) // as one is made at the first start
	}
	if err != nil {
		return "", err
	}
	set := engineSettings(x.cfg, id)
	set.CallTimeout, set.SlowTimeout = callTimeout, callTimeout
	if x.runtime, err = docker.New(set, slog.New(slog.DiscardHandler)); err != nil {
		return "", err
	}
	if _, err := x.runtime.Facts(ctx); err != nil { // connects, too, which takes a while
		return "", err
	}
	x.asked = time.Now()
	x.facts, err = x.runtime.Facts(ctx)
	x.told = time.Now()
	return fmt.Sprintf("%s (API %s) at %s, %d processors", x.facts.Version, x.facts.API, x.facts.Host, x.facts.CPUs), err
}

// readIfThere returns what a small file holds, nothing if there is none.
func readIfThere(path string) (string, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the operator's own path
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return "", fmt.Errorf("reading what DATA_DIR holds; let this user read it: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func (x *examination) limits(context.Context) (string, error) {
	if len(x.facts.Lacks) > 0 {
		return "", fmt.Errorf("the kernel of the engine's host does not enforce the limits of %s, so one sandbox can take what the others need: "+
			"enable these cgroup controllers (docker info has its warnings; for swap, boot with swapaccount=1)", strings.Join(x.facts.Lacks, ", "))
	}
	return "the kernel enforces those of memory, swap, processes and processors", nil
}

func (x *examination) image(ctx context.Context) (string, error) {
	return x.cfg.Image + " is there", x.runtime.Ready(ctx)
}

func (x *examination) network(ctx context.Context) (string, error) {
	x.trial = x.runtime.NewTrial()
	var err error
	x.hostAddr, x.direct, err = x.trial.Network(ctx)
	way := "at ports of the loopback address"
	if x.direct {
		way = "at their own addresses"
	}
	return fmt.Sprintf("sandboxes are reached %s; this host is %s to them", way, x.hostAddr), err
}

// sandbox starts a container as a sandbox has one, and looks whether requests get
// there and back.
func (x *examination) sandbox(ctx context.Context) (string, error) {
	token := rand.Text()
	hash := sha256.Sum256([]byte(token))
	started, warnings, err := x.trial.Start(ctx, map[string]string{guest.TokenHashEnv: hex.EncodeToString(hash[:])})
	if err != nil {
		return "", err
	}
	transport := &http.Transport{ // no proxy, and sandboxd answers to the name of a loopback address only
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, started.GuestAddr)
		},
	}
	client := guest.NewClient(transport, "http://127.0.0.1", token)
	if err := x.await(ctx, started, client); err != nil {
		return "", err
	}
	detail := "a container with a sandbox's limits starts, and answers at " + started.GuestAddr
	switch reached, known := x.reachedFromInside(ctx, client); {
	case known && reached:
		detail += "; it reaches this host, too"
	case known:
		detail += "; it does not reach this host at " + x.hostAddr + " (a firewall), which only a model or repository that is served here needs"
	}
	if len(warnings) > 0 {
		detail += "; the engine warns: " + strings.Join(warnings, ", ")
	}
	return detail, nil
}

// await waits until sandboxd answers in a container.
func (x *examination) await(ctx context.Context, started lifecycle.Container, client *guest.Client) error {
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, min(x.cfg.GuestTimeout, callTimeout))
	defer cancel()
	for {
		tryCtx, done := context.WithTimeout(ctx, tryTimeout)
		_, err := client.OpenCode(tryCtx)
		done()
		if err == nil {
			return nil
		}
		if sandbox.HasCode(err, sandbox.CodeUnauthorized) {
			return fmt.Errorf("something else than the container answers at %s: look for another network with the same addresses (docker network ls, ip route)", started.GuestAddr)
		}
		if now, lookErr := x.trial.Look(ctx); lookErr == nil && now.State == lifecycle.ContainerExited {
			return fmt.Errorf("a container of the image %s ended with exit code %d as it started; if it is the sandbox image, build it anew: make image", x.cfg.Image, now.ExitCode)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			other := docker.ReachPublished
			if !x.direct {
				other = docker.ReachDirect
			}
			return fmt.Errorf("a container runs, and its sandboxd cannot be reached from here at %s: let the firewall pass that, or try SANDBOX_REACH=%s (%s)",
				started.GuestAddr, other, sandbox.Public(err, "no answer").Message)
		}
	}
}

// reachedFromInside tells whether a container can connect to this host, if that
// can be known: the gateway must have the host's address for it.
func (x *examination) reachedFromInside(ctx context.Context, client *guest.Client) (reached, known bool) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(x.hostAddr, "0"))
	if err != nil {
		return false, false
	}
	defer func() { _ = listener.Close() }()
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return false, false
	}
	err = client.Exec(ctx, guest.ExecRequest{
		Command: []string{"bash", "-c", "exec 3<>/dev/tcp/$0/$1", host, port}, TimeoutMs: tryTimeout.Milliseconds(),
	}, func(e guest.ExecEvent) error {
		reached = e.Type == guest.EventExit && e.ExitCode == 0 && !e.TimedOut
		return nil
	})
	return reached, err == nil
}

// store looks whether the store can do what it must, beside a gateway that may be
// using it.
func (x *examination) store(ctx context.Context) (string, error) {
	var err error
	if x.objects, x.where, err = openObjects(x.cfg, store.VisitDirectory); err != nil {
		return "", err
	}
	return x.where + " keeps what is written, under conditions, lists and deletes it", probe(ctx, x.objects, x.where)
}

// sealingKey looks whether what is stored can be opened.
func (x *examination) sealingKey(ctx context.Context) (string, error) {
	current, found, err := x.heldKey()
	if err != nil {
		return "", err
	}
	keys, err := keyring(x.cfg, current)
	if err != nil {
		return "", err
	}
	sealedWith, err := workspace.KeyFits(ctx, keys, x.objects)
	switch {
	case err != nil:
		return "", fmt.Errorf("the store in %s: %w", x.where, err)
	case sealedWith == "" && !found:
		return "the first start makes one; nothing is stored yet", nil
	case sealedWith == "":
		return fmt.Sprintf("%s; nothing is stored yet", keys.KeyID()), nil
	case sealedWith != keys.KeyID():
		return fmt.Sprintf("the next start seals the records with %s instead of %s", keys.KeyID(), sealedWith), nil
	}
	return sealedWith + " opens what is stored", nil
}

// heldKey returns the sealing key, or one that fits nothing, as there will be if
// the gateway starts without one.
func (x *examination) heldKey() (key [seal.KeySize]byte, found bool, err error) {
	if x.cfg.SealingKey == "" {
		if _, err := os.Stat(filepath.Join(x.cfg.DataDir, sealingFile)); errors.Is(err, fs.ErrNotExist) {
			_, _ = rand.Read(key[:]) // never fails: see crypto/rand
			return key, false, nil
		}
	}
	key, err = sealingKey(x.cfg, slog.New(slog.DiscardHandler))
	return key, true, err
}

func (x *examination) engineClock(context.Context) (string, error) {
	at, err := time.Parse(time.RFC3339Nano, x.facts.Time)
	if err != nil {
		return "", fmt.Errorf("the engine at %s does not say its time; upgrade it: %w", x.facts.Host, err)
	}
	return doctor.Clock("the engine", at, x.asked, x.told)
}

func (x *examination) storeClock(ctx context.Context) (string, error) {
	bucket, ok := x.objects.(*store.S3)
	if !ok {
		return "it is this machine's", nil
	}
	before := time.Now()
	at, err := bucket.Clock(ctx)
	if err != nil {
		return "", err
	}
	return doctor.Clock("the S3 server", at, before.Truncate(time.Second), time.Now())
}

func (x *examination) swap(context.Context) (string, error) {
	if x.cfg.ShrinkAfter == 0 {
		return "not needed, as SHRINK_AFTER is 0", nil
	}
	switch free, known := x.runtime.FreeSwap(); {
	case !known:
		return "not known, as the engine is on another machine; there sandboxes are not shrunk", nil
	case free == 0:
		return "none is free, so sandboxes that are frozen keep their memory; add some (some 600 MB a sandbox), or set SHRINK_AFTER=0", nil
	default:
		return fmt.Sprintf("%d MiB are free for sandboxes that are shrunk", free>>20), nil
	}
}

func (x *examination) defaultCredentials(context.Context) (string, error) {
	providers := x.cfg.Defaults.Credentials()
	if len(providers) == 0 {
		return "none: sandboxes have the keys that they are given", nil
	}
	return "", doctor.WarningError(fmt.Sprintf("every sandbox has the gateway's keys of %s, and its user can read them with one GET of /sandbox/ID/opencode/provider: "+
		"so can every user who signs up at an API in front of this gateway, unless its SIGN_UP is off", strings.Join(providers, ", ")))
}

func (x *examination) port(ctx context.Context) (string, error) {
	return doctor.Port(ctx, "GATEWAY_ADDR", x.cfg.Addr, x.running)
}

// running returns nil if the gateway of this configuration serves: it knows the token.
func (x *examination) running(ctx context.Context) error {
	token := x.cfg.Token
	if token == "" {
		var err error
		if token, err = readIfThere(filepath.Join(x.cfg.DataDir, tokenFile)); err != nil {
			return err
		}
	}
	cfg := x.cfg
	cfg.PublicURL = ""
	client, err := sandbox.NewGateway(sandbox.ClientSettings{
		BaseURL: cfg.Public(cfg.Addr).String(), Token: token, Deadlines: sandbox.Deadlines{Probe: tryTimeout, Look: 2 * tryTimeout},
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close(ctx) }()
	if err := client.Health(ctx); err != nil {
		return err
	}
	_, err = client.List(ctx, sandbox.ListOptions{Limit: 1})
	return err
}

func (x *examination) domain(ctx context.Context) (string, error) {
	domain := x.cfg.Domain()
	switch {
	case domain == "":
		return "off, so there is no web UI", nil
	case domain == "localhost", strings.HasSuffix(domain, ".localhost"):
		return "browsers find *." + domain + " by themselves, on this machine", nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	name := "doctor-" + strings.ToLower(rand.Text()[:8]) + "." + domain
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return "", fmt.Errorf("SANDBOX_DOMAIN %s: %s has no address: make a DNS record *.%s that points to the gateway, or to the proxy in front of it, or set SANDBOX_DOMAIN=off (%w)", domain, name, domain, err)
	}
	return fmt.Sprintf("*.%s is %s", domain, strings.Join(addrs, ", ")), nil
}

func (x *examination) webhooks(ctx context.Context) (string, error) {
	switch url, token := x.cfg.APIURL, x.cfg.APIToken; {
	case url == "" && token == "":
		return "off, as AGENTPOD_API_URL is not set", nil
	case url == "":
		return "", errors.New("AGENTPOD_API_TOKEN is set and AGENTPOD_API_URL is not, so none are sent: set both, such as AGENTPOD_API_URL=http://127.0.0.1:3001, or neither")
	case token == "":
		return "", errors.New("AGENTPOD_API_URL is set and AGENTPOD_API_TOKEN is not, so none are sent: set both (the API's WEBHOOK_TOKEN_DOCKER is the same), or neither")
	}
	sender, err := webhook.New(webhook.Settings{URL: x.cfg.APIURL, Token: x.cfg.APIToken}, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", fmt.Errorf("webhooks: %w", err)
	}
	if err := sender.Close(ctx); err != nil {
		return "", fmt.Errorf("webhooks: %w", err)
	}
	return x.apiClock(ctx)
}

// apiClock compares the API's clock, as webhooks are refused if it is far off. An
// API that does not run yet is no fault.
func (x *examination) apiClock(ctx context.Context) (string, error) {
	goesTo := "they go to " + x.cfg.APIURL
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimSuffix(x.cfg.APIURL, "/")+"/health", nil)
	if err != nil {
		return "", fmt.Errorf("webhooks: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	before := time.Now().Truncate(time.Second)
	resp, err := client.Do(req)
	if err != nil {
		return goesTo + ", where nothing answers yet", nil // it may be started later
	}
	defer resp.Body.Close()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return goesTo + ", which does not say its time", nil // a proxy may have taken it out
	}
	if _, err := doctor.Clock("the API", at, before, time.Now()); err != nil {
		return "", err
	}
	return goesTo, nil
}

// apiTimeout bounds how long the API may take to say its time.
const apiTimeout = 5 * time.Second
