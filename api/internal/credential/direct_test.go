package credential

import (
	"encoding/json"
	"testing"
)

func TestWhereAKeyGoesIsSaidUnlessTheSettingsSayIt(t *testing.T) {
	t.Parallel()
	const endpoint = "https://models.test/v1"
	for settings, want := range map[string]string{
		`{}`:                    `{"provider":{"p":{"options":{"baseURL":"https://models.test/v1"}}}}`,
		`{"provider":null}`:     `{"provider":{"p":{"options":{"baseURL":"https://models.test/v1"}}}}`,
		`{"provider":{"q":{}}}`: `{"provider":{"p":{"options":{"baseURL":"https://models.test/v1"}},"q":{}}}`,
		`{"provider":{"p":{"name":"P","options":{"n":12345678901234567890}}}}`: `{"provider":{"p":{"name":"P","options":{"baseURL":"https://models.test/v1","n":12345678901234567890}}}}`,
		`{"provider":{"p":{"options":{"baseURL":"https://own.test"}}}}`:        `{"provider":{"p":{"options":{"baseURL":"https://own.test"}}}}`,
		`{"provider":{"p":{"api":"https://own.test"}}}`:                        `{"provider":{"p":{"api":"https://own.test"}}}`,
		`{"provider":"nonsense"}`:                                              `{"provider":"nonsense"}`,
		`{"provider":{"p":{"options":[]}},"model":"p/m"}`:                      `{"model":"p/m","provider":{"p":{"options":[]}}}`,
	} {
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal([]byte(settings), &fields); err != nil {
			t.Fatal(err)
		}
		if err := direct(fields, "p", endpoint); err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(fields); string(got) != want {
			t.Errorf("%s became %s", settings, got)
		}
	}
}

func TestAListTellsWhereTheKeysOfItsProvidersGo(t *testing.T) {
	t.Parallel()
	list, err := parseCatalogue([]byte(`{
		"new":{"id":"new","api":"https://new.test/v1"},"open":{"id":"open","api":"http://open.test/v1"},"account":{"id":"account","api":"https://${ACCOUNT}.test"},
		"anthropic":{"id":"anthropic","api":"https://elsewhere.test"},"silent":{"id":"silent"}}`), map[string]Provider{"anthropic": {}})
	if err != nil {
		t.Fatal(err)
	}
	for id, p := range list {
		want := ""
		if id == "new" {
			want = "https://new.test/v1"
		}
		if p.Endpoint != want {
			t.Errorf("%s: %q", id, p.Endpoint)
		}
	}
}
