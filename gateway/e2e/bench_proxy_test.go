package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/benchreport"
	"github.com/agentpod/agentpod/shared/processtest"
)

// noPool has a gateway make every sandbox when it is asked for.
const noPool = "POOL_SIZE=0"

// awake has a gateway leave its sandboxes alone.
//
//nolint:gochecknoglobals // a constant
var awake = []string{noPool, "FREEZE_AFTER=0", "STOP_AFTER=0", "ARCHIVE_AFTER=0"}

// newStubRig is a gateway whose sandboxes have a stub in OpenCode's place, with
// the settings that it has by default.
func newStubRig(b *testing.B) *rig {
	b.Helper()
	g, err := launch(append([]string{"SANDBOX_IMAGE=" + stubImage(b, "./testdata/stubbackend"), "DEFAULT_CONFIG={}", "LOG_LEVEL=info"}, awake...)...)
	if err != nil {
		b.Fatal(err)
	}
	return ownRig(b, g, nil)
}

// backend is how OpenCode's place in a sandbox is reached without the gateway.
func (r *rig) backend(id string) endpoint {
	r.b.Helper()
	address, err := docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", r.container(id))
	if err != nil {
		r.b.Fatal(address)
	}
	return endpoint{name: "the backend itself", addr: address + ":4096"}
}

// through is how it is reached through the gateway.
func (r *rig) through(id string) endpoint {
	return endpoint{
		name: "gateway", addr: r.Addr, prefix: "/sandbox/" + id + "/opencode", header: "Authorization: Bearer " + r.token + "\r\n", pid: r.PID(),
	}
}

// others are proxies that people know, in front of the same backend: as many
// connections kept, no logs, nothing spooled to a disk.
func others(b *testing.B, backend endpoint) []endpoint {
	b.Helper()
	dir := b.TempDir()
	config := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	caddy, nginx := freeAddr(b), freeAddr(b)
	caddyfile := config("Caddyfile", fmt.Sprintf(`{
	admin off
	auto_https off
	log {
		output discard
	}
}
http://%s {
	bind 127.0.0.1
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns 1024
			keepalive_idle_conns_per_host 1024
		}
	}
}
`, caddy, backend.addr))
	nginxConf := config("nginx.conf", fmt.Sprintf(`
daemon off;
user root;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log /dev/null crit;
events { worker_connections 8192; }
http {
	access_log off;
	keepalive_timeout 600;
	keepalive_requests 1000000000;
	client_max_body_size 0;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	proxy_http_version 1.1;
	proxy_set_header Connection "";
	proxy_max_temp_file_size 0;
	proxy_buffers 16 32k;
	proxy_request_buffering off;
	upstream backend {
		server %[3]s;
		keepalive 1024;
		keepalive_requests 1000000000;
	}
	server {
		listen %[2]s;
		location / { proxy_pass http://backend; }
		location /event { proxy_pass http://backend; proxy_buffering off; }
	}
}
`, dir, nginx, backend.addr))
	caddyPID := background(b, dir, caddy, "caddy", "run", "--adapter", "caddyfile", "--config", caddyfile)
	nginxPID := background(b, dir, nginx, "nginx", "-p", dir, "-e", "/dev/null", "-c", nginxConf)
	report.With(version(b, "Caddy ", "caddy", "version"))
	report.With(version(b, "", "nginx", "-v"))
	return []endpoint{{name: "Caddy", addr: caddy, pid: caddyPID}, {name: "nginx", addr: nginx, pid: nginxPID}}
}

func version(b *testing.B, before string, command ...string) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), command[0], command[1:]...).CombinedOutput() //nolint:gosec // our own
	if err != nil {
		b.Fatalf("this needs %s: %v", command[0], err)
	}
	line, _, _ := strings.Cut(strings.TrimPrefix(string(out), "nginx version: "), "\n")
	return before + strings.TrimSpace(line)
}

