package lifecycle

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// progress is a step that a sandbox is at. Its fields are guarded by box.mu.
type progress struct {
	step    sandbox.Step
	began   time.Time
	percent int // -1 if it is not known
}

// begin notes that a sandbox is at a step, until done is called, and in the
// timeline of who waits for it. tell says how far it is; it may be called at any time.
func (b *box) begin(ctx context.Context, step sandbox.Step) (tell func(percent int), done func()) {
	end := timeline.Begin(ctx, string(step))
	p := &progress{step: step, began: time.Now().UTC(), percent: -1}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = append(b.steps, p)
	tell = func(percent int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		p.percent = min(max(percent, 0), 100)
	}
	return tell, func() {
		end()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.steps = slices.DeleteFunc(b.steps, func(other *progress) bool { return other == p })
	}
}

// during is begin for a step that is not counted.
func (b *box) during(ctx context.Context, step sandbox.Step) (done func()) {
	_, done = b.begin(ctx, step)
	return done
}

// progressLocked are the steps as callers see them, the oldest first. The caller
// holds mu.
func (b *box) progressLocked() []sandbox.Progress {
	var all []sandbox.Progress
	for _, p := range b.steps {
		said := sandbox.Progress{Step: p.step, Since: sandbox.At(p.began)}
		if p.percent >= 0 {
			percent := p.percent
			said.Percent = &percent
		}
		all = append(all, said)
	}
	return all
}

// filesTold turns a count of files into a percentage of those of a snapshot, the
// newest if id is empty. It is nil if their number is not known.
func (b *box) filesTold(id string, tell func(percent int)) func(files int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := cmp.Or(b.snapshot, b.rec.Snapshot)
	if of == nil || of.Files == 0 || id != "" && id != of.ID {
		return nil
	}
	total := of.Files
	return func(files int64) { tell(int(files * 100 / total)) }
}

// cloning reads git's own account of a clone, as it writes it to stderr.
type cloning struct {
	tell func(percent int)
	rest []byte // of a line
}

// gitPhase is a line of git's about one of the phases of a clone.
var gitPhase = regexp.MustCompile(`^(Receiving objects|Resolving deltas|Updating files): +([0-9]{1,3})%`)

// read takes a piece of git's stderr and gives back what is not about progress.
func (c *cloning) read(piece []byte) (said []byte) {
	for _, char := range piece {
		if c.rest = append(c.rest, char); char != '\n' && char != '\r' && len(c.rest) < maxGitLine {
			continue
		}
		said = append(said, c.line()...)
	}
	return said
}

// maxGitLine bounds a line, for whatever stands in for git in a sandbox.
const maxGitLine = 4 << 10

// line takes the line at hand. Nearly all of the time goes into the first phase,
// so that it counts as nine tenths.
func (c *cloning) line() (said []byte) {
	defer func() { c.rest = nil }()
	found := gitPhase.FindSubmatch(c.rest)
	if found == nil {
		return c.rest
	}
	percent, err := strconv.Atoi(string(found[2]))
	if err != nil {
		return c.rest
	}
	switch string(found[1]) {
	case "Receiving objects":
		c.tell(percent * 9 / 10)
	case "Resolving deltas":
		c.tell(90 + percent/20)
	default:
		c.tell(95 + percent/20)
	}
	return nil
}

// run runs git and returns its stderr without what is about progress, and how it
// ended.
func (c *cloning) run(ctx context.Context, g *guest.Client, req guest.ExecRequest) (stderr []byte, exit guest.ExecEvent, err error) {
	err = g.Exec(ctx, req, func(event guest.ExecEvent) error {
		switch event.Type {
		case guest.EventStderr:
			stderr = append(stderr, c.read(event.Data)...)
		case guest.EventExit:
			stderr = append(append(stderr, c.line()...), event.Error...)
			exit = event
		}
		return nil
	})
	return stderr, exit, err
}
