package browsertest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

//nolint:gochecknoglobals // shared on purpose, closed by TestMain
var browser Browser

func TestMain(m *testing.M) {
	Become()
	code := m.Run()
	err := browser.Close()
	if err == nil {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// careless is a server that lets every page read and do what it likes.
func careless(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
	header.Set("Access-Control-Allow-Credentials", "true")
	header.Set("Access-Control-Allow-Headers", "Content-Type, Authorization")
	header.Set("Access-Control-Allow-Methods", "POST, DELETE")
	kind, body := "text/plain", "x"
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "script":
		kind, body = "text/javascript", ""
	case "style":
		kind, body = "text/css", ""
	case "image":
		kind, body = "image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>`
	}
	if strings.Contains(r.Header.Get("Accept"), "event-stream") {
		kind, body = "text/event-stream", "data: x\n\n"
	}
	header.Set("Content-Type", kind)
	_, _ = io.WriteString(w, body)
}

func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

func TestAnAttackThatGetsThroughIsTold(t *testing.T) {
	hostile := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><p>hostile</p>`)
	})
	p := browser.Tab(t)
	p.GoTo(hostile)
	p.Shows("hostile")
	target := serve(t, careless)
	through, _ := p.Attack(target)
	var want []string
	for _, name := range []string{"a picture", "a read", "a read with a token", "a removal", "a script", "a style", "a write of JSON", "events"} {
		want = append(want, name+" of "+target)
	}
	if !slices.Equal(through, want) {
		t.Errorf("got through: %q", through)
	}
	refused := 0
	through, requests := p.Attack(serve(t, func(w http.ResponseWriter, _ *http.Request) {
		refused++ // one after the other
		w.WriteHeader(http.StatusForbidden)
	}))
	if len(through) > 0 || refused < requests {
		t.Errorf("of %d that arrived, of %d, got through: %q", refused, requests, through)
	}
}

func TestTabsHaveCookiesOfTheirOwnUnlessTheyAreBesideEachOther(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><p>page`)
	})
	one := browser.Tab(t)
	one.GoTo(address)
	one.JS(`(document.cookie = "mine=1")`)
	for p, want := range map[*Tab]string{one: "mine=1", one.Beside(): "mine=1", browser.Tab(t): ""} {
		p.GoTo(address)
		if got := p.JS("document.cookie"); got != want {
			t.Errorf("cookies %q, want %q", got, want)
		}
	}
}

func TestATabIsUsedAsByHandAndNotesWhatHappens(t *testing.T) {
	p := browser.Tab(t)
	p.GoTo(serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><input><button onclick="document.body.append('got ' + document.querySelector('input').value)">go</button>`)
	}))
	p.Click("input")
	p.Enter("typed")
	p.Click("button")
	p.Shows("got typed")
	if got := p.Traffic("/"); got.Asked != 1 || got.Answered != 1 || got.Chunks == 0 {
		t.Errorf("traffic %+v", got)
	}
	if errors := p.Console(); len(errors) > 0 {
		t.Errorf("the console has %q", errors)
	}
	p.JS(`(console.error("said"), "")`)
	var errors []string
	for tries := 0; len(errors) == 0 && tries < 100; tries++ { // they come by another way than the answers
		p.JS(`new Promise(done => requestAnimationFrame(done))`)
		errors = p.Console()
	}
	if len(errors) != 1 || !strings.Contains(errors[0], "said") {
		t.Errorf("the console has %q", errors)
	}
}
