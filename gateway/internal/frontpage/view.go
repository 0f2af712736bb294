package frontpage

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

//go:embed pages.html style.css script.js
var files embed.FS

//nolint:gochecknoglobals // a constant, parsed once
var pages = template.Must(template.New("").ParseFS(files, "pages.html"))

// perPage is how many sandboxes a page shows.
const perPage = 50

// maxShown bounds a text that came from a sandbox or a caller, in bytes.
const maxShown = 400

type (
	signInView  struct{ Problem string }
	problemView struct{ Problem string }

	homeView struct {
		Cards []card
		After string // the page begins after this id
		Next  string // so does the next one, if there is one
		Form  createForm
		// Address is the gateway's.
		Address string
	}
)

// card is what is shown of one sandbox.
type card struct {
	ID, Owner, Repository string
	State, Tone           string // in words, and what it looks like
	Active, ActiveAt      string // the last activity, in words and to the second
	Size                  string
	Steps                 []step
	Problem               string // what is wrong with the sandbox
	Failed                string // what went wrong that was asked for here
	Said                  string // what was done
	CanOpen, CanSync      bool
	CanWake, CanDelete    bool
	Tiers                 []tier // to which it can be put to sleep
	// Version is another one whenever anything of the rest is.
	Version string
}

// step is something that takes long. Percent is -1 if it is not known.
type step struct {
	Text    string
	Percent int
}

type tier struct {
	Tier       sandbox.Tier
	Name, Text string
}

// tiers are the steps down, the lightest sleep first.
func tiers() []tier {
	return []tier{
		{sandbox.TierFrozen, "Freeze", "keeps its memory, wakes at once"},
		{sandbox.TierStopped, "Stop", "keeps its disk, wakes in seconds"},
		{sandbox.TierArchived, "Archive", "keeps only what is stored, wakes in seconds or more"},
	}
}

// view makes the page that begins after an id.
func (p *Page) view(after string, f createForm) homeView {
	list := p.Sandboxes.List(lifecycle.Filter{Cursor: after, Limit: perPage})
	now, done := time.Now(), p.jobs.look()
	v := homeView{After: after, Next: list.NextCursor, Form: f, Address: p.settings.Address}
	for _, info := range list.Sandboxes {
		v.Cards = append(v.Cards, p.cardOf(info, done[info.SandboxID], now))
		delete(done, info.SandboxID)
	}
	// What was asked for and is not there: a create that has only begun, or failed. The
	// first page shows those of all, since nobody looks for them on another.
	for id, one := range done {
		here := after == "" || id > after && (v.Next == "" || id < v.Next)
		if one.verb == "create" && here && (one.running || one.err != nil) {
			v.Cards = append(v.Cards, p.cardOf(sandbox.Info{SandboxID: id, UserID: Owner, Status: sandbox.StatusCreating}, one, now))
		}
	}
	slices.SortFunc(v.Cards, func(a, b card) int { return strings.Compare(a.ID, b.ID) })
	for i := range v.Cards {
		v.Cards[i].Version = versionOf(v.Cards[i])
	}
	return v
}

