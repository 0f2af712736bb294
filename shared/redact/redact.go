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
)

// Mark stands where a secret was.
const Mark = "***"

// shortest is the length, in bytes, from which a value of a config is taken for a
// secret. Shorter ones are words, or protect nothing.
const shortest = 8

// Text returns s with the secrets taken out, as they are and as URLs, JSON and the
// Basic scheme write them. Where one is left that was escaped more than once, nothing
// is left of s.
func Text(s string, secrets ...string) string {
	var texts []string
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		quoted, _ := json.Marshal(secret) // a string always encodes
		texts = append(texts, secret, url.QueryEscape(secret), url.PathEscape(secret), string(quoted[1:len(quoted)-1]),
			base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)))
	}
	// One may be a part of another.
	slices.SortFunc(texts, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, text := range texts {
		s = strings.ReplaceAll(s, text, Mark)
	}
	bare := unescaped(s)
	if slices.ContainsFunc(secrets, func(secret string) bool { return secret != "" && strings.Contains(bare, unescaped(secret)) }) {
		return Mark
	}
	return s
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
				walk(element, name != "type" && (secret || tells(name)))
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