// freeAddr is an address at which nobody listens now.
func freeAddr(b *testing.B) string {
	b.Helper()
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// background runs a server until the benchmark ends, and returns its number once it
// listens.
func background(b *testing.B, home, addr string, command ...string) (pid int) {
	b.Helper()
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec,noctx // our own, ended below
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "AGENTPOD_TEST_RUN=" + os.Getenv("AGENTPOD_TEST_RUN")}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		w, err := endpoint{addr: addr}.dial(ctx)
		if err == nil {
			_ = w.Close()
			return cmd.Process.Pid
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatalf("%s does not listen: %v", command[0], err)
		}
	}
}

// turns calls do for every endpoint, so many times, each time beginning with another.
func turns(times int, ways []endpoint, do func(way int)) {
	for i := range times {
		for j := range ways {
			do((i + j) % len(ways))
		}
	}
}

// The order in which BenchmarkProxy has its endpoints.
const (
	direct0 = iota
	gateway0
	caddy0
	nginx0
)

// BenchmarkProxy is about what the gateway adds to a request, beside two proxies
// that do less. The backend is a stub in a sandbox. All four ways take turns.
func BenchmarkProxy(b *testing.B) {
	r := newStubRig(b)
	r.make("stub")
	backend := r.backend("stub")
	ways := append([]endpoint{backend, r.through("stub")}, others(b, backend)...)
	b.Run("Rate", func(b *testing.B) { proxyAtRate(b, ways, r) })
	b.Run("Saturation", func(b *testing.B) { proxySaturated(b, ways, r) })
	b.Run("Transfer", func(b *testing.B) { proxyTransfers(b, ways, r) })
	b.Run("FirstByte", func(b *testing.B) { proxyFirstByte(b, ways, r) })
}

// pools opens as many connections to each.
func pools(b *testing.B, ways []endpoint, n int) []*pool {
	b.Helper()
	all := make([]*pool, len(ways))
	for i, way := range ways {
		p, err := way.open(b.Context(), n, "/bench/small")
		b.Cleanup(p.close)
		if err != nil {
			b.Fatalf("%s: %v", way.name, err)
		}
		all[i] = p
	}
	return all
}

// beside makes rows of the proxies, each with the backend itself as its baseline.
func beside(name, unit string, ways []endpoint, samples [][]float64, aim *benchreport.Aim) []benchreport.Row {
	var rows []benchreport.Row
	for i := gateway0; i < len(ways); i++ {
		row := benchreport.Row{
			Name: name + ", " + ways[i].name, Unit: unit, Samples: samples[i],
			Baseline: benchreport.Against(ways[direct0].name, samples[direct0]),
		}
		if i == gateway0 {
			row.Aim = aim
		}
		rows = append(rows, row)
	}
	return rows
}

func proxyAtRate(b *testing.B, ways []endpoint, r *rig) {
	const perSecond, wires, lasting = 1000, 16, 2 * time.Second
	all := pools(b, ways, wires)
	samples := make([][]float64, len(ways))
	turns(benchreport.Few(5), ways, func(way int) {
		if way == gateway0 {
			defer r.profile("rate", lasting)()
		}
		took, err := all[way].atRate(perSecond, lasting)
		if err != nil {
			b.Fatalf("%s: %v", ways[way].name, err)
		}
		samples[way] = append(samples[way], benchreport.Milliseconds(took...)...)
	})
	aim := benchreport.Both(benchreport.AtMost("added p50", 0.3), benchreport.AtMost("added p99", 2))
	report.Add(b, beside(fmt.Sprintf("small GET, %d a second", perSecond), "ms", ways, samples, aim)...)
}

