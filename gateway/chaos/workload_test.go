package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// workload is what goes on in a lane while a fault is injected: one actor on a sandbox
// that lasts, one that creates and deletes, one that only looks, and one that launches
// tasks. Each goes on until it is told to stop, and ends what it has begun.
type workload struct {
	lane *lane
	rng  *rand.Rand // of the actor that lasts
	stop chan struct{}
	once sync.Once
	work sync.WaitGroup

	mu   sync.Mutex
	acks []acked // deletes and creates, of which a webhook tells
}

// acked is an acknowledgement of which a webhook is to tell.
type acked struct {
	event, id string
	since     time.Time
}

// lasting is the sandbox of a lane that lasts from point to point.
const lasting = "lasting"

// start begins the actors. Each has random numbers of its own, so that what one does
// hangs on no other's pace.
func start(ctx context.Context, l *lane, seed uint64) *workload {
	w := &workload{lane: l, rng: rand.New(rand.NewPCG(seed, 1)), stop: make(chan struct{})}
	w.work.Go(func() { w.last(ctx) })
	w.work.Go(func() { w.comeAndGo(ctx, rand.New(rand.NewPCG(seed, 2))) })
	w.work.Go(func() { w.look(ctx) })
	w.work.Go(func() { w.launch(ctx, rand.New(rand.NewPCG(seed, 3))) })
	return w
}

// end tells the actors to stop and waits for them.
func (w *workload) end() {
	w.once.Do(func() { close(w.stop) })
	w.work.Wait()
}

// genuinePace is how much longer the actors rest with the real OpenCode, each boot of
// which takes seconds of a core.
const genuinePace = 10

// rest waits between two actions, and tells whether there is another.
func (w *workload) rest(d time.Duration) bool {
	if w.lane.model != nil {
		d *= genuinePace
	}
	return w.wait(d)
}

// wait is rest at the same pace for all.
func (w *workload) wait(d time.Duration) bool {
	select {
	case <-w.stop:
		return false
	case <-time.After(d):
		return true
	}
}

func (w *workload) acknowledge(kind, id string, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, acked{kind, id, since})
}

func (w *workload) acknowledged() []acked {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acks
}

// last works on the sandbox that lasts.
func (w *workload) last(ctx context.Context) {
	for w.rest(time.Duration(w.rng.IntN(60)) * time.Millisecond) {
		a := w.lane.ledger.get(lasting)
		if a == nil {
			w.create(ctx, lasting)
			continue
		}
		switch n := w.rng.IntN(100); {
		case n < 30:
			w.write(ctx, a, w.rng)
		case n < 45:
			w.command(ctx, a, w.rng)
		case n < 62:
			w.message(ctx, a, w.rng)
		case n < 70:
			w.sync(ctx, a)
		case n < 90:
			tier := []string{"frozen", "stopped", "archived"}[w.rng.IntN(3)]
			w.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": tier})
		default:
			w.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/wake", nil)
		}
	}
}

// comeAndGo creates a sandbox, does something in it, deletes it, and makes it anew
// under the same name.
func (w *workload) comeAndGo(ctx context.Context, rng *rand.Rand) {
	const id = "brief"
	for w.rest(time.Duration(rng.IntN(100)) * time.Millisecond) {
		a := w.lane.ledger.get(id)
		switch {
		case a == nil:
			w.create(ctx, id)
		case a.deleting || len(a.files) >= 1+rng.IntN(3):
			w.delete(ctx, a)
		default:
			w.write(ctx, a, rng)
			if rng.IntN(3) == 0 {
				w.lane.call(ctx, http.MethodPost, "/sandbox/"+id+"/hibernate", object{"tier": []string{"frozen", "stopped", "archived"}[rng.IntN(3)]})
			}
		}
	}
}

// look asks for a file and for the turns, as a tab that is left open does.
func (w *workload) look(ctx context.Context) {
	for w.wait(time.Second) {
		if w.lane.ledger.get(lasting) == nil {
			continue
		}
		w.lane.call(ctx, http.MethodGet, "/sandbox/"+lasting+"/files/workspace", nil)
		w.lane.call(ctx, http.MethodGet, "/sandbox/"+lasting+"/opencode/session/status", nil)
	}
}

