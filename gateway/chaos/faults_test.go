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
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kind is one way in which something fails.
type kind struct {
	name  string
	does  string // what happens
	heals string // how it ends
	// number is that of the fault in docs/reliability.md that this kind was made to find;
	// its violations are told by it. 0: by what they look like.
	number int
	// shared: it hits every lane, and counts once for each.
	shared bool
	// interrupts: an agent at work is ended by it, so a task may fail.
	interrupts bool
	// forgets: a gateway that is killed tells nothing of what waited in its memory.
	forgets bool
	// probe: it brings its own work along, and begins at once.
	probe bool
	// genuine: it needs the real OpenCode, which asks a model.
	genuine bool
	// slowly: it takes longer than a minute, so `make test` leaves it out.
	slowly bool
	// hurry: it loses something on purpose, for good, so the oracle need not wait.
	hurry bool
	// inject makes it happen and returns when it is healed. An error is the harness's own.
	inject func(ctx context.Context, s *scene) error
}

// scene is where a fault happens.
type scene struct {
	lane   *lane
	rng    *rand.Rand
	work   *workload // nil in a probe
	oracle *oracle
	// missed: the fault found nothing to hit, such as a sandbox that was asleep.
	missed bool
	// round are the lanes of a shared fault; lane is the first of them.
	round []*lane
}

func (s *scene) engine() *engine { return s.lane.world.engine }

// between is a seeded time.
func (s *scene) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.rng.Int64N(int64(most-least)))
}

// say notes a violation that an injection has seen itself.
func (s *scene) say(number int, format string, args ...any) { s.oracle.say(number, format, args...) }

// momentTime is how long the call is awaited at which a fault is to happen.
const momentTime = 2 * time.Second

// moment waits for the seeded moment of a fault: after a while, or when a certain call
// is on its way.
func (s *scene) moment(ctx context.Context) {
	l := s.lane
	moments := []func() <-chan struct{}{
		func() <-chan struct{} { return l.engine.await(engineCallTo("start")) },
		func() <-chan struct{} { return l.engine.await(engineCallTo("create")) },
		func() <-chan struct{} { return l.engine.await(engineCallTo("pause")) },
		func() <-chan struct{} { return l.engine.await(engineCallTo("rename")) },
		func() <-chan struct{} { return l.engine.await(engineCallTo("remove")) },
		func() <-chan struct{} { return l.store.await(put("record.json")) },
		func() <-chan struct{} { return l.store.await(put("packs")) },
		func() <-chan struct{} { return l.store.await(put("workspaces")) },
		func() <-chan struct{} {
			return l.front.await(func(r *http.Request) bool { return r.Method == http.MethodPost })
		},
	}
	n := s.rng.IntN(2 * len(moments))
	d := s.between(0, 600*time.Millisecond)
	if n < len(moments) {
		select {
		case <-moments[n]():
			d /= 20 // while it is on its way, or just after
		case <-time.After(momentTime):
			return
		case <-ctx.Done():
			return
		}
	}
	pause(ctx, d)
}

// put matches writes of objects whose key has a text in it.
func put(part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == http.MethodPut && strings.Contains(r.URL.Path, part) }
}

// engineCalls are the calls to the engine by name.
//
//nolint:gochecknoglobals // a constant table
var engineCalls = map[string]struct {
	method string
	path   *regexp.Regexp
}{
	"create":        {http.MethodPost, regexp.MustCompile(`/containers/create$`)},
	"start":         {http.MethodPost, regexp.MustCompile(`/containers/[^/]+/start$`)},
	"stop":          {http.MethodPost, regexp.MustCompile(`/containers/[^/]+/(stop|kill)$`)},
	"pause":         {http.MethodPost, regexp.MustCompile(`/containers/[^/]+/pause$`)},
	"unpause":       {http.MethodPost, regexp.MustCompile(`/containers/[^/]+/unpause$`)},
	"rename":        {http.MethodPost, regexp.MustCompile(`/containers/[^/]+/rename$`)},
	"remove":        {http.MethodDelete, regexp.MustCompile(`/containers/[^/]+$`)},
	"volume-create": {http.MethodPost, regexp.MustCompile(`/volumes/create$`)},
	"volume-remove": {http.MethodDelete, regexp.MustCompile(`/volumes/[^/]+$`)},
	"inspect":       {http.MethodGet, regexp.MustCompile(`/containers/[^/]+/json$`)},
}

