package e2e

import (
	"cmp"
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

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/benchreport"
)

// rig is a gateway whose store is a bucket of an S3 server of the benchmark's
// own, and what the benchmarks of storage need around it.
type rig struct {
	*gateway
	b      *testing.B
	server *storetest.Server
}

func newRig(b *testing.B) *rig {
	b.Helper()
	version, err := exec.CommandContext(b.Context(), "rclone", "version").Output()
	if err != nil {
		b.Fatalf("this needs rclone: %v", err)
	}
	line, _, _ := strings.Cut(string(version), "\n")
	report.With(line)
	server := storetest.StartServer(b, storetest.ServerOptions{})
	g, err := launch(
		"S3_ENDPOINT="+server.Endpoint, "S3_BUCKET="+server.Bucket, "S3_REGION=us-east-1", "S3_PREFIX=gateway/",
		"S3_ACCESS_KEY_ID="+server.AccessKey, "S3_SECRET_ACCESS_KEY="+server.SecretKey,
		"SEALING_KEY="+strings.Repeat("5c", 32),
		noPool, "FREEZE_AFTER=0", "STOP_AFTER=0", "ARCHIVE_AFTER=0", // nothing sleeps but when it is told to
	)
	if err != nil {
		b.Fatal(err)
	}
	return ownRig(b, g, server)
}

// ownRig takes a gateway over, and destroys it with the benchmark.
func ownRig(b *testing.B, g *gateway, server *storetest.Server) *rig {
	b.Helper()
	b.Cleanup(func() {
		if err := g.destroy(); err != nil {
			b.Error(err)
		}
		if b.Failed() {
			b.Logf("gateway's log:\n%s", g.log())
		}
	})
	return &rig{gateway: g, b: b, server: server}
}

