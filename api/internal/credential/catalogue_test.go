package credential_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/api/internal/credential"
)

const secret = "a-secret-in-the-address"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listOf returns the catalogue as a user without credentials sees it.
func listOf(t testing.TB, c *credential.Catalogue) map[string]credential.Provider {
	t.Helper()
	s := credential.New(credential.Settings{Catalogue: c}, none{}, nil)
	list, err := s.List(t.Context(), "ada", false)
	must(t, err)
	byID := map[string]credential.Provider{}
	for _, p := range list {
		byID[p.ID] = p
	}
	return byID
}

// none has no credentials.
type none struct{ credential.Credentials }

func (none) List(context.Context, string) ([]credential.Credential, error) { return nil, nil }

func TestTheShippedCatalogueIsComplete(t *testing.T) {
	t.Parallel()
	c, err := credential.NewCatalogue("", nil, slog.New(slog.DiscardHandler))
	must(t, err)
	list := listOf(t, c)
	for _, id := range []string{"anthropic", "openai", "google", "openrouter", "mistral", "groq", "deepseek", "xai", "github-copilot", "togetherai", "fireworks-ai", "cerebras", "moonshotai", "zai", "ollama-cloud"} {
		p := list[id]
		if p.Name == "" || !p.Popular || len(p.Models) == 0 || p.DefaultModel == "" || (p.KeyEnv == "") != (p.AuthType == credential.AuthDeviceFlow) {
			t.Errorf("%s: %+v", id, p)
		}
		for _, m := range p.Models {
			if m.ID == "" || m.Name == "" || m.Context <= 0 || m.Output <= 0 || !m.ToolCall {
				t.Errorf("%s: %+v", id, m)
			}
		}
	}
	if p := list["github-copilot"]; p.AuthType != credential.AuthDeviceFlow {
		t.Errorf("%+v", p)
	}
	if p := list["anthropic"]; p.KeyEnv != "ANTHROPIC_API_KEY" || p.AuthType != credential.AuthAPIKey || p.DefaultModel != "claude-sonnet-5" {
		t.Errorf("%+v", p)
	}
}

// newer is a list as models.dev has it.
const newer = `{
	"openai":{"id":"openai","name":"Open\u001bAI","env":["OPENAI_API_KEY"],"models":{
		"old":{"id":"old","name":"Old","release_date":"2020-01-01","tool_call":true},
		"new":{"id":"new","release_date":"2030-01-01","tool_call":true,"limit":{"context":1e6,"output":10},"cost":{"input":1.5}},
		"voice":{"id":"voice","release_date":"2031-01-01"},
		"gone":{"id":"gone","release_date":"2032-01-01","tool_call":true,"status":"deprecated"}}},
	"cloud":{"id":"cloud","name":"Cloud","env":["CLOUD_PROJECT"],"unknown":{},"models":{}}}`

func TestANewerListIsTakenFromAFileAndByTLS(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "list.json")
	must(t, os.WriteFile(file, []byte(newer), 0o600))
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/list", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, newer)
	}))
	t.Cleanup(tls.Close)
	for name, source := range map[string]string{"a file": file, "a URL": tls.URL + "/list", "a redirect to https": tls.URL + "/moved"} {
		c, err := credential.NewCatalogue(source, tls.Client().Transport, slog.New(slog.DiscardHandler))
		must(t, err)
		if list := listOf(t, c); len(list["anthropic"].Models) == 0 {
			t.Errorf("%s: before it was read: %+v", name, list)
		}
		must(t, c.Refresh(t.Context()))
		list := listOf(t, c)
		p := list["openai"]
		if len(list) != 2 || p.Name != "Open AI" || !p.Popular || p.DefaultModel != "new" || len(p.Models) != 3 || p.Models[1].Name != "new" ||
			p.Models[1].Context != 1e6 || *p.Models[1].InputCost != 1.5 || p.Models[1].OutputCost != nil {
			t.Errorf("%s: %+v", name, p)
		}
		if p := list["cloud"]; p.AuthType != credential.AuthOAuth || p.Popular || p.DefaultModel != "" || p.Models == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestWhatIsNoListLeavesTheOneThatIs(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, newer) }))
	t.Cleanup(plain.Close)
	answers := map[string]string{
		"/html": "<html>", "/empty": "{}", "/list": "[]", "/null": "null", "/other-id": `{"a":{"id":"b"}}`, "/path": `{"a/b":{"id":"a/b"}}`,
		"/types": `{"a":{"id":"a","models":[]}}`, "/long": newer + strings.Repeat(" ", 8<<20),
	}
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/to-http":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/500":
			http.Error(w, newer, http.StatusInternalServerError)
		default:
			_, _ = io.WriteString(w, answers[r.URL.Path])
		}
	}))
	t.Cleanup(tls.Close)
	sources := []string{filepath.Join(t.TempDir(), "missing"), t.TempDir(), "/dev/zero", tls.URL + "/to-http", tls.URL + "/loop", tls.URL + "/500", "https://127.0.0.1:1/?token=" + secret}
	for path := range answers {
		sources = append(sources, tls.URL+path)
	}
	for _, source := range sources {
		c, err := credential.NewCatalogue(source, tls.Client().Transport, slog.New(slog.DiscardHandler))
		must(t, err)
		err = c.Refresh(t.Context())
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", source, err)
		}
		if list := listOf(t, c); list["anthropic"].Name == "" {
			t.Errorf("%s: the list that was shipped is gone", source)
		}
	}
	for _, source := range []string{"http://example.com/x", "ftp://example.com"} {
		if _, err := credential.NewCatalogue(source, nil, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s is taken", source)
		}
	}
}

// hanging never answers, or says how often it was asked.
type hanging struct{ asked chan struct{} }

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	h.asked <- struct{}{}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestASourceThatHangsIsAskedAgainADayLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, source := &bytes.Buffer{}, hanging{make(chan struct{})}
		c, err := credential.NewCatalogue("https://example.com/"+secret, source, slog.New(slog.NewTextHandler(log, nil)))
		must(t, err)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Run(ctx)
		}()
		began := time.Now()
		<-source.asked
		<-source.asked
		if passed := time.Since(began); passed != credential.RefreshEvery {
			t.Errorf("asked again after %s", passed)
		}
		if strings.Count(log.String(), "level=WARN") != 1 || strings.Contains(log.String(), secret) {
			t.Errorf("%s", log)
		}
		stop()
		<-done
		if strings.Count(log.String(), "level=WARN") != 1 {
			t.Errorf("the end is a warning: %s", log)
		}
	})
}
