package sandbox

import (
	"strings"
	"testing"
)

func TestAConfigMayNestSoDeepAndNoDeeper(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		raw string
		ok  bool
	}{
		"the deepest":           {strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth), true},
		"deeper":                {strings.Repeat(`{"a":[`, MaxDepth/2) + "{", false},
		"brackets in a text":    {`{"a":"` + strings.Repeat("[", MaxDepth+1) + `"}`, true},
		"after a quoted quote":  {`["\"` + strings.Repeat("[", MaxDepth+1) + `"]`, true},
		"after a quoted escape": {`["\\",` + strings.Repeat("[", MaxDepth), false},
		"one after the other":   {strings.Repeat("[],", MaxDepth+1), true},
		"nothing":               {"", true},
		"a text that is cut":    {`"\`, true},
	} {
		err := CheckDepth("config", []byte(c.raw))
		if c.ok != (err == nil) || err != nil && (!HasCode(err, CodeInvalidRequest) || !strings.Contains(err.Error(), "config")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
