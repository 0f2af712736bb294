package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/benchreport"
)

// report is what all benchmarks of a run have measured.
//
//nolint:gochecknoglobals // filled by the benchmarks, written by TestMain
var report benchreport.Report

// benching tells whether figures are wanted, and so programs without the race
// detector.
func benching() bool { return os.Getenv(benchreport.DirEnv) != "" }

// databases are what an API is measured on: a name, and what makes its
// environment.
//
//nolint:gochecknoglobals // a constant
var databases = []struct {
	name string
	env  func(*testing.B) []string
}{
	{"SQLite", func(*testing.B) []string { return nil }},
	{"Postgres", func(b *testing.B) []string { return []string{"DATABASE_URL=" + postgres.URL(b), encryptionKey} }},
}

// benchGateway gives a benchmark a gateway of its own, in which nothing falls
// asleep.
func benchGateway(b *testing.B) *gateway {
	b.Helper()
	g, err := newGateway("FREEZE_AFTER=0", "STOP_AFTER=0", "ARCHIVE_AFTER=0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := g.destroy(); err != nil {
			b.Error(err)
		}
		if b.Failed() {
			b.Logf("the gateway's log:\n%s", tail(g.Log()))
		}
	})
	return g
}

// call sends a request that has to have the status 200, and returns how long it
// took until the whole answer was there.
func (c *caller) call(b *testing.B, method, path string, body, into any) time.Duration {
	b.Helper()
	began := time.Now()
	c.must(b, method, path, body, http.StatusOK, into)
	return time.Since(began)
}

// warm makes a sandbox that has answered once.
func (c *caller) warm(b *testing.B) string {
	b.Helper()
	var made struct{ SandboxID string }
	c.call(b, http.MethodPost, "/api/v2/agents/task", object{"message": "hello"}, &made)
	return made.SandboxID
}

// inTurn measures several ways to do the same, each of which is as often the first
// of a round as the others.
func inTurn(times int, ways ...func() time.Duration) [][]time.Duration {
	took := make([][]time.Duration, len(ways))
	for round := range times {
		for i := range ways {
			way := (round + i) % len(ways)
			took[way] = append(took[way], ways[way]())
		}
	}
	return took
}

// minus are the differences within each round.
func minus(a, b []time.Duration) []time.Duration {
	differences := make([]time.Duration, len(a))
	for i := range a {
		differences[i] = a[i] - b[i]
	}
	return differences
}

// addedAim is how many milliseconds the API may add to a message.
const addedAim = 5

