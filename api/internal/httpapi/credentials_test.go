package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

// signUpAs makes an account and returns its id and token. The first is an admin's.
func (w world) signUpAs(t testing.TB, name string) (id, token string) {
	t.Helper()
	resp, body := w.send(t, "POST", authRoot+"sign-up/email", `{"name":"`+name+`","email":"`+name+`@example.com","password":"password1"}`)
	var signed struct {
		User struct {
			ID string `json:"id"`
		} `json:"user"`
	}
	must(t, json.Unmarshal([]byte(body), &signed))
	if resp.StatusCode != http.StatusOK || signed.User.ID == "" {
		t.Fatalf("signing %s up: %d %s", name, resp.StatusCode, body)
	}
	return signed.User.ID, resp.Header.Get(tokenHeader)
}

// shape is a body with what differs from time to time taken out.
func shape(t testing.TB, body string) any {
	t.Helper()
	var value any
	must(t, json.Unmarshal([]byte(body), &value))
	return shapeOf(value)
}

func shapeOf(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name, field := range v {
			switch name {
			case "models":
				models, _ := field.([]any)
				v[name] = len(models) > 0
			case "createdAt", "updatedAt", "defaultModel":
				text, _ := field.(string)
				v[name] = text != ""
			default:
				v[name] = shapeOf(field)
			}
		}
	case []any:
		for i := range v {
			v[i] = shapeOf(v[i])
		}
	}
	return value
}

// call is a request of a test and its answer; an empty answer is not compared.
type call struct {
	method, path, body string
	status             int
	answer             string
}

// play sends the calls in turn, and returns the bodies that came back.
func (w world) play(t *testing.T, token string, calls []call) string {
	t.Helper()
	var all strings.Builder
	for _, c := range calls {
		resp, body := w.send(t, c.method, c.path, c.body, "Authorization", "Bearer "+token)
		all.WriteString(body)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %d %s", c.method, c.path, resp.StatusCode, body)
			continue
		}
		if c.answer == "" {
			continue
		}
		if diff := cmp.Diff(shape(t, c.answer), shape(t, body)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.method, c.path, diff)
		}
	}
	return all.String()
}

// modelKey is a key that must not be seen anywhere.
const modelKey = "sk-a-key-that-nobody-may-see"

func TestProvidersAreListedConfiguredDefaultedAndDeleted(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		_, token := w.signUpAs(t, "ada")
		openai := func(configured, isDefault string) string {
			return `{"id":"openai","name":"OpenAI","authType":"api_key","apiKeyEnvVar":"OPENAI_API_KEY","isConfigured":` + configured + `,"isDefault":` + isDefault + `,"defaultModel":"x","models":[1]}`
		}
		w.play(t, token, []call{
			{"GET", "/api/providers/configured", "", 200, `{"providers":[]}`},
			{"GET", "/api/providers/default", "", 200, `{"provider":null,"message":"there is no default provider"}`},
			{"POST", "/api/providers/openai/set-default", "", 400, `{"code":"provider_not_configured","error":"the provider \"openai\" is not configured; give its key first"}`},
			{"DELETE", "/api/providers/openai", "", 404, `{"code":"provider_not_found","error":"the provider \"openai\" is not configured"}`},
			{"POST", "/api/providers/nobody/configure", `{"apiKey":"x"}`, 404, `{"code":"provider_not_found","error":"there is no provider \"nobody\"; GET /api/providers lists them"}`},
			{"POST", "/api/providers/openai/configure", `{}`, 400, `{"code":"invalid_request","error":"apiKey is missing: give the key of OpenAI"}`},
			{"POST", "/api/providers/openai/configure", `{"apiKey":["` + modelKey + `"]}`, 400, `{"code":"invalid_request","error":"apiKey must be a string"}`},
			{"POST", "/api/providers/github-copilot/configure", `{"apiKey":"x"}`, 400, ""},
			{"POST", "/api/providers/openai/configure", `{"apiKey":"` + modelKey + `","userId":"x"}`, 200, `{"success":true,"message":"OpenAI is configured","provider":{"id":"openai","name":"OpenAI","isConfigured":true}}`},
			{"GET", "/api/providers/configured", "", 200, `{"providers":[` + openai("true", "false") + `]}`},
			{"POST", "/api/providers/openai/set-default", "", 200, `{"success":true,"message":"OpenAI is the default provider"}`},
			{"GET", "/api/providers/default", "", 200, `{"provider":` + openai("true", "true") + `}`},
			{"DELETE", "/api/providers/openai", "", 200, `{"success":true,"message":"the key of OpenAI is deleted"}`},
			{"GET", "/api/providers/default", "", 200, `{"provider":null,"message":"there is no default provider"}`},
			{"DELETE", "/api/providers/a%FFb", "", 400, `{"code":"invalid_path","error":"the path is not UTF-8"}`},
			{"POST", "/api/providers/a%FFb/set-default", "", 400, ""},
		})
		_, body := w.send(t, "GET", "/api/providers?popularOnly=true", "", "Authorization", "Bearer "+token)
		var list struct {
			Providers  []providerBody `json:"providers"`
			TotalCount int            `json:"totalCount"`
		}
		must(t, json.Unmarshal([]byte(body), &list))
		if len(list.Providers) < 12 || list.TotalCount != len(list.Providers) || list.Providers[0].Models[0].Limit.Context == 0 || list.Providers[0].Models[0].Cost == nil {
			t.Errorf("%.500s", body)
		}
	})
}