// engineCallTo matches a call to the engine by its name.
func engineCallTo(name string) func(*http.Request) bool {
	call := engineCalls[name]
	return func(r *http.Request) bool { return r.Method == call.method && call.path.MatchString(r.URL.Path) }
}

// changes matches every call to the engine that changes something.
func changes(r *http.Request) bool {
	return r.Method == http.MethodPost || r.Method == http.MethodDelete
}

// kinds is the table of all faults. docs/reliability.md has it in words.
func kinds() []kind {
	all := []kind{
		{name: "gateway-killed", does: "SIGKILL to the gateway", heals: "it is started again", forgets: true, inject: killGateway(syscall.SIGKILL)},
		{name: "gateway-terminated", does: "SIGTERM to the gateway", heals: "it is started again", inject: killGateway(syscall.SIGTERM)},
		{name: "gateway-stopped", does: "SIGSTOP to the gateway", heals: "SIGCONT after 0.5 to 4 s", inject: freezeGateway},
		{name: "gateway-killed-twice", does: "SIGKILL to the gateway, and again within a second of its start", heals: "it is started again", forgets: true, inject: killTwice},
		{name: "gateway-killed-store-away", does: "SIGKILL to the gateway while the store's connections are cut", heals: "after 1 to 4 s", forgets: true, inject: both(killGateway(syscall.SIGKILL), borderFails(storeBorder, refuse, 1, 4))},
		{name: "gateway-killed-engine-away", does: "SIGKILL to the gateway while the engine's connections are cut", heals: "after 1 to 4 s", forgets: true, inject: both(killGateway(syscall.SIGKILL), borderFails(engineBorder, refuse, 1, 4))},
		{name: "callers-leave", does: "every caller hangs up within 0.3 s", heals: "after 2 to 4 s", inject: callersLeave},
		{name: "api-killed", does: "SIGKILL to the API", heals: "it is started again", inject: killAPI(syscall.SIGKILL)},
		{name: "api-terminated", does: "SIGTERM to the API", heals: "it is started again", inject: killAPI(syscall.SIGTERM)},
		{name: "api-stopped", does: "SIGSTOP to the API", heals: "SIGCONT after 0.5 to 4 s", inject: freezeAPI},

		{name: "engine-killed", does: "SIGKILL to the engine", heals: "it is started again", shared: true, interrupts: true, inject: restartEngine(syscall.SIGKILL)},
		{name: "engine-terminated", does: "SIGTERM to the engine", heals: "it is started again", shared: true, interrupts: true, inject: restartEngine(syscall.SIGTERM)},
		{name: "engine-stopped", does: "SIGSTOP to the engine", heals: "SIGCONT after 1 to 5 s", shared: true, inject: freezeEngine},
		{name: "engine-says-500", does: "the engine answers every change with 500", heals: "after 1 to 4 s", inject: engineFails},
		{name: "engine-cut", does: "every connection to the engine is cut", heals: "after 1 to 4 s", inject: borderFails(engineBorder, refuse, 1, 4)},
		{name: "engine-silent", does: "the engine says nothing", heals: "after 1 to 4 s", slowly: true, inject: borderFails(engineBorder, silence, 1, 4)},

		{name: "container-killed", does: "docker kill of a sandbox", heals: "by itself", interrupts: true, inject: killContainer},
		{name: "container-removed", does: "docker rm -f of a sandbox; its volume stays", heals: "by itself", interrupts: true, inject: removeContainer},
		{name: "container-paused", does: "docker pause of a sandbox", heals: "docker unpause after 0.5 to 3 s", inject: pauseContainer},
		{name: "disk-removed-asleep", does: "container and volume of a stored, stopped sandbox are removed", heals: "by itself", number: 6, inject: removeDisk},
		{name: "disk-removed-waking", does: "container and volume of a stored sandbox are removed while it is woken", heals: "by itself", number: 6, interrupts: true, inject: removeDiskWaking},
		{name: "sandboxd-killed", does: "SIGKILL to process 1 of a sandbox", heals: "by itself", interrupts: true, inject: signalSandboxd},
		{name: "opencode-killed", does: "SIGKILL to OpenCode", heals: "by itself", interrupts: true, inject: signalOpenCode(syscall.SIGKILL, 0, 1)},
		{name: "opencode-stopped", does: "SIGSTOP to OpenCode", heals: "SIGCONT after 1 to 4 s", interrupts: true, inject: signalOpenCode(syscall.SIGSTOP, 1, 4)},
		{name: "opencode-hangs", does: "SIGSTOP to OpenCode", heals: "SIGCONT after 10 to 20 s", interrupts: true, slowly: true, inject: signalOpenCode(syscall.SIGSTOP, 10, 20)},

		{name: "store-cut", does: "every connection to the store is cut", heals: "after 1 to 5 s", inject: borderFails(storeBorder, refuse, 1, 5)},
		{name: "store-silent-second", does: "the store says nothing for 1 s", heals: "after 1 s", inject: borderFails(storeBorder, silence, 1, 1)},
		{name: "store-silent", does: "the store says nothing", heals: "after 2 to 6 s", inject: borderFails(storeBorder, silence, 2, 6)},
		{name: "store-slow", does: "each request to the store takes 0.4 s longer", heals: "after 2 to 6 s", inject: borderFails(storeBorder, slow, 2, 6)},
		{name: "store-half-written", does: "bodies of writes to the store break in the middle", heals: "after 1 to 3 s", inject: borderFails(storeBorder, half, 1, 3)},
		{name: "store-half-read", does: "the store's answers break in the middle", heals: "after 1 to 3 s", inject: borderFails(storeBorder, halfBack, 1, 3)},
		{name: "store-reply-lost", does: "the store does what is asked, and its answers are lost", heals: "after 0.5 to 2 s", inject: borderFails(storeBorder, lose, 0.5, 2)},
		{name: "store-says-500", does: "the store answers 500", heals: "after 1 to 5 s", inject: storeLies(http.StatusInternalServerError)},
		{name: "store-says-503", does: "the store answers 503", heals: "after 1 to 5 s", inject: storeLies(http.StatusServiceUnavailable)},
		{name: "store-full", does: "the disk of the S3 server is full", heals: "it has room again after 1 to 4 s", shared: true, inject: fillStore},

		{name: "database-killed", does: "SIGKILL to Postgres", heals: "it is started again", shared: true, inject: killDatabase},
		{name: "database-cut", does: "every connection to Postgres is cut, once", heals: "at once", inject: cutDatabase},
		{name: "database-away", does: "connections to Postgres are refused", heals: "after 1 to 4 s", inject: databaseAway},
		{name: "database-silent", does: "Postgres says nothing", heals: "after 1 to 6 s", inject: databaseSilent},

		{name: "front-cut", does: "every connection from the API to the gateway is cut", heals: "after 1 to 4 s", inject: borderFails(frontBorder, refuse, 1, 4)},
		{name: "front-silent", does: "the API hears nothing from the gateway", heals: "after 1 to 4 s", inject: borderFails(frontBorder, silence, 1, 4)},
		{name: "front-reply-lost", does: "the gateway does what the API asks, and its answers are lost", heals: "after 0.5 to 2 s", inject: borderFails(frontBorder, lose, 0.5, 2)},
		{name: "receiver-down", does: "webhooks are refused", heals: "after 1 to 5 s", inject: borderFails(receiverBorder, refuse, 1, 5)},
		{name: "receiver-says-500", does: "webhooks are answered with 500", heals: "after 1 to 5 s", inject: receiverFails},
		{name: "receiver-slow", does: "webhooks take 0.4 s longer", heals: "after 2 to 6 s", inject: borderFails(receiverBorder, slow, 2, 6)},
		{name: "receiver-reply-lost", does: "the API takes webhooks, and its answers are lost", heals: "after 0.5 to 2 s", inject: borderFails(receiverBorder, lose, 0.5, 2)},
		{name: "receiver-clock-off", does: "webhooks are ten minutes old when they come, as from a clock that is off", heals: "after 1 to 4 s", number: 9, inject: clockOff},

		{name: "model-refuses", does: "the model's connections are cut", heals: "after 1 to 4 s", genuine: true, inject: borderFails(modelBorder, refuse, 1, 4)},
		{name: "model-silent", does: "the model says nothing", heals: "after 1 to 4 s its connections are cut", genuine: true, interrupts: true, inject: borderFails(modelBorder, silence, 1, 4)},
		{name: "model-slow", does: "the model takes 0.4 s longer", heals: "after 2 to 6 s", genuine: true, inject: borderFails(modelBorder, slow, 2, 6)},
		{name: "model-cut", does: "the model's answers break in the middle", heals: "after 1 to 3 s", genuine: true, inject: borderFails(modelBorder, halfBack, 1, 3)},
		{name: "model-says-500", does: "the model answers 500", heals: "after 1 to 4 s", genuine: true, inject: modelFails},
	}
	for _, call := range []string{"create", "start", "stop", "pause", "unpause", "rename", "remove", "volume-create", "volume-remove"} {
		all = append(all, kind{
			name: "engine-" + call + "-lost", does: "the engine does a " + call + ", and the connection is cut before its answer", heals: "it happens once",
			inject: engineReply(call, lose),
		}, kind{
			name: "engine-" + call + "-hung", does: "the engine does a " + call + ", and its answer never comes", heals: "it happens once",
			slowly: true, inject: engineReply(call, hang),
		})
	}
	return append(all, probes()...)
}

