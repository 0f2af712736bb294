package sandbox_test

import (
	"errors"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestAWrongTypeSaysWhatIsWanted(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"command":"ls -la"}`:                 `command must be an array of strings, such as ["ls","-la"]`,
		`{"command":[1]}`:                      `command must be an array of strings, such as ["ls","-la"]`,
		`{"Command":{"sk-secret":1}}`:          `command must be an array of strings, such as ["ls","-la"]`,
		`{"env":{"A":1}}`:                      `env must be an object of strings, such as {"CI":"true"}`,
		`{"env":[]}`:                           `env must be an object of strings, such as {"CI":"true"}`,
		`{"workingDir":["sk-secret"]}`:         "workingDir must be a string",
		`{"timeoutMs":"sk-secret"}`:            "timeoutMs must be a whole number",
		`{"timeoutMs":1.5}`:                    "timeoutMs must be a whole number",
		`["sk-secret"]`:                        "the request body must be a JSON object",
		`"sk-secret"`:                          "the request body must be a JSON object",
		`{"command":["sk-secret"`:              "the request body is not valid JSON",
		`{} {}`:                                "the request body is not valid JSON",
		`{"command":["ls"],"unknown":"field"}`: "",
	} {
		var req sandbox.ExecRequest
		wantFault(t, body, sandbox.Decode([]byte(body), &req), want)
	}
	for body, want := range map[string]string{
		`{"model":{"providerID":1}}`: "model.providerID must be a string",
		`{"model":"a/b"}`:            "model must be an object with providerID, modelID",
		`{"message":{}}`:             "message must be a string",
	} {
		var req sandbox.MessageRequest
		wantFault(t, body, sandbox.Decode([]byte(body), &req), want)
	}
	var nested struct {
		List []struct {
			On *bool `json:"on"`
		} `json:"list"`
		Numbers []float64            `json:"numbers"`
		Map     map[string][]string  `json:"map"`
		Bytes   []byte               `json:"bytes"`
		Count   uint                 `json:"count"`
		Untaged int                  // by its own name
		Objects []map[string]float32 `json:"objects"`
	}
	for body, want := range map[string]string{
		`{"list":[{"on":"yes"}]}`: "list.on must be true or false",
		`{"list":{}}`:             "list must be an array of objects",
		`{"numbers":["a"]}`:       "numbers must be an array of numbers",
		`{"map":{"a":"b"}}`:       "map must be an object of arrays",
		`{"bytes":1}`:             "bytes must be a string in Base64",
		`{"count":-1}`:            "count must be a whole number from 0",
		`{"untaged":""}`:          "Untaged must be a whole number",
		`{"objects":1}`:           "objects must be an array of objects",
	} {
		wantFault(t, body, sandbox.Decode([]byte(body), &nested), want)
	}
}

func wantFault(t *testing.T, body string, err error, want string) {
	t.Helper()
	if want == "" && err == nil {
		return
	}
	failure, ok := errors.AsType[*sandbox.Error](err)
	if !ok || failure.Code != sandbox.CodeInvalidRequest || failure.Message != want {
		t.Errorf("%s: %v, want %q", body, err, want)
	}
}
