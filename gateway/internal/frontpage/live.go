package frontpage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// liveEvery is how often the page is looked at for what has changed.
	liveEvery = time.Second
	// beatEvery is how often a stream says something if nothing has, and writeLimit
	// how long its reader may take.
	beatEvery  = 15 * time.Second
	writeLimit = 10 * time.Second
)

// live sends the cards of a page as they change: "card" with {id, before, html},
// "gone" with {id}; "whole" once, when all that there are were sent. The stream ends
// with the session.
func (p *Page) live(w http.ResponseWriter, r *http.Request, s *session) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	after := r.URL.Query().Get("after")
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	shown := map[string]string{} // versions
	last := time.Now()
	whole := []byte("event: whole\ndata: {}\n\n")
	for {
		out := append(p.changes(after, shown), whole...)
		whole = nil
		if len(out) == 0 && time.Since(last) >= beatEvery {
			out = []byte(":\n\n")
		}
		if len(out) > 0 {
			last = time.Now()
			_ = control.SetWriteDeadline(last.Add(writeLimit))
			if _, err := w.Write(out); err != nil {
				return nil // the reader left
			}
			if err := control.Flush(); err != nil {
				return nil // the reader left
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return nil
		case <-s.life.Done():
			return nil
		case <-p.settings.Streams.Done():
			return nil
		}
	}
}

// changes are the events that lead from what is shown to what is.
func (p *Page) changes(after string, shown map[string]string) []byte {
	v := p.view(after, createForm{})
	var out bytes.Buffer
	there := map[string]bool{}
	for i, c := range v.Cards {
		there[c.ID] = true
		if shown[c.ID] == c.Version {
			continue
		}
		shown[c.ID] = c.Version
		var html bytes.Buffer
		if err := pages.ExecuteTemplate(&html, "card", c); err != nil {
			p.Log.Error("a card could not be made", "sandboxId", c.ID, "error", err)
			continue
		}
		before := ""
		if i+1 < len(v.Cards) {
			before = v.Cards[i+1].ID
		}
		event(&out, "card", map[string]string{"id": c.ID, "before": before, "html": html.String()})
	}
	for id := range shown {
		if !there[id] {
			delete(shown, id)
			event(&out, "gone", map[string]string{"id": id})
		}
	}
	return out.Bytes()
}

func event(out *bytes.Buffer, name string, data map[string]string) {
	raw, err := json.Marshal(data) // has no line break
	if err != nil {
		return // a map of texts
	}
	fmt.Fprintf(out, "event: %s\ndata: %s\n\n", name, raw)
}