func killGateway(sig syscall.Signal) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		if err := ended(s.lane.gateway.Stop(sig)); err != nil {
			return err
		}
		<-s.lane.gateway.Done()
		return s.restartGateway(ctx)
	}
}

// ended forgives that a process has ended already.
func ended(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// restartGateway starts the gateway as its supervisor would: again and again, if what it
// needs is away.
func (s *scene) restartGateway(ctx context.Context) error {
	s.lane.calm = nil
	var err error
	within(ctx, requestBound, func() string {
		if err = s.lane.startGateway(); err != nil {
			return err.Error()
		}
		return ""
	})
	return err
}

// killTwice kills the gateway again as soon as it is up, or on its way up.
func killTwice(ctx context.Context, s *scene) error {
	if err := killGateway(syscall.SIGKILL)(ctx, s); err != nil {
		return err
	}
	pause(ctx, s.between(0, time.Second))
	return killGateway(syscall.SIGKILL)(ctx, s)
}

// both injects two faults at once.
func both(one, other func(context.Context, *scene) error) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		second := *s // random numbers are not for two at once
		second.rng = rand.New(rand.NewPCG(s.rng.Uint64(), 0))
		failed := make(chan error, 1)
		go func() { failed <- other(ctx, &second) }()
		return errors.Join(one(ctx, s), <-failed)
	}
}