// ask sends a request, any answer to which but 200 fails the benchmark, and
// returns how long it took until the whole answer was there.
func (r *rig) ask(method, path string, body any) ([]byte, time.Duration) {
	r.b.Helper()
	ctx, cancel := context.WithTimeout(r.b.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	status, raw, err := r.do(ctx, method, path, body)
	took := time.Since(began)
	if err != nil || status != http.StatusOK {
		r.b.Fatalf("%s %s: %d %s %v", method, path, status, raw, err)
	}
	return raw, took
}

func (r *rig) post(path string, body any) time.Duration {
	r.b.Helper()
	_, took := r.ask(http.MethodPost, path, body)
	return took
}

func (r *rig) make(id string) {
	r.b.Helper()
	r.post("/sandbox", object{"id": id, "userId": "bench"})
}

func (r *rig) drop(id string) {
	r.b.Helper()
	r.ask(http.MethodDelete, "/sandbox/"+id, nil)
}

func (r *rig) sleep(id, tier string) time.Duration {
	r.b.Helper()
	return r.post("/sandbox/"+id+"/hibernate", object{"tier": tier})
}

// run runs a command in the workspace and returns what it printed.
func (r *rig) run(id string, command ...string) string {
	r.b.Helper()
	raw, _ := r.ask(http.MethodPost, "/sandbox/"+id+"/exec", object{"command": command})
	var got struct {
		ExitCode       int
		Stdout, Stderr string
	}
	if err := json.Unmarshal(raw, &got); err != nil || got.ExitCode != 0 {
		r.b.Fatalf("%.100q: %s %v", command, raw, err)
	}
	return got.Stdout
}

// logged is a line of the gateway's log.
type logged struct {
	Time      time.Time
	Msg       string
	SandboxID string
	Sent      int64 // bytes, of "snapshot taken"
}

// since returns the lines of the log about a sandbox that were written after a
// moment, with that message.
func (r *rig) since(moment time.Time, id, msg string) []logged {
	var found []logged
	for line := range strings.Lines(r.log()) {
		var l logged
		if strings.Contains(line, msg) && json.Unmarshal([]byte(line), &l) == nil &&
			l.Msg == msg && l.SandboxID == id && l.Time.After(moment) {
			found = append(found, l)
		}
	}
	return found
}

// await waits for such a line.
func (r *rig) await(moment time.Time, id, msg string) logged {
	r.b.Helper()
	deadline := time.NewTimer(10 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if found := r.since(moment, id, msg); len(found) > 0 {
			return found[0]
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			r.b.Fatalf("the gateway did not log %q", msg)
		}
	}
}

// kept is one sync and the snapshot that follows it.
type kept struct {
	sync     time.Duration // as its caller sees it
	snapshot time.Duration // from the sync's reply until the gateway says that all is stored
	sent     int64         // bytes of the snapshot that went to the store
}

// keep has a sandbox synced and stored, as after every turn. The caller sees to
// it that nothing of it is under way.
func (r *rig) keep(id string) kept {
	r.b.Helper()
	took := r.post("/sandbox/"+id+"/sync", nil)
	replied := time.Now()
	k := kept{sync: took, snapshot: r.await(replied, id, "stored").Time.Sub(replied)}
	for _, taken := range r.since(replied, id, "snapshot taken") {
		k.sent += taken.Sent
	}
	return k
}

// settle keeps a sandbox until there is nothing left to send: a file that was
// written just before is read once more.
func (r *rig) settle(id string) {
	r.b.Helper()
	for range 20 {
		if r.keep(id).sent == 0 {
			return
		}
	}
	r.b.Fatalf("the sandbox %s does not come to rest", id)
}

// fetch copies a folder of a sandbox's workspace to a folder of its own here.
func (r *rig) fetch(id, folder string) string {
	r.b.Helper()
	to := r.b.TempDir()
	out, err := exec.CommandContext(r.b.Context(), "docker", "cp", r.container(id)+":/home/user/workspace/"+folder, to).CombinedOutput() //nolint:gosec // the benchmark's own names
	if err != nil {
		r.b.Fatalf("docker cp: %v %s", err, out)
	}
	return filepath.Join(to, filepath.Base(folder))
}

// rclone makes `to` equal to `from`, either of which begins with "bench:" if it is in
// the bucket, and returns how long that took. More transfers than rclone's own 4
// at once are asked for if transfers is not 0.
func (r *rig) rclone(from, to string, transfers int) time.Duration {
	r.b.Helper()
	args := []string{"sync", "--links", "--s3-no-check-bucket", from, to}
	if transfers > 0 {
		args = append(args, "--transfers", strconv.Itoa(transfers), "--checkers", strconv.Itoa(transfers))
	}
	cmd := exec.CommandContext(r.b.Context(), "rclone", args...) //nolint:gosec // the benchmark's own names
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "RCLONE_CONFIG=" + filepath.Join(r.dir, "rclone.conf"),
		"RCLONE_CONFIG_BENCH_TYPE=s3", "RCLONE_CONFIG_BENCH_PROVIDER=Other", "RCLONE_CONFIG_BENCH_REGION=us-east-1",
		"RCLONE_CONFIG_BENCH_ENDPOINT=" + r.server.Endpoint, "RCLONE_CONFIG_BENCH_FORCE_PATH_STYLE=true",
		"RCLONE_CONFIG_BENCH_ACCESS_KEY_ID=" + r.server.AccessKey, "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY=" + r.server.SecretKey,
	}
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		r.b.Fatalf("rclone %s %s: %v\n%s", from, to, err, out)
	}
	return time.Since(began)
}

// place is a folder of the bucket as rclone names it, beside the gateway's own.
func (r *rig) place(folder string) string { return "bench:" + r.server.Bucket + "/rclone/" + folder }

// transfers are the ways in which rclone is asked: with its default, and with as
// many at once as still make it faster.
//
//nolint:gochecknoglobals // a constant
var transfers = []struct {
	name   string
	atOnce int
}{{"rclone sync", 0}, {"rclone sync --transfers 32", 32}}

// smallFiles is a Python program that makes as many files of about 1 kB as its
// argument says, 100 a folder, under "small". What was changed in the second
// before a sync is sent by the next one again, so it lets that second pass.
const smallFiles = `
import os, random, sys, time
rng = random.Random(11)
for i in range(int(sys.argv[1])):
    if i % 100 == 0: os.makedirs(f'small/d{i // 100}')
    with open(f'small/d{i // 100}/f{i}.txt', 'w') as f: f.write(rng.randbytes(200 + i % 600).hex())
time.sleep(1.1)
`