func proxySaturated(b *testing.B, ways []endpoint, r *rig) {
	const wires, lasting = 64, 2 * time.Second
	all := pools(b, ways, wires)
	samples, cost := make([][]float64, len(ways)), make([][]float64, len(ways))
	used := func(way endpoint) time.Duration {
		if way.pid == 0 {
			return 0
		}
		all, err := processtest.CPUTime(way.pid)
		if err != nil {
			b.Fatal(err)
		}
		return all
	}
	turns(benchreport.Few(5), ways, func(way int) {
		if way == gateway0 {
			defer r.profile("saturation", lasting)()
		}
		before := used(ways[way])
		requests, rate, err := all[way].saturate(lasting)
		if err != nil {
			b.Fatalf("%s: %v", ways[way].name, err)
		}
		samples[way] = append(samples[way], rate)
		cost[way] = append(cost[way], float64((used(ways[way])-before).Microseconds())/requests)
	})
	name := fmt.Sprintf("small GETs of %d connections, one after the other", wires)
	row := func(of, than int, aim *benchreport.Aim) benchreport.Row {
		return benchreport.Row{
			Name: name + ", " + ways[of].name, Unit: "req/s", Samples: samples[of],
			Baseline: benchreport.Against(ways[than].name, samples[than]), Aim: aim,
		}
	}
	report.Add(b,
		row(gateway0, caddy0, benchreport.AtLeast("ratio", 1)), row(gateway0, nginx0, benchreport.AtLeast("ratio", 0.6)),
		// A backend that is not faster than every proxy would be what is measured.
		row(direct0, nginx0, benchreport.AtLeast("ratio", 1)), row(direct0, caddy0, benchreport.AtLeast("ratio", 1)),
	)
	for _, than := range []int{caddy0, nginx0} {
		report.Add(b, benchreport.Row{
			Name: "processor time for one of them, gateway", Unit: "µs", Samples: cost[gateway0],
			Baseline: benchreport.Against(ways[than].name, cost[than]),
		})
	}
}

// transferSize is how much a transfer carries, in bytes.
const transferSize = 10_000_000

