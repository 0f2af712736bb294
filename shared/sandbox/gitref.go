package sandbox

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxBranch bounds the name of a branch, in characters. git has no bound but the
// file system's.
const maxBranch = 255

var commitID = regexp.MustCompile(`^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$`)

// branchFault says why git allows no branch or tag of a name, or "" if it does.
// It has the rules of git-check-ref-format(1) for refs/heads/NAME, and the one of
// git branch that no name begins with '-', which keeps it from being an option.
func branchFault(name string) string {
	if utf8.RuneCountInString(name) > maxBranch {
		return "is too long"
	}
	if strings.HasPrefix(name, "-") {
		return "begins with '-'"
	}
	for _, r := range name {
		switch {
		case r == ' ':
			return "has a space"
		case r < ' ' || r == 0x7f:
			return "has a control character"
		case strings.ContainsRune(`~^:?*[\`, r):
			return "has a '" + string(r) + "'"
		}
	}
	for _, part := range []string{"..", "@{", "//"} {
		if strings.Contains(name, part) {
			return "has '" + part + "'"
		}
	}
	if strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") {
		return "begins or ends with '/'"
	}
	if strings.HasSuffix(name, ".") {
		return "ends with '.'"
	}
	for component := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(component, ".") {
			return "has a part that begins with '.'"
		}
		if strings.HasSuffix(component, ".lock") {
			return "has a part that ends with '.lock'"
		}
	}
	return ""
}
