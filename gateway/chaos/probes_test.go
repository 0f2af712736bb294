package chaos

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// probes are kinds that try one fault of the list in docs/reliability.md each, without
// chance: the call at which it happens is provoked, and what comes of it is looked at.
func probes() []kind {
	return []kind{
		{name: "probe-reader", number: 1, probe: true, slowly: true, does: "a file is read each second after it was written", heals: "nothing fails", inject: readerPolls},
		{name: "probe-turn", number: 1, probe: true, slowly: true, does: "session/status is read each second during a turn of 90 s", heals: "nothing fails", inject: turnPolled},
		{name: "probe-pool-disk", number: 2, probe: true, does: "the engine cannot remove the volume of a sandbox from the pool as it is archived, then deleted", heals: "after the first", inject: poolDisk},
		{name: "probe-pool-disk-killed", number: 2, probe: true, forgets: true, does: "the gateway is killed as it removes the volume of a sandbox from the pool", heals: "it is started again", inject: poolDiskKilled},
		{name: "probe-engine-starting", number: 3, probe: true, shared: true, interrupts: true, does: "the engine is restarted while a sandbox starts", heals: "it is started again", inject: engineWhileStarting},
		{name: "probe-pause-lost", number: 4, probe: true, does: "the engine pauses, its answer is lost, and it cannot be asked for 2 s", heals: "after 2 s", inject: pauseLost},
		{name: "probe-freeze-unstored", number: 5, probe: true, does: "an explicit freeze right after a write", heals: "nothing fails", inject: freezeUnstored},
		{name: "probe-freeze-away", number: 5, probe: true, does: "an explicit freeze after a write with the store away", heals: "the store is back", inject: freezeAway},
		{name: "probe-outage", number: 5, probe: true, slowly: true, does: "the store is away for 130 s after a write", heals: "the store is back", inject: outage},
		{name: "probe-disk-woken", number: 6, probe: true, does: "the volume is removed as a sandbox is woken", heals: "by itself", inject: diskWoken},
		{name: "probe-silent-create", number: 7, probe: true, does: "the store says nothing for 1 s as a create writes its record", heals: "after 1 s", inject: silentCreate},
		{name: "probe-task-deadline", number: 8, probe: true, does: "the gateway's answer to a task's create is deadline_exceeded", heals: "it happens once", inject: taskDeadline},
		{name: "probe-task-engine", number: 8, probe: true, does: "the engine answers 500 as a task's sandbox is made", heals: "after 3 s", inject: taskEngine},
		{name: "probe-task-deleted", number: 8, probe: true, does: "a task's sandbox is deleted at the gateway", heals: "nothing", inject: taskDeleted},
	}
}

// probed makes a sandbox for a probe, and an account of it that the oracle checks too.
func (s *scene) probed(ctx context.Context) (*account, bool) {
	id := s.lane.id("probe")
	got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"})
	if !got.ok() {
		s.say(0, "a sandbox cannot be made: %s", got)
		return nil, false
	}
	return s.lane.ledger.open(id), true
}

// put writes a file, which must be acknowledged.
func (s *scene) put(ctx context.Context, a *account) (written time.Time, ok bool) {
	name := s.lane.id("f-probe")
	content := fmt.Appendf(nil, "%s: %d", name, s.rng.Uint64())
	written = time.Now()
	got := s.lane.retry(ctx, requestBound, http.MethodPut, "/sandbox/"+a.id+"/files/workspace/"+name, content)
	a.wrote(name, content, got.ok())
	if !got.ok() {
		s.say(0, "a file cannot be written: %s", got)
	}
	return written, got.ok()
}

// finish deletes the probe's sandbox; the oracle then looks for what is left of it.
func (s *scene) finish(ctx context.Context, a *account) {
	got := s.lane.retry(ctx, requestBound, http.MethodDelete, "/sandbox/"+a.id, nil)
	if !got.ok() {
		s.say(0, "the sandbox %s cannot be deleted: %s", a.id, got)
		a.deleting = true
		return
	}
	s.lane.ledger.close(a.id)
}

