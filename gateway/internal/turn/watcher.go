package turn

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/opencode"
)

// Bounds on what a look at a session may cost when OpenCode lists nonsense.
const (
	maxAnswers  = 32  // requests answered in one look
	maxLookups  = 32  // sessions asked for their parent in one look
	maxDepth    = 16  // generations of subagents
	maxRelative = 512 // sessions remembered
)

// watcher looks at a session while its turn runs: it remembers why the model is
// retried and answers requests of the session and its descendants. Its own
// failures cost nothing but that look.
type watcher struct {
	oc     *opencode.Client
	root   string
	every  time.Duration
	reply  opencode.Reply
	log    *slog.Logger
	family map[string]bool // session id → belongs to the turn

	mu    sync.Mutex
	retry string
}

func newWatcher(r *Runner, oc *opencode.Client, root string) *watcher {
	w := &watcher{
		oc: oc, root: root, every: r.PollEvery, reply: opencode.ReplyOnce,
		log: r.log().With("sessionId", root), family: map[string]bool{},
	}
	if w.every <= 0 {
		w.every = defaultPollEvery
	}
	if r.Policy == Deny {
		w.reply = opencode.ReplyReject
	}
	return w
}

// reason is what the model's provider said before the last retry, if any.
func (w *watcher) reason() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.retry
}

// run looks every now and then until the context ends.
func (w *watcher) run(ctx context.Context) {
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.look(ctx)
		}
	}
}

func (w *watcher) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	lookups := maxLookups
	w.look1(ctx, "status", func() error { return w.lookAtStatus(ctx, &lookups) })
	w.look1(ctx, "permissions", func() error { return w.answerPermissions(ctx, &lookups) })
	w.look1(ctx, "questions", func() error { return w.rejectQuestions(ctx, &lookups) })
}

func (w *watcher) look1(ctx context.Context, what string, look func() error) {
	if err := look(); err != nil && ctx.Err() == nil {
		w.log.DebugContext(ctx, "looking at a turn failed", "what", what, "error", err)
	}
}

func (w *watcher) lookAtStatus(ctx context.Context, lookups *int) error {
	all, err := w.oc.SessionStatus(ctx)
	if err != nil {
		return err
	}
	for id, status := range all {
		if status.Type == opencode.StatusRetry && status.Message != "" && w.belongs(ctx, id, lookups) {
			w.mu.Lock()
			w.retry = status.Message
			w.mu.Unlock()
		}
	}
	return nil
}

func (w *watcher) answerPermissions(ctx context.Context, lookups *int) error {
	waiting, err := w.oc.Permissions(ctx)
	if err != nil {
		return err
	}
	return answerAll(ctx, w, waiting, lookups, func(p opencode.PermissionRequest) string { return p.SessionID },
		func(p opencode.PermissionRequest) error { return w.oc.ReplyPermission(ctx, p.ID, w.reply) })
}

func (w *watcher) rejectQuestions(ctx context.Context, lookups *int) error {
	waiting, err := w.oc.Questions(ctx)
	if err != nil {
		return err
	}
	return answerAll(ctx, w, waiting, lookups, func(q opencode.Question) string { return q.SessionID },
		func(q opencode.Question) error { return w.oc.RejectQuestion(ctx, q.ID) })
}

// answerAll answers what waits for the turn's session and its descendants, up to
// maxAnswers. One that cannot be answered does not keep the others waiting; its
// error is returned in the end.
func answerAll[T any](ctx context.Context, w *watcher, waiting []T, lookups *int, sessionOf func(T) string, answer func(T) error) error {
	var failed error
	answers := 0
	for _, request := range waiting {
		if answers == maxAnswers {
			break
		}
		if !w.belongs(ctx, sessionOf(request), lookups) {
			continue
		}
		answers++
		if err := answered(answer(request)); err != nil {
			failed = err
		}
	}
	return failed
}

// answered forgives a request that somebody else answered first.
func answered(err error) error {
	if opencode.IsNotFound(err) {
		return nil
	}
	return err
}

// belongs reports whether a session is the turn's or descends from it. What is
// found out is kept, as a session's parent never changes.
func (w *watcher) belongs(ctx context.Context, id string, lookups *int) bool {
	if len(w.family) > maxRelative {
		clear(w.family)
	}
	var line []string
	known := false
	for at := id; ; {
		if at == w.root {
			known = true
			break
		}
		if belongs, ok := w.family[at]; ok {
			known = belongs
			break
		}
		if len(line) == maxDepth || slices.Contains(line, at) {
			break // no honest OpenCode has such a family
		}
		if *lookups == 0 {
			return false // a later look may get to it
		}
		*lookups--
		session, err := w.oc.GetSession(ctx, at)
		if err != nil {
			return false // perhaps the next look can tell
		}
		line = append(line, at)
		if session.ParentID == "" {
			break
		}
		at = session.ParentID
	}
	for _, relative := range line {
		w.family[relative] = known
	}
	return known
}
