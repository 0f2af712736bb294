package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// violation is a promise that was not kept. Number is that of the fault in the list of
// docs/reliability.md which it looks like; 0 for none of them.
type violation struct {
	Number int    `json:"number"`
	What   string `json:"what"`
}

// oracle checks a lane against its ledger when a fault is healed.
type oracle struct {
	lane *lane
	kind *kind
	work *workload

	mu    sync.Mutex
	found []violation
}

// say notes a violation. The kind's own number stands above the check's.
func (o *oracle) say(number int, format string, args ...any) {
	if o.kind.number != 0 {
		number = o.kind.number
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.found = append(o.found, violation{number, fmt.Sprintf(format, args...)})
}

// check runs all checks and returns what they found.
func (o *oracle) check(ctx context.Context) []violation {
	o.finishDeletes(ctx)
	var group sync.WaitGroup
	for _, a := range o.lane.ledger.all() {
		group.Go(func() { o.account(ctx, a) })
	}
	group.Go(func() { o.tasks(ctx) })
	group.Wait()
	o.noOthers(ctx)
	o.states(ctx)
	o.leftovers(ctx)
	o.webhooks(ctx)
	for _, late := range o.lane.slow.take() {
		o.say(4, "an answer took longer than %s: %s", requestBound, late)
	}
	return o.found
}

// bound is how long the oracle waits for something.
func (o *oracle) bound(limit time.Duration) time.Duration {
	if o.kind.hurry {
		return hurriedBound
	}
	return limit
}

// finishDeletes asks again for each delete that was not acknowledged, as a caller would.
func (o *oracle) finishDeletes(ctx context.Context) {
	for _, a := range o.lane.ledger.all() {
		if !a.deleting {
			continue
		}
		got := o.lane.retry(ctx, o.bound(requestBound), http.MethodDelete, "/sandbox/"+a.id, nil)
		if !got.ok() {
			o.say(0, "the sandbox %s cannot be deleted: %s", a.id, got)
			continue
		}
		o.lane.ledger.close(a.id)
	}
}

// account checks one sandbox: it can be used, has everything that was acknowledged and
// nothing that was not asked for.
func (o *oracle) account(ctx context.Context, a *account) {
	const list = `cd /home/user/workspace && find . -type f -name 'f-*' -exec sha256sum {} + && echo -- && cat lines 2>/dev/null || true`
	got := o.lane.retry(ctx, o.bound(requestBound), http.MethodPost, "/sandbox/"+a.id+"/exec", object{"command": []string{"sh", "-c", list}})
	var done struct{ Stdout string }
	if err := got.into(&done); err != nil {
		o.say(3, "the sandbox %s cannot be used any more: %v", a.id, err)
		return
	}
	files, lines, _ := strings.Cut(done.Stdout, "--\n")
	o.files(a, files)
	o.commands(a, lines)
	o.mirror(a)
	o.sessions(ctx, a)
	o.stored(ctx, a)
	o.usable(ctx, a)
}

// stored checks that what was written long ago is in a snapshot by now, whoever looked
// at it meanwhile. A time in which the store did not work does not count.
func (o *oracle) stored(ctx context.Context, a *account) {
	if len(a.unstored) == 0 || time.Since(a.unstored[0]) < leftoversBound || time.Since(o.lane.stored) < leftoversBound {
		return
	}
	var list sandbox.SnapshotsResponse
	if err := o.lane.retry(ctx, o.bound(requestBound), http.MethodGet, "/sandbox/"+a.id+"/snapshots", nil).into(&list); err != nil {
		o.say(0, "the snapshots of %s cannot be listed: %v", a.id, err)
		return
	}
	for _, snap := range list.Snapshots {
		a.unstored = slices.DeleteFunc(a.unstored, func(written time.Time) bool { return written.Before(snap.CreatedAt.Time) })
	}
	if len(a.unstored) > 0 && time.Since(a.unstored[0]) > leftoversBound {
		o.say(1, "what was written to %s %s ago is in none of its snapshots", a.id, time.Since(a.unstored[0]).Round(time.Second))
	}
}

func (o *oracle) files(a *account, listing string) {
	there := map[string]string{}
	for line := range strings.Lines(listing) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ./")
		there[name] = sum
	}
	for name, v := range a.files {
		if got := there[name]; !v.allows(got) {
			o.say(6, "the file %s of the sandbox %s is %s, and what was acknowledged is %s", name, a.id, orNothing(got), v.acknowledged)
		}
		// What it is now it stays: a write that was not acknowledged is over by now.
		*v = versions{acknowledged: there[name], synced: v.synced && there[name] == v.acknowledged}
		if v.acknowledged == "" {
			delete(a.files, name)
		}
	}
	for name, sum := range there {
		if a.files[name] == nil {
			o.say(0, "the file %s (%s) of the sandbox %s was written by nobody since its create: something deleted is back", name, sum, a.id)
		}
	}
}

