package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
)

// Decode reads a JSON object, such as a request's body. Fields that into does not have
// are ignored. Errors are invalid_request, or the *Error of a type's UnmarshalJSON;
// they say what a field must be, going by its type and an example in its tag `example`,
// and repeat nothing of the body, which may hold a secret.
func Decode(raw []byte, into any) error {
	if text := bytes.TrimSpace(raw); len(text) > 0 && text[0] != '{' && json.Valid(text) {
		return Errorf(CodeInvalidRequest, "the request body must be a JSON object")
	}
	err := json.Unmarshal(raw, into)
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		return Errorf(CodeInvalidRequest, "%s must be %s", wrong.Field, wanted(reflect.TypeOf(into), strings.Split(wrong.Field, "."), wrong.Type))
	}
	return Errorf(CodeInvalidRequest, "the request body is not valid JSON")
}

// wanted says what the field at a path below a type must be. found is its type, if the
// path leads nowhere.
func wanted(t reflect.Type, path []string, found reflect.Type) string {
	var field reflect.StructField
	for _, name := range path {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return shape(found)
		}
		at := -1
		fields := reflect.VisibleFields(t)
		for i, f := range fields {
			if strings.EqualFold(wireName(f), name) {
				at = i
			}
		}
		if at < 0 {
			return shape(found)
		}
		field = fields[at]
		t = field.Type
	}
	if example := field.Tag.Get("example"); example != "" {
		return shape(t) + ", such as " + example
	}
	return shape(t)
}

func wireName(f reflect.StructField) string {
	if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
		return name
	}
	return f.Name
}

// shape is a type in JSON's words.
func shape(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return shape(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number from 0"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a string in Base64"
		}
		return "an array of " + plural(t.Elem())
	case reflect.Map:
		return "an object of " + plural(t.Elem())
	case reflect.Struct:
		var names []string
		for _, f := range reflect.VisibleFields(t) {
			if f.IsExported() && !f.Anonymous && f.Tag.Get("json") != "-" {
				names = append(names, wireName(f))
			}
		}
		return "an object with " + strings.Join(names, ", ")
	default:
		return "of another type"
	}
}

// plural is shape for the elements of a list.
func plural(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "strings"
	case reflect.Bool:
		return "true or false"
	case reflect.Interface:
		return "any values"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "objects"
	case reflect.Slice, reflect.Array:
		return "arrays"
	default:
		return "numbers"
	}
}
