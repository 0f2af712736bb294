package redact_test

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/shared/redact"
)

func TestSecretsAreTakenOutHoweverTheyAreWritten(t *testing.T) {
	const secret = `hunter "2"&/+`
	for name, text := range map[string]string{
		"in clear":             "no " + secret + " here",
		"in a query":           "no " + url.QueryEscape(secret) + " here",
		"in a path":            "no " + url.PathEscape(secret) + " here",
		"in JSON":              `no hunter \"2\"\u0026/+ here`,
		"in base64":            "no " + base64.RawStdEncoding.EncodeToString([]byte(secret)) + " here",
		"in a URL's base64":    "no " + base64.RawURLEncoding.EncodeToString([]byte(secret)) + " here",
		"beside a longer one":  "no " + secret + "longer here",
		"beside an empty text": "no " + secret + " here",
	} {
		t.Run(name, func(t *testing.T) {
			if got := redact.Text(text, secret, "", secret+"longer"); got != "no *** here" {
				t.Errorf("it says %q", got)
			}
		})
	}
	twice, err := json.Marshal(`{"error":"no hunter \"2\"\u0026/+ here"}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := redact.Text(strconv.Quote(string(twice)), secret); got != "***" {
		t.Errorf("of a quote in quotes it leaves %q", got)
	}
	if got := redact.Text("as it was"); got != "as it was" {
		t.Errorf("it says %q", got)
	}
}

func TestSecretsOfAConfigAreKnownByTheirNames(t *testing.T) {
	got := redact.Secrets([]byte(`{
		"model": "anthropic/claude", "agents_md": "be brief and kind",
		"auth": {"openai": {"type": "wellknown", "key": "the-key-1", "token": "short"}, "x": {"type": "oauth", "refresh": "the-refresh", "access": "the-access", "expires": 1}},
		"provider": {"own": {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": "http://model.test", "apiKey": "the-key-2", "headers": {"X-A": "Bearer the-header"}}}},
		"mcp": {"tool": {"command": ["run-the-tool"], "environment": {"A": "the-environment"}}, "list": {"secrets": ["in-a-list"]}}}`))
	slices.Sort(got)
	want := []string{"Bearer the-header", "in-a-list", "the-access", "the-environment", "the-header", "the-key-1", "the-key-2", "the-refresh"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, none := range []string{"", "null", "{", `"text of a config"`, strings.Repeat("[", 20)} {
		if got := redact.Secrets([]byte(none)); len(got) != 0 {
			t.Errorf("%s has %q", none, got)
		}
	}
}
