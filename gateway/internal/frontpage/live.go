package frontpage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
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
// "gone" with {id, deleted}, "pages" with the {html} of the links to other pages;
// "whole" once, when all that there are were sent. The stream ends with the session.
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
	there := map[string]bool{"": true}
	if shown[""] != v.Next { // no id
		shown[""] = v.Next
		event(&out, "pages", map[string]string{"html": p.part("pages", v)})
	}
	// The last first: each is put before one that is there.
	before := ""
	for _, c := range slices.Backward(v.Cards) {
		there[c.ID] = true
		if shown[c.ID] != c.Version {
			shown[c.ID] = c.Version
			event(&out, "card", map[string]string{"id": c.ID, "before": before, "html": p.part("card", c)})
		}
		before = c.ID
	}
	for id := range shown {
		if there[id] {
			continue
		}
		delete(shown, id)
		gone := map[string]string{"id": id}
		if _, err := p.Sandboxes.Whose(id); err != nil { // otherwise it is on another page now
			gone["deleted"] = "true"
		}
		event(&out, "gone", gone)
	}
	return out.Bytes()
}

// part makes a piece of the page.
func (p *Page) part(name string, view any) string {
	var html strings.Builder
	if err := pages.ExecuteTemplate(&html, name, view); err != nil {
		p.Log.Error("a part of the page could not be made", "part", name, "error", err)
	}
	return html.String()
}

func event(out *bytes.Buffer, name string, data map[string]string) {
	raw, err := json.Marshal(data) // has no line break
	if err != nil {
		return // a map of texts
	}
	fmt.Fprintf(out, "event: %s\ndata: %s\n\n", name, raw)
}
