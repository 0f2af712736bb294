package sandbox

// MaxDepth bounds the nesting of a config: what is decoded and encoded again can
// cost its depth times its size.
const MaxDepth = 64

// CheckDepth refuses JSON that is nested more than MaxDepth deep, with
// invalid_request; what names it in the message. Whether it is JSON at all it
// does not say.
func CheckDepth(what string, raw []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			if depth > MaxDepth {
				return Errorf(CodeInvalidRequest, "%s is nested more than %d deep", what, MaxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}