// stored tells whether there is a snapshot that began after a moment.
func (s *scene) stored(ctx context.Context, a *account, since time.Time) string {
	var list sandbox.SnapshotsResponse
	if err := s.lane.call(ctx, http.MethodGet, "/sandbox/"+a.id+"/snapshots", nil).into(&list); err != nil {
		return err.Error()
	}
	if slices.ContainsFunc(list.Snapshots, func(snap sandbox.Snapshot) bool { return snap.CreatedAt.After(since) }) {
		return ""
	}
	return fmt.Sprintf("none of the %d snapshots of %s is newer than a write of %s ago", len(list.Snapshots), a.id, time.Since(since).Round(time.Second))
}

// polled asks for something each second until a snapshot is there or too long in coming.
func (s *scene) polled(ctx context.Context, a *account, written time.Time, path string) {
	looking, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		for pause(looking, time.Second) {
			s.lane.call(looking, http.MethodGet, path, nil)
		}
	})
	if wrong := within(ctx, leftoversBound, func() string { return s.stored(ctx, a, written) }); wrong != "" {
		s.say(1, "%s, while %s is asked for each second", wrong, path)
	}
	stop()
	reader.Wait()
}

func readerPolls(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	defer s.finish(ctx, a)
	if written, ok := s.put(ctx, a); ok {
		s.polled(ctx, a, written, "/sandbox/"+a.id+"/files/workspace")
	}
	return nil
}

func turnPolled(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	defer s.finish(ctx, a)
	written, ok := s.put(ctx, a)
	if !ok {
		return nil
	}
	turning, stop := context.WithCancel(ctx)
	var turn sync.WaitGroup
	turn.Go(func() {
		resp, err := s.lane.open(turning, "http://"+s.lane.gatewayAddr, s.lane.token, http.MethodPost, "/sandbox/"+a.id+"/message", object{"message": "wait 90s"})
		if err == nil {
			_ = resp.Body.Close()
		}
	})
	s.polled(ctx, a, written, "/sandbox/"+a.id+"/opencode/session/status")
	stop()
	turn.Wait()
	return nil
}

// fromPool makes sandboxes until one is a member of the pool, which its volume tells.
func (s *scene) fromPool(ctx context.Context) (*account, bool) {
	for range 10 {
		s.pooled(ctx)
		a, ok := s.probed(ctx)
		if !ok {
			return nil, false
		}
		got, err := s.engine().inspect(ctx, s.lane.container(a.id))
		if err == nil && slices.ContainsFunc(got.Mounts, func(m struct{ Type, Name string }) bool { return strings.Contains(m.Name, ".pool-") }) {
			return a, true
		}
		s.finish(ctx, a)
	}
	s.say(0, "ten creates in a row took no member of the pool")
	return nil, false
}

func poolDisk(ctx context.Context, s *scene) error {
	a, ok := s.fromPool(ctx)
	if !ok {
		return nil
	}
	heal := s.lane.engine.add(rule{match: poolVolume, mode: fail, status: http.StatusInternalServerError, body: `{"message":"the disk is busy"}`})
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": "archived"})
	heal()
	s.finish(ctx, a)
	return nil
}

// poolVolume matches the removal of the disk of a sandbox from the pool.
func poolVolume(r *http.Request) bool {
	return engineCallTo("volume-remove")(r) && strings.Contains(r.URL.Path, ".pool-") && !strings.HasSuffix(r.URL.Path, ".free")
}

func poolDiskKilled(ctx context.Context, s *scene) error {
	a, ok := s.fromPool(ctx)
	if !ok {
		return nil
	}
	killed := make(chan error, 1)
	heal := s.lane.engine.add(rule{match: poolVolume, mode: refuse, times: 1, before: func() { killed <- s.lane.gateway.Signal(syscall.SIGKILL) }})
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": "archived"})
	heal()
	select {
	case err := <-killed:
		if err := ended(err); err != nil {
			return err
		}
	default:
		s.missed = true // it was removed in another way
		s.finish(ctx, a)
		return nil
	}
	if err := killGateway(syscall.SIGKILL)(ctx, s); err != nil {
		return err
	}
	s.finish(ctx, a)
	return nil
}

