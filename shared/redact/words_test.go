package redact_test

import (
	"encoding/base64"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/shared/redact"
)

func TestAnOrdinaryWordStays(t *testing.T) {
	const text = "the model test/anything of lm-studio is not there: git said x-oauth-basic, Production, not needed, 12"
	for _, secret := range []string{"anything", "test", "lm-studio", "git", "git:", "x-oauth-basic", "Production", "production", "not needed", "12", "x", "e"} {
		if got := redact.Text(text, secret); got != text {
			t.Errorf("with the secret %q it says %q", secret, got)
		}
		encoded := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
		if got := redact.Text("Basic "+encoded, "user:"+secret); got == "Basic "+encoded {
			t.Errorf("the credentials user:%s are still in %q", secret, got)
		}
	}
}

func TestAShortSecretIsTakenOutWhereItStandsAlone(t *testing.T) {
	for text, want := range map[string]string{
		"the key a1b2 is wrong":           "the key *** is wrong",
		"a1b2":                            "***",
		"'a1b2', a1b2.":                   "'***', ***.",
		"sha1b2c a1b22 éa1b2 a1b2é a1b2":  "sha1b2c a1b22 éa1b2 a1b2é ***",
		"Authorization: Basic YTFiMg==":   "Authorization: Basic ***==",
		"the word WTFiMgA has no part of": "the word WTFiMgA has no part of",
	} {
		if got := redact.Text(text, "a1b2"); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// What generators make, and what a person may take for a password: all of it goes,
// in the middle of other text too.
func TestARealKeyIsTakenOutInTheMiddleOfAText(t *testing.T) {
	for _, secret := range []string{
		"sk-ant-api03-abcDEF", "ghp_abcdefghijklmnop", "correcthorsebatterystaple", "correct-horse-battery", "abcd efgh ijkl mnop", "aBcDeFgHi",
		"deadbeefdeadbeef", "hunter22", "PASSWORDPASSWORD", "JBSWYPDP", "pass_word!",
	} {
		if got := redact.Text("x"+secret+"y", secret); got != "x***y" {
			t.Errorf("%q is left as %q", secret, got)
		}
	}
}

func TestWhatAHeaderSaysOfAFormatIsNoSecret(t *testing.T) {
	got := redact.Secrets([]byte(`{"headers":{"Content-Type":"application/json; charset=utf-8","accept":"text/event-stream","User-Agent":"agentpod/1.0 (linux)","X-Key":"the-key-1"}}`))
	if diff := cmp.Diff([]string{"the-key-1"}, got); diff != "" {
		t.Error(diff)
	}
}