// callersLeave has every caller hang up before its answer.
func callersLeave(ctx context.Context, s *scene) error {
	s.lane.hasty.Store(&hasty{rng: rand.New(rand.NewPCG(s.rng.Uint64(), 0))})
	pause(ctx, s.between(2*time.Second, 4*time.Second))
	s.lane.hasty.Store(nil)
	return nil
}

func killAPI(sig syscall.Signal) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		if err := ended(s.lane.api.Stop(sig)); err != nil {
			return err
		}
		return s.lane.startAPI()
	}
}

func freezeGateway(ctx context.Context, s *scene) error {
	return frozen(ctx, s.lane.gateway.Signal, s.between(500*time.Millisecond, 4*time.Second))
}

func freezeAPI(ctx context.Context, s *scene) error {
	return frozen(ctx, s.lane.api.Signal, s.between(500*time.Millisecond, 4*time.Second))
}

func freezeEngine(ctx context.Context, s *scene) error {
	return frozen(ctx, s.engine().signal, s.between(time.Second, 5*time.Second))
}

// frozen stops a process for a while.
func frozen(ctx context.Context, signal func(syscall.Signal) error, d time.Duration) error {
	if err := signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pause(ctx, d)
	return signal(syscall.SIGCONT)
}

func restartEngine(sig syscall.Signal) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		if err := s.engine().stop(sig); err != nil {
			return err
		}
		pause(ctx, s.between(0, time.Second))
		return s.engine().up(ctx)
	}
}

