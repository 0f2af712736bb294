package files_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestAFailureNamesTheFile(t *testing.T) {
	tree, home := open(t)
	if err := os.WriteFile(filepath.Join(home, "workspace", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(name string) error { _, _, err := tree.OpenFile(name); return err }
	write := func(name string) error { return tree.Write(name, 0o644, strings.NewReader("x")) }
	for _, tc := range []struct {
		do   func(name string) error
		name string
		want string
	}{
		{read, "workspace/nope.txt", `open "workspace/nope.txt": no such file or folder`},
		{tree.Remove, "workspace/nope.txt", `look at "workspace/nope.txt": no such file or folder`},
		{read, "workspace/\x1b[31mnope", `open "workspace/ [31mnope": no such file or folder`},
		{read, "workspace/file/x", `open "workspace/file/x": a file is where a folder should be`},
		{write, "workspace/file/x", `make the parents of "workspace/file/x": something else is there`},
		{write, "workspace", `"workspace" is a folder`},
		{read, strings.Repeat("a", 300), `open "` + strings.Repeat("a", 300) + `": it cannot be used`},
	} {
		var failure *sandbox.Error
		if err := tc.do(tc.name); !errors.As(err, &failure) || failure.Message != tc.want {
			t.Errorf("%q: %v, want %s", tc.name, err, tc.want)
		}
	}
}