// BenchmarkFirstSync is about the mirror of a workspace that has none yet.
func BenchmarkFirstSync(b *testing.B) {
	const files, times = 1105, 3
	r := newRig(b)
	var synced []time.Duration
	base := make([][]time.Duration, len(transfers))
	for i := range benchreport.Few(times) {
		id := fmt.Sprint("first-", i)
		r.make(id)
		r.run(id, "python3", "-c", smallFiles, strconv.Itoa(files))
		synced = append(synced, r.keep(id).sync)
		tree := r.fetch(id, "small")
		for way, with := range transfers {
			base[way] = append(base[way], r.rclone(tree, r.place(fmt.Sprint(id, "-", way)), with.atOnce))
		}
		r.drop(id)
	}
	for way, with := range transfers {
		report.Add(b, benchreport.Row{
			Name: fmt.Sprintf("first sync of %d small files", files), Unit: "s", Samples: benchreport.Seconds(synced...),
			Baseline: benchreport.Against(with.name, benchreport.Seconds(base[way]...)),
			Note:     "the contract says about 0.1 s a file of the worker, which would be 110 s",
		})
	}
}

// BenchmarkUnchanged is about a sync and a snapshot that find nothing to do.
func BenchmarkUnchanged(b *testing.B) {
	for _, of := range []struct {
		files, times int
		aim          float64 // s
	}{{10_000, 20, 0.3}, {100_000, 5, 2}} {
		if of.files > 10_000 && !benchreport.Full() {
			continue
		}
		b.Run(strconv.Itoa(of.files), func(b *testing.B) {
			r := newRig(b)
			r.make("still")
			r.run("still", "python3", "-c", smallFiles, strconv.Itoa(of.files))
			r.settle("still")
			var syncs, snapshots, listings []time.Duration
			for range benchreport.Few(of.times) {
				k := r.keep("still")
				if k.sent > 0 {
					b.Fatalf("a snapshot of an unchanged sandbox sent %d bytes", k.sent)
				}
				syncs, snapshots = append(syncs, k.sync), append(snapshots, k.snapshot)
				began := time.Now()
				if out, err := docker("exec", r.container("still"), "find", "/home/user", "-fprintf", "/dev/null", `%p %y %m %s %T@ %C@ %i %l\n`); err != nil {
					b.Fatal(out)
				}
				listings = append(listings, time.Since(began))
			}
			r.run("still", "rm", "-r", "small") // the engine has less time for it than it may need
			base := benchreport.Against("docker exec find with as much of each file", benchreport.Seconds(listings...))
			report.Add(b,
				benchreport.Row{
					Name: fmt.Sprintf("unchanged sync of %d files", of.files), Unit: "s", Samples: benchreport.Seconds(syncs...),
					Baseline: base, Aim: benchreport.AtMost("p50", of.aim),
				},
				benchreport.Row{
					Name: fmt.Sprintf("unchanged snapshot of %d files", of.files), Unit: "s", Samples: benchreport.Seconds(snapshots...),
					Baseline: base, Aim: benchreport.AtMost("p50", of.aim),
				},
			)
		})
	}
}

