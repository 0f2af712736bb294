// Package canarytest finds secrets where none may be, for tests: in clear, and in
// the encodings that secrets travel in.
package canarytest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// shortest is the length, in bytes, from which a text is long enough not to be
// found by chance in any of its encodings.
const shortest = 12

// Cage has the secrets of a test. It is safe for concurrent use; the zero Cage is
// empty.
type Cage struct {
	mu      sync.Mutex
	secrets map[string]map[string]string // by name: its needles, by encoding
}

// Plant makes a secret, as 26 letters and digits with marks around them: those show
// how the secret was escaped, and the rest is found even where they were cut off.
// before is what it begins with, after what it ends with.
func (c *Cage) Plant(t testing.TB, name, before, after string) string {
	t.Helper()
	core := rand.Text()
	c.Add(t, name, core)
	if before+after != "" {
		c.Add(t, name+" with its marks", before+core+after)
	}
	return before + core + after
}

// PlantKey makes a key of 32 bytes, in hex.
func (c *Cage) PlantKey(t testing.TB, name string) string {
	t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	c.Add(t, name+", its bytes", string(raw))
	key := hex.EncodeToString(raw)
	c.Add(t, name, key)
	return key
}

// Add adds a secret that somebody else has made.
func (c *Cage) Add(t testing.TB, name, secret string) {
	t.Helper()
	if len(secret) < shortest {
		t.Fatalf("%s is no secret to look for: it has %d bytes", name, len(secret))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.secrets == nil {
		c.secrets = make(map[string]map[string]string)
	}
	for c.secrets[name] != nil {
		name += "'"
	}
	c.secrets[name] = needles(secret)
}

// needles are how a secret may look, by encoding.
func needles(secret string) map[string]string {
	out := map[string]string{
		"in clear":         secret,
		"escaped in a URL": url.QueryEscape(secret),
		"in a URL's path":  url.PathEscape(secret),
		"in hex":           hex.EncodeToString([]byte(secret)),
		"in upper hex":     strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"quoted":           inside(strconv.Quote(secret)),
		"in ASCII quotes":  inside(strconv.QuoteToASCII(secret)),
		"in JSON":          inJSON(secret, false),
		"in HTML's JSON":   inJSON(secret, true),
	}
	// JSON in JSON, as a log has a body.
	out["in JSON twice"] = inJSON(out["in JSON"], false)
	for before := range 3 {
		// What stands before and behind a secret changes the digits at its ends.
		digits := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), secret...))
		first, end := (before*8+5)/6, (before+len(secret))*8/6
		digits = digits[first:end]
		out[fmt.Sprintf("in base64 behind %d bytes", before)] = digits
		out[fmt.Sprintf("in URL's base64 behind %d bytes", before)] = strings.NewReplacer("+", "-", "/", "_").Replace(digits)
		out[fmt.Sprintf("in base64 in JSON behind %d bytes", before)] = strings.ReplaceAll(digits, "/", `\/`)
		out[fmt.Sprintf("in base64 in a URL behind %d bytes", before)] = url.QueryEscape(digits)
	}
	return out
}

func inside(quoted string) string { return quoted[1 : len(quoted)-1] }

func inJSON(text string, html bool) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(html)
	_ = e.Encode(text) // a string always encodes
	return inside(strings.TrimSuffix(b.String(), "\n"))
}

// Find names the secrets that a text has, each with how it is encoded and what
// stands before it.
func (c *Cage) Find(text []byte) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []string
	for _, name := range slices.Sorted(maps.Keys(c.secrets)) {
		secret := c.secrets[name]
		for _, encoding := range slices.Sorted(maps.Keys(secret)) {
			if at := bytes.Index(text, []byte(secret[encoding])); at >= 0 {
				const around = 160
				found = append(found, fmt.Sprintf("%s, %s: %q", name, encoding, text[max(0, at-around):min(len(text), at+len(secret[encoding])+around)]))
				break // one is enough
			}
		}
	}
	return found
}

// Absent fails the test if a text has a secret. where says what the text is.
func (c *Cage) Absent(t testing.TB, where string, text []byte) {
	t.Helper()
	for _, found := range c.Find(text) {
		t.Errorf("%s has %s", where, found)
	}
}

// AbsentBelow is Absent for the names and contents of all files below a folder, but
// for those in except, which are paths below it. It returns how many there are.
func (c *Cage) AbsentBelow(t testing.TB, dir string, except ...string) int {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return fmt.Errorf("naming %s: %w", path, err)
		}
		c.Absent(t, "the name of a file", []byte(name))
		if !entry.Type().IsRegular() || slices.Contains(except, name) {
			return nil
		}
		files++
		raw, err := os.ReadFile(path) //nolint:gosec // a folder of the test's
		if err != nil {
			return fmt.Errorf("reading what may have a secret: %w", err)
		}
		c.Absent(t, name, raw)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return files
}
