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
	"github.com/agentpod/agentpod/shared/processtest"
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
	{"Postgres", func(b *testing.B) []string {
		return []string{"DATABASE_URL=" + postgres.URL(b), encryptionKey, "API_SECRET=" + apiSecret}
	}},
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
			a := newAPI(b, g, database.env(b)...)
			direct, c := g.caller(), a.admin(b)
			id := c.warm(b)
			inside, outside := "/sandbox/"+id+"/opencode/session", "/api/v2/sandboxes/"+id+"/opencode/session"
			session := func() string {
				var made struct{ ID string }
				direct.call(b, http.MethodPost, inside, object{"title": "bench"}, &made)
				return "/" + made.ID
			}
			one, other := session(), session()
			hello := object{"parts": []object{{"type": "text", "text": "hello"}}}
			compare := func(times int, name, against string, aim *benchreport.Aim, base, way func() time.Duration) {
				inTurn(5, base, way) // connections, and code that has not run before
				took := inTurn(benchreport.Few(times), base, way)
				report.Add(b, benchreport.Row{
					Name: name, Note: database.name, Unit: "ms", Samples: benchreport.Milliseconds(took[1]...),
					Baseline: benchreport.Against(against, benchreport.Milliseconds(took[0]...)), Aim: aim,
				})
			}
			const proxied = "the gateway's own /opencode"
			before, gatewayBefore := cpu(b, &a.Process), cpu(b, &g.Process)
			compare(reads, "GET of a session through the API", proxied, benchreport.AtMost("added", addedAim),
				func() time.Duration { return direct.call(b, http.MethodGet, inside+one, nil, nil) },
				func() time.Duration { return c.call(b, http.MethodGet, outside+one, nil, nil) })
			each := func(all time.Duration, times int) []float64 {
				return benchreport.Milliseconds(all / time.Duration(times))
			}
			times := benchreport.Few(reads) + 5
			report.Add(b, benchreport.Row{
				Name: "API's processor time for such a GET", Note: database.name, Unit: "ms", Samples: each(cpu(b, &a.Process)-before, times),
				Baseline: benchreport.Against("the gateway's", each(cpu(b, &g.Process)-gatewayBefore, 2*times)),
			})
			compare(messages, "message through the API's proxy", proxied, benchreport.AtMost("added", addedAim),
				func() time.Duration { return direct.call(b, http.MethodPost, inside+one+"/message", hello, nil) },
				func() time.Duration { return c.call(b, http.MethodPost, outside+other+"/message", hello, nil) })
			compare(messages, "task in a warm sandbox", "the gateway's /message, in a new session too", nil,
				func() time.Duration {
					return direct.call(b, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello"}, nil)
				},
				func() time.Duration {
					return c.call(b, http.MethodPost, "/api/v2/agents/task", object{"message": "hello", "sandboxId": id}, nil)
				})
		})
	}
}

// follows is one reader's stream of a task.
type follows struct {
	events      []event
	first, took time.Duration // to the first chunk, and to the end
}

// wrong counts the events of a stream that its reader did not get, or got twice: by
// their ids, as the task's log has them, and as its text.
func (c *caller) wrong(b *testing.B, f follows, want string) (n int) {
	b.Helper()
	if len(f.events) == 0 {
		return 1
	}
	id, _ := f.events[0].Data["taskId"].(string)
	for i, e := range f.events {
		if e.ID != strconv.Itoa(i+1) {
			n++
		}
	}
	var kept []string
	for _, e := range c.stream(b, http.MethodGet, "/api/v2/agents/task/"+id+"/stream", nil, "", nil) {
		kept = append(kept, e.ID+" "+e.Type)
	}
	for i, e := range f.events {
		if i >= len(kept) || kept[i] != e.ID+" "+e.Type {
			n++
		}
	}
	n += max(0, len(kept)-len(f.events))
	ended := c.final(b, id, time.Minute)
	last := f.events[len(f.events)-1]
	if got := texts(f.events); last.Type != "done" || got != ended.Response || got != want || ended.Status != "completed" {
		b.Logf("task %s is %s (%s) and ends with %+v; the stream's text is %q, the task's %q, want %q", id, ended.Status, ended.Error, last, got, ended.Response, want)
		n++
	}
	return n
}

// BenchmarkStreams has many readers follow a task of their own each, all at the same
// time, beside the same messages sent to the gateway itself: turns that are as short
// as OpenCode allows, and turns that write for longer.
func BenchmarkStreams(b *testing.B) {
	for _, database := range databases {
		b.Run(database.name, func(b *testing.B) {
			g := benchGateway(b)
			a := newAPI(b, g, database.env(b)...)
			s := crowd{b: b, gateway: g, api: a, direct: g.caller(), caller: a.admin(b), note: database.name}
			for range boxes {
				s.ids = append(s.ids, s.caller.warm(b))
			}
			rest, heap := peak(b, a), s.caller.watchHeap(b)
			s.compare("of 20 chunks in 1 s", "chunks 20 50ms", true)
			s.compare("of 40 chunks in 40 s", "chunks 40 1s", false)
			heaps := heap()
			report.Add(b,
				benchreport.Row{
					Name: "API's peak memory (VmHWM) of all that", Note: database.name, Unit: "MB", Samples: []float64{peak(b, a)},
					Baseline: benchreport.Against("the same process before that", []float64{rest}),
				},
				benchreport.Row{
					Name: "API's largest heap in use", Note: database.name, Unit: "MB", Samples: []float64{slices.Max(heaps)},
					Baseline: benchreport.Against("the same process before that", heaps[:1]),
				},
			)
		})
	}
}

