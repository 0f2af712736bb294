package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/workspace"
	"github.com/agentpod/agentpod/shared/benchreport"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

// BenchmarkRecords is about a gateway that knows many sandboxes, all of them
// archived: how long it takes to start, and what memory it needs.
func BenchmarkRecords(b *testing.B) {
	r := newStubRig(b)
	ready0, idle0 := r.boots(benchreport.Few(3))
	had := 0
	defer func() {
		// One after the other through the API would take longer than all the rest.
		if err := r.stop(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(r.dir, "store", "sandboxes")); err != nil {
			b.Fatal(err)
		}
	}()
	for _, n := range []int{1000, 10_000} {
		if err := r.stop(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		r.record(had, n)
		had = n
		if err := r.gateway.run(); err != nil {
			b.Fatal(err)
		}
		ready, idle := r.boots(benchreport.Few(3))
		readyRow := benchreport.Row{
			Name: fmt.Sprintf("start with %d records until it is ready", n), Unit: "s", Samples: ready,
			Baseline: benchreport.Against("start without records", ready0), Aim: benchreport.AtMost("max", 1),
		}
		memoryRow := benchreport.Row{
			Name: fmt.Sprintf("gateway's memory (VmRSS) with %d records, 3 s after that", n), Unit: "MB", Samples: idle,
			Baseline: benchreport.Against("without records", idle0), Aim: benchreport.AtMost("max", 60),
		}
		report.Add(b, readyRow, memoryRow)
	}
}

// boots starts the gateway anew, so many times, and returns how long each start
// took until /readyz said so, in s, and what it had resident a while later, in MB.
func (r *rig) boots(times int) (ready, resident []float64) {
	r.b.Helper()
	for range times {
		if err := r.stop(syscall.SIGTERM); err != nil {
			r.b.Fatal(err)
		}
		began := time.Now()
		if err := r.gateway.run(); err != nil {
			r.b.Fatal(err)
		}
		r.ask(http.MethodGet, "/readyz", nil)
		ready = append(ready, time.Since(began).Seconds())
		<-time.After(3 * time.Second)
		resident = append(resident, r.resident())
	}
	return ready, resident
}

// record writes the records of the sandboxes number from to number to, as a
// gateway does, into the store of one that does not run.
func (r *rig) record(from, to int) {
	r.b.Helper()
	folder, err := store.OpenDirectory(filepath.Join(r.dir, "store"))
	if err != nil {
		r.b.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	key, _, err := seal.LoadOrMakeKey(filepath.Join(r.dir, "sealing.key"))
	if err != nil {
		r.b.Fatal(err)
	}
	keyring, err := seal.NewKeyring(key)
	if err != nil {
		r.b.Fatal(err)
	}
	records := workspace.NewRecords(folder, keyring)
	now := time.Now().UTC()
	group, ctx := errgroup.WithContext(r.b.Context())
	group.SetLimit(32)
	for i := from; i < to; i++ {
		group.Go(func() error {
			_, err := records.Create(ctx, lifecycle.Record{
				SandboxID: fmt.Sprintf("recorded-%d", i), UserID: fmt.Sprintf("user_%d", i%100), Incarnation: fmt.Sprintf("%032x", i),
				Phase: lifecycle.PhaseReady, CreatedAt: now, LastActiveAt: now, Directory: "/home/user/workspace", GitURL: "https://example.com/some/repository.git",
				Volume: fmt.Sprintf("agentpod-%s-recorded-%d-0", r.installation(), i), Tier: sandbox.TierArchived, Version: "1.18.33",
				Snapshot: &lifecycle.Snapshot{ID: fmt.Sprintf("%016x", i), CreatedAt: now, Files: 1000, Bytes: 10_000_000},
				Secrets:  lifecycle.Secrets{Token: strings.Repeat("t", 52), Password: strings.Repeat("p", 52), Config: json.RawMessage(`{"config":{"model":"anthropic/claude"}}`)},
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		r.b.Fatal(err)
	}
}

// BenchmarkMemory is about what a sandbox needs in each tier, beside OpenCode
// alone in a container. Of one that is stopped or archived there is no process.
func BenchmarkMemory(b *testing.B) {
	g, err := launch(awake...)
	if err != nil {
		b.Fatal(err)
	}
	r := ownRig(b, g, nil)
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	var fresh, used, frozen, alone, aloneUsed []float64
	for i := range benchreport.Few(2) {
		base := r.runAlone(ctx, b, "alone")
		alone = append(alone, memoryOf(ctx, b, base.name))
		base.firstAnswer(ctx, b)
		aloneUsed = append(aloneUsed, memoryOf(ctx, b, base.name))
		base.remove()

		id := fmt.Sprint("dense-", i)
		r.make(id)
		fresh = append(fresh, memoryOf(ctx, b, r.container(id)))
		r.post("/sandbox/"+id+"/message", object{"message": "hello"})
		used = append(used, memoryOf(ctx, b, r.container(id)))
		r.sleep(id, "frozen")
		frozen = append(frozen, memoryOf(ctx, b, r.container(id)))
		r.drop(id)
	}
	row := func(name string, samples []float64, base string, of []float64) benchreport.Row {
		return benchreport.Row{Name: "memory of a sandbox, " + name, Unit: "MB", Samples: samples, Baseline: benchreport.Against(base, of)}
	}
	const unused, afterOne = "OpenCode alone in a container, not used yet", "OpenCode alone in a container, after a message"
	report.Add(b,
		row("running, not used yet", fresh, unused, alone),
		row("running, after a message", used, afterOne, aloneUsed),
		row("frozen after a message", frozen, afterOne, aloneUsed),
	)
}

// firstAnswer has OpenCode answer a message in a new session.
func (a *alone) firstAnswer(ctx context.Context, b *testing.B) {
	b.Helper()
	var session struct{ ID string }
	if err := json.Unmarshal(direct(ctx, b, a.url+"/session", `{}`), &session); err != nil {
		b.Fatal(err)
	}
	if body := direct(ctx, b, a.url+"/session/"+session.ID+"/message", `{"parts":[{"type":"text","text":"hello"}]}`); !strings.Contains(string(body), "echo: hello") {
		b.Fatalf("%s", body)
	}
}

// memoryOf is what a container's processes need in MB, as its cgroup counts it: what the page
// cache has of files is not in it.
func memoryOf(ctx context.Context, b *testing.B, container string) float64 {
	b.Helper()
	raw := engineSays(ctx, b, http.MethodGet, "/containers/"+container+"/stats?stream=false&one-shot=true", http.StatusOK)
	var stats struct {
		Memory struct {
			Stats map[string]float64
		} `json:"memory_stats"`
	}
	if err := json.Unmarshal(raw, &stats); err != nil {
		b.Fatal(err)
	}
	of := stats.Memory.Stats
	bytes := cmp.Or(of["total_rss"]+of["total_shmem"], of["anon"]+of["shmem"]) // cgroup 1 and 2
	if bytes == 0 {
		b.Fatalf("the engine does not say what a container needs: %s", raw)
	}
	return bytes / 1e6
}
