package clienttest

import "strings"

// NormalizePath gives the path of a request target as the URL parser of the
// WHATWG standard makes it for http, which the worker's runtime uses: tabs and
// line breaks vanish, a backslash is a slash, and dot segments are resolved, also
// those written with %2e. What else is percent-encoded stays so.
func NormalizePath(target string) string {
	target = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(target)
	if end := strings.IndexAny(target, "?#"); end >= 0 {
		target = target[:end]
	}
	segments := strings.Split(strings.ReplaceAll(target, `\`, "/"), "/")
	if segments[0] == "" {
		segments = segments[1:]
	}
	path := []string{}
	for i, segment := range segments {
		last := i == len(segments)-1
		switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
		case "..":
			path = path[:max(0, len(path)-1)]
			if last {
				path = append(path, "")
			}
		case ".":
			if last {
				path = append(path, "")
			}
		default:
			path = append(path, segment)
		}
	}
	return "/" + strings.Join(path, "/")
}