// engineWhileStarting restarts the engine at a seeded moment of a start. All lanes
// start one at that moment.
func engineWhileStarting(ctx context.Context, s *scene) error {
	accounts := make([]*account, len(s.round))
	var group sync.WaitGroup
	for i, l := range s.round {
		group.Go(func() {
			id := l.id("probe")
			if l.retry(ctx, requestBound, http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"}).ok() {
				accounts[i] = l.ledger.open(id)
				l.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+id+"/hibernate", object{"tier": "stopped"})
			}
		})
	}
	group.Wait()
	started := s.lane.engine.await(engineCallTo("start"))
	for i, l := range s.round {
		if accounts[i] != nil {
			group.Go(func() { l.call(ctx, http.MethodPost, "/sandbox/"+accounts[i].id+"/wake", nil) })
		}
	}
	select {
	case <-started:
	case <-time.After(momentTime):
	}
	pause(ctx, s.between(0, 400*time.Millisecond))
	sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[s.rng.IntN(2)]
	if err := restartEngine(sig)(ctx, s); err != nil {
		return err
	}
	group.Wait()
	return nil // the oracle looks whether they can be used
}

// pauseLost loses the answer to a pause, and the engine with it for a while: what the
// gateway takes for running is paused.
func pauseLost(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	healed := make(chan struct{})
	heal := s.lane.engine.add(rule{match: engineCallTo("pause"), mode: lose, times: 1, after: func() {
		away := s.lane.engine.add(rule{mode: refuse})
		time.AfterFunc(2*time.Second, func() {
			away()
			close(healed)
		})
	}})
	defer heal()
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": "frozen", "force": true})
	select {
	case <-healed:
	case <-time.After(requestBound):
		s.missed = true
		return nil
	}
	got := s.lane.call(ctx, http.MethodGet, "/sandbox/"+a.id+"/files/workspace", nil)
	if !got.ok() || got.took > stateBound {
		s.say(4, "a request after a pause whose answer was lost hangs or fails: %s", got)
	}
	return nil
}

func freezeUnstored(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	defer s.finish(ctx, a)
	written, ok := s.put(ctx, a)
	if !ok {
		return nil
	}
	got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": "frozen"})
	if !got.ok() {
		s.say(5, "a freeze fails: %s", got)
		return nil
	}
	if wrong := within(ctx, leftoversBound, func() string { return s.stored(ctx, a, written) }); wrong != "" {
		s.say(5, "%s, and it was frozen since", wrong)
	}
	return nil
}

func freezeAway(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	defer s.finish(ctx, a)
	heal := s.lane.store.add(rule{mode: refuse})
	defer heal()
	if _, ok := s.put(ctx, a); !ok {
		return nil
	}
	path := "/sandbox/" + a.id + "/hibernate"
	got := s.lane.call(ctx, http.MethodPost, path, object{"tier": "frozen"})
	if got.status != http.StatusServiceUnavailable || got.code() != sandbox.CodeStoreAway {
		s.say(5, "a freeze of what is not stored, with the store away, is not refused with 503 store_unavailable: %s", got)
		return nil
	}
	if got := s.lane.call(ctx, http.MethodGet, "/sandbox/"+a.id+"/files/workspace", nil); !got.ok() {
		s.say(5, "after a freeze that was refused the sandbox does not go on: %s", got)
	}
	got = s.lane.call(ctx, http.MethodPost, path, object{"tier": "frozen", "force": true})
	if !got.ok() || !strings.Contains(string(got.raw), "unstored") {
		s.say(5, "a forced freeze does not say that it is unstored: %s", got)
	}
	return nil
}

func outage(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	defer s.finish(ctx, a)
	heal := s.lane.store.add(rule{mode: refuse})
	written, ok := s.put(ctx, a)
	if ok {
		pause(ctx, 130*time.Second)
	}
	heal()
	if !ok {
		return nil
	}
	if wrong := within(ctx, leftoversBound, func() string { return s.stored(ctx, a, written) }); wrong != "" {
		s.say(5, "%s after the store is back from an outage of 130 s: %s", leftoversBound, wrong)
	}
	return nil
}