func TestAUsersConfigurationIsReadAndWritten(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		id, token := w.signUpAs(t, "ada")
		root := "/api/users/" + id + "/opencode"
		const settings = `{"settings":{"provider":{"mine":{"npm":"n","models":{"m":{}},"options":{"baseURL":"https://x.test","apiKey":"mine"}}},"n":1}}`
		// shape takes models for a list.
		file := `{"type":"agent","name":"helper","extension":"md","content":"Help.","createdAt":"x","updatedAt":"x"}`
		w.play(t, token, []call{
			{"GET", root + "/config", "", 200, `{"settings":{},"agents_md":"","files":[]}`},
			{"GET", root + "/settings", "", 200, `{"settings":{}}`},
			{"PUT", root + "/settings", settings, 200, settings},
			{"GET", root + "/settings", "", 200, settings},
			{"PUT", root + "/settings", `{"theme":"x"}`, 400, `{"code":"invalid_request","error":"settings is missing: send {\"settings\":{…}}"}`},
			{"PUT", root + "/settings", ``, 400, ""},
			{"PUT", root + "/settings", `{"settings":null}`, 400, ""},
			{"PUT", root + "/settings", `{"settings":"x"}`, 400, ""},
			{"PUT", root + "/settings", `{"settings":{"x":"` + strings.Repeat("x", credential.MaxSettings) + `"}}`, 413, ""},
			{"PUT", root + "/settings", `{"settings":{"x":"` + strings.Repeat("x", maxBody) + `"}}`, 413, ""},
			{"GET", root + "/agents-md", "", 200, `{"content":""}`},
			{"PUT", root + "/agents-md", `{}`, 400, `{"code":"invalid_request","error":"content is missing: send {\"content\":\"…\"}"}`},
			{"PUT", root + "/agents-md", `{"content":"# Rules"}`, 200, `{"content":"# Rules"}`},
			{"GET", root + "/agents-md", "", 200, `{"content":"# Rules"}`},
			{"PUT", root + "/agents-md", `{"content":"\u0000"}`, 400, ""},
			{"GET", root + "/files", "", 200, `{"files":[]}`},
			{"PUT", root + "/files/agent/helper", `{"content":"Help.","type":"tool","name":"x"}`, 200, `{"success":true,"type":"agent","name":"helper","extension":"md","content":"Help.","message":"the agent helper is saved"}`},
			{"PUT", root + "/files/tool/t.v1", `{"content":"","extension":"js"}`, 200, `{"success":true,"type":"tool","name":"t.v1","extension":"js","content":"","message":"the tool t.v1 is saved"}`},
			{"PUT", root + "/files/plugin/p", `{"content":"x"}`, 200, `{"success":true,"type":"plugin","name":"p","extension":"ts","content":"x","message":"the plugin p is saved"}`},
			{"PUT", root + "/files/plugin/p", `{}`, 400, ""},
			{"PUT", root + "/files/skill/p", `{"content":""}`, 400, ""},
			{"PUT", root + "/files/agent/a..b", `{"content":""}`, 400, ""},
			{"PUT", root + "/files/agent/a%2Fb", `{"content":""}`, 400, ""},
			{"PUT", root + "/files/agent/..%2Fb", `{"content":""}`, 400, ""},
			{"GET", root + "/files/agent/a%FFb", "", 400, ""},
			{"DELETE", root + "/files/agent/a%FFb", "", 400, ""},
			{"GET", root + "/files/agent/helper", "", 200, file},
			{"GET", root + "/files/agent/nobody", "", 404, `{"code":"file_not_found","error":"there is no agent \"nobody\""}`},
			{"GET", root + "/files?type=agent", "", 200, `{"files":[` + file + `]}`},
			{"GET", root + "/files?type=command", "", 200, `{"files":[]}`},
			{"GET", root + "/files?type=skill", "", 400, `{"code":"invalid_request","error":"type must be one of agent, command, tool, plugin"}`},
			{"DELETE", root + "/files/tool/t.v1", "", 200, `{"success":true,"message":"the tool t.v1 is deleted"}`},
			{"DELETE", root + "/files/tool/t.v1", "", 404, ""},
			{"DELETE", root + "/files/plugin/p", "", 200, ""},
			{"GET", root + "/files", "", 200, `{"files":[` + file + `]}`},
			{"GET", root + "/config", "", 200, settings[:len(settings)-1] + `,"agents_md":"# Rules","files":[` + file + `]}`},
		})
	})
}