// The borders of a lane.
func engineBorder(l *lane) *proxy   { return l.engine }
func storeBorder(l *lane) *proxy    { return l.store }
func frontBorder(l *lane) *proxy    { return l.front }
func receiverBorder(l *lane) *proxy { return l.receiver }
func modelBorder(l *lane) *proxy    { return l.llm }

func modelFails(ctx context.Context, s *scene) error {
	heal := s.lane.llm.add(rule{mode: fail, status: http.StatusInternalServerError, body: `{"error":{"message":"overloaded"}}`})
	pause(ctx, s.between(time.Second, 4*time.Second))
	heal()
	return nil
}

// slowBy is how much longer a slow border takes.
const slowBy = 400 * time.Millisecond

// borderFails makes a border fail for some seconds.
func borderFails(border func(*lane) *proxy, how mode, least, most float64) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		r := rule{mode: how, delay: slowBy}
		if how == half {
			r.match = func(r *http.Request) bool { return r.Method == http.MethodPut }
		}
		if how == lose || how == halfBack { // what lasts for ever is not lost: it is read as it comes
			r.match = func(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, "/event") }
		}
		d := time.Duration(least * float64(time.Second))
		if most > least {
			d = s.between(d, time.Duration(most*float64(time.Second)))
		}
		if border(s.lane) == s.lane.llm {
			// A turn has a deadline of its own, of minutes, and a point does not wait for it.
			r.ends = make(chan struct{})
			defer close(r.ends)
		}
		heal := border(s.lane).add(r)
		pause(ctx, d)
		heal()
		return nil
	}
}

func engineFails(ctx context.Context, s *scene) error {
	heal := s.lane.engine.add(rule{match: changes, mode: fail, status: http.StatusInternalServerError, body: `{"message":"the engine is going down"}`})
	pause(ctx, s.between(time.Second, 4*time.Second))
	heal()
	return nil
}

func storeLies(status int) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		heal := s.lane.store.add(rule{mode: fail, status: status, body: `<Error><Code>InternalError</Code><Message>lying</Message></Error>`})
		pause(ctx, s.between(time.Second, 5*time.Second))
		heal()
		return nil
	}
}

func receiverFails(ctx context.Context, s *scene) error {
	heal := s.lane.receiver.add(rule{mode: fail, status: http.StatusInternalServerError, body: `{}`})
	pause(ctx, s.between(time.Second, 5*time.Second))
	heal()
	return nil
}

// clockOff makes webhooks old, so that the API refuses them for its clock.
func clockOff(ctx context.Context, s *scene) error {
	heal := s.lane.receiver.add(rule{mode: alter, change: func(body []byte) []byte {
		var notice map[string]any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		if decoder.Decode(&notice) != nil {
			return body
		}
		told, err := time.Parse(time.RFC3339, fmt.Sprint(notice["timestamp"]))
		if err != nil {
			return body
		}
		notice["timestamp"] = told.Add(-10 * time.Minute).Format("2006-01-02T15:04:05.000Z")
		raw, err := json.Marshal(notice)
		if err != nil {
			return body
		}
		return raw
	}})
	pause(ctx, s.between(time.Second, 4*time.Second))
	heal()
	return nil
}