func proxyTransfers(b *testing.B, ways []endpoint, r *rig) {
	for _, kind := range []struct{ name, method, path, profile string }{
		{"10 MB down", http.MethodGet, "/bench/down", "down"}, {"10 MB up", http.MethodPost, "/bench/up", "up"},
	} {
		body := 0
		if kind.method == http.MethodPost {
			body = transferSize
		}
		wires, requests, samples := make([]*wire, len(ways)), make([][]byte, len(ways)), make([][]float64, len(ways))
		for i, way := range ways {
			w, err := way.dial(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			wires[i], requests[i] = w, way.request(kind.method, kind.path, body)
			if err := w.exchange(requests[i]); err != nil { // once, to have every connection
				b.Fatalf("%s: %v", way.name, err)
			}
		}
		stop := r.profile(kind.profile, 3*time.Second)
		turns(benchreport.Few(40), ways, func(way int) {
			rate, err := wires[way].transfer(requests[way], transferSize)
			if err != nil {
				b.Fatalf("%s: %v", ways[way].name, err)
			}
			samples[way] = append(samples[way], rate)
		})
		stop()
		for _, w := range wires {
			_ = w.Close()
		}
		report.Add(b, beside(kind.name, "MB/s", ways, samples, benchreport.AtLeast("ratio", 0.9))...)
	}
}

func proxyFirstByte(b *testing.B, ways []endpoint, r *rig) {
	samples := make([][]float64, len(ways))
	defer r.profile("firstbyte", time.Second)()
	turns(benchreport.Few(100), ways, func(way int) {
		took, err := ways[way].firstByte(b.Context(), "/event")
		if err != nil {
			b.Fatalf("%s: %v", ways[way].name, err)
		}
		samples[way] = append(samples[way], benchreport.Milliseconds(took)...)
	})
	report.Add(b, beside("first byte of an event stream", "ms", ways, samples, benchreport.AtMost("added p50", 1))...)
}

// profile keeps what the gateway does in the next seconds, if the run is to have
// profiles. What it returns waits for that.
func (r *rig) profile(name string, lasting time.Duration) (stop func()) {
	folder := os.Getenv(benchreport.ProfileEnv)
	if folder == "" {
		return func() {}
	}
	var addr string
	for line := range strings.Lines(r.log()) {
		var l struct{ Msg, Addr string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "profiles are served" {
			addr = l.Addr
		}
	}
	keep := func(kind, path string) {
		req, err := http.NewRequestWithContext(r.b.Context(), http.MethodGet, "http://"+addr+"/debug/pprof/"+path, nil)
		if err != nil {
			r.b.Error(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			r.b.Error(err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		raw, err := io.ReadAll(resp.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name+"."+kind), raw, 0o600)
		}
		if err != nil {
			r.b.Error(err)
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		keep("cpu", fmt.Sprintf("profile?seconds=%d", int(lasting.Seconds())))
		keep("heap", "heap?gc=1")
		keep("memory", "heap?debug=1")
		keep("goroutines", "goroutine?debug=1")
	})
	return func() {
		all.Wait()
		keep("allocs", "allocs")
	}
}

// BenchmarkEventStreams is about many event streams at once: what is lost, what
// comes twice and how late, and what the gateway needs for it.
func BenchmarkEventStreams(b *testing.B) {
	const sandboxes, streams, every = 4, 1000, 200 // ms between two events of a stream
	lasting := 20 * time.Second
	if benchreport.Full() {
		lasting = time.Minute
	}
	r := newStubRig(b)
	var backends, gateways []endpoint
	for i := range sandboxes {
		id := fmt.Sprint("stub-", i)
		r.make(id)
		backends, gateways = append(backends, r.backend(id)), append(gateways, r.through(id))
	}
	count := int(lasting.Milliseconds() / every)
	before := r.resident()
	base, _ := r.streams(backends, streams, count, every)
	stop := r.profile("events", lasting/2)
	came, most := r.streams(gateways, streams, count, every)
	stop()
	name := fmt.Sprintf("%d event streams in %d sandboxes for %s", streams, sandboxes, lasting)
	report.Add(b,
		benchreport.Row{
			Name: name + ", from an event's writing to its reading", Unit: "ms", Samples: came.delays,
			Baseline: benchreport.Against("the backends themselves", base.delays), Note: fmt.Sprintf("every %dth event", sampleEvery),
		},
		benchreport.Row{
			Name: "… events lost or doubled", Unit: "events", Samples: []float64{float64(came.bad)},
			Baseline: benchreport.Against("events of all streams", []float64{float64(streams * count)}), Aim: benchreport.AtMost("max", 0),
		},
		benchreport.Row{
			Name: "… events more than 1 s late", Unit: "events", Samples: []float64{float64(came.late)},
			Baseline: benchreport.Against("events of all streams", []float64{float64(streams * count)}), Aim: benchreport.AtMost("max", 0),
		},
		benchreport.Row{
			Name: "… gateway's memory (VmRSS), the most", Unit: "MB", Samples: []float64{most},
			Baseline: benchreport.Against("the same process before that", []float64{before}), Aim: benchreport.AtMost("max", 100),
		},
	)
}

// sampleEvery is of how many delays one is kept.
const sampleEvery = 10

// outcome is what came of many streams.
type outcome struct {
	delays    []float64 // ms, one of sampleEvery
	bad, late int
}

// streams has so many streams at once, and returns with what came of them the
// most memory that the gateway had resident meanwhile, in MB.
func (r *rig) streams(ways []endpoint, n, count, every int) (all outcome, most float64) {
	r.b.Helper()
	ctx, cancel := context.WithCancel(r.b.Context())
	var watch, reading sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, r.resident())
			case <-ctx.Done():
				return
			}
		}
	})
	var mu sync.Mutex
	var failed failure
	opening := make(chan struct{}, 64)
	for i := range n {
		way := ways[i%len(ways)]
		reading.Go(func() {
			opening <- struct{}{}
			w, err := way.dial(ctx)
			if err == nil {
				_, err = w.Write(way.request("GET", fmt.Sprintf("/event?count=%d&every=%d", count, every), 0))
			}
			if err == nil {
				_, err = w.r.Peek(1)
			}
			<-opening
			if err != nil {
				failed.note(err)
				return
			}
			defer func() { _ = w.Close() }()
			s, err := w.follow(count)
			failed.note(err)
			mu.Lock()
			defer mu.Unlock()
			all.bad += s.lost + s.twice
			for i, delay := range s.delays {
				if delay > time.Second {
					all.late++
				}
				if i%sampleEvery == 0 {
					all.delays = append(all.delays, float64(delay.Microseconds())/1000)
				}
			}
		})
	}
	reading.Wait()
	cancel()
	watch.Wait()
	if err := failed.err(); err != nil {
		r.b.Fatal(err)
	}
	return all, most
}

// resident is what the gateway's process has resident, in MB.
func (r *rig) resident() float64 {
	r.b.Helper()
	bytes, err := r.Memory()
	if err != nil {
		r.b.Error(err)
	}
	return float64(bytes) / 1e6
}