// BenchmarkWholeWorkspace is about a workspace as people have them: its first
// snapshot, its hibernation, and its wake on what may be another host.
//
// A file system can be slow to make files just after many were removed (ext4 does not
// use an inode again at once, and looks for another). So nothing is removed before the
// uploads, and what a wake has to bear, for the volume has just been removed, rclone
// has to bear as well: a tree of that size is removed before it restores one.
func BenchmarkWholeWorkspace(b *testing.B) {
	const times, wakes = 2, 5
	r := newRig(b)
	var snapshots, hibernations []time.Duration
	var trees []string
	up, down := make([][]time.Duration, len(transfers)), make([][]time.Duration, len(transfers))
	for i := range benchreport.Few(times) {
		id := fmt.Sprint("first-", i)
		r.make(id)
		r.run(id, "python3", "-c", realSize)
		snapshots = append(snapshots, r.keep(id).snapshot)
		trees = append(trees, r.fetch(id, "."))
		for way, with := range transfers {
			up[way] = append(up[way], r.rclone(trees[i], r.place(fmt.Sprint(id, "-", way)), with.atOnce))
		}
	}
	for i, tree := range trees {
		for way, with := range transfers {
			if err := os.RemoveAll(tree); err != nil {
				b.Fatal(err)
			}
			tree = b.TempDir()
			down[way] = append(down[way], r.rclone(r.place(fmt.Sprint("first-", i, "-", way)), tree, with.atOnce))
		}
	}
	for i := range benchreport.Few(times) {
		id := fmt.Sprint("whole-", i)
		r.make(id)
		r.run(id, "python3", "-c", realSize)
		hibernations = append(hibernations, r.sleep(id, "archived"))
	}
	w := r.wakes("whole-0", "archived", benchreport.Few(wakes))
	for way, with := range transfers {
		to, from := benchreport.Against(with.name+" up", benchreport.Seconds(up[way]...)), benchreport.Against(with.name+" down", benchreport.Seconds(down[way]...))
		third := benchreport.AtMost("ratio", 1.0/3)
		report.Add(b,
			benchreport.Row{Name: "first snapshot of 20 000 files", Unit: "s", Samples: benchreport.Seconds(snapshots...), Baseline: to, Aim: third},
			benchreport.Row{Name: "first hibernation of 20 000 files, archived", Unit: "s", Samples: benchreport.Seconds(hibernations...), Baseline: to},
			benchreport.Row{
				Name: "restore of 20 000 files", Unit: "s", Samples: benchreport.Seconds(w.restored...), Baseline: from, Aim: third,
				Note: "from the request until the last file is there, with the container's start",
			},
			benchreport.Row{Name: "wake with 20 000 files from archived, until the answer", Unit: "s", Samples: benchreport.Seconds(w.answered...), Baseline: from},
		)
	}
	report.Add(b, w.row("wake with 20 000 files from archived", "docker run until OpenCode is ready"))
}

// lastFile is a Python program that prints when, in seconds since 1970, the file
// changed last that changed last; .git is OpenCode's to write in as well.
const lastFile = `
import os
last = 0
for path, folders, files in os.walk('.'):
    if path == '.': folders.remove('.git')
    for name in files: last = max(last, os.lstat(os.path.join(path, name)).st_ctime)
print(last)
`

// woken is what wakes took, beside their baseline.
type woken struct {
	answered []time.Duration // from a GET that finds the sandbox asleep until its answer
	restored []time.Duration // from then until the last file was there; of archived only
	base     []time.Duration
}

func (w woken) row(name, base string) benchreport.Row {
	return benchreport.Row{
		Name: name + ", until the answer", Unit: "ms", Samples: benchreport.Milliseconds(w.answered...),
		Baseline: benchreport.Against(base+", then the same GET", benchreport.Milliseconds(w.base...)), Aim: benchreport.AtMost("ratio", 1.15),
	}
}

// wakes measures wakes by a small GET, in turn with what they stand on: the engine
// and OpenCode, and the same GET sent to it directly.
func (r *rig) wakes(id, tier string, times int) (w woken) {
	r.b.Helper()
	ctx, cancel := context.WithTimeout(r.b.Context(), 10*time.Minute)
	defer cancel()
	const get = "/session"
	base := r.runAlone(ctx, r.b, "alone")
	defer func() { base.remove() }()
	r.direct(ctx, base.url+get)
	for range times {
		began := time.Now()
		switch tier {
		case "frozen":
			engine(ctx, r.b, base.name, "pause")
			began = time.Now()
			engine(ctx, r.b, base.name, "unpause")
		case "stopped":
			engine(ctx, r.b, base.name, "stop?t=0")
			began = time.Now()
			engine(ctx, r.b, base.name, "start")
			base.ready(ctx, r.b)
		case "archived":
			base.remove()
			began = time.Now()
			base = r.runAlone(ctx, r.b, "alone")
		}
		r.direct(ctx, base.url+get)
		w.base = append(w.base, time.Since(began))

		r.sleep(id, tier)
		began = time.Now()
		_, took := r.ask(http.MethodGet, "/sandbox/"+id+"/opencode"+get, nil)
		w.answered = append(w.answered, took)
		if tier == "archived" {
			last, err := strconv.ParseFloat(strings.TrimSpace(r.run(id, "python3", "-c", lastFile)), 64)
			if err != nil {
				r.b.Fatal(err)
			}
			w.restored = append(w.restored, time.Duration(last*float64(time.Second))-time.Duration(began.UnixNano()))
		}
	}
	return w
}

