package chaos

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// loss is a kind that loses something on purpose, behind the programs' backs, and what
// the oracle must say then: an oracle that says nothing is blind.
type loss struct {
	kind
	told string
}

// hurriedBound is how long a loss's oracle waits for what cannot come.
const hurriedBound = 5 * time.Second

// losses are all of them.
func losses() []loss {
	all := []loss{
		{kind{name: "lost-disk", inject: loseEverything}, "the sandbox lasting"},
		{kind{name: "lost-file", inject: loseFile}, "not there, and what was acknowledged"},
		{kind{name: "lost-message", inject: loseMessages}, "in its session"},
		{kind{name: "lost-mirror", inject: loseMirror}, "the mirror does not have"},
		{kind{name: "lost-event", inject: loseEvent}, "of the task"},
		{kind{name: "lost-webhook", inject: loseWebhooks}, "the API was not told"},
		{kind{name: "left-volume", inject: leaveVolume}, "the volume agentpod-gone-0 is left"},
		{kind{name: "back-from-the-dead", inject: bringBack}, "something deleted is back"},
	}
	for i := range all {
		all[i].hurry = true
	}
	return all
}

// loseEverything removes a sandbox's disk, and its snapshots from the store.
func loseEverything(ctx context.Context, s *scene) error {
	if err := removeDisk(ctx, s); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.lane.objects(), "snapshots", lasting))
}

// inside runs a command in the lasting sandbox, of which the ledger knows nothing.
func (s *scene) inside(ctx context.Context, command string) {
	s.work.end()
	got := s.lane.retry(ctx, requestBound, http.MethodPost, "/sandbox/"+lasting+"/exec", object{"command": []string{"sh", "-c", command}})
	if !got.ok() {
		s.say(0, "the harness cannot lose what it is to lose: %s", got)
	}
}

// loseFile removes the newest file that was acknowledged.
func loseFile(ctx context.Context, s *scene) error {
	s.work.end()
	written, ok := s.put(ctx, s.lane.ledger.get(lasting))
	if ok && !written.IsZero() {
		s.inside(ctx, "rm -f /home/user/workspace/f-probe*")
	}
	return nil
}

// loseMessages empties the stand-in's sessions.
func loseMessages(ctx context.Context, s *scene) error {
	s.work.end()
	s.work.message(ctx, s.lane.ledger.get(lasting), s.rng)
	s.inside(ctx, "cd /home/user/.local/share/opencode/storage && grep -v answer- standin.jsonl > kept; cat kept > standin.jsonl; pkill -9 opencode")
	return nil
}

// loseMirror removes what a sync has acknowledged from the store.
func loseMirror(ctx context.Context, s *scene) error {
	s.work.end()
	a := s.lane.ledger.get(lasting)
	if _, ok := s.put(ctx, a); ok {
		s.work.sync(ctx, a)
	}
	return os.RemoveAll(filepath.Join(s.lane.objects(), "workspaces", lasting))
}

// loseEvent removes one event of each task from the database.
func loseEvent(ctx context.Context, s *scene) error {
	if wrong := within(ctx, requestBound, func() string {
		s.lane.ledger.mu.Lock()
		defer s.lane.ledger.mu.Unlock()
		if len(s.lane.ledger.tasks) == 0 {
			return "none was launched"
		}
		return ""
	}); wrong != "" {
		return fmt.Errorf("losing an event of a task: %s", wrong)
	}
	s.work.end()
	pause(ctx, 3*time.Second) // its last events come
	return s.lane.world.database.program(ctx, "psql", "-h", "127.0.0.1", "-p", s.lane.world.database.port, "-U", "test", "-d", s.lane.name,
		"-c", "DELETE FROM agent_task_events WHERE seq = 2")
}

// loseWebhooks tells the gateway that its webhooks were taken, and drops them.
func loseWebhooks(ctx context.Context, s *scene) error {
	s.lane.receiver.add(rule{mode: fail, status: http.StatusOK, body: `{}`}) // until the lane is replaced
	s.work.end()
	id := s.lane.id("told")
	s.work.create(ctx, id)
	return nil
}

// leaveVolume makes a volume that looks like a deleted sandbox's.
func leaveVolume(ctx context.Context, s *scene) error {
	body := fmt.Sprintf(`{"Name":"agentpod-gone-0","Labels":{"agentpod.installation":%q}}`, s.lane.installation)
	s.lane.engine.add(rule{
		match: func(r *http.Request) bool {
			return engineCallTo("volume-remove")(r) && strings.Contains(r.URL.Path, "agentpod-gone-0")
		},
		mode: fail, status: http.StatusInternalServerError, body: `{}`,
	})
	return s.engine().call(ctx, http.MethodPost, "/volumes/create", strings.NewReader(body), nil)
}

// bringBack writes a file that no actor has asked for.
func bringBack(ctx context.Context, s *scene) error {
	s.inside(ctx, "echo old > /home/user/workspace/f-old")
	return nil
}