// diskWoken removes the volume between the gateway's last look at it and the create of
// the container that is to have it.
func diskWoken(ctx context.Context, s *scene) error {
	a, ok := s.probed(ctx)
	if !ok {
		return nil
	}
	if _, ok := s.put(ctx, a); !ok {
		return nil
	}
	if got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+a.id+"/hibernate", object{"tier": "stopped"}); !got.ok() {
		s.say(0, "the sandbox cannot be stopped: %s", got)
		return nil
	}
	name := s.lane.container(a.id)
	inspected, err := s.engine().inspect(ctx, name)
	if err != nil {
		return err
	}
	if err := s.engine().remove(ctx, name); err != nil {
		return err
	}
	heal := s.lane.engine.add(rule{match: engineCallTo("create"), mode: pass, times: 1, before: func() {
		for _, m := range inspected.Mounts {
			if m.Type == "volume" {
				_ = s.engine().removeVolume(ctx, m.Name) // the oracle sees what comes of it
			}
		}
	}})
	s.lane.call(ctx, http.MethodPost, "/sandbox/"+a.id+"/wake", nil)
	heal()
	return nil // the oracle looks for the file
}

func silentCreate(ctx context.Context, s *scene) error {
	for range 2 { // the second finds what the silence has left in the pool of connections
		heal := s.lane.store.add(rule{mode: silence})
		id := s.lane.id("probe")
		made := make(chan answer, 1)
		go func() { made <- s.lane.call(ctx, http.MethodPost, "/sandbox", object{"id": id, "userId": "user_1"}) }()
		pause(ctx, time.Second)
		heal()
		if got := <-made; !got.ok() {
			s.say(7, "a second of silence fails a create: %s", got)
		} else {
			s.lane.ledger.open(id)
		}
	}
	return nil
}

// probeTask launches a task in a new sandbox and returns how it ended.
func (s *scene) probeTask(ctx context.Context, message string) (task, bool) {
	got := s.lane.callAPI(ctx, http.MethodPost, "/api/v2/agents/task", object{"message": message})
	var list struct{ Tasks []task }
	if err := s.lane.callAPI(ctx, http.MethodGet, "/api/v2/agents/tasks?limit=1", nil).into(&list); err != nil || len(list.Tasks) == 0 {
		s.say(0, "no task can be found: %s, %v", got, err)
		return task{}, false
	}
	return list.Tasks[0], true
}

func taskDeadline(ctx context.Context, s *scene) error {
	heal := s.lane.front.add(rule{
		match: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Path == "/sandbox" },
		mode:  fail, times: 1, status: http.StatusGatewayTimeout, body: `{"error":"the sandbox is not there yet; try again","code":"deadline_exceeded"}`,
	})
	defer heal()
	if t, ok := s.probeTask(ctx, "say hello"); ok && t.Status != "completed" {
		s.say(8, "a task fails at once for deadline_exceeded: %s: %s", t.Status, t.Error)
	}
	return nil
}

func taskEngine(ctx context.Context, s *scene) error {
	heal := s.lane.engine.add(rule{match: changes, mode: fail, status: http.StatusInternalServerError, body: `{"message":"the engine is going down"}`})
	time.AfterFunc(3*time.Second, heal)
	if t, ok := s.probeTask(ctx, "say hello"); ok && t.Status != "completed" {
		s.say(8, "a task fails at once for an engine that is going down: %s: %s", t.Status, t.Error)
	}
	return nil
}

func taskDeleted(ctx context.Context, s *scene) error {
	deleted := make(chan struct{})
	heal := s.lane.front.add(rule{
		match: func(r *http.Request) bool {
			return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/opencode/session")
		},
		mode: pass, times: 1, before: func() {
			defer close(deleted)
			var list struct {
				Sandboxes []struct{ SandboxID, UserID string }
			}
			if s.lane.call(ctx, http.MethodGet, "/sandboxes?limit=100", nil).into(&list) != nil {
				return
			}
			for _, one := range list.Sandboxes {
				if one.UserID != "user_1" {
					s.lane.call(ctx, http.MethodDelete, "/sandbox/"+one.SandboxID, nil)
				}
			}
		},
	})
	defer heal()
	t, ok := s.probeTask(ctx, "say hello")
	if ok && (t.Status != "failed" || !strings.Contains(t.Error, "deleted")) {
		s.say(8, "a task whose sandbox was deleted does not say so: %s: %s", t.Status, t.Error)
	}
	return nil
}
