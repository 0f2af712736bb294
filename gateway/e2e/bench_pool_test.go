package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/shared/benchreport"
)

// How many sandboxes BenchmarkPool makes from the pool, and of each kind that takes
// seconds; of these fewer where not everything is to be measured.
const (
	poolCreates     = 10
	poolSlowCreates = 3
)

// BenchmarkPool measures creates that take a container of the pool, until their
// reply and until the first answer, against creates that boot one and against
// later messages. All are taken in turn.
func BenchmarkPool(b *testing.B) {
	g, err := launch("POOL_SIZE=1")
	if err != nil {
		b.Fatal(err)
	}
	cold, err := launch()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		for _, g := range []*gateway{g, cold} {
			if err := g.destroy(); err != nil {
				b.Error(err)
			}
		}
	}()
	var reply, answer, later, own, git, coldReply, coldAnswer, coldGit []time.Duration
	slow := poolSlowCreates
	if benchreport.Full() {
		slow = poolCreates
	}
	for i := range benchreport.Few(poolCreates) {
		g.pooled(b)
		began := time.Now()
		id := g.benchCreate(b, fmt.Sprint("pool-", i), object{})
		reply = append(reply, time.Since(began))
		g.benchMessage(b, id)
		answer = append(answer, time.Since(began))
		for range 3 {
			began := time.Now()
			g.benchMessage(b, id)
			later = append(later, time.Since(began))
		}
		g.benchDelete(b, id)
		if i >= slow {
			continue
		}

		g.pooled(b)
		began = time.Now()
		id = g.benchCreate(b, fmt.Sprint("own-", i), object{"config": object{"agents_md": "Be brief.", "username": "somebody"}})
		g.benchMessage(b, id)
		own = append(own, time.Since(began))
		g.benchDelete(b, id)

		g.pooled(b)
		git = append(git, g.benchFirst(b, fmt.Sprint("git-", i), object{"gitUrl": g.git.URL()}))
		coldGit = append(coldGit, cold.benchFirst(b, fmt.Sprint("git-", i), object{"gitUrl": cold.git.URL()}))
		r, a := cold.coldCreate(b, i)
		coldReply, coldAnswer = append(coldReply, r), append(coldAnswer, a)
	}
	const name = "create from the pool until "
	row := func(what string, samples []time.Duration, aim *benchreport.Aim, base string, of []time.Duration) benchreport.Row {
		return benchreport.Row{
			Name: name + what, Unit: "s", Samples: benchreport.Seconds(samples...), Aim: aim,
			Baseline: benchreport.Against(base, benchreport.Seconds(of...)),
		}
	}
	report.Add(b,
		row("its reply", reply, benchreport.Both(benchreport.AtMost("p50", 0.060), benchreport.AtMost("p95", 0.200)), "cold create until its reply", coldReply),
		row("the first answer", answer, benchreport.AtMost("ratio", 1.2), "a later message", later),
		row("the first answer, with a config of its own", own, benchreport.AtMost("ratio", 0.5), "cold create until the first answer", coldAnswer),
		row("the first answer, with a clone", git, nil, "cold create with a clone until the first answer", coldGit),
	)
}

// benchFirst is how long a new sandbox takes until its first answer.
func (g *gateway) benchFirst(b *testing.B, id string, more object) time.Duration {
	b.Helper()
	began := time.Now()
	g.benchCreate(b, id, more)
	g.benchMessage(b, id)
	took := time.Since(began)
	g.benchDelete(b, id)
	return took
}

