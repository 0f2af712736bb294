package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/api/internal/task"
)

const templatesPath = "/api/v2/agents/templates"

// join makes another account and returns its id and its token as a header.
func (w world) join(t testing.TB, email string) (id string, header []string) {
	t.Helper()
	resp, body := w.send(t, "POST", authRoot+"sign-up/email", fmt.Sprintf(`{"name":"N","email":%q,"password":"password1"}`, email))
	var answer struct{ User struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.User.ID == "" {
		t.Fatalf("signing up: %d %s", resp.StatusCode, body)
	}
	return answer.User.ID, []string{"Authorization", "Bearer " + resp.Header.Get(tokenHeader)}
}

func (w world) templates(t testing.TB, query string, header []string) []templateBody {
	t.Helper()
	resp, body := w.send(t, "GET", templatesPath+query, "", header...)
	var list []templateBody
	if err := json.Unmarshal([]byte(body), &list); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	return list
}

const goodTemplate = `{"id":"system-fix-bug","userId":"x","isSystem":true,"name":"Mine","description":"d","icon":"👩‍💻","category":"c","prompt":"Do {{what}}\n\tnow",
	"placeholders":[{"name":"what","label":"What","type":"select","options":["a","b"],"required":true,"defaultValue":"a"}]}`

func TestTemplatesOfOnesOwn(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		ada, asAda := w.join(t, "ada@example.com")
		_, asEve := w.join(t, "eve@example.com")
		must(t, s.Templates().Save(t.Context(), task.Template{ID: "shared", Name: "Shared", Prompt: "p", CreatedAt: time.Now().Add(time.Hour), UpdatedAt: time.Now()}))
		shipped := len(w.templates(t, "", asAda)) - 1

		resp, body := w.send(t, "POST", templatesPath, goodTemplate, asAda...)
		var made templateBody
		must(t, json.Unmarshal([]byte(body), &made))
		if resp.StatusCode != http.StatusCreated || !strings.HasPrefix(made.ID, "template-") || made.IsSystem || made.UserID == nil || *made.UserID != ada {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		list := w.templates(t, "", asAda)
		if len(list) != shipped+2 || !strings.HasPrefix(list[0].ID, "system-") || list[shipped].ID != "shared" || !list[shipped].IsSystem {
			t.Fatalf("%+v", list)
		}
		if mine := list[shipped+1]; mine.ID != made.ID || mine.Prompt != "Do {{what}}\n\tnow" || mine.Icon != "👩‍💻" || !strings.Contains(string(mine.Placeholders), `"options":["a","b"]`) {
			t.Errorf("%+v", mine)
		}
		if got := w.templates(t, fmt.Sprintf("?limit=1&offset=%d", shipped+1), asAda); len(got) != 1 || got[0].ID != made.ID {
			t.Errorf("a page: %+v", got)
		}
		if got := w.templates(t, "?offset=500", asAda); len(got) != 0 {
			t.Errorf("a page beyond the end: %+v", got)
		}
		if got := w.templates(t, "", asEve); len(got) != shipped+1 {
			t.Errorf("somebody else sees %+v", got)
		}

		for name, c := range map[string]struct {
			id     string
			header []string
		}{
			"somebody else's":      {made.ID, asEve},
			"one that ships":       {"system-fix-bug", asAda},
			"everybody's":          {"shared", asAda},
			"none":                 {"template-none", asAda},
			"an id with SQL in it": {"x'%20OR%20'1'='1", asAda},
		} {
			for _, method := range []string{"PUT", "DELETE"} {
				resp, body := w.send(t, method, templatesPath+"/"+c.id, goodTemplate, c.header...)
				if resp.StatusCode != http.StatusNotFound || codeOf(t, body) != "template_not_found" {
					t.Errorf("%s %s: %d %s", method, name, resp.StatusCode, body)
				}
			}
		}
		resp, body = w.send(t, "PUT", templatesPath+"/"+made.ID, `{"name":"New","prompt":"q"}`, asAda...)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"placeholders":[]`) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if got := w.templates(t, "", asAda)[shipped+1]; got.ID != made.ID || got.Name != "New" || got.Prompt != "q" || got.Icon != "" {
			t.Errorf("%+v", got)
		}
		if resp, body = w.send(t, "DELETE", templatesPath+"/"+made.ID, "", asAda...); resp.StatusCode != http.StatusOK {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if got := w.templates(t, "", asAda); len(got) != shipped+1 {
			t.Errorf("after the delete: %+v", got)
		}
		if resp, _ = w.send(t, "GET", templatesPath, ""); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("a stranger: %d", resp.StatusCode)
		}
	})
}

func TestAUserHasABoundedNumberOfTemplates(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	_, asAda := w.join(t, "ada@example.com")
	for i := range task.MaxTemplates {
		if resp, body := w.send(t, "POST", templatesPath, goodTemplate, asAda...); resp.StatusCode != http.StatusCreated {
			t.Fatalf("number %d: %d %s", i, resp.StatusCode, body)
		}
	}
	if resp, body := w.send(t, "POST", templatesPath, goodTemplate, asAda...); resp.StatusCode != http.StatusBadRequest || codeOf(t, body) != "invalid_request" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	list := w.templates(t, "", asAda)
	if resp, body := w.send(t, "PUT", templatesPath+"/"+list[len(list)-1].ID, goodTemplate, asAda...); resp.StatusCode != http.StatusOK {
		t.Errorf("one that is there cannot be changed: %d %s", resp.StatusCode, body)
	}
	_, asEve := w.join(t, "eve@example.com")
	if resp, body := w.send(t, "POST", templatesPath, goodTemplate, asEve...); resp.StatusCode != http.StatusCreated {
		t.Errorf("somebody else: %d %s", resp.StatusCode, body)
	}
}

func TestWhatIsNoTemplate(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		_, asAda := w.join(t, "ada@example.com")
		with := func(placeholder string) string {
			return `{"name":"n","prompt":"p","placeholders":[` + placeholder + `]}`
		}
		long := func(n int) string { return strings.Repeat("é", n) }
		for name, c := range map[string]struct {
			body string
			ok   bool
		}{
			"the least there can be":            {`{"name":"n","prompt":"p"}`, true},
			"unknown fields":                    {`{"name":"n","prompt":"p","nope":1}`, true},
			"as long as it may be":              {`{"name":"` + long(100) + `","prompt":"` + long(20_000) + `"}`, true},
			"a text placeholder":                {with(`{"name":"A_1","label":"l","type":"text"}`), true},
			"lines in a textarea":               {with(`{"name":"a","label":"l","type":"textarea","defaultValue":"x\ny"}`), true},
			"nothing":                           {``, false},
			"no name":                           {`{"prompt":"p"}`, false},
			"a name of spaces":                  {`{"name":"  ","prompt":"p"}`, false},
			"no prompt":                         {`{"name":"n"}`, false},
			"a long name":                       {`{"name":"` + long(101) + `","prompt":"p"}`, false},
			"a long prompt":                     {`{"name":"n","prompt":"` + long(20_001) + `"}`, false},
			"a line break in the name":          {`{"name":"a\nb","prompt":"p"}`, false},
			"a NUL in the prompt":               {`{"name":"n","prompt":"a\u0000b"}`, false},
			"an escape in the prompt":           {`{"name":"n","prompt":"a\u001bb"}`, false},
			"a number as a name":                {`{"name":1,"prompt":"p"}`, false},
			"a list":                            {`[]`, false},
			"placeholders that are none":        {`{"name":"n","prompt":"p","placeholders":{}}`, false},
			"a placeholder without a name":      {with(`{"label":"l","type":"text"}`), false},
			"a name that begins with a digit":   {with(`{"name":"1a","label":"l","type":"text"}`), false},
			"a name with a dash":                {with(`{"name":"a-b","label":"l","type":"text"}`), false},
			"a name and a line break":           {with(`{"name":"a\n","label":"l","type":"text"}`), false},
			"a name of 41 letters":              {with(`{"name":"` + strings.Repeat("a", 41) + `","label":"l","type":"text"}`), false},
			"no label":                          {with(`{"name":"a","type":"text"}`), false},
			"another type":                      {with(`{"name":"a","label":"l","type":"file"}`), false},
			"options of a text":                 {with(`{"name":"a","label":"l","type":"text","options":["x"]}`), false},
			"a select without options":          {with(`{"name":"a","label":"l","type":"select"}`), false},
			"a default that cannot be selected": {with(`{"name":"a","label":"l","type":"select","options":["x"],"defaultValue":"y"}`), false},
			"the same name twice":               {with(`{"name":"a","label":"l","type":"text"},{"name":"a","label":"l","type":"text"}`), false},
			"many placeholders":                 {with(strings.TrimSuffix(strings.Repeat(`{"name":"a","label":"l","type":"text"},`, 21), ",")), false},
		} {
			resp, body := w.send(t, "POST", templatesPath, c.body, asAda...)
			if c.ok && resp.StatusCode != http.StatusCreated || !c.ok && (resp.StatusCode != http.StatusBadRequest || codeOf(t, body) != "invalid_request") {
				t.Errorf("%s: %d %.200s", name, resp.StatusCode, body)
			}
		}
	})
}