// fillStore fills the S3 server's disk.
func fillStore(ctx context.Context, s *scene) error {
	name := filepath.Join(s.lane.world.disk, "filler")
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("filling the store: %w", err)
	}
	var room unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &room); err != nil {
		return fmt.Errorf("filling the store: %w", err)
	}
	_, _ = io.CopyN(f, zeros{}, int64(room.Bavail)*room.Bsize) // until it is full
	pause(ctx, s.between(time.Second, 4*time.Second))
	if err := f.Close(); err != nil {
		return fmt.Errorf("filling the store: %w", err)
	}
	return os.Remove(name)
}

// zeros is an endless reader.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func killDatabase(ctx context.Context, s *scene) error {
	if err := s.lane.world.database.kill(); err != nil {
		return err
	}
	pause(ctx, s.between(0, 2*time.Second))
	return s.lane.world.database.up(ctx)
}

func cutDatabase(_ context.Context, s *scene) error {
	s.lane.sql.cut()
	return nil
}

func databaseAway(ctx context.Context, s *scene) error {
	heal := s.lane.sql.down()
	pause(ctx, s.between(time.Second, 4*time.Second))
	heal()
	return nil
}

func databaseSilent(ctx context.Context, s *scene) error {
	heal := s.lane.sql.hush()
	pause(ctx, s.between(time.Second, 6*time.Second))
	heal()
	return nil
}

// awake tries something on the lasting sandbox's container until it succeeds, and wakes
// the sandbox between two tries: its actor puts it to sleep as it likes.
func (s *scene) awake(ctx context.Context, try func(container string) error) {
	for range 20 {
		if try(s.lane.container(lasting)) == nil {
			return
		}
		s.lane.call(ctx, http.MethodPost, "/sandbox/"+lasting+"/wake", nil)
	}
	s.missed = true
}

func killContainer(ctx context.Context, s *scene) error {
	s.awake(ctx, func(name string) error {
		return s.engine().call(ctx, http.MethodPost, "/containers/"+name+"/kill", nil, nil)
	})
	return nil
}

func removeContainer(ctx context.Context, s *scene) error {
	s.awake(ctx, func(name string) error {
		if _, err := s.engine().sandboxd(ctx, name); err != nil {
			return err
		}
		return s.engine().remove(ctx, name)
	})
	return nil
}

func pauseContainer(ctx context.Context, s *scene) error {
	s.awake(ctx, func(name string) error {
		if err := s.engine().call(ctx, http.MethodPost, "/containers/"+name+"/pause", nil, nil); err != nil {
			return err
		}
		pause(ctx, s.between(500*time.Millisecond, 3*time.Second))
		_ = s.engine().call(ctx, http.MethodPost, "/containers/"+name+"/unpause", nil, nil) // the gateway may have done it
		return nil
	})
	return nil
}

// removeDisk removes what the engine has of a sandbox that is stored: what was done
// since a snapshot may go with the disk, so nothing is done meanwhile.
func removeDisk(ctx context.Context, s *scene) error {
	s.work.end()
	got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+lasting+"/hibernate", object{"tier": "stopped"})
	if !got.ok() {
		s.say(0, "the sandbox cannot be stopped: %s", got)
		return nil
	}
	return s.loseDisk(ctx, lasting)
}

// removeDiskWaking removes them at some moment of a wake.
func removeDiskWaking(ctx context.Context, s *scene) error {
	s.work.end()
	got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+lasting+"/hibernate", object{"tier": "stopped"})
	if !got.ok() {
		s.say(0, "the sandbox cannot be stopped: %s", got)
		return nil
	}
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		s.lane.call(ctx, http.MethodPost, "/sandbox/"+lasting+"/wake", nil)
	}()
	pause(ctx, s.between(0, 400*time.Millisecond))
	_ = s.loseDisk(ctx, lasting) // the gateway is at it, too
	<-woken
	return nil
}

