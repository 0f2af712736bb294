// Package environ reads a process's environment into a struct, and says what is
// wrong with it in words that name the variables.
package environ

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// maxSecret bounds what is read from a file, in bytes.
const maxSecret = 64 << 10

// Map makes a map of lines like NAME=VALUE.
func Map(lines []string) map[string]string {
	m := make(map[string]string, len(lines))
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, "="); ok {
			m[name] = value
		}
	}
	return m
}

// Parse fills a T from the environment by the tags env and envDefault of its
// fields. A secret, which is a field with the option unset, is taken out of the
// process's environment, and may be in a file instead, which the variable
// NAME_FILE names. All that is wrong is said at once; no error holds a value
// that is a secret.
func Parse[T any](environ map[string]string) (T, error) {
	var into T
	environ, bad := withFiles[T](environ)
	if err := env.ParseWithOptions(&into, env.Options{Environment: environ}); err != nil {
		bad = append(bad, named[T](err)...)
	}
	return into, errors.Join(bad...)
}

// withFiles returns the environment with the contents of the secrets' files.
func withFiles[T any](environ map[string]string) (map[string]string, []error) {
	var bad []error
	environ = maps.Clone(environ)
	for _, field := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		name, options, _ := strings.Cut(field.Tag.Get("env"), ",")
		path := environ[name+"_FILE"]
		if options != "unset" || path == "" {
			continue
		}
		if environ[name] != "" {
			bad = append(bad, fmt.Errorf("%s and %s_FILE are both set; give one of them", name, name))
			continue
		}
		secret, err := read(path)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s_FILE must be the path of a file with the secret, such as /run/secrets/%s: %w", name, strings.ToLower(name), err))
			continue
		}
		environ[name] = secret
	}
	return environ, bad
}

func read(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("finding the file of a secret: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecret {
		return "", fmt.Errorf("%s must be a file of at most %d bytes", path, maxSecret)
	}
	raw, err := os.ReadFile(path) //nolint:gosec // the operator's own path
	if err != nil {
		return "", fmt.Errorf("reading the file of a secret: %w", err)
	}
	secret := strings.TrimSpace(string(raw))
	if secret == "" {
		return "", fmt.Errorf("%s is empty; it must hold the secret", path)
	}
	return secret, nil
}

// named makes the environment reader's errors speak of variables instead of
// fields, of the value's shape and of an example. No value is repeated.
func named[T any](err error) []error {
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		return []error{fmt.Errorf("reading the environment: %w", err)}
	}
	var out []error
	for _, e := range all.Errors {
		parse, ok := errors.AsType[env.ParseError](e)
		field, found := reflect.TypeFor[T]().FieldByName(parse.Name)
		if !ok || !found {
			out = append(out, e)
			continue
		}
		variable, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		shape, example := shapeOf(field.Type)
		out = append(out, fmt.Errorf("%s must be %s, such as %s", variable, shape, cmp.Or(Default[T](variable), example)))
	}
	return out
}

// Default is what a variable of T is if it is not set.
func Default[T any](variable string) string {
	for _, field := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		if name, _, _ := strings.Cut(field.Tag.Get("env"), ","); name == variable {
			return field.Tag.Get("envDefault")
		}
	}
	return ""
}

// shapeOf names the shape of a type's values, and gives one. A type can name its
// own by a method Shape.
func shapeOf(t reflect.Type) (shape, example string) {
	if t.Kind() == reflect.Slice {
		shape, example = shapeOf(t.Elem())
		return "a list, separated by commas, of which each is " + shape, example
	}
	switch value := reflect.Zero(t).Interface().(type) {
	case interface{ Shape() string }:
		return value.Shape(), "2GiB"
	case time.Duration:
		return "a time with a unit (s, m or h)", "90s"
	case netip.Prefix:
		return "a network", "10.0.0.0/8"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false", "true"
	case reflect.Float32, reflect.Float64:
		return "a number", "1.5"
	default:
		return "a whole number", "10"
	}
}
