package store

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// KeyLimit is the greatest length of a key in bytes.
	KeyLimit = 1024
	// MetadataLimit is how many bytes the names and values of an object's
	// metadata may have together, in the form in which they travel in headers:
	// text that is not plain ASCII takes a third more, and 12 bytes.
	MetadataLimit = 2048
)

// CheckKey returns nil if a key is legal, and an ErrKey that says why if not.
// Legal is UTF-8 of at most KeyLimit bytes, in elements that are separated by
// one '/' each. No element is empty, "." or "..", so a key neither begins nor
// ends with '/'. Characters that XML cannot hold, in which servers talk, are
// not allowed: the control characters but tab, line feed and carriage return.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: it is empty", ErrKey)
	}
	if len(key) > KeyLimit {
		return fmt.Errorf("%w: it has %d bytes, and %d are allowed", ErrKey, len(key), KeyLimit)
	}
	if !utf8.ValidString(key) {
		return fmt.Errorf("%w: %q is not UTF-8", ErrKey, key)
	}
	for _, r := range key {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\uFFFE' || r == '\uFFFF' {
			return fmt.Errorf("%w: %q has the character %U", ErrKey, key, r)
		}
	}
	for element := range strings.SplitSeq(key, "/") {
		switch element {
		case "":
			return fmt.Errorf("%w: %q has an empty element", ErrKey, key)
		case ".", "..":
			return fmt.Errorf("%w: %q has the element %q", ErrKey, key, element)
		}
	}
	return nil
}

// CheckPrefix returns nil if a prefix is legal: a legal key and a '/' behind it,
// so that "a/" never means what is under "ab/". Empty, it is everything.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	key, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fmt.Errorf("%w: the prefix %q does not end in '/'", ErrKey, prefix)
	}
	return CheckKey(key)
}

// checkDeletable is CheckPrefix for DeletePrefix: nobody means everything.
func checkDeletable(prefix string) error {
	if prefix == "" {
		return fmt.Errorf("%w: an empty prefix would delete everything", ErrKey)
	}
	return CheckPrefix(prefix)
}

// checkPut returns nil if a Put can be begun.
func checkPut(key string, size int64, opts PutOptions) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if opts.IfAbsent && opts.IfMatch != "" {
		return fmt.Errorf("%w: IfAbsent and IfMatch exclude each other", ErrInvalid)
	}
	if opts.conditional() && size > ConditionalLimit {
		return tooLarge(key)
	}
	if strings.ContainsFunc(opts.ContentType, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("%w: the content type %q", ErrInvalid, opts.ContentType)
	}
	total := 0
	seen := make(map[string]bool, len(opts.Metadata))
	for name, value := range opts.Metadata {
		lower := strings.ToLower(name)
		if name == "" || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return fmt.Errorf("%w: the metadata's name %q", ErrInvalid, name)
		}
		if seen[lower] {
			return fmt.Errorf("%w: the metadata has %q twice", ErrInvalid, lower)
		}
		seen[lower] = true
		if !utf8.ValidString(value) || strings.ContainsAny(value, "\x00\r\n") {
			return fmt.Errorf("%w: the value of the metadata %q", ErrInvalid, name)
		}
		total += len(name) + len(encodeHeader(value))
	}
	if total > MetadataLimit {
		return fmt.Errorf("%w: the metadata takes %d bytes, and %d are allowed", ErrInvalid, total, MetadataLimit)
	}
	return nil
}

func tooLarge(key string) error {
	return fmt.Errorf("%w: %q is larger than %d bytes, so it cannot be put with a condition", ErrInvalid, key, ConditionalLimit)
}

// lowered returns metadata as it is given back: names in lower case, never nil.
func lowered(metadata map[string]string) map[string]string {
	lower := make(map[string]string, len(metadata))
	for name, value := range metadata {
		lower[strings.ToLower(name)] = value
	}
	return lower
}

const defaultContentType = "application/octet-stream"

func contentTypeOf(given string) string {
	if given == "" {
		return defaultContentType
	}
	return given
}