// loseDisk removes a sandbox's container and its volumes by hand.
func (s *scene) loseDisk(ctx context.Context, id string) error {
	name := s.lane.container(id)
	got, err := s.engine().inspect(ctx, name)
	if err != nil {
		return gone(err) // it is archived
	}
	if err := s.engine().remove(ctx, name); err != nil {
		return err
	}
	for _, m := range got.Mounts {
		if m.Type == "volume" {
			if err := s.engine().removeVolume(ctx, m.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func signalSandboxd(ctx context.Context, s *scene) error {
	s.awake(ctx, func(name string) error {
		pid, err := s.engine().sandboxd(ctx, name)
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	})
	return nil
}

func signalOpenCode(sig syscall.Signal, least, most int) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		s.awake(ctx, func(name string) error {
			pid, err := s.engine().openCode(ctx, name)
			if err != nil {
				return err
			}
			if err := syscall.Kill(pid, sig); err != nil {
				return err
			}
			if sig == syscall.SIGSTOP {
				pause(ctx, s.between(time.Duration(least)*time.Second, time.Duration(most)*time.Second))
				_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
			}
			return nil
		})
		return nil
	}
}

// provocations are how often a call is provoked: the workload may be quicker.
const provocations = 5

// engineReply loses the answer to the next call of a name, and provokes that call.
func engineReply(call string, how mode) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		var hit atomic.Bool
		for range provocations {
			if !s.prepare(ctx, call) {
				continue
			}
			heal := s.lane.engine.add(rule{match: engineCallTo(call), mode: how, times: 1, before: func() { hit.Store(true) }})
			s.provoke(ctx, call)
			heal()
			if hit.Load() {
				return nil
			}
		}
		s.missed = true
		return nil
	}
}

// down puts the lasting sandbox to sleep, whatever is done in it.
func (s *scene) down(ctx context.Context, tier string) {
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+lasting+"/hibernate", object{"tier": tier, "force": true})
}

func (s *scene) up(ctx context.Context) {
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+lasting+"/wake", nil)
}

// prepare makes it possible to provoke a call: what is to come up has to be down.
func (s *scene) prepare(ctx context.Context, call string) bool {
	switch call {
	case "unpause":
		s.work.end() // or it is thawed before the rule is there
		s.up(ctx)
		s.down(ctx, "frozen")
	case "start":
		s.down(ctx, "stopped")
	case "create", "volume-create":
		s.down(ctx, "archived")
	case "rename": // of a member of the pool, which is booted when nothing else is
		s.work.end()
		return s.pooled(ctx)
	default:
		s.up(ctx)
	}
	return true
}

// pooled waits until the pool has a member.
func (s *scene) pooled(ctx context.Context) bool {
	return within(ctx, stateBound, func() string {
		containers, err := s.engine().containers(ctx, s.lane.installation)
		if err != nil {
			return err.Error()
		}
		for name, c := range containers {
			if strings.Contains(name, ".pool-") && c.State == "paused" {
				return ""
			}
		}
		return "the pool is empty"
	}) == ""
}

func (s *scene) provoke(ctx context.Context, call string) {
	switch call {
	case "unpause", "start", "create", "volume-create":
		s.up(ctx)
	case "pause":
		s.down(ctx, "frozen")
	case "stop":
		s.down(ctx, "stopped")
	case "remove", "volume-remove":
		s.down(ctx, "archived")
	case "rename":
		id := s.lane.id("extra")
		s.lane.call(ctx, http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"})
		if got := s.lane.retry(ctx, requestBound, http.MethodDelete, "/sandbox/"+id, nil); !got.ok() {
			s.say(0, "the sandbox %s cannot be deleted: %s", id, got)
		}
	}
}