// BenchmarkAdded compares a message, and a request that costs OpenCode next to
// nothing, through the API with the same sent to the gateway itself, to the same warm
// sandbox.
func BenchmarkAdded(b *testing.B) {
	const messages, reads = 100, 500
	for _, database := range databases {
		b.Run(database.name, func(b *testing.B) {
			g := benchGateway(b)
			direct, c := g.caller(), newAPI(b, g, database.env(b)...).admin(b)
			id := c.warm(b)
			outside, inside := "/api/v2/sandboxes/"+id+"/opencode", "/sandbox/"+id+"/opencode"
			session := func() string {
				var made struct{ ID string }
				direct.call(b, http.MethodPost, inside+"/session", object{"title": "bench"}, &made)
				return made.ID
			}
			hello := object{"parts": []object{{"type": "text", "text": "hello"}}}
			ofGateway, ofAPI, ofMessage := session(), session(), session()
			ways := []func() time.Duration{
				func() time.Duration {
					return direct.call(b, http.MethodPost, inside+"/session/"+ofGateway+"/message", hello, nil)
				},
				func() time.Duration {
					return c.call(b, http.MethodPost, outside+"/session/"+ofAPI+"/message", hello, nil)
				},
				func() time.Duration {
					return direct.call(b, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello", "sessionId": ofMessage}, nil)
				},
				func() time.Duration {
					return direct.call(b, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello"}, nil)
				},
				func() time.Duration {
					return c.call(b, http.MethodPost, "/api/v2/agents/task", object{"message": "hello", "sandboxId": id}, nil)
				},
			}
			inTurn(3, ways...) // connections, and code that has run before
			took := inTurn(benchreport.Few(messages), ways...)
			small := inTurn(benchreport.Few(reads),
				func() time.Duration { return direct.call(b, http.MethodGet, inside+"/session/"+ofGateway, nil, nil) },
				func() time.Duration { return c.call(b, http.MethodGet, outside+"/session/"+ofGateway, nil, nil) },
			)
			row := func(name string, samples, base []time.Duration, against string, aim *benchreport.Aim) {
				report.Add(b, benchreport.Row{
					Name: name, Note: database.name, Unit: "ms", Samples: benchreport.Milliseconds(samples...),
					Baseline: benchreport.Against(against, benchreport.Milliseconds(base...)), Aim: aim,
				})
			}
			const proxied = "the gateway's own /opencode"
			row("GET of a session through the API", small[1], small[0], proxied, nil)
			row("… what the API adds", minus(small[1], small[0]), small[0], proxied, benchreport.AtMost("p99", addedAim))
			row("message through the API's proxy", took[1], took[0], proxied, nil)
			row("… what the API adds", minus(took[1], took[0]), took[0], proxied, benchreport.AtMost("p50", addedAim))
			row("message in a session", took[2], took[0], proxied, nil)
			row("task in a warm sandbox", took[4], took[3], "the gateway's /message, which begins a session too", nil)
			row("… what the API adds", minus(took[4], took[3]), took[3], "the gateway's /message, which begins a session too", nil)
		})
	}
}

// follows is one reader's stream of a task.
type follows struct {
	events      []event
	first, took time.Duration // to the first chunk, and to the end
}

// watched counts the events of streams that a reader did not get, or got twice: in
// the stream, as the task's log has them, and as its text.
func (c *caller) watched(b *testing.B, f follows, want string) (wrong int) {
	b.Helper()
	if len(f.events) == 0 {
		return 1
	}
	id, _ := f.events[0].Data["taskId"].(string)
	for i, e := range f.events {
		if e.ID != strconv.Itoa(i+1) {
			wrong++
		}
	}
	var kept []string
	for _, e := range c.stream(b, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, "", nil) {
		kept = append(kept, e.ID+" "+e.Type)
	}
	for i, e := range f.events {
		if i >= len(kept) || kept[i] != e.ID+" "+e.Type {
			wrong++
		}
	}
	wrong += max(0, len(kept)-len(f.events))
	ended := c.final(b, id, time.Minute)
	last := f.events[len(f.events)-1]
	if got := texts(f.events); last.Type != "done" || got != ended.Response || got != want || ended.Status != "completed" {
		b.Logf("task %s is %s (%s) and ends with %+v; the stream's text is %q, the task's %q, want %q", id, ended.Status, ended.Error, last, got, ended.Response, want)
		wrong++
	}
	return wrong
}

// BenchmarkStreams has many readers follow a task of their own each, all at the same
// time, beside the same messages sent to the gateway itself.
func BenchmarkStreams(b *testing.B) {
	const streams, boxes = 200, 4
	for _, database := range databases {
		b.Run(database.name, func(b *testing.B) {
			g := benchGateway(b)
			a := newAPI(b, g, database.env(b)...)
			direct, c := g.caller(), a.admin(b)
			var ids []string
			for range boxes {
				ids = append(ids, c.warm(b))
			}
			rest := float64(peak(b, a))
			say := func(i int) string { return fmt.Sprintf("say stream %d begins\nchunks 20 50ms", i) }

			answers, single := make([]string, streams), make([]time.Duration, streams)
			base := together(streams, func(i int) {
				var reply struct{ Response string }
				single[i] = direct.call(b, http.MethodPost, "/sandbox/"+ids[i%boxes]+"/message", object{"message": say(i)}, &reply)
				answers[i] = reply.Response
			})
			if b.Failed() {
				b.FailNow()
			}

			all := make([]follows, streams)
			heap := c.watchHeap(b)
			wall := together(streams, func(i int) {
				began := time.Now()
				f := &all[i]
				f.events = c.stream(b, http.MethodPost, streamPath, object{"message": say(i), "sandboxId": ids[i%boxes]}, "", func(e event) bool {
					if e.Type == "chunk" && f.first == 0 {
						f.first = time.Since(began)
					}
					return false
				})
				f.took = time.Since(began)
			})
			most := heap()
			if b.Failed() {
				b.FailNow()
			}
			wrong, events := 0, 0
			var ends, firsts []time.Duration
			for i, f := range all {
				if n := c.watched(b, f, answers[i]); n > 0 || !strings.Contains(answers[i], fmt.Sprintf("stream %d begins", i)) {
					wrong += max(n, 1)
				}
				events += len(f.events)
				ends, firsts = append(ends, f.took), append(firsts, f.first)
			}
			name := fmt.Sprintf("%d task streams at once in %d sandboxes, ", streams, boxes)
			const same = "the gateway alone, the same messages"
			report.Add(b,
				benchreport.Row{
					Name: name + "until the last has ended", Note: database.name, Unit: "s", Samples: benchreport.Seconds(wall),
					Baseline: benchreport.Against(same, benchreport.Seconds(base)),
				},
				benchreport.Row{
					Name: name + "each until its end", Note: database.name, Unit: "s", Samples: benchreport.Seconds(ends...),
					Baseline: benchreport.Against(same, benchreport.Seconds(single...)),
				},
				benchreport.Row{
					Name: name + "each until its first text", Note: database.name, Unit: "s", Samples: benchreport.Seconds(firsts...),
					Baseline: benchreport.Against("each until its end", benchreport.Seconds(ends...)),
				},
				benchreport.Row{
					Name: name + "events lost, doubled or wrong", Note: database.name, Unit: "events", Samples: []float64{float64(wrong)},
					Baseline: benchreport.Against("events of all streams", []float64{float64(events)}), Aim: benchreport.AtMost("max", 0),
				},
				benchreport.Row{
					Name: name + "API's peak memory (VmHWM)", Note: database.name, Unit: "MB", Samples: []float64{float64(peak(b, a)) / 1e6},
					Baseline: benchreport.Against("the same process before that", []float64{rest / 1e6}),
				},
				benchreport.Row{
					Name: name + "API's largest heap in use", Note: database.name, Unit: "MB", Samples: []float64{slices.Max(most) / 1e6},
					Baseline: benchreport.Against("the same process before that", most[:1]),
				},
			)
		})
	}
}

// together does something n times at once, and returns how long all of it took.
func together(n int, do func(i int)) time.Duration {
	var group sync.WaitGroup
	began := time.Now()
	for i := range n {
		group.Go(func() { do(i) })
	}
	group.Wait()
	return time.Since(began)
}

func peak(b *testing.B, a *api) int64 {
	b.Helper()
	bytes, err := a.PeakMemory()
	if err != nil {
		b.Fatal(err)
	}
	return bytes
}

// heapEvery is how often an API is asked for its heap.
const heapEvery = 200 * time.Millisecond

// watchHeap asks an API for its heap until what it returns is called, which gives
// all answers, in bytes. The first is of before.
func (c *caller) watchHeap(b *testing.B) func() []float64 {
	b.Helper()
	seen := []float64{c.heap(b)}
	ctx, cancel := context.WithCancel(b.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		tick := time.NewTicker(heapEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				seen = append(seen, c.heap(b))
			case <-ctx.Done():
				return
			}
		}
	})
	return func() []float64 {
		cancel()
		reading.Wait()
		return seen
	}
}