// direct sends a GET to OpenCode itself, over a connection that is kept.
func (r *rig) direct(ctx context.Context, url string) {
	r.b.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		r.b.Fatal(err)
	}
	req.SetBasicAuth("opencode", "pw")
	resp, err := client.Do(req)
	if err != nil {
		r.b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if raw, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		r.b.Fatalf("GET %s: %d %s %v", url, resp.StatusCode, raw, err)
	}
}

// engine has the engine do something with a container.
func engine(ctx context.Context, b *testing.B, container, action string) {
	b.Helper()
	engineSays(ctx, b, http.MethodPost, "/containers/"+container+"/"+action, http.StatusNoContent)
}

// engineSays asks the engine through its API: the command line adds the start of a
// process to what it does.
func engineSays(ctx context.Context, b *testing.B, method, path string, want int) []byte {
	b.Helper()
	network, address, _ := strings.Cut(cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"), "://")
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		b.Fatalf("%s %s: %d %s %v", method, path, resp.StatusCode, raw, err)
	}
	return raw
}

// BenchmarkWake is about the first answer of a sandbox that slept. That of an
// archived one is BenchmarkWholeWorkspace's.
func BenchmarkWake(b *testing.B) {
	r := newRig(b)
	r.make("sleeper")
	r.settle("sleeper")
	frozen := r.wakes("sleeper", "frozen", benchreport.Few(20)).row("wake from frozen", "the engine's unpause")
	frozen.Aim = benchreport.AtMost("ratio", 1.3)
	report.Add(b, frozen, r.wakes("sleeper", "stopped", benchreport.Few(5)).row("wake from stopped", "the engine's start until OpenCode is ready"))
}

// twoGB is a Python program that makes 2 GB of files under "build": two of 500 MB,
// forty of 12.5 MB and 50 000 of 10 kB, of random bytes, which do not get smaller.
const twoGB = `
import os
def put(path, size):
    with open(path, 'wb') as f:
        while size > 0: size -= f.write(os.urandom(min(size, 1 << 20)))
os.makedirs('build/large'); os.makedirs('build/medium')
for i in range(2): put(f'build/large/{i}', 500_000_000)
for i in range(40): put(f'build/medium/{i}', 12_500_000)
for i in range(50_000):
    if i % 500 == 0: os.makedirs(f'build/small/d{i // 500}')
    put(f'build/small/d{i // 500}/{i}', 10_000)
`

// BenchmarkPeakMemory is about what the gateway needs for a large workspace. Each
// figure is of a process that has done nothing before.
func BenchmarkPeakMemory(b *testing.B) {
	r := newRig(b)
	r.make("large")
	r.run("large", "python3", "-c", twoGB)
	measure := func(name, folder string) {
		r.again()
		r.run("large", "true") // it is looked for, and found running
		before := r.peak()
		took := r.sleep("large", "stopped")
		after := r.peak()
		b.Logf("%s: %s", name, took)
		if size := r.stored(folder + "/large"); size < 2e9 {
			b.Fatalf("%s: only %d bytes are in %s", name, size, folder)
		}
		report.Add(b, benchreport.Row{
			Name: "gateway's peak memory (VmHWM), " + name, Unit: "MB", Samples: []float64{after},
			Baseline: benchreport.Against("the same process before that", []float64{before}), Aim: benchreport.AtMost("max", 150),
		})
	}
	measure("first snapshot of 2 GB", "snapshots") // what is called build is not in the mirror
	if benchreport.Full() {
		r.run("large", "mv", "build", "data")
		measure("first sync of 2 GB, and a snapshot that reads them again", "workspaces")
	}
}

// stored is how many bytes are in a folder of the gateway's in the bucket.
func (r *rig) stored(folder string) (size int64) {
	r.b.Helper()
	err := filepath.WalkDir(filepath.Join(r.server.Folder, "gateway", folder), func(_ string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		r.b.Fatal(err)
	}
	return size
}

// again starts the gateway anew.
func (r *rig) again() {
	r.b.Helper()
	err := r.stop(syscall.SIGTERM)
	if err == nil {
		err = r.gateway.run()
	}
	if err != nil {
		r.b.Fatal(err)
	}
}

// peak is the most memory that the gateway's process ever had resident, in MB.
func (r *rig) peak() float64 {
	r.b.Helper()
	bytes, err := r.PeakMemory()
	if err != nil {
		r.b.Fatal(err)
	}
	return float64(bytes) / 1e6
}
