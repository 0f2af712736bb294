// Package environtest holds what is written about a program's environment
// against the struct that environ.Parse fills from it.
package environtest

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// variable is what a field of a struct says of a variable.
type variable struct {
	fallback string
	secret   bool
}

func variables[T any]() map[string]variable {
	all := map[string]variable{}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		name, options, _ := strings.Cut(field.Tag.Get("env"), ",")
		if name != "" && name != "-" {
			all[name] = variable{fallback: field.Tag.Get("envDefault"), secret: options == "unset"}
		}
	}
	return all
}

var row = regexp.MustCompile("(?m)^\\| `([A-Z0-9_]+)` \\| ([^|]*) \\|")

// Table fails the test unless the table under a heading of a Markdown file, such
// as "### Variables", has a row for each variable of T, with its default, and for
// no other.
func Table[T any](t testing.TB, path, heading string) {
	t.Helper()
	raw, err := os.ReadFile(path) //nolint:gosec // a path of the test's own
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(raw), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", path, heading)
	}
	section, _, _ = strings.Cut(section, "\n#")
	rows := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(section, -1) {
		rows[m[1]] = strings.Trim(strings.TrimSpace(m[2]), "`")
	}
	for name, v := range variables[T]() {
		shown, ok := rows[name]
		switch {
		case !ok:
			t.Errorf("%s has no row for %s", heading, name)
		case v.fallback != "" && shown != v.fallback:
			t.Errorf("%s says that %s is %q by default, and it is %q", heading, name, shown, v.fallback)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("%s has a row for %s, which nothing reads", heading, name)
	}
}

// Passed fails the test unless each variable of an environment is one of T or is
// in also, and no secret's value stands there: it is in a file under
// /run/secrets/ that is among secrets, or nil, which means that it is passed on
// from elsewhere.
func Passed[T any](t testing.TB, environment map[string]*string, secrets []string, also ...string) {
	t.Helper()
	known := variables[T]()
	for _, name := range also {
		known[name] = variable{secret: true}
	}
	files := map[string]bool{}
	for _, name := range secrets {
		files["/run/secrets/"+name] = true
	}
	for name, value := range environment {
		base, inFile := strings.CutSuffix(name, "_FILE")
		v, ok := known[name]
		switch {
		case ok && v.secret && value != nil:
			t.Errorf("the value of the secret %s stands there; give %s_FILE", name, name)
		case ok:
		case !inFile || !known[base].secret:
			t.Errorf("%s is given, which nothing reads", name)
		case value == nil || !files[*value]:
			t.Errorf("%s names none of the secrets %v", name, secrets)
		}
	}
}
