package opencode

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
)

const (
	// maxWords bounds what is repeated of a refusal, in bytes.
	maxWords = 2 << 10
	// shortest is the length, in bytes, from which a text of a config is kept
	// out of messages. Shorter ones are words such as "string".
	shortest  = 7
	redaction = "[redacted]"
)

// errRefused is in the chain when OpenCode understood and said no (400).
var errRefused = errors.New("OpenCode refused it")

// refusal is what OpenCode said, without the values that it complains about.
type refusal struct {
	words string
	path  string // the file that it complains about, if it named one
}

func (r *refusal) Error() string { return r.words }
func (r *refusal) Unwrap() error { return errRefused }

// refused takes out of OpenCode's error body what holds no values, which may be
// credentials. It says "Expected X, got VALUE" of what has the wrong type.
func refused(raw []byte) error {
	var body struct {
		Name string `json:"name"`
		Data struct {
			Message string `json:"message"`
			Path    string `json:"path"`
			Issues  []struct {
				Path    []any  `json:"path"`
				Message string `json:"message"`
			} `json:"issues"`
		} `json:"data"`
	}
	if err := json.Unmarshal(raw, &body); err != nil || body.Name == "" {
		return &refusal{words: "it gave no reason that can be repeated"}
	}
	words := []string{body.Name + ":"}
	switch body.Name {
	case "BadRequest":
		words = append(words, expected(body.Data.Message))
	case "ConfigInvalidError":
		// Such as: bad file reference: "{file:/run/key}" /run/key does not exist
		said, _, _ := strings.Cut(body.Data.Message, ":")
		words = append(words, expected(said))
	}
	for _, issue := range body.Data.Issues {
		at, sep := "", ""
		for _, part := range issue.Path {
			at, sep = at+sep+fmt.Sprint(part), "."
		}
		words = append(words, at+": "+expected(issue.Message)+";")
		if len(words) > maxWords {
			break // what follows is cut anyway
		}
	}
	return &refusal{words: strings.Join(words, " "), path: body.Data.Path}
}

// expected is the part of a message before the value.
func expected(message string) string {
	said, _, _ := strings.Cut(message, ", got ")
	return said
}

// withoutSecrets returns err with every text of the configs taken out of its
// message, should OpenCode have found a way to repeat one.
func withoutSecrets(err error, configs ...guest.Config) error {
	failure, ok := errors.AsType[*sandbox.Error](err)
	if !ok || (failure.Code != sandbox.CodeConfigRejected && failure.Code != sandbox.CodeBootFailed) {
		return err
	}
	clone := *failure
	clone.Message = withoutTexts(clone.Message, configs...)
	if clone.Code == sandbox.CodeConfigRejected {
		clone.Message = printable.Line(clone.Message, maxWords)
	}
	return &clone
}

// withoutTexts replaces every text of the configs, the longest first.
func withoutTexts(message string, configs ...guest.Config) string {
	var texts []string
	add := func(text string) {
		if len(text) >= shortest {
			texts = append(texts, text)
		}
	}
	addValue := func(text string) { // one that is a word may be OpenCode's own
		if !redact.Ordinary(text) {
			add(text)
		}
	}
	for _, cfg := range configs {
		leaves(cfg.OpenCode, addValue)
		for _, credential := range cfg.Auth {
			leaves(credential, addValue)
		}
		if cfg.AgentsMD != nil {
			add(*cfg.AgentsMD)
		}
		for _, f := range cfg.Files {
			add(f.Content)
		}
	}
	slices.SortFunc(texts, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, text := range texts {
		message = strings.ReplaceAll(message, text, redaction)
	}
	return message
}

// leaves calls add for every string in a JSON document that is a value.
func leaves(raw json.RawMessage, add func(string)) {
	var document any
	if json.Unmarshal(raw, &document) != nil {
		return // it was not a document, so OpenCode has read no value in it
	}
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case string:
			add(node)
		case []any:
			for _, element := range node {
				walk(element)
			}
		case map[string]any:
			for _, element := range node {
				walk(element)
			}
		}
	}
	walk(document)
}
