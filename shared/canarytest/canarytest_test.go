package canarytest_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/canarytest"
)

func TestASecretIsFoundHoweverItIsWritten(t *testing.T) {
	for _, marks := range []string{"", `+/"&<é%\`, "1", "12", "\n"} {
		var cage canarytest.Cage
		secret := cage.Plant(t, "the key", marks, marks)
		encoded, err := json.Marshal(map[string]string{"a": secret})
		if err != nil {
			t.Fatal(err)
		}
		twice, err := json.Marshal(string(encoded))
		if err != nil {
			t.Fatal(err)
		}
		written := map[string]string{
			"in clear":           "x" + secret + "x",
			"in JSON":            string(encoded),
			"in JSON in JSON":    string(twice),
			"in a Go string":     fmt.Sprintf("%q", secret),
			"in a query":         "?" + url.Values{"token": {secret}}.Encode(),
			"in a path":          "/" + url.PathEscape(secret),
			"in a URL's user":    (&url.URL{Scheme: "https", User: url.UserPassword("user", secret), Host: "h"}).String(),
			"in hex":             hex.EncodeToString([]byte("ab" + secret + "c")),
			"in upper hex":       fmt.Sprintf("%X", secret),
			"cut off":            secret[:len(marks)+26],
			"in base64 with :":   base64.StdEncoding.EncodeToString([]byte("u:" + secret)),
			"in base64, escaped": url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(secret))),
		}
		for n := range 7 {
			for m := range 4 {
				plain := []byte(strings.Repeat("p", n) + secret + strings.Repeat("q", m))
				for name, e := range map[string]*base64.Encoding{
					"std": base64.StdEncoding, "raw std": base64.RawStdEncoding, "url": base64.URLEncoding, "raw url": base64.RawURLEncoding,
				} {
					written[fmt.Sprintf("in %s base64 behind %d before %d", name, n, m)] = e.EncodeToString(plain)
				}
			}
		}
		for name, text := range written {
			if found := cage.Find([]byte(text)); len(found) == 0 || !strings.HasPrefix(found[0], "the key") {
				t.Errorf("%s with %q: found %q in %s", name, marks, found, text)
			}
		}
	}
}

func TestAKeyIsFoundAsBytesAndAsHex(t *testing.T) {
	var cage canarytest.Cage
	key := cage.PlantKey(t, "the key")
	raw, err := hex.DecodeString(key)
	if err != nil || len(raw) != 32 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	for name, text := range map[string]string{
		"bytes": string(raw), "hex": key, "upper hex": strings.ToUpper(key), "base64": base64.StdEncoding.EncodeToString(raw), "hex in base64": base64.StdEncoding.EncodeToString([]byte(key)),
	} {
		if len(cage.Find([]byte(text))) == 0 {
			t.Errorf("not found in %s", name)
		}
	}
}

func TestWhatHasNoSecretIsClean(t *testing.T) {
	var cage, other canarytest.Cage
	cage.Plant(t, "the key", "", "")
	text := other.Plant(t, "another", "sk-", "=")
	if found := cage.Find([]byte(text + base64.StdEncoding.EncodeToString([]byte(text)))); len(found) != 0 {
		t.Errorf("found %q", found)
	}
	if found := (&canarytest.Cage{}).Find([]byte(text)); len(found) != 0 {
		t.Errorf("an empty cage found %q", found)
	}
}

// failures counts what a test would have failed of.
type failures struct {
	testing.TB

	n int
}

func (f *failures) Helper()               {}
func (f *failures) Error(...any)          { f.n++ }
func (f *failures) Errorf(string, ...any) { f.n++ }

func TestFilesAreReadBelowAFolderButForTheirExceptions(t *testing.T) {
	var cage canarytest.Cage
	secret := cage.Plant(t, "the key", "", "")
	dir := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("kept.key", secret)
	put("a/b/clean", "x")
	clean := failures{TB: t}
	if n := cage.AbsentBelow(&clean, dir, "kept.key"); n != 1 || clean.n != 0 {
		t.Errorf("%d files, %d failures", n, clean.n)
	}
	put("a/b/leak", "x"+secret)
	put("a/of-"+secret, "x")
	if leaks := (failures{TB: t}); cage.AbsentBelow(&leaks, dir, "kept.key") != 3 || leaks.n != 2 {
		t.Errorf("%d failures", leaks.n)
	}
}