func TestAConfigurationIsItsUsersAlone(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		admin, adminToken := w.signUpAs(t, "ada") // the first is an admin
		bob, bobToken := w.signUpAs(t, "bob")
		eve, eveToken := w.signUpAs(t, "eve")
		root := func(id string) string { return "/api/users/" + id + "/opencode" }
		w.play(t, bobToken, []call{
			{"PUT", root(bob) + "/agents-md", `{"content":"bob's"}`, 200, ""},
			{"PUT", root(bob) + "/files/agent/b", `{"content":"bob's"}`, 200, ""},
			{"POST", "/api/providers/openai/configure", `{"apiKey":"` + modelKey + `"}`, 200, ""},
		})
		const missing = `{"code":"user_not_found","error":"there is no such user"}`
		for _, stranger := range []string{bob, admin, "nobody", "service2"} {
			w.play(t, eveToken, []call{
				{"GET", root(stranger) + "/config", "", 404, missing},
				{"GET", root(stranger) + "/settings", "", 404, missing},
				{"PUT", root(stranger) + "/settings", `{"settings":{"eve":1}}`, 404, missing},
				{"GET", root(stranger) + "/agents-md", "", 404, missing},
				{"PUT", root(stranger) + "/agents-md", `{"content":"eve's"}`, 404, missing},
				{"GET", root(stranger) + "/files", "", 404, missing},
				{"GET", root(stranger) + "/files/agent/b", "", 404, missing},
				{"PUT", root(stranger) + "/files/agent/b", `{"content":"eve's"}`, 404, missing},
				{"DELETE", root(stranger) + "/files/agent/b", "", 404, missing},
			})
		}
		w.play(t, eveToken, []call{
			{"GET", root(eve) + "/config", "", 200, ""},
			{"GET", "/api/providers/configured?userId=" + bob, "", 200, `{"providers":[]}`},
			{"POST", "/api/providers/openai/set-default", `{"userId":"` + bob + `"}`, 400, ""},
			{"DELETE", "/api/providers/openai?userId=" + bob, "", 404, ""},
		})
		for _, token := range []string{adminToken, serviceToken} {
			w.play(t, token, []call{
				{"GET", root(bob) + "/agents-md", "", 200, `{"content":"bob's"}`},
				{"GET", root("nobody") + "/config", "", 404, missing},
				{"PUT", root("nobody") + "/agents-md", `{"content":""}`, 404, missing},
				{"GET", root("a%FFb") + "/config", "", 400, ""},
			})
		}
		for _, path := range []string{"/api/providers", root(bob) + "/config"} {
			if resp, _ := w.send(t, "GET", path, ""); resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("a stranger at %s: %d", path, resp.StatusCode)
			}
		}
	})
}

func TestAProvidersKeyIsInNoAnswerAndNoLog(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	w := newWorld(t, sqlite(t), options{log: &logged})
	id, token := w.signUpAs(t, "ada")
	root := "/api/users/" + id + "/opencode"
	answers := w.play(t, token, []call{
		{"POST", "/api/providers/openai/configure", `{"apiKey":"` + modelKey + `"}`, 200, ""},
		{"POST", "/api/providers/openai/configure", `{"apiKey":"` + modelKey + `\n` + modelKey + `"}`, 400, ""},
		{"POST", "/api/providers/openai/configure", `{"apiKey":{"` + modelKey + `":1}}`, 400, ""},
		{"POST", "/api/providers/openai/configure", `{"apiKey":"` + modelKey, 400, ""},
		{"POST", "/api/providers/nobody/configure", `{"apiKey":"` + modelKey + `"}`, 404, ""},
		{"POST", "/api/providers/openai/set-default", "", 200, ""},
		{"GET", "/api/providers", "", 200, ""},
		{"GET", "/api/providers/configured", "", 200, ""},
		{"GET", "/api/providers/default", "", 200, ""},
		{"GET", root + "/config", "", 200, ""},
		{"GET", root + "/settings", "", 200, ""},
		{"PUT", root + "/settings", `{"settings":{"auth":{"openai":{"type":"api","key":"` + modelKey + `"}}}}`, 400, ""},
		{"PUT", root + "/settings", `{"settings":{"a":"` + modelKey, 400, ""},
		{"PUT", root + "/settings", `{"settings":["` + modelKey + `"]}`, 400, ""},
		{"DELETE", "/api/providers/openai", "", 200, ""},
	})
	// What a user puts into the settings is the user's to read, and in no log.
	own := w.play(t, token, []call{
		{"PUT", root + "/settings", `{"settings":{"provider":{"x":{"options":{"apiKey":"` + modelKey + `"}}}}}`, 200, ""},
		{"GET", root + "/settings", "", 200, ""},
	})
	if strings.Contains(answers, modelKey) {
		t.Errorf("%s", answers)
	}
	if strings.Count(own, modelKey) != 2 {
		t.Errorf("%s", own)
	}
	if log := logged.String(); strings.Contains(log, modelKey) || !strings.Contains(log, "/configure") {
		t.Errorf("%s", log)
	}
}
