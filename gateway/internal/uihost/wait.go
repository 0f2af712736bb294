package uihost

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// waitingHeader is on the questions of the waiting page, which are the gateway's
	// to answer.
	waitingHeader = "Agentpod-Waiting"
	// patience is how long a visitor sees nothing, so that a sandbox which is only
	// frozen shows no waiting page.
	patience = 300 * time.Millisecond
	// failureKept is how long the page can still ask how a wake has failed.
	failureKept = time.Minute
)

// receive is for a visitor who wants a page: if the sandbox sleeps it is woken, and
// they are shown that. It says whether they were shown anything.
func (h *Host) receive(w http.ResponseWriter, r *http.Request, p pass, from origin) (shown bool, err error) {
	_, running, err := h.Sandboxes.Peek(p.SandboxID)
	if err != nil {
		return false, err //nolint:wrapcheck // it is for the caller
	}
	if running && from == fromItself {
		return false, nil
	}
	text := "It opens in a moment."
	if !running {
		info, err := h.Sandboxes.Get(r.Context(), p.SandboxID)
		if err != nil {
			return false, err //nolint:wrapcheck // it is for the caller
		}
		text = waitingFor(info)
		one := h.wakes.begin(h.Sandboxes, p)
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-one.done:
			if one.err != nil || from == fromItself {
				return false, one.err
			}
		case <-timer.C:
		case <-r.Context().Done():
			return true, nil
		}
	}
	// Who came from elsewhere goes on from this page: the UI itself is only for
	// those who come from its own host, also when they reload it.
	h.page(w, http.StatusAccepted, view{Title: "Opening the sandbox " + p.SandboxID, Text: text, Waiting: true})
	return true, nil
}

func waitingFor(info sandbox.Info) string {
	switch {
	case info.Status == sandbox.StatusCreating:
		return "It is being created. This takes some seconds, longer with a large repository."
	case info.Tier == sandbox.TierArchived:
		return "It was archived, and is being restored. This takes some seconds, longer if there is much in it."
	default:
		return "It was asleep, and is being woken. This takes a few seconds."
	}
}

// tell answers the waiting page.
func (h *Host) tell(ctx context.Context, w http.ResponseWriter, p pass) error {
	said := struct {
		State string `json:"state"`
		Text  string `json:"text,omitempty"` // what it waits for
		// Percent is how far that is, apart from the text, which is read out whenever it
		// is another.
		Percent *int   `json:"percent,omitempty"`
		Error   string `json:"error,omitempty"`
	}{State: "waiting"}
	_, running, err := h.Sandboxes.Peek(p.SandboxID)
	if err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	one := h.wakes.find(p)
	switch {
	case running || one == nil: // nobody wakes it any more: the page is to be asked for again
		said.State = "ready"
	case one.over():
		said.State = "ready"
		if one.err != nil {
			said.State, said.Error = "failed", sandbox.Public(one.err, "something went wrong in the gateway; its log has the cause").Message
		}
	default:
		if info, err := h.Sandboxes.Get(ctx, p.SandboxID); err == nil {
			said.Text, said.Percent = steps(info)
		}
	}
	ownReply(w.Header(), "application/json", "default-src 'none'")
	_ = json.NewEncoder(w).Encode(said) // a page that was left
	return nil
}

// steps are what a sandbox is at, in words, and how far it is with one of them;
// empty if that is nothing that takes long.
func steps(info sandbox.Info) (text string, percent *int) {
	var all []string
	for _, p := range info.Progress {
		if p.Percent != nil {
			percent, p.Percent = p.Percent, nil
		}
		all = append(all, p.String())
	}
	if len(all) > 0 {
		text = strings.Join(all, "; ") + "."
	}
	return text, percent
}

func (w *wake) over() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// find returns the last try for what a pass is for, nil if there is none or it was
// long ago.
func (w *wakes) find(p pass) *wake {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open[p.Incarnation]
}

// begin returns the try that is on its way, or begins one.
func (w *wakes) begin(sandboxes Sandboxes, p pass) *wake {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(w.open, func(_ string, old *wake) bool { return old.over() && now.Sub(old.ended) > failureKept })
	if one := w.open[p.Incarnation]; one != nil && !one.over() {
		return one
	}
	one := &wake{done: make(chan struct{})}
	if w.open == nil {
		w.open = map[string]*wake{}
	}
	w.open[p.Incarnation] = one
	w.running.Go(func() {
		used, err := sandboxes.Use(w.base, p.SandboxID, lifecycle.Looking)
		if err == nil {
			used.Release()
			if used.Incarnation != p.Incarnation {
				err = lifecycle.ErrDeleted
			}
		}
		if cause := context.Cause(w.base); cause != nil {
			err = cause
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		one.err, one.ended = err, time.Now()
		if err == nil {
			delete(w.open, p.Incarnation)
		}
		close(one.done)
	})
	return one
}