func orNothing(hash string) string {
	if hash == "" {
		return "not there"
	}
	return hash
}

func (o *oracle) commands(a *account, listing string) {
	count := map[string]int{}
	for line := range strings.Lines(listing) {
		count[strings.TrimSpace(line)]++
	}
	for line, acknowledged := range a.commands {
		switch n := count[line]; {
		case acknowledged && n == 0:
			o.say(6, "what the command wrote that was acknowledged is not in the sandbox %s: %s", a.id, line)
		case n > 1:
			o.say(0, "a command ran %d times in the sandbox %s: %s", n, a.id, line)
		}
		if count[line] == 0 {
			delete(a.commands, line)
		} else {
			a.commands[line] = true
		}
	}
}

// mirror checks what a sync has acknowledged, on the S3 server's own disk.
func (o *oracle) mirror(a *account) {
	for name, v := range a.files {
		if !v.synced {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(o.lane.objects(), "workspaces", a.id, name))
		if err != nil {
			o.say(0, "the sync of %s was acknowledged, and the mirror does not have %s: %v", a.id, name, err)
		} else if got := hash(raw); got != v.acknowledged {
			o.say(0, "the sync of %s was acknowledged, and the mirror's %s is %s, not %s", a.id, name, got, v.acknowledged)
		}
	}
}

// objects is the folder of the lane's objects, on the S3 server's disk.
func (l *lane) objects() string { return filepath.Join(l.world.s3.Folder, l.name) }

// sessions checks that every message that was acknowledged is in its session, with
// its answer.
func (o *oracle) sessions(ctx context.Context, a *account) {
	history := map[string]string{}
	for _, t := range a.turns {
		if t.reply != strings.TrimPrefix(t.text, "say ") {
			o.say(0, "a message of the sandbox %s was answered %q: %s", a.id, t.reply, t.text)
		}
		if _, ok := history[t.session]; !ok {
			got := o.lane.retry(ctx, o.bound(requestBound), http.MethodGet, "/sandbox/"+a.id+"/opencode/session/"+t.session+"/message", nil)
			if !got.ok() {
				o.say(6, "the session %s of the sandbox %s, which was acknowledged, cannot be read: %s", t.session, a.id, got)
			}
			history[t.session] = string(got.raw)
		}
		if n := strings.Count(history[t.session], `"`+t.text+`"`); n != 1 {
			o.say(6, "a message that was acknowledged is %d times in its session of the sandbox %s: %s", n, a.id, t.text)
		}
	}
}

// usable checks that a sandbox takes work.
func (o *oracle) usable(ctx context.Context, a *account) {
	content := []byte("written after " + o.kind.name)
	name := o.lane.id("f-after")
	got := o.lane.retry(ctx, o.bound(requestBound), http.MethodPut, "/sandbox/"+a.id+"/files/workspace/"+name, content)
	if !got.ok() {
		o.say(3, "the sandbox %s takes no file any more: %s", a.id, got)
		return
	}
	a.wrote(name, content, true)
	got = o.lane.retry(ctx, o.bound(requestBound), http.MethodPost, "/sandbox/"+a.id+"/message", object{"message": "say still here"})
	var done struct{ Response string }
	if err := got.into(&done); err != nil || done.Response != "still here" {
		o.say(3, "the sandbox %s answers no message any more: %s", a.id, got)
	}
}

// task is a task as the API shows it.
type task struct {
	ID, Status, Response, Error, SandboxID string
}

func (t task) ended() bool { return t.Status != "" && t.Status != "pending" && t.Status != "running" }

// tasks checks that every task of the point has ended once, with what its agent said,
// and that its events are all there, once and in order.
func (o *oracle) tasks(ctx context.Context) {
	deadline := time.Now().Add(tasksBound)
	for _, launch := range o.lane.ledger.launches() {
		var t task
		if wrong := within(ctx, time.Until(deadline), func() string {
			got := o.lane.callAPI(ctx, http.MethodGet, "/api/v2/agents/task/"+launch.id, nil)
			if err := got.into(&t); err != nil {
				return err.Error()
			}
			if !t.ended() {
				return "it is " + t.Status
			}
			return ""
		}); wrong != "" {
			o.say(8, "the task %s has not ended within %s: %s", launch.id, tasksBound, wrong)
			continue
		}
		o.task(ctx, launch, t)
	}
}

