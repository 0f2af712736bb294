// Package redact takes secrets out of what others say: a provider or a git server
// may repeat what it was sent.
package redact

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Mark stands where a secret was.
const Mark = "***"

// The lengths, in bytes, that decide how much of a text a secret takes with it.
const (
	// shortest is the length from which a secret is taken out of the middle of a
	// word, and a value of a config is taken for a secret. Shorter ones are parts of
	// too much else.
	shortest = 8
	// tiny is the length below which a value is no secret at all.
	tiny = 4
	// longestWord is the length from which letters are a key, or a passphrase.
	longestWord = 16
)

// Ordinary reports whether a value is what any text may have in it: one to three
// characters, or words of fewer than 16 bytes in sum, such as "anything",
// "lm-studio" and "Not needed". Keys for local servers are often such words. What
// generators make has digits, mixed case, or more letters.
func Ordinary(value string) bool {
	value = strings.TrimSuffix(value, ":") // a user's name, as the Basic scheme takes it
	if len(value) < tiny {
		return true
	}
	if len(value) >= longestWord {
		return false
	}
	first := true
	for _, r := range value {
		switch {
		case strings.ContainsRune(" -./", r):
			first = true
		case unicode.IsLower(r), first && unicode.IsUpper(r):
			first = false
		default:
			return false
		}
	}
	return true
}

// Text returns s with the secrets taken out, as they are and as URLs, JSON and the
// Basic scheme write them. Where one is left that was escaped more than once, nothing
// is left of s. Ordinary values stay, but for their Base64; those of fewer than 8
// bytes go where they are a word of their own.
func Text(s string, secrets ...string) string {
	var texts, hidden []string
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		texts = append(texts, base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)))
		if Ordinary(secret) {
			continue
		}
		quoted, _ := json.Marshal(secret) // a string always encodes
		texts = append(texts, secret, url.QueryEscape(secret), url.PathEscape(secret), string(quoted[1:len(quoted)-1]))
		hidden = append(hidden, secret)
	}
	// One may be a part of another.
	slices.SortFunc(texts, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, text := range texts {
		s, _ = without(s, text)
	}
	bare := unescaped(s)
	for _, secret := range hidden {
		if _, found := without(bare, unescaped(secret)); found {
			return Mark
		}
	}
	return s
}

// without returns s with Mark for text, and whether it was there. A text shorter
// than a secret counts only where no letter and no digit is beside it.
func without(s, text string) (string, bool) {
	if text == "" || !strings.Contains(s, text) {
		return s, false
	}
	if len(text) >= shortest {
		return strings.ReplaceAll(s, text, Mark), true
	}
	var out strings.Builder
	found := false
	for rest := s; ; {
		before, after, ok := strings.Cut(rest, text)
		out.WriteString(before)
		if !ok {
			return out.String(), found
		}
		left, _ := utf8.DecodeLastRuneInString(s[:len(s)-len(rest)+len(before)])
		right, _ := utf8.DecodeRuneInString(after)
		if wordPart(left) || wordPart(right) {
			out.WriteString(text)
		} else {
			out.WriteString(Mark)
			found = true
		}
		rest = after
	}
}

func wordPart(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
}

// unescaped is a text without what quotes in quotes add to it, however often.
func unescaped(s string) string {
	return strings.NewReplacer("u0026", "&", "u003c", "<", "u003e", ">").Replace(strings.ReplaceAll(s, `\`, ""))
}

// Secrets returns the values of a config, as POST /sandbox takes it, that are
// secret going by the names that they stand under: credentials, keys, headers,
// environments.
func Secrets(config json.RawMessage) []string {
	var document any
	if json.Unmarshal(config, &document) != nil {
		return nil // nobody has read a value in it
	}
	var secrets []string
	var walk func(node any, secret bool)
	walk = func(node any, secret bool) {
		switch node := node.(type) {
		case string:
			if !secret {
				return
			}
			// A header has its scheme before the secret.
			for _, text := range append(strings.Fields(node), node) {
				if len(text) >= shortest && !slices.Contains(secrets, text) {
					secrets = append(secrets, text)
				}
			}
		case []any:
			for _, element := range node {
				walk(element, secret)
			}
		case map[string]any:
			for name, element := range node {
				walk(element, !harmless(name) && (secret || tells(name)))
			}
		}
	}
	walk(document, false)
	return secrets
}

// tells says whether what stands under a name is secret.
func tells(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"auth", "key", "token", "secret", "password", "credential", "headers", "environment"},
		func(word string) bool { return strings.Contains(name, word) })
}

// harmless says whether what stands under a name is no secret, whatever it is a part of:
// the kind of a credential, and headers that say how, not who.
func harmless(name string) bool {
	return slices.Contains([]string{"type", "content-type", "accept", "user-agent"}, strings.ToLower(name))
}