func (w *workload) create(ctx context.Context, id string) {
	began := time.Now()
	if w.lane.call(ctx, http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"}).ok() {
		w.lane.ledger.open(id)
		w.acknowledge("sandbox.created", id, began)
	}
}

func (w *workload) delete(ctx context.Context, a *account) {
	began := time.Now()
	a.deleting = true
	if w.lane.call(ctx, http.MethodDelete, "/sandbox/"+a.id, nil).ok() {
		w.lane.ledger.close(a.id)
		w.acknowledge("sandbox.deleted", a.id, began)
	}
}

// write puts a file: a new one, or another version of one of a few.
func (w *workload) write(ctx context.Context, a *account, rng *rand.Rand) {
	name := w.lane.id("f-")
	if rng.IntN(3) == 0 {
		name = fmt.Sprintf("f-hot%d", rng.IntN(3))
	}
	content := fmt.Appendf(nil, "%s of %s: %d\n", name, a.id, rng.Uint64())
	if rng.IntN(5) == 0 {
		content = append(content, strings.Repeat(fmt.Sprint(rng.Uint64()), 2000)...)
	}
	got := w.lane.call(ctx, http.MethodPut, "/sandbox/"+a.id+"/files/workspace/"+name, content)
	a.wrote(name, content, got.ok())
}

// command appends a line to a file, so that one that was run twice is seen.
func (w *workload) command(ctx context.Context, a *account, rng *rand.Rand) {
	line := fmt.Sprintf("line-%d", rng.Uint64())
	a.commands[line] = false
	got := w.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/exec", object{"command": []string{"sh", "-c", "echo " + line + " >> lines && sync lines"}})
	var done struct{ ExitCode int }
	a.commands[line] = got.into(&done) == nil && done.ExitCode == 0
}

func (w *workload) message(ctx context.Context, a *account, rng *rand.Rand) {
	body := object{"message": fmt.Sprintf("say answer-%d", rng.Uint64())}
	if a.session != "" {
		body["sessionId"] = a.session
	}
	var done struct{ SessionID, Response, Error string }
	if w.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/message", body).into(&done) != nil || done.Error != "" {
		return
	}
	a.session = done.SessionID
	a.turns = append(a.turns, turn{done.SessionID, fmt.Sprint(body["message"]), done.Response})
}

func (w *workload) sync(ctx context.Context, a *account) {
	if w.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/sync", nil).ok() {
		a.synced()
	}
}

// launch begins tasks at the API, and reads their streams as far as they go.
func (w *workload) launch(ctx context.Context, rng *rand.Rand) {
	sandbox := ""
	for w.rest(time.Duration(100+rng.IntN(300)) * time.Millisecond) {
		n := 3 + rng.IntN(5)
		task := &launched{message: fmt.Sprintf("chunks %d %dms", n, 50+rng.IntN(200)), want: chunks(n)}
		body := object{"message": task.message}
		if sandbox != "" {
			body["sandboxId"] = sandbox
		}
		made := w.stream(ctx, body, task)
		if made != "" {
			sandbox = made
		}
	}
}

// chunks is what the stand-in answers to "chunks N DELAY".
func chunks(n int) string {
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("chunk %d", i+1))
	}
	return strings.Join(lines, "\n")
}

// stream launches a task and reads its events until their end, or until the stream
// breaks. It returns the task's sandbox if it was told.
func (w *workload) stream(ctx context.Context, body object, task *launched) (sandbox string) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	leave := make(chan struct{})
	defer close(leave)
	go func() { // a reader leaves when the work is over: the task goes on
		select {
		case <-w.stop:
			pause(ctx, 2*time.Second)
			cancel()
		case <-leave:
		}
	}()
	resp, err := w.lane.open(ctx, "http://"+w.lane.apiAddr, w.lane.bearer, http.MethodPost, "/api/v2/agents/task/stream", body)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return ""
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		raw, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e struct{ Type, TaskID, SandboxID string }
		if json.Unmarshal([]byte(raw), &e) != nil {
			continue
		}
		switch e.Type {
		case "start":
			task.id = e.TaskID
			w.lane.ledger.launch(task)
		case "done":
			return e.SandboxID
		}
	}
	return ""
}