func (o *oracle) task(ctx context.Context, launch *launched, t task) {
	got := o.lane.callAPI(ctx, http.MethodGet, "/api/v2/agents/task/"+launch.id+"/stream", nil)
	if !got.ok() {
		o.say(0, "the events of the task %s cannot be read: %s", launch.id, got)
		return
	}
	text, code, ends, number := "", "", 0, 0
	for block := range strings.SplitSeq(string(got.raw), "\n\n") {
		id, data := "", ""
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch name {
			case "id":
				id = value
			case "data":
				data = value
			}
		}
		var e struct{ Type, Content, Code string }
		if json.Unmarshal([]byte(data), &e) != nil || e.Type == "keepalive" {
			continue
		}
		number++
		if id != fmt.Sprint(number) {
			o.say(0, "event %d of the task %s has the number %s", number, launch.id, id)
		}
		switch e.Type {
		case "chunk":
			text += e.Content
		case "done", "error":
			ends++
			code = e.Code
		}
	}
	if ends != 1 {
		o.say(0, "the task %s has %d ends", launch.id, ends)
	}
	switch {
	case t.Status == "completed" && (text != launch.want || t.Response != launch.want):
		o.say(0, "the task %s has the events' text %q and the response %q, not %q", launch.id, text, t.Response, launch.want)
	case t.Status == "failed" && !o.mayFail(code, t.Error):
		o.say(8, "the task %s failed, and need not have: %s: %s", launch.id, code, t.Error)
	case t.Status != "completed" && t.Status != "failed":
		o.say(0, "the task %s is %s", launch.id, t.Status)
	}
}

// mayFail tells whether a fault of this kind can be the end of a task: only of one
// whose agent it has ended.
func (o *oracle) mayFail(code, text string) bool {
	return o.kind.interrupts && (strings.Contains(text, "interrupted") || code == "opencode_down" || code == "turn_deadline")
}

// noOthers checks that nothing that was deleted is there.
func (o *oracle) noOthers(ctx context.Context) {
	var list struct{ Sandboxes []struct{ SandboxID string } }
	if err := o.lane.retry(ctx, o.bound(requestBound), http.MethodGet, "/sandboxes?limit=100&userId=user_1", nil).into(&list); err != nil {
		o.say(0, "the sandboxes cannot be listed: %v", err)
		return
	}
	for _, s := range list.Sandboxes {
		if o.lane.ledger.get(s.SandboxID) != nil {
			continue
		}
		// A create whose answer was lost: its caller deletes what came of it.
		if got := o.lane.retry(ctx, o.bound(requestBound), http.MethodDelete, "/sandbox/"+s.SandboxID, nil); !got.ok() {
			o.say(0, "the sandbox %s, whose create was not acknowledged, cannot be deleted: %s", s.SandboxID, got)
		}
	}
	for _, a := range o.lane.ledger.all() {
		if !slices.ContainsFunc(list.Sandboxes, func(s struct{ SandboxID string }) bool { return s.SandboxID == a.id }) {
			o.say(0, "the sandbox %s was created and is not listed", a.id)
		}
	}
}

// states checks that what the gateway says of each sandbox is what the engine says.
func (o *oracle) states(ctx context.Context) {
	wrong := within(ctx, o.bound(stateBound), func() string {
		containers, err := o.lane.world.engine.containers(ctx, o.lane.installation)
		if err != nil {
			return err.Error()
		}
		for _, a := range o.lane.ledger.all() {
			var info struct{ Status, Tier string }
			if err := o.lane.call(ctx, http.MethodGet, "/sandbox/"+a.id, nil).into(&info); err != nil {
				return err.Error()
			}
			state := containers[o.lane.container(a.id)].State
			if want := map[string]string{"running": "running", "frozen": "paused", "stopped": "exited created", "archived": ""}[info.Tier]; info.Tier == "" || !strings.Contains(want, state) {
				return fmt.Sprintf("the gateway says that %s is %s %s, and the engine %q", a.id, info.Status, info.Tier, state)
			}
		}
		return ""
	})
	if wrong != "" {
		o.say(4, "not within %s: %s", stateBound, wrong)
	}
}

// leftovers checks that nothing is left of what was deleted: containers, volumes,
// objects.
func (o *oracle) leftovers(ctx context.Context) {
	wrong := within(ctx, o.bound(leftoversBound), func() string { return o.leftover(ctx) })
	if wrong != "" {
		o.say(2, "%s is left %s after its DELETE", wrong, leftoversBound)
	}
}