// BenchmarkPoolAtOnce measures creates that come at once, from a pool that has one
// for each, against as many that boot.
func BenchmarkPoolAtOnce(b *testing.B) {
	for _, n := range []int{5, 20} {
		if n > 5 && !benchreport.Full() {
			continue
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			// A stub in OpenCode's place: what is measured is the gateway's and the engine's.
			stub := []string{"SANDBOX_IMAGE=" + stubImage(b, "./testdata/stubopencode"), "DEFAULT_CONFIG={}", "MAX_RUNNING=0", "BOOT_CONCURRENCY=20"}
			g, err := launch(append([]string{fmt.Sprint("POOL_SIZE=", n)}, stub...)...)
			if err != nil {
				b.Fatal(err)
			}
			ownRig(b, g, nil)
			cold, err := launch(append([]string{noPool}, stub...)...)
			if err != nil {
				b.Fatal(err)
			}
			ownRig(b, cold, nil)
			g.allPooled(b, n)
			pool, boots := g.atOnce(b, n), cold.atOnce(b, n)
			report.Add(b, benchreport.Row{
				Name: fmt.Sprintf("%d creates at once from the pool, each until its reply (stub)", n), Unit: "s", Samples: pool,
				Baseline: benchreport.Against("as many cold ones", boots),
			})
		})
	}
}

// atOnce makes sandboxes at once and returns how long each took.
func (g *gateway) atOnce(b *testing.B, n int) []float64 {
	b.Helper()
	took := make([]time.Duration, n)
	var group errgroup.Group
	for i := range n {
		group.Go(func() error {
			began := time.Now()
			status, body, err := g.do(b.Context(), http.MethodPost, "/sandbox", object{"id": fmt.Sprint("at-once-", i), "userId": "bench"})
			took[i] = time.Since(began)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	for i := range n {
		g.benchDelete(b, fmt.Sprint("at-once-", i))
	}
	return benchreport.Seconds(took...)
}

// BenchmarkShrunk is about a frozen sandbox whose memory is in swap: what it keeps,
// and its wake with a first message against OpenCode's boot with its first.
func BenchmarkShrunk(b *testing.B) {
	g, err := launch(append([]string{"SHRINK_AFTER=1s"}, awake...)...)
	if err != nil {
		b.Fatal(err)
	}
	r := ownRig(b, g, nil)
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	var before, after []float64
	var wake, boot []time.Duration
	for i := range benchreport.Few(3) {
		_, answered := g.coldBaseline(b, i)
		boot = append(boot, answered)
		id := fmt.Sprint("shrunk-", i)
		r.make(id)
		g.benchMessage(b, id)
		before = append(before, memoryOf(ctx, b, r.container(id)))
		slept := time.Now()
		r.sleep(id, "frozen")
		r.await(slept, id, "shrunk")
		after = append(after, memoryOf(ctx, b, r.container(id)))
		began := time.Now()
		g.benchMessage(b, id)
		wake = append(wake, time.Since(began))
		r.drop(id)
	}
	report.Add(b,
		benchreport.Row{
			Name: "memory of a sandbox, frozen and shrunk", Unit: "MB", Samples: after, Aim: benchreport.AtMost("max", 40),
			Baseline: benchreport.Against("the same sandbox before it was frozen", before),
		},
		benchreport.Row{
			Name: "wake of a shrunk sandbox until its first answer", Unit: "s", Samples: benchreport.Seconds(wake...), Aim: benchreport.AtMost("ratio", 0.6),
			Baseline: benchreport.Against("docker run until OpenCode's own first answer", benchreport.Seconds(boot...)),
		},
	)
}

func (g *gateway) benchCreate(b *testing.B, id string, more object) string {
	b.Helper()
	body := object{"id": id, "userId": "bench"}
	maps.Copy(body, more)
	g.benchCall(b, http.MethodPost, "/sandbox", body, "")
	return id
}

func (g *gateway) benchMessage(b *testing.B, id string) {
	b.Helper()
	g.benchCall(b, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello"}, "echo: hello")
}

func (g *gateway) benchDelete(b *testing.B, id string) {
	b.Helper()
	g.benchCall(b, http.MethodDelete, "/sandbox/"+id, nil, "")
}

func (g *gateway) benchCall(b *testing.B, method, path string, body any, says string) {
	b.Helper()
	if status, reply, err := g.do(b.Context(), method, path, body); err != nil || status != http.StatusOK || !strings.Contains(string(reply), says) {
		b.Fatalf("%s %s: %d %s %v", method, path, status, reply, err)
	}
}