// streams is how many readers there are at once, boxes how many sandboxes their
// tasks are in.
const streams, boxes = 200, 4

// crowd is what BenchmarkStreams works on.
type crowd struct {
	b              *testing.B
	gateway        *gateway
	api            *api
	direct, caller *caller
	ids            []string // of the sandboxes
	note           string
}

func (s *crowd) message(i int, script string) string {
	return fmt.Sprintf("say stream %d begins\n%s", i, script)
}

// alone sends the messages to the gateway.
func (s *crowd) alone(script string) (answers []string, each []time.Duration, all time.Duration) {
	s.b.Helper()
	answers, each = make([]string, streams), make([]time.Duration, streams)
	all = together(streams, func(i int) {
		var reply struct{ Response string }
		each[i] = s.direct.call(s.b, http.MethodPost, "/sandbox/"+s.ids[i%boxes]+"/message", object{"message": s.message(i, script)}, &reply)
		answers[i] = reply.Response
	})
	if s.b.Failed() {
		s.b.FailNow()
	}
	return answers, each, all
}

// followed sends them as tasks, each with a reader.
func (s *crowd) followed(script string) (each []follows, all time.Duration) {
	s.b.Helper()
	each = make([]follows, streams)
	all = together(streams, func(i int) {
		began, f := time.Now(), &each[i]
		f.events = s.caller.stream(s.b, http.MethodPost, streamPath, object{"message": s.message(i, script), "sandboxId": s.ids[i%boxes]}, "", func(e event) bool {
			if e.Type == "chunk" && f.first == 0 {
				f.first = time.Since(began)
			}
			return false
		})
		f.took = time.Since(began)
	})
	if s.b.Failed() {
		s.b.FailNow()
	}
	return each, all
}

// compare measures both; twice, the second time in the other order: a sandbox that
// has had more turns is slower.
func (s *crowd) compare(name, script string, twice bool) {
	s.b.Helper()
	var base, baseEach, walls, ends, firsts []time.Duration
	var answers []string
	var used, usedByGateway time.Duration
	wrong, events := 0, 0
	alone := func() {
		got, each, all := s.alone(script)
		answers, base, baseEach = got, append(base, all), append(baseEach, each...)
	}
	followed := func() {
		before, gatewayBefore := cpu(s.b, &s.api.Process), cpu(s.b, &s.gateway.Process)
		each, all := s.followed(script)
		used, usedByGateway = used+cpu(s.b, &s.api.Process)-before, usedByGateway+cpu(s.b, &s.gateway.Process)-gatewayBefore
		walls = append(walls, all)
		for i, f := range each {
			if !strings.Contains(answers[i], fmt.Sprintf("stream %d begins", i)) {
				s.b.Fatalf("the gateway's answer to message %d is %q", i, answers[i])
			}
			wrong += s.caller.wrong(s.b, f, answers[i])
			events += len(f.events)
			ends, firsts = append(ends, f.took), append(firsts, f.first)
		}
	}
	alone()
	followed()
	if twice && os.Getenv(benchreport.OnceEnv) == "" {
		followed()
		alone()
	}
	rounds := time.Duration(len(walls))
	name = fmt.Sprintf("%d task streams at once in %d sandboxes, %s", streams, boxes, name)
	const same = "the gateway alone, the same messages"
	report.Add(s.b,
		benchreport.Row{
			Name: name + ", until the last has ended", Note: s.note, Unit: "s", Samples: benchreport.Seconds(walls...),
			Baseline: benchreport.Against(same, benchreport.Seconds(base...)),
		},
		benchreport.Row{
			Name: "… each until its end", Note: s.note, Unit: "s", Samples: benchreport.Seconds(ends...),
			Baseline: benchreport.Against(same, benchreport.Seconds(baseEach...)),
		},
		benchreport.Row{
			Name: "… each until its first text", Note: s.note, Unit: "s", Samples: benchreport.Seconds(firsts...),
			Baseline: benchreport.Against("each until its end", benchreport.Seconds(ends...)),
		},
		benchreport.Row{
			Name: "… events lost, doubled or wrong", Note: s.note, Unit: "events", Samples: []float64{float64(wrong)},
			Baseline: benchreport.Against("events of all streams", []float64{float64(events)}), Aim: benchreport.AtMost("max", 0),
		},
		benchreport.Row{
			Name: "… API's processor time", Note: s.note, Unit: "s", Samples: benchreport.Seconds(used / rounds),
			Baseline: benchreport.Against("the gateway's, for the same", benchreport.Seconds(usedByGateway/rounds)),
		},
	)
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

// peak is the most memory that an API's process ever had resident, in MB.
func peak(b *testing.B, a *api) float64 {
	b.Helper()
	bytes, err := a.PeakMemory()
	if err != nil {
		b.Fatal(err)
	}
	return float64(bytes) / 1e6
}

func cpu(b *testing.B, p *processtest.Process) time.Duration {
	b.Helper()
	used, err := p.CPUTime()
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// heapEvery is how often an API is asked for its heap.
const heapEvery = 200 * time.Millisecond

// watchHeap asks an API for its heap until what it returns is called, which gives
// all answers, in MB. The first is of before.
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
		if b.Context().Err() == nil {
			b.Errorf("reading the API's figures: %d %v", status, err)
		}
		return 0
	}
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "go_memstats_heap_inuse_bytes "); ok {
			bytes, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				b.Error(err)
			}
			return bytes / 1e6
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
