package guest_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func files(list ...guest.File) guest.Config { return guest.Config{Files: list} }

func file(fileType, name, extension string) guest.File {
	return guest.File{Type: fileType, Name: name, Extension: extension}
}

func TestConfigsThatCannotBeRenderedAreRefused(t *testing.T) {
	t.Parallel()
	credential := func(provider, value string) guest.Config {
		return guest.Config{Auth: map[string]json.RawMessage{provider: json.RawMessage(value)}}
	}
	for name, tc := range map[string]struct {
		config guest.Config
		want   string // what the message names
	}{
		"a path":                  {files(file("agent", "a/b", "md")), `"a/b"`},
		"a parent":                {files(file("agent", "..", "md")), `".."`},
		"dots within":             {files(file("agent", "a..b", "md")), `"a..b"`},
		"a hidden file":           {files(file("agent", ".a", "md")), `".a"`},
		"an empty name":           {files(file("agent", "", "md")), `""`},
		"a line break":            {files(file("agent", "a\n", "md")), `"a"`},
		"a zero byte":             {files(file("agent", "a\x00b", "md")), `"a b"`},
		"a long name":             {files(file("agent", strings.Repeat("a", 129), "md")), "aaa…"},
		"an unknown type":         {files(file("skill", "a", "md")), "agent, command, tool, plugin"},
		"no type":                 {files(file("", "a", "md")), "agent, command, tool, plugin"},
		"an agent that is code":   {files(file("agent", "a", "ts")), "must be md"},
		"a command that is code":  {files(file("command", "a", "js")), "must be md"},
		"a tool that is text":     {files(file("tool", "a", "md")), "must be ts or js"},
		"a plugin that is text":   {files(file("plugin", "a", "md")), "must be ts or js"},
		"a path as an extension":  {files(file("tool", "a", "ts/../../x")), "ts/../../x"},
		"no extension":            {files(file("tool", "a", "")), "must be ts or js"},
		"a file twice":            {files(file("tool", "a", "ts"), file("agent", "a", "md"), file("tool", "a", "ts")), "tool/a.ts is there twice"},
		"a provider with a path":  {credential("a/../b", `{}`), `"a/../b"`},
		"a provider that is none": {credential("", `{}`), `""`},
		"no credential":           {credential("a", ""), "of a is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.config.Check()
			if !sandbox.HasCode(err, sandbox.CodeInvalidRequest) || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 400 {
				t.Errorf("got %v, want it to name %s", err, tc.want)
			}
		})
	}
}

func TestConfigsThatCanBeRenderedAreTaken(t *testing.T) {
	t.Parallel()
	all := files(
		file("agent", "a", "md"), file("command", "a", "md"), file("tool", "a", "ts"), file("tool", "a", "js"),
		file("plugin", "a", "ts"), file("plugin", "0.a_B-c", "js"), file("agent", strings.Repeat("a", 128), "md"),
	)
	all.Auth = map[string]json.RawMessage{"open-ai.2": json.RawMessage(`{}`)}
	for name, config := range map[string]guest.Config{"none": {}, "every kind": all} {
		if err := config.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, fileType := range guest.FileTypes() {
		if guest.CheckFile(file(fileType, "a", "md")) != nil && guest.CheckFile(file(fileType, "a", "ts")) != nil {
			t.Errorf("no extension suits a %s", fileType)
		}
	}
}