func (o *oracle) leftover(ctx context.Context) string {
	l := o.lane
	var list struct{ Sandboxes []struct{ SandboxID string } }
	if err := l.call(ctx, http.MethodGet, "/sandboxes?limit=100", nil).into(&list); err != nil {
		return err.Error()
	}
	alive := map[string]bool{}
	for _, s := range list.Sandboxes {
		alive[s.SandboxID] = true
	}
	for _, folder := range []string{"sandboxes", "snapshots", "mirrors", "workspaces"} {
		entries, err := os.ReadDir(filepath.Join(l.objects(), folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err.Error()
		}
		for _, e := range entries {
			if !alive[e.Name()] && holdsFiles(filepath.Join(l.objects(), folder, e.Name())) {
				return "the object " + folder + "/" + e.Name()
			}
		}
	}
	containers, err := l.world.engine.containers(ctx, l.installation)
	if err != nil {
		return err.Error()
	}
	prefix := l.container("")
	for name := range containers {
		if id := strings.TrimPrefix(name, prefix); !strings.HasPrefix(id, ".pool-") && !alive[id] {
			return "the container " + name
		}
	}
	return l.strayVolume(ctx, containers)
}

// strayVolume returns a volume that belongs to nothing: no container has it mounted,
// no record names it, and no member of the pool will have it.
func (l *lane) strayVolume(ctx context.Context, containers map[string]container) string {
	volumes, err := l.world.engine.volumes(ctx, l.installation)
	if err != nil {
		return err.Error()
	}
	wanted := map[string]bool{}
	for name := range containers {
		got, err := l.world.engine.inspect(ctx, name)
		if err != nil {
			return err.Error()
		}
		for _, m := range got.Mounts {
			wanted[m.Name] = true
		}
	}
	records, _ := filepath.Glob(filepath.Join(l.objects(), "sandboxes", "*", "record.json")) // the pattern is ours
	var said strings.Builder
	for _, record := range records {
		raw, err := os.ReadFile(record)
		if err != nil {
			continue // deleted meanwhile
		}
		said.Write(raw)
	}
	for _, v := range volumes {
		if base := strings.TrimSuffix(v, ".free"); !wanted[base] && !strings.Contains(said.String(), `"`+v+`"`) {
			return "the volume " + v
		}
	}
	return ""
}

// holdsFiles tells whether there is anything but folders below a path.
func holdsFiles(root string) bool {
	found := false
	_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = true
			return fs.SkipAll
		}
		return nil // deleted meanwhile
	})
	return found
}

// webhooks checks that what was acknowledged was told, and in order.
func (o *oracle) webhooks(ctx context.Context) {
	if !o.kind.forgets { // what was not told yet is in memory only
		wrong := within(ctx, o.bound(leftoversBound), func() string {
			for _, a := range o.work.acknowledged() {
				if !o.lane.events.has(a.event, a.id, a.since) && !o.superseded(a) {
					return fmt.Sprintf("%s of %s", a.event, a.id)
				}
			}
			return ""
		})
		if wrong != "" {
			o.say(9, "the API was not told within %s: %s", leftoversBound, wrong)
		}
	}
	if late, early, found := o.lane.events.overtaken(); found {
		o.say(0, "webhooks of %s overtook each other: %s of %s came before %s of %s", late.Data.SandboxID,
			early.Event, early.Timestamp.Format(time.StampMilli), late.Event, late.Timestamp.Format(time.StampMilli))
	}
}

// superseded tells whether a sandbox was deleted after a create: then the create need
// not be told any more.
func (o *oracle) superseded(a acked) bool {
	return a.event == "sandbox.created" && slices.ContainsFunc(o.work.acknowledged(), func(later acked) bool {
		return later.id == a.id && later.event == "sandbox.deleted" && later.since.After(a.since)
	})
}

// grown checks that a gateway gathers neither memory, nor goroutines, nor files.
func grown(before, now figures) string {
	switch {
	case now.memory > before.memory+200<<20:
		return fmt.Sprintf("the gateway has %d MiB of memory, and had %d", now.memory>>20, before.memory>>20)
	case now.goroutines > before.goroutines+300:
		return fmt.Sprintf("the gateway has %d goroutines, and had %d", now.goroutines, before.goroutines)
	case now.files > before.files+200:
		return fmt.Sprintf("the gateway has %d files open, and had %d", now.files, before.files)
	}
	return ""
}