func (c *caller) heap(b *testing.B) float64 {
	b.Helper()
	var page string
	if status, err := c.send(b.Context(), http.MethodGet, "/metrics", nil, &page); err != nil || status != http.StatusOK {
		b.Errorf("reading the API's figures: %d %v", status, err)
		return 0
	}
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "go_memstats_heap_inuse_bytes "); ok {
			bytes, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				b.Error(err)
			}
			return bytes
		}
	}
	b.Error("the API does not tell its heap")
	return 0
}

// BenchmarkTeam compares a team's time with that of its slowest agent: in the same
// team, and alone with the same message.
func BenchmarkTeam(b *testing.B) {
	const times = 3
	c := newAPI(b, benchGateway(b)).admin(b)
	var agents []object
	for i, chunks := range []int{4, 20, 8, 12, 16} {
		agents = append(agents, object{"role": strconv.Itoa(i), "message": fmt.Sprintf("chunks %d 500ms", chunks)})
	}
	const slowest = 1
	var teams, within, alone, sums []time.Duration
	for range benchreport.Few(times) {
		var one struct{ SandboxID string }
		alone = append(alone, c.call(b, http.MethodPost, "/api/v2/agents/task", object{"message": agents[slowest]["message"]}, &one))
		c.call(b, http.MethodDelete, "/api/v2/sandboxes/"+one.SandboxID, nil, nil)

		var team struct {
			Agents []struct{ Role, SandboxID, Response, Error string }
		}
		teams = append(teams, c.call(b, http.MethodPost, "/api/v2/agents/team", object{"agents": agents}, &team))
		var list struct {
			Tasks []struct{ CreatedAt, CompletedAt time.Time }
		}
		c.call(b, http.MethodGet, fmt.Sprint("/api/v2/agents/tasks?limit=", len(agents)), nil, &list)
		var longest, sum time.Duration
		for i, t := range list.Tasks {
			if team.Agents[i].Error != "" || team.Agents[i].Response == "" {
				b.Fatalf("an agent failed: %+v", team.Agents[i])
			}
			took := t.CompletedAt.Sub(t.CreatedAt)
			longest, sum = max(longest, took), sum+took
			c.call(b, http.MethodDelete, "/api/v2/sandboxes/"+team.Agents[i].SandboxID, nil, nil)
		}
		within, sums = append(within, longest), append(sums, sum)
	}
	for _, base := range []struct {
		name string
		took []time.Duration
	}{{"its slowest agent, of the same team", within}, {"the slowest agent's message as a task alone", alone}, {"its agents one after another", sums}} {
		report.Add(b, benchreport.Row{
			Name: fmt.Sprintf("team of %d with new sandboxes", len(agents)), Unit: "s", Samples: benchreport.Seconds(teams...),
			Baseline: benchreport.Against(base.name, benchreport.Seconds(base.took...)),
		})
	}
}