func versionOf(c card) string {
	raw, err := json.Marshal(c)
	if err != nil {
		return "" // a struct of texts
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

func (p *Page) cardOf(info sandbox.Info, at seen, now time.Time) card {
	c := card{
		ID: info.SandboxID, Owner: printable.Line(info.UserID, maxShown), Repository: printable.Line(info.GitURL, maxShown),
		Problem: printable.Line(info.LastError, maxShown), CanDelete: true,
	}
	if last := info.LastActiveAt.Time; !last.IsZero() {
		c.Active, c.ActiveAt = ago(now.Sub(last)), last.UTC().Format(time.RFC3339)
	}
	if s := info.LastSnapshot; s != nil {
		c.Size = bytesText(s.Bytes) + " in " + filesText(s.Files)
	}
	c.State, c.Tone = stateOf(info)
	asleep := info.Status == sandbox.StatusSleeping || info.Status == sandbox.StatusStopped
	usable := asleep || info.Status == sandbox.StatusRunning
	c.CanOpen, c.CanSync, c.CanWake = usable && p.UI != nil, usable, asleep
	if usable {
		for _, t := range tiers() {
			if c.Tiers = append(c.Tiers, t); info.Tier == t.Tier {
				c.Tiers = nil // only what is deeper
			}
		}
	}
	for _, s := range info.Progress {
		one := step{Text: s.String() + since(s.Since.Time, now), Percent: -1}
		if s.Percent != nil {
			one.Percent = *s.Percent
		}
		c.Steps = append(c.Steps, one)
	}
	c.follow(at, now)
	return c
}

// follow adds what was asked for on the page.
func (c *card) follow(at seen, now time.Time) {
	switch {
	case at.verb == "":
	case at.running:
		c.CanOpen, c.CanSync, c.CanWake, c.CanDelete, c.Tiers = false, false, false, at.verb == "create", nil
		if len(c.Steps) == 0 {
			c.Steps = []step{{Text: verbText(at.verb) + since(at.began, now), Percent: -1}}
		}
	case at.err != nil:
		c.Failed = verbFailed(at.verb) + ": " + printable.Line(public(at.err).Message, 4*maxShown)
		if at.verb == "create" && c.ActiveAt == "" { // there is no sandbox
			c.State, c.Tone, c.CanDelete = "Not created", "bad", false
		}
	default:
		c.Said = at.said
	}
}

func stateOf(info sandbox.Info) (text, tone string) {
	switch info.Status {
	case sandbox.StatusRunning:
		return "Running", "good"
	case sandbox.StatusCreating:
		return "Being created", "busy"
	case sandbox.StatusError:
		return "Broken", "bad"
	case sandbox.StatusStopped:
		return "Ended by itself", "bad"
	case sandbox.StatusSleeping:
	}
	switch info.Tier {
	case sandbox.TierFrozen:
		return "Asleep, frozen", "calm"
	case sandbox.TierStopped:
		return "Asleep, stopped", "calm"
	case sandbox.TierArchived:
		return "Asleep, archived", "calm"
	default:
		return "Asleep", "calm"
	}
}

func verbText(verb string) string {
	return map[string]string{
		"create": "Creating", "wake": "Waking", "sync": "Syncing", "hibernate": "Putting it to sleep", "delete": "Deleting",
	}[verb]
}

func verbFailed(verb string) string {
	return map[string]string{
		"create": "It could not be created", "wake": "It could not be woken", "sync": "It could not be synced",
		"hibernate": "It could not be put to sleep", "delete": "It could not be deleted",
	}[verb]
}

// ago says how long ago something was, as exactly as anybody wants to know.
func ago(d time.Duration) string {
	if d < time.Minute {
		return "just now"
	}
	return span(d) + " ago"
}

// since is for how long something lasts already, if that is worth a word.
func since(began, now time.Time) string {
	if now.Sub(began) < time.Second {
		return ""
	}
	return ", " + span(now.Sub(began))
}

func span(d time.Duration) string {
	d = max(d, 0)
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	case d < 2*day:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	default:
		return strconv.Itoa(int(d/day)) + " days"
	}
}

func filesText(n int64) string {
	if n == 1 {
		return "1 file"
	}
	return strconv.FormatInt(n, 10) + " files"
}

func bytesText(n int64) string {
	units := []string{"bytes", "kB", "MB", "GB", "TB"}
	value, unit := float64(max(n, 0)), 0
	for value >= 1000 && unit < len(units)-1 {
		value, unit = value/1000, unit+1
	}
	digits := 0
	if unit > 0 && value < 10 {
		digits = 1
	}
	return strconv.FormatFloat(value, 'f', digits, 64) + " " + units[unit]
}

// render writes a page.
func (p *Page) render(w http.ResponseWriter, status int, name string, view any) {
	var body bytes.Buffer
	if err := pages.ExecuteTemplate(&body, name, view); err != nil {
		p.Log.Error("a page could not be made", "page", name, "error", err)
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // to somebody who left
}

// serveAsset serves a file that is the same for everybody.
func serveAsset(name string) http.HandlerFunc {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache") // but kept, and asked about
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}
